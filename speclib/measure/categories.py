"""Which text is easy: the speed of a chat model's answers by the category of the question, plainly and with guessers
that need no training; recorded without the text of a question or an answer.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from ..drafters import Drafter, FallbackDrafter, LayerSkipDrafter, LookupDrafter, NgramDrafter
from ..errors import InvalidArgument
from ..files import digest
from ..law.distributions import Sampling
from ..loop.trace import Trace
from ..model.language_model import BACKENDS, LanguageModel, load_model
from . import experiments, latency, machine, trials

PLAIN, LOOKUP, GUESSES = "plain", "lookup", 10  # a copy is free, and often long
WIDTHS = (1, 2, 3, 5, 8, 11)  # where the width curve is timed
TRIED = 32  # tokens of the trial
CONTEXT = 160  # cached tokens where widths are timed: the middle of an answer


def drafters() -> dict[str, tuple[Drafter, int]]:
    """What guesses for any model without having been taught by it, and for how many tokens, by name."""
    counts = NgramDrafter(3, probabilities="point")
    return {
        LOOKUP: (LookupDrafter(), GUESSES),
        "lookup, 3 or more": (LookupDrafter(16, 3), GUESSES),
        "n-gram": (counts, 4),
        "first layers": (LayerSkipDrafter(6), 2),
        "lookup first, else n-gram": (FallbackDrafter(LookupDrafter(16, 3), counts, most=3), GUESSES),
    }


def by_round(trace: Trace) -> dict:
    """How many tokens each forward of an answer read, what `predicted` needs, and how many guesses it kept."""
    return {"widths": [1 + len(r.drafted) for r in trace.rounds], "accepted": [r.accepted for r in trace.rounds]}


def method(target: LanguageModel, drafter: Drafter | None, sampling: Sampling, n: int, tokens: int):
    """`experiments.ours` for chat: answers end where the model ends them, after at most `tokens` tokens."""
    return experiments.ours(target, drafter, sampling, n, tokens, stop=None, keep=by_round)


def table(frame: pd.DataFrame, curve: pd.DataFrame, one: float | None = None) -> pd.DataFrame:
    """A row a method: tokens/s, speed-up over plain decoding with its interval over prompts and as `predicted`,
    acceptance, and how far its text repeats itself."""
    found = experiments.speedups(frame, PLAIN).join(experiments.acceptance(frame))
    drafting = frame[frame["method"] != PLAIN].groupby("method")
    found["predicted"] = pd.Series({name: predicted(own, curve, one) for name, own in drafting}, dtype=float)
    found["repeated_4_grams"] = frame["text"].map(experiments.repeated_share).groupby(frame["method"]).mean()
    return found


def predicted(frame: pd.DataFrame, curve: pd.DataFrame, one: float | None = None) -> float:
    """The speed-up over plain decoding that rounds of these widths allow: their tokens, each at `one` ms, over what
    forwards of such widths cost by the width `curve`, and the guesses; the prompt costs both the same.

    one: a token of plain decoding, if that runs on other forwards than the curve's. Chains of different lengths have
    no closed form, so the rounds are counted as they came.
    """
    ms = np.interp([width for row in frame["widths"] for width in row], curve["width"], curve["ms"])
    rest = 1e3 * frame["prefill_seconds"].sum()
    one = float(np.interp(1, curve["width"], curve["ms"])) if one is None else one
    return (rest + frame["tokens"].sum() * one) / (rest + ms.sum() + 1e3 * frame["draft_seconds"].sum())


def loader(name: str | Path) -> trials.Load:
    """Loads a model once per dtype; the backends share its weights."""

    @cache  # so that one way is one object
    def load(backend: str, dtype: str) -> LanguageModel:
        if backend == "eager":
            return load_model(name, dtype=dtype)
        whole = load("eager", dtype)
        return LanguageModel(whole.model, whole.tokenizer, whole.name, backend)

    return load


def measure(
    name: str | Path,
    entries: Sequence[Mapping[str, str]],
    temperatures: Sequence[float] = (0.0, 1.0),
    tokens: int = 128,
    repeats: int = 1,
    backends: Sequence[str] = BACKENDS,
    dtypes: Sequence[str] = trials.DTYPES,
    progress: bool = False,
) -> dict:
    """Speeds by category of a chat model's answers to `entries` ("category" and "prompt" each, see
    `embedded.chat_prompts`).

    At each temperature a trial on two of the prompts chooses backend and dtype for plain decoding and for lookup; all
    guessers run where lookup is fastest, and the baseline is the best plain decoding. Returns {"machine", "settings",
    "tables", "trials"}, ready for JSON: a table has a row a method, for "all" categories and for each; trials hold
    numbers alone. Raises InvalidArgument if the model has no chat template.
    """
    if tokens < 1 or repeats < 1 or not entries:
        raise InvalidArgument("categories need at least one prompt, one token and one repeat")
    load, busy = loader(name), machine.busy()
    first = load("eager", dtypes[0])
    prompts = [[first.chat(entry["prompt"])] for entry in entries]
    categories = pd.Series([entry["category"] for entry in entries])
    tables, kept = [], []
    for temperature in temperatures:
        sampling = Sampling(temperature)
        few = min(tokens, TRIED)
        kinds = {
            PLAIN: lambda model: {PLAIN: method(model, None, sampling, 0, few)},  # noqa: B023
            LOOKUP: lambda model: {LOOKUP: method(model, LookupDrafter(), sampling, GUESSES, few)},  # noqa: B023
        }
        chosen = trials.choose(load, kinds, [prompts[0], prompts[-1]], backends, dtypes, progress=progress)
        alone, guided = chosen.ways[PLAIN], chosen.ways[LOOKUP]
        model, other = load(guided.backend, guided.dtype), load(alone.backend, alone.dtype)
        curve = latency.width_curve(model, WIDTHS, CONTEXT)
        one = None if model is other else latency.width_curve(other, (1,), CONTEXT)["ms"][0]
        methods = {PLAIN: method(other, None, sampling, 0, tokens)}
        methods |= {who: method(model, drafter, sampling, n, tokens) for who, (drafter, n) in drafters().items()}
        frame = experiments.interleaved(methods, prompts, repeats, progress=progress)
        frame = frame.assign(temperature=temperature, category=frame["prompt"].map(categories))
        for category, part in [("all", frame), *frame.groupby("category", sort=False)]:
            where = {"temperature": temperature, "category": category, "prompts": part["prompt"].nunique()}
            where |= {"plain": str(alone), "guesses": str(guided)}
            tables.append({**where, "methods": _rows(table(part, curve, one).reset_index())})
        kept += _rows(frame.drop(columns="text"))
    settings = {"model": first.name, "weights": getattr(first.model.config, "gguf_sha256", None), "tokens": tokens}
    settings |= {"repeats": repeats, "prompts": digest(*(entry["prompt"] for entry in entries))}
    return {"machine": {**experiments.machine(), "busy": busy}, "settings": settings, "tables": tables, "trials": kept}


def _rows(frame: pd.DataFrame) -> list[dict]:
    return json.loads(frame.to_json(orient="records", double_precision=6))


def by_category(record: dict, column: str = "speedup") -> pd.DataFrame:
    """One figure of a record: a row a temperature and category, a column a method."""
    rows = [
        {"category": part["category"], "temperature": part["temperature"], "method": row["method"], column: row[column]}
        for part in record["tables"]
        for row in part["methods"]
    ]
    frame = pd.DataFrame(rows)
    return frame.pivot(index=["temperature", "category"], columns="method", values=column)
