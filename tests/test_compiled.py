"""The compiled backend: the same text, one program for every length of the text, and a way on where nothing can be
compiled.
"""

import copy
import itertools
import shutil
import warnings

import pytest
import torch
from models import GREEDY, TOLERANCE, build, reference, text

import speclib
from speclib import LanguageModel, compiled, products
from speclib.drafters import ModelDrafter, TreeDrafter
from speclib.errors import NonFiniteLogits, UnsupportedModel
from speclib.law.distributions import seeded
from speclib.loop.lengths import ConfidenceLength

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))), reason="torch.compile needs a C++ compiler"
)


def model(kind="llama", dtype=torch.float32, seed=0, layers=2):
    return LanguageModel(build(kind, seed, dtype, layers), backend="compiled")


@needs_compiler
@pytest.mark.parametrize("kind", ["llama grouped", "gpt2"])
def test_one_program_serves_every_length(kind):
    """Logits against transformers' own, in front of and behind the ends of blocks of 64 slots, nothing compiled
    twice.
    """
    tokens, language_model = text(330), model(kind, layers=3)
    right = reference(kind, tokens, torch.float32)
    language_model.announce([4])
    context = language_model.context()
    context.extend(tokens[:, :50], keep=1)
    context.extend(text(4, seed=9))
    context.rollback(50)
    got = [context.extend(tokens[:, 50:54])[0]]
    with torch._dynamo.config.patch(error_on_recompile=True):
        got += [context.extend(tokens[:, start : start + 4])[0] for start in range(54, 330, 4)]
    assert context.capacity == 640 and len(language_model.programs._made) == 1 and not language_model.programs.broken
    assert (torch.cat(got) - right[50:]).abs().max() < TOLERANCE[torch.float32]


@needs_compiler
def test_one_program_over_matrices_of_every_layout(monkeypatch):
    """Layouts taken in turn, and other ones for one row than for four: a program has the layouts of its width."""
    turn, wanted = itertools.cycle(products.LAYOUTS), []

    def layouts(weight):
        wanted.append((next(turn), next(turn)))
        return (*[wanted[-1][0]] * 3, *[wanted[-1][1]] * (len(products.ROWS) - 3))

    tokens, right = text(30), reference("llama", text(30), torch.float32)
    if products.can_pack(torch.ones(1, 1)):
        monkeypatch.setattr(products, "layouts", layouts)
    language_model = model(layers=3)
    assert not wanted or set(sum(wanted, ())) == set(products.LAYOUTS)
    language_model.announce([1, 4])
    context = language_model.context()
    context.extend(tokens[:, :20], keep=1)
    got = torch.cat([context.extend(tokens[:, a:b])[0] for a, b in ((20, 24), (24, 25), (25, 29), (29, 30))])
    assert len(language_model.programs._made) == 2 and not language_model.programs.broken
    assert (got - right[20:]).abs().max() < TOLERANCE[torch.float32]


@needs_compiler
def test_the_text_is_that_of_the_fast_backend():
    """Plain, with a draft, with a tree, greedy and drawn; caches are handed on from text to text."""
    target, draft = model(), model(seed=1, layers=1)
    prompts = [row.tolist() for row in text(30).reshape(3, 10)]
    for sampling in (GREEDY, speclib.Sampling()):
        for make in (
            lambda d: None,
            ModelDrafter,
            lambda d, sampled=sampling.temperature > 0: TreeDrafter(d, (2, 1), sampled),
        ):
            outs = [
                speclib.generate(
                    LanguageModel(target.model, backend="fast") if fast else target,
                    prompts,
                    make(draft),
                    sampling,
                    3,
                    max_new_tokens=40,
                    stop=[],
                    batch_size=1,
                )
                for fast in (True, False)
            ]
            assert all(torch.equal(a, b) for a, b in zip(outs[0].tokens, outs[1].tokens, strict=True))
    assert {key[0] for key in target.programs._made} == {1, 4}
    # three guesses, whether one token is new or two
    assert {key[:2] for key in draft.programs._made if len(key) > 2} == {(2, 3)}
    assert len(target.programs.stores[640]) == 1  # one cache at a time was in use


@needs_compiler
def test_a_batch_is_read_by_one_program_for_its_rows():
    target, draft = model(), model(seed=1, layers=1)
    prompts = [row.tolist()[: 10 - 3 * i] for i, row in enumerate(text(30).reshape(3, 10))]
    outs = [
        speclib.generate(
            LanguageModel(target.model, backend="fast") if fast else target,
            prompts,
            ModelDrafter(LanguageModel(draft.model, backend="fast") if fast else draft),
            draft_length=3,
            max_new_tokens=40,
            stop=[],
        )
        for fast in (True, False)
    ]
    assert all(torch.equal(a, b) for a, b in zip(outs[0].tokens, outs[1].tokens, strict=True))
    assert (3, 4) in {key[:2] for key in target.programs._made} <= {(3, 1), (3, 2), (3, 3), (3, 4)}
    assert (3, 1) in {key[:2] for key in draft.programs._made} <= {(3, 1), (3, 2)}
    assert not target.programs.broken and not draft.programs.broken


@needs_compiler
def test_a_cache_that_grows_takes_a_program_of_its_own(monkeypatch):
    monkeypatch.setattr(compiled, "ROOM", 64)
    tokens, language_model = text(150), model()
    language_model.announce([1])
    context = language_model.context()
    context.extend(tokens[:, :60], keep=1)
    got = torch.cat([context.extend(tokens[:, k : k + 1])[0] for k in range(60, 150)])
    assert context.capacity == 256 and [key[1] for key in language_model.programs._made] == [192, 256, 384]
    right = LanguageModel(language_model.model).context().extend(tokens)[0, 60:]
    assert (got - right).abs().max() < TOLERANCE[torch.float32]


