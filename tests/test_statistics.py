"""The tests are tested: their false alarms, their power, their edges, and scipy's own answers where it has them."""

import numpy as np
import pytest
from scipy import stats

from speclib import statistics
from speclib.errors import InvalidArgument
from speclib.law.statistics import (
    aligned,
    cell_intervals,
    empirical_variation,
    expected_empirical_variation,
    g_test,
    mean_interval,
    ratio_of_means,
    samples_for_variation,
    samples_needed,
    two_sample_g,
    visible_variation,
    wilson,
)


def test_g_test_by_hand():
    result = g_test([30, 70], [0.5, 0.5])
    assert result.statistic == pytest.approx(2 * (30 * np.log(0.6) + 70 * np.log(1.4)))
    assert (result.dof, result.n, result.pooled) == (1, 100, 0)
    assert result.p_value == pytest.approx(stats.chi2.sf(result.statistic, 1))
    assert str(result) == f"G = 16.5 on 1 degrees of freedom, n = 100: p = {result.p_value:.3g}"


def test_g_test_of_mappings():
    counts, law = {(0, 1): 30, (1, 0): 70}, {(1, 0): 0.5, (0, 1): 0.25, (1, 1): 0.25}
    assert g_test(counts, law) == g_test([30, 70, 0], [0.25, 0.5, 0.25])
    assert [array.tolist() for array in aligned({"b": 2}, {"a": 1, "b": 3})] == [[0, 2], [1, 3]]


def test_small_cells_are_pooled():
    result = g_test([50, 44, 3, 2, 1], [0.5, 0.44, 0.03, 0.02, 0.01])
    assert (result.dof, result.pooled) == (2, 3) and result.statistic == pytest.approx(0, abs=1e-12)
    # a pool that stays too small takes in the next cell
    result = g_test([94, 6, 0], [0.93, 0.06, 0.01])
    assert (result.dof, result.pooled) == (1, 2)
    assert g_test([3, 0], [0.5, 0.5]).p_value == 1  # too few samples to say anything


def test_what_is_impossible_settles_it():
    assert g_test([1000, 1, 999], [0.5, 0, 0.5]).p_value == 0
    assert g_test({(0,): 10, (9,): 1}, {(0,): 1.0}).p_value == 0
    assert g_test([1000, 0, 1000], [0.5, 0, 0.5]).p_value == 1


