"""`python -m speclib bench`: what speculation brings on this machine, beside transformers, with its spread; and the
other measurements that notebooks read.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from .. import console, embedded
from ..errors import InvalidArgument
from ..files import check_folder, check_output, replacing, write_text
from ..law.distributions import Sampling
from ..measure import batches, categories, experiments, growth, hazard, latency, leaderboard, machine, published, trials
from ..measure.journal import Journal
from ..model.language_model import BACKENDS, TARGET, load_model, load_pair
from ..training.state import read_card
from . import pairs
from .options import command, count
from .pairs import headline_of

TEMPERATURES = (1.0, 0.7, 0.0)
DTYPES = (*trials.DTYPES, "float16")
SHOWN = (
    "method backend tokens_per_second speedup low high draft_length alpha accepted_share tokens_per_round c width "
    "predicted share_of_predicted predicted_from_rounds draft_share target_share other_share repeated_4_grams "
    "same_text largest_gap"
).split()
BOARD = (
    "method length alpha accepted_share tokens_per_round cost_ratio extra_per_token megabytes predicted speedup low "
    "high repeated_4_grams"
).split()
SIZED = "rows method tokens_per_second speedup low high full predicted alpha tokens_per_round guesses".split()
FOLDER = "data/results" if embedded.CHECKOUT else embedded.RESULTS
Said = list[tuple[str, pd.DataFrame | None]]  # what is printed: titles, each with its table, if there is one


def prompts(value: str) -> int | Path:
    """How many held-out prompts, or a file of others."""
    return count(value) if value.lstrip("-").isdigit() else Path(value)


def asked(args: argparse.Namespace, **more) -> pairs.Settings:
    """The options as settings."""
    return pairs.Settings(args.target, args.draft, args.prompts, args.tokens, args.repeats, **more)


def lines_of(tables: list[dict], settings: list[str]) -> pd.DataFrame:
    """A line a method of every table, with its settings."""
    return pd.concat(pd.DataFrame(t["methods"]).assign(**{name: t[name] for name in settings}) for t in tables)


def told(lines: pd.DataFrame, settings: list[str], columns: list[str] | None = None) -> Said:
    """A table of these columns (None: all) for each of the settings, which are its title."""
    found = []
    for values, part in lines.groupby(settings, sort=False):
        title = [f"temperature {v:g}" if isinstance(v, float) else str(v) for v in values]
        found.append((", ".join(title), part.filter(columns) if columns else part.drop(columns=settings)))
    return found


def pair(args: argparse.Namespace) -> tuple[dict, Said]:
    """tokens/s of plain, speculative and transformers' decoding with the same two models, interleaved, with intervals
    over prompts, in hours"""
    settings = asked(args, draft_length=args.draft_length, backend=args.backend or BACKENDS)
    where = (args.temperature or TEMPERATURES, args.domain, args.dtype)
    record = pairs.measure(settings, *where, args.once, args.progress)
    groups = ["dtype", "domain", "temperature"]
    lines = lines_of(record["tables"], groups)
    write_text(args.out.with_suffix(".csv"), lines.to_csv(index=False, lineterminator="\n"))
    with console.loading():
        from ..workbook import n12  # matplotlib is slow to import, and the measurement is over

    with replacing(args.image) as drawn:
        n12.headline(experiments.named(record)).savefig(drawn, bbox_inches="tight", dpi=90)  # data/ has a limit
    each = dict.fromkeys((table["domain"], table["temperature"]) for table in record["tables"])
    return record, told(lines, groups, SHOWN) + [(headline_of(record, *one), None) for one in each]


def headline(args: argparse.Namespace) -> tuple[dict, Said]:
    """the fastest way of each kind alone, chosen by a short trial over backends and dtypes, in minutes"""
    settings, tables, said = asked(args, backend=args.backend), [], []
    load = pairs.loader(args.target, args.draft)
    for domain, temperature in [(domain, t) for domain in args.domain for t in args.temperature]:
        texts = pairs.split(args.prompts, domain)
        table = pairs.headline(load, Sampling(temperature), *texts, settings, args.dtype, args.progress)
        tables.append({"domain": domain, "temperature": temperature, **table})
        said.append((f"{domain}, temperature {temperature:g}: {table['said']}", pd.DataFrame(table["methods"])))
        said.append((table["headline"], None))
    return {"machine": experiments.machine(), "settings": vars(settings), "tables": tables}, said


def chat(args: argparse.Namespace) -> tuple[dict, Said]:
    """a chat model's answers to the workbook's own prompts: its speed by category"""
    asked, blocks, exits = args.prompts, vars(args).get("blocks") or (), vars(args).get("exits")  # `pair` has neither
    file = asked if isinstance(asked, Path) else None
    entries = embedded.chat_prompts(file)
    most = 4 if args.quick else (not file and asked) or len(entries)
    if most < len(entries):  # of every category
        entries = [entries[k * len(entries) // most] for k in range(most)]
    often = args.temperature or (0.0, 1.0), args.tokens, args.repeats, args.backend or BACKENDS[:2]
    where = args.dtype or trials.DTYPES, args.draft, blocks, exits, args.once, args.progress
    folders = [Path(folder) for folder in (*blocks, args.draft, exits) if folder]
    cards = [read_card(folder) for folder in folders if (folder / "card.json").is_file()]
    record = categories.measure(args.target or "smollm2", entries, *often, *where)
    record["settings"]["file"] = file.name if file else "chat.jsonl"
    record["cards"] = [{key: card[key] for key in card.keys() - {"identity"}} for card in cards]
    groups = ["category", "temperature"]
    return record, told(lines_of(record["tables"], groups), groups)


def ladder(args: argparse.Namespace) -> tuple[dict, Said]:
    """every embedded draft, which notebook 05 shows"""
    record = experiments.ladder(args.prompts, args.tokens, args.dtype, args.backend, args.once, args.progress)
    return record, told(pd.DataFrame(record["summary"]), ["domain", "temperature"], SHOWN)


def board(args: argparse.Namespace) -> tuple[dict, Said]:
    """every oracle of the workbook on code, prose and edits, which notebook 09 shows"""
    few = {"tuning": 1, "settings": leaderboard.SETTINGS[:1]} if args.quick else {}
    models = load_pair(args.target, args.draft, dtype=args.dtype, backend=args.backend)
    record = leaderboard.measure(models, args.prompts, args.tokens, **few, once=args.once, progress=args.progress)
    lines = pd.DataFrame(record["rows"]).sort_values("speedup", ascending=False)
    return record, told(lines, ["domain", "temperature"], BOARD)


def sizes(args: argparse.Namespace) -> tuple[dict, Said]:
    """models of published shapes (GPT-2 to XL, Llama 1B; 7B on a GPU) with random weights"""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = ["gpt2", "distilgpt2"] if args.quick else published.SHAPES if device == "cuda" else published.ON_CPU
    record = published.measure(list(names), device, getattr(torch, args.dtype), progress=args.progress)
    said = [("times plain decoding, from the forwards measured here", published.predictions(record))]
    if {published.ARTICLE["target"], published.ARTICLE["draft"]} <= set(record["models"]):
        said += [(f"{name}: {value:.3g}", None) for name, value in published.article(record).items()]
    return record, said


def growing(args: argparse.Namespace) -> tuple[dict, Said]:
    """time per token against context length, draft length and vocabulary"""
    small = {"lengths": (16, 64), "gammas": (0, 4), "vocabularies": (4096,), "texts": 2, "tokens": 16}
    models = load_pair(dtype=args.dtype, backend="fast")
    found = growth.measure(models, **(small if args.quick else {}), progress=args.progress)
    titles = {"rules": "rules alone, without a model"}
    said = [(titles.get(name, f"ms per token against {name}"), pd.DataFrame(rows)) for name, rows in found.items()]
    return {"machine": experiments.machine(), **found}, said


def acceptance(args: argparse.Namespace) -> tuple[dict, Said]:
    """how often guesses are kept by their position in a round, which notebook 06 shows"""
    few = {"prompts": 2, "tokens": 24} if args.quick else {}
    record = hazard.measure(load_pair(backend="fast"), **few, once=args.once, progress=args.progress)
    return record, [(f"{half} recording", pd.DataFrame(record[half])) for half in hazard.HALVES]


def layouts(args: argparse.Namespace) -> tuple[dict, Said]:
    """forwards over 1 to 16 tokens with weights as they lie, laid out and as chosen here"""
    record, said = {"machine": experiments.machine(), "context": pairs.CONTEXT, "curves": {}, "over_the_better": {}}, []
    for dtype in args.dtype:
        model = load_model(args.target or TARGET, dtype=dtype)
        curves = latency.layout_curves(model, context=pairs.CONTEXT, passes=1 if args.quick else 25)
        table = curves.pivot(index="rows", columns="weights", values="ms")
        over = table["chosen"] / table[["as they lie", "laid out"]].min(axis=1)
        record["curves"][dtype] = experiments.rows(curves)
        record["over_the_better"][dtype] = {str(rows): round(ratio, 4) for rows, ratio in over.items()}
        behind = over[over > 1.05]
        share = f"within 5% of the better layout at {len(over) - len(behind)} of {len(over)} numbers of rows"
        said.append((f"{dtype}, ms of a forward", table.assign(over_the_better=over).reset_index()))
        said.append(("; ".join([share, *(f"{ratio:.2f} at {rows}" for rows, ratio in behind.items())]), None))
    return record, said


def several(args: argparse.Namespace) -> tuple[dict, Said]:
    """tokens/s against batch size, beside transformers' batched generate and a prediction"""
    texts, tokens = (8, 12) if args.quick else (256, 32) if args.identity else (32, 64)
    texts, tokens = args.prompts or texts, args.tokens or tokens
    if args.identity:
        record = batches.identity(texts, tokens=tokens, once=args.once, progress=args.progress)
        found = pd.DataFrame(record["found"])
        args.failed = bool((found["same"] < found["of"])[found["dtype"] == "float64"].any())
        found["gaps"] = [max(gaps, default=0.0) for gaps in found["gaps"]]
        return record, [("rows of a batch that are the text that each is alone", found)]
    sizes, sets = sorted(args.rows or ((1, 4) if args.quick else batches.SIZES)), 1 if args.quick else args.sets
    if sizes[-1] > texts:
        raise InvalidArgument(f"a batch of {sizes[-1]} rows needs as many texts; take --prompts {sizes[-1]}")
    record = batches.record(sizes, texts, tokens, sets, args.once, args.progress)
    return record, [("by rows", pd.DataFrame(record["table"])[SIZED])]


