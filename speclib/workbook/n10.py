"""Notebook 10, which rule: shares of the optimum, what each claim is worth, and the price of a lossy rule."""

from itertools import chain, combinations, product

import numpy as np
import torch
from torch import Tensor

from ..law import rules
from ..law.exact import TableModel
from .common import ACCEPTED, DRAFT, MARKERS, PREDICTED, REJECTED, TARGET, exercise, law, plt, tight, two_laws

LINES = {"ratio test": (TARGET, "o-"), "point mass": (ACCEPTED, "s--"), "sample and match": (REJECTED, "^:")}


def every_draft(target: TableModel, draft: TableModel, n: int, paths: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All that a draft can draw on several paths of n guesses: p, q and drafted as `paths_law` wants them, and the
    probability of each [B].
    """
    ways = list(product(range(draft.vocabulary), repeat=n))
    chances = [float(np.prod([draft(way[:i])[way[i]] for i in range(n)])) for way in ways]
    found = list(product([k for k, chance in enumerate(chances) if chance > 0], repeat=paths))
    prefixes = [[ways[k][:i] for k in several for i in range(n + 1)] for several in found]
    p = torch.stack([torch.stack([target(()), *(target(x) for x in row if x)]) for row in prefixes])
    q = torch.stack([torch.stack([draft(x) for x in row if len(x) < n]) for row in prefixes])
    drafted = torch.tensor([[token for k in several for token in ways[k]] for several in found])
    weights = [float(np.prod([chances[k] for k in several])) for several in found]
    return p, q, drafted, torch.tensor(weights, dtype=p.dtype)


def shares(table) -> plt.Figure:
    """The rule's share of the optimum, by how drafts are drawn (columns drawing, drafts, share): a dot a pair of laws,
    the mean as a bar.
    """
    figure, axis = plt.subplots(figsize=(8, 3.8))
    names = list(dict.fromkeys(table["drawing"]))
    for k, (name, colour) in enumerate(zip(names, (TARGET, ACCEPTED), strict=True)):
        rows = table[table["drawing"] == name]
        places = rows["drafts"] + 0.3 * (k - 0.5)
        jitter = np.random.default_rng(0).uniform(-0.08, 0.08, len(rows))
        axis.plot(places + jitter, rows["share"], MARKERS[k], color=colour, markersize=4, alpha=0.5, label=name)
        means = rows.groupby("drafts")["share"].mean()
        axis.hlines(means, means.index + 0.3 * (k - 0.5) - 0.13, means.index + 0.3 * (k - 0.5) + 0.13, color="black")
    axis.axhline(1, color="black", linestyle=":", linewidth=1)
    axis.set_xticks(sorted(set(table["drafts"])))
    axis.set(xlabel="drafts at one place", ylabel="share of what any rule\ncould keep of such drafts")
    axis.legend(fontsize=9, loc="lower left")
    return tight(figure)


def claims(by_temperature, by_overlap) -> plt.Figure:
    """Alpha of each claim (columns) against the temperature, and against the overlap of p and q (index)."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for axis, table, what in zip(
        axes, (by_temperature, by_overlap), ("temperature", "overlap of p and q"), strict=True
    ):
        for name, (colour, line) in LINES.items():
            axis.plot(table.index, table[name], line, color=colour, label=name)
        for where in crossings(table):
            axis.axvline(where, color=PREDICTED, linestyle="-.", linewidth=1)
            axis.text(where, 0.94, f" {where:.2f}", color="black", fontsize=11)
        axis.set(xlabel=what, ylim=(0, 1.02))
    axes[0].set_ylabel("alpha")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 1), ncol=3)
    return tight(figure)


def crossings(table) -> list[float]:
    """Where the point mass and the ratio test change places, between neighbours of the index, by straight lines."""
    ahead, at = (table["point mass"] - table["ratio test"]).to_numpy(), table.index.to_numpy(float)
    turns = [k for k in range(len(at) - 1) if ahead[k] * ahead[k + 1] < 0]
    return [float(at[k] + (at[k + 1] - at[k]) * ahead[k] / (ahead[k] - ahead[k + 1])) for k in turns]


