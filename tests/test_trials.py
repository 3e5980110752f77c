"""The trial chooses the fastest way of each kind; what it need not compile it does not; the headline is over the best
plain decoding."""

import json

import pandas as pd
import pytest
from models import tiny_with_text

from speclib import bench, experiments, trials
from speclib.__main__ import main
from speclib.commands import pairs
from speclib.errors import UnsupportedModel
from speclib.measure.trials import PLAIN, SPECULATIVE, Way, choose
from speclib.model.language_model import Pair

SECONDS = {  # (kind, backend, dtype) -> of ten tokens
    (PLAIN, "eager", "float32"): 4.0,
    (PLAIN, "eager", "bfloat16"): 3.0,
    (PLAIN, "fast", "float32"): 2.1,
    (PLAIN, "fast", "bfloat16"): 2.0,
    (PLAIN, "compiled", "float32"): 1.2,
    (PLAIN, "compiled", "bfloat16"): 1.6,
    (SPECULATIVE, "eager", "float32"): 3.0,
    (SPECULATIVE, "eager", "bfloat16"): 9.0,
    (SPECULATIVE, "fast", "float32"): 1.0,
    (SPECULATIVE, "fast", "bfloat16"): 8.0,
    (SPECULATIVE, "compiled", "float32"): 1.1,
    (SPECULATIVE, "compiled", "bfloat16"): 0.1,
}


def counted(tried):
    """Kinds over places (backend, dtype) in place of pairs: `plain` as fast as SECONDS, two guessers of which the
    second takes twice as long."""

    def make(kind, names):
        def methods(place):
            def method(name):
                def trial(prompt, seed):
                    tried.append((name, *place))
                    return {"tokens": 10, "seconds": SECONDS[(kind, *place)] * (2 if name == "slow" else 1)}

                return trial

            return {name: method(name) for name in names}

        return methods

    return {PLAIN: make(PLAIN, ["plain"]), SPECULATIVE: make(SPECULATIVE, ["quick", "slow"])}


def place(backend, dtype):
    return backend, dtype


def test_each_kind_has_a_fastest_way_of_its_own():
    """Here plain decoding is fastest in bfloat16, and a check hopeless in it: one dtype for both would flatter or spoil
    the ratio."""
    tried = []
    found = choose(place, counted(tried), ["x", "y"], ["eager", "fast"])
    assert found.ways == {PLAIN: Way("plain", "fast", "bfloat16"), SPECULATIVE: Way("quick", "fast", "float32")}
    assert found.speeds[Way("plain", "fast", "bfloat16")] == 5
    assert found.speeds[Way("slow", "eager", "float32")] == pytest.approx(10 / 6)
    assert "speculative: quick (fast, float32)" in str(found)
    assert str(found).count("tokens/s") == len(found.speeds) == 12


@pytest.mark.parametrize(("near", "dtypes"), [(1.0, {"bfloat16"}), (0.9, {"float32", "bfloat16"})])
def test_programs_are_made_where_they_may_win_alone(near, dtypes):
    tried = []
    found = choose(place, counted(tried), ["x"], ["eager", "fast", "compiled"], near=near)
    compiled = {(name, dtype) for name, backend, dtype in tried if backend == "compiled"}
    assert compiled == {("plain", dtype) for dtype in dtypes} | {("quick", "float32")}
    assert found.ways[PLAIN] == Way("plain", "compiled", "float32" if near < 1 else "bfloat16")
    assert found.ways[SPECULATIVE] == Way("quick", "fast", "float32")
    second = tried[next(k for k, (_, backend, _) in enumerate(tried) if backend == "compiled") - 4 :]
    assert {("plain", "fast", "bfloat16"), ("quick", "fast", "float32")} <= set(second), (
        "the best so far, in the same minutes"
    )


def test_the_compiled_backend_by_itself_and_backends_that_cannot_read_the_model():
    def load(backend, dtype):
        if backend == "fast":
            raise UnsupportedModel("not this one")
        return backend, dtype

    assert choose(load, counted([]), ["x"], ["compiled"]).ways[PLAIN] == Way("plain", "compiled", "float32")
    assert {way.backend for way in choose(load, counted([]), ["x"], ["eager", "fast"]).speeds} == {"eager"}
    with pytest.raises(UnsupportedModel, match="not this one"):
        choose(load, counted([]), ["x"], ["fast"])
    with pytest.raises(UnsupportedModel, match="no backend"):
        choose(load, counted([]), ["x"], [])


