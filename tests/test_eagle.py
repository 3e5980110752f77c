"""Eagle: what it reads, the law of the text, and that training sees what decoding will see. By chance, and with a
control: test_every_guesser.py.
"""

import pytest
import torch
from models import GREEDY, config_of, law_of, right_law, tiny

import speclib
from speclib.drafters import (
    Drafter,
    Eagle,
    EagleDrafter,
    EnsembleDrafter,
    FallbackDrafter,
    LookupDrafter,
    TreeDrafter,
)
from speclib.drafters.base import always
from speclib.errors import IncompatibleModels, InvalidArgument
from speclib.law.distributions import Sampling, seeded
from speclib.law.exact import max_difference
from speclib.loop.decoding import branch
from speclib.training.readers import unrolled


def some_eagle(width=8):
    torch.manual_seed(3)
    eagle = Eagle(config_of(width)).double().eval().requires_grad_(False)
    for weights in eagle.parameters():
        if weights.ndim == 2:
            weights.mul_(15)
    return eagle


@pytest.mark.parametrize(
    ("kind", "backend", "vocabulary", "sampling", "length", "prompt"),
    [
        ("llama", "eager", 3, Sampling(), 3, [0, 1]),
        ("llama", "fast", 2, Sampling(temperature=0.7), 5, [0]),  # a prompt of one token: no state in the first round
        ("llama", "fast", 3, Sampling(top_k=2), 4, [0, 1, 2]),
        ("gpt2", "fast", 2, Sampling(), 4, [0, 1]),
    ],
)
def test_generate_keeps_the_law(kind, backend, vocabulary, sampling, length, prompt):
    target = tiny(kind, backend, vocabulary)
    law = law_of(target, EagleDrafter(some_eagle()), sampling, 2, length, prompt)
    assert max_difference(law, right_law(target, sampling, length, prompt)) < 1e-12
    assert sum(law.values()) == pytest.approx(1, abs=1e-12) and len(law) > 2


def watch(drafter):
    """(the same drafter, a list of each text that it is asked about with what it drafted)."""
    seen = []

    class Watched(Drafter):
        grows_trees = drafter.grows_trees

        def start(self, *arguments):
            guesser = drafter.start(*arguments)
            real = guesser.drafting

            def drafting(text, *more):
                before = list(text)
                seen.append((before, (yield from real(text, *more))))
                return seen[-1][1]

            guesser.drafting = drafting
            return guesser

    return Watched(), seen


@pytest.mark.parametrize("within", ["nothing", "fallback", "a fallback's fallback", "a fallback's ensemble"])
@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_every_guess_stands_on_what_training_saw(backend, within):
    """After rounds of all outcomes, and after rounds in which a lookup was asked, the distributions are those of
    `unrolled` over the whole text, the guesses behind it.
    """
    target, eagle, gamma = tiny(backend=backend, vocabulary=5, scale=3), some_eagle(), 3
    watched, seen = watch(EagleDrafter(eagle))
    copies = LookupDrafter(3, 2)
    if within != "nothing":
        inner = {
            "fallback": watched,
            "a fallback's fallback": FallbackDrafter(copies, watched),
            "a fallback's ensemble": EnsembleDrafter([watched]),
        }
        watched = FallbackDrafter(copies, inner[within])
    out = speclib.generate(target, [[0, 1, 2, 3], [4], [2, 2]], watched, Sampling(), gamma, max_new_tokens=28, stop=[])
    assert {r.accepted for r in out.trace.rounds} == {0, 1, 2, 3}, "rounds of several outcomes"
    assert 5 < len(seen) < 0.8 * len(out.trace.rounds) if within != "nothing" else len(seen) > 20
    for text, draft in seen:
        whole = torch.tensor([text + draft.tokens.tolist()])
        with torch.inference_mode():
            hidden = target.model(whole, output_hidden_states=True).hidden_states[-1]
            # [N, gamma, d]
            states = unrolled(eagle, hidden[:, :-1], target.model.get_input_embeddings()(whole[:, 1:]), gamma)[0]
            for i, q in enumerate(draft.probs):
                wanted = target.model.lm_head(states[len(text) - 2 + i, i]).softmax(-1)
                assert torch.allclose(q, wanted, atol=1e-10), f"guess {i} after {text}"


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_a_tree_reads_each_branch_as_a_chain(backend, at_once):
    """What stands first below a node is drawn from the distribution that a chain of the node's branch would have."""
    target, eagle, depth = tiny(backend=backend, vocabulary=5, scale=3), some_eagle(), 3
    watched, seen = watch(TreeDrafter(EagleDrafter(eagle), (2, 2, 2)))
    prompts, settings = [[0, 1, 2, 3], [4], [2, 2]], {"max_new_tokens": 16, "stop": [], "batch_size": at_once}
    out = speclib.generate(target, prompts, watched, Sampling(), depth, **settings)
    assert len({r.accepted for r in out.trace.rounds}) > 2 and len(seen) > 12
    for text, draft in seen:
        for node, parent in enumerate(draft.parents or []):
            if parent in draft.parents[:node]:
                continue  # a younger sibling
            path = branch(draft.parents, parent)
            whole = torch.tensor([text + draft.tokens[path].tolist()])
            with torch.inference_mode():
                hidden = target.model(whole, output_hidden_states=True).hidden_states[-1]
                embedded = target.model.get_input_embeddings()(whole[:, 1:])
                states = unrolled(eagle, hidden[:, :-1], embedded, depth)[0]  # [N, depth, d]
                wanted = target.model.lm_head(states[-1, len(path)]).softmax(-1)
            assert torch.allclose(draft.probs[node], wanted, atol=1e-10), f"node {node} after {text}"


