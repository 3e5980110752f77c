"""`python -m speclib bench`: what speculation brings on this machine, beside transformers, with its spread.

Same weights, same prompts, the same number of tokens for everyone; methods take turns; the baseline is plain decoding
with a cache: within a table on the same backend, in the headline the best that the machine has, over backends, dtypes
and layouts. What is to be chosen (draft lengths, the settings of transformers' assisted generation) is chosen on
prompts of its own.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pandas as pd
import pooch
import torch

from .. import console, embedded
from ..drafters import Drafter, EagleDrafter, EnsembleDrafter, FallbackDrafter, LookupDrafter, ModelDrafter, load_eagle
from ..errors import InvalidArgument, UnsupportedModel
from ..files import check_folder, check_output, code_version, differing, reading, replacing, write_text
from ..law import theory
from ..law.distributions import Sampling
from ..loop.decoding import generate
from ..measure import categories, experiments, growth, latency, leaderboard, machine, published, trials
from ..model.language_model import BACKENDS, TARGET, LanguageModel, Pair, load_model, load_pair

TEMPERATURES = (1.0, 0.7, 0.0)
LENGTHS = (2, 3, 4, 6, 8)  # draft lengths to choose from
ASSISTANT_TOKENS = (3, 5, 8)  # the same for transformers' assisted generation, its default beside them
LOOKUP_LENGTHS = (3, 8, 15, 31)  # and for prompt lookup, ours and transformers', alone and in front of another guesser
CONTEXT = 160  # cached tokens where costs are measured: the middle of a text of the bench
PLAIN, MODEL, EAGLE, FIRST = "plain", "speculative", "eagle", "lookup first"
BLOCK, LOOKUP, BOTH = "speculative, block rule", "prompt lookup", "lookup and draft model"
TRIED = 64  # tokens of a trial
GUESSES = {EAGLE: (4, 8), MODEL: (4,), FIRST: (8, 15)}  # draft lengths that the trial for the headline tries
FEW = 8  # prompts on which settings are chosen by the clock
HF_PLAIN, HF_BEST, HF_LOOKUP = "transformers generate", "transformers assisted, best", "transformers lookup, best"
SHOWN = (
    *(
        "method",
        "tokens_per_second",
        "speedup",
        "low",
        "high",
        "draft_length",
        "alpha",
        "accepted_share",
        "tokens_per_round",
        "c",
        "width",
    ),
    *(
        "predicted",
        "share_of_predicted",
        "predicted_from_rounds",
        "draft_share",
        "target_share",
        "other_share",
        "repeated_4_grams",
        "same_text",
    ),
)


def add_parser(subparsers) -> None:
    """Adds `bench` to the subcommands of python -m speclib."""
    folder = "data/results" if embedded.CHECKOUT else embedded.RESULTS
    parser = subparsers.add_parser(
        "bench",
        help=f"measure the speed-up on this machine, beside transformers, and write it to {folder}/",
        description="Tokens/s of plain, speculative and transformers' decoding with the same two models, "
        "interleaved, with 95%% intervals over prompts. "
        "Within a table each method's speed-up is over plain decoding with a cache on the same backend; the headline "
        "is over the best plain decoding "
        "of the machine. Interrupt it at any time: the same command goes on with the next table.",
    )
    parser.add_argument("--target", help="an embedded name, a folder, or a hub name (default: the embedded target)")
    parser.add_argument("--draft", help="the same for the draft (default: the embedded draft)")
    parser.add_argument("--prompts", type=int, default=20, help="held-out prompts (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens per prompt (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=1, help="times each prompt is decoded by each method (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        nargs="+",
        metavar="T",
        help=f"0 is greedy (default: {TEMPERATURES}; of the headline 1 and 0)",
    )
    parser.add_argument(
        "--domain", nargs="+", default=["code"], help="which held-out prompts: code, prose (default: %(default)s)"
    )
    parser.add_argument(
        "--draft-length",
        type=int,
        nargs="+",
        default=list(LENGTHS),
        metavar="N",
        help="draft lengths to choose from (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        help="float32, bfloat16, float16 (default: those in which a short trial finds plain and speculative decoding "
        "fastest; elsewhere what suits the device)",
    )
    parser.add_argument(
        "--backend", nargs="+", choices=BACKENDS, help="(default: all; of the ladder eager, of the leaderboard fast)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument(
        "--quick", action="store_true", help="a few short texts, to see that it works: no figures to quote"
    )
    parser.add_argument(
        "--headline",
        action="store_true",
        help="the fastest way of each kind alone, chosen by a short trial over backends and dtypes: minutes instead "
        "of hours",
    )
    parser.add_argument(
        "--layouts",
        action="store_true",
        help="time forwards over 1 to 16 tokens with weights as they lie, laid out and as chosen here, instead",
    )
    parser.add_argument(
        "--ladder", action="store_true", help="measure every embedded draft instead: what notebook 05 shows"
    )
    parser.add_argument(
        "--drafters",
        choices=["all"],
        help="every oracle of the workbook on code, prose and edits instead: the leaderboard of notebook 09",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="time models of published shapes (GPT-2 to XL, Llama 1B; 7B on a GPU) with random weights instead",
    )
    parser.add_argument(
        "--chat",
        nargs="?",
        const="",
        metavar="FILE",
        help="a chat model (--target, default smollm2) on JSON lines with category and prompt instead, its speed by "
        "category (default: the workbook's own prompts)",
    )
    parser.add_argument(
        "--growth",
        action="store_true",
        help="time per token against context length, draft length and vocabulary instead",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the JSON file to write; table and figure go beside it (default: bench.json, headline.json, "
        "layouts.json, ladder.json, leaderboard.json, "
        f"published.json, growth.json or chat.json in {folder})",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes; returns the exit code. Raises SpeclibError for settings that cannot work."""
    if min(args.prompts, args.tokens, args.repeats, *args.draft_length) < 1:
        raise InvalidArgument("--prompts, --tokens, --repeats and --draft-length must be at least 1")
    if args.threads is not None:
        if args.threads < 1:
            raise InvalidArgument(f"--threads must be at least 1, not {args.threads}")
        torch.set_num_threads(args.threads)
    if args.quick:
        args.prompts, args.tokens = min(args.prompts, 2), min(args.tokens, 24)
    names = ("headline", "layouts", "ladder", "published", "growth")
    chosen = next((name for name in names if getattr(args, name)), "leaderboard" if args.drafters else "bench")
    chosen = chosen if args.chat is None else "chat"
    out = args.out or embedded.RESULTS / f"{chosen}.json"
    image = out.with_suffix(".png") if args.out else out.with_name("headline.png")
    if args.out:
        check_output(out, (".json",))
        for beside in (out.with_suffix(".csv"), image):
            check_output(beside)
    else:
        check_folder(out.parent)
        if not embedded.CHECKOUT:
            print(f"installed package, no checkout: results go to {out.parent.resolve()}", file=sys.stderr)
    if told := machine.busy():
        print(told, file=sys.stderr)
    dtype = args.dtype[0] if args.dtype else None
    if args.published:
        return run_published(out, "gpt2 distilgpt2".split() if args.quick else None, dtype)
    if args.headline:
        return run_headline(out, args)
    if args.layouts:
        return run_layouts(out, args.target, args.dtype or trials.DTYPES, 1 if args.quick else 25)
    if args.drafters:
        return run_leaderboard(out, args)
    if args.chat is not None:
        return run_chat(out, args)
    if args.growth:
        return run_growth(out, args.quick, dtype)
    if args.ladder:
        record = experiments.ladder(
            prompts=args.prompts,
            tokens=args.tokens,
            dtype=dtype,
            backend=(args.backend or ["eager"])[0],
            progress=sys.stderr.isatty(),
        )
        table = pd.DataFrame(record["summary"])
    else:
        args.backend, args.temperature = args.backend or list(BACKENDS), args.temperature or list(TEMPERATURES)
        partial = out.with_suffix(".partial.json")
        record = measure(args, partial)
        table = flat(record)
    write_text(out, json.dumps(record) + "\n")  # before anything is printed: a closed pipe may end that
    if not args.ladder:
        write_text(out.with_suffix(".csv"), table.to_csv(index=False, lineterminator="\n"))
        with console.loading():
            from ..workbook import n05  # matplotlib is slow to import, and the measurement is over

        with replacing(image) as drawn:
            n05.headline(record).savefig(drawn, bbox_inches="tight", dpi=90)  # data/ has a limit
        partial.unlink()
    groups = [name for name in ("dtype", "domain", "temperature") if name in table]
    for key, part in table.groupby(groups, sort=False):
        print("\n" + ", ".join(f"{name} {value}" for name, value in zip(groups, key, strict=True)))
        print(
            part[[name for name in SHOWN if name in part]].to_string(
                index=False, na_rep="", float_format="{:.3g}".format
            )
        )
    if not args.ladder:
        print("\n" + "\n".join(findings(record)))
    print(f"\nwritten: {out}")
    return 0


