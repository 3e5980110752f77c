"""Notebook 06, how far to guess: best lengths, streaks, plans."""

import ipywidgets as widgets
import numpy as np
import pandas as pd

from ..law import statistics, theory
from ..loop.trace import Trace
from ..measure.hazard import pooled
from . import common
from .common import ACCEPTED, PREDICTED, REJECTED, TARGET, box, chance, exercise, integer, plt, tight, width_prices


def best_length(measured, curve: list[float], alpha: float) -> plt.Figure:
    """Speed-up against draft length: the formula's line, measured points with their intervals."""
    figure, axis = plt.subplots()
    axis.plot(
        range(1, len(curve) + 1), curve, "--o", color=PREDICTED, markersize=4, label=f"predicted at alpha {alpha:.2f}"
    )
    error = [measured["speedup"] - measured["low"], measured["high"] - measured["speedup"]]
    mark = {"fmt": "s", "capsize": 3, "color": ACCEPTED, "label": "measured, 95% over prompts"}
    axis.errorbar(measured["gamma"], measured["speedup"], yerr=error, **mark)
    axis.axhline(1, color="black", linestyle=":", linewidth=1)
    axis.set(xlabel="draft length gamma", ylabel="times plain decoding", ylim=(0, None))
    axis.legend()
    return tight(figure)


def streaks(runs: list[int], alpha: float, gamma: int) -> plt.Figure:
    """How many guesses passed in a round, against the law of independent coins of the same alpha."""
    figure, axis = plt.subplots()
    counts = np.bincount(runs, minlength=gamma + 1)
    low, high = np.array([statistics.wilson(int(k), len(runs)) for k in counts]).T
    share = counts / len(runs)
    look = {"color": ACCEPTED, "edgecolor": "black", "linewidth": 0.5}
    axis.bar(range(gamma + 1), share, label=f"{len(runs)} rounds, with 95% intervals", **look)
    error = [np.maximum(share - low, 0), np.maximum(high - share, 0)]
    axis.errorbar(range(gamma + 1), share, yerr=error, fmt="none", color="black", capsize=3)
    coins = [alpha**k * (1 - alpha) for k in range(gamma)] + [alpha**gamma]
    axis.plot(range(gamma + 1), coins, "D--", color=REJECTED, label=f"independent coins, alpha {alpha:.2f}")
    axis.set(xlabel=f"accepted guesses of {gamma}", ylabel="share of rounds")
    axis.legend()
    return tight(figure)


def together(record: dict) -> list[dict]:
    """The two recordings of data/results/hazard.json as one: a row a domain and length."""
    rows = record["first"] + record["second"]
    places = dict.fromkeys((row["domain"], row["gamma"]) for row in rows)
    return [pooled([row for row in rows if (row["domain"], row["gamma"]) == at], at[0]) for at in places]


# what is taken for the chance of each guess, from a row of the record; behind the last one it goes on
RATES = {
    "hazard": lambda row: row["hazard"],
    "one alpha": lambda row: [row["alpha"]],
    "accepted share": lambda row: [row["share"]],
}


def foretold(rows: list[dict], source: int, rate: str = "hazard") -> pd.DataFrame:
    """Tokens per round from one of RATES at draft length `source`, over those measured at each length, minus 1: a row a
    domain and one for all together, a column a length other than `source`.
    """
    lengths = sorted({row["gamma"] for row in rows})
    rows = rows + [pooled([row for row in rows if row["gamma"] == gamma]) for gamma in lengths]
    known = {row["domain"]: RATES[rate](row) for row in rows if row["gamma"] == source}
    found = {domain: {} for domain in known}
    for row in (row for row in rows if row["gamma"] != source):
        found[row["domain"]][row["gamma"]] = (
            theory.tokens_from_hazard(known[row["domain"]], row["gamma"]) / row["tokens"] - 1
        )
    return pd.DataFrame(found).T.sort_index(axis=1)


