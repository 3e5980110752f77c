"""Measurements: the order of trials, the arithmetic of ratios and predictions, and the bench command on a tiny pair."""

import json
from collections import Counter
from dataclasses import astuple

import numpy as np
import pandas as pd
import pytest
import torch
from models import tiny_with_text

import speclib
from speclib import LanguageModel, Sampling, compiled, experiments, generate, growth, leaderboard, theory, trials
from speclib.__main__ import main
from speclib.commands import pairs
from speclib.drafters import ModelDrafter, TreeDrafter
from speclib.errors import InvalidArgument
from speclib.law.statistics import ratio_of_means
from speclib.loop.lengths import ConfidenceLength
from speclib.measure.experiments import WAY, Way
from speclib.model.language_model import Pair


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair(tiny_with_text(0, 2), tiny_with_text(1, 1))


def counted(log: list, name: str, seconds: float, tokens: int = 10):
    def trial(prompt: str, seed: int) -> dict:
        log.append((name, prompt, seed))
        return {"tokens": tokens, "seconds": seconds}

    return trial


def test_every_method_meets_every_prompt_in_turn_after_a_warm_up():
    log = []
    methods = {name: counted(log, name, 1.0) for name in "abc"}
    frame = experiments.interleaved(methods, ["x", "y"], repeats=2, progress=False)
    assert Counter(zip(frame["method"], frame["prompt"], frame["repeat"], strict=True)) == Counter(
        (m, p, r) for m in "abc" for p in (0, 1) for r in (0, 1)
    )
    assert len(log) == len(frame) + 3  # one unrecorded trial a method
    firsts = [frame["method"][k] for k in range(0, len(frame), 3)]
    assert len(set(firsts)) > 1, "the order must rotate, or the first method always meets a cold machine"
    for _, turn in frame.groupby(["prompt", "repeat"]):
        assert turn.index.max() - turn.index.min() == 2, "methods take turns within a prompt"


def test_what_is_measured_between_prompts_comes_before_each_of_them_once():
    log = []
    methods = {name: counted(log, name, 1.0) for name in "ab"}
    experiments.interleaved(methods, ["x", "y"], repeats=2, progress=False, between=lambda: log.append("between"))
    asked = [k for k, entry in enumerate(log) if entry == "between"]
    assert len(asked) == 4 and len(log) == 4 + 2 + 8  # times it was asked, warm-ups, trials
    assert all(
        sum(entry != "between" for entry in log[one:other]) in (2, 3)
        for one, other in zip(asked, asked[1:], strict=False)
    ), "and the trials of one prompt lie between"


def test_methods_get_the_same_seed_on_the_same_trial_and_others_elsewhere():
    log = []
    experiments.interleaved({name: counted(log, name, 1.0) for name in "ab"}, ["x", "y"], repeats=2, progress=False)
    seeds = {name: [seed for method, _, seed in log if method == name][1:] for name in "ab"}  # without the warm-up
    assert seeds["a"] == seeds["b"]
    assert len(set(seeds["a"])) == 4


def test_a_way_is_three_columns_by_which_the_figures_are_told_apart():
    """The same method on two backends is two methods; a name alone is one column."""
    slow, quick = Way("plain", "eager", "float32"), Way("plain", "fast", "float32")
    frame = experiments.interleaved({slow: counted([], "", 2.0), quick: counted([], "", 1.0)}, "xyz", progress=False)
    assert frame.groupby(WAY).size().to_dict() == {slow: 3, quick: 3}
    table = experiments.speedups(frame, slow)
    assert table.loc[quick, "speedup"] == 2 and table.index.names == WAY and table.loc[slow, "speedup"] == 1
    assert list(experiments.interleaved({"a": counted([], "", 1.0)}, "x", progress=False)["method"]) == ["a"]
    with pytest.raises(InvalidArgument, match="not among the methods"):
        experiments.speedups(frame, "plain")
    assert experiments.acceptance(frame).empty