def prices(table) -> plt.Figure:
    """Tokens per round against the total variation from the target's law (columns tokens, variation, kind), a mark a
    rule and setting, named by the index.
    """
    figure, axis = plt.subplots(figsize=(8.5, 4.6))
    colours = dict(zip(dict.fromkeys(table["kind"]), (ACCEPTED, REJECTED, DRAFT, TARGET), strict=False))
    for k, (kind, rows) in enumerate(table.groupby("kind", sort=False)):
        axis.plot(rows["variation"], rows["tokens"], MARKERS[k] + "--", color=colours[kind], label=kind, markersize=8)
    for name, row in table.iterrows():
        axis.annotate(name, (row["variation"], row["tokens"]), textcoords="offset points", xytext=(6, -10), fontsize=8)
    axis.set(xlabel="total variation from the target's law, texts of three tokens", ylabel="tokens per round")
    axis.margins(x=0.15)
    axis.legend(fontsize=9, loc="lower right")
    return tight(figure)


def two_guesses(r) -> tuple:
    """Two rows of p, two of q, and two tokens that q can draw."""
    size = r.randint(2, 4)
    rows = [law(r, size) for _ in range(4)]
    if r.random() < 0.2:
        rows[2:] = [list(row) for row in rows[:2]]
    drafted = [r.choice([x for x, chance in enumerate(row) if chance > 0]) for row in rows[2:]]
    return rows[:2], rows[2:], drafted


@exercise(
    "and its mean is never below the token rule's",
    [
        (([[0.25, 0.75]] * 2, [[0.25, 0.75]] * 2, [0, 1]), "where p and q agree, both guesses are kept"),
        (([[0.25, 0.75]] * 2, [[0.5, 0.5]] * 2, [0, 0]), "w1 = 1/2, w2 = 1/4: the last test that passes decides"),
        (([[0.25, 0.75]] * 2, [[0.5, 0.5], [0.75, 0.25]], [0, 1]), "w1 = 1/2, and w2 = min(1, 1/2 times 3) = 1"),
        (([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], [[0.2, 0.6, 0.2], [0.5, 0.25, 0.25]], [1, 0]), "w1 = 1/2, w2 = 0.1"),
        (([[0.5, 0.5], [0.9, 0.1]], [[0.4, 0.6], [0.9, 0.1]], [0, 0]), "w1 is cut at 1 before it goes on"),
    ],
    two_guesses,
)
def block_stops(p, q, drafted):
    """The block rule on two tokens: where it stops."""
    p, q = torch.tensor([[*p, p[-1]]], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)
    return rules.block_law(p, q, torch.tensor([drafted])).stop_probs[0].tolist()


@exercise(
    "what the linear program finds, without one",
    [
        (([0.5, 0.5], [0.5, 0.5], 2), "equal laws lose nothing"),
        (([1.0, 0.0], [0.0, 1.0], 3), "disjoint ones keep nothing, however many drafts: the set of q's tokens"),
        (([0.4, 0.3, 0.3], [0.2, 0.5, 0.3], 1), "with one draft it is sum(min(p, q)) = 0.8"),
        (([0.6, 0.3, 0.1], [0.2, 0.3, 0.5], 2), "the last two tokens are the least set: 0.4 + 1 - 0.64"),
        (([0.6, 0.3, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4], 3), "all 16 sets, the empty one too"),
    ],
    lambda r: (law(r, size := r.randint(2, 5)), law(r, size), r.randint(1, 4)),
)
def best_of(p, q, n):
    """The least, over all sets A of tokens, of p(A) + 1 - q(A)^n."""
    sets = chain.from_iterable(combinations(range(len(p)), size) for size in range(len(p) + 1))
    return min(sum(p[x] for x in a) + 1 - sum(q[x] for x in a) ** n for a in sets)


@exercise(
    "three drafters of one draft model",
    [
        (([0.5, 0.3, 0.2], [0.6, 0.2, 0.2]), "sum of min(p, q); p at the argmax of q; sum of p times q"),
        (([0.5, 0.5], [0.5, 0.5]), "equal laws: 1, and the other two miss half"),
        (([0.7, 0.3], [0.5, 0.5]), "on a tie the first token of q is its argmax"),
        (([0.0, 1.0], [1.0, 0.0]), "nothing in common: three zeros"),
        (([0.1, 0.8, 0.1], [0.3, 0.4, 0.3]), "a flat draft that knows the favourite: the point mass is ahead"),
    ],
    two_laws,
)
def claimed_alphas(p, q):
    """Ratio test, point mass, sample and match."""
    both = list(zip(p, q, strict=True))
    return [sum(map(min, both)), p[q.index(max(q))], sum(a * b for a, b in both)]
