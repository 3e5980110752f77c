"""Are these samples from that distribution? Tests, the samples they need, and intervals for what is measured.

All tests here are G-tests: twice the log-likelihood ratio, which is chi-square distributed when the null holds. Choose
the significance before looking, and never repeat a test until it passes.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from ..errors import InvalidArgument

SIGNIFICANCE = 1e-6  # one false alarm in a million tests
POWER = 0.999
MIN_EXPECTED = 5.0  # a chi-square is a fair description of a cell expected about that often


@dataclass(frozen=True)
class TestResult:
    """A G-test's outcome. n: samples; pooled: how many small cells were merged into one (a chi-square needs about 5 a
    cell).
    """

    __test__ = False  # pytest takes a class called Test... for a test

    statistic: float
    dof: int
    p_value: float
    n: int
    pooled: int = 0

    def __str__(self) -> str:
        pooled = f", {self.pooled} small cells pooled" if self.pooled else ""
        return (
            f"G = {self.statistic:.1f} on {self.dof} degrees of freedom, n = {self.n:,}{pooled}: p = {self.p_value:.3g}"
        )


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"


def aligned(*tables: Mapping[Hashable, float] | ArrayLike) -> list[np.ndarray]:
    """Tables over the same cells, as arrays. Mappings are put in one order, and what one of them lacks is 0 there."""
    if all(isinstance(table, Mapping) for table in tables):
        cells = sorted(set().union(*tables))
        return [np.array([table.get(cell, 0) for cell in cells], dtype=float) for table in tables]
    arrays = (
        []
        if any(isinstance(table, Mapping) for table in tables)
        else [np.asarray(table, dtype=float) for table in tables]
    )
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1:
        raise InvalidArgument("give mappings from cell to value, or one-dimensional arrays of the same length")
    return arrays


def _law(probabilities: np.ndarray) -> np.ndarray:
    if (probabilities < 0).any() or not abs(probabilities.sum() - 1) < 1e-6:
        raise InvalidArgument(f"probabilities must not be negative and must sum to 1, not to {probabilities.sum()}")
    return probabilities / probabilities.sum()


def _pool(expected: np.ndarray) -> np.ndarray:
    """Group numbers of the cells: those expected below MIN_EXPECTED share the last group, and if even together they are
    expected less often, the smallest of the others joins them.
    """
    small = expected < MIN_EXPECTED
    alone = len(expected) - int(small.sum())  # the largest cells, each a group
    if alone and 0 < expected[small].sum() < MIN_EXPECTED:
        alone -= 1
    ranks = np.argsort(np.argsort(-expected, kind="stable"))
    return np.minimum(ranks, alone)


def g_test(counts: Mapping | ArrayLike, probabilities: Mapping | ArrayLike) -> TestResult:
    """Do the counts come from the law? Both are mappings from cell to value, or arrays in the same order.

    Cells expected less than MIN_EXPECTED times are pooled. One sample in a cell of probability 0 settles it: p = 0.
    """
    observed, law = aligned(counts, probabilities)
    law = _law(law)
    n = observed.sum()
    if not n > 0:
        raise InvalidArgument("there are no samples to test")
    if observed[law == 0].any():
        return TestResult(np.inf, int((law > 0).sum()) - 1, 0.0, int(n))
    observed, expected = observed[law > 0], n * law[law > 0]
    groups = _pool(expected)
    cells = groups.max() + 1
    pooled = int(len(expected) - cells + 1) if cells < len(expected) else 0
    if cells == 1:
        return TestResult(0.0, 0, 1.0, int(n), pooled)
    observed, expected = np.bincount(groups, observed, cells), np.bincount(groups, expected, cells)
    statistic, p_value = stats.power_divergence(observed, expected, lambda_="log-likelihood")
    return TestResult(float(statistic), int(cells) - 1, float(p_value), int(n), pooled)


def two_sample_g(counts: Mapping | ArrayLike, other: Mapping | ArrayLike) -> TestResult:
    """Do two sets of counts come from the same law, whatever it is? n is the size of both together."""
    table = np.stack(aligned(counts, other))
    table = table[:, table.sum(0) > 0]
    sizes = table.sum(1)
    if not sizes.all():
        raise InvalidArgument("there are no samples to test on one of the sides")
    groups = _pool(table.sum(0) * sizes.min() / sizes.sum())
    cells = groups.max() + 1
    pooled = int(table.shape[1] - cells + 1) if cells < table.shape[1] else 0
    if cells == 1:
        return TestResult(0.0, 0, 1.0, int(sizes.sum()), pooled)
    table = np.stack([np.bincount(groups, row, cells) for row in table])
    statistic, p_value, dof, _ = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
    return TestResult(float(statistic), int(dof), float(p_value), int(sizes.sum()), pooled)


# --- power ------------------------------------------------------------------------------------------------------------


def power(n: ArrayLike, divergence: float, cells: int, significance: float = SIGNIFICANCE) -> np.ndarray:
    """The chance that a G-test with n samples rejects, when the truth lies at that Kullback-Leibler divergence (nats)
    from the null: a noncentral chi-square of noncentrality 2 n divergence."""
    critical = stats.chi2.isf(significance, cells - 1)
    return stats.ncx2.sf(critical, cells - 1, 2 * np.asarray(n, dtype=float) * divergence)


def worst_divergence(variation: float) -> float:
    """The least Kullback-Leibler divergence (nats) of two laws that far apart: 2 TV^2, Pinsker's inequality."""
    return 2 * variation**2


