"""Does speculation still pay when many texts are decoded at once? Measured beside transformers, and predicted.

A forward over B rows of n tokens takes T(B, n). A round of plain decoding takes T(B, 1); a round with n guesses takes
their drafting and T(B, n + 1), and yields several tokens a row. While the chip waits for memory, more tokens cost
little; a batch fills it, and then every guess is paid for. Times are milliseconds.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from .. import embedded
from ..drafters import Drafter, EagleDrafter, LookupDrafter, ModelDrafter, load_eagle
from ..errors import InvalidArgument
from ..law.distributions import Sampling
from ..loop.decoding import Output, generate
from ..model.fast import FastContext
from ..model.language_model import LanguageModel, Pair, load_pair
from . import experiments, latency
from .experiments import Once, now

SIZES = (1, 2, 4, 8, 16, 32)  # rows of a batch
PLAIN, THEIRS = "plain", "transformers generate"
NEAR = 1e-3  # logits: two favourites nearer than this are a tie, which rounding may settle either way in float32


def drafters(pair: Pair) -> dict[str, tuple[Drafter, int]]:
    """Whom the measurement compares, each with its draft length."""
    return {
        "draft model": (ModelDrafter(pair.draft), 4),
        "eagle": (EagleDrafter(load_eagle()), 4),
        "lookup": (LookupDrafter(), 8),
    }


def texts(tokenizer, count: int, first: int = 0) -> list[list[int]]:
    """Prompts of mixed length, 24 to 87 tokens, from held-out text: the same for the same numbers. [count][any]"""
    pool = [text for domain in ("code", "prose", "edit") for text in embedded.prompts(domain)]
    places = range(first, first + count)
    return [tokenizer(pool[k % len(pool)])["input_ids"][: 24 + 23 * k % 64] for k in places]


# --- the width curve over rows x tokens, and what follows from it ----------------------------------------------------


def width_grid(
    language_model: LanguageModel,
    sizes: Sequence[int] = SIZES,
    widths: Sequence[int] = latency.WIDTHS,
    context: int = 96,
    passes: int = 5,
    min_seconds: float = 0.03,
) -> pd.DataFrame:
    """Time of one forward over `rows` texts of `tokens` new tokens each: columns rows, tokens, ms, low, high.

    As `latency.width_curve`, which is its first row: each text has `context` cached tokens, all cells take turns.
    Raises ContextOverflow and InvalidArgument as there.
    """
    if min(sizes, default=0) < 1 or min(widths, default=0) < 1 or passes < 1:
        raise InvalidArgument(f"sizes, widths and passes must be whole numbers >= 1: {sizes}, {widths}, {passes}")
    texts = {rows: latency.Filled(language_model, context, max(widths), rows) for rows in sizes}
    works = {(rows, width): partial(texts[rows].read, width) for rows in sizes for width in widths}
    return latency.spread(works, passes, min_seconds, ["rows", "tokens"])


def draft_times(
    target: LanguageModel, drafter: Drafter, n: int, sizes: Sequence[int] = SIZES, tokens: int = 24
) -> dict[int, float]:
    """Time of a round's n guesses for so many rows at once, with their drawing: rows -> ms, medians over the rounds of
    a short text each, on prompts of their own."""
    found = {}
    for size in sizes:
        prompts = texts(target.tokenizer, size, 1000)
        trace = generate(target, prompts, drafter, None, n, "token", tokens, [], batch_size=size).trace
        found[size] = 1e3 * size * median(r.draft_seconds for r in trace.rounds if r.rows == size)
    return found


def time_of(grid: pd.DataFrame, rows: float, tokens: float) -> float:
    """T(rows, tokens) from a width grid, linear between the cells that were measured and level beyond them."""
    table = grid.pivot(index="rows", columns="tokens", values="ms")
    at_rows = [np.interp(tokens, table.columns, line) for line in table.to_numpy()]
    return float(np.interp(rows, table.index, at_rows))


def predicted(grid: pd.DataFrame, rows: float, tokens_per_round: float, guesses: float, draft_ms: float = 0.0) -> float:
    """Times plain decoding at the same batch: tokens_per_round T(rows, 1) / (T(rows, guesses + 1) + draft_ms).

    guesses: their mean in a round and row; rows that guess less are packed, not padded.
    """
    return tokens_per_round * time_of(grid, rows, 1) / (time_of(grid, rows, guesses + 1) + draft_ms)


def gain_ends(sizes: Sequence[float], gains: Sequence[float]) -> float | None:
    """The batch at which the gain is down to 1 for the first time, between two sizes on a line over the logarithm of
    the size; None if it is above 1 at every size. sizes ascend."""
    before = None
    for size, gain in zip(sizes, gains, strict=True):
        if gain <= 1:
            if before is None:
                return float(size)
            share = (before[1] - 1) / (before[1] - gain)
            return float(before[0] * (size / before[0]) ** share)
        before = size, gain
    return None


# --- measured --------------------------------------------------------------------------------------------------------


class Sized(NamedTuple):
    """A method with so many rows at once."""

    method: str
    rows: int


def full_rounds(out: Output) -> dict:
    """Of a batch: its rounds, and the tokens and seconds of those in which no row was missing."""
    rounds = out.trace.rounds
    full = [r for r in rounds if r.rows == max(r.rows for r in rounds)]
    tokens, seconds = sum(len(r.emitted) for r in full), sum(r.seconds for r in full)
    return {"rounds": len(rounds), "full_tokens": tokens, "full_seconds": seconds}


def measure(
    pair: Pair,
    board: Mapping[str, tuple[Drafter, int]],
    sizes: Sequence[int] = SIZES,
    count: int = 32,
    tokens: int = 64,
    sets: int = 5,
    sampling: Sampling | None = None,
    beside: bool = True,
    once: Once = now,
    progress: bool = False,
) -> pd.DataFrame:
    """Tokens/s of plain decoding, of each drafter and (beside) of transformers, at each batch size; all take turns.

    Every size decodes the same `sets` lists of `count` prompts, `tokens` new tokens each. A row a method and size:
    method, rows, tokens_per_second, speedup over plain at the same size with low and high over the lists; full: the
    same ratio in rounds without a missing row (no prompts read, no row gone); alpha, tokens_per_round, guesses a round.
    """
    sampling = Sampling() if sampling is None else sampling

    trials = {}
    for size in sizes:
        for name, (drafter, n) in {PLAIN: (None, 0), **board}.items():
            settings = {"stop": (), "batch_size": size, "more": full_rounds}
            trials[Sized(name, size)] = experiments.ours(pair.target, drafter, sampling, n, tokens, **settings)
        if beside:
            trials[Sized(THEIRS, size)] = experiments.theirs(pair, sampling, tokens, batch_size=size)
    lists = [texts(pair.tokenizer, count, k * count) for k in range(sets)]
    frame = experiments.interleaved(trials, lists, progress=progress, once=once)
    tables = []
    for size, part in frame.groupby("rows"):
        sums = part.groupby("method")[["tokens", "proposed", "rounds", "full_tokens", "full_seconds"]].sum()
        speed, rounds = sums["full_tokens"] / sums["full_seconds"], sums["rounds"].where(sums["rounds"] > 0)
        more = {"rows": size, "full": speed / speed[PLAIN], "alpha": part.groupby("method")["alpha"].mean()}
        more |= {"tokens_per_round": sums["tokens"] / rounds, "guesses": sums["proposed"] / rounds}
        tables.append(experiments.speedups(part, PLAIN).assign(**more).reset_index())
    return pd.concat(tables, ignore_index=True)


def with_predictions(
    table: pd.DataFrame, grid: pd.DataFrame, drafts: Mapping[str, Mapping[int, float]]
) -> pd.DataFrame:
    """`measure`'s table with a column predicted: from the width grid, the time of the guesses (name -> rows -> ms), and
    each drafter's tokens per round and guesses over all sizes, which depend on the texts and not on the batch."""

    def gain(row: pd.Series) -> float:
        if row["method"] not in drafts:
            return float("nan")
        same = table[table["method"] == row["method"]]
        yields, guesses = same["tokens_per_round"].mean(), same["guesses"].mean()
        return predicted(grid, row["rows"], yields, guesses, drafts[row["method"]][row["rows"]])

    return table.assign(predicted=table.apply(gain, axis=1))


