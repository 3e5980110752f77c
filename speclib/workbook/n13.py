"""Notebook 13, a real model: the model or, where its package is not installed, what was recorded with it; figures and
exercises.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch

from .. import embedded
from ..drafters.eagle import REAL
from ..files import write_text
from ..measure import experiments
from ..measure.machine import busy
from ..model import gguf
from ..model.language_model import LanguageModel, load_model
from ..training.state import read_card
from .common import ACCEPTED, PREDICTED, TARGET, exercise, plt, real_model, tight

RECORD, RECORDING = "real_model", "SPECLIB_RECORD"  # data/results/real_model.json, and who writes it
CHOSEN = {"explanation": 0, "code": 9, "sums": 20, "rewriting": 27, "lists": 41}  # of the chat prompts


class Room:
    """The real model as `target`, or None and what was recorded with it.

    SPECLIB_RECORD=1 in the environment records anew: `SPECLIB_RECORD=1 python notebooks/build.py run 13`.
    """

    def __init__(self):
        self.target, self.why = real_model()
        self.made = {"machine": {**experiments.machine(), "busy": busy()}} if os.environ.get(RECORDING) else {}

    def __str__(self) -> str:
        if self.target:
            return str(self.target)
        where = experiments.recorded(RECORD)["machine"]
        times = f"a busy {where['cpu']}, so its times are no figures to quote" if where["busy"] else where["cpu"]
        return f"{self.why}: recorded outputs are shown, of {times}. It comes with: {gguf.COMMAND}"

    def either(self, name: str, make: Callable[[LanguageModel], Any]) -> Any:
        """`make(target)`, as JSON keeps it; without the model what it gave when it was recorded."""
        if self.target is None:
            return experiments.recorded(RECORD)[name]
        self.made[name] = json.loads(json.dumps(make(self.target), default=float))
        if "machine" in self.made:
            write_text(embedded.RESULTS / f"{RECORD}.json", json.dumps(self.made) + "\n")
        return self.made[name]

    def use(self, **options) -> None:
        """Loads the model in another dtype or for another backend, in place of the one that is here."""
        if self.target:
            self.target = None  # first: two do not fit into the notebook's memory
            self.target = load_model("smollm2", **options)


def entries() -> list[dict[str, str]]:
    """One of the chat prompts of each category."""
    prompts = embedded.chat_prompts()
    return [prompts[k] for k in CHOSEN.values()]


def taught() -> dict:
    """The card of the eagle that learnt from this notebook's model."""
    return read_card(embedded.fetch(f"models/{REAL}"))


def waits(rows: list[dict], weights: float, speed: float) -> plt.Figure:
    """The width curve over the time that reading the weights takes at a copy loop's speed."""
    frame, (figure, axis) = pd.DataFrame(rows), plt.subplots()
    axis.errorbar(
        frame["width"],
        frame["ms"],
        yerr=[(frame["ms"] - frame["low"]).clip(lower=0), (frame["high"] - frame["ms"]).clip(lower=0)],
        fmt="o-",
        color=TARGET,
        capsize=3,
        label="one forward, measured",
    )
    axis.axhline(1e3 * weights / speed, color="black", linestyle="--", label="its weights at the copy loop's speed")
    axis.plot(
        frame["width"],
        frame["width"] * frame["ms"].iloc[0],
        ":",
        color=PREDICTED,
        label="as many forwards of one token",
    )
    axis.set(
        xscale="log",
        xlabel="tokens that one forward reads",
        ylabel="milliseconds",
        ylim=(0, 1.15 * frame["high"].max()),
    )
    axis.set_xticks(frame["width"], frame["width"])
    axis.minorticks_off()
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)  # above: the lines go everywhere
    return tight(figure)


def by_category(table: pd.DataFrame, name: str) -> plt.Figure:
    """Bars of a figure by category (rows), a colour and hatch a method (columns; those without any figure left out)."""
    table = table.dropna(axis="columns", how="all")
    figure, axis = plt.subplots(figsize=(9, 4.6))
    bars = table.plot.bar(ax=axis, rot=0, width=0.8, color=sns.color_palette("colorblind", table.shape[1]))
    for container, hatch in zip(bars.containers, ("", "//", "..", "xx", "\\\\", "++", "oo", "--"), strict=False):
        for bar in container:
            bar.set(hatch=hatch, edgecolor="black", linewidth=0.5)
    axis.axhline(1, color="black", linestyle="--", linewidth=1)
    axis.set(xlabel="kind of question", ylabel=name)
    axis.legend(fontsize=9, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))  # above, where no bar stands
    return tight(figure)


def positions(trials: list[dict], method: str, edges: tuple[int, ...] = (0, 16, 32, 64, 128)) -> pd.DataFrame:
    """Tokens per round by the place in the answer at which a round began: a row a stretch, a column a temperature.

    trials: rows with "temperature", and by round "accepted", as `bench chat` records them.
    """
    rows = []
    for trial in trials:
        if trial["method"] == method:
            places = np.cumsum([0, *(accepted + 1 for accepted in trial["accepted"])])[:-1]
            kept = zip(places, trial["accepted"], strict=True)
            rows += [{"T": trial["temperature"], "place": p, "tokens per round": a + 1} for p, a in kept]
    frame = pd.DataFrame(rows)
    names = [f"{low} to {high - 1}" for low, high in zip(edges, edges[1:], strict=False)]
    frame["tokens of the answer before"] = pd.cut(frame["place"], edges, right=False, labels=names)
    means = frame.groupby(["tokens of the answer before", "T"], observed=True)["tokens per round"].mean()
    return means.unstack().rename(columns="T = {:g}".format)


