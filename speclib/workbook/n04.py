"""Notebook 04, lossless: histograms, the power of tests, the museum, overlap."""

import math

from ..law import statistics
from .common import ACCEPTED, REJECTED, exercise, law, plt, tight, two_laws


def joint_histograms(counted: dict, law: dict) -> plt.Figure:
    """Shares of each text, one panel per set of counts, with 99.9% intervals, and the exact probabilities as dots."""
    figure, axes = plt.subplots(1, len(counted), figsize=(5.2 * len(counted), 3.8), sharey=True)
    texts = sorted(law, key=law.get, reverse=True)
    places = range(len(texts))
    for axis, (name, counts) in zip(axes, counted.items(), strict=True):
        seen = [counts.get(text, 0) for text in texts]
        low, high = statistics.cell_intervals(seen, level=0.999)
        shares = [c / sum(seen) for c in seen]
        errors = [
            [max(s - lo, 0) for s, lo in zip(shares, low, strict=True)],
            [max(h - s, 0) for s, h in zip(shares, high, strict=True)],
        ]
        outside = [not lo <= law[text] <= h for text, lo, h in zip(texts, low, high, strict=True)]
        axis.bar(
            places,
            shares,
            color=[REJECTED if out else ACCEPTED for out in outside],
            alpha=0.6,
            yerr=errors,
            ecolor="black",
            error_kw={"linewidth": 0.8},
        )
        axis.plot(places, [law[text] for text in texts], "D", color="black", markersize=4, label="exact probability")
        axis.set(
            title=f"{name}: {sum(outside)} of {len(texts)} cells outside",
            xlabel="text of three tokens, most probable first",
        )
        axis.legend()
    axes[0].set_ylabel("share of texts")
    return tight(figure)


def power_curve(cells: tuple[int, ...]) -> plt.Figure:
    """Samples that a G-test needs to see a total variation, one line per number of cells (significance 1e-6, power
    99.9%).
    """
    figure, axis = plt.subplots()
    variations = [0.001 * 1.3**k for k in range(20)]
    for count, line in zip(cells, ("-", "--", "-."), strict=True):
        needed = [statistics.samples_for_variation(v, count) for v in variations]
        axis.loglog(variations, needed, linestyle=line, label=f"{count} cells")
    axis.axhline(2e6, color="black", linestyle=":", linewidth=1)
    axis.text(variations[-1], 2.2e6, "2,000,000: this project's tests", ha="right", fontsize=9)
    axis.set(
        xlabel="total variation to be seen", ylabel="samples needed", title="Significance one in a million, power 99.9%"
    )
    axis.legend()
    return tight(figure)


def museum(table) -> plt.Figure:
    """How many samples each exhibit needs, as dots (a bar on a log scale has no beginning), and its exact total
    variation from the right law.
    """
    figure, axis = plt.subplots(figsize=(8.5, 5))
    ordered = table.sort_values("samples")
    axis.plot(ordered["samples"], ordered.index, "o", color=REJECTED, markeredgecolor="black")
    for k, (samples, variation) in enumerate(zip(ordered["samples"], ordered["variation"], strict=True)):
        axis.text(samples, k, f"   {int(samples):,} texts; variation {variation:.3f}", va="center", fontsize=9)
    axis.set_xscale("log")
    axis.set_xlim(10, 30 * ordered["samples"].max())
    axis.set(xlabel="texts of three tokens that catch it (log scale)", title="The museum: what it takes to notice")
    return tight(figure)


@exercise(
    "one minus the total variation",
    [
        (([0.5, 0.5], [0.5, 0.5]), "equal distributions always agree"),
        (([1.0, 0.0], [0.0, 1.0]), "disjoint ones never do"),
        (([0.4, 0.4, 0.1, 0.1], [0.2, 0.2, 0.3, 0.3]), "0.2 + 0.2 + 0.1 + 0.1"),
    ],
    two_laws,
)
def my_alpha(p, q):
    """sum(min(p, q))."""
    return sum(map(min, p, q))


@exercise(
    "what was kept often comes once more: the law leans towards the draft",
    [
        (([0.5, 0.5], [0.5, 0.5]), "nothing is rejected"),
        (
            ([0.8, 0.2], [0.4, 0.6]),
            "token 1 is kept with 0.2, all that p gives it, and then comes once more after rejections",
        ),
        (([1.0, 0.0], [0.0, 1.0]), "all is rejected, and p is drawn from"),
    ],
    two_laws,
)
def resampled_law(p, q):
    """min(p, q) + P(rejection) p."""
    kept = list(map(min, p, q))
    return [k + (1 - sum(kept)) * a for k, a in zip(kept, p, strict=True)]


def _counts(r):
    size = r.randint(2, 5)
    counts = [r.choice([0, r.randint(1, 80)]) for _ in range(size - 1)] + [r.randint(1, 80)]
    return r.sample(counts, size), law(r, size, zeros=False)


@exercise(
    "chi-square distributed under equality, with one degree of freedom less than cells",
    [
        (([50, 50], [0.5, 0.5]), "counts as expected"),
        (([60, 40], [0.5, 0.5]), "2 (60 log 1.2 + 40 log 0.8)"),
        (([100, 0], [0.5, 0.5]), "an empty cell adds nothing; the other has twice its share"),
    ],
    _counts,
)
def my_g(counts, probabilities):
    """2 sum c log(c / (n p))."""
    n = sum(counts)
    return 2 * sum(c * math.log(c / (n * p)) for c, p in zip(counts, probabilities, strict=True) if c)