def test_the_fastest_has_the_most_tokens_per_second():
    log = []
    methods = {3: counted(log, "a", 2.0), "default": counted(log, "b", 3.0, tokens=40), 8: counted(log, "c", 1.0)}
    assert experiments.fastest(methods, ["x", "y"]) == "default" and len(log) == 9
    assert experiments.fastest({7: None}, ["x"]) == 7, "of one nothing is timed"


def test_a_trial_in_which_a_program_was_made_is_made_again(pair, monkeypatch):
    """Widths that a warm-up did not meet - a lookup's first match, the short rounds where a text ends - are not in what
    is recorded.
    """
    made, generated = [], []

    def fused(program):
        made.append(len(generated))
        return program

    def counted(*arguments, **options):
        generated.append(arguments)
        return generate(*arguments, **options)

    monkeypatch.setattr(compiled, "fused", fused)
    monkeypatch.setattr(experiments, "generate", counted)
    quick = [LanguageModel(model.model, model.tokenizer, backend="compiled") for model in (pair.target, pair.draft)]
    trial = experiments.ours(quick[0], ModelDrafter(quick[1]), Sampling(), 3, 20)
    first = trial("speculate", 0)
    assert made and max(made) < len(generated), "the last run made nothing"
    again, before = trial("speculate", 0), len(generated)
    assert first["text"] == again["text"] and len(generated) == before == max(made) + 2


def test_speedups_are_ratios_of_totals_with_intervals():
    rows = [
        {"method": "plain", "prompt": p, "repeat": 0, "tokens": 10, "seconds": s} for p, s in enumerate((1.0, 2.0, 4.0))
    ]
    rows += [
        {"method": "fast", "prompt": p, "repeat": 0, "tokens": 10, "seconds": s} for p, s in enumerate((0.5, 1.0, 3.0))
    ]
    table = experiments.speedups(pd.DataFrame(rows), "plain")
    assert table.loc["fast", "speedup"] == pytest.approx(7 / 4.5)  # not the mean of the ratios, which is 1.78
    assert table.loc["fast", "tokens_per_second"] == pytest.approx(30 / 4.5)
    assert (table.loc["fast", "low"], table.loc["fast", "high"]) == pytest.approx(
        astuple(ratio_of_means([1, 2, 4], [0.5, 1, 3]))[1:]
    )
    assert tuple(table.loc["plain", ["speedup", "low", "high"]]) == (1, 1, 1)
    with pytest.raises(InvalidArgument, match="baseline"):
        experiments.speedups(pd.DataFrame(rows), "slow")


def test_prediction_charges_one_cost_after_the_other():
    widths = pd.DataFrame({"width": [1, 4], "ms": [10.0, 13.0]})
    steps = experiments.predict(alpha=0.5, tokens_per_round=2.0, gamma=3, c=0.1, widths=widths)
    assert steps == pytest.approx({"ideal": 1.875, "draft": 1.875 / 1.3, "width": 1.875 / 1.6, "rounds": 2.0 / 1.6})


def test_advised_length_is_the_formulas_optimum():
    widths = pd.DataFrame({"width": range(1, 10), "ms": 1.0})
    for alpha, c in ((0.3, 0.1), (0.6, 0.1), (0.8, 0.05)):
        assert experiments.advised_length(alpha, c, widths) == max(
            1, theory.optimal_gamma(alpha, c, experiments.MAX_LENGTH)
        )
    assert experiments.advised_length(0.1, 0.9, widths) == 1
    steep = pd.DataFrame({"width": range(1, 5), "ms": [1.0, 1.0, 1.0, 9.0]})
    assert experiments.advised_length(0.99, 0.0, steep) == 2
    assert experiments.advised_length(0.99, 0.0, steep[:2]) == 1, "no further than it was measured"


def test_repeated_share():
    assert experiments.repeated_share([1, 2, 3, 4, 5, 6]) == 0
    assert experiments.repeated_share([1, 2] * 5) == pytest.approx(5 / 7)  # 7 four-grams, 2 of them different
    assert experiments.repeated_share([1, 2]) == 0


