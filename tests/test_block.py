"""The parallel block drafter: the law of the text, that training sees what decoding will see, and what it refuses."""

import pytest
import torch
from models import GREEDY, config_of, law_of, right_law, tiny
from safetensors.torch import save_file
from torch.nn.functional import linear
from transformers import LlamaConfig, RepetitionPenaltyLogitsProcessor

import speclib
from speclib.drafters import FallbackDrafter, LookupDrafter
from speclib.drafters.base import Drafter, always
from speclib.drafters.block import Block, BlockDrafter, read_block
from speclib.errors import IncompatibleModels, InvalidArgument
from speclib.law.distributions import Sampling, seeded
from speclib.law.exact import max_difference
from speclib.training.block import block_guesses, block_states


def some_block(rank=0, count=3, vocabulary=5, kept=None, width=8, groups=2):
    torch.manual_seed(3)
    config = config_of(width).to_dict() | {"vocab_size": vocabulary, "num_key_value_heads": groups}
    kept = None if kept is None else torch.tensor(kept)
    block = Block(LlamaConfig(**config), count, rank, kept).double().eval().requires_grad_(False)
    for weights in block.parameters():
        if weights.ndim == 2:
            weights.normal_(std=0.5)
    return block


@pytest.mark.parametrize("claim", ["marginal", "point"])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    ("kind", "backend", "vocabulary", "kept", "sampling", "length", "prompt"),
    [
        ("llama", "eager", 3, None, Sampling(), 3, [0, 1]),
        ("llama", "fast", 2, None, Sampling(temperature=0.7), 5, [0]),  # one token: no state in the first round
        ("llama", "compiled", 3, None, Sampling(top_k=2), 4, [0, 1, 2]),
        ("llama", "fast", 3, [2, 0], Sampling(), 3, [0, 1]),
        ("gpt2", "fast", 2, None, Sampling(processors=[RepetitionPenaltyLogitsProcessor(1.5)]), 4, [0, 1]),
    ],
)
def test_generate_keeps_the_law(kind, backend, vocabulary, kept, sampling, length, prompt, rank, claim):
    target, block = tiny(kind, backend, vocabulary), some_block(rank, 2, vocabulary, kept)
    law = law_of(target, BlockDrafter(block, claim), sampling, 2, length, prompt)
    if sampling.processors:
        right = law_of(target, None, sampling, 0, length, prompt)
    else:
        right = right_law(target, sampling, length, prompt)
    assert max_difference(law, right) < 1e-12
    assert sum(law.values()) == pytest.approx(1, abs=1e-12) and len(law) > 2


class Watched(Drafter):
    """Keeps each text that was asked about and the draft it got."""

    def __init__(self, drafter):
        self.drafter, self.seen = drafter, []

    def start(self, *arguments):
        guesser = self.drafter.start(*arguments)
        real = guesser.drafting

        def drafting(text, *more):
            before = list(text)
            self.seen.append((before, (yield from real(text, *more))))
            return self.seen[-1][1]

        guesser.drafting = drafting
        return guesser


PROMPTS = [[0, 1, 2, 3], [4], [2, 2]]