def test_the_backends_share_weights_and_are_loaded_once():
    loaded = []

    def load_pair(**settings):
        loaded.append(settings["dtype"])
        return Pair(tiny_with_text(0, 2), tiny_with_text(1, 1))

    load = trials.loader(lambda dtype: load_pair(dtype=dtype))
    assert load("fast", "float32") is load("fast", "float32") and load("fast", "float32").target.backend == "fast"
    assert load("fast", "float32").target.model is load("eager", "float32").target.model
    load("eager", "bfloat16")
    assert loaded == ["float32", "bfloat16"]


def row(method, place, prompt, seconds, temperature=1.0):
    backend, dtype = place.split()
    return {
        "method": method,
        "backend": backend,
        "dtype": dtype,
        "domain": "code",
        "temperature": temperature,
        "prompt": prompt,
        "repeat": 0,
        "tokens": 10,
        "seconds": seconds,
    }


def test_the_headline_is_over_the_best_plain_decoding_of_all_tables():
    """Three times plain decoding by its own forwards, one and a half times the best of the machine."""
    rows = [
        row(method, place, p, seconds)
        for p in (0, 1)
        for method, place, seconds in [
            ("plain", "eager float32", 6.0),
            ("plain", "compiled bfloat16", 3.0),
            ("eagle", "fast float32", 2.0),
            ("eagle", "compiled bfloat16", 2.5),
            ("transformers lookup, best", "transformers float32", 1.0),
        ]
    ] + [row("plain", "fast float32", 0, 0.1, temperature=0.0)]
    columns = list(rows[0])
    record = {"rows": {"columns": columns, "data": [[r[c] for c in columns] for r in rows]}}
    said = bench.headline_of(record, "code", 1.0)
    assert said.startswith("code, T = 1, over the best plain decoding of this machine: 1.50x [1.50, 1.50], ")
    assert said.endswith("5 tokens/s by eagle (fast, float32) against 3 by plain (compiled, bfloat16)")
    record["rows"]["data"] = [row for row in record["rows"]["data"] if row[columns.index("prompt")] == 0]
    assert "1.50x on one text, " in bench.headline_of(record, "code", 1.0), "of which no interval can be told"


def test_the_short_headline_on_a_tiny_pair():
    """Everything that is compared is in one interleaved run, its ratios are over the best plain way and over the one of
    the same forwards."""
    slow = Pair(tiny_with_text(0, 2), tiny_with_text(1, 1))
    found = pairs.headline(
        trials.loader(lambda dtype: slow, pairs.place),
        experiments.Sampling(0),
        ["some text", "more"],
        ["others"],
        pairs.Settings(tokens=16, backend=["eager", "fast"]),
        ["float32"],
    )
    names = [m["method"] for m in found["methods"]]
    plain = found["methods"][0]
    assert plain["method"] == "plain" and plain["over_best_plain"] == 1
    for method in found["methods"]:
        ratio = method["tokens_per_second"] / plain["tokens_per_second"]
        assert method["over_best_plain"] == pytest.approx(ratio, rel=1e-4)
    assert names.count("plain") in (1, 2) and sum(name.startswith("transformers") for name in names) == 1
    assert {(m["backend"], m["dtype"]) for m in found["methods"]} <= {("eager", "float32"), ("fast", "float32")}
    assert len(found["tried"]) == 2 * (1 + 1 + 2) + 3 + 3 * experiments.assists()
    assert "over the best plain decoding of this machine" in found["headline"]


def test_the_record_of_layouts_says_where_the_chosen_one_is_behind(monkeypatch, tmp_path, capsys):
    times = {"as they lie": [1.0, 4.0, 3.0], "laid out": [2.0, 2.0, 2.0], "chosen": [1.04, 1.5, 2.2]}
    frame = pd.DataFrame(times, index=pd.Index([1, 2, 3], name="rows")).reset_index()
    frame = frame.melt("rows", var_name="weights", value_name="ms")
    monkeypatch.setattr(bench.latency, "layout_curves", lambda model, context, passes: frame)
    monkeypatch.setattr(bench, "load_model", lambda name, dtype: None)
    assert main(["bench", "layouts", "--dtype", "float32", "--out", str(tmp_path / "layouts.json")]) == 0
    record = json.loads((tmp_path / "layouts.json").read_text())
    assert record["over_the_better"] == {"float32": {"1": 1.04, "2": 0.75, "3": 1.1}}
    assert record["machine"]["instructions"]
    assert "within 5% of the better layout at 2 of 3 numbers of rows; 1.10 at 3" in capsys.readouterr().out
