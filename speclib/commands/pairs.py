"""What a pair of models brings here, beside transformers: everyone on the same prompts, with the same weights.

The baseline is plain decoding with a cache: within a table on the same backend, in the headline the best that the
machine has, over backends and dtypes. What is to be chosen (draft lengths, the settings of transformers' assisted
generation) is chosen on prompts of its own.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from .. import embedded
from ..drafters import Drafter, EagleDrafter, EnsembleDrafter, FallbackDrafter, LookupDrafter, ModelDrafter, load_eagle
from ..errors import InvalidArgument, UnsupportedModel
from ..law import theory
from ..law.distributions import Sampling
from ..measure import experiments, latency, trials
from ..measure.experiments import BY_ROUND, WAY, Method, Once, Way
from ..measure.trials import PLAIN, SPECULATIVE
from ..model import language_model
from ..model.language_model import BACKENDS, TARGET, LanguageModel, Pair

LENGTHS = (2, 3, 4, 6, 8)  # draft lengths to choose from
ASSISTANT_TOKENS = (3, 5, 8)  # the same for transformers' assisted generation, its default beside them
LOOKUP_LENGTHS = (3, 8, 15, 31)  # and for prompt lookup, ours and transformers', alone and in front of another guesser
CONTEXT = 160  # cached tokens where costs are measured: the middle of a text
MODEL, EAGLE, FIRST = "speculative", "eagle", "lookup first"
BLOCK, LOOKUP, BOTH = "speculative, block rule", "prompt lookup", "lookup and draft model"
THEIRS = "transformers"  # the backend of the following three
HF_PLAIN, HF_BEST, HF_LOOKUP = "transformers generate", "transformers assisted, best", "transformers lookup, best"
TOKENS_OF = {HF_BEST: "assistant_tokens", HF_LOOKUP: "lookup_tokens"}  # what says to transformers how many to guess
SHORT = {HF_BEST: "transformers assisted", HF_LOOKUP: "transformers lookup"}  # beside a number, which may not be best
TRIED = 64  # tokens of a trial
GUESSES = {EAGLE: (4, 8), MODEL: (4,), FIRST: (8, 15)}  # draft lengths that a trial tries
FEW = 8  # prompts on which settings are chosen by the clock


@dataclass(frozen=True)
class Settings:
    """What is asked for: two models by name, how many held-out prompts, new tokens of each and trials of a method, and
    the draft lengths and backends to choose from."""

    target: str | None = None
    draft: str | None = None
    prompts: int = 20
    tokens: int = 128
    repeats: int = 1
    draft_length: Sequence[int] = LENGTHS
    backend: Sequence[str] = BACKENDS


@dataclass(frozen=True, eq=False)
class Place:
    """A pair on one backend in one dtype, and who guesses there, by name."""

    pair: Pair
    drafters: dict[str, Drafter | None]

    def way(self, method: str, backend: str | None = None) -> Way:
        """A method here; `backend`: if it runs on another's forwards."""
        target = self.pair.target
        return Way(method, backend or target.backend, experiments.dtype_of(target))

    def method(self, name: str, sampling: Sampling, gamma: int, tokens: int) -> Method:
        """A method by name, with gamma guesses a round; of transformers' their number of tokens."""
        if name == HF_PLAIN:
            return experiments.theirs(self.pair, sampling, tokens)
        if name in TOKENS_OF:
            return experiments.theirs(self.pair, sampling, tokens, **{TOKENS_OF[name]: gamma})
        rule = "block" if name == BLOCK else "token"
        return experiments.ours(self.pair.target, self.drafters[name], sampling, gamma, tokens, rule)

    def costs(self, name: str, gamma: int, turns: int = 3) -> dict[str, float]:
        """What a round with so many guesses costs here: see `latency.round_costs`."""
        return latency.round_costs(self.pair.target, self.drafters[name], gamma, CONTEXT, turns=turns)


def place(pair: Pair) -> Place:
    """With its draft model, for the embedded target eagle, which reads its states, and what copies: alone, merged with
    the draft model's chain into a tree, or first. "First" copies where at least three tokens are repeated, however
    many; elsewhere the last of the guessers is asked, for few: where nothing repeats it is right less often.
    """
    model = ModelDrafter(pair.draft)
    found = {PLAIN: None, BLOCK: model, LOOKUP: LookupDrafter(), BOTH: EnsembleDrafter([LookupDrafter(), model])}
    found[MODEL] = last = model
    if pair.target.name == TARGET:
        found[EAGLE] = last = EagleDrafter(load_eagle())
    return Place(pair, found | {FIRST: FallbackDrafter(LookupDrafter(16, 3), last, most=4)})