@pytest.mark.parametrize(("rank", "kept", "groups"), [(0, None, 2), (2, None, 1), (0, [4, 1, 2], 2), (2, [4, 1, 2], 2)])
@pytest.mark.parametrize(
    ("backend", "batch_size", "copies_first"), [("eager", 3, False), ("fast", 3, True), ("fast", 1, False)]
)
def test_every_guess_stands_on_what_training_saw(backend, batch_size, copies_first, rank, kept, groups):
    """After rounds of all outcomes, alone and in a batch, and after rounds of another guesser, the distributions are
    those of one training forward over the whole text.
    """
    target, block = tiny(backend=backend, vocabulary=5, scale=3), some_block(rank, kept=kept, groups=groups)
    watched = Watched(BlockDrafter(block))
    drafter = FallbackDrafter(LookupDrafter(3, 2), watched) if copies_first else watched
    out = speclib.generate(target, PROMPTS, drafter, Sampling(), 3, max_new_tokens=28, stop=[], batch_size=batch_size)
    assert len({r.accepted for r in out.trace.rounds}) >= 3, "rounds of several outcomes"
    rows = target.model.lm_head.weight[block.kept if kept else slice(None)]
    for text, draft in (pair for pair in watched.seen if len(pair[0]) > 1):
        with torch.inference_mode():
            hidden = target.model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1]
            embeddings = target.model.get_input_embeddings()(torch.tensor([text[1:]]))
            states = block_states(block, hidden[:, :-1], embeddings, torch.tensor([len(text) - 2]))[0, 0]
            logits = linear(states, rows)[: len(draft.tokens)]
            if rank:
                logits = logits + block.first_order(torch.tensor([text[-1], *draft.tokens[:-1].tolist()]))
        q = torch.zeros(len(logits), 5).double().index_copy(1, torch.tensor(kept or range(5)), logits.softmax(-1))
        assert torch.allclose(draft.probs, q, atol=1e-10), f"after {text}"


def test_training_at_many_places_is_training_at_each():
    """And a guess is shown nothing of what comes behind the token that its masks follow."""
    target, block, offset = tiny(vocabulary=5, scale=3), some_block(2), torch.tensor(1)
    inputs = torch.randint(5, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out = target.model(inputs, output_hidden_states=True)
        states, places, before = block_guesses(block, target.model, inputs, out, offset)
        assert states.shape == (2, 4, 3, 8) and before.shape == (2, 4, 3)
        assert places.tolist() == [[2, 3, 4], [5, 6, 7], [8, 9, 10], [11, 12, 13]]
        assert torch.equal(before, inputs[:, 2:14].unflatten(1, (4, 3)))
        for a, place in enumerate(places[:, 0].tolist()):
            text = inputs[:, : place + 1]  # the first guess is to say what the target says at its end
            hidden = target.model(text, output_hidden_states=True).hidden_states[-1]
            embeddings = target.model.get_input_embeddings()(text[:, 1:])
            alone = block_states(block, hidden[:, :-1], embeddings, torch.tensor([place - 1]))
            torch.testing.assert_close(states[:, a : a + 1], alone, rtol=0, atol=1e-10)
        last = block_guesses(block, target.model, inputs[:, :6], out_of(out, 6), torch.tensor(0))[1]
        assert last.tolist() == [[1, 2, 3]]


def out_of(out, width):
    return type(out)(hidden_states=tuple(state[:, :width] for state in out.hidden_states))


def test_training_runs_in_bfloat16_and_reaches_every_weight():
    target, block = tiny(vocabulary=5, scale=3), some_block(2).float().requires_grad_(True)
    inputs, model = torch.randint(5, (2, 12), generator=torch.Generator().manual_seed(0)), target.model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(inputs, output_hidden_states=True)
        states, places, before = block_guesses(block, model, inputs, out)
        (
            linear(states, model.lm_head.weight) + block.first_order(before) - out.logits[:, places]
        ).square().mean().backward()
    assert states.isfinite().all() and states.dtype in (torch.bfloat16, torch.float32)
    assert all(weights.grad.abs().sum() > 0 for weights in block.parameters())


@pytest.mark.parametrize(("rank", "claim"), [(0, "marginal"), (2, "marginal"), (2, "point")])
@pytest.mark.parametrize("backend", ["eager", "fast", "compiled"])
def test_greedy_identity_up_to_the_last_token_that_the_target_can_hold(backend, rank, claim):
    target = tiny(backend=backend, vocabulary=30, context=44, scale=3)
    drafter = BlockDrafter(some_block(rank, 4, 30), claim)
    plain, ours = (
        speclib.generate(target, [[1, 2], [3, 4]], guesser, GREEDY, 6, max_new_tokens=42, stop=[])
        for guesser in (None, drafter)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.tokens, ours.tokens, strict=True))
    assert max(len(r.drafted) for r in ours.trace.rounds) == 4, "no more than there are masks"


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_writes_what_its_rows_write_alone(dtype, rank):
    target = tiny(backend="fast", vocabulary=5, scale=3)
    target = speclib.LanguageModel(target.model.to(dtype), backend="fast")
    drafter = BlockDrafter(some_block(rank))
    texts = [
        [
            row.tolist()
            for row in speclib.generate(
                target, PROMPTS, drafter, Sampling(), 3, max_new_tokens=20, stop=[], batch_size=size
            ).tokens
        ]
        for size in (1, 3)
    ]
    assert texts[0] == texts[1]


