"""The proof by enumeration: the law of what is emitted, token by token, is the target's own."""

import math
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import llama, sample_outcomes
from tables import blend, disjoint_tables, patchwork

from speclib.drafters import ModelDrafter
from speclib.errors import InvalidArgument
from speclib.law.distributions import Sampling, overlap, seeded
from speclib.law.exact import (
    TableModel,
    expected_accepted,
    fixed_table,
    law_variation,
    loop_of,
    max_difference,
    outcomes,
    plain_law,
    random_table,
    rule_law,
    sample_many,
    warped,
)
from speclib.law.statistics import SIGNIFICANCE, g_test
from speclib.loop.decoding import generate
from speclib.museum import MATCH

LOSSLESS = ["token", "block"]
SIZES = [
    (2, 0, 3),
    (2, 1, 4),
    (2, 2, 5),
    (2, 3, 6),
    (2, 4, 7),
    (3, 0, 3),
    (3, 1, 4),
    (3, 2, 5),
    (3, 3, 5),
    (3, 4, 6),
    (4, 0, 3),
    (4, 1, 4),
    (4, 2, 4),
    (4, 3, 5),
]
# vocabulary, gamma, length: always longer than a round can be
SIZES += [
    (5, 0, 2),
    (5, 1, 3),
    (5, 2, 4),
    (5, 3, 4),
    (5, 4, 5),
]


@cache
def pair(kind, vocabulary, seed=0):
    """A target and a draft that depend on their whole prefix."""
    full = random_table(vocabulary, 10 * seed + 1), random_table(vocabulary, 10 * seed + 2)
    holes = random_table(vocabulary, 10 * seed + 3, zeros=0.4), random_table(vocabulary, 10 * seed + 4, zeros=0.4)
    certain = (
        random_table(vocabulary, 10 * seed + 5, point_masses=0.5, zeros=0.2),
        random_table(vocabulary, 10 * seed + 6, point_masses=0.5),
    )
    return {
        "full support": full,
        "zeros": holes,
        "point masses": certain,
        "all point masses": (
            random_table(vocabulary, 10 * seed + 7, point_masses=1.0),
            random_table(vocabulary, 10 * seed + 8, point_masses=1.0),
        ),
        "disjoint": disjoint_tables(vocabulary, seed),
        "equal": (holes[0], holes[0]),
        "some rows equal": (holes[0], patchwork(certain[0], holes[0], 0.5, seed)),
        "nearly equal": (full[0], blend(full[0], full[1], 1e-9)),
    }[kind]


KINDS = [
    "full support",
    "zeros",
    "point masses",
    "all point masses",
    "disjoint",
    "equal",
    "some rows equal",
    "nearly equal",
]


@pytest.mark.parametrize("eos", [None, 1], ids=["no eos", "eos"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", LOSSLESS)
def test_text_keeps_its_law(rule, kind, eos):
    for vocabulary, gamma, length in SIZES:
        target, draft = pair(kind, vocabulary)
        law = rule_law(rule, target, draft, gamma, length, eos)
        assert max_difference(law, plain_law(target, length, eos)) < 1e-12, (vocabulary, gamma, length)
        assert sum(law.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0), Sampling(temperature=0.5), Sampling(top_k=2), Sampling(top_p=0.7), Sampling(min_p=0.4)],
    ids=str,
)
@pytest.mark.parametrize("rule", LOSSLESS)
def test_text_keeps_its_law_under_filters(rule, sampling):
    """The same filter on both sides: the reference is the filtered target."""
    target, draft = (warped(table, lambda p: sampling.probabilities(p.log())) for table in pair("full support", 4))
    for gamma in range(4):
        assert max_difference(rule_law(rule, target, draft, gamma, 4), plain_law(target, 4)) < 1e-12


@pytest.mark.parametrize("length", range(1, 6))
@pytest.mark.parametrize("rule", LOSSLESS)
def test_text_keeps_its_law_at_every_length(rule, length):
    for gamma in range(5):
        target, draft = pair("zeros", 3)
        law = rule_law(rule, target, draft, gamma, length, eos=2)
        assert max_difference(law, plain_law(target, length, eos=2)) < 1e-12
        assert all(len(text) == length or text[-1] == 2 for text in law)
        assert not any(2 in text[:-1] for text in law)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.integers(2, 4),
    gamma=st.integers(0, 3),
    eos=st.none() | st.integers(0, 1),
    kind=st.sampled_from(KINDS),
)
def test_text_keeps_its_law_for_any_pair(seed, vocabulary, gamma, eos, kind):
    target, draft = pair.__wrapped__(kind, vocabulary, seed)
    for rule in LOSSLESS:
        assert max_difference(rule_law(rule, target, draft, gamma, 4, eos), plain_law(target, 4, eos)) < 1e-12


