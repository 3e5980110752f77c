"""The recorded acceptance by position, and what it foretells."""

from types import SimpleNamespace

import pytest

from speclib import experiments
from speclib.workbook import n06

RECORD = experiments.recorded("hazard")


@pytest.mark.parametrize("source", [2, 3, 4, 6, 8])
def test_the_hazard_foretells_lengths_that_were_not_measured(source):
    """Within 2% for all texts together, and within 5% in each domain."""
    misses = n06.foretold(n06.together(RECORD), source).abs()
    assert list(misses.index) == ["code", "prose", "edit", "all"] and misses.shape[1] == 4
    assert misses.loc["all"].max() < 0.02 and misses.max(axis=None) < 0.05


def test_half_of_the_rounds_are_too_few_for_that():
    worst = [n06.foretold(RECORD[half], 3).loc["all"].abs().max() for half in ("first", "second")]
    assert worst[0] > 0.03 > worst[1]


def test_one_rate_for_all_positions_foretells_less():
    """From rounds of eight guesses, by the formula with alpha: short lengths come out too high."""
    row = n06.pooled([row for row in n06.together(RECORD) if row["gamma"] == 8])
    two = n06.pooled([row for row in n06.together(RECORD) if row["gamma"] == 2])
    assert 1 + row["alpha"] + row["alpha"] ** 2 > 1.005 * two["tokens"]
    assert row["hazard"][0] < row["alpha"] < row["hazard"][-1] and row["share"] < row["alpha"]


def test_what_is_counted():
    rounds = [
        SimpleNamespace(row=0, drafted=[0] * n, accepted=a, overlaps=[b] * n, stop_probs=[1 - b, b * (1 - b), b * b])
        for n, a, b in [(2, 2, 0.9), (2, 0, 0.2), (2, 1, 0.8), (2, 2, 0.5), (1, 1, 0.3)]
    ]
    found = n06.acceptance_of(rounds, 2)  # the short round does not count
    assert found["reached"] == [4, 3] and found["hazard"] == pytest.approx([0.6, 2.2 / 3])
    assert found["share"] == 5 / 8 and found["alpha"] == pytest.approx(4.6 / 7)
    assert found["tokens"] == pytest.approx(1 + sum(b + b * b for b in (0.9, 0.2, 0.8, 0.5)) / 4)
    both = n06.pooled([found, found])
    assert both["rounds"] == 8 and both["hazard"] == pytest.approx(found["hazard"]) and both["reached"] == [8, 6]
