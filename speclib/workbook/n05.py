"""Notebook 05, speed and similarity: the ladder, the bill, the map, and the recorded measurements."""

import math
import random
from dataclasses import dataclass, field

import ipywidgets as widgets
import numpy as np

from ..law import theory
from .common import (
    ACCEPTED,
    DRAFT,
    MARKERS,
    PREDICTED,
    REJECTED,
    TARGET,
    box,
    chance,
    exercise,
    integer,
    plt,
    real,
    tight,
    two_laws,
)


def similarity_histogram(betas: dict[str, list[float]]) -> plt.Figure:
    """How often a draft is how similar to the target: sum(min(p, q)) at each position, one panel a draft, its mean
    marked.
    """
    figure, axes = plt.subplots(1, len(betas), figsize=(4 * len(betas), 3.4), sharey=True, squeeze=False)
    for axis, (name, values) in zip(axes[0], betas.items(), strict=True):
        mean = sum(values) / len(values)
        axis.hist(
            values, bins=20, range=(0, 1), weights=[1 / len(values)] * len(values), color=DRAFT, edgecolor="white"
        )
        axis.axvline(mean, color="black", linestyle="--", label=f"mean {mean:.2f}")
        axis.set(title=name, xlabel="1 - TV(p, q) at a position")
        axis.legend()
    axes[0, 0].set_ylabel("share of positions")
    return tight(figure)


def dial(points, gamma: int) -> plt.Figure:
    """Tokens per round against alpha: theory's curve, and points (columns alpha, tokens_per_round, low, high) measured
    by turning the dial.
    """
    figure, axis = plt.subplots()
    alphas = np.linspace(0, 1, 200)
    axis.plot(
        alphas, theory.expected_tokens(alphas, gamma), color=PREDICTED, label="(1 - alpha^(gamma+1)) / (1 - alpha)"
    )
    spread = [points["tokens_per_round"] - points["low"], points["high"] - points["tokens_per_round"]]
    axis.errorbar(
        points["alpha"],
        points["tokens_per_round"],
        yerr=spread,
        fmt="o",
        color=ACCEPTED,
        capsize=3,
        label="measured, 95% over prompts",
    )
    axis.set(
        xlabel="alpha",
        ylabel="tokens per round",
        title=f"The dial: similarity set by hand, gamma = {gamma}",
        ylim=(0.9, gamma + 1.3),
    )
    axis.legend(loc="upper left")
    return tight(figure)


def ladder(drafts) -> plt.Figure:
    """Speed-up against alpha, one marker a draft (columns method, alpha, speedup, low, high, c), its area in proportion
    to c.
    """
    figure, axis = plt.subplots(figsize=(9, 4.6))
    for k, row in enumerate(drafts.sort_values("alpha").itertuples()):
        colour, marker = f"C{k}", MARKERS[k % len(MARKERS)]
        axis.errorbar(
            row.alpha, row.speedup, yerr=[[row.speedup - row.low], [row.high - row.speedup]], color=colour, capsize=3
        )
        label = f"{row.method.removeprefix('draft-')}, c = {row.c:.2f}"
        mark = {"color": colour, "marker": marker, "edgecolor": "black", "zorder": 3}
        axis.scatter(row.alpha, row.speedup, 3500 * row.c, label=label, **mark)
    axis.axhline(1, color="black", linestyle=":", label="plain decoding")
    axis.set(
        xlabel="alpha",
        ylabel="speed-up over cached plain decoding",
        title="The ladder: measured, with 95% intervals over prompts (area of the mark: c)",
    )
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=10, labelspacing=1)
    return tight(figure)


