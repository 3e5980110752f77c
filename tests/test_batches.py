"""Texts decoded together: each is the text that it would have been alone, and its law is its own."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from models import CHAINS, GREEDY, PROMPT, PROMPTS, TREES, config_of, sharp, target, tiny
from transformers import BloomForCausalLM, GPT2LMHeadModel, LlamaForCausalLM

import speclib
from speclib import generate
from speclib.drafters import (
    Block,
    BlockDrafter,
    Eagle,
    EagleDrafter,
    LayerSkipDrafter,
    LookupDrafter,
    ModelDrafter,
    TreeDrafter,
)
from speclib.errors import InvalidArgument
from speclib.law import rules
from speclib.law.distributions import Sampling
from speclib.law.exact import TableModel, max_difference, outcomes, plain_law
from speclib.law.statistics import SIGNIFICANCE, g_test
from speclib.loop import arguments
from speclib.loop.lengths import ConfidenceLength, HeuristicLength
from speclib.model.batch import Batch, together
from speclib.model.context import Context, Read
from speclib.model.language_model import free_memory

DRAWN = Sampling()


def same(*arguments, **more):
    """A call row by row and in batches of three: the same texts, and the same rounds of each."""
    alone = generate(*arguments, batch_size=1, **more)
    batch = generate(*arguments, batch_size=3, **more)
    for one, other in zip(alone.tokens, batch.tokens, strict=True):
        assert torch.equal(one, other), (one, other)
    told = [[(r.row, r.position, r.drafted, r.accepted, r.emitted) for r in out.trace.rounds] for out in (alone, batch)]
    assert told[0] == told[1]
    for one, other in zip(alone.trace.rounds, batch.trace.rounds, strict=True):  # of which alpha is made
        assert other.overlaps == pytest.approx(one.overlaps, abs=1e-9), f"row {one.row} at {one.position}"
        assert other.stop_probs == pytest.approx(one.stop_probs, abs=1e-9), f"row {one.row} at {one.position}"
    return alone, batch


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", [*CHAINS, *TREES])
def test_every_guesser_guesses_for_a_batch_as_for_each_text(name, sampling):
    drafter = {**CHAINS, **TREES}[name](torch.float64)
    _, batch = same(target(torch.float64), PROMPTS, drafter, sampling, 3, max_new_tokens=12, stop=[], seed=4)
    assert max(r.rows for r in batch.trace.rounds) == 3
    assert batch.summary()["target_forwards"] < len(batch.trace.rounds)


@pytest.mark.parametrize("kind", [LlamaForCausalLM, GPT2LMHeadModel])
@pytest.mark.parametrize("backend", ["eager", "fast", "compiled"])
@pytest.mark.parametrize("rule", ["token", "block", "typical", "lenience", "ensemble"])
def test_every_backend_and_rule(kind, backend, rule):
    if backend == "compiled" and (rule != "token" or kind is GPT2LMHeadModel):
        pytest.skip("programs take long to make, and know nothing of rules")
    whole, small = sharp(kind, backend), sharp(kind, backend, seed=1, layers=1)
    _, batch = same(whole, PROMPTS, ModelDrafter(small), DRAWN, 3, rule, 14, stop=[])
    assert whole.reads_rows() and max(r.rows for r in batch.trace.rounds) == 3


@pytest.mark.parametrize("backend", ["eager", "fast"])
@pytest.mark.parametrize("shape", [(2, 1), (3, 2, 1)])
def test_each_row_may_have_a_tree_of_its_own(backend, shape):
    whole, small = sharp(backend=backend), sharp(backend=backend, seed=1, layers=1)
    same(whole, PROMPTS, TreeDrafter(small, shape), DRAWN, 3, max_new_tokens=12, stop=[])
    same(whole, PROMPTS, TreeDrafter(small, shape, sampled=False, budget=4), GREEDY, 3, max_new_tokens=12, stop=[])


@pytest.mark.parametrize("plan", [ConfidenceLength(0.5, 4), HeuristicLength(2, 5)])
def test_plans_learn_from_their_own_rounds(plan):
    whole, small = sharp(backend="fast"), sharp(backend="fast", seed=1, layers=1)
    same(whole, PROMPTS, ModelDrafter(small), DRAWN, plan, max_new_tokens=16, stop=[])


def test_rows_stop_on_their_own_and_make_room():
    """An end that comes at different places; the fourth prompt takes the place of the first text that ends."""
    whole, small = sharp(backend="fast"), sharp(backend="fast", seed=1, layers=1)
    seen, prompts = [], [*PROMPTS, [1, 1], [5]]
    settings = {"max_new_tokens": 24, "stop": [4], "seed": 3}
    _, batch = same(whole, prompts, ModelDrafter(small), DRAWN, 3, **settings)
    assert len({len(tokens) for tokens in batch.tokens}) > 2, "ends at different places"
    again = generate(whole, prompts, ModelDrafter(small), DRAWN, 3, **settings, batch_size=3, watch=seen.append)
    order = [r.row for r in seen]
    assert sorted(order) == [r.row for r in again.trace.rounds], "the trace is by row, whatever the order was"
    first = {row: order.index(row) for row in range(len(prompts))}
    last = {row: len(order) - order[::-1].index(row) for row in range(len(prompts))}
    assert first[3] >= min(last[row] for row in range(3)), "the fourth began when one of the first three had ended"
    assert first[3] < max(last[row] for row in range(3)), "and while another went on"


def test_a_processor_looks_at_its_own_row():
    from transformers import RepetitionPenaltyLogitsProcessor

    whole, small = sharp(backend="fast"), sharp(backend="fast", seed=1, layers=1)
    sampling = Sampling(processors=[RepetitionPenaltyLogitsProcessor(3.0)])
    same(whole, PROMPTS, ModelDrafter(small), sampling, 3, max_new_tokens=12, stop=[])
    same(whole, PROMPTS, TreeDrafter(small, (2, 1)), sampling, 3, max_new_tokens=12, stop=[])


def test_rows_of_the_same_prompt_are_different_texts():
    out = generate(sharp(backend="fast"), [PROMPT] * 4, None, DRAWN, max_new_tokens=16, stop=[])
    assert len({tuple(tokens.tolist()) for tokens in out.tokens}) == 4


# --- the law ---------------------------------------------------------------------------------------------------------


def law_of(language_model, prompt, length):
    """The law of a model's own text: a fresh context for each prefix, so that no cache is trusted."""

    def row(prefix):
        logits = language_model.context().extend(torch.tensor([[*prompt, *prefix]]))[0, -1]
        return DRAWN.probabilities(logits).numpy()

    return plain_law(TableModel(language_model.vocabulary, row), length)