@pytest.mark.parametrize(
    "law", [[1 / 27] * 27, (np.arange(1, 41) ** 2 / (np.arange(1, 41) ** 2).sum()).tolist()], ids=["flat", "steep"]
)
def test_false_alarms_come_as_often_as_promised(law):
    """Under the null the p-values are uniform: 2,000 experiments, seed 11; the significance of this test is 1e-4."""
    rng = np.random.default_rng(11)
    p_values = [g_test(rng.multinomial(4000, law), law).p_value for _ in range(2000)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4
    pairs = [two_sample_g(rng.multinomial(4000, law), rng.multinomial(2000, law)).p_value for _ in range(1000)]
    assert stats.kstest(pairs, "uniform").pvalue > 1e-4


def test_power_is_what_it_promises():
    """2,000 experiments with a law slightly off: the share that is caught lies within five standard errors."""
    null = np.full(16, 1 / 16)
    truth = null + 0.01 * np.tile([1, -1], 8)
    n = samples_needed(truth, null, significance=1e-3, power=0.9)
    rng = np.random.default_rng(12)
    caught = np.mean([g_test(rng.multinomial(n, truth), null).p_value < 1e-3 for _ in range(2000)])
    assert abs(caught - 0.9) < 5 * np.sqrt(0.9 * 0.1 / 2000)
    assert statistics.power(n, stats.entropy(truth, null), 16, 1e-3) == pytest.approx(0.9, abs=1e-3)  # n is rounded up
    assert statistics.power(n, 0.0, 16, 1e-3) == pytest.approx(1e-3, rel=1e-6)


def test_samples_for_a_variation():
    """The table every user of such a test should know: cells, TV -> samples at significance 1e-6 and power .999."""
    table = {cells: [samples_for_variation(tv, cells) for tv in (0.01, 0.005, 0.002)] for cells in (8, 64, 256)}
    assert table[8] == pytest.approx([2.05e5, 8.2e5, 5.1e6], rel=0.01)
    assert table[64] == pytest.approx([3.5e5, 1.4e6, 8.9e6], rel=0.02)
    assert table[256] == pytest.approx([5.8e5, 2.3e6, 1.5e7], rel=0.04)
    assert visible_variation(64, 2_000_000) == pytest.approx(0.0042, abs=5e-5)
    # a test in use in a production engine
    assert visible_variation(16, 200_000, 5e-9, 0.99) == pytest.approx(0.011, abs=5e-4)
    for cells, tv in [(8, 0.01), (64, 0.003)]:
        assert visible_variation(cells, samples_for_variation(tv, cells)) == pytest.approx(tv, rel=1e-4)


def test_worst_case_is_the_worst():
    """No law at that distance needs more samples than the bound says."""
    rng = np.random.default_rng(13)
    for _ in range(50):
        null, other = rng.dirichlet(np.ones(8)), rng.dirichlet(np.ones(8))
        truth = 0.9 * null + 0.1 * other
        tv = 0.5 * np.abs(truth - null).sum()
        assert samples_needed(truth, null) <= samples_for_variation(tv, 8)
        assert stats.entropy(truth, null) >= statistics.worst_divergence(tv)


def test_samples_for_what_is_impossible():
    needed = samples_needed([0.499, 0.499, 0.002], [0.5, 0.5, 0.0])
    assert needed == int(np.ceil(np.log(0.001) / np.log(0.998)))  # the wait for the first forbidden token
    assert samples_needed({"a": 1.0}, {"b": 1.0}) == 1


def test_two_sample():
    assert two_sample_g([500, 500], [500, 500]).p_value == 1
    assert two_sample_g([600, 400], [400, 600]).p_value < 1e-15
    assert two_sample_g({"a": 500, "b": 500}, {"b": 400, "c": 600}).p_value < 1e-15
    expected = stats.chi2_contingency([[30, 70], [45, 55]], correction=False, lambda_="log-likelihood")
    result = two_sample_g([30, 70], [45, 55])
    assert (result.statistic, result.p_value, result.dof) == (pytest.approx(expected[0]), pytest.approx(expected[1]), 1)


def test_wilson_is_scipys():
    for successes, n in [(0, 10), (3, 20), (20, 20), (499, 1000)]:
        expected = stats.binomtest(successes, n).proportion_ci(0.95, "wilson")
        assert wilson(successes, n) == (pytest.approx(expected.low, abs=1e-12), pytest.approx(expected.high, abs=1e-12))


def test_cell_intervals_hold_together():
    law = np.array([0.4, 0.3, 0.2, 0.08, 0.02])
    rng = np.random.default_rng(14)
    covered = 0
    for _ in range(1000):
        low, high = cell_intervals(rng.multinomial(2000, law), 0.95)
        covered += bool(((low <= law) & (law <= high)).all())
    assert 0.93 <= covered / 1000 <= 0.99


def test_jackknife_by_hand():
    """Three pairs, by hand: ratios without the first, second, third pair, and Student's t on 2 degrees of freedom
    (4.3027).
    """
    interval = ratio_of_means([2, 3, 7], [1, 3, 2])
    left_out = np.log([10 / 5, 9 / 3, 5 / 4])
    spread = np.sqrt(2 / 3 * ((left_out - left_out.mean()) ** 2).sum())
    assert interval.estimate == pytest.approx(2)
    assert (interval.low, interval.high) == (
        pytest.approx(2 * np.exp(-4.302653 * spread)),
        pytest.approx(2 * np.exp(4.302653 * spread)),
    )
    assert ratio_of_means([5.0], [2.0]) == statistics.Interval(2.5, 0.0, np.inf)
    assert ratio_of_means([2, 4, 6], [1, 2, 3]) == statistics.Interval(2.0, 2.0, 2.0)


def test_what_belongs_together_stays_together():
    """The same numbers, paired otherwise, are another experiment: where both columns rise together the ratio hardly
    varies.
    """
    up, down = np.arange(1.0, 21), np.arange(20.0, 0, -1)
    together, apart = ratio_of_means(up, up + 0.1), ratio_of_means(up, down + 0.1)
    assert together.estimate == pytest.approx(apart.estimate)
    assert together.high / together.low < 1.02 and apart.high / apart.low > 1.5


@pytest.mark.parametrize(
    ("prompts", "experiments", "off"),
    [*((prompts, 2_500, 0.015) for prompts in (3, 4, 5, 6, 8, 9, 20)), (12, 10_000, 0.01), (25, 10_000, 0.01)],
)
def test_intervals_cover(prompts, experiments, off):
    """Of many experiments whose true ratio is known, 95% have it in their interval, at every number of prompts that a
    notebook or a record takes.

    Prompts as the recorded ones are: how long plain decoding takes varies by a tenth, how much faster the other is by a
    quarter. `off` leaves room for chance: the standard error is .0022 of 10,000 experiments and .0044 of 2,500.
    """
    rng = np.random.default_rng(18)
    plain = np.exp(rng.normal(0, 0.1, (experiments, prompts)))
    faster = plain / np.exp(rng.normal(0.5, 0.25, (experiments, prompts)))
    truth = np.exp(0.5 - 0.25**2 / 2)  # mean(plain) / mean(faster), by the mean of a lognormal
    inside = sum((i := ratio_of_means(a, b)).low <= truth <= i.high for a, b in zip(plain, faster, strict=True))
    assert inside / experiments == pytest.approx(0.95, abs=off)


def test_a_mean_by_hand():
    """Three values, one of them negative: a mean of 1, a standard error of 2 / sqrt(3), Student's t on 2 degrees."""
    interval = mean_interval([-1, 1, 3])
    assert (interval.estimate, interval.low + interval.high) == (1, pytest.approx(2))
    assert interval.high == pytest.approx(1 + 4.302653 * 2 / np.sqrt(3))
    assert mean_interval([-1, 1, 3], 0.5).high == pytest.approx(1 + 0.816497 * 2 / np.sqrt(3))
    assert mean_interval([7]) == statistics.Interval(7, -np.inf, np.inf)
    assert mean_interval([0, 0, 0, 0]) == statistics.Interval(0, 0, 0)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 8, 12, 25])