def predicted_and_measured(table) -> plt.Figure:
    """Measured against predicted speed-up (columns condition, width, speedup, low, high), with the diagonal and 90% of
    it.
    """
    figure, axis = plt.subplots(figsize=(6, 5))
    for k, (condition, rows) in enumerate(table.groupby("condition", sort=False)):
        spread = [rows["speedup"] - rows["low"], rows["high"] - rows["speedup"]]
        axis.errorbar(
            rows["width"], rows["speedup"], yerr=spread, fmt=MARKERS[k], color=f"C{k}", capsize=3, label=condition
        )
    ends = [0.95 * min(table["width"].min(), table["low"].min()), 1.05 * max(table["width"].max(), table["high"].max())]
    axis.plot(ends, ends, color="black", label="measured = predicted")
    axis.plot(ends, [0.9 * end for end in ends], color="black", linestyle=":", label="90% of it")
    axis.set(
        xlabel="predicted from alpha, c and the width curve", ylabel="measured", title="Speed-up over plain decoding"
    )
    axis.legend()
    return tight(figure)


def decomposition(steps: dict[str, float], title: str) -> plt.Figure:
    """A waterfall from the ideal speed-up to the measured one. `steps`: label -> the speed-up when that is also
    counted.
    """
    figure, axis = plt.subplots(figsize=(8, 3.6))
    labels, values = list(steps), list(steps.values())
    for k, (value, before) in enumerate(zip(values, [None, *values[:-1]], strict=True)):
        whole = k in (0, len(values) - 1)
        if not whole:
            axis.bar(
                k,
                abs(value - before),
                bottom=min(value, before),
                color=REJECTED if value < before else ACCEPTED,
                hatch="//" if value < before else "..",
                edgecolor="black",
            )
        else:
            axis.bar(k, value, color=PREDICTED if k == 0 else TARGET, edgecolor="black")
        down = not whole and value < before  # a label stands at the edge that it gives the height of
        axis.text(
            k,
            value + (-0.02 if down else 0.02) * max(values),
            f"{value:.2f}x",
            ha="center",
            va="top" if down else "bottom",
        )
    axis.axhline(1, color="black", linestyle=":")
    axis.set(ylabel="speed-up", title=title, ylim=(0, 1.15 * max(values)))
    axis.set_xticks(range(len(labels)), labels, fontsize=9)
    return tight(figure)


def speed_map(
    points,
    alpha: float | None = None,
    gamma: int | None = None,
    c: float = 0.1,
    title: str = "The map of theory, best gamma",
) -> plt.Figure:
    """Theory's speed-up against alpha, with measured and published points (columns label, kind, alpha, speedup).

    Without `gamma`: curves of the best gamma for several c. With it: the curve of that gamma and c, and one point at
    `alpha`.
    """
    figure, axis = plt.subplots(figsize=(8.5, 4.8))
    grid = np.linspace(0, 0.97, 195)
    if gamma is None:
        for cost, line in ((0.0, "-"), (0.05, "--"), (0.1, "-."), (0.3, ":")):
            best = theory.speedup(grid, theory.optimal_gamma(grid, cost), cost)
            axis.plot(grid, best, linestyle=line, color=PREDICTED, label=f"theory, c = {cost:g}")
    else:
        axis.plot(grid, theory.speedup(grid, gamma, c), color=PREDICTED, label=f"theory, gamma = {gamma}, c = {c:g}")
        speed = theory.speedup(alpha, gamma, c)
        axis.plot(alpha, speed, "o", color="black", markersize=10, label=f"alpha = {alpha:g}: {speed:.2f}x")
    for (kind, rows), colour, marker in zip(
        points.groupby("kind", sort=False), (TARGET, DRAFT, ACCEPTED), "osD", strict=False
    ):
        mark = {"color": colour, "marker": marker, "edgecolor": "black", "zorder": 3}
        axis.scatter(rows["alpha"], rows["speedup"], label=kind, **mark)
    axis.axhline(1, color="black", linewidth=1)
    axis.set(xlabel="alpha", ylabel="speed-up", title=title, ylim=(0, 5), xlim=(0, 1))
    if gamma is not None:  # from 1/13 to 9.7: the point is on the page wherever the sliders stand
        axis.set_yscale("log", base=2)
        axis.set(ylim=(1 / 16, 14), yticks=(0.125, 0.25, 0.5, 1, 2, 4, 8), yticklabels="0.125 0.25 0.5 1 2 4 8".split())
    axis.legend(loc="upper left", fontsize=9)
    return tight(figure)