@pytest.mark.parametrize("backend", ["eager", "fast"])
@pytest.mark.parametrize("rows, tree, length", [(2, False, 3), (3, False, 2), (2, True, 2), (3, True, 2)])
def test_the_joint_law_of_the_rows_is_the_product_of_their_own(rows, tree, length, backend):
    """All paths of generate() on rows of unequal length: no row's draw, cache or verdict touches a neighbour's."""
    prompts = [[1, 0, 1], [1], [0, 0]][:rows]
    whole, small = sharp(backend=backend, words=2), sharp(backend=backend, seed=1, layers=1, words=2)
    drafter = TreeDrafter(small, (2,)) if tree else ModelDrafter(small)
    most = []

    def run(draw):
        out = generate(whole, prompts, drafter, DRAWN, 1, max_new_tokens=length, stop=[], draw=draw)
        most.append(max(r.rows for r in out.trace.rounds))
        return tuple(token for tokens in out.tokens for token in tokens.tolist())

    right = {(): 1.0}
    for prompt in prompts:
        law = law_of(whole, prompt, length)
        right = {before + text: p * q for before, p in right.items() for text, q in law.items()}
    assert max_difference(outcomes(run), right) < 1e-12
    assert set(most) == {rows} and len(most) > 30


def test_rows_of_a_batch_follow_the_law():
    """G-test of the first two tokens over many batches of eight, each row with a seed of its own."""
    whole, small = sharp(backend="fast", words=4), sharp(backend="fast", seed=1, layers=1, words=4)
    texts = []
    for seed in range(250):
        out = generate(whole, [[1, 2]] * 8, ModelDrafter(small), DRAWN, 2, max_new_tokens=2, stop=[], seed=seed)
        texts += [tuple(tokens.tolist()) for tokens in out.tokens]
    assert g_test(Counter(texts), law_of(whole, [1, 2], 2)).p_value > SIGNIFICANCE