def run_published(out: Path, names: Sequence[str] | None, dtype: str | None) -> int:
    """Times the published shapes, prints predictions for pairs whose acceptance is known, and writes the record."""
    on_gpu = torch.cuda.is_available()
    names = names or (tuple(published.SHAPES) if on_gpu else published.ON_CPU)
    record = published.measure(
        names, "cuda" if on_gpu else "cpu", getattr(torch, dtype or "float32"), progress=sys.stderr.isatty()
    )
    write_text(out, json.dumps(record, indent=1) + "\n")
    print(published.predictions(record).to_string(index=False, float_format="{:.3g}".format))
    if {published.ARTICLE["target"], published.ARTICLE["draft"]} <= set(record["models"]):
        print("\n" + "\n".join(f"{name}: {value:.3g}" for name, value in published.article(record).items()))
    print(f"\nwritten: {out}")
    return 0


def run_leaderboard(out: Path, args: argparse.Namespace) -> int:
    """Measures every oracle on the last backend named, prints the tables, and writes the record."""
    pair = load_pair(
        args.target, args.draft, dtype=args.dtype[0] if args.dtype else None, backend=(args.backend or ["fast"])[-1]
    )
    few = {"prompts": 1, "tuning": 1, "tokens": args.tokens, "settings": leaderboard.SETTINGS[:1]} if args.quick else {}
    record = leaderboard.measure(pair, **few, progress=sys.stderr.isatty())
    write_text(out, json.dumps(record) + "\n")
    for (domain, temperature), part in pd.DataFrame(record["rows"]).groupby(["domain", "temperature"], sort=False):
        columns = [
            "method",
            "length",
            "alpha",
            "accepted_share",
            "tokens_per_round",
            "cost_ratio",
            "extra_per_token",
            "megabytes",
            "predicted",
            "speedup",
            "low",
            "high",
            "repeated_4_grams",
        ]
        print(
            f"\n{domain}, temperature {temperature:g}\n"
            + part.sort_values("speedup", ascending=False)[columns].to_string(
                index=False, na_rep="", float_format="{:.3g}".format
            )
        )
    print(f"\nwritten: {out}")
    return 0