@pytest.mark.parametrize(
    "rule", [*LOSSLESS, "typical", "lenience", MATCH], ids=lambda rule: getattr(rule, "name", rule)
)
@pytest.mark.parametrize("eos", [None, 1])
def test_batched_enumeration_is_the_loop(rule, eos):
    """`rule_law` adds up batches; `outcomes` replays the loop draw by draw. Neither knows of the other."""
    for vocabulary, gamma, length in [(2, 0, 3), (2, 2, 4), (2, 3, 4), (3, 1, 3), (3, 2, 3)]:
        for kind in ("zeros", "some rows equal"):
            target, draft = pair(kind, vocabulary)
            replayed = outcomes(partial(loop_of(rule).run, target, draft, gamma, length, eos=eos))
            assert max_difference(replayed, rule_law(rule, target, draft, gamma, length, eos)) < 1e-14


def test_sample_and_match_is_lossless_and_accepts_less():
    target, draft = pair("zeros", 4)
    assert max_difference(rule_law(MATCH, target, draft, 2, 4), plain_law(target, 4)) < 1e-12
    assert expected_accepted(MATCH, target, draft, 2) < expected_accepted("token", target, draft, 2) - 0.01


@pytest.mark.parametrize("rule", ["typical", "lenience"])
def test_lossy_rules_change_the_text(rule):
    target, draft = pair("full support", 3)
    assert law_variation(rule_law(rule, target, draft, 2, 3), plain_law(target, 3)) > 0.01
    assert law_variation(rule_law(rule, target, draft, 0, 3), plain_law(target, 3)) < 1e-12


def test_lenience_bounds_what_it_costs():
    """No token becomes more than 1 / l times as probable: at l = 0.5 a text of 3 tokens at most 8 times."""
    target, draft = pair("full support", 3)
    right = plain_law(target, 3)
    assert 1 < max(mass / right[text] for text, mass in rule_law("lenience", target, draft, 2, 3).items()) <= 8


# --- acceptance
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", LOSSLESS)
def test_one_draft_is_accepted_with_the_overlap(rule, kind):
    for vocabulary in range(2, 6):
        target, draft = pair(kind, vocabulary)
        assert expected_accepted(rule, target, draft, 1) == pytest.approx(
            float(overlap(target(()), draft(()))), abs=1e-12
        )


def test_toy_example_of_block_verification():
    """2403.10444, section 2: token by token 10/9, block 11/9, and no rule can exceed 12/9."""
    toy = fixed_table([1 / 3, 2 / 3]), fixed_table([2 / 3, 1 / 3])
    assert expected_accepted("token", *toy, 2) == pytest.approx(10 / 9, abs=1e-15)
    assert expected_accepted("block", *toy, 2) == pytest.approx(11 / 9, abs=1e-15)
    # the bound: two blocks can be coupled on sum(min(P(x), Q(x))) of their mass, one token on its overlap
    ideal = (
        sum(min(p, q) for p, q in zip((1 / 9, 2 / 9, 2 / 9, 4 / 9), (4 / 9, 2 / 9, 2 / 9, 1 / 9), strict=True)) + 2 / 3
    )
    assert ideal == pytest.approx(12 / 9, abs=1e-15)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), vocabulary=st.integers(2, 5), gamma=st.integers(0, 4), kind=st.sampled_from(KINDS))
def test_block_never_accepts_less(seed, vocabulary, gamma, kind):
    target, draft = pair.__wrapped__(kind, vocabulary, seed)
    token, block = (expected_accepted(rule, target, draft, gamma) for rule in LOSSLESS)
    assert block >= token - 1e-12
    if gamma <= 1:
        assert block == pytest.approx(token, abs=1e-12)


def test_block_often_accepts_more():
    gains = [
        expected_accepted("block", *pair("full support", 3, seed), 3)
        - expected_accepted("token", *pair("full support", 3, seed), 3)
        for seed in range(20)
    ]
    assert sum(gain > 1e-3 for gain in gains) >= 10


def test_identical_models_accept_everything():
    target, draft = pair("equal", 4)
    for rule in LOSSLESS:
        assert expected_accepted(rule, target, draft, 3) == pytest.approx(3, abs=1e-12)
        assert expected_accepted(rule, *disjoint_tables(4, 0), 3) == 0