@pytest.mark.parametrize("guesser", [LookupDrafter(), None])
def test_what_cannot_grow_a_tree_is_refused(guesser):
    with pytest.raises(InvalidArgument, match="a draft model or an EagleDrafter"):
        TreeDrafter(guesser)


def test_greedy_identity_with_rounds_that_do_not_guess():
    class Sometimes:
        calls, goes_on = 0, staticmethod(always)

        def start(self):
            return self

        def next_length(self):
            self.calls += 1
            return (3, 0, 0, 2)[self.calls % 4]

        def observe(self, done):
            pass

    target = tiny(backend="fast", vocabulary=30, context=64, scale=3)
    plain = speclib.generate(target, [[1, 2], [3]], None, GREEDY, max_new_tokens=40, stop=[])
    ours = speclib.generate(
        target, [[1, 2], [3]], EagleDrafter(some_eagle()), GREEDY, Sometimes(), max_new_tokens=40, stop=[]
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.tokens, ours.tokens, strict=True))
    assert {len(r.drafted) for r in ours.trace.rounds} >= {0, 2, 3}


def test_it_asks_before_each_further_guess():
    target, text = tiny(backend="fast", vocabulary=5), [0, 1, 2, 3]
    for goes_on, guesses in ((lambda probs: False, 1), (always, 3)):
        context = target.context(text)
        guesser = EagleDrafter(some_eagle()).start(context, Sampling(), seeded(0))
        context.extend(torch.tensor([text[:-1]]))
        assert guesser.propose(text, 3, goes_on).probs.shape == (guesses, 5)


@pytest.mark.parametrize("backend", ["eager", "fast", "compiled"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=2)], ids=["as it is", "filtered"])
def test_an_eagle_that_keeps_to_some_tokens_keeps_the_law(backend, sampling):
    """What it cannot say has q = 0, and comes from the residual as often as the target wants it."""
    target, kept = tiny("llama", backend, 3), torch.tensor([0, 2])
    torch.manual_seed(5)
    eagle = Eagle(config_of(8), kept).double().eval().requires_grad_(False)
    law = law_of(target, EagleDrafter(eagle), sampling, 2, 3, [1, 2, 0])
    assert max_difference(law, right_law(target, sampling, 3, [1, 2, 0])) < 1e-12
    out = speclib.generate(target, [[1, 2, 0]], EagleDrafter(eagle), sampling, 2, max_new_tokens=12, stop=[])
    assert {token for round in out.trace.rounds for token in round.drafted} <= {0, 2}
    assert not {token for text, chance in law.items() if chance for token in text} <= {0, 2}, "the text is not kept so"


def test_kept_tokens_that_the_target_has_not_are_refused():
    eagle = Eagle(config_of(8), torch.tensor([0, 7])).eval().requires_grad_(False)
    with pytest.raises(IncompatibleModels, match="guesses tokens that .* has not"):
        speclib.generate(tiny("llama", "eager", 4), [[1, 2, 0]], EagleDrafter(eagle), max_new_tokens=4)


def test_another_width_is_refused():
    with pytest.raises(IncompatibleModels, match="width 4"):
        speclib.generate(tiny(), [[0, 1]], EagleDrafter(some_eagle(4)), max_new_tokens=4)


@pytest.mark.parametrize("copies_first", [False, True])
def test_the_program_for_a_round_of_guesses_gives_the_same_text(copies_first):
    """Compiled and fast: the same uniform numbers, so the same tokens, whatever was accepted in between, and though
    more is new to it than a program reads.
    """
    texts, n = [], 5 if copies_first else 3
    for backend in ("fast", "compiled"):
        target = tiny(backend=backend, vocabulary=5, context=64, scale=3)
        drafter = EagleDrafter(some_eagle())
        if copies_first:
            drafter = FallbackDrafter(LookupDrafter(3, 2), drafter, most=2)
        out = speclib.generate(
            target, [[0, 1, 2, 3], [4]], drafter, Sampling(), n, max_new_tokens=40, stop=[], batch_size=1
        )
        texts.append([row.tolist() for row in out.tokens])
    assert {r.accepted for r in out.trace.rounds} >= {0, 1, 3}
    assert texts[0] == texts[1]
    assert not target.programs.broken and target.programs.widths == ({1, 3, 6} if copies_first else {1, 4})