# --- what the batch itself costs -------------------------------------------------------------------------------------


def outside(pair: Pair, size: int = 8, n: int = 4, tokens: int = 48) -> dict[str, float]:
    """Where the time of a round goes, as shares: in the two "models" (embedding, layers, norm, output), in "packing"
    (rows into one forward, masks and places, and its results to the rows), in "drawing" the guesses, and in the "rest"
    (verdict, bookkeeping).

    Raises InvalidArgument unless the models are of the fast backend, on a CPU: others are not timed from within.
    """
    kept, seen = [(model, model.decoder) for model in (pair.target, pair.draft)], []
    spent = {"models": 0.0, "forwards": 0.0}
    if any(decoder is None or model.device.type != "cpu" for model, decoder in kept):
        raise InvalidArgument("only forwards of the fast backend on a CPU are timed from within")

    def timed(name: str, work: Callable) -> Callable:
        def run(*arguments):
            began = time.perf_counter()
            done = work(*arguments)
            spent[name] += time.perf_counter() - began
            return done

        return run

    drafter, watch = ModelDrafter(pair.draft), lambda r: seen.append((dict(spent), r))
    settings = {"max_new_tokens": tokens, "stop": [], "batch_size": size, "watch": watch}
    of_rows = staticmethod(timed("forwards", FastContext.forward_rows))  # and the other of a row by itself
    of_one = timed("forwards", FastContext._forward)
    try:
        for model, d in kept:
            more = {name: timed("models", getattr(d, name)) for name in ("embed", "norm", "output")}
            model.decoder = replace(d, blocks=tuple(timed("models", block) for block in d.blocks), **more)
        with patch.multiple(FastContext, forward_rows=of_rows, _forward=of_one):
            generate(pair.target, texts(pair.tokenizer, size), drafter, None, n, **settings)
    finally:
        for model, d in kept:
            model.decoder = d
    rounds = [r for _, r in seen[size:]]  # the first round's clock holds what reading the prompts took
    whole = sum(r.seconds for r in rounds)
    phases = sum(r.draft_seconds + r.target_seconds for r in rounds) / whole
    models, forwards = ((seen[-1][0][name] - seen[0][0][name]) / whole for name in spent)
    return {"models": models, "packing": forwards - models, "drawing": phases - forwards, "rest": 1 - phases}


