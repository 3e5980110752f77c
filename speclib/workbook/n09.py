"""Notebook 09, many oracles: trees, lossy rules, the leaderboard."""

import math

import ipywidgets as widgets
import numpy as np
import pandas as pd
import seaborn as sns

from ..drafters import TreeDrafter
from ..loop.decoding import generate
from .common import ACCEPTED, DRAFT, MARKERS, REJECTED, TARGET, beside, box, exercise, integer, law, plt, tight, visible


def tree_mask(sees, names: list[str]) -> plt.Figure:
    """Who sees whom in a tree of guesses: rows look, columns are seen; every row also sees the whole text."""
    figure, axis = plt.subplots(figsize=(4.4, 3.6))
    sns.heatmap(
        np.asarray(sees, dtype=float),
        annot=np.where(sees, "yes", ""),
        fmt="",
        cbar=False,
        cmap="Greens",
        vmin=0,
        vmax=2,
        linewidths=1,
        linecolor="#999999",
        xticklabels=names,
        yticklabels=names,
        ax=axis,
    )
    axis.set(xlabel="is seen", ylabel="looks")
    return tight(figure)


def tree(words: list[str], parents: list[int], reached: list[float], title: str = "") -> plt.Figure:
    """A tree of guesses: each node's token and the probability that verification comes there, the text at the top."""
    centred = {"ha": "center", "va": "center"}
    depths, places = [], {}
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    leaves = iter(range(len(parents)))

    def walk(node):  # leaves side by side, a parent above the middle of its children
        children = [child for child, parent in enumerate(parents) if parent == node]
        for child in children:
            walk(child)
        if node >= 0:
            places[node] = float(np.mean([places[child] for child in children])) if children else float(next(leaves))

    walk(-1)
    top = float(np.mean([places[node] for node, parent in enumerate(parents) if parent < 0]))
    width = max(places.values()) + 1
    figure, axis = plt.subplots(figsize=(min(13, max(6, 1.25 * width)), 1.6 + 1.1 * (max(depths) + 1)))
    frame = {"boxstyle": "round", "facecolor": "#eeeeee", "edgecolor": "black"}
    axis.text(top, 0.9, "text", **centred, bbox=frame)
    size = 12 if width < 10 else 8  # points: up to 27 leaves stand side by side
    for node, parent in enumerate(parents):
        x, y = places[node], -depths[node]
        x_above, y_above = (top, 0.9) if parent < 0 else (places[parent], -depths[parent])
        line = {"color": ACCEPTED, "linewidth": 0.5 + 5 * reached[node], "alpha": 0.8, "zorder": 1}
        axis.plot([x_above, x], [y_above - 0.18, y + 0.22], **line)
        word = visible(words[node]).replace("$", r"\$")
        said = f"{word}\n{reached[node]:.2f}"
        frame = {"boxstyle": "round", "facecolor": "white", "edgecolor": ACCEPTED}
        axis.text(x, y, said, **centred, fontsize=size, family="monospace", bbox=frame)
    axis.set(xlim=(-0.8, width - 0.2), ylim=(-max(depths) - 0.6, 1.4), title=title)
    axis.axis("off")
    return tight(figure)


def per_round_bars(table, title: str) -> plt.Figure:
    """Tokens per round of several guessers (rows), with their intervals."""
    figure, axis = plt.subplots(figsize=(8, 1 + 0.5 * len(table)))
    error = [table["tokens_per_round"] - table["low"], table["high"] - table["tokens_per_round"]]
    colours = [TARGET if name.startswith("chain") else ACCEPTED for name in table.index]
    axis.barh(
        table.index, table["tokens_per_round"], xerr=error, capsize=3, color=colours, edgecolor="black", linewidth=0.5
    )
    axis.axvline(1, color="black", linestyle=":")
    axis.invert_yaxis()
    axis.set(xlabel="tokens per round (95% over prompts)", title=title)
    return tight(figure)


