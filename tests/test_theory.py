"""The closed forms against sums, against enumeration, and against the figures in the papers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speclib import theory
from speclib.errors import InvalidArgument
from speclib.law.exact import expected_accepted, fixed_table

share = st.floats(0, 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(alpha=share | st.sampled_from([0.0, 1.0, 1 - 1e-12, 1e-300]), gamma=st.integers(0, 12))
def test_expected_tokens_is_the_sum_of_powers(alpha, gamma):
    direct = sum(alpha**i for i in range(gamma + 1))
    assert theory.expected_tokens(alpha, gamma) == pytest.approx(direct, rel=1e-9)
    assert theory.expected_tokens_from_positions([alpha] * gamma) == pytest.approx(direct, rel=1e-9)


def test_expected_tokens_is_what_the_rule_does():
    target, draft = fixed_table([0.5, 0.3, 0.2]), fixed_table([0.2, 0.3, 0.5])
    for gamma in range(5):
        assert theory.expected_tokens(0.7, gamma) == pytest.approx(
            1 + expected_accepted("token", target, draft, gamma), abs=1e-12
        )


def test_positions_that_differ():
    assert theory.expected_tokens_from_positions([0.9, 0.5, 0.0, 1.0]) == pytest.approx(1 + 0.9 + 0.45)
    assert theory.expected_tokens_from_positions([[0.5, 0.5], [1.0, 0.0]]).tolist() == [1.75, 2.0]
    assert theory.expected_tokens_from_positions([]) == 1


def test_figures_of_the_first_paper():
    """Leviathan et al., table 1: alpha, gamma -> operations and speed-up, at draft costs of almost nothing."""
    for alpha, gamma, operations, speed in [
        (0.6, 2, 1.53, 1.96),
        (0.7, 3, 1.58, 2.53),
        (0.8, 2, 1.23, 2.44),
        (0.8, 5, 1.63, 3.69),
        (0.9, 2, 1.11, 2.71),
    ]:
        assert theory.operations_factor(alpha, gamma, 0) == pytest.approx(operations, abs=0.006)
        assert theory.speedup(alpha, gamma, 0) == pytest.approx(speed, abs=0.006)


def test_speedup():
    assert theory.speedup(0.8, 4, 0.1) == pytest.approx((1 - 0.8**5) / 0.2 / 1.4)
    assert theory.speedup(0.8, 4, 0.1, 1.25) == pytest.approx((1 - 0.8**5) / 0.2 / 1.65)
    assert theory.speedup(0.8, 4, 0.1, lambda width: 1 + 0.05 * (width - 1)) == pytest.approx((1 - 0.8**5) / 0.2 / 1.6)
    assert theory.speedup(0.8, 0, 0.1, 1.25) == 1  # no drafts: one token a round, one token wide
    assert theory.speedup(1.0, 7, 0.0) == 8  # the lecture: n right guesses, n + 1 times faster
    assert theory.speedup(0.0, 4, 0.1) == pytest.approx(1 / 1.4)
    assert theory.speedup([[0.5], [0.9]], [1, 2, 4], 0.1).shape == (2, 3)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(alpha=share, c=st.floats(0, 1.5))
def test_optimal_gamma_is_the_best_of_all(alpha, c):
    best = theory.optimal_gamma(alpha, c, max_gamma=10)
    all_of_them = [float(theory.speedup(alpha, gamma, c)) for gamma in range(11)]
    assert all_of_them[best] == max(all_of_them) and best == all_of_them.index(max(all_of_them))
    # the break-even: some draft length gains exactly when alpha > c, and the best gains at least as much as one draft
    if abs(alpha - c) > 1e-9:
        assert theory.pays(alpha, c) == (best > 0) == (theory.minimum_gain(alpha, c) > 1)
    assert max(all_of_them) >= theory.minimum_gain(alpha, c) - 1e-12


def test_optimal_gamma_with_a_width_curve_and_arrays():
    assert theory.optimal_gamma([0.5, 0.8, 0.95], 0.05).tolist() == sorted(theory.optimal_gamma([0.5, 0.8, 0.95], 0.05))
    # if n tokens cost n, nothing is gained
    assert theory.optimal_gamma(0.9, 0.05, width_ratio=lambda width: width) == 0
    assert theory.optimal_gamma(0.9, [0.01, 0.1, 0.95]).shape == (3,)
    assert theory.optimal_gamma(1.0, 0.0, max_gamma=6) == 6


def test_operations_factor():
    assert theory.operations_factor(0.5, 0, 0.3) == 1
    assert theory.operations_factor(0.5, 3, 0.1) == pytest.approx(0.5 * (3 * 0.1 + 4) / (1 - 0.5**4))
    assert theory.operations_factor(1.0, 3, 0.1) == pytest.approx(4.3 / 4)


def test_a_hazard_counts_what_was_reached_and_nothing_else():
    rounds = [([0.9, 0.4, 0.1], 2), ([0.5, 0.8, 0.7], 0), ([0.7], 1), ([0.3, 0.6, 0.2], 1)]
    hazard, reached = theory.hazard_by_position(rounds)
    assert reached.tolist() == [4, 2, 1] and hazard == pytest.approx([0.6, 0.5, 0.1])
    hazard, reached = theory.hazard_by_position([([0.5, 0.5], 0)])
    assert reached.tolist() == [1, 0] and hazard[0] == 0.5 and np.isnan(hazard[1])
    assert theory.tokens_from_hazard(hazard, 3) == pytest.approx(1 + 0.5 + 0.25 + 0.125)
    assert theory.tokens_from_hazard([0.6, 0.5], 4) == pytest.approx(1 + 0.6 + 0.3 + 0.15 + 0.075)
    assert theory.tokens_from_hazard([0.6, 0.5], 1) == 1.6 and theory.tokens_from_hazard([0.6], 0) == 1


def test_a_hazard_estimated_at_one_length_foretells_the_others():
    """Rounds of easy and hard places: 0.9 or 0.3 throughout. One rate for all misses what the hazard gets right."""
    rng = np.random.default_rng(0)
    beta = rng.choice([0.9, 0.3], 40_000)
    accepted = (rng.random((len(beta), 6)) < beta[:, None]).cumprod(1).sum(1)
    hazard, reached = theory.hazard_by_position((6 * [b], int(a)) for b, a in zip(beta, accepted, strict=True))
    moments = [(0.9**k + 0.3**k) / 2 for k in range(8)]
    assert hazard == pytest.approx([moments[k + 1] / moments[k] for k in range(6)], abs=0.01)
    assert hazard[0] == pytest.approx(0.6, abs=0.01) and hazard[-1] > 0.85
    for gamma in (1, 3, 6):
        assert theory.tokens_from_hazard(hazard, gamma) == pytest.approx(sum(moments[: gamma + 1]), rel=0.01)
    assert theory.tokens_from_hazard(hazard, 7) == pytest.approx(sum(moments), rel=0.01)
    alpha = (hazard * reached).sum() / reached.sum()
    assert theory.expected_tokens(alpha, 1) > 1.1 * theory.tokens_from_hazard(hazard, 1)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: theory.expected_tokens(1.1, 3), "alpha"),
        (lambda: theory.expected_tokens(np.nan, 3), "alpha"),
        (lambda: theory.speedup(-0.1, 3, 0.1), "alpha"),
        (lambda: theory.speedup(0.5, -1, 0.1), "gamma"),
        (lambda: theory.speedup(0.5, 1, -0.1), "cost"),
        (lambda: theory.expected_tokens_from_positions([0.5, 1.5]), "alpha"),
        (lambda: theory.hazard_by_position([([0.5], 2)]), "cannot have passed"),
        (lambda: theory.tokens_from_hazard([], 2), "reached"),
    ],
)
def test_values_out_of_range(call, word):
    with pytest.raises(InvalidArgument, match=word):
        call()