def test_overlaps_are_the_acceptance_probabilities_of_generate(pair):
    """At gamma 1 every drafted position's overlap in the trace is what both models say of the finished text."""
    sampling = Sampling()
    trial = experiments.ours(pair.target, ModelDrafter(pair.draft), sampling, 1, 12)("speculate", 0)
    betas = experiments.overlaps(pair.target, pair.draft, "speculate", trial["text"], sampling)
    assert betas.shape == (12,) and ((betas > 0) & (betas <= 1 + 1e-6)).all()
    rounds = generate(
        pair.target, "speculate", ModelDrafter(pair.draft), sampling, 1, max_new_tokens=12, stop=[]
    ).trace.rounds
    start = len("speculate")
    seen = {r.position - start: r.overlaps[0] for r in rounds if r.overlaps}
    assert seen and np.allclose([betas[k] for k in seen], list(seen.values()), atol=1e-5)
    twin = experiments.overlaps(pair.target, pair.target, "speculate", trial["text"], sampling)
    assert np.allclose(twin, 1, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_everybody_writes_exactly_as_many_tokens_and_configs_are_left_as_found(pair, temperature):
    before = [model.model.generation_config for model in (pair.target, pair.draft)]
    copies = [config.to_dict() for config in before]
    quick = trials.on(pair, "fast")
    found = {p.target.backend: pairs.place(p) for p in (pair, quick)}
    way = {(name, b): at.way(name) for b, at in found.items() for name in at.drafters}
    chosen = {way[pairs.MODEL, "eager"]: 2, way[pairs.MODEL, "fast"]: 3, way[pairs.BLOCK, "fast"]: 3}
    chosen |= {way[name, "fast"]: 3 for name in (pairs.LOOKUP, pairs.BOTH, pairs.FIRST)}
    theirs = {name: found["eager"].way(name, pairs.THEIRS) for name in (pairs.HF_PLAIN, pairs.HF_BEST, pairs.HF_LOOKUP)}
    if not experiments.assists():
        del theirs[pairs.HF_BEST]
    chosen |= {way[pairs.FIRST, "eager"]: 3} | {theirs[name]: 3 for name in theirs if name != pairs.HF_PLAIN}
    every = pairs.methods(found, Sampling(temperature), chosen, 20)
    frame = experiments.interleaved(every, ["some text", "other words"], progress=False)
    assert set(frame["tokens"]) == {20} and set(frame["text"].map(len)) == {20}
    assert frame["seconds"].min() > 0
    after = [model.model.generation_config for model in (pair.target, pair.draft)]
    assert all(a is b for a, b in zip(after, before, strict=True)) and [c.to_dict() for c in after] == copies
    if temperature == 0:
        same = pairs.identity(pair.target, frame, ["some text", "other words"])
        assert (same["same_text"] == 1).all() and (same["largest_gap"] == 0).all()
    costs = {
        way[pairs.MODEL, "eager"]: {"plain": 2.0, "draft": 0.4, "check": 2.5},
        way[pairs.MODEL, "fast"]: {"plain": 1.0, "draft": 0.6, "check": 1.2},
    }
    table = pairs.tabulate(frame, chosen, costs)
    assert set(table.index) == set(every) and len(table) == len(every)
    for backend, gamma, c, width in (("eager", 2, 0.1, 1.25), ("fast", 3, 0.2, 1.2)):
        plain, model = way[pairs.PLAIN, backend], way[pairs.MODEL, backend]
        assert table.loc[plain, "speedup"] == 1
        assert table.loc[model, "speedup"] == pytest.approx(
            table.loc[model, "tokens_per_second"] / table.loc[plain, "tokens_per_second"]
        )
        # and the prompts are read as fast as before
        trials_of = {name: frame[(frame[experiments.WAY] == list(name)).all(axis=1)] for name in (plain, model)}
        whole, reading = trials_of[plain][["seconds", "prefill_seconds"]].sum()
        again = trials_of[model]["prefill_seconds"].sum()
        for column, decoding in (
            ("predicted", theory.speedup(table.loc[model, "alpha"], gamma, c, width)),
            ("predicted_from_rounds", table.loc[model, "tokens_per_round"] / (gamma * c + width)),
        ):
            assert table.loc[model, column] == pytest.approx(whole / (again + (whole - reading) / decoding))
        assert tuple(table.loc[model, ["draft_length", "c", "width"]]) == pytest.approx((gamma, c, width))
        shares = table.loc[model, ["draft_share", "target_share", "prefill_share", "other_share"]]
        assert shares.sum() == pytest.approx(1) and (shares > 0).all()
    for name in theirs.values():
        plain = table.loc[way[pairs.PLAIN, "eager"]]
        assert table.loc[name, "speedup"] == pytest.approx(
            table.loc[name, "tokens_per_second"] / plain["tokens_per_second"]
        )
    best = theirs[pairs.HF_LOOKUP]
    mirrored = experiments.speedups(frame, best).loc[way[pairs.FIRST, "fast"], "speedup"]
    assert table.loc[best, "ours_over_this"] == pytest.approx(mirrored)


def test_the_advised_length_weighs_the_yield_of_rounds_against_their_price(pair, monkeypatch):
    prices = {"free": lambda n: 0.0, "dear": lambda n: 10.0 * n}
    at, settings = pairs.place(speclib.Pair(pair.target, pair.target)), pairs.Settings(tokens=24, draft_length=[1, 4])
    for kind, best in (("free", 4), ("dear", 1)):
        monkeypatch.setattr(
            pairs.latency,
            "round_costs",
            lambda target, draft, n, context, turns, kind=kind: {"plain": 1.0, "draft": prices[kind](n), "check": 1.0},
        )
        found = pairs.advised({"eager": at}, Sampling(0), ["some text", "other words"], settings)
        assert found == {Way(pairs.MODEL, "eager", "float32"): best}


def test_a_measurement_of_a_pair_is_written_down_and_goes_on_where_it_stopped(pair, monkeypatch, tmp_path, capsys):
    """The command as it is called, on a tiny pair: every way has its method, backend and dtype in columns, and the
    same command behind an interruption makes the same record."""
    tables, one_table = [], pairs.one_table

    def interrupted(*arguments):
        if len(tables) == 1:
            raise KeyboardInterrupt
        tables.append(arguments)
        return one_table(*arguments)

    monkeypatch.setattr(pairs.language_model, "load_pair", lambda **_: pair)
    monkeypatch.setattr(pairs, "split", lambda count, domain: (["some text", "more"], ["others"]))
    monkeypatch.setattr(pairs.latency, "round_costs", lambda *_, **__: {"plain": 1.0, "draft": 0.5, "check": 1.0})
    monkeypatch.setattr(pairs, "one_table", interrupted)
    options = ["--tokens", "8", "--temperature", "1", "0", "--backend", "eager", "fast", "--dtype", "float32"]
    command = ["bench", "pair", *options, "--draft-length", "1", "2", "--out", str(tmp_path / "x.json")]
    assert main(command) == 130 and [path.name for path in tmp_path.iterdir()] == ["x.partial.jsonl"]
    monkeypatch.setattr(pairs, "one_table", one_table)
    assert main(command) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv", "x.json", "x.png"]
    said, record = capsys.readouterr().out, json.loads((tmp_path / "x.json").read_text())
    assert "float32, code, temperature 0\n" in said and "code, greedy, over the best plain decoding" in said
    frame = pd.DataFrame(record["rows"]["data"], columns=record["rows"]["columns"])
    for table in record["tables"]:
        lines = {Way(*(row[name] for name in WAY)): row for row in table["methods"]}
        assert {way.backend for way in lines} == {"eager", "fast", pairs.THEIRS}
        assert len(lines) == 2 * 3 + 3 + 2 + experiments.assists()
        own = frame[frame["temperature"] == table["temperature"]]
        assert set(own.groupby(WAY).groups) == set(lines)
        assert set(table["guessers"][pairs.MODEL]) == {"eager", "fast"}
    assert not {"text", "widths", "accepted"} & set(frame), "figures alone"


def test_assisted_generation_is_measured_where_its_draft_forgets_refused_guesses(pair, monkeypatch, capsys):
    """By what it does: after every round the draft's cache must end where the text does."""
    from transformers.generation.candidate_generator import AssistedCandidateGenerator as Generator

    kept, update = [], Generator._update_past_and_masks

    def watched(self, ids, *arguments, **options):
        found = update(self, ids, *arguments, **options)
        if found:
            kept.append(self.assistant_kwargs["past_key_values"].get_seq_length() - ids.shape[1])
        return found

    monkeypatch.setattr(Generator, "_update_past_and_masks", watched)
    try:
        experiments.theirs(pair, Sampling(1.0), 24, assistant_tokens=5)("some text", 0)
    except RuntimeError:
        kept.append(1)
    assert len(kept) > 3 and experiments.assists() == (max(kept) < 0)
    said = {True: "", False: "without assisted generation"}
    for works in (True, False):
        monkeypatch.setattr(experiments, "assists", lambda works=works: works)
        assert list(pairs.assisted(3)) == [pairs.HF_BEST] * works
        assert said[works] in capsys.readouterr().err


def test_the_leaderboard_has_a_row_an_oracle_with_the_length_that_was_fastest(pair, monkeypatch):
    """Lengths are chosen on other prompts than those measured, and the figures are those of the trials."""
    asked = []

    def ours(target, drafter, sampling, length, tokens, rule="token"):
        def trial(prompt, seed):
            asked.append((length, prompt))
            n = length if isinstance(length, int) else length.most
            return {
                **{"tokens": 12, "target_forwards": 4, "proposed": 4 * n, "reached": 8 if n else 0, "text": [1, 2]},
                **{"alpha": 0.5 if n else None, "accepted_share": 0.5 if n else None, "widths": [1 + n] * 4},
                **{"prefill_seconds": 0.0, "draft_seconds": 0.004 * bool(n), "seconds": abs(n - 3) + 1.0},
            }

        return trial

    board = {
        "near": leaderboard.Entry(ModelDrafter(pair.draft), (1, 3, 5), 2.5),
        "far": leaderboard.Entry(ModelDrafter(pair.draft), (ConfidenceLength(0.3, 8), ConfidenceLength(0.5, 4))),
    }
    monkeypatch.setattr(experiments, "ours", ours)
    monkeypatch.setattr(leaderboard, "entries", lambda pair, costs: board)
    widths = pd.DataFrame({"width": [1, 4, 5], "ms": [10.0, 12.0, 14.0]})
    monkeypatch.setattr(experiments, "costs", lambda pair, widths_, context=0: (0.1, widths))
    monkeypatch.setattr(leaderboard, "long_enough", lambda *_: ["a", "b", "c", "d"])
    record = leaderboard.measure(pair, prompts=2, tuning=1, settings=[("code", 1.0)])
    rows = {row["method"]: row for row in json.loads(json.dumps(record))["rows"]}
    assert {name: row["length"] for name, row in rows.items()} == {
        "plain": None,
        "near": "3",
        "far": "confidence 0.5",
    }
    assert {prompt for length, prompt in asked if length == 1} == {"d"}, "what was not chosen met other prompts alone"
    near = rows["near"]
    assert near["speedup"] == 4 and near["tokens_per_round"] == 3 and near["megabytes"] == 2.5
    assert near["extra_per_token"] == pytest.approx(16 / 12 - 1, abs=1e-5) and near["cost_ratio"] == pytest.approx(
        0.4 / 12, abs=1e-5
    )
    assert near["predicted"] == pytest.approx(120 / (4 * 12 + 4), abs=1e-5) and rows["plain"]["cost_ratio"] is None


def test_growth_has_a_row_a_value_for_plain_and_speculative_decoding(pair, monkeypatch):
    monkeypatch.setattr(growth.embedded, "prompts", lambda domain: ["some text"] * 40)
    monkeypatch.setattr(growth, "rules_alone", lambda vocabulary, batch=1: {"vocabulary": vocabulary, "batch": batch})
    found = growth.measure(pair, (4,), (0, 2), (64,), texts=2, tokens=4, progress=False)
    asked = {name: [(row["value"], row["gamma"]) for row in rows] for name, rows in found.items() if name != "rules"}
    both = [(4, 0), (4, 4)]
    assert asked == {"length": both, "gamma": [(0, 0), (2, 2)], "vocabulary": [(64, 0), (64, 4)]}
    for row in found["gamma"]:
        assert set(row) == {"value", "gamma", *growth.PHASES} and row["total"] > row["target"] > 0


def test_an_oracles_times_are_told_without_the_reading_of_the_prompt(monkeypatch):
    clock = [0.0]

    def loop(target, oracle, prompt, n, tokens):
        clock[0] += 2.0 + (tokens and 12.0 / (n + 1))

    monkeypatch.setattr(experiments.time, "perf_counter", lambda: clock[0])
    rows = experiments.time_oracle(loop, None, None, [1, 2], [0, 2, 5], 12)
    assert [(row["n"], row["seconds"], row["speedup"], row["low"]) for row in rows] == [
        (0, 12.0, 1.0, 1.0),
        (2, 4.0, 3.0, 3.0),
        (5, 2.0, 6.0, 6.0),
    ]


def test_a_tie_is_the_gap_between_the_two_tokens(pair):
    ids = pair.tokenizer("some text")["input_ids"]
    logits = pair.target.context().extend(torch.tensor([[*ids, 5]]))[0, -1]
    assert pairs.tie(pair.target, "some text", [5, 7, 1], [5, 9, 2]) == pytest.approx(
        float((logits[7] - logits[9]).abs())
    )


def test_prompts_for_choosing_and_for_measuring_are_apart():
    measured, tuning = pairs.split(20)
    assert len(measured) == 20 and tuning and not set(measured) & set(tuning)
    with pytest.raises(InvalidArgument, match="at most"):
        pairs.split(10_000)


def test_machine_can_be_written_down():
    where = json.loads(json.dumps(experiments.machine()))
    assert where["cpu"] and where["threads"] >= 1 and where["torch"] == torch.__version__


def test_the_mean_of_a_round_by_hand():
    """A guess without chance is kept with its own probability, and the next one after it; a tree of one branch is a
    chain.
    """
    models = tiny_with_text(0, 2), tiny_with_text(1, 1)
    target, draft = (LanguageModel(model.model.double(), model.tokenizer) for model in models)
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    guesser = TreeDrafter(draft, (1, 1), sampled=False)
    found = experiments.round_means(target, guesser, 2, [text], [4, 6, 7], Sampling())
    for place, mean in zip([4, 6, 7], found[0], strict=True):
        guesses = guesser.start(target.context(text), Sampling(), None).propose(text[:place], 2).tokens.tolist()
        p = target.context().extend(torch.tensor([text[:place] + guesses]))[0].softmax(-1)
        first, second = (float(p[place - 1 + k, guess]) for k, guess in enumerate(guesses))
        assert mean == pytest.approx(1 + first + first * second, abs=1e-9)
    chain = experiments.round_means(target, ModelDrafter(draft), 3, [text], [4, 7], Sampling(), seed=5)
    assert chain == pytest.approx(
        experiments.round_means(target, TreeDrafter(draft, (1, 1, 1)), 3, [text], [4, 7], Sampling(), seed=5)
    )
    assert chain.shape == (1, 2) and (chain > 1).all()