def lossy(table) -> plt.Figure:
    """What rules yield against what they cost: tokens per round over total variation."""
    figure, axis = plt.subplots()
    for (name, row), marker in zip(table.iterrows(), "oosss^^^", strict=False):
        colour = ACCEPTED if "lossless" in name else REJECTED if "typical" in name else DRAFT
        axis.plot(row["variation"], row["tokens"], marker, color=colour, markersize=9)
    axis.set(
        xlabel="total variation of three-token texts from the target's law (0: lossless)",
        ylabel="tokens per round, two guesses",
    )
    axis.margins(y=0.12)
    axis.set_xlim(-0.01, 1.35 * max(0.01, table["variation"].max()))
    figure.tight_layout()
    falling = table.sort_values("tokens", ascending=False)  # the upper of two neighbours has its name above
    beside(axis, {name: (row["variation"], row["tokens"]) for name, row in falling.iterrows()})
    return figure


TEN = (
    "draft model",
    "draft model, block rule",
    "eagle",
    "lookup, else eagle",
    "prompt lookup",
    "n-gram, counts",
    "retrieval",
    "tree, drawn",
    "parallel heads",
    "first 4 layers, trained exit",
)


def leaderboard(rows) -> plt.Figure:
    """Speed-up of the ten oracles with its interval: a panel for each temperature, a mark for each domain."""
    temperatures = list(dict.fromkeys(rows["temperature"]))
    names = [name for name in TEN if name in set(rows["method"])]
    figure, axes = plt.subplots(1, len(temperatures), figsize=(10, 5), sharex=True, sharey=True, squeeze=False)
    domains = list(dict.fromkeys(rows["domain"]))
    for axis, temperature in zip(axes[0], temperatures, strict=True):
        for k, (domain, marker) in enumerate(zip(domains, MARKERS, strict=False)):
            part = (
                rows[(rows["domain"] == domain) & (rows["temperature"] == temperature)]
                .set_index("method")
                .reindex(names)
            )
            places = np.arange(len(names)) + 0.25 * (k - (len(domains) - 1) / 2)
            spread = [part["speedup"] - part["low"], part["high"] - part["speedup"]]
            if part["speedup"].notna().any():
                axis.errorbar(part["speedup"], places, xerr=spread, fmt=marker, color=f"C{k}", label=domain)
        axis.axvline(1, color="black", linestyle=":")
        axis.set(title=f"T = {temperature:g}" if temperature else "greedy", xlabel="times plain decoding")
        axis.legend()
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    return tight(figure)


def ten(rows) -> pd.DataFrame:
    """Ten oracles of the leaderboard: the speed-up in each setting; tokens thrown away per kept one (the mean over
    settings), and megabytes.
    """
    rows = rows[rows["method"].isin(TEN)]
    setting = rows["domain"] + np.where(
        rows["temperature"] > 0, ", T = " + rows["temperature"].map("{:g}".format), ", greedy"
    )
    table = rows.assign(setting=setting).pivot(index="method", columns="setting", values="speedup")[setting.unique()]
    means = rows.groupby("method")[["extra_per_token", "megabytes"]].mean().set_axis(["extra", "MB"], axis=1)
    return (
        table.join(means)
        .reindex([name for name in TEN if name in table.index])
        .round(2)
        .rename_axis(index="", columns="")
    )


def grown_tree(
    pair, prompt: str, branching: tuple[int, ...], sampled: bool = False, seed: int = 0
) -> tuple[list[str], list[int], list[float], str]:
    """(tokens as text, parents, probability that verification comes to each node, a title) of one tree."""
    drafter, depth = TreeDrafter(pair.draft, branching, sampled), len(branching)
    out = generate(pair.target, prompt, drafter, draft_length=depth, max_new_tokens=depth + 1, stop=[], seed=seed)
    first = out.trace.rounds[0]
    parents, reached = first.parents, list(first.stop_probs)
    for node in reversed(range(len(parents))):  # verification comes to a node if it stops there or below
        reached[parents[node] + 1] += reached[node + 1]
    words = [pair.tokenizer.decode([token]) for token in first.drafted]
    return (
        words,
        parents,
        reached[1:],
        f"{len(parents)} nodes, {sum(reached[1:]) + 1:.2f} tokens expected from this round",
    )