def speed_explorer(points) -> widgets.VBox:
    """Sliders for alpha, gamma and c over the measured and published points of `speed_map`."""
    controls = [real("alpha", 0.6, 0, 0.95, 0.05), integer("gamma", 4, 0, 12), real("c", 0.1, 0, 1, 0.05)]
    return box("speed", controls, lambda alpha, gamma, c: speed_map(points, alpha, gamma, c, "What if?"))


@exercise(
    "the area that p and q share, which is 1 - TV",
    [
        (([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]), "equal distributions accept every draft"),
        (([1.0, 0.0], [0.0, 1.0]), "what the target never says is never accepted"),
        (
            ([0.4, 0.4, 0.1, 0.1], [0.2, 0.2, 0.3, 0.3]),
            "a token is drafted with q(x) and kept with min(1, p(x)/q(x)): add up the products",
        ),
    ],
    two_laws,
)
def acceptance_probability(p, q):
    """sum(min(p, q))."""
    return sum(map(min, p, q))


def _rounds(r):
    gamma = r.randint(0, 12)  # without guesses a forward is one token wide
    return chance(r), gamma, round(r.uniform(0, 0.6), 2), round(r.uniform(1, 2), 2) if gamma else 1.0


@exercise(
    "a speed-up is tokens per round over the cost of a round",
    [
        ((0.5, 0, 0.1, 1.0), "without guesses a round is plain decoding"),
        ((1.0, 4, 0.0, 1.0), "perfect and free guesses bring gamma + 1; mind the division by 1 - alpha"),
        ((0.5, 2, 0.1, 1.05), "1.75 tokens in a round that costs 2 x 0.1 for drafts and 1.05 for the check"),
        ((0.5, 4, 0.1, 1.1), "1.9375 tokens in a round that costs 4 x 0.1 and 1.1"),
    ],
    _rounds,
)
def predicted_speedup(alpha, gamma, c, width):
    """Tokens per round over the cost of a round."""
    return float(theory.speedup(alpha, gamma, c, width))


@dataclass(repr=False)
class Machine:
    """A simulated machine, for one exercise alone: it decodes nothing, and its times are made up.

    machine(method, prompt, seed) -> (tokens, seconds). "spec" is `speedup` times as fast as "plain" on every prompt;
    each time is 2% off by chance. cold: the first run of each method takes longer; drift: how much slower each run is
    than the one before; hard: prompts differ in difficulty; stops: texts end early. Raises ValueError for another
    method.
    """

    number: int
    speedup: float
    cold: bool = False
    drift: float = 0.0
    hard: bool = False
    stops: bool = False
    done: list[str] = field(default_factory=list)  # the methods, as they ran

    def __call__(self, method: str, prompt: str, seed: int = 0) -> tuple[int, float]:
        if method not in ("plain", "spec"):
            raise ValueError(f"the methods are 'plain' and 'spec', not {method!r}")
        chance = [random.Random(f"{self.number} {of}") for of in (prompt, (method, prompt, seed), len(self.done))]
        tokens = chance[1].randint(16, 64) if self.stops else 48
        seconds = tokens * (chance[0].uniform(0.02, 0.1) if self.hard else 0.05) * chance[2].gauss(1, 0.02)
        seconds *= 1 if method == "plain" else 1 / self.speedup
        if self.cold and method not in self.done:  # two models to load, and more to compile
            seconds *= 2 if method == "plain" else 6
        seconds *= math.exp(self.drift * min(len(self.done), 1000))
        self.done.append(method)
        return tokens, seconds

    def __repr__(self) -> str:
        troubles = {"is cold at first": self.cold, "slows down": self.drift > 0, "quickens": self.drift < 0}
        troubles |= {"has easy and hard prompts": self.hard, "ends texts early": self.stops}
        said = ", ".join(name for name, met in troubles.items() if met) or "keeps its pace"
        return f"<simulated machine {self.number}: {said}>"