def run_chat(out: Path, args: argparse.Namespace) -> int:
    """Measures a chat model's answers by category, prints a table of each temperature, and writes the record, which
    holds no text."""
    entries = embedded.chat_prompts(args.chat or None)
    record = categories.measure(
        args.target or "smollm2",
        entries[:: max(1, len(entries) // 4)] if args.quick else entries,
        args.temperature or (0.0, 1.0),
        args.tokens,
        args.repeats,
        args.backend or BACKENDS[:2],
        args.dtype or trials.DTYPES,
        progress=sys.stderr.isatty(),
    )
    record["settings"]["file"] = Path(args.chat).name if args.chat else "chat.jsonl"
    write_text(out, json.dumps(record) + "\n")
    for part in record["tables"]:
        print(f"\n{part['category']}, temperature {part['temperature']:g}; {part['plain']}, guesses {part['guesses']}")
        print(pd.DataFrame(part["methods"]).to_string(index=False, na_rep="", float_format="{:.3g}".format))
    print(f"\nwritten: {out}")
    return 0


def run_growth(out: Path, quick: bool, dtype: str | None) -> int:
    """Times the embedded pair's tokens as text, drafts and vocabulary grow, on the fast backend, and writes the
    record.
    """
    small = {"lengths": (16, 64), "gammas": (0, 4), "vocabularies": (4096,), "texts": 2, "tokens": 16} if quick else {}
    found = growth.measure(load_pair(dtype=dtype, backend="fast"), **small, progress=sys.stderr.isatty())
    write_text(out, json.dumps({"machine": experiments.machine(), **found}, indent=1) + "\n")
    for name, rows in found.items():
        title = "rules alone, without a model" if name == "rules" else f"ms per token against {name}"
        print(f"\n{title}\n" + pd.DataFrame(rows).round(3).to_string(index=False))
    print(f"\nwritten: {out}")
    return 0


def run_headline(out: Path, args: argparse.Namespace) -> int:
    """Measures the headline, prints it, and writes the record."""
    few = {"tried": min(args.tokens, TRIED), "progress": sys.stderr.isatty()}
    tables = []
    for domain in args.domain:
        measured, tuning = split(args.prompts, domain)
        for temperature in args.temperature or (1.0, 0.0):
            load = trials.loader(args.target, args.draft)
            table = headline(
                load,
                Sampling(temperature),
                measured,
                tuning[:2],
                args.tokens,
                args.repeats,
                args.backend or BACKENDS,
                args.dtype or trials.DTYPES,
                **few,
            )
            tables.append({"domain": domain, "temperature": temperature, **table})
            print(
                f"\n{domain}, temperature {temperature:g}: {table['said']}\n"
                + pd.DataFrame(table["methods"]).to_string(index=False, na_rep="", float_format="{:.3g}".format)
            )
            print(table["headline"])
    settings = {key: getattr(args, key) for key in ("target", "draft", "prompts", "tokens", "repeats")}
    write_text(
        out, json.dumps({"machine": experiments.machine(), "settings": settings, "tables": tables}, indent=1) + "\n"
    )
    print(f"\nwritten: {out}")
    return 0


def headline(
    load: trials.Load,
    sampling: Sampling,
    measured: list[str],
    tuning: list[str],
    tokens: int,
    repeats: int,
    backends: Sequence[str],
    dtypes: Sequence[str],
    tried: int,
    progress: bool,
) -> dict:
    """The fastest plain, speculative and transformers' decoding in one interleaved run, each chosen on the tuning
    prompts, and plain decoding by the forwards that the speculative one runs: {"said", "tried", "methods", "headline"},
    for JSON.
    """

    def kinds(tokens: int) -> dict:
        def speculative(pair: Pair) -> dict[str, experiments.Method]:
            found = guessers(pair)
            found = found | {FIRST: FallbackDrafter(LookupDrafter(16, 3), list(found.values())[-1], most=4)}
            return {
                f"{name}, {n} guesses": experiments.ours(pair.target, d, sampling, n, tokens)
                for name, d in found.items()
                for n in GUESSES[name]
            }

        def theirs(pair: Pair) -> dict[str, experiments.Method]:
            if pair.target.backend != "eager":
                return {}
            options = {HF_PLAIN: {}} | {
                f"transformers assisted, {k} guesses": {"assistant_tokens": k} for k in ASSISTANT_TOKENS
            }
            options |= {f"transformers lookup, {k} guesses": {"lookup_tokens": k} for k in LOOKUP_LENGTHS[1:3]}
            return {name: experiments.theirs(pair, sampling, tokens, **own) for name, own in options.items()}

        found = {
            trials.PLAIN: lambda pair: {PLAIN: experiments.ours(pair.target, None, sampling, 0, tokens)},
            trials.SPECULATIVE: speculative,
        }
        return found | ({"transformers": theirs} if "eager" in backends else {})

    chosen = trials.choose(load, kinds(tried), tuning, backends, dtypes, near=0.8, progress=progress)
    alone, guided = chosen.ways[trials.PLAIN], chosen.ways[trials.SPECULATIVE]
    ways = {**chosen.ways, "plain on the same backend": trials.Way(PLAIN, guided.backend, guided.dtype)}
    compared = {}
    for kind, way in ways.items():
        compared[str(way)] = kinds(tokens)[trials.PLAIN if way.method == PLAIN else kind](load(way.backend, way.dtype))[
            way.method
        ]
    frame = experiments.interleaved(compared, measured, repeats, progress=progress)
    table = (
        experiments.speedups(frame, str(alone))
        .join(experiments.acceptance(frame))
        .rename(columns={"speedup": "over_best_plain"})
    )
    table["over_same_forwards"] = (
        table["tokens_per_second"] / table["tokens_per_second"][str(ways["plain on the same backend"])]
    )
    table["repeated_4_grams"] = frame["text"].map(experiments.repeated_share).groupby(frame["method"]).mean()
    best = table.loc[str(guided)]
    return {
        "said": str(chosen),
        "tried": {str(way): speed for way, speed in chosen.speeds.items()},
        "methods": _plain(table.reset_index()),
        "headline": f"over the best plain decoding of this machine: {best['over_best_plain']:.2f}x "
        f"[{best['low']:.2f}, {best['high']:.2f}], "
        f"{best['tokens_per_second']:.0f} tokens/s by {guided} against {table['tokens_per_second'][str(alone)]:.0f} "
        f"by {alone}; "
        f"over plain decoding on its own backend and in its own dtype {best['over_same_forwards']:.2f}x",
    }


def run_layouts(out: Path, target: str | None, dtypes: Sequence[str], passes: int) -> int:
    """Times forwards by the layout of their weights, says where the chosen one is more than 5% behind the better of the
    two, and writes the record."""
    record = {"machine": experiments.machine(), "context": CONTEXT, "curves": {}, "over_the_better": {}}
    for dtype in dtypes:
        curves = latency.layout_curves(load_model(target or TARGET, dtype=dtype), context=CONTEXT, passes=passes)
        table = curves.pivot(index="rows", columns="weights", values="ms")
        over = table["chosen"] / table[["as they lie", "laid out"]].min(axis=1)
        record["curves"][dtype], record["over_the_better"][dtype] = (
            _plain(curves),
            {str(rows): round(ratio, 4) for rows, ratio in over.items()},
        )
        behind = over[over > 1.05]
        print(f"\n{dtype}, ms of a forward\n" + table.assign(over_the_better=over).round(2).to_string())
        print(
            f"within 5% of the better layout at {len(over) - len(behind)} of {len(over)} numbers of rows"
            + "".join(f"; {ratio:.2f} at {rows}" for rows, ratio in behind.items())
        )
    write_text(out, json.dumps(record, indent=1) + "\n")
    print(f"\nwritten: {out}")
    return 0


def measure(args: argparse.Namespace, partial: Path) -> dict:
    """The whole measurement: {"machine", "settings", "tables", "rows"}; "rows" has every text's figures, as {"columns",
    "data"}, "tables" has one entry per dtype, domain and temperature: {"dtype", "domain", "temperature",
    "assistant_tokens", "lookup_tokens", "guessers", "methods"}, the last with one row per method. Each finished table
    is kept in `partial`, with what it belongs to (settings, threads, machine, versions, code, weights in folders), and
    an interrupted run of the same goes on behind it. Raises FileError for a `partial` that is damaged.
    """
    progress = sys.stderr.isatty()
    settings = {
        key: getattr(args, key)
        for key in ("target", "draft", "prompts", "tokens", "repeats", "draft_length", "backend")
    }
    here = {name: value for name, value in experiments.machine().items() if name != "date"}
    files = [str(file) for name in (args.target, args.draft) if name for file in Path(name).glob("*.safetensors")]
    weights = {file: pooch.file_hash(file) for file in sorted(files)}
    identity = json.loads(json.dumps({**settings, **here, "weights": weights, "code": code_version()}))
    record = {"identity": identity, "tables": [], "rows": [], "memory_gb": 0.0}
    if partial.exists():
        remedy = "delete it to start afresh"
        with reading(partial, remedy):
            kept = json.loads(partial.read_text("utf-8"))
            if kept.get("identity") == identity:
                record = {key: kept[key] for key in record}
            else:
                other = differing(kept.get("identity"), identity)
                print(f"{partial} is of another measurement (other {other}): starting afresh", file=sys.stderr)
    finished = {(table["dtype"], table["domain"], table["temperature"]) for table in record["tables"]}
    if args.dtype is None and "dtypes" not in record:
        record["dtypes"] = fastest_dtypes(args, progress)
    for dtype in args.dtype or record["dtypes"]:
        pairs = load(args.target, args.draft, dtype, args.backend)
        pair = next(iter(pairs.values()))
        name = str(pair.target.dtype).removeprefix("torch.")
        for domain in args.domain:
            measured, tuning = split(args.prompts, domain)
            for temperature in args.temperature:
                if (name, domain, temperature) not in finished:
                    table, frame = one_table(pairs, Sampling(temperature), measured, tuning, args, progress)
                    where = {"dtype": name, "domain": domain, "temperature": temperature}
                    record["tables"].append({**where, "date": experiments.machine()["date"], **table})
                    record["rows"] += _plain(frame.drop(columns="text").assign(**where))
                    # of this process, or of one that was interrupted
                    record["memory_gb"] = max(record["memory_gb"], experiments.peak_memory())
                    write_text(partial, json.dumps(record))
    about = {"target": f"{pair.target.name}, {pair.target.size}", "draft": f"{pair.draft.name}, {pair.draft.size}"}
    return {
        "machine": {**experiments.machine(), "memory_gb": record["memory_gb"]},
        "settings": {**settings, **about},
        "tables": record["tables"],
        "rows": json.loads(pd.DataFrame(record["rows"]).to_json(orient="split", index=False, double_precision=6)),
    }


def fastest_dtypes(args: argparse.Namespace, progress: bool) -> list[str]:
    """Those in which plain and speculative decoding are fastest here, by a short trial, which is printed. Nothing is
    compiled for it, unless no other backend is asked for."""
    sampling, few = Sampling(args.temperature[0]), min(args.tokens, TRIED)
    kinds = {
        trials.PLAIN: lambda pair: {PLAIN: experiments.ours(pair.target, None, sampling, 0, few)},
        trials.SPECULATIVE: lambda pair: {
            name: experiments.ours(pair.target, drafter, sampling, 4, few) for name, drafter in guessers(pair).items()
        },
    }
    backends = [backend for backend in args.backend if backend != "compiled"] or args.backend
    chosen = trials.choose(
        trials.loader(args.target, args.draft),
        kinds,
        split(args.prompts, args.domain[0])[1][:2],
        backends,
        progress=progress,
    )
    print(chosen)
    return list(dict.fromkeys(way.dtype for way in chosen.ways.values()))


def load(target: str | None, draft: str | None, dtype: str | None, backends: Sequence[str]) -> dict[str, Pair]:
    """The pair on each backend. Where one cannot read the architecture, that is said and the others stand alone."""
    pairs = {}
    for backend in backends:
        try:
            pairs[backend] = load_pair(target, draft, dtype=dtype, backend=backend)
        except UnsupportedModel as error:
            if backend == "eager":
                raise
            print(f"without the {backend} backend: {error}", file=sys.stderr)
    return pairs or {"eager": load_pair(target, draft, dtype=dtype)}


def one_table(
    pairs: dict[str, Pair],
    sampling: Sampling,
    measured: list[str],
    tuning: list[str],
    args: argparse.Namespace,
    progress: bool,
) -> tuple[dict, pd.DataFrame]:
    """Every method on the same prompts in one interleaved run, its settings chosen on other prompts: (table, one row
    per trial).
    """
    pair, greedy = next(iter(pairs.values())), sampling.temperature == 0
    chosen = choose(pairs, sampling, tuning, args.draft_length, args.tokens)
    timed = []  # what `round_costs` says before each prompt
    compared = methods(pairs, sampling, chosen, args.tokens)
    frame = experiments.interleaved(
        compared,
        measured,
        args.repeats,
        progress=progress,
        between=lambda: timed.append(round_costs(pairs, chosen["gamma"])),
    )
    costs = {
        method: {b: pd.DataFrame([once[method][b] for once in timed]).mean().to_dict() for b in pairs}
        for method in chosen["gamma"]
    }
    lines = tabulate(frame, chosen, costs)
    if greedy:
        lines = lines.join(identity(pair.target, frame, measured), on="method")
    about = {
        method: {b: {"gamma": chosen["gamma"][method][b], "costs_ms": own} for b, own in found.items()}
        for method, found in costs.items()
    }
    return {
        "assistant_tokens": chosen["assistant"],
        "lookup_tokens": chosen["lookup"],
        "guessers": about,
        "methods": _plain(lines),
    }, frame


@cache
def guessers(pair: Pair) -> dict[str, Drafter]:
    """The guessers whose draft lengths are chosen by what their rounds yield and cost: the draft model, and for the
    embedded target what reads its states. Made once: a program belongs to the guesser it was made for.
    """
    return {MODEL: ModelDrafter(pair.draft)} | (
        {EAGLE: EagleDrafter(load_eagle())} if pair.target.name == TARGET else {}
    )


def round_costs(pairs: dict[str, Pair], gamma: dict[str, dict[str, int]]) -> dict[str, dict[str, dict[str, float]]]:
    """By guesser and backend, what `latency.round_costs` says for the draft length chosen for them. Briefly, for it is
    asked before every prompt: the machine drifts.
    """
    return {
        method: {
            backend: latency.round_costs(pair.target, guessers(pair)[method], lengths[backend], CONTEXT, turns=1)
            for backend, pair in pairs.items()
        }
        for method, lengths in gamma.items()
    }


def flat(record: dict) -> pd.DataFrame:
    """All tables of a measurement as one, with columns for dtype, domain and temperature."""
    return pd.concat(
        [
            pd.DataFrame(t["methods"]).assign(dtype=t["dtype"], domain=t["domain"], temperature=t["temperature"])
            for t in record["tables"]
        ],
        ignore_index=True,
    )


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


def on(method: str, backend: str) -> str:
    """A method's name with its backend."""
    return f"{method} ({backend})"


def methods(pairs: dict[str, Pair], sampling: Sampling, chosen: dict, tokens: int) -> dict[str, experiments.Method]:
    """Everything that is compared, by name; `chosen` as `choose` returns it."""
    ours, theirs, found = experiments.ours, experiments.theirs, {}
    for backend, pair in pairs.items():
        found[on(PLAIN, backend)] = ours(pair.target, None, sampling, 0, tokens)
        drafters = guessers(pair)
        for method, drafter in drafters.items():
            found[on(method, backend)] = ours(pair.target, drafter, sampling, chosen["gamma"][method][backend], tokens)
        found[on(FIRST, backend)] = ours(
            pair.target, lookup_first(drafters, chosen["gamma"], backend), sampling, chosen["first"][backend], tokens
        )
        if backend == other_backend(pairs):
            found[on(BLOCK, backend)] = ours(
                pair.target, drafters[MODEL], sampling, chosen["gamma"][MODEL][backend], tokens, rule="block"
            )
            found[on(LOOKUP, backend)] = ours(pair.target, LookupDrafter(), sampling, chosen["lookup"], tokens)
            found[on(BOTH, backend)] = ours(pair.target, combined(pair), sampling, chosen["both"], tokens)
    pair = next(iter(pairs.values()))
    return found | {
        HF_PLAIN: theirs(pair, sampling, tokens),
        HF_BEST: theirs(pair, sampling, tokens, chosen["assistant"]),
        HF_LOOKUP: theirs(pair, sampling, tokens, lookup_tokens=chosen["hf_lookup"]),
    }


def choose(pairs: dict[str, Pair], sampling: Sampling, tuning: list[str], lengths: list[int], tokens: int) -> dict:
    """{"gamma": draft length by guesser and backend, "first": the same of a lookup that comes first, "assistant":
    transformers' number of assistant tokens, "lookup", "both", "hf_lookup"}, each the fastest on the tuning prompts.
    """
    few = tuning[:FEW]

    def fastest(candidates: dict[str, experiments.Method]) -> str:
        frame = experiments.interleaved(candidates, few, progress=False)
        return experiments.speedups(frame, next(iter(candidates)))["tokens_per_second"].idxmax()

    pair = next(iter(pairs.values()))
    gamma = advised(pairs, sampling, tuning, lengths, tokens)
    other = pairs[other_backend(pairs)]
    lookup, both = (
        experiments.best_draft_length(other, drafter, sampling, few, LOOKUP_LENGTHS, tokens)
        for drafter in (LookupDrafter(), combined(other))
    )
    first = {
        b: experiments.best_draft_length(p, lookup_first(guessers(p), gamma, b), sampling, few, LOOKUP_LENGTHS, tokens)
        for b, p in pairs.items()
    }
    assistant = fastest({str(k): experiments.theirs(pair, sampling, tokens, k) for k in ("default", *ASSISTANT_TOKENS)})
    hf_lookup = fastest({str(k): experiments.theirs(pair, sampling, tokens, lookup_tokens=k) for k in LOOKUP_LENGTHS})
    return {
        "gamma": gamma,
        "first": first,
        "assistant": assistant if assistant == "default" else int(assistant),
        "lookup": lookup,
        "both": both,
        "hf_lookup": int(hf_lookup),
    }


def advised(
    pairs: dict[str, Pair], sampling: Sampling, tuning: list[str], lengths: list[int], tokens: int
) -> dict[str, dict[str, int]]:
    """The draft length of most tokens per second by guesser and backend, from the tokens that rounds yield on the
    tuning prompts and what rounds cost.

    The yield is the same on every backend, so it is counted once; to time every length on so few texts would be to
    choose by chance.
    """
    counted, best = pairs[other_backend(pairs)], {}
    for method, drafter in guessers(counted).items():
        yields = {}
        for n in lengths:
            outs = [
                generate(counted.target, prompt, drafter, sampling, n, max_new_tokens=tokens, stop=[], seed=k)
                for k, prompt in enumerate(tuning)
            ]
            yields[n] = sum(len(out.tokens[0]) for out in outs) / sum(len(out.trace.rounds) for out in outs)
        costs = {
            b: {n: latency.round_costs(p.target, guessers(p)[method], n, CONTEXT) for n in lengths}
            for b, p in pairs.items()
        }
        best[method] = {
            b: max(lengths, key=lambda n: yields[n] / (own[n]["draft"] + own[n]["check"])) for b, own in costs.items()
        }
    return best


def other_backend(pairs: dict[str, Pair]) -> str:
    """The one backend on which the other rule and the other guessers are measured."""
    return "fast" if "fast" in pairs else list(pairs)[-1]


def combined(pair: Pair) -> EnsembleDrafter:
    """Prompt lookup and the draft model, their chains merged into one tree."""
    return EnsembleDrafter([LookupDrafter(), ModelDrafter(pair.draft)])


def lookup_first(found: dict[str, Drafter], gamma: dict[str, dict[str, int]], backend: str) -> FallbackDrafter:
    """Copies where at least three tokens are repeated, however many; elsewhere the last of the guessers, for as many as
    it is best asked alone, but at most four: where nothing repeats it is right less often.
    """
    method, drafter = list(found.items())[-1]
    return FallbackDrafter(LookupDrafter(16, 3), drafter, most=min(4, gamma[method][backend]))


def tabulate(frame: pd.DataFrame, chosen: dict, costs: dict[str, dict[str, dict[str, float]]]) -> pd.DataFrame:
    """One line per method: speed, speed-up over plain decoding on its backend with interval, acceptance, prediction,
    where the time went, repeats.

    costs: by guesser and backend, as `round_costs` returns them. predicted: what theory allows for alpha and these
    costs, for whole texts: reading the prompt is not made faster. predicted_from_rounds: the same for the tokens per
    round that came: theory takes guesses for independent, and right ones come in runs. transformers' methods are
    compared with plain eager decoding, which runs the same forwards.
    """
    backends, lines = list(costs[MODEL]), []
    sums = frame.groupby("method")[
        ["draft_seconds", "target_seconds", "prefill_seconds", "other_seconds", "seconds"]
    ].sum(min_count=1)
    for backend in backends:
        own = frame[
            frame["method"].str.endswith(f"({backend})")
            | (frame["method"].str.startswith("transformers") & (backend == backends[0]))
        ]
        table = experiments.speedups(own, on(PLAIN, backend)).join(experiments.acceptance(own))
        table["backend"] = [backend if name.endswith(")") else "transformers" for name in table.index]
        plain = sums.loc[on(PLAIN, backend)]
        for method, guesser in ((MODEL, MODEL), (BLOCK, MODEL), (EAGLE, EAGLE)):
            name = on(method, backend)
            if name not in table.index:
                continue
            gamma, ms, reading = (
                chosen["gamma"][guesser][backend],
                costs[guesser][backend],
                sums.loc[name, "prefill_seconds"],
            )
            c, width = ms["draft"] / gamma / ms["plain"], ms["check"] / ms["plain"]
            for column, decoding in (
                ("predicted", theory.speedup(table.loc[name, "alpha"], gamma, c, width)),
                ("predicted_from_rounds", table.loc[name, "tokens_per_round"] / (gamma * c + width)),
            ):
                table.loc[name, column] = plain["seconds"] / (
                    reading + (plain["seconds"] - plain["prefill_seconds"]) / decoding
                )
            table.loc[name, ["draft_length", "c", "width"]] = gamma, c, width
        for method, length in (
            (LOOKUP, chosen["lookup"]),
            (BOTH, chosen["both"]),
            (FIRST, chosen["first"][backend]),
        ):  # they often propose less than that, or nothing: no formula says what they bring
            if on(method, backend) in table.index:
                table.loc[on(method, backend), "draft_length"] = length
        table["share_of_predicted"] = table["speedup"] / table["predicted"]
        lines.append(table)
    table = pd.concat(lines)
    for phase in ("draft", "target", "prefill", "other"):
        table[f"{phase}_share"] = sums[f"{phase}_seconds"] / sums["seconds"]
    table["repeated_4_grams"] = frame["text"].map(experiments.repeated_share).groupby(frame["method"]).mean()
    best = on(FIRST, backends[-1])
    for other in (HF_PLAIN, HF_BEST, HF_LOOKUP):
        over = experiments.speedups(frame, other).loc[best]
        table.loc[other, ["ours_over_this", "ours_low", "ours_high"]] = over["speedup"], over["low"], over["high"]
    return table.reset_index()


def identity(target: LanguageModel, frame: pd.DataFrame, prompts: list[str]) -> pd.DataFrame:
    """Per method, for greedy texts: the share that is plain decoding's text, and the largest gap in logits where one
    parts from it.
    """
    texts = frame[frame["repeat"] == 0].pivot(index="prompt", columns="method", values="text")
    plain = texts[next(name for name in texts if name.startswith(PLAIN))]
    rows = {}
    for name in texts:
        gaps = [tie(target, prompts[p], texts[name][p], plain[p]) for p in texts.index if texts[name][p] != plain[p]]
        rows[name] = {"same_text": 1 - len(gaps) / len(texts), "largest_gap": max(gaps, default=0.0)}
    return pd.DataFrame.from_dict(rows, orient="index")


@torch.inference_mode()
def tie(target: LanguageModel, prompt: str, tokens: list[int], others: list[int]) -> float:
    """How far apart, in logits, the target sees the two tokens at which two texts part. Rounding explains only tiny
    gaps.
    """
    place = next(i for i, (a, b) in enumerate(zip(tokens, others, strict=True)) if a != b)
    text = [*target.tokenizer(prompt)["input_ids"], *tokens[:place]]
    logits = target.context().extend(torch.tensor([text], device=target.device), keep=1)[0, -1].float()
    return float((logits[tokens[place]] - logits[others[place]]).abs())


def findings(record: dict) -> list[str]:
    """What the tables come to, in sentences."""
    lines = [
        headline_of(record, domain, temperature)
        for domain, temperature in dict.fromkeys((t["domain"], t["temperature"]) for t in record["tables"])
    ]
    for table in record["tables"]:
        rows = pd.DataFrame(table["methods"]).set_index("method")
        best = max((HF_PLAIN, HF_BEST, HF_LOOKUP), key=lambda name: rows.loc[name, "tokens_per_second"])
        setting = f"T = {table['temperature']:g}" if table["temperature"] else "greedy"
        said = []
        backends = list(table["guessers"][MODEL])
        for method, backend in [(method, backend) for method in (*table["guessers"], FIRST) for backend in backends]:
            own, plain = rows.loc[on(method, backend)], rows.loc[on(PLAIN, backend)]
            rounds = own["predicted_from_rounds"]
            predicted = (
                ""
                if method == FIRST
                else f"{own['share_of_predicted']:.0%} of the {own['predicted']:.2f}x predicted, "
                f"{own['speedup'] / rounds:.0%} of the {rounds:.2f}x that its rounds allow, "
            )
            said.append(
                f"{on(method, backend)}: {own['speedup']:.2f}x [{own['low']:.2f}, {own['high']:.2f}] plain decoding "
                f"({own['tokens_per_second']:.0f} against {plain['tokens_per_second']:.0f} tokens/s), "
                f"{predicted}{own['tokens_per_second'] / rows.loc[HF_BEST, 'tokens_per_second']:.2f}x transformers' "
                f"assisted generation at its best, "
                f"{own['tokens_per_second'] / rows.loc[best, 'tokens_per_second']:.2f}x its best of all "
                f"({best.removeprefix('transformers ')})"
            )
        lines.append(
            f"{table['dtype']}, {table['domain']}, {setting}. "
            + ". ".join(said)
            + f". Repeated 4-grams in plain text: {rows.iloc[0]['repeated_4_grams']:.0%}."
        )
        if table["temperature"] == 0:
            spec = rows[rows.index.str.startswith((MODEL, EAGLE, FIRST))]
            lines.append(
                f"  greedy texts equal to plain decoding's: {spec['same_text'].min():.0%}; where they part, the two "
                f"tokens' logits differ by at most {spec['largest_gap'].max():.1e}"
            )
    where = record["machine"]
    return [
        *lines,
        f"measured on {where['gpu'] or where['cpu']}, {where['threads']} threads, torch {where['torch']}, "
        f"{where['date']}",
    ]


def headline_of(record: dict, domain: str, temperature: float) -> str:
    """The fastest speculative decoding over the fastest plain one of all tables of a domain and temperature, whatever
    their backends and dtypes, in a sentence.
    """
    frame = pd.DataFrame(record["rows"]["data"], columns=record["rows"]["columns"])
    frame = frame[
        (frame["domain"] == domain)
        & (frame["temperature"] == temperature)
        & ~frame["method"].str.startswith("transformers")
    ]
    frame = frame.assign(method=frame["method"].str.removesuffix(")") + ", " + frame["dtype"] + ")")
    totals = frame.groupby("method")[["tokens", "seconds"]].sum()
    speed, is_plain = totals["tokens"] / totals["seconds"], totals.index.str.startswith(f"{PLAIN} (")
    plain, best = speed[is_plain].idxmax(), speed[~is_plain].idxmax()
    over, setting = experiments.speedups(frame, plain).loc[best], f"T = {temperature:g}" if temperature else "greedy"
    return (
        f"{domain}, {setting}, over the best plain decoding of this machine: {over['speedup']:.2f}x "
        f"[{over['low']:.2f}, {over['high']:.2f}], "
        f"{over['tokens_per_second']:.0f} tokens/s by {best} against {speed[plain]:.0f} by {plain}"
    )


def _plain(frame: pd.DataFrame) -> list[dict]:
    """Rows for JSON: NaN becomes null."""
    return json.loads(frame.to_json(orient="records", double_precision=6))