def test_a_means_intervals_cover(n):
    """Of many experiments 95% have the true mean in their interval where values are normal, at least 94% where they are
    mildly skewed (the skewness is 0.6), and fewer where they are exponential: as the docstring says.

    The standard error is .0027 of 6,000 experiments.
    """
    rng = np.random.default_rng(20)

    def covered(values, truth):
        return np.mean([(i := mean_interval(row)).low <= truth <= i.high for row in values])

    assert covered(rng.normal(0.1, 1, (6_000, n)), 0.1) == pytest.approx(0.95, abs=0.008)
    assert covered(np.exp(rng.normal(0, 0.2, (6_000, n))), np.exp(0.2**2 / 2)) >= 0.94
    assert 0.87 <= covered(rng.exponential(1, (6_000, n)), 1) <= 0.935


def test_empirical_variation_is_never_zero():
    assert expected_empirical_variation([1 / 64] * 64, 1_000_000) == pytest.approx(0.0032, abs=5e-5)
    law = np.array([0.5, 0.3, 0.15, 0.04, 0.01, 0.0])
    rng = np.random.default_rng(17)
    seen = [empirical_variation(rng.multinomial(500, law), law) for _ in range(4000)]
    assert np.mean(seen) == pytest.approx(expected_empirical_variation(law, 500), abs=5 * np.std(seen) / np.sqrt(4000))
    assert empirical_variation({"a": 1}, {"a": 0.5, "b": 0.5}) == 0.5


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: g_test([0, 0], [0.5, 0.5]), "no samples"),
        (lambda: g_test([1, 2], [0.5, 0.6]), "sum to 1"),
        (lambda: g_test([1, 2], [-0.5, 1.5]), "negative"),
        (lambda: g_test([1, 2, 3], [0.5, 0.5]), "same length"),
        (lambda: g_test({"a": 1}, [1.0]), "mappings"),
        (lambda: two_sample_g([0, 0], [1, 2]), "no samples"),
        (lambda: samples_needed([0.5, 0.5], [0.5, 0.5]), "equal"),
        (lambda: samples_for_variation(0.1, 1), "2 cells"),
        (lambda: visible_variation(8, 100, 0.9, 0.5), "significance < power"),
        (lambda: ratio_of_means([], []), "at least one"),
        (lambda: mean_interval([]), "at least one value"),
        (lambda: ratio_of_means([1, 2], [1, 2, 3]), "equal length"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(InvalidArgument, match=word):
        call()