FILE = (
    "so many held-out prompts (default: 20), or JSON lines with category and prompt, which a chat model answers "
    "(--target, default smollm2; a --draft too, if you name one): its speed by category, written to chat.json"
)
MODELS = {"target": {}, "draft": {}}
PAIR = MODELS | {"prompts": {}, "tokens": {}, "repeats": {}, "temperature": {}, "domain": {}, "dtypes": {}}
FREE = {"default": None, "nargs": "+"}
OF_PAIR = {
    "prompts": {"type": prompts, "metavar": "N|FILE", "help": FILE},
    "temperature": FREE | {"type": float, "help": f"0 is greedy (default: {TEMPERATURES}, of a FILE 0 and 1)"},
    "draft-length": {"default": pairs.LENGTHS, "type": count, "help": "to choose from"},
    "dtypes": FREE | {"help": "(default: by a short trial those in which decoding is fastest)"},
    "backends": FREE | {"help": "(default: all, of a FILE all but compiled)"},
}
OF_CHAT = {
    "prompts": {"default": None, "help": "so many questions, of all categories (default: all)"},
    "target": {"default": "smollm2", "help": "a chat model"},
    "draft": {"help": "a draft model for it, as `train --target NAME draft` makes one"},
    "blocks": FREE | {"metavar": "DIR", "help": "parallel blocks that `train --target NAME block` made"},
    "exits": {"default": None, "metavar": "DIR", "help": "exits that `train --target NAME exits` made"},
    "temperature": {"default": (0.0, 1.0)},
    "backends": {"default": BACKENDS[:2]},
}
OF_BATCHES = {
    "rows": {"type": count, "nargs": "+", "help": f"batch sizes (default: {batches.SIZES})"},
    "prompts": {"default": None, "help": "texts in a list (default: 32; with --identity 256)"},
    "tokens": {"default": None, "help": "new tokens of each text (default: 64; with --identity 32)"},
    "sets": {"default": 5, "type": count, "help": "lists of texts"},
    "identity": {"default": False, "help": "compare each row of a batch of 16 with the text alone instead"},
}
# what measures, with its own options; its record has its name, but for that of `pair`, which is bench
MEASUREMENTS: dict[str, tuple[Callable[[argparse.Namespace], tuple[dict, Said]], dict[str, dict]]] = {
    "pair": (pair, PAIR | OF_PAIR),
    "headline": (headline, PAIR | {"temperature": {"default": (1.0, 0.0)}, "backends": {}}),
    "chat": (chat, OF_CHAT | {"tokens": {}, "repeats": {}, "dtypes": {}}),
    "ladder": (ladder, {"prompts": {}, "tokens": {}, "dtype": {}, "backend": {"default": "eager"}}),
    "leaderboard": (
        board,
        MODELS | {"prompts": {"default": 8}, "tokens": {"default": 64}, "dtype": {}, "backend": {}},
    ),
    "published": (sizes, {"dtype": {"default": "float32", "choices": DTYPES, "help": "of the weights"}}),
    "growth": (growing, {"dtype": {}}),
    "hazard": (acceptance, {}),
    "layouts": (layouts, {"target": {}, "dtypes": {}}),
    "batches": (several, OF_BATCHES),
}