def misses(rows: list[dict], rate: str = "hazard") -> pd.DataFrame:
    """The least and the greatest of `foretold` from each length to each other, in percent: a row a domain and one for
    all together, columns low and high.
    """
    every = pd.concat([foretold(rows, source, rate) for source in sorted({row["gamma"] for row in rows})], axis=1)
    return 100 * pd.DataFrame({"low": every.min(axis=1), "high": every.max(axis=1)})


def by_position(row: dict) -> pd.DataFrame:
    """Of a row of the record, at each guess: how often it is kept if it is reached (the hazard), how often at all, and
    what one rate for all guesses would make of that.
    """
    guess = np.arange(1, row["gamma"] + 1)
    columns = {"hazard": row["hazard"], "kept at all": np.cumprod(row["hazard"])}
    columns |= {"alpha^k": row["alpha"] ** guess, "share^k": row["share"] ** guess}
    return pd.DataFrame(columns, pd.Index(guess, name="guess k"))


def acceptance_figures(rows: list[dict], gamma: int) -> plt.Figure:
    """Hazard by position at one draft length, beside alpha and the accepted share, a panel a domain."""
    rows = [row for row in rows if row["gamma"] == gamma]
    figure, axes = plt.subplots(1, len(rows), figsize=(11, 3.6), sharey=True)
    for axis, row in zip(axes, rows, strict=True):
        axis.plot(range(1, gamma + 1), row["hazard"], "o-", color=TARGET, label="hazard")
        axis.axhline(row["alpha"], color=PREDICTED, linestyle="--", label="alpha")
        axis.axhline(row["share"], color=REJECTED, linestyle="-.", label="accepted share")
        axis.set(xlabel="position in the round", title=row["domain"], ylim=(0, 1))
        axis.set_xticks(range(1, gamma + 1))
    axes[0].set_ylabel("share of guesses kept")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 1), ncol=3)
    return tight(figure)


def plans(table) -> plt.Figure:
    """Tokens per plain step of each plan (columns), one mark a prompt (rows), and the mean."""
    figure, axis = plt.subplots(figsize=(8, 4.6))
    for k, name in enumerate(table.columns):
        special = name in ("hindsight", "foresight")
        axis.barh(
            k,
            table[name].mean(),
            color="#bbbbbb" if special else TARGET if name.startswith("fixed") else ACCEPTED,
            hatch="//" if special else "",
            edgecolor="black",
            linewidth=0.5,
        )
        axis.plot(table[name], [k] * len(table), "o", color="black", markersize=4, alpha=0.6)
    axis.set_yticks(range(len(table.columns)), table.columns)
    axis.axvline(1, color="black", linestyle=":")
    axis.invert_yaxis()
    axis.set(xlabel="tokens per plain step at measured prices (bar: mean, dots: prompts)")
    return tight(figure)


def controller(trace, settings, upto: int | None = None) -> plt.Figure:
    """A cost-aware plan at work on one text: guesses asked for and passed in each round, and the running estimate of
    alpha.
    """
    plan, rounds = settings.start(), trace.rounds[:upto]
    estimates = []
    for r in rounds:
        estimates.append(plan.alpha)
        plan.observe(r)
    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(8, 4.6))
    places = range(1, len(rounds) + 1)
    top.plot(places, estimates, color=PREDICTED, marker=".")
    top.set(ylabel="estimate of alpha", ylim=(0, 1), xlim=(0, len(trace.rounds) + 1))
    bottom.bar(places, [len(r.drafted) for r in rounds], color="white", edgecolor="black", label="guessed")
    bottom.bar(places, [r.accepted for r in rounds], color=ACCEPTED, hatch="//", edgecolor="black", label="passed")
    bottom.set(xlabel="round", ylabel="tokens", ylim=(0, max(len(r.drafted) for r in trace.rounds) + 1))
    bottom.legend(loc="upper right", ncol=2)
    return tight(figure)