def loader(target: str | Path | None = None, draft: str | Path | None = None) -> trials.Load:
    """Loads a pair as `load_pair` does, and makes a `Place` of it on each backend."""
    return trials.loader(lambda dtype: language_model.load_pair(target=target, draft=draft, dtype=dtype), place)


def places(load: trials.Load, backends: Sequence[str], dtype: str) -> dict[str, Place]:
    """The pair on each backend. Where one cannot read the architecture, that is said and the others stand alone."""
    found = {}
    for backend in backends:
        try:
            found[backend] = load(backend, dtype)
        except UnsupportedModel as error:
            if backend == "eager":
                raise
            print(f"without the {backend} backend: {error}", file=sys.stderr)
    return found or {"eager": load("eager", dtype)}


def split(count: int, domain: str = "code", tuning: int = 24) -> tuple[list[str], list[str]]:
    """(prompts to measure on, at least FEW and at most `tuning` prompts to choose settings on): held out, no prompt in
    both.
    """
    prompts = embedded.prompts(domain)
    if count > len(prompts) - FEW:
        raise InvalidArgument(
            f"there are {len(prompts)} held-out prompts of {domain}, {FEW} of them for choosing settings; ask for at "
            f"most {len(prompts) - FEW}"
        )
    return prompts[:count], prompts[count:][-tuning:]


def other_backend(found: Mapping[str, Place]) -> str:
    """The one backend on which the other rule and the other guessers are measured."""
    return "fast" if "fast" in found else list(found)[-1]


def assisted(*numbers: int | str) -> dict[str, tuple[int | str, ...]]:
    """transformers' assisted generation with these numbers of tokens to try, or nothing where it cannot be measured."""
    if experiments.assists():
        return {HF_BEST: numbers}
    print("without assisted generation: this transformers keeps refused guesses in the draft's cache", file=sys.stderr)
    return {}


def choose(found: dict[str, Place], sampling: Sampling, tuning: list[str], settings: Settings) -> dict[Way, int | str]:
    """The draft length of every way that is compared, or its number of tokens in transformers: the fastest on the
    tuning prompts."""
    here, chosen = found[other_backend(found)], advised(found, sampling, tuning, settings)
    first = next(iter(found.values()))
    lookups = [(at, FIRST) for at in found.values()] + [(here, LOOKUP), (here, BOTH)]
    tried = {at.way(name): (at, LOOKUP_LENGTHS) for at, name in lookups}
    for name, numbers in assisted("default", *ASSISTANT_TOKENS).items():
        tried[first.way(name, THEIRS)] = first, numbers
    tried[first.way(HF_LOOKUP, THEIRS)] = first, LOOKUP_LENGTHS
    for way, (at, numbers) in tried.items():
        every = {n: at.method(way.method, sampling, n, settings.tokens) for n in numbers}
        chosen[way] = experiments.fastest(every, tuning[:FEW])
    return chosen | {here.way(BLOCK): chosen[here.way(MODEL)]}


def advised(found: dict[str, Place], sampling: Sampling, tuning: list[str], settings: Settings) -> dict[Way, int]:
    """The draft length of most tokens per second of the draft model and of eagle on each backend, from the tokens that
    rounds yield on the tuning prompts and what rounds cost.

    The yield is the same on every backend, so it is counted once; to time every length on so few texts would be to
    choose by chance.
    """
    here, best = found[other_backend(found)], {}
    for name in (MODEL, EAGLE):
        if name not in here.drafters:
            continue
        counted = {str(n): here.method(name, sampling, n, settings.tokens) for n in settings.draft_length}
        frame = experiments.interleaved(counted, tuning, progress=False)
        yields = frame.groupby("method")[["tokens", "target_forwards"]].sum().eval("tokens / target_forwards")
        for at in found.values():
            cost = {n: at.costs(name, n) for n in settings.draft_length}
            rate = {n: yields[str(n)] / (ms["draft"] + ms["check"]) for n, ms in cost.items()}
            best[at.way(name)] = max(rate, key=rate.get)
    return best