def add_parser(subparsers) -> None:
    """Adds `bench` and its measurements to the subcommands of python -m speclib."""
    about = {
        "help": "measure the speed-up on this machine, beside transformers, and more",
        "description": "Measures, prints, and writes a record. Within a table each method's speed-up is over plain "
        "decoding with a cache on the same backend; the headline is over the best plain decoding of the machine.",
        "epilog": "Begin with `python -m speclib bench headline`, which takes minutes, or `bench pair --quick`. "
        "Interrupted, the same command goes on where it stopped (pair, chat, ladder, leaderboard, hazard, batches).",
    }
    parser = command(subparsers, "bench", lambda args: print(parser.format_help()) or 0, {}, **about)
    measurements = parser.add_subparsers(metavar="MEASUREMENT")
    last = {"threads": {}, "quick": {}, "out": {"type": Path, "help": f"JSON to write (default: one in {FOLDER})"}}
    for name, (measure, options) in MEASUREMENTS.items():
        what = " ".join(measure.__doc__.split())
        one = command(measurements, name, run, options | last, help=what, description=f"Measures {what}.")
        one.set_defaults(measure=measure, record="bench" if name == "pair" else name, failed=False)


def run(args: argparse.Namespace) -> int:
    """Measures, prints, writes; returns the exit code. Raises SpeclibError for settings that cannot work."""
    if args.threads:
        torch.set_num_threads(args.threads)
    for name, few in (("tokens", 24), ("prompts", 2)):
        if args.quick and isinstance(value := getattr(args, name, None), int):
            setattr(args, name, min(value, few))
    if isinstance(getattr(args, "prompts", None), Path):
        args.measure, args.record = chat, "chat"
    if getattr(args, "identity", False):
        args.record = "batches_identity"
    own = args.out
    args.out = own or embedded.RESULTS / f"{args.record}.json"
    args.image = own.with_suffix(".png") if own else args.out.with_name("headline.png")
    if own:
        for path, endings in ((own, (".json",)), (own.with_suffix(".csv"), ()), (args.image, ())):
            check_output(path, endings)
    else:
        check_folder(args.out.parent)
        if not embedded.CHECKOUT:
            print(f"installed package, no checkout: results go to {args.out.parent.resolve()}", file=sys.stderr)
    settings = {name: value for name, value in vars(args).items() if name not in ("run", "measure", "out", "image")}
    journal = Journal(args.out.with_suffix(".partial.jsonl"), settings)
    args.once, args.progress = journal.once, sys.stderr.isatty()
    if busy := machine.busy():
        print(busy, file=sys.stderr)
        journal.found["busy"] = busy
    record, said = args.measure(args)
    if "machine" in record:  # whether others ran at a start, of several if it was interrupted, or do now
        record["machine"]["busy"] = journal.found.get("busy") or machine.busy()
    write_text(args.out, json.dumps(record) + "\n")  # before anything is printed: a closed pipe may end that
    journal.path.unlink(missing_ok=True)
    for title, table in said:
        print(f"\n{title}")
        if table is not None:
            print(table.to_string(index=False, na_rep="", float_format="{:.3g}".format))
    print(f"\nwritten: {args.out}")
    return int(args.failed)