# --- generate() as it stands, with real models
# ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocabulary", "gamma", "length", "stop", "sampling"),
    [
        (2, 0, 3, [], Sampling()),
        (2, 1, 3, [], Sampling()),
        (2, 2, 4, [], Sampling()),
        (2, 4, 5, [], Sampling()),
        (3, 1, 4, [], Sampling()),
        (5, 2, 3, [4], Sampling()),
        (2, 3, 4, [1], Sampling()),
        (3, 2, 3, [], Sampling()),
        (3, 2, 3, [2], Sampling(temperature=0.7)),
        (4, 2, 3, [], Sampling(top_k=2)),
        (3, 2, 3, [], Sampling(top_p=0.8)),
        (3, 3, 4, [], Sampling(temperature=0)),
    ],
)
@pytest.mark.parametrize("rule", LOSSLESS)
def test_generate_keeps_the_law(rule, vocabulary, gamma, length, stop, sampling):
    """Models, caches, rollbacks, filters, rule and stops together: every path of `generate`, summed."""
    target, draft, prompt = llama(vocabulary, 0, 2), llama(vocabulary, 1, 1), [0, 1]

    def row(prefix):
        with torch.inference_mode():
            logits = target.model(torch.tensor([[*prompt, *prefix]])).logits[0, -1]
        return sampling.probabilities(logits).numpy()

    def run(draw):
        out = generate(target, [prompt], ModelDrafter(draft), sampling, gamma, rule, length, stop, draw=draw)
        return tuple(out.tokens[0].tolist())

    right = plain_law(TableModel(vocabulary, row), length, eos=stop[0] if stop else None)
    law = outcomes(run)
    assert max_difference(law, right) < 1e-12
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    assert len(right) > 2 or sampling.temperature == 0


# --- the tools themselves
# ----------------------------------------------------------------------------------------------


def test_outcomes_of_two_coins():
    def run(draw):
        coins = draw(torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64))
        assert coins.shape == (2,) and coins.dtype == torch.long
        return int(coins.sum())

    assert outcomes(run) == {0: 0.125, 1: 0.5, 2: 0.375}


def test_outcomes_where_a_draw_decides_what_follows():
    def run(draw):
        first = int(draw(torch.tensor([0.5, 0.5, 0.0])))
        return (first,) if first == 0 else (first, int(draw(torch.tensor([0.0, 0.25, 0.75]))))

    assert outcomes(run) == {(0,): 0.5, (1, 1): 0.125, (1, 2): 0.375}
    assert outcomes(lambda draw: "certain") == {"certain": 1.0}


def test_outcomes_of_plain_decoding():
    target = random_table(3, 5, zeros=0.3)

    def run(draw):
        text = ()
        while len(text) < 3 and 0 not in text:
            text += (int(draw(target(text))),)
        return text

    assert max_difference(outcomes(run), plain_law(target, 3, eos=0)) < 1e-15


def test_outcomes_refuses_what_it_cannot_sum():
    fair = torch.tensor([0.5, 0.5])
    with pytest.raises(InvalidArgument, match="more than 10 paths"):
        outcomes(lambda draw: tuple(int(draw(fair)) for _ in range(5)), limit=10)
    for row in ([0.5, 0.6], [-0.5, 1.5], [math.nan, 1.0]):
        with pytest.raises(InvalidArgument, match="no distribution"):
            outcomes(lambda draw, row=row: int(draw(torch.tensor(row))))
    drift = iter(torch.linspace(0.1, 0.9, 50))
    with pytest.raises(InvalidArgument, match="not repeatable"):
        outcomes(lambda draw: int(draw(torch.stack([next(drift), torch.tensor(0.5)]).softmax(-1))))
    calls = iter([3, 3, 1])
    with pytest.raises(InvalidArgument, match="not repeatable"):
        outcomes(lambda draw: [draw(fair) for _ in range(next(calls))] and 0)