def methods(
    found: dict[str, Place], sampling: Sampling, chosen: Mapping[Way, int | str], tokens: int
) -> dict[Way, Method]:
    """Everything that is compared; `chosen` as `choose` returns it."""
    first = next(iter(found.values()))
    every = {at.way(PLAIN): at.method(PLAIN, sampling, 0, tokens) for at in found.values()}
    for way, n in {first.way(HF_PLAIN, THEIRS): 0, **chosen}.items():
        every[way] = found.get(way.backend, first).method(way.method, sampling, n, tokens)
    return every


def tabulate(
    frame: pd.DataFrame, chosen: Mapping[Way, int | str], costs: Mapping[Way, Mapping[str, float]]
) -> pd.DataFrame:
    """One line per way: speed, speed-up over plain decoding on its backend with interval, acceptance, prediction, where
    the time went, repeats.

    costs: as `round_costs` returns them. predicted: what theory allows for alpha and these costs, for whole texts:
    reading the prompt is not made faster. predicted_from_rounds: the same for the tokens per round that came: theory
    takes guesses for independent, and right ones come in runs. transformers' methods are compared with plain eager
    decoding, which runs the same forwards.
    """
    phases = [f"{phase}_seconds" for phase in ("draft", "target", "prefill", "other")]
    sums = frame.groupby(WAY)[[*phases, "seconds"]].sum(min_count=1)
    alone = frame.loc[frame["method"] == PLAIN, WAY].drop_duplicates().itertuples(index=False)
    plain = {way.backend: Way(*way) for way in alone}  # in the order of the backends
    home = frame["backend"].replace(THEIRS, next(iter(plain)))
    table = pd.concat([experiments.table(own, plain[backend]) for backend, own in frame.groupby(home, sort=False)])
    table["draft_length"] = pd.Series({way: n for way, n in chosen.items() if way.backend != THEIRS})
    for way, ms in costs.items():  # none of lookup, which often proposes less: no formula says what that brings
        alpha, per_round = table.loc[way, ["alpha", "tokens_per_round"]]
        n, c, width = chosen[way], ms["draft"] / chosen[way] / ms["plain"], ms["check"] / ms["plain"]
        whole, reading = sums.loc[plain[way.backend], ["seconds", "prefill_seconds"]]
        again = sums.loc[way, "prefill_seconds"]
        gains = float(theory.speedup(alpha, n, c, width)), experiments.from_rounds(per_round, n, c, width)
        foretold = [whole / (again + (whole - reading) / gain) for gain in gains]
        table.loc[way, ["predicted", "predicted_from_rounds", "c", "width"]] = [*foretold, c, width]
    best = next(Way(FIRST, *way[1:]) for way in reversed(plain.values()))
    for way in table.index[table.index.get_level_values("backend") == THEIRS]:
        over = experiments.speedups(frame, way).loc[best, ["speedup", "low", "high"]]
        table.loc[way, ["ours_over_this", "ours_low", "ours_high"]] = over.to_list()
    table["share_of_predicted"] = table["speedup"] / table["predicted"]
    shares = sums[phases].div(sums["seconds"], axis=0)
    return table.join(shares.rename(columns=lambda name: name.replace("seconds", "share")))