def tree_builder(pair, prompt: str) -> widgets.VBox:
    """Sliders for the branching of each level: the tree they make, and what it would yield."""
    levels = [integer(f"children at level {k + 1}", value, k == 0, 3) for k, value in enumerate((3, 2, 1))]
    drawn = widgets.Checkbox(False, description="drawn, not the likeliest")

    def draw(*values):
        *wide, sampled = values
        depth = wide.index(0) if 0 in wide else len(wide)
        for k, level in enumerate(levels):
            level.disabled = k > depth  # there is nothing below a level without children
        return tree(*grown_tree(pair, prompt, tuple(wide[:depth]), sampled))

    return box("tree", [*levels, drawn], draw, together=True)


def _siblings(r):
    q = law(r, r.randint(2, 5), r.random() < 0.3)
    taken = r.sample(range(len(q)), r.randint(0, len(q) - 1))
    return (q, taken) if sum(v for k, v in enumerate(q) if k not in taken) else None


@exercise(
    "and that is what the rule must be told",
    [
        (([0.5, 0.3, 0.2], []), "the first sibling is drawn from q itself"),
        (([0.5, 0.3, 0.2], [0]), "leave out what was drawn, and divide by the rest"),
        (([0.4, 0.3, 0.2, 0.1], [0, 3]), "leave out all elder siblings"),
    ],
    _siblings,
)
def sibling_law(q, taken):
    """What the next sibling is drawn from, without replacement."""
    left = [0.0 if token in taken else value for token, value in enumerate(q)]
    return [value / sum(left) for value in left]


def _several(r):
    p = law(r, r.randint(2, 5))
    return p, list(p) if r.random() < 0.1 else law(r, len(p)), r.randint(0, 4)


@exercise(
    "what is missing from p is drawn from the last residual, and so the text keeps its law",
    [
        (([0.6, 0.4], [0.2, 0.8], 1), "one sibling: the overlap, token by token"),
        (
            ([0.6, 0.4], [0.2, 0.8], 2),
            "token 1 is drawn and rejected with probability 0.4; then token 0 alone is left, and the residual wants it",
        ),
        (([0.5, 0.3, 0.15, 0.05], [0.2, 0.3, 0.1, 0.4], 2), "0.817 in all, as in the cell further up"),
        (
            ([0.5, 0.3, 0.15, 0.05], [0.2, 0.3, 0.1, 0.4], 3),
            "the third meets what two have left of p, one after another",
        ),
        (([0.5, 0.5], [0.5, 0.5], 2), "p = q: the first always passes, and nothing is left to divide by"),
        (([0.5, 0.5], [0.0, 1.0], 3), "after token 1 there is no second sibling to draw"),
    ],
    _several,
)
def tree_law(p, q, n):
    """For each token, the probability that it is emitted as one of n siblings drawn without replacement."""
    kept = [min(a, b) if n else 0.0 for a, b in zip(p, q, strict=True)]
    left, emitted = [a - k for a, k in zip(p, kept, strict=True)], kept
    for x, b in enumerate(q):
        if n > 1 and b - kept[x] > 1e-9 and b < 1:  # x is drawn, and rejected
            further = tree_law.__wrapped__([v / sum(left) for v in left], sibling_law.__wrapped__(q, [x]), n - 1)
            emitted = [k + (b - kept[x]) * v for k, v in zip(emitted, further, strict=True)]
    return emitted


def _node(r):
    size = r.randint(1, 9)
    return [r.randint(max(-1, k - 3), k - 1) for k in range(size)], r.randint(-1, size - 1)


@exercise(
    "these stay in the cache",
    [
        (([-1, -1, 0, 0, 2], 4), "4 follows 2, which follows 0"),
        (([-1, -1, 0, 0, 2], 1), "a first guess is its own path"),
        (([-1, -1, 0, 0, 2], -1), "-1 is the text: no guess at all"),
    ],
    _node,
)
def way_down(parents, node):
    """The nodes from the first guess to one of them."""
    return [*way_down.__wrapped__(parents, parents[node]), node] if node >= 0 else []


@exercise(
    "the width of the check is one more",
    [
        (((1, 1, 1),), "a chain of three"),
        (((3, 2, 1),), "3, then 6, then 6 again"),
        (((4,),), "four siblings"),
        (((2, 2, 3),), "2, then 4, then 12"),
    ],
    lambda r: (tuple(r.randint(1, 4) for _ in range(r.randint(0, 5))),),
)
def tree_size(branching):
    """The number of nodes of a tree."""
    return sum(math.prod(branching[: k + 1]) for k in range(len(branching)))
