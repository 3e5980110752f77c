"""The detectors: production rules pass a test of two million texts, every exhibit fails it, and the exact laws say why.

Significance 1e-6, fixed here; every seed stands in the test; nothing is tried twice.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy import optimize

from speclib.law.distributions import residual
from speclib.law.exact import (
    Loop,
    expected_accepted,
    fixed_table,
    law_variation,
    max_difference,
    outcomes,
    plain_law,
    random_table,
    rule_law,
    sample_many,
)
from speclib.law.rules import lenience_law, token_law
from speclib.law.statistics import SIGNIFICANCE, g_test, samples_needed, two_sample_g, visible_variation
from speclib.museum import EXHIBITS, MISMEASUREMENTS, by, filtered

TARGET, DRAFT = random_table(3, 1), random_table(3, 2)
GAMMA, LENGTH = 2, 3  # joint cells longer than gamma, so that the bonus token is in them
MANY = 2_000_000


def shares(law, length):
    """The law of the first `length` tokens."""
    short = {}
    for text, mass in law.items():
        short[text[:length]] = short.get(text[:length], 0.0) + mass
    return short


def test_what_two_million_texts_can_see():
    assert len(plain_law(TARGET, LENGTH)) == 27
    assert visible_variation(27, MANY, 1e-6, 0.999) == pytest.approx(0.0037, abs=5e-5)
    assert visible_variation(64, MANY, 1e-6, 0.999) == pytest.approx(0.0042, abs=5e-5)
    assert SIGNIFICANCE == 1e-6


@pytest.mark.parametrize("rule", ["token", "block"])
def test_production_draws_follow_the_target(rule):
    """Draws from the rules' own stop_probs and next_probs, seed 2026: any TV of 0.0037 or more would be seen."""
    counts = sample_many(rule, TARGET, DRAFT, GAMMA, LENGTH, MANY, seed=2026)
    result = g_test(counts, plain_law(TARGET, LENGTH))
    print(f"{rule}: seed 2026: {result}")
    assert result.n == MANY and result.dof == 26 and result.p_value > SIGNIFICANCE


