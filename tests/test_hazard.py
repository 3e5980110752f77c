"""The recorded acceptance by position, and what it foretells."""

import json
from types import SimpleNamespace

import pytest
from models import tiny_with_text

from speclib import bench, embedded, experiments
from speclib.__main__ import main
from speclib.measure import hazard
from speclib.model.language_model import Pair
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


def test_one_rate_for_all_positions_is_too_high_at_the_first():
    """From rounds of eight guesses, by the formula with alpha: short lengths come out too high."""
    row = hazard.pooled([row for row in n06.together(RECORD) if row["gamma"] == 8])
    two = hazard.pooled([row for row in n06.together(RECORD) if row["gamma"] == 2])
    assert 1 + row["alpha"] + row["alpha"] ** 2 > 1.005 * two["tokens"]
    assert row["hazard"][0] < row["alpha"] < row["hazard"][-1] and row["share"] < row["alpha"]


def test_the_accepted_share_is_no_alpha():
    """Hazard and one alpha foretell about as well as each other, within 2% for all texts together; the share does not
    come near.
    """
    found = {rate: n06.misses(n06.together(RECORD), rate) for rate in n06.RATES}
    assert all(found[rate].loc["all"].abs().max() < 2 for rate in ("hazard", "one alpha"))
    assert (found["accepted share"]["high"] < -15).all() and (found["accepted share"]["low"] < -45).all()


def test_positions_by_hand():
    found = n06.by_position({"gamma": 2, "hazard": [0.5, 0.8], "alpha": 0.6, "share": 0.45})
    assert found["kept at all"].tolist() == pytest.approx([0.5, 0.4])
    assert found["alpha^k"].tolist() == pytest.approx([0.6, 0.36])
    assert found["share^k"].tolist() == pytest.approx([0.45, 0.2025])
    assert found["kept at all"].mean() == pytest.approx(0.45)  # the share, where every round has all its guesses


def test_what_is_counted():
    rounds = [
        SimpleNamespace(drafted=[0] * n, accepted=a, overlaps=[b] * n, stop_probs=[1 - b, b * (1 - b), b * b])
        for n, a, b in [(2, 2, 0.9), (2, 0, 0.2), (2, 1, 0.8), (2, 2, 0.5), (1, 1, 0.3)]
    ]
    found = hazard.acceptance_of(rounds, 2)  # the short round does not count
    assert found["reached"] == [4, 3] and found["hazard"] == pytest.approx([0.6, 2.2 / 3])
    assert found["share"] == 5 / 8 and found["alpha"] == pytest.approx(4.6 / 7)
    assert found["tokens"] == pytest.approx(1 + sum(b + b * b for b in (0.9, 0.2, 0.8, 0.5)) / 4)
    both = hazard.pooled([found, found])
    assert both["rounds"] == 8 and both["hazard"] == pytest.approx(found["hazard"]) and both["reached"] == [8, 6]


def test_the_command_records_what_the_notebook_reads(monkeypatch, tmp_path, capsys):
    """Every domain and length twice, and the same command the same numbers: nothing of it is a time."""
    pair = Pair(tiny_with_text(0, 2), tiny_with_text(1, 1))
    monkeypatch.setattr(bench, "load_pair", lambda **_: pair)
    monkeypatch.setattr(embedded, "prompts", lambda domain: ["some text", "more"])
    records = []
    for name in ("a.json", "b.json"):
        assert main(["bench", "hazard", "--quick", "--out", str(tmp_path / name)]) == 0
        records.append(json.loads((tmp_path / name).read_text()))
    assert records[0] | {"machine": None} == records[1] | {"machine": None}
    assert set(records[0]) == set(RECORD)
    assert records[0]["settings"] == RECORD["settings"] | {"prompts": 2, "new_tokens": 24}
    for half in ("first", "second"):
        found = [(row["domain"], row["gamma"]) for row in records[0][half]]
        assert found == [(row["domain"], row["gamma"]) for row in RECORD[half]]
    assert records[0]["first"] != records[0]["second"] and "first recording" in capsys.readouterr().out
