"""Notebook 07, smaller, earlier, parallel: exits, heads, and the map of oracles."""

import math
from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np
import torch
from torch.utils.benchmark import Timer

from ..law import theory
from .common import ACCEPTED, DRAFT, MARKERS, TARGET, beside, box, chance, choice, exercise, plt, tight


def exits(table, chosen: int | None = None) -> plt.Figure:
    """Overlap with the target after each number of layers, as it is and through a trained exit (columns layers,
    untrained, trained).
    """
    figure, axis = plt.subplots()
    axis.plot(table["layers"], table["untrained"], "--o", color=DRAFT, label="the output matrix as it is")
    taught = table.dropna(subset="trained")
    axis.plot(taught["layers"], taught["trained"], "-s", color=ACCEPTED, label="through a trained exit")
    if chosen is not None:
        axis.axvline(chosen, color="black", linestyle=":", label=f"{chosen} layer{'s' * (chosen != 1)}")
    axis.set(xlabel="layers that the guess takes", ylabel="overlap with the target, 1 - TV", ylim=(0, 1.02))
    axis.legend()
    return tight(figure)


@torch.inference_mode()
def heads_price(heads, head, state, embedding) -> float:
    """Milliseconds in which all parallel heads make their guesses behind one position (state and embedding: [d])."""
    given = {"heads": heads, "head": head, "h": state, "e": embedding}
    timer = Timer("head(heads(h, e)).softmax(-1)", globals=given, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=0.2).median


def fan(laws: list[dict[str, float]], truth: list[str]) -> plt.Figure:
    """What each parallel head expects: a panel a head, its likeliest tokens as bars; the token that came is hatched and
    named.
    """
    figure, axes = plt.subplots(1, len(laws), figsize=(2.7 * len(laws), 2.8), sharex=True, squeeze=False)
    for k, (axis, law, came) in enumerate(zip(axes[0], laws, truth, strict=True), 1):
        for token, probability in law.items():
            colour, hatch = (ACCEPTED, "//") if token == came else (TARGET, "")
            axis.barh(token, probability, color=colour, hatch=hatch, edgecolor="black", linewidth=0.5)
        axis.invert_yaxis()
        axis.set_title(f"head {k}; {came} came", fontsize=10)
        axis.tick_params(axis="y", labelsize=8)
        axis.set(xlabel="probability", xlim=(0, 1))
    return tight(figure)


def by_distance(curves: dict[str, list[float]]) -> plt.Figure:
    """Overlap with the target of the first, second, third ... guess of a round, a line a guesser."""
    figure, axis = plt.subplots(figsize=(8, 3.6))
    for k, (name, overlaps) in enumerate(curves.items()):
        axis.plot(range(1, len(overlaps) + 1), overlaps, "-" + MARKERS[k % len(MARKERS)], color=f"C{k}", label=name)
    free = 0.0  # a number stands beside its line's end, and above the last one
    for end, place in sorted((overlaps[-1], len(overlaps)) for overlaps in curves.values()):
        axis.annotate(f"{end:.2f}", (place, max(end, free)), textcoords="offset points", xytext=(8, -4), fontsize=9)
        free = max(end, free) + 0.085
    axis.margins(x=0.08)
    axis.set(
        xlabel="guess of the round",
        ylabel="overlap with the target, 1 - TV",
        ylim=(0, 1.02),
        xticks=range(1, 1 + max(map(len, curves.values()))),
    )
    axis.legend(fontsize=9, ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))  # the lines go everywhere
    return tight(figure)


def level(betas: Sequence[float]) -> float:
    """The alpha at which as many guesses, if all were alike, would bring as many tokens a round as those of `betas`."""
    grid = np.linspace(0, 1, 1001)
    tokens = theory.expected_tokens_from_positions(betas)
    return float(np.interp(tokens, theory.expected_tokens(grid, len(betas)), grid))