@needs_compiler
def test_more_programs_than_torch_makes_of_one_function():
    language_model = LanguageModel(build("llama", 0, torch.float32, 1), backend="compiled")
    language_model.announce(range(1, 4))
    context = language_model.context()
    with torch._dynamo.config.patch(recompile_limit=2):
        for width in (1, 2, 3):
            context.extend(text(width))
    assert len(language_model.programs._made) == 3 and not language_model.programs.broken


@needs_compiler
def test_a_reused_cache_shows_nothing_of_its_last_text():
    language_model = model()
    language_model.announce([1])
    tokens = text(6)
    first = language_model.context()
    first.extend(torch.full((1, 40), 7))
    del first
    second = language_model.context()
    second.extend(tokens[:, :5], keep=1)
    assert (
        second.extend(tokens[:, 5:])[0] - LanguageModel(language_model.model).context().extend(tokens, keep=1)[0]
    ).abs().max() < 1e-4


def test_where_nothing_compiles_it_says_so_once_and_goes_on(monkeypatch):
    def fails(forward):
        raise RuntimeError("no C++ compiler found\nand more")

    monkeypatch.setattr(compiled, "fused", fails)
    target = model()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        out = speclib.generate(target, [[1, 2, 3]], None, GREEDY, max_new_tokens=20, stop=[])
    assert [str(w.message) for w in seen if "compiled" in str(w.message)] == [
        "LlamaForCausalLM cannot be compiled here (no C++ compiler found); going on with backend='fast'"
    ]
    assert torch.equal(
        out.tokens[0],
        speclib.generate(LanguageModel(target.model), [[1, 2, 3]], None, GREEDY, max_new_tokens=20, stop=[]).tokens[0],
    )


def test_a_program_that_computes_something_else_is_not_used(monkeypatch):
    monkeypatch.setattr(compiled, "fused", lambda forward: lambda *given: tuple(1.01 * out for out in forward(*given)))
    target = model()
    with pytest.warns(
        UserWarning, match="logits are apart from the fast forward's by .*; going on with backend='fast'"
    ):
        out = speclib.generate(target, [[1, 2, 3]], None, GREEDY, max_new_tokens=20, stop=[])
    assert target.programs.broken == {"forward"}
    right = speclib.generate(LanguageModel(target.model), [[1, 2, 3]], None, GREEDY, max_new_tokens=20, stop=[])
    assert torch.equal(out.tokens[0], right.tokens[0])


def test_what_the_fast_decoder_cannot_read_cannot_be_compiled():
    with pytest.raises(UnsupportedModel, match="GPTNeoX"):
        model("neox")


@needs_compiler
@pytest.mark.parametrize("sampling", [GREEDY, speclib.Sampling(), speclib.Sampling(0.7, top_k=40, top_p=0.9)], ids=str)
def test_guesses_made_by_one_program_are_those_made_one_by_one(sampling):
    """The same tokens from the same distributions with the same seed, and a cache that goes on from there."""
    drafts = {
        backend: LanguageModel(build("llama", 1, torch.float32, 1), backend=backend) for backend in ("fast", "compiled")
    }
    target, guessed = model(), {}
    for backend, draft in drafts.items():
        guesser = ModelDrafter(draft).start(target.context([1, 2, 3]), sampling, seeded(5))
        guesser.prepare([1, 2, 3])
        guessed[backend] = [
            guesser.propose([1, 2, 3], 3),
            guesser.propose([1, 2, 3, 9], 3),
            guesser.propose([1, 2, 3, 9, 8, 7], 3),
        ]
        assert guesser.context.length == 8
    assert not drafts["compiled"].programs.broken and drafts["compiled"].programs._made
    for one, other in zip(*guessed.values(), strict=True):
        assert torch.equal(one.tokens, other.tokens) and (one.probs - other.probs).abs().max() < 1e-5


@needs_compiler
def test_a_program_of_guesses_of_nan_is_found_out():
    target, broken = model(), copy.deepcopy(build("llama", 1, torch.float32, 1))
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    draft = LanguageModel(broken, backend="compiled")
    with pytest.raises(NonFiniteLogits, match="NaN"):
        speclib.generate(target, [[1, 2, 3]], ModelDrafter(draft), draft_length=3, max_new_tokens=10)


def test_only_announced_numbers_of_tokens_get_programs(monkeypatch):
    seen = []
    monkeypatch.setattr(
        compiled, "fused", lambda forward: lambda tokens, *rest: seen.append(len(tokens)) or forward(tokens, *rest)
    )
    target, draft = model(), model(seed=1, layers=1)
    speclib.generate(target, [[1, 2, 3]], ModelDrafter(draft), draft_length=4, max_new_tokens=30, stop=[])
    # guesses are made at once
    assert {2, 5} <= set(seen) <= {1, 2, 5} and target.programs.widths == {1, 5} and draft.programs.widths == set()
    speclib.generate(
        target, [[1, 2, 3]], ModelDrafter(draft), draft_length=ConfidenceLength(0.3, 4), max_new_tokens=30, stop=[]
    )
    assert draft.programs.widths == {1, 2}  # each is asked about first
    target.announce([0, 33, 1000])  # nothing to make programs of
    assert target.programs.widths == {1, 5}