def test_null_control():
    """The same machinery without a draft is plain decoding: it must pass, against the law and against the rule's
    texts.
    """
    plain = sample_many("token", TARGET, DRAFT, 0, LENGTH, MANY // 4, seed=1)
    assert g_test(plain, plain_law(TARGET, LENGTH)).p_value > SIGNIFICANCE
    assert (
        two_sample_g(plain, sample_many("block", TARGET, DRAFT, GAMMA, LENGTH, MANY // 4, seed=2)).p_value
        > SIGNIFICANCE
    )


def test_positive_control():
    """A rule wrong by just what the test is said to see: lenience a little below 1, seed 3."""
    right, visible = plain_law(TARGET, LENGTH), visible_variation(27, MANY)

    def wrong(lenience):
        return Loop(law=lambda p, q, drafted: lenience_law(p, q, drafted, lenience))

    level = optimize.brentq(
        lambda x: law_variation(right, rule_law(wrong(x), TARGET, DRAFT, GAMMA, LENGTH)) - visible, 0.9, 1.0
    )
    assert law_variation(right, rule_law(wrong(level), TARGET, DRAFT, GAMMA, LENGTH)) == pytest.approx(
        visible, rel=1e-6
    )
    result = g_test(sample_many(wrong(level), TARGET, DRAFT, GAMMA, LENGTH, MANY, seed=3), right)
    print(f"lenience {level:.4f}, TV {visible:.4f}, seed 3: {result}")
    assert result.p_value < SIGNIFICANCE


@pytest.mark.parametrize("name", EXHIBITS)
def test_every_exhibit_is_caught(name):
    """Its exact law is off, and the G-test sees it with the number of samples that it is said to need, seed 4."""
    exhibit = EXHIBITS[name]
    right, wrong = exhibit.right_law(TARGET, LENGTH), rule_law(exhibit, TARGET, DRAFT, GAMMA, LENGTH)
    tv, needed = law_variation(right, wrong), samples_needed(wrong, right)
    assert sum(wrong.values()) == pytest.approx(1, abs=1e-12)
    result = g_test(sample_many(exhibit, TARGET, DRAFT, GAMMA, LENGTH, needed, seed=4), right)
    print(f"{name}: TV {tv:.4f}, needs {needed:,}, seed 4: {result}")
    assert tv > 1e-3
    assert result.p_value < SIGNIFICANCE


@pytest.mark.parametrize("name", EXHIBITS)
def test_an_exhibit_is_wrong_in_one_part_only(name):
    """Putting one part right restores the law, and only one does: an exhibit shows its own mistake and no other."""
    exhibit = EXHIBITS[name]
    parts = {"law": token_law, "sees": by(exhibit.sampling), "proposes": filtered(exhibit.sampling)}
    right = exhibit.right_law(TARGET, 4)
    laws = {
        part: rule_law(replace(exhibit, **{part: honest}), TARGET, DRAFT, GAMMA, 4) for part, honest in parts.items()
    }
    assert sum(max_difference(law, right) < 1e-12 for law in laws.values()) == 1


@pytest.mark.parametrize("name", EXHIBITS)
def test_the_loop_to_step_through_has_the_same_law(name):
    exhibit = EXHIBITS[name]
    for gamma, length, eos in [(2, 3, None), (1, 3, 1)]:
        stepped = outcomes(partial(exhibit.run, TARGET, DRAFT, gamma, length, eos=eos))
        assert max_difference(stepped, rule_law(exhibit, TARGET, DRAFT, gamma, length, eos)) < 1e-14


def test_argmax_bonus_hides_in_the_first_gamma_tokens():
    """Why the cells must be longer than gamma: up to there this exhibit has the right law, exactly."""
    exhibit = EXHIBITS["argmax bonus"]
    for gamma in (1, 2, 3):
        right, wrong = plain_law(TARGET, gamma + 2), rule_law(exhibit, TARGET, DRAFT, gamma, gamma + 2)
        assert max_difference(shares(right, gamma), shares(wrong, gamma)) < 1e-12
        assert law_variation(shares(right, gamma + 1), shares(wrong, gamma + 1)) > 0.1


def test_reseeding_leaves_each_first_token_right():
    exhibit = EXHIBITS["reseeded"]
    right, wrong = plain_law(TARGET, LENGTH), rule_law(exhibit, TARGET, DRAFT, GAMMA, LENGTH)
    assert max_difference(shares(right, 1), shares(wrong, 1)) < 1e-12 and law_variation(right, wrong) > 0.01


def test_figures_met_in_the_wild():
    half = fixed_table([0.5, 0.5])
    biased = rule_law(EXHIBITS["argmax draft"], half, fixed_table([0.6, 0.4]), 1, 2)
    assert shares(biased, 1)[0,] == pytest.approx(5 / 6, abs=1e-12)
    dropped = rule_law(EXHIBITS["dropped draft"], half, fixed_table([0.9, 0.1]), 1, 2)
    assert law_variation(shares(dropped, 1), {(0,): 0.5, (1,): 0.5}) == pytest.approx(0.05, abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reused_noise_is_the_second_race_with_the_same_noise(seed):
    """Two races of exponential clocks, run a million times: who wins the second when a given token won the first."""
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    p, q = p / p.sum(), torch.where(torch.arange(4) == seed, 0.0, q) / (q.sum() - q[seed])
    clocks = torch.empty(1_000_000, 4, dtype=torch.float64).exponential_(generator=generator)
    first, second = (q / clocks).argmax(-1), (residual(p, q) / clocks).argmax(-1)
    for x in (q > p).nonzero().flatten():  # where it can be rejected
        law = EXHIBITS["reused noise"].law(p.expand(1, 2, 4), q.expand(1, 1, 4), x[None, None]).next_probs[0, 0]
        assert g_test(torch.bincount(second[first == x], minlength=4).numpy(), law.numpy()).p_value > SIGNIFICANCE


def test_r_below_ratio_or_equal_accepts_what_is_forbidden():
    """p = 0 for the only token the draft knows: the right rule never takes it, this one takes it once in 256."""
    target, draft = fixed_table([0.0, 0.6, 0.4]), fixed_table([1.0, 0.0, 0.0])
    exhibit = EXHIBITS["r <= ratio"]
    assert expected_accepted("token", target, draft, 1) == 0
    assert expected_accepted(exhibit, target, draft, 1) == pytest.approx(1 / 256, abs=1e-12)


def test_every_exhibit_is_described():
    for name, exhibit in EXHIBITS.items():
        assert exhibit.name == name and exhibit.where and ":" in exhibit.what
    assert len({exhibit.what for exhibit in EXHIBITS.values()}) == len(EXHIBITS) >= 12


def test_wrong_figures():
    """Three rounds of 4 drafts that accept 4, 1 and 0; 8 new tokens of 30 characters in 2 s; a forward costs 1 ms a
    token and 9 ms.
    """
    rounds = {"accepted": [4, 1, 0], "proposed": [4, 4, 4]}
    text = {"text": "x" * 30, "tokens": range(8), "seconds": 2.0}
    time = {"cost": lambda n: 0.009 + 0.001 * n, "prompt": 11, "new": 8, "seconds": 0.05}
    facts = {"correction counted": rounds, "characters counted": text, "uncached baseline": time}
    figures = {
        name: (figure.right(**facts[name]), figure.wrong(**facts[name])) for name, figure in MISMEASUREMENTS.items()
    }
    assert figures["correction counted"] == (pytest.approx(5 / 12), pytest.approx(8 / 12))
    assert figures["characters counted"] == (4.0, 15.0)
    assert figures["uncached baseline"] == (
        pytest.approx((0.02 + 7 * 0.01) / 0.05),
        pytest.approx(sum(0.02 + 0.001 * i for i in range(8)) / 0.05),
    )
    assert MISMEASUREMENTS["correction counted"].wrong(accepted=[4], proposed=[4]) > 1  # more accepted than proposed