def side_by_side(table: pd.DataFrame) -> plt.Figure:
    """Speed-ups, a row a guesser: measured as a dot with its interval, predicted as a tick."""
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(table) + 1.3))
    rows = np.arange(len(table))
    ends = [(table["speedup"] - table["low"]).clip(lower=0), (table["high"] - table["speedup"]).clip(lower=0)]
    axis.errorbar(table["speedup"], rows, xerr=ends, fmt="o", color=ACCEPTED, capsize=3, label="measured")
    axis.plot(table["predicted"], rows, "|", color=TARGET, markersize=18, markeredgewidth=3, label="predicted")
    axis.axvline(1, color="black", linestyle="--", linewidth=1)
    axis.set_yticks(rows, table.index)
    axis.invert_yaxis()
    axis.set(xlabel="times plain decoding")
    axis.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return tight(figure)


def joint(plain: list[list], speculative: list[list], names: list[str]) -> plt.Figure:
    """Two laws of the same texts side by side, each a list of (text, probability). names: what stands beside them."""
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(plain) + 1))
    places, other = np.arange(len(plain)), dict(speculative)
    chances = [chance for _, chance in plain], [other.get(text, 0) for text, _ in plain]
    looks = {"color": TARGET, "label": "plain decoding"}, {"color": ACCEPTED, "label": "speculative", "hatch": "//"}
    for shift, law, look in zip((-0.2, 0.2), chances, looks, strict=True):
        bars = axis.barh(places + shift, law, 0.4, edgecolor="black", **look)
        axis.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)  # some bars are too short to be seen
    axis.set_yticks(places, names, fontsize=10)
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set(xlabel="probability")
    axis.legend(loc="lower right")
    return tight(figure)


@torch.inference_mode()
def gap(target: LanguageModel, text: list[int]) -> float:
    """How far apart, in logits, the target's two favourites to follow a text are."""
    logits = target.context().extend(torch.tensor([text], device=target.device), keep=1)[0, -1].float()
    first, second = logits.topk(2).values.tolist()
    return first - second


def partings(target: LanguageModel, frame: pd.DataFrame, prompts: list[list[int]]) -> list[dict]:
    """Of each method how many greedy texts are plain decoding's, and the largest gap between the two favourites where
    one parts from it: rounding explains small ones only."""
    texts = frame.pivot(index="prompt", columns="method", values="text")
    rows = []
    for name in texts.columns.drop("plain"):
        gaps = []
        for k, text, other in zip(texts.index, texts[name], texts["plain"], strict=True):
            if (place := first_difference(text, other)) is not None:
                gaps.append(gap(target, prompts[k] + text[:place]))
        same = {"same text": len(texts) - len(gaps), "of": len(texts)}
        rows.append({"method": name, **same, "largest gap": max(gaps, default=0.0)})
    return rows


def first_difference(one: list[int], other: list[int]) -> int | None:
    """Where two texts part, or None; a text that goes on behind the other's end parts there."""
    if one == other:
        return None
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@exercise(
    "no plain decoding is faster, whatever the engine; a check of several tokens reads no more",
    [
        ((135e6, 2, 27e9), "0.27 GB of weights, a hundred times a second"),
        ((135e6, 4, 27e9), "float32 is twice as much to read"),
        ((1.7e9, 2, 320e9), "1.7 billion parameters on a Colab T4: 3.4 GB at 320 GB/s"),
    ],
    lambda r: (r.randint(1, 700) * 1e8, r.choice([0.5, 1, 2, 4, 8]), r.randint(1, 400) * 1e10),
)
def fastest(parameters, size, bandwidth):
    """Bytes per second over the bytes of the weights."""
    return bandwidth / (parameters * size)


PRICE = {1: 10.0, 3: 12.0, 11: 20.0}


def _rounds(r):
    price = {1: r.uniform(5, 20), 3: r.uniform(10, 25), 11: r.uniform(15, 60)}
    widths = [r.choice([1, 3, 11]) for _ in range(r.randint(1, 6))]
    return [(width, r.randint(1, width)) for width in widths], price


@exercise(
    "speed-up = tokens x plain price / what the rounds cost",
    [
        (([(1, 1)] * 4, PRICE), "rounds of one token are plain decoding"),
        (([(11, 11)], PRICE), "eleven tokens for twice the price of one"),
        (([(11, 1)], PRICE), "ten wrong guesses: one token for twice the price"),
        (([(11, 4), (3, 1), (1, 1)], PRICE), "6 tokens of 10 ms against 20 + 12 + 10 ms"),
    ],
    _rounds,
)
def speedup(rounds, price):
    """Tokens times the price of one, over the prices of the rounds."""
    return sum(tokens for _, tokens in rounds) * price[1] / sum(price[width] for width, _ in rounds)


def _two_texts(r):
    one = [r.randint(0, 3) for _ in range(r.randint(0, 7))]
    other = one[: r.randint(0, len(one))] + [r.randint(0, 3) for _ in range(r.randint(0, 2))]
    return (one, other) if r.random() < 0.7 else (one, list(one))


@exercise(
    "behind it the texts are about different things: compare no further",
    [
        (([1, 2, 3], [1, 2, 3]), "the same text"),
        (([1, 2, 3], [1, 5, 3]), "counted from 0"),
        (([1, 2], [1, 2, 3]), "one ended where the other went on"),
        (([], [4]), "an empty text parts at once"),
        (([9, 1, 1], [8, 2, 1]), "the first difference, not the last"),
    ],
    _two_texts,
)
def parting(one, other):
    """`first_difference`."""
    shared = next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return None if shared == len(one) == len(other) else shared
