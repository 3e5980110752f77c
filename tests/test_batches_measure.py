"""What a batch brings: predictions against known answers, and trials that decode what they say."""

import json
from math import log2, nan

import numpy as np
import pandas as pd
import pytest
from models import PROMPTS, sharp

from speclib import Pair, Sampling, generate
from speclib.__main__ import main
from speclib.commands import bench
from speclib.drafters import LookupDrafter, ModelDrafter
from speclib.errors import ContextOverflow, InvalidArgument
from speclib.law import theory
from speclib.measure import batches, experiments, latency
from speclib.workbook import n14

GREEDY = Sampling(temperature=0)


@pytest.fixture
def pair():
    return Pair(sharp(backend="fast"), sharp(backend="fast", seed=1, layers=1))


def roofline(width, sizes=(1, 2, 4, 8, 16, 32, 64), tokens=range(1, 10)):
    """A chip that is free up to `width` tokens and then pays for each."""
    cells = [(b, n, max(1.0, b * n / width)) for b in sizes for n in tokens]
    return pd.DataFrame(cells, columns=["rows", "tokens", "ms"])


# --- predictions -----------------------------------------------------------------------------------------------------


def test_times_between_the_cells_lie_on_a_line_and_beyond_them_are_level():
    grid = pd.DataFrame({"rows": [1, 1, 4, 4], "tokens": [1, 5, 1, 5], "ms": [10.0, 14.0, 13.0, 53.0]})
    known = {(1, 1): 10, (1, 3): 12, (4, 2): 23, (2, 1): 11, (2.5, 3): 22.5, (9, 9): 53}
    for (rows, tokens), ms in known.items():
        assert batches.time_of(grid, rows, tokens) == pytest.approx(ms)


def test_predictions_by_hand():
    grid = pd.DataFrame({"rows": [1, 1, 8, 8], "tokens": [1, 5, 1, 5], "ms": [10.0, 11.0, 12.0, 30.0]})
    assert batches.predicted(grid, 1, 1.9375, 4, 4.0) == pytest.approx(1.9375 * 10 / 15)
    assert batches.predicted(grid, 8, 1.9375, 4, 6.0) == pytest.approx(1.9375 * 12 / 36)
    assert batches.predicted(grid, 8, 1.5, 2, 0.0) == pytest.approx(1.5 * 12 / 21), "two guesses a row on average"
    assert batches.predicted(grid, 8, 1.0, 0) == 1, "nothing guessed is plain decoding"


@pytest.mark.parametrize(
    "sizes, gains, ends",
    [
        ([1, 2, 4], [2.0, 1.5, 0.5], 2 * 2**0.5),
        ([1, 2, 4], [2.0, 1.0, 0.5], 2.0),
        ([1, 2, 4], [2.0, 1.5, 1.1], None),
        ([4, 8], [0.9, 0.8], 4.0),
        ([1, 8], [1.3, 0.9], 8 ** (0.3 / 0.4)),
        ([1, 2, 4, 8], [1.5, 0.9, 1.1, 0.8], 1 * 2 ** (0.5 / 0.6)),
    ],
)
def test_where_the_gain_ends(sizes, gains, ends):
    assert batches.gain_ends(sizes, gains) == (ends if ends is None else pytest.approx(ends))


@pytest.mark.parametrize("gamma", [1, 2, 4])
def test_the_rule_of_thumb_holds_on_its_own_chip(gamma):
    """Down to 1 at w (E - gamma c) / (gamma + 1) rows, as the notebook says; and there is nothing at the chip's w."""
    width, alpha, c = 64, 0.65, 0.1
    tokens = float(theory.expected_tokens(alpha, gamma))
    ends, grid = width * (tokens - gamma * c) / (gamma + 1), roofline(width, range(1, 65))
    assert batches.predicted(grid, ends, tokens, gamma, gamma * c) == pytest.approx(1, abs=2e-3)
    assert batches.predicted(grid, ends / 2, tokens, gamma, gamma * c) > 1.2
    sizes = [1, 2, 4, 8, 16, 32, 64]
    gains = [batches.predicted(grid, b, tokens, gamma, gamma * c) for b in sizes]
    assert abs(log2(batches.gain_ends(sizes, gains) / ends)) < 0.25


def test_predictions_of_a_table_take_acceptance_from_all_sizes():
    """Texts decide how much is accepted, the batch what it costs."""
    grid = roofline(8, (1, 4), (1, 3))
    table = pd.DataFrame(
        {
            "method": ["plain", "a", "plain", "a"],
            "rows": [1, 1, 4, 4],
            "tokens_per_round": [1.0, 2.2, 1.0, 1.8],
            "guesses": [0.0, 2.0, 0.0, 2.0],
        }
    )
    told = batches.with_predictions(table, grid, {"a": {1: 0.5, 4: 1.0}})["predicted"].tolist()
    assert told == pytest.approx([nan, 2 / 1.5, nan, 2 / (1.5 + 1)], nan_ok=True)