# --- records ---------------------------------------------------------------------------------------------------------


def record(
    sizes: Sequence[int] = SIZES,
    count: int = 32,
    tokens: int = 64,
    sets: int = 5,
    once: Once = now,
    progress: bool = True,
) -> dict:
    """Measures the embedded pair on the fast backend: {"machine", "settings", "grid", "drafts", "table"}, for JSON.
    About a quarter of an hour on two quiet cores."""
    pair = load_pair(backend="fast")
    board = drafters(pair)

    def timed(name: str) -> list[dict]:
        times = draft_times(pair.target, *board[name], sizes)
        return [{"method": name, "rows": rows, "ms": ms} for rows, ms in times.items()]

    grid = once("grid", lambda: experiments.rows(width_grid(pair.target, sizes)))
    drafts = [once(["draft", name], partial(timed, name)) for name in board]
    costs = {times[0]["method"]: {row["rows"]: row["ms"] for row in times} for times in drafts}
    table = measure(pair, board, sizes, count, tokens, sets, once=once, progress=progress)
    settings = {"count": count, "tokens": tokens, "sets": sets, "temperature": 1.0}
    return {
        "machine": experiments.machine(),
        "settings": {**settings, "dtype": experiments.dtype_of(pair.target)},
        "grid": grid,
        "drafts": [row for times in drafts for row in times],
        "table": experiments.rows(with_predictions(table, pd.DataFrame(grid), costs)),
    }


def identity(count: int = 256, size: int = 16, tokens: int = 32, once: Once = now, progress: bool = True) -> dict:
    """Whether every row of a batch is the text that it is alone: {"batch", "tokens", "machine", "found"}, for JSON.

    The embedded pair, `count` prompts of mixed length, four guesses a round. A row each for float64 and float32, greedy
    and drawn: same (texts), of, and gaps: where texts part, how far apart in logits the target's two favourites are
    there. In float64 all must be the same; in float32 a greedy text may part at a near tie (below NEAR). Takes minutes.
    """

    def compared(dtype: str, heat: float) -> dict:
        pair = load_pair(dtype=dtype, backend="fast")
        prompts = texts(pair.tokenizer, count)
        run = partial(generate, pair.target, prompts, ModelDrafter(pair.draft), Sampling(heat), 4)
        alone, batch = (run(max_new_tokens=tokens, stop=[], batch_size=rows).tokens for rows in (1, size))
        parted = [(p, a, b) for p, a, b in zip(prompts, alone, batch, strict=True) if not torch.equal(a, b)]
        gaps = [gap(pair.target, prompt + a[: (a != b).nonzero()[0, 0]].tolist()) for prompt, a, b in parted]
        return {"dtype": dtype, "temperature": heat, "same": count - len(gaps), "of": count, "gaps": gaps}

    cases = [(dtype, heat) for dtype in ("float64", "float32") for heat in (0.0, 1.0)]
    turns = tqdm(cases, desc="identity", disable=not progress)
    found = [once(case, partial(compared, *case)) for case in turns]
    return {"batch": size, "tokens": tokens, "machine": experiments.machine(), "found": found}


def gap(target: LanguageModel, text: list[int]) -> float:
    """How far apart, in logits, the target's two favourites to follow a text are."""
    first, second = experiments.logits_after(target, text).topk(2).values.tolist()
    return first - second