def identity(target: LanguageModel, frame: pd.DataFrame, prompts: list[str]) -> pd.DataFrame:
    """Per way, for greedy texts: the share that is plain decoding's text, and the largest gap in logits where one parts
    from it.
    """
    texts = frame[frame["repeat"] == 0].pivot(index="prompt", columns=WAY, values="text")
    plain = texts[next(way for way in texts if way[0] == PLAIN)]
    rows = {}
    for way in texts:
        gaps = [tie(target, prompts[p], texts[way][p], plain[p]) for p in texts.index if texts[way][p] != plain[p]]
        rows[way] = {"same_text": 1 - len(gaps) / len(texts), "largest_gap": max(gaps, default=0.0)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(WAY)


def tie(target: LanguageModel, prompt: str, tokens: list[int], others: list[int]) -> float:
    """How far apart, in logits, the target sees the two tokens at which two texts part. Rounding explains only tiny
    gaps.
    """
    place = next(i for i, (a, b) in enumerate(zip(tokens, others, strict=True)) if a != b)
    logits = experiments.logits_after(target, [*target.tokenizer(prompt)["input_ids"], *tokens[:place]])
    return float((logits[tokens[place]] - logits[others[place]]).abs())


def one_table(
    found: dict[str, Place],
    sampling: Sampling,
    measured: list[str],
    tuning: list[str],
    settings: Settings,
    progress: bool = False,
) -> tuple[dict, pd.DataFrame]:
    """Every method on the same prompts in one interleaved run, its settings chosen on other prompts: (table, one row
    per trial). What rounds cost is timed before each prompt, briefly: the machine drifts.
    """
    chosen, timed = choose(found, sampling, tuning, settings), []
    guessing = {way: n for way, n in chosen.items() if way.method in (MODEL, EAGLE)}

    def costs() -> None:
        for way, n in guessing.items():
            timed.append(way._asdict() | found[way.backend].costs(way.method, n, turns=1))

    compared = methods(found, sampling, chosen, settings.tokens)
    frame = experiments.interleaved(compared, measured, settings.repeats, progress=progress, between=costs)
    means = pd.DataFrame(timed).groupby(WAY).mean()
    cost = {way: means.loc[way].to_dict() for way in guessing}
    block = {way: cost[way._replace(method=MODEL)] for way in chosen if way.method == BLOCK}
    lines = tabulate(frame, chosen, cost | block)
    if sampling.temperature == 0:
        lines = lines.join(identity(next(iter(found.values())).pair.target, frame, measured))
    theirs, about = {way.method: n for way, n in chosen.items()}, {}
    for way, n in guessing.items():
        about.setdefault(way.method, {})[way.backend] = {"gamma": n, "costs_ms": cost[way]}
    return {
        **{tokens: theirs.get(name) for name, tokens in TOKENS_OF.items()},
        "guessers": about,
        "methods": experiments.rows(lines.reset_index()),
    }, frame


def measure(
    settings: Settings,
    temperatures: Sequence[float],
    domains: Sequence[str],
    dtypes: Sequence[str] | None,
    once: Once = experiments.now,
    progress: bool = False,
) -> dict:
    """The whole measurement: {"machine", "settings", "tables", "rows"}; "rows" has every text's figures, as {"columns",
    "data"}, "tables" has one entry per dtype, domain and temperature: {"dtype", "domain", "temperature",
    "assistant_tokens", "lookup_tokens", "guessers", "methods"}, the last with one row per method.

    dtypes: None: those in which a short trial finds plain and speculative decoding fastest. once: keeps that choice and
    each finished table.
    """
    load = loader(settings.target, settings.draft)

    def tried() -> list[str]:
        # nothing is compiled for the trial, unless no other backend is asked for
        quick = [backend for backend in settings.backend if backend != "compiled"] or settings.backend
        every = kinds(Sampling(temperatures[0]), min(settings.tokens, TRIED))
        few = split(settings.prompts, domains[0])[1][:2]
        chosen = trials.choose(load, every, few, quick, progress=progress)
        print(chosen)
        return list(dict.fromkeys(way.dtype for way in chosen.ways.values()))

    def entry(found: dict[str, Place], where: dict) -> dict:
        texts = split(settings.prompts, where["domain"])
        table, frame = one_table(found, Sampling(where["temperature"]), *texts, settings, progress)
        return {
            "table": {**where, "date": experiments.machine()["date"], **table},
            "rows": experiments.rows(frame.drop(columns=BY_ROUND).assign(**where)),
            "memory_gb": experiments.peak_memory(),
        }

    entries = []
    for dtype in dtypes or once("dtypes", tried):
        found = places(load, settings.backend, dtype)
        pair = next(iter(found.values())).pair
        for domain, temperature in [(domain, t) for domain in domains for t in temperatures]:
            where = {"dtype": experiments.dtype_of(pair.target), "domain": domain, "temperature": temperature}
            entries.append(once(where, partial(entry, found, where)))
    about = {name: f"{model.name}, {model.size}" for name, model in (("target", pair.target), ("draft", pair.draft))}
    rows = pd.DataFrame([row for e in entries for row in e["rows"]])
    return {
        "machine": {**experiments.machine(), "memory_gb": max(e["memory_gb"] for e in entries)},
        "settings": {**vars(settings), **about},
        "tables": [e["table"] for e in entries],
        "rows": json.loads(rows.to_json(orient="split", index=False, double_precision=6)),
    }


def headline_of(record: dict, domain: str, temperature: float) -> str:
    """The fastest speculative decoding over the fastest plain one of all tables of a domain and temperature, whatever
    their backends and dtypes, in a sentence.
    """
    frame = pd.DataFrame(record["rows"]["data"], columns=record["rows"]["columns"])
    chosen = (frame["domain"] == domain) & (frame["temperature"] == temperature) & (frame["backend"] != THEIRS)
    totals = frame[chosen].groupby(WAY)[["tokens", "seconds"]].sum()
    speed, is_plain = totals["tokens"] / totals["seconds"], totals.index.get_level_values("method") == PLAIN
    plain, best = Way(*speed[is_plain].idxmax()), Way(*speed[~is_plain].idxmax())
    return f"{domain}, {setting(temperature)}, {over_best(experiments.speedups(frame[chosen], plain), plain, best)}"


def over_best(table: pd.DataFrame, plain: Way, best: Way) -> str:
    """How the best way compares with the best plain one, by a table over that."""
    alone, own = table.loc[plain], table.loc[best]
    spread = f"[{own['low']:.2f}, {own['high']:.2f}]" if own["high"] < float("inf") else "on one text"
    return (
        f"over the best plain decoding of this machine: {own['speedup']:.2f}x {spread}, "
        f"{own['tokens_per_second']:.0f} tokens/s by {best} against {alone['tokens_per_second']:.0f} by {plain}"
    )


def setting(temperature: float) -> str:
    """A temperature in words."""
    return f"T = {temperature:g}" if temperature else "greedy"


def titled(name: str, n: int) -> str:
    """A guesser with its number of guesses."""
    return f"{SHORT.get(name, name)}, {n} guesses"


def kinds(
    sampling: Sampling, tokens: int, guesses: Mapping[str, Sequence[int]] = GUESSES, theirs: bool = False
) -> dict[str, Callable[[Place], dict[str, Method]]]:
    """For `trials.choose`: plain decoding, what guesses, and on the eager backend transformers, if asked for."""

    def every(at: Place, numbers: Mapping[str, Sequence[int]]) -> dict[str, Method]:
        tried = [(name, n) for name in numbers for n in numbers[name]]
        return {titled(name, n): at.method(name, sampling, n, tokens) for name, n in tried}

    def speculative(at: Place) -> dict[str, Method]:
        return every(at, {name: numbers for name, numbers in guesses.items() if name in at.drafters})

    def transformers(at: Place) -> dict[str, Method]:
        if at.pair.target.backend != "eager":
            return {}
        alone = {HF_PLAIN: at.method(HF_PLAIN, sampling, 0, tokens)}
        return alone | every(at, assisted(*ASSISTANT_TOKENS) | {HF_LOOKUP: (8, 15)})

    found = {PLAIN: lambda at: {PLAIN: at.method(PLAIN, sampling, 0, tokens)}, SPECULATIVE: speculative}
    return found | ({"transformers": transformers} if theirs else {})


def headline(
    load: trials.Load,
    sampling: Sampling,
    measured: list[str],
    tuning: list[str],
    settings: Settings,
    dtypes: Sequence[str],
    progress: bool = False,
) -> dict:
    """The fastest plain, speculative and transformers' decoding in one interleaved run, each chosen on the tuning
    prompts, and plain decoding by the forwards that the speculative one runs: {"said", "tried", "methods", "headline"},
    for JSON.
    """
    theirs = "eager" in settings.backend
    short, whole = (kinds(sampling, n, theirs=theirs) for n in (min(settings.tokens, TRIED), settings.tokens))
    chosen = trials.choose(load, short, tuning[:2], settings.backend, dtypes, near=0.8, progress=progress)
    alone, guided = chosen.ways[PLAIN], chosen.ways[SPECULATIVE]
    same = guided._replace(method=PLAIN)
    ways = {way: kind for kind, way in chosen.ways.items()} | {same: PLAIN}
    compared = {way: whole[kind](load(way.backend, way.dtype))[way.method] for way, kind in ways.items()}
    table = experiments.table(experiments.interleaved(compared, measured, settings.repeats, progress=progress), alone)
    over_same = table["tokens_per_second"] / table.loc[same, "tokens_per_second"]
    forwards = f"over plain decoding on its own backend and in its own dtype {over_same[guided]:.2f}x"
    shown = table.rename(columns={"speedup": "over_best_plain"}).assign(over_same_forwards=over_same).reset_index()
    return {
        "said": str(chosen),
        "tried": [{**way._asdict(), "tokens_per_second": speed} for way, speed in chosen.speeds.items()],
        "methods": experiments.rows(shown),
        "headline": f"{over_best(table, alone, guided)}; {forwards}",
    }