# --- what is timed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_the_grid_reads_as_many_rows_of_as_many_tokens(backend, monkeypatch):
    read, real = set(), latency.together

    def together(reads):
        read.add((len(reads), reads[0].count, reads[0].context.length))
        assert len({id(r.context.slots) for r in reads}) == 1, "one cache"
        return real(reads)

    monkeypatch.setattr(latency, "together", together)
    grid = batches.width_grid(sharp(backend=backend), (3, 1), (4, 1), 8, 2, 0.001)
    assert grid.columns.tolist() == ["rows", "tokens", "ms", "low", "high"]
    assert list(zip(grid["rows"], grid["tokens"], strict=True)) == [(3, 4), (3, 1), (1, 4), (1, 1)]
    assert read == {(b, n, 8) for b in (1, 3) for n in (1, 4)} | {(1, 8, 0), (3, 8, 0)}
    assert (grid["low"] > 0).all() and (grid["low"] <= grid["ms"]).all() and (grid["ms"] <= grid["high"]).all()


def test_a_grid_that_cannot_be_is_refused():
    whole = sharp(backend="fast")
    for sizes, widths in (((), (1,)), ((1,), ()), ((0,), (1,)), ((1,), (-1,))):
        with pytest.raises(InvalidArgument, match="sizes, widths and passes must be"):
            batches.width_grid(whole, sizes, widths, 8)
    with pytest.raises(ContextOverflow):
        batches.width_grid(whole, (2,), (5,), 60)


def test_prompts_of_mixed_length_are_the_same_each_time():
    def tokenizer(text):
        return {"input_ids": list(text.encode())}

    found = batches.texts(tokenizer, 40)
    assert found == batches.texts(tokenizer, 40) and found[7:] == batches.texts(tokenizer, 33, 7)
    lengths = [len(ids) for ids in found]
    assert min(lengths) >= 24 and max(lengths) <= 87 and len(set(lengths)) > 20


def test_a_trial_counts_all_tokens_and_times_full_rounds_apart(pair):
    found = experiments.ours(
        pair.target, ModelDrafter(pair.draft), Sampling(), 3, 12, batch_size=2, more=batches.full_rounds
    )(PROMPTS, 5)
    out = generate(pair.target, PROMPTS, ModelDrafter(pair.draft), Sampling(), 3, "token", 12, [], seed=5, batch_size=2)
    full = [r for r in out.trace.rounds if r.rows == 2]
    assert found["tokens"] == 12 * len(PROMPTS) and found["rounds"] == len(out.trace.rounds) > len(full)
    assert found["full_tokens"] == sum(len(r.emitted) for r in full) and 0 < found["full_seconds"] < found["seconds"]


def test_transformers_is_given_the_same_texts(pair, monkeypatch):
    """Left-padded and masked, greedy, it writes what plain decoding writes of each prompt alone."""
    written, given, real = [], [], pair.target.model.generate

    def kept(*arguments, **options):
        out = real(*arguments, **options)
        written.extend(out[:, -9:].tolist())
        given.extend(
            row[shown.bool()].tolist() for row, shown in zip(arguments[0], options["attention_mask"], strict=True)
        )
        return out

    monkeypatch.setattr(pair.target.model, "generate", kept)
    found = experiments.theirs(pair, GREEDY, 9, batch_size=2)(PROMPTS, 0)
    assert given == PROMPTS, "what the mask shows is the prompt"
    plain = generate(pair.target, PROMPTS, None, GREEDY, max_new_tokens=9, stop=[]).tokens
    assert written == [tokens.tolist() for tokens in plain] and found["tokens"] == 9 * len(PROMPTS)


def test_a_table_of_all_methods_and_sizes(pair, monkeypatch):
    monkeypatch.setattr(batches, "texts", lambda tokenizer, count, first=0: [[k % 5, 1, 2] for k in range(count)])
    guessers = {"draft model": (ModelDrafter(pair.draft), 2), "lookup": (LookupDrafter(1), 2)}
    table = batches.measure(pair, guessers, (1, 3), 5, 8, 2)
    assert list(zip(table["rows"], table["method"], strict=True)) == [
        (b, m) for b in (1, 3) for m in (batches.PLAIN, *guessers, batches.THEIRS)
    ]
    plain = table[table["method"] == batches.PLAIN]
    assert (plain["speedup"] == 1).all() and (plain["full"] == 1).all() and (plain["tokens_per_round"] == 1).all()
    model_rows = table[table["method"] == "draft model"]
    for name in ("alpha", "tokens_per_round", "guesses"):
        assert np.ptp(model_rows[name]) < 1e-9, "whatever the batch"
    assert table[table["method"] == batches.THEIRS]["tokens_per_round"].isna().all()