def oracles(table) -> plt.Figure:
    """Every oracle by its cost and its similarity, over lines of equal predicted speed-up (columns kind, alpha, c; the
    index names them).
    """
    figure, axis = plt.subplots(figsize=(8.5, 5.6))
    reach = max(0.7, 1.1 * table["c"].max())
    costs, alphas = np.meshgrid(np.linspace(0.005, reach, 90), np.linspace(0.02, 0.995, 90))
    best = theory.speedup(alphas, theory.optimal_gamma(alphas, costs, 8), costs)
    lines = axis.contour(
        costs, alphas, best, levels=[1.001, 1.25, 1.5, 2, 3, 4], colors="black", linewidths=0.8, linestyles="dotted"
    )
    axis.clabel(lines, fmt=lambda value: f"{value:.3g}x", fontsize=8)
    for k, (kind, rows) in enumerate(table.groupby("kind", sort=False)):
        mark = {"color": f"C{k}", "marker": MARKERS[k % len(MARKERS)], "edgecolor": "black", "zorder": 3, "alpha": 0.7}
        axis.scatter(rows["c"], rows["alpha"], 70, label=kind, **mark)
    named = {"xlabel": "cost c: time of a guess over that of a target forward", "ylabel": "alpha"}
    axis.set(**named, xlim=(0, reach), ylim=(0, 1.03))
    axis.set_title("Dotted: predicted speed-up at the best draft length, checks of all widths alike", fontsize=11)
    axis.legend(loc="lower right", fontsize=9)
    figure.tight_layout()
    beside(axis, {row.Index: (row.c, row.alpha) for row in table.itertuples()})
    return figure


def layer_dial(table) -> widgets.VBox:
    """A slider over the layers that a guess takes: overlap, cost and the best predicted speed-up.

    table: columns layers, untrained, trained, c.
    """
    table, depths = table.set_index("layers", drop=False), [int(k) for k in table["layers"]]

    def draw(layers):
        row = table.loc[layers]
        lines = [f"cost of a guess: <b>{row['c']:.2f}</b> of a target forward"]
        for name in ("untrained", "trained"):
            if row[name] == row[name]:  # no exit was trained after every layer
                gamma = int(theory.optimal_gamma(row[name], row["c"], 8))
                gain = float(theory.speedup(row[name], gamma, row["c"]))
                lines.append(
                    f"{name}: overlap {row[name]:.2f}, best gamma {gamma}, predicted speed-up <b>{gain:.2f}x</b>"
                )
        return exits(table, layers), "<br>".join(lines)

    return box("layers", [choice("layers", depths[len(depths) // 4], depths)], draw)


def _row_to_round(r):
    """A row and a number of bits; None where an entry lies halfway between two steps, or all are 0."""
    row, bits = [round(r.uniform(-3, 3), 2) for _ in range(r.randint(1, 6))], r.randint(2, 8)
    steps = [abs(x) * (2 ** (bits - 1) - 1) / max(map(abs, row)) for x in row] if any(row) else [0.5]
    return (row, bits) if all(abs(step % 1 - 0.5) > 1e-3 for step in steps) else None


@exercise(
    "an 8-bit copy of a matrix is these whole numbers and one scale a row",
    [
        (([1.27, -0.634, 0.0], 8), "the step is the largest size over 127; every entry goes to the nearest multiple"),
        (([0.9, -0.3, 0.1], 2), "with 2 bits only -1, 0 and 1 times the largest size are left"),
        (([3.0, 1.4, -1.6], 3), "with 3 bits the largest whole number is 3"),
        (([1.0, -2.0], 3), "the largest size counts, whatever its sign"),
    ],
    _row_to_round,
)
def round_row(row, bits):
    """Symmetric round-to-nearest with one scale."""
    scale = max(map(abs, row)) / (2 ** (bits - 1) - 1)
    return [round(x / scale) * scale for x in row]


def _depths(r):
    layers = r.randint(2, 48)
    return chance(r), r.randint(0, 10), r.randint(1, layers), layers


@exercise(
    "half of the layers can never give more than a factor of two",
    [
        ((0.8, 2, 6, 24), "1 + 0.8 + 0.64 tokens; two guesses of a quarter each, and one check"),
        ((0.5, 4, 6, 24), "1.9375 tokens for the price of two"),
        ((1.0, 3, 24, 24), "all layers: always right, and nothing gained"),
        ((0.0, 4, 6, 24), "never right: one token for the price of two"),
    ],
    _depths,
)
def layer_skip_speedup(alpha, gamma, k, layers):
    """Expected tokens over gamma k / N + 1."""
    return float(theory.speedup(alpha, gamma, k / layers))


@exercise(
    "`theory.expected_tokens_from_positions` does the same",
    [
        (([0.5],), "one guess: 1 + b1"),
        (([0.8, 0.5, 0.25],), "1 + 0.8 + 0.4 + 0.1: a guess counts only behind the accepted ones"),
        (([0.9, 0.0, 0.9],), "nothing counts behind a head that is never right"),
    ],
    lambda r: ([chance(r) for _ in range(r.randint(1, 6))],),
)
def heads_tokens(betas):
    """1 + b1 + b1 b2 + ..."""
    return 1 + sum(math.prod(betas[: i + 1]) for i in range(len(betas)))