def test_sampled_outcomes_are_the_law_drawn_from():
    """A million runs of a program of three draws, two of them in one call, the third depending on the first; and a
    control.
    """

    def run(draw):
        first, second = draw(torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)).tolist()
        return (
            first,
            second,
            int(draw(torch.tensor([0.2, 0.0, 0.8] if first else [0.6, 0.4, 0.0], dtype=torch.float64))),
        )

    counts, law = sample_outcomes(run, 1_000_000, seed=1), outcomes(run)
    assert (
        sum(counts.values()) == 1_000_000
        and counts.keys() == law.keys()
        and all(isinstance(count, int) for count in counts.values())
    )
    assert g_test(counts, law).p_value > SIGNIFICANCE
    swapped = {(second, first, third): mass for (first, second, third), mass in law.items()}
    assert g_test(counts, swapped).p_value < SIGNIFICANCE
    assert counts == sample_outcomes(run, 1_000_000, seed=1) != sample_outcomes(run, 1_000_000, seed=2)


def test_sampled_outcomes_run_each_path_once():
    calls = []

    def run(draw):
        calls.append(1)
        return tuple(int(draw(torch.tensor([0.5, 0.25, 0.25]))) for _ in range(2))

    assert len(sample_outcomes(run, 10_000, seed=0)) == 9 == len(calls)


def test_one_sampled_outcome_is_the_run_with_that_seed():
    """The production sampler draws, in the order of the draws: one run alone is what `run(seeded(seed))` gives."""
    target, draft = llama(5, 0, 2), llama(5, 1, 1)

    def run(draw):
        return tuple(
            generate(target, [[0, 1]], ModelDrafter(draft), draft_length=3, max_new_tokens=12, stop=[], draw=draw)
            .tokens[0]
            .tolist()
        )

    texts = [run(seeded(seed)) for seed in range(5)]
    assert len(set(texts)) == 5 and [sample_outcomes(run, 1, seed) for seed in range(5)] == [
        {text: 1} for text in texts
    ]


def test_sampled_outcomes_refuse_what_outcomes_refuse():
    fair, calls = torch.tensor([0.5, 0.5]), iter([3, 3, 1])
    with pytest.raises(InvalidArgument, match="at least 1"):
        sample_outcomes(lambda draw: 0, 0, seed=0)
    with pytest.raises(InvalidArgument, match="no distribution"):
        sample_outcomes(lambda draw: int(draw(fair * 1.2)), 10, seed=0)
    with pytest.raises(InvalidArgument, match="not repeatable"):
        sample_outcomes(lambda draw: [draw(fair) for _ in range(next(calls))] and 0, 1000, seed=0)


def test_tables():
    table = random_table(3, 7, zeros=0.3, point_masses=0.2)
    rows = table.rows(3)
    assert rows.shape == (27, 3) and rows.dtype == torch.float64
    assert torch.equal(rows[1 * 9 + 2 * 3 + 0], table((1, 2, 0))) and table.prefix(15, 3) == (1, 2, 0)
    assert torch.equal(random_table(3, 7, zeros=0.3, point_masses=0.2).rows(3), rows)
    assert not torch.equal(random_table(3, 8, zeros=0.3, point_masses=0.2).rows(3), rows)
    assert len({tuple(row) for row in random_table(3, 7).rows(3).tolist()}) == 27  # every prefix has a row of its own
    torch.testing.assert_close(rows.sum(-1), torch.ones(27, dtype=torch.float64))
    assert (rows == 0).any() and (rows == 1).any()
    one, other = disjoint_tables(4, 0)
    assert (one.rows(3) * other.rows(3)).sum() == 0
    mixed = patchwork(one, other, 0.5, 0).rows(3)
    same = (mixed == one.rows(3)).all(-1)
    assert 0 < same.sum() < len(same) and torch.equal(mixed[~same], other.rows(3)[~same])
    assert torch.equal(blend(one, other, 0.25).rows(2), 0.75 * one.rows(2) + 0.25 * other.rows(2))
    assert TableModel(2, lambda prefix: [0.5, 0.5])((0, 1)).tolist() == [0.5, 0.5]


def test_distances_between_laws():
    one, other = {"a": 0.5, "b": 0.5}, {"a": 0.25, "c": 0.75}
    assert max_difference(one, other) == 0.75 and law_variation(one, other) == 0.75
    assert max_difference(one, one) == law_variation(one, one) == 0


def test_sampling_many_is_the_loop_again():
    """Few enough runs to see that counts add up, seeds count, and texts stop at the end-of-text token."""
    target, draft = pair("zeros", 3)
    draw = partial(sample_many, "block", target, draft, 2, 4, 1000, eos=2)
    counts = draw(seed=1)
    assert sum(counts.values()) == 1000 and all(isinstance(count, int) for count in counts.values())
    assert counts == draw(seed=1) != draw(seed=2)
    assert counts.keys() <= plain_law(target, 4, eos=2).keys()