def detection(
    truth: Mapping | ArrayLike, null: Mapping | ArrayLike, n: int, significance: float = SIGNIFICANCE
) -> float:
    """The chance that n samples of `truth` fail a G-test against `null`, small cells pooled: by the test, or by one
    sample that `null` forbids, whichever is more probable."""
    truth, null = (_law(table) for table in aligned(truth, null))
    forbidden = min(truth[null == 0].sum(), 1.0)
    truth, null = truth[null > 0], null[null > 0]
    if not truth.any():
        return 1.0
    groups = _pool(n * null)
    cells = groups.max() + 1
    divergence = stats.entropy(np.bincount(groups, truth, cells), np.bincount(groups, null, cells))
    by_test = power(n, max(divergence, 0.0), cells, significance) if cells > 1 else 0.0  # rounding: a little below 0
    return float(max(by_test, -np.expm1(n * np.log1p(-forbidden))))


def samples_needed(
    truth: Mapping | ArrayLike, null: Mapping | ArrayLike, significance: float = SIGNIFICANCE, power: float = POWER
) -> int:
    """How many samples of `truth` a G-test against `null` needs, small cells pooled. Raises InvalidArgument if they are
    equal.

    Where `truth` does what `null` forbids, one such sample is enough: the number is then the wait for it, if that is
    shorter.
    """
    truth, null = (_law(table) for table in aligned(truth, null))
    if np.abs(truth - null).max() < 1e-14:
        raise InvalidArgument("the two laws are equal: no number of samples tells them apart")
    high = 1
    while detection(truth, null, high, significance) < power:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if detection(truth, null, middle, significance) >= power else (middle, high)
    return high


def samples_for_variation(
    variation: float, cells: int, significance: float = SIGNIFICANCE, power: float = POWER
) -> int:
    """How many samples see every law that far from the null (in total variation), in the worst case."""
    return int(np.ceil(_noncentrality(cells, significance, power) / (2 * worst_divergence(variation))))


def visible_variation(cells: int, n: int, significance: float = SIGNIFICANCE, power: float = POWER) -> float:
    """The total variation that n samples are sure (with probability `power`) to see, whatever its form."""
    return float(np.sqrt(_noncentrality(cells, significance, power) / (4 * n)))


def _noncentrality(cells: int, significance: float, wanted: float) -> float:
    """The noncentrality at which the test rejects with that probability."""
    if cells < 2 or not 0 < significance < wanted < 1:
        raise InvalidArgument("a test needs at least 2 cells, and 0 < significance < power < 1")
    return float(special.chndtrinc(stats.chi2.isf(significance, cells - 1), cells - 1, 1 - wanted))