@pytest.mark.parametrize("name", rules.RULES)
def test_a_guess_that_was_not_made_is_never_accepted(name):
    torch.manual_seed(0)
    p, q = torch.rand(4, 3, 5, dtype=torch.float64).softmax(-1), torch.rand(4, 2, 5, dtype=torch.float64).softmax(-1)
    q[1:, 1] = 0
    verdict = rules.RULES[name].verdict(p, q, torch.zeros(4, 2, dtype=torch.long))
    assert (verdict.stop_probs[1:, 2] == 0).all() and (verdict.stop_probs[0, 2] > 0).all()
    short = rules.RULES[name].verdict(p[:, :2], q[:, :1], torch.zeros(4, 1, dtype=torch.long))
    assert torch.allclose(verdict.stop_probs[1:, :2], short.stop_probs[1:], atol=1e-15)
    assert torch.allclose(verdict.next_probs[1:, :2], short.next_probs[1:], atol=1e-15)


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LlamaForCausalLM, GPT2LMHeadModel])
@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_ragged_rows_with_trees_read_as_each_alone(kind, backend):
    """Three rows of one cache: a chain, a tree, one token; behind texts of unequal length, again after a rollback."""
    language_model, batch, logits = sharp(kind, backend), Batch(2), {}
    texts, trees = [[1, 2, 3, 4, 5], [6], [2, 2, 1]], [None, [-1, -1, 0, 1], None]
    new = [torch.tensor([[3, 1, 2]]), torch.tensor([[1, 4, 2, 2]]), torch.tensor([[5]])]
    for shared in (True, False):
        contexts = [language_model.context(text, batch if shared else None) for text in texts]
        for context, text in zip(contexts, texts, strict=True):
            context.wants_hidden = True
            context.extend(torch.tensor([text]), keep=1)
        reads = [Read(c, tokens, None, tree) for c, tokens, tree in zip(contexts, new, trees, strict=True)]
        first = together(reads)
        contexts[0].retain([0])
        contexts[1].retain([1, 3])
        reads = [Read(c, tokens, 1) for c, tokens in zip(contexts, reversed(new), strict=True)]
        logits[shared] = [*first, *together(reads), *(c.hidden for c in contexts)]
        assert all((context.slots is not None) == shared for context in contexts)
    for got, want in zip(logits[True], logits[False], strict=True):
        assert torch.allclose(got, want, atol=1e-11), float((got - want).abs().max())


@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_a_text_that_has_ended_leaves_its_row(backend):
    language_model, batch = sharp(backend=backend), Batch(2)
    contexts = [language_model.context([k], batch) for k in range(5)]
    for k, context in enumerate(contexts):
        context.extend(torch.tensor([[k, 2, k]]))
    slots = contexts[0].slots
    assert len(slots.members) == 5 and slots.rows >= 5
    del contexts[1], contexts[1]
    read = together([Read(context, torch.tensor([[1, 1]])) for context in contexts])
    assert len(slots.members) == 3 and sorted(context.row for context in contexts) == [0, 1, 2]
    for k, logits in zip((0, 3, 4), read, strict=True):
        alone = language_model.context([k])
        alone.extend(torch.tensor([[k, 2, k]]))
        assert torch.allclose(logits, alone.extend(torch.tensor([[1, 1]])), atol=1e-11)


def test_a_long_text_in_a_batch_grows_the_cache_of_all():
    whole = sharp(backend="fast")
    whole.context([0]).extend(torch.zeros(1, 3, dtype=torch.long))
    import speclib.model.batch as batches

    first, batches_first = batches.FIRST, 4
    try:
        batches.FIRST = speclib.fast.FIRST = batches_first
        same(
            whole, PROMPTS, ModelDrafter(sharp(backend="fast", seed=1, layers=1)), DRAWN, 3, max_new_tokens=20, stop=[]
        )
    finally:
        batches.FIRST = speclib.fast.FIRST = first


# --- long prompts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("backend", ["eager", "fast"])
@pytest.mark.parametrize("name", ["plain", "model", "eagle", "block", "tree", "layers"])
def test_a_long_prompt_is_read_in_pieces(monkeypatch, name, backend, at_once):
    """The text is the one after a single forward over the prompt, and no forward is larger than the piece."""
    whole, small = (tiny("llama", backend, 7, layers, 2048, 3, layers) for layers in (2, 1))
    torch.manual_seed(4)
    drafter = {
        "plain": lambda: None,
        "model": lambda: ModelDrafter(small),
        "eagle": lambda: EagleDrafter(Eagle(config_of(8)).double().eval()),
        "block": lambda: BlockDrafter(Block(config_of(8), 3).double().eval()),
        "tree": lambda: TreeDrafter(EagleDrafter(Eagle(config_of(8)).double().eval()), (2, 1)),
        "layers": lambda: LayerSkipDrafter(1),
    }[name]()
    prompts = [torch.randint(7, (k,), generator=torch.Generator().manual_seed(k)).tolist() for k in (1500, 700, 3)]
    settings = {"max_new_tokens": 12, "stop": [], "batch_size": at_once}
    forwards, entered = [], Context.entered
    monkeypatch.setattr(Context, "entered", lambda self, logits, k: forwards.append(k) or entered(self, logits, k))
    texts, drafted = [], []
    for piece, most in ((512, 512), (2048, 1499)):
        forwards.clear()
        monkeypatch.setattr("speclib.model.context.PIECE", piece)
        monkeypatch.setattr("speclib.drafters.eagle.PIECE", piece)
        out = generate(whole, prompts, drafter, DRAWN, 3, **settings)
        masks = 3 * (name == "block")  # stand behind the text
        assert most <= max(forwards) <= most + masks
        assert forwards.count(512) >= (0 if piece > 512 else 3)
        texts.append([row.tolist() for row in out.tokens])
        drafted.append([r.drafted for r in out.trace.rounds])
        assert max(r.rows for r in out.trace.rounds) == at_once
    assert texts[0] == texts[1] and drafted[0] == drafted[1]