def controller_stepper(trace: Trace, settings) -> widgets.VBox:
    """A slider over the rounds of one text: what a cost-aware plan knew, asked for and got, up to there."""
    rounds = len(trace.rounds)
    slider = integer("round", (rounds + 1) // 2, 1, rounds)
    return box("controller", [slider], lambda k: controller(trace, settings, k))


def _speed(alpha, gamma, c, prices):
    return float(theory.speedup(alpha, gamma, c, prices[gamma + 1]))


def _known_prices(r):
    """alpha, c and some prices, the price of one token among them; None where two lengths are about as good."""
    prices = {n: price for n, price in width_prices(r, 1.0).items() if n == 1 or n < 10 and r.random() < 0.7}
    alpha, c = chance(r), round(r.choice([0.0, r.random() / 2, r.random() / 8]), 3)
    speeds = sorted(_speed(alpha, n - 1, c, prices) for n in prices)
    return (alpha, c, prices) if len(speeds) < 2 or speeds[-1] > 1.001 * speeds[-2] else None


@exercise(
    "and on a flat width curve one more or less hardly matters near the optimum",
    [
        (
            (0.8, 0.1, {n: 1.0 for n in range(1, 10)}),
            "with a flat width curve, divide the sum of powers by gamma * c + 1",
        ),
        (
            (0.5, 0.05, {1: 1.0, 2: 1.4, 3: 1.4, 4: 1.4, 5: 1.1, 6: 1.5}),
            "five tokens are cheaper to check than four here: use the price of gamma + 1 tokens",
        ),
        ((0.1, 0.5, {n: 1.0 for n in range(1, 10)}), "where alpha is below c, plain decoding is best"),
        ((0.9, 0.05, {8: 1.3, 1: 1.0, 4: 1.2}), "only the widths 1, 4 and 8 have a price, in whatever order"),
    ],
    _known_prices,
)
def best_gamma(alpha, c, prices):
    """The draft length of the greatest predicted speed-up."""
    return max((n - 1 for n in prices), key=lambda gamma: _speed(alpha, gamma, c, prices))


@exercise(
    "and from it every other draft length can be predicted",
    [
        (([(1, 1), (1, 0)],), "one position, reached twice and kept once"),
        (([(4, 2), (4, 0)],), "only one check reached the second guess, and none the fourth"),
        (
            ([(4, 2), (2, 2), (1, 1)],),
            "the round of one guess says nothing of a second one, nor that of two of a third: neither kept nor lost",
        ),
        (([(0, 0), (3, 3), (2, 0)],), "a round without guesses says nothing at all"),
    ],
    lambda r: (common.pairs(r),),
)
def hazards(rounds):
    """Kept over reached, at each position that a check reached."""
    found = []
    while reached := [a for n, a in rounds if len(found) <= min(a, n - 1)]:
        found.append(sum(a > len(found) for a in reached) / len(reached))
    return found


@exercise(
    "no plan guesses less in vain on these rounds",
    [
        (([0, 0], 0.1, {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3}), "nothing passes: plain decoding"),
        (([3], 0.1, {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3}), "four tokens for three guesses and one check of four tokens"),
        (([0, 3, 1], 0.1, {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3}), "sum the tokens, sum the time, divide once"),
    ],
    lambda r: ([r.randint(0, 8) for _ in range(r.randint(1, 6))], round(r.random() / 2, 2), width_prices(r, 1.0)),
)
def foresight_speed(accepted, c, prices):
    """Tokens per plain step of a plan that stops before the first guess that would fail."""
    return sum(a + 1 for a in accepted) / sum(a * c + prices[a + 1] for a in accepted)


def _round_of_a_plan(r):
    most = r.randint(3, 20)
    length = r.choice([1, most, r.randint(1, most)])
    drafted = r.choice([length, r.randint(1, length)])
    return length, drafted, r.choice([drafted, r.randint(0, drafted)]), most


@exercise(
    "a few lines that cost nothing",
    [
        ((5, 5, 5, 16), "all passed: two more"),
        ((5, 5, 4, 16), "one failed: one fewer"),
        ((5, 5, 2, 16), "three failed, and still one fewer"),
        ((8, 3, 3, 16), "all three that were made passed: two more than the length, which was 8"),
        ((1, 1, 0, 16), "never below 1"),
        ((15, 15, 15, 16), "never above most"),
    ],
    _round_of_a_plan,
)
def next_length(length, drafted, accepted, most):
    """The heuristic schedule."""
    return min(most, length + 2) if accepted == drafted else max(1, length - 1)