# --- intervals --------------------------------------------------------------------------------------------------------


def wilson(successes: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval for a proportion: its ends, for numbers or arrays, such as all cells of a histogram.
    (scipy's `binomtest(...).proportion_ci(method="wilson")`, which the tests compare with, takes one whole number.)
    """
    share, n = np.asarray(successes, dtype=float) / n, np.asarray(n, dtype=float)
    z = stats.norm.isf((1 - level) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(centre - half, 0, 1)[()], np.clip(centre + half, 0, 1)[()]


def cell_intervals(counts: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Intervals for all cells of a histogram, that hold together with probability `level` (Bonferroni over the
    cells).
    """
    counts = np.asarray(counts, dtype=float)
    return wilson(counts, counts.sum(), 1 - (1 - level) / len(counts))


def _student(level: float, n: int) -> float:
    """How many standard errors around an estimate from n samples an interval reaches, by Student's t."""
    return float(stats.t.isf((1 - level) / 2, n - 1))


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """An interval for the mean of n values [n], such as one a prompt, which may be 0 or negative: Student's t.

    The values must be independent of each other. Of normal ones it covers what it says, from 2 on; of mildly skewed
    ones (lognormal, sigma 0.2) at least 94% at 3 to 25 values; of exponential ones only 88 to 92%
    (tests/test_statistics.py). One value says nothing of the others: [-inf, inf]. Raises InvalidArgument for none.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise InvalidArgument("an interval needs at least one value")
    mean = float(values.mean())
    reach = _student(level, len(values)) * float(stats.sem(values)) if len(values) > 1 else np.inf
    return Interval(mean, mean - reach, mean + reach)


def jackknife_interval(samples: ArrayLike, statistic: Callable[[np.ndarray], float], level: float = 0.95) -> Interval:
    """An interval for a positive statistic of n samples [n, ...], such as a ratio of two sums over prompts: Student's t
    around its logarithm, with the spread that leaving out one sample after the other shows (Tukey's jackknife).

    Samples measured side by side stay together. With 3 to 25 prompts it covers what it says within a percent, where
    the percentiles and the BCa ends of a bootstrap cover 84 to 94% (tests/test_statistics.py); it needs no random
    numbers. One sample says nothing of the others: [0, inf].
    """
    samples = np.asarray(samples, dtype=float)
    n = len(samples)
    if not n:
        raise InvalidArgument("an interval needs at least one sample")
    estimate = float(statistic(samples))
    if n == 1:
        return Interval(estimate, 0.0, np.inf)
    without = np.log([statistic(np.delete(samples, i, 0)) for i in range(n)])
    spread = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    reach = float(np.exp(_student(level, n) * spread))
    return Interval(estimate, estimate / reach, estimate * reach)


def ratio_of_means(numerators: ArrayLike, denominators: ArrayLike, level: float = 0.95) -> Interval:
    """mean(numerators) / mean(denominators) of pairs, both positive, with its interval: a speed-up over prompts,
    measured side by side.
    """
    if len(numerators) != len(denominators):
        raise InvalidArgument("a ratio needs pairs: two samples of equal length")
    return jackknife_interval(
        np.stack([numerators, denominators], -1), lambda pairs: pairs[:, 0].mean() / pairs[:, 1].mean(), level
    )


def empirical_variation(counts: Mapping | ArrayLike, probabilities: Mapping | ArrayLike) -> float:
    """The total variation between observed shares and a law. Never 0: compare with `expected_empirical_variation`."""
    observed, law = aligned(counts, probabilities)
    return float(0.5 * np.abs(observed / observed.sum() - _law(law)).sum())


def expected_empirical_variation(probabilities: Mapping | ArrayLike, n: int) -> float:
    """What `empirical_variation` is on average when n samples do come from the law.

    The mean absolute deviation of each binomial count is 2 k (1 - p) P(k), with k = floor(n p) + 1 (de Moivre).
    """
    (law,) = aligned(probabilities)
    law = _law(law)
    k = np.floor(n * law) + 1
    return float(np.sum(k * (1 - law) * stats.binom.pmf(k, n, law)) / n)