@pytest.mark.parametrize("backend", ["eager", "fast", "compiled"])
@pytest.mark.parametrize("shared", [False, True])
def test_what_pieces_leave_behind_is_what_one_forward_leaves(monkeypatch, backend, shared):
    """Logits, hidden states of the whole prompt, and where the latest reading began."""
    monkeypatch.setattr("speclib.model.context.PIECE", 4)
    language_model, tokens, found = sharp(backend=backend), torch.arange(11)[None] % 7, []
    for keep in (1, 2):  # with two logits to keep, one forward
        text = language_model.context((), Batch(2) if shared else None)
        text.wants_hidden = True
        text.extend(tokens[:, :2], keep=2)
        logits = text.extend(tokens[:, 2:], keep)[:, -1:]
        text.retain(range(8))
        found.append((logits, text.hidden, text.extend(tokens[:, :1])))
        assert text.length == 11
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape and torch.allclose(one, other, atol=1e-11)


# --- what goes row by row, and what does not fit ---------------------------------------------------------------------


def test_a_model_that_takes_no_positions_goes_row_by_row():
    bloom = sharp(BloomForCausalLM)
    assert not bloom.reads_rows()
    out = generate(bloom, PROMPTS, LookupDrafter(1), DRAWN, 2, max_new_tokens=10, stop=[])
    assert {r.rows for r in out.trace.rounds} == {1}


def test_a_draft_that_goes_row_by_row_serves_a_batch():
    torch.manual_seed(0)
    whole, bloom = sharp(backend="fast"), sharp(BloomForCausalLM, seed=2)
    _, batch = same(whole, PROMPTS, ModelDrafter(bloom), DRAWN, 2, max_new_tokens=10, stop=[])
    assert max(r.rows for r in batch.trace.rounds) == 3


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "3"])
def test_batch_size_is_checked(wrong):
    with pytest.raises(InvalidArgument, match="batch_size"):
        generate(sharp(), PROMPTS, max_new_tokens=2, batch_size=wrong)


def test_a_batch_that_does_not_fit_is_refused_with_numbers_before_work(monkeypatch):
    whole = sharp(backend="fast")
    each = 2 * (max(map(len, PROMPTS)) + 2) * whole.bytes_per_token
    monkeypatch.setattr(arguments, "free_memory", lambda device: 7 * each)
    with pytest.raises(InvalidArgument, match=r"5 texts of up to 10 tokens need .* GB .* take batch_size=3"):
        generate(whole, PROMPTS, max_new_tokens=2, batch_size=5)
    out = generate(whole, PROMPTS, None, DRAWN, max_new_tokens=4, stop=[])  # by itself it takes what fits
    assert max(r.rows for r in out.trace.rounds) < 5


@pytest.mark.parametrize("kind", [LlamaForCausalLM, BloomForCausalLM])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]])
def test_one_text_fits_or_is_refused_with_numbers_before_work(monkeypatch, kind, prompts):
    """Whether or not a batch_size is named, and for models that go row by row. One text may have all that is free."""
    whole = sharp(kind)
    each = 2 * (max(map(len, prompts)) + 2) * whole.bytes_per_token
    monkeypatch.setattr(arguments, "free_memory", lambda device: each)
    out = generate(whole, prompts, None, DRAWN, max_new_tokens=2, stop=[])
    assert {r.rows for r in out.trace.rounds} == {1}
    monkeypatch.setattr(arguments, "free_memory", lambda device: each - 1)
    monkeypatch.setattr(Context, "extend", None)
    for batch_size in (None, 1):
        with pytest.raises(InvalidArgument, match=r"1 text of up to \d+ tokens need .* GB .* shorten"):
            generate(whole, prompts, None, DRAWN, max_new_tokens=2, stop=[], batch_size=batch_size)


def test_what_is_free_counts_what_a_container_would_give_back(monkeypatch):
    files = {"max": "9000", "current": "8500", "stat": "anon 1\nactive_file 300\ninactive_file 4000\n"}
    real = Path.read_text

    def read_text(path, *more):
        return files[path.suffix[1:]] if str(path).startswith("/sys/fs/cgroup/memory.") else real(path, *more)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert free_memory(torch.device("cpu")) == 4800