def test_where_a_round_goes(pair, monkeypatch):
    monkeypatch.setattr(batches, "texts", lambda *_: PROMPTS[:3])
    before = pair.target.decoder
    shares = batches.outside(pair, 3, 2, 12)
    assert sum(shares.values()) == pytest.approx(1) and all(0 < share < 1 for share in shares.values())
    assert pair.target.decoder is before
    with pytest.raises(InvalidArgument, match="fast backend"):
        batches.outside(Pair(sharp(), sharp()), 2)


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_record_holds_what_the_notebook_reads(pair, monkeypatch):
    monkeypatch.setattr(batches, "texts", lambda _, count, first=0: [[k % 5, 1] for k in range(count)])
    monkeypatch.setattr(batches, "load_pair", lambda **_: pair)
    monkeypatch.setattr(batches, "drafters", lambda pair: {"draft model": (ModelDrafter(pair.draft), 4)})
    real = batches.width_grid
    monkeypatch.setattr(batches, "width_grid", lambda target, sizes: real(target, sizes, (1, 5), 8, 1, 0.001))
    found = json.loads(json.dumps(batches.record((1, 2), 2, 8, 1, progress=False)))
    assert set(found) == {"machine", "settings", "grid", "drafts", "table"}
    assert len(found["grid"]) == 4 and [row["rows"] for row in found["drafts"]] == [1, 2]
    n14.plt.close(n14.gains(pd.DataFrame(found["table"]), "title"))
    grid, each = pd.DataFrame(found["grid"]), {row["rows"]: row["ms"] / 4 for row in found["drafts"]}
    n14.plt.close(n14.switch(grid, each, 0.5, 4))
    found["machine"]["busy"] = None  # bench enters it
    assert "Recorded on" in n14.recorded_on(found).capitalize()


def test_rows_are_the_texts_that_they_are_alone_and_others_are_told(pair, monkeypatch):
    monkeypatch.setattr(batches, "texts", lambda _, count: [[k % 5, 1, 3][: 1 + k % 3] for k in range(count)])
    monkeypatch.setattr(batches, "load_pair", lambda **_: pair)
    found = batches.identity(6, 3, 10, progress=False)["found"]
    assert [(row["dtype"], row["temperature"]) for row in found] == [
        (dtype, heat) for dtype in ("float64", "float32") for heat in (0.0, 1.0)
    ]
    assert all(row["same"] == row["of"] == 6 and not row["gaps"] for row in found)
    real = batches.generate

    def wrong(*arguments, batch_size, **options):
        out = real(*arguments, batch_size=batch_size, **options)
        if batch_size > 1:
            out.tokens[4][2] = (out.tokens[4][2] + 1) % 7
        return out

    monkeypatch.setattr(batches, "generate", wrong)
    told = batches.identity(6, 3, 10, progress=False)["found"]
    assert all(row["same"] == 5 and len(row["gaps"]) == 1 for row in told)
    prompt = [
        [4, 1, 3][:2],
        generate(pair.target, [[4, 1]], None, GREEDY, max_new_tokens=2, stop=[]).tokens[0].tolist(),
    ]
    assert told[0]["gaps"][0] == pytest.approx(batches.gap(pair.target, prompt[0] + prompt[1]))


def test_the_command(monkeypatch, tmp_path, capsys):
    calls, row = [], dict.fromkeys(bench.SIZED, 1.0)
    found = [{"dtype": "float64", "temperature": 0.0, "same": 3, "of": 4, "gaps": [0.1]}]
    record = {"table": [row]}
    monkeypatch.setattr(batches, "record", lambda *a, **_: calls.append(a[:4]) or record)
    monkeypatch.setattr(batches, "identity", lambda *a, **m: calls.append((*a, m["tokens"])) or {"found": found})
    out = tmp_path / "x.json"

    def asked(*words):
        return main(["bench", "batches", *words, "--out", str(out)])

    assert asked("--rows", "4", "2", "--tokens", "9") == 0 and json.loads(out.read_text()) == record
    assert asked("--quick") == 0 and asked("--identity") == 1 and json.loads(out.read_text()) == {"found": found}
    assert calls == [([2, 4], 32, 9, 5), ([1, 4], 8, 12, 1), (256, 32)]
    assert bench.SIZED[0] in capsys.readouterr().out
    found[0] |= {"same": 4, "gaps": []}
    assert asked("--identity") == 0


# --- the notebook's own ----------------------------------------------------------------------------------------------


def test_rounds_that_shared_a_forward_stand_together(pair):
    seen = []
    generate(
        pair.target, PROMPTS, ModelDrafter(pair.draft), Sampling(), 3, "token", 12, [], batch_size=3, watch=seen.append
    )
    shared = n14.forwards(seen)
    assert sum(shared, []) == seen and {len(rounds) for rounds in shared} >= {1, 3}
    assert all(len({r.row for r in rounds}) == rounds[0].rows == len(rounds) for rounds in shared)


def test_the_best_length_shrinks_as_the_batch_grows():
    grid = roofline(32, tokens=range(1, 10))
    table = n14.predictions(grid, dict.fromkeys((1, 2, 4, 8, 16, 32, 64), 0.05), 0.7)
    assert (np.diff(table.idxmax(axis=1)) <= 0).all() and table.loc[1].idxmax() == 6 and table.loc[32].idxmax() == 1
    assert table.loc[64].max() < 1 < table.loc[8].max()
