"""`python -m speclib bench`: what speculation brings on this machine, beside transformers, with its spread.

Same weights, same prompts, the same number of tokens for everyone; methods take turns; the baseline is plain decoding
with a cache. What is to be chosen (draft lengths, the settings of transformers' assisted generation) is chosen on prompts of its own.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd
import torch

from . import embedded, experiments
from .distributions import Sampling
from .drafters import LookupDrafter, ModelDrafter
from .errors import InvalidArgument
from .models import LanguageModel, Pair, load_pair

RESULTS = embedded.DATA / "results"
TEMPERATURES = (1.0, 0.7, 0.0)
LENGTHS = (2, 3, 4, 5, 7)  # draft lengths to choose from
ASSISTANT_TOKENS = (3, 5, 8)  # the same for transformers' assisted generation, beside its default
LOOKUP_LENGTH = 8
PLAIN, MODEL, BLOCK, LOOKUP = "plain", "speculative", "speculative, block rule", "prompt lookup"
SHOWN = (
    *("method", "tokens_per_second", "speedup", "low", "high", "draft_length", "alpha", "accepted_share", "tokens_per_round", "c"),
    *("predicted", "share_of_predicted", "ours_over_this", "repeated_4_grams", "same_text"),
)
HF_PLAIN, HF_DEFAULT, HF_BEST, HF_LOOKUP = "transformers generate", "transformers assisted, default", "transformers assisted, best", "transformers lookup"


def add_parser(subparsers) -> None:
    """Adds `bench` to the subcommands of python -m speclib."""
    parser = subparsers.add_parser(
        "bench",
        help="measure the speed-up on this machine, beside transformers, and write it to data/results/",
        description="Tokens/s of plain, speculative and transformers' decoding with the same two models, interleaved, with 95%% bootstrap intervals over prompts.",
    )
    parser.add_argument("--target", help="an embedded name, a folder, or a hub name (default: the embedded target)")
    parser.add_argument("--draft", help="the same for the draft (default: the embedded draft)")
    parser.add_argument("--prompts", type=int, default=20, help="held-out prompts (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens per prompt (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="times each prompt is decoded by each method (default: %(default)s)")
    parser.add_argument("--draft-length", type=int, nargs="+", default=list(LENGTHS), metavar="N", help="draft lengths to choose from (default: %(default)s)")
    parser.add_argument("--dtype", help="float32, bfloat16, ... (default: what suits the device)")
    parser.add_argument("--quick", action="store_true", help="a few short texts, to see that it works: no figures to quote")
    parser.add_argument("--ladder", action="store_true", help="measure every embedded draft instead: what notebook 05 shows")
    parser.add_argument("--out", type=Path, help="the JSON file to write; table and figure go beside it (default: data/results/bench.json or ladder.json)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes; returns the exit code. Raises SpeclibError for settings that cannot work."""
    if min(args.prompts, args.tokens, args.repeats, *args.draft_length) < 1:
        raise InvalidArgument("--prompts, --tokens, --repeats and --draft-length must be at least 1")
    if args.quick:
        args.prompts, args.tokens = min(args.prompts, 2), min(args.tokens, 24)
    out = args.out or RESULTS / ("ladder.json" if args.ladder else "bench.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    if args.ladder:
        record = experiments.ladder(prompts=args.prompts, tokens=args.tokens, dtype=args.dtype, progress=sys.stderr.isatty())
        table = pd.DataFrame(record["summary"])
    else:
        record = measure(args)
        table = flat(record)
        table.to_csv(out.with_suffix(".csv"), index=False)
    out.write_text(json.dumps(record, indent=1) + "\n")
    groups = [name for name in ("domain", "temperature") if name in table]
    for key, part in table.groupby(groups, sort=False):
        print("\n" + ", ".join(f"{name} {value}" for name, value in zip(groups, key, strict=True)))
        print(part[[name for name in SHOWN if name in part]].to_string(index=False, na_rep="", float_format="{:.3g}".format))
    if not args.ladder:
        print("\n" + "\n".join(bars(table, record)))
        from . import plotting  # matplotlib is slow to import, and the measurement is over

        plotting.headline(record).savefig(out.with_name("headline.png"), bbox_inches="tight")
    print(f"\nwritten: {out}")
    return 0


def measure(args: argparse.Namespace) -> dict:
    """The whole measurement: {"machine", "settings", "tables", "rows"}; "tables" has one entry per temperature, by its label:
    {"temperature", "gamma", "assistant_tokens", "c", "widths", "methods"}, the last with one row per method, plain first."""
    pair = load_pair(args.target, args.draft, dtype=args.dtype)
    measured, tuning = split(args.prompts)
    progress = sys.stderr.isatty()
    frames, tables = [], {}
    for temperature in TEMPERATURES:
        sampling = Sampling(temperature)
        gammas, assistant = choose(pair, sampling, tuning, args.draft_length, args.tokens)
        c, widths = experiments.costs(pair, range(1, max(*gammas.values(), LOOKUP_LENGTH) + 2))
        frame = experiments.interleaved(methods(pair, sampling, gammas, assistant, args.tokens), measured, args.repeats, progress=progress)
        c_after, widths_after = experiments.costs(pair, list(widths["width"]))
        both = pd.concat([widths, widths_after]).groupby("width", as_index=False).mean()  # before and after: the machine may have drifted
        c = (c + c_after) / 2
        lines = tabulate(frame, gammas, assistant, c, both)
        if temperature == 0:
            lines = lines.join(identity(pair.target, frame, measured), on="method")
        chosen = {"temperature": temperature, "gamma": gammas[MODEL], "assistant_tokens": assistant, "c": c, "widths": _plain(both)}
        tables[f"T = {temperature:g}" if temperature else "greedy"] = {**chosen, "methods": _plain(lines)}
        frames.append(frame.assign(temperature=temperature))
    settings = {"prompts": len(measured), "tuning_prompts": len(tuning), "tokens": args.tokens, "repeats": args.repeats}
    about = {"target": repr(pair.target), "draft": repr(pair.draft), "dtype": str(pair.target.dtype).removeprefix("torch.")}
    return {"machine": experiments.machine(), "settings": {**settings, **about}, "tables": tables, "rows": _plain(pd.concat(frames).drop(columns="text"))}


def flat(record: dict) -> pd.DataFrame:
    """All tables of a measurement as one, with a column for the temperature."""
    return pd.concat([pd.DataFrame(table["methods"]).assign(temperature=table["temperature"]) for table in record["tables"].values()], ignore_index=True)


def split(count: int, tuning: int = 4) -> tuple[list[str], list[str]]:
    """(prompts to measure on, prompts to choose settings on): held-out code, no prompt in both."""
    prompts = embedded.prompts("code")
    if count > len(prompts) - tuning:
        raise InvalidArgument(f"there are {len(prompts)} held-out prompts, {tuning} of them for choosing settings; ask for at most {len(prompts) - tuning}")
    return prompts[:count], prompts[-tuning:]


def methods(pair: Pair, sampling: Sampling, gammas: dict[str, int], assistant: int | str, tokens: int) -> dict[str, experiments.Method]:
    """Everything that is compared, by name."""
    ours, drafter = experiments.ours, ModelDrafter(pair.draft)
    return {
        PLAIN: ours(pair.target, None, sampling, 0, tokens),
        MODEL: ours(pair.target, drafter, sampling, gammas[MODEL], tokens),
        BLOCK: ours(pair.target, drafter, sampling, gammas[BLOCK], tokens, rule="block"),
        LOOKUP: ours(pair.target, LookupDrafter(), sampling, gammas[LOOKUP], tokens),
        HF_PLAIN: experiments.theirs(pair, sampling, tokens),
        HF_DEFAULT: experiments.theirs(pair, sampling, tokens, "default"),
        HF_BEST: experiments.theirs(pair, sampling, tokens, assistant),
        HF_LOOKUP: experiments.theirs(pair, sampling, tokens, lookup_tokens=LOOKUP_LENGTH),
    }


def choose(pair: Pair, sampling: Sampling, tuning: list[str], lengths: list[int], tokens: int) -> tuple[dict[str, int], int | str]:
    """(draft length per method, transformers' number of assistant tokens), each the fastest on the tuning prompts."""
    gamma = experiments.best_draft_length(pair, ModelDrafter(pair.draft), sampling, tuning, lengths, tokens)
    candidates = {str(k): experiments.theirs(pair, sampling, tokens, k) for k in ("default", *ASSISTANT_TOKENS)}
    speeds = experiments.speedups(experiments.interleaved(candidates, tuning, progress=False), "default")["tokens_per_second"]
    best = speeds.idxmax()
    return {MODEL: gamma, BLOCK: gamma, LOOKUP: LOOKUP_LENGTH}, best if best == "default" else int(best)


def tabulate(frame: pd.DataFrame, gammas: dict[str, int], assistant: int | str, c: float, widths: pd.DataFrame) -> pd.DataFrame:
    """One line per method: speed, speed-up with interval, acceptance, prediction, and how much its text repeats itself."""
    table = experiments.speedups(frame, PLAIN).join(experiments.acceptance(frame))
    table["draft_length"] = pd.Series(gammas, dtype=object).combine_first(pd.Series({HF_BEST: assistant}, dtype=object)).reindex(table.index)
    table["c"] = pd.Series({MODEL: c, BLOCK: c, LOOKUP: 0.0})
    for name in (MODEL, BLOCK):
        steps = experiments.predict(table.loc[name, "alpha"], table.loc[name, "tokens_per_round"], gammas[name], c, widths)
        table.loc[name, ["predicted", "predicted_from_rounds"]] = steps["width"], steps["rounds"]
    table["share_of_predicted"] = table["speedup"] / table["predicted"]
    for other in (HF_DEFAULT, HF_BEST):
        over = experiments.speedups(frame, other).loc[MODEL]
        table.loc[other, ["ours_over_this", "ours_low", "ours_high"]] = over["speedup"], over["low"], over["high"]
    table["repeated_4_grams"] = frame["text"].map(experiments.repeated_share).groupby(frame["method"]).mean()
    return table.reset_index()


def identity(target: LanguageModel, frame: pd.DataFrame, prompts: list[str]) -> pd.DataFrame:
    """Per method, for greedy texts: the share that is plain decoding's text, and the largest gap in logits where one parts from it."""
    texts = frame[frame["repeat"] == 0].pivot(index="prompt", columns="method", values="text")
    rows = {}
    for name in texts:
        gaps = [tie(target, prompts[p], texts[name][p], texts[PLAIN][p]) for p in texts.index if texts[name][p] != texts[PLAIN][p]]
        rows[name] = {"same_text": 1 - len(gaps) / len(texts), "largest_gap": max(gaps, default=0.0)}
    return pd.DataFrame.from_dict(rows, orient="index")


@torch.inference_mode()
def tie(target: LanguageModel, prompt: str, tokens: list[int], others: list[int]) -> float:
    """How far apart, in logits, the target sees the two tokens at which two texts part. Rounding explains only tiny gaps."""
    place = next(i for i, (a, b) in enumerate(zip(tokens, others, strict=True)) if a != b)
    text = [*target.tokenizer(prompt)["input_ids"], *tokens[:place]]
    logits = target.context().extend(torch.tensor([text], device=target.device), keep=1)[0, -1].float()
    return float((logits[tokens[place]] - logits[others[place]]).abs())


def bars(table: pd.DataFrame, record: dict) -> list[str]:
    """What the figures come to, in sentences, each with the bar the project set itself."""
    lines = []
    for temperature, bar in ((0.0, 1.8), (1.0, 1.4)):
        own = table[table["temperature"] == temperature].set_index("method")
        best = own.loc[HF_BEST]
        lines += [
            f"temperature {temperature:g}: {own.loc[MODEL, 'speedup']:.2f}x plain decoding (bar: {bar}), {own.loc[MODEL, 'share_of_predicted']:.0%} of "
            f"the {own.loc[MODEL, 'predicted']:.2f}x predicted (bar: 90%), {best['ours_over_this']:.2f}x [{best['ours_low']:.2f}, {best['ours_high']:.2f}] "
            f"transformers' assisted generation at its best (bar: 1.25)"
        ]
    greedy = table[table["temperature"] == 0].set_index("method")
    lines.append(
        f"greedy texts equal to plain decoding's: {greedy.loc[MODEL, 'same_text']:.0%}; where they part, the two tokens' logits differ by at most "
        f"{greedy.loc[MODEL, 'largest_gap']:.1e}. Repeated 4-grams: {greedy.loc[PLAIN, 'repeated_4_grams']:.0%} greedy, "
        f"{table[table['temperature'] == 1].set_index('method').loc[PLAIN, 'repeated_4_grams']:.0%} at temperature 1."
    )
    where = record["machine"]
    return [*lines, f"measured on {where['gpu'] or where['cpu']}, {where['threads']} threads, {record['settings']['dtype']}, torch {where['torch']}, {where['date']}"]


def _plain(frame: pd.DataFrame) -> list[dict]:
    """Rows for JSON: NaN becomes null."""
    return json.loads(frame.to_json(orient="records"))

