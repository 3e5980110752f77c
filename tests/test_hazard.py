"""The recorded acceptance by position, and what it foretells."""

from types import SimpleNamespace

import pytest

from speclib import experiments
from speclib.workbook import n06

ROWS = experiments.recorded("hazard")["rows"]


@pytest.mark.parametrize("source", [3, 4, 8])
def test_the_hazard_foretells_lengths_that_were_not_measured(source):
    """Within 2% for all texts together, and within 5% in each domain."""
    misses = n06.foretold(ROWS, source).abs()
    assert list(misses.index) == ["code", "prose", "edit", "all"] and misses.shape[1] == 4
    assert misses.loc["all"].max() < 0.02 and misses.max(axis=None) < 0.05


def test_it_takes_the_round_before():
    """Without it short lengths come out too low: their rounds begin in easier text."""
    assert n06.foretold(ROWS, 8, starts=False).loc["all", 2] < -0.02 < n06.foretold(ROWS, 8).loc["all", 2]


def test_the_round_before_is_that_of_the_same_text():
    rounds = [
        SimpleNamespace(row=row, drafted=[0] * 2, accepted=a, overlaps=[b, b], stop_probs=[1 - b, b * (1 - b), b * b])
        for row, a, b in [(0, 2, 0.9), (1, 0, 0.2), (0, 1, 0.8), (1, 2, 0.5)]
    ]
    found = n06.acceptance_of(rounds, 2)
    assert found["hazard_whole"] == [0.8, 0.8] and found["hazard_other"] == [0.5, 0.5]
    assert found["reached"] == [4, 3] and found["hazard"] == pytest.approx([0.6, 2.2 / 3])
    assert found["share"] == 5 / 8 and found["tokens"] == pytest.approx(
        1 + sum(b + b * b for b in (0.9, 0.2, 0.8, 0.5)) / 4
    )
    both = n06.pooled([{"domain": "a"} | found, {"domain": "b"} | found])
    assert both["rounds"] == 8 and both["hazard"] == pytest.approx(found["hazard"]) and both["reached"] == [8, 6]