def test_what_a_guess_is_drawn_from():
    """Marginals do not depend on what was drawn; with a head each guess depends on the one before it alone."""
    target, text = tiny(backend="fast", vocabulary=5), [0, 1, 2, 3]
    for rank, claim in ((0, "marginal"), (2, "marginal"), (2, "point")):
        drafts = []
        for seed in range(40):
            context = target.context(text)
            guesser = BlockDrafter(some_block(rank), claim).start(context, Sampling(), seeded(seed))
            context.extend(torch.tensor([text[:-1]]))
            drafts.append(guesser.propose(text, 9))
        laws = {i: {tuple(d.probs[i].tolist()) for d in drafts} for i in range(3)}
        by_token = {i: {(int(d.tokens[i - 1]), *d.probs[i].tolist()) for d in drafts} for i in (1, 2)}
        assert all(d.probs.shape == (3, 5) for d in drafts) and len(laws[0]) == 1
        if claim == "point":
            assert len({tuple(d.tokens.tolist()) for d in drafts}) == 1
            assert drafts[0].probs.max(-1).values.tolist() == [1, 1, 1]
        else:
            assert len({tuple(d.tokens.tolist()) for d in drafts}) > 1
            for i in (1, 2):
                assert len(laws[i]) == (len({int(d.tokens[i - 1]) for d in drafts}) if rank else 1)
                assert len(by_token[i]) == len({int(d.tokens[i - 1]) for d in drafts})


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("claim", ["marginal", "point"])
def test_it_asks_before_each_further_guess(rank, claim):
    """About what it expects there, also where it claims that it knows."""
    target, text, asked = tiny(backend="fast", vocabulary=5), [0, 1, 2, 3], []

    def once(probs):
        asked.append(probs)
        return len(asked) < 2

    for goes_on, guesses in ((once, 2), (always, 3)):
        context = target.context(text)
        guesser = BlockDrafter(some_block(rank), claim).start(context, Sampling(), seeded(0))
        context.extend(torch.tensor([text[:-1]]))
        assert guesser.propose(text, 3, goes_on).probs.shape == (guesses, 5)
    assert all(0 < probs.max() < 1 and probs.shape == (5,) for probs in asked)


@pytest.mark.parametrize(("rank", "kept"), [(0, None), (2, [3, 1])])
def test_it_is_read_as_it_was_written(rank, kept, tmp_path):
    block = some_block(rank, kept=kept).float()
    block.config.save_pretrained(tmp_path)
    save_file(block.state_dict(), tmp_path / "model.safetensors")
    again = read_block(tmp_path)
    assert (again.count, again.rank) == (3, rank) and not any(p.requires_grad for p in again.parameters())
    assert again.state_dict().keys() == block.state_dict().keys()
    assert all(torch.equal(value, block.state_dict()[key]) for key, value in again.state_dict().items())


def test_refusals_are_one_line():
    with pytest.raises(InvalidArgument, match="claim must be"):
        BlockDrafter(some_block(), "joint")
    for block, message in (
        (some_block(width=4), "width 4"),
        (some_block(2, vocabulary=2), "trained for a vocabulary of"),
        (some_block(kept=[1, 3]), "trained for a vocabulary of"),
    ):
        with pytest.raises(IncompatibleModels, match=message):
            speclib.generate(tiny(), [[0, 1]], BlockDrafter(block), max_new_tokens=4)
    assert BlockDrafter(some_block()).lengths(9) == {3} and BlockDrafter(some_block()).lengths(2) == {2}
