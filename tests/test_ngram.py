"""The n-gram guesser: its counts, its mixture, and the law of what is emitted with it."""

import numpy as np
import pytest
import torch
from models import law_of, llama, right_law

from speclib.drafters import NgramDrafter
from speclib.drafters.ngram import CountTable
from speclib.errors import IncompatibleModels, InvalidArgument
from speclib.law.distributions import Sampling, seeded
from speclib.law.exact import max_difference
from speclib.loop.decoding import generate

CORPUS = [0, 1, 2, 0, 1, 1, 2, 2, 0, 1, 2]


def tiny(vocabulary=3):
    return llama(vocabulary, 0, 1, context=64, scale=12)


def guesser(drafter, sampling=None, vocabulary=3):
    return drafter.start(tiny(vocabulary).context([0]), sampling or Sampling(), seeded(0))


def by_hand(text, recent, order, vocabulary, corpus=()):
    """The mixture again, by scanning the texts."""
    q = np.full(vocabulary, 1 / vocabulary)
    for size in range(order):
        if size > len(recent):
            break
        context = list(recent[len(recent) - size :])
        for source in (corpus, text):
            source = list(source)
            counts = np.zeros(vocabulary)
            for place in range(size, len(source)):
                if source[place - size : place] == context:
                    counts[source[place]] += 1
            if counts.sum():
                different = (counts > 0).sum()
                q = (counts + different * q) / (counts.sum() + different)
    return q


@pytest.mark.parametrize("corpus", [None, CORPUS], ids=["text alone", "with a corpus"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_mixture_is_the_formula(order, corpus):
    rng = np.random.default_rng(order)
    text = rng.integers(0, 3, 25).tolist()
    at_work = guesser(NgramDrafter(order, corpus))
    for end in range(1, len(text)):  # learned as it grows
        at_work.prepare(text[:end])
        recent = text[max(0, end - order + 1) : end]
        np.testing.assert_allclose(
            at_work.mixture(recent), by_hand(text[:end], recent, order, 3, corpus or ()), atol=1e-15
        )
        assert at_work.mixture(recent).min() > 0 and at_work.mixture(recent).sum() == pytest.approx(1, abs=1e-14)


def test_one_context_by_hand():
    at_work = guesser(NgramDrafter(2), vocabulary=4)
    at_work.prepare([0, 1, 0, 1, 0, 2, 0])
    assert at_work.seen[(0,)] == {1: 2, 2: 1}
    base = (np.array([4, 2, 1, 0]) + 3 / 4) / (7 + 3)
    np.testing.assert_allclose(at_work.mixture([0]), (np.array([0, 2, 1, 0]) + 2 * base) / (3 + 2), atol=1e-15)


def test_guesses_follow_each_other():
    """After 0 1 2 0 1 2 0 the likeliest continuation is 1 2 0 1, each guess from the ones before it."""
    draft = guesser(NgramDrafter(3, probabilities="point")).propose([0, 1, 2, 0, 1, 2, 0], 4)
    assert draft.tokens.tolist() == [1, 2, 0, 1] and torch.equal(
        draft.probs, torch.eye(3, dtype=torch.float64)[[1, 2, 0, 1]]
    )


def test_greedy_sampling_makes_counts_a_point_mass():
    text = [0, 1, 2, 0, 1, 2, 0]
    counts, point = (
        guesser(NgramDrafter(3, probabilities=kind), Sampling(temperature=0)).propose(text, 4)
        for kind in ("counts", "point")
    )
    assert torch.equal(counts.tokens, point.tokens) and torch.equal(counts.probs, point.probs)


def test_sampling_settings_hold_for_the_guesses():
    draft = guesser(NgramDrafter(3), Sampling(top_k=1)).propose([0, 1, 2, 0, 1, 2, 0], 3)
    assert (draft.probs.max(-1).values == 1).all()
    warm, cold = (
        guesser(NgramDrafter(3), Sampling(temperature=t)).propose([0, 1, 2, 0, 1, 2, 0], 1).probs.max()
        for t in (1.0, 0.5)
    )
    assert cold > warm


def test_it_asks_before_each_guess_but_the_first():
    asked = []
    draft = guesser(NgramDrafter(3)).propose([0, 1, 2, 0], 5, lambda q: asked.append(q) or len(asked) < 2)
    assert len(draft.tokens) == len(draft.probs) == 2 and len(asked) == 2 and torch.equal(asked[0], draft.probs[1])


def test_table_counts():
    table = CountTable(CORPUS, 3)
    tokens, counts = table.after([0, 1])
    assert dict(zip(tokens.tolist(), counts.tolist(), strict=True)) == {1: 1, 2: 2}
    assert (
        table.after([])[1].sum() == len(CORPUS) and len(table.after([2, 1])[0]) == 0 and len(table.after([7])[0]) == 0
    )


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.7), Sampling(top_k=2), Sampling(temperature=0)],
    ids=["T=1", "T=0.7", "top-k", "greedy"],
)
@pytest.mark.parametrize("corpus", [None, CORPUS], ids=["text alone", "with a corpus"])
@pytest.mark.parametrize("probabilities", ["counts", "point"])
def test_generate_keeps_the_law(probabilities, corpus, sampling):
    """Every path of `generate`, summed."""
    prompt = [0, 1, 0, 1, 2]
    law = law_of(tiny(), NgramDrafter(3, corpus, probabilities), sampling, 2, 3, prompt)
    assert max_difference(law, right_law(tiny(), sampling, 3, prompt)) < 1e-12
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("probabilities", ["counts", "point"])
def test_greedy_text_is_the_targets(probabilities):
    prompts = [[0, 1, 2, 1], [2, 2, 0]]
    plain = generate(tiny(), prompts, None, Sampling(temperature=0), max_new_tokens=40, stop=[])
    ours = generate(
        tiny(), prompts, NgramDrafter(3, CORPUS, probabilities), Sampling(temperature=0), 4, max_new_tokens=40, stop=[]
    )
    assert [t.tolist() for t in plain.tokens] == [t.tolist() for t in ours.tokens]
    assert sum(r.accepted for r in ours.trace.rounds) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "order must be"),
        ({"order": 2.5}, "order must be"),
        ({"probabilities": "soft"}, "'counts' or 'point'"),
        ({"corpus": []}, "at least one"),
        ({"corpus": [-1, 2]}, "token ids"),
        ({"corpus": [[1, 2]]}, "one-dimensional"),
        ({"corpus": [50_000, 2], "order": 5}, "at most 4"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(InvalidArgument, match=message):
        NgramDrafter(**options)


def test_a_corpus_of_other_tokens_is_refused():
    with pytest.raises(IncompatibleModels, match="token 9"):
        guesser(NgramDrafter(3, [1, 9]))
