"""Which text is easy: the speed of a chat model's answers by the category of the question, plainly, with drafters and
by transformers; recorded without the text of a question or an answer.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pandas as pd

from .. import drafters as guessers
from ..drafters.block import read_block
from ..drafters.layer_skip import read_exits
from ..errors import InvalidArgument, ModelLoadError, UnsupportedModel
from ..files import digest
from ..law.distributions import Sampling
from ..model.language_model import BACKENDS, LanguageModel, Pair, load_model, load_pair
from . import experiments, latency, trials
from .experiments import Once, Way, now, predicted, within
from .trials import PLAIN, SPECULATIVE

LOOKUP, GUESSES = "lookup", 10  # a copy is free, and often long
BOTH = "lookup first, else eagle"
# Of eagle, which costs a pass a guess: where two of five guesses pass, a third and fourth add 5% to the tokens of a
# round and two passes to its time.
EAGLE = 2
LAYERS = 6  # of the target's, which guess
EXIT = 2  # layers in front of a trained exit, which reads little more behind six of SmolLM2 (see data/README.md)
TREE = (3, 1)  # children at each level: two passes of eagle, six nodes to check
THEIRS = {"transformers": None, "transformers lookup, 3": 3, "transformers lookup, 10": 10}  # tokens of prompt lookup
WIDTHS = (1, 2, 3, 5, 8, 11, 16)  # where the width curve is timed
TRIED = 32  # tokens of the trial
CONTEXT = 160  # cached tokens where widths are timed: the middle of an answer
Board = dict[str, tuple[guessers.Drafter, int]]  # by name who guesses, and how many tokens


def drafters(target: LanguageModel, temperature: float = 0.0) -> Board:
    """What guesses for a model, and for how many tokens, by name: without having been taught by it, and eagle if one
    was, where something is left to chance as a tree, too."""
    counts = guessers.NgramDrafter(3, probabilities="point")
    found = {
        LOOKUP: (guessers.LookupDrafter(), GUESSES),
        "lookup, 3 or more": (guessers.LookupDrafter(16, 3), GUESSES),
        "n-gram": (counts, 4),
        "lookup first, else n-gram": (guessers.FallbackDrafter(guessers.LookupDrafter(16, 3), counts, most=3), GUESSES),
    }
    first = guessers.LayerSkipDrafter(LAYERS)
    with suppress(UnsupportedModel):  # none that can be left out
        if getattr(target.model.config, "num_hidden_layers", 0) > LAYERS and first.kept(target):
            found["first layers"] = first, 2
    if taught := guessers.eagle_for(target):
        eagle = guessers.EagleDrafter(taught)
        found |= {"eagle": (eagle, EAGLE), BOTH: (lookup_else(eagle), GUESSES)}
        if temperature > 0:
            found["tree of eagle"] = guessers.TreeDrafter(eagle, TREE), len(TREE)
    return found


def lookup_else(eagle: guessers.EagleDrafter) -> guessers.Drafter:
    """Lookup, and where it finds nothing eagle."""
    return guessers.FallbackDrafter(guessers.LookupDrafter(16, 3), eagle, most=EAGLE)


def usual(target: LanguageModel) -> guessers.Drafter:
    """What guesses for a chat model, for up to GUESSES tokens, unless something else is asked for: lookup, and where it
    finds nothing eagle, if one was taught by the model."""
    try:
        taught = guessers.eagle_for(target)
    except ModelLoadError:  # it cannot be had
        taught = None
    return lookup_else(guessers.EagleDrafter(taught)) if taught else guessers.LookupDrafter()


def of_folders(target: LanguageModel, blocks: Sequence[Path] = (), exits: Path | None = None) -> Board:
    """What was trained for a model and lies in folders: parallel blocks by the name of their folder, each with both
    laws it may claim, and the first layers with their exit. Raises InvalidArgument for two of one name, ModelLoadError
    for what cannot be read, IncompatibleModels for what another model taught."""
    found: Board = {}
    names = [Path(folder).name for folder in blocks]
    if names and {PLAIN, *THEIRS, "draft model", *drafters(target, 1.0)} & {*names} or len({*names}) < len(names):
        raise InvalidArgument(f"blocks are told apart by the names of their folders: rename one of {[*blocks]}")
    for folder in blocks:
        block = read_block(folder)
        for claim, more in (("marginal", ""), ("point", ", point")):
            drafter = guessers.BlockDrafter(block, claim)
            drafter.kept(target)
            found[Path(folder).name + more] = drafter, block.count
    if exits:
        first = guessers.LayerSkipDrafter(EXIT, read_exits(exits))
        first.kept(target)
        found["first layers, exit"] = first, 2
    return found


def method(target: LanguageModel, drafter: guessers.Drafter | None, sampling: Sampling, n: int, tokens: int):
    """`experiments.ours` for chat: answers end where the model ends them, after at most `tokens` tokens."""
    return experiments.ours(target, drafter, sampling, n, tokens, stop=None)


def table(frame: pd.DataFrame, curve: pd.DataFrame, baseline: str | Way = PLAIN) -> pd.DataFrame:
    """A row a method: tokens/s, speed-up over plain decoding with its interval over prompts and as `predicted`,
    acceptance, and how far its text repeats itself."""
    guessed = experiments.by_way(frame[~frame["method"].isin([PLAIN, *THEIRS])])
    plain = frame[frame["method"] == PLAIN]
    foretold = pd.Series({way: predicted(own, curve, plain) for way, own in guessed}, dtype=float)
    return experiments.table(frame, baseline).assign(predicted=foretold)


def loader(name: str | Path, draft: str | Path | None = None) -> trials.Load:
    """Loads a chat model, and a draft model if one is named (else None), once per dtype."""

    def load(dtype: str) -> Pair | LanguageModel:
        return load_pair(name, draft, dtype=dtype) if draft else load_model(name, dtype=dtype)

    return trials.loader(load, lambda found: (found.target, found.draft) if draft else (found, None))


def choose(
    load: trials.Load, sampling: Sampling, tokens: int, prompts: list, backends: Sequence[str], dtypes: Sequence[str]
) -> trials.Chosen:
    """By a trial: where plain decoding is fastest, and where the `usual` guesses make it so."""

    def kind(name: str, drafter: Callable[[LanguageModel], guessers.Drafter | None]) -> Callable:
        return lambda models: {name: method(models[0], drafter(models[0]), sampling, GUESSES, tokens)}

    kinds = {PLAIN: kind(PLAIN, lambda target: None), SPECULATIVE: kind(SPECULATIVE, usual)}
    return trials.choose(load, kinds, prompts, backends, dtypes)


def measure(
    name: str | Path,
    entries: Sequence[Mapping[str, str]],
    temperatures: Sequence[float] = (0.0, 1.0),
    tokens: int = 128,
    repeats: int = 1,
    backends: Sequence[str] = BACKENDS,
    dtypes: Sequence[str] = trials.DTYPES,
    draft: str | Path | None = None,
    blocks: Sequence[Path] = (),
    exits: Path | None = None,
    once: Once = now,
    progress: bool = False,
) -> dict:
    """Speeds by category of a chat model's answers to `entries` ("category" and "prompt" each, see
    `embedded.chat_prompts`).

    At each temperature a trial on two of the prompts chooses backend and dtype for plain decoding and for the `usual`
    guesses; all drafters run where these are fastest, among them a `draft` model, and `blocks` and `exits` in folders,
    if they are named; transformers' own `generate` and prompt lookup stand beside them, and the baseline is the best
    plain decoding. Returns {"machine", "settings", "curves", "tables", "trials"}, ready for JSON: what forwards cost by
    their width; a table with a row a method, for "all" categories and for each; trials hold numbers alone. once: keeps
    what was chosen and each trial. Raises InvalidArgument if the model has no chat template.
    """
    if tokens < 1 or repeats < 1 or not entries:
        raise InvalidArgument("categories need at least one prompt, one token and one repeat")
    load = loader(name, draft)
    first, _ = load("eager", dtypes[0])
    others = of_folders(first, blocks, exits)
    prompts = [[first.chat(entry["prompt"])] for entry in entries]
    categories = pd.Series([entry["category"] for entry in entries])
    tables, numbers, curves = [], [], []
    for temperature in temperatures:
        sampling, kept = Sampling(temperature), within(once, temperature)
        trial = partial(choose, load, sampling, min(tokens, TRIED), [prompts[0], prompts[-1]], backends, dtypes)
        ways = kept("chosen", lambda trial=trial: trial().ways)
        alone, guided = Way(*ways[PLAIN]), Way(*ways[SPECULATIVE])
        (model, small), (other, _) = load(*guided[1:]), load(*alone[1:])
        curve = kept("curve", lambda model=model: experiments.rows(latency.width_curve(model, WIDTHS, CONTEXT)))
        curves.append({"temperature": temperature, "ms": curve})
        board = drafters(model, temperature) | others
        board |= {"draft model": (guessers.ModelDrafter(small), 4)} if small else {}
        methods = {alone: method(other, None, sampling, 0, tokens)}
        for who, (drafter, n) in board.items():
            methods[guided._replace(method=who)] = method(model, drafter, sampling, n, tokens)
        for who, copied in THEIRS.items():  # in the dtype in which plain decoding is fastest
            own = experiments.theirs(Pair(other, other), sampling, tokens, lookup_tokens=copied, ends=True)
            methods[Way(who, "transformers", alone.dtype)] = own
        frame = experiments.interleaved(methods, prompts, repeats, progress=progress, once=kept)
        frame = frame.assign(temperature=temperature, category=frame["prompt"].map(categories))
        for category, part in [("all", frame), *frame.groupby("category", sort=False)]:
            where = {"temperature": temperature, "category": category, "prompts": part["prompt"].nunique()}
            tables.append({**where, "methods": experiments.rows(table(part, pd.DataFrame(curve), alone).reset_index())})
        numbers += experiments.rows(frame.drop(columns="text"))
    settings = {"model": first.name, "weights": getattr(first.model.config, "gguf_sha256", None), "tokens": tokens}
    settings |= {"repeats": repeats, "prompts": digest(*(entry["prompt"] for entry in entries))}
    found = {"curves": curves, "tables": tables, "trials": numbers}
    return {"machine": experiments.machine(), "settings": settings, **found}


def by_category(record: dict, column: str = "speedup") -> pd.DataFrame:
    """One figure of a record: a row a temperature and category, a column a method."""
    rows = [part | row for part in record["tables"] for row in part["methods"]]
    return pd.DataFrame(rows).pivot(index=["temperature", "category"], columns="method", values=column)