def _machine(r):
    hard = r.choice([True, False])
    troubles = {"cold": r.random() < 0.7, "drift": r.choice([-0.012, 0.0, 0.012]), "hard": hard, "stops": not hard}
    return Machine(r.randrange(1000), round(r.uniform(0.7, 3), 2), **troubles), list(
        "abcdefghijklmn"[: r.randint(8, 14)]
    )


_TROUBLES = [
    ({}, "nothing is in the way here: time per token of plain over that of spec"),
    (
        {"stops": True},
        "texts end early by either method, and a shorter text is no faster one: count the time per token",
    ),
    ({"cold": True}, "the first run of each method takes longer (weights to load, kernels to compile): throw it away"),
    (
        {"drift": 0.012},
        "each run is 1.2% slower than the last, as on a hot chip: what runs later looks worse; take turns",
    ),
    (
        {"drift": -0.012},
        "each run is faster than the last, as when a neighbour's work ends: what runs later looks better",
    ),
    ({"hard": True}, "some prompts take five times as long as others: run both methods on each, and on all"),
    ({"cold": True, "drift": 0.012, "hard": True}, "several of these at once"),
]


@exercise(
    "on every machine within 5%: taken warm, by turns, on the same prompts, and per token",
    [
        ((Machine(k, round(0.8 + 0.3 * k, 1), **trouble), list("abcdefgh")), why)
        for k, (trouble, why) in enumerate(_TROUBLES, 1)
    ],
    _machine,
    near=0.05,
)
def measure(run, prompts):
    """The speed-up of "spec" over "plain" that the machine was given."""
    return run.speedup


def _gains(drafts):
    return [float(theory.speedup(alpha, np.arange(1, 17), c).max()) for alpha, c in drafts]


def _drafts(r):
    """Drafts of which the more similar cost more; None unless the best wins a close race, which rules of thumb lose."""
    alphas = [round(r.uniform(0.02, 0.98), 2) for _ in range(r.randint(1, 4))]
    drafts = [(a, round(a ** r.choice([1, 2, 4]) * r.uniform(0, 0.7), 3)) for a in alphas]
    if r.random() < 0.15:  # none pays
        drafts = [(a, round(min(1.0, a + r.uniform(0.01, 0.3)), 2)) for a in alphas]
    first, second = sorted([*_gains(drafts), 1.0])[:-3:-1]
    return (drafts,) if 1.001 < first / second < 1.3 or first == 1.0 > max(_gains(drafts)) + 1e-3 else None


@exercise(
    "similarity is not speed: what counts is similarity per cost",
    [
        (([(0.6, 0.05), (0.7, 0.05)],), "at the same cost the more similar draft wins"),
        (([(0.6, 0.05), (0.7, 0.4)],), "0.7 is not worth eight times the cost"),
        (([(0.2, 0.01), (0.8, 0.1)],), "2.37x against 1.24x: a cheap draft that is rarely right brings little"),
        (([(0.9, 0.35), (0.6, 0.04)],), "1.71x against 1.99x, though alpha is so much lower"),
        (([(0.3, 0.01), (0.75, 0.35)],), "1.38x against 1.30x: nor does the difference"),
        (([(0.7, 0.0), (0.97, 0.18)],), "3.33x against 3.47x, with 16 guesses each: try every gamma up to 16"),
        (([(0.2, 0.3), (0.5, 0.6)],), "neither alpha exceeds its c: plain decoding is faster"),
    ],
    _drafts,
)
def better_draft(drafts):
    """The index of the draft of the greatest speed-up, each with the gamma that suits it best; None if none pays."""
    gains = _gains(drafts)
    return gains.index(max(gains)) if max(gains) > 1 else None
