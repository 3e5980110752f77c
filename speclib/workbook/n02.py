"""Notebook 02, guess and check: perfect oracles, wrong ones, and their prices."""

import ipywidgets as widgets

from ..law import theory
from .common import ACCEPTED, MARKERS, PREDICTED, REJECTED, TARGET, box, exercise, pairs, plt, real, tight, width_prices


def claim(table, where: str = "this machine") -> plt.Figure:
    """Speed-up against the number of right guesses: measured with its spread, the n + 1 claim, and the width curve's
    prediction.

    table has the columns n, speedup, low, high, claim, width_curve; `where` names the machine.
    """
    figure, axis = plt.subplots()
    axis.plot(table["n"], table["claim"], linestyle=":", color=REJECTED, label="the claim: n + 1")
    axis.plot(
        table["n"],
        table["width_curve"],
        linestyle="--",
        marker="s",
        markersize=5,
        color=PREDICTED,
        label="predicted: (n + 1) T(1) / T(n + 1)",
    )
    spread = [table["speedup"] - table["low"], table["high"] - table["speedup"]]
    axis.errorbar(
        table["n"],
        table["speedup"],
        yerr=spread,
        marker="o",
        capsize=3,
        color=ACCEPTED,
        label="measured: median, smallest and largest",
    )
    axis.set(xlabel="right guesses a round, n", ylabel="speed-up over cached plain decoding")
    axis.set_title(f"A perfect oracle that costs nothing\n{where}", fontsize=11)
    axis.legend()
    return tight(figure)


def wrong_guesses(table, where: str = "this machine") -> plt.Figure:
    """Speed-up against the probability a that a guess is right, for each number n of guesses: measured with spread,
    predicted, break-even.

    table has the columns a, n, speedup, low, high, predicted; `where` names the machine.
    """
    figure, axis = plt.subplots()
    for (n, rows), colour, marker in zip(table.groupby("n"), (ACCEPTED, TARGET), "os", strict=False):
        spread = [rows["speedup"] - rows["low"], rows["high"] - rows["speedup"]]
        axis.errorbar(
            rows["a"],
            rows["speedup"],
            yerr=spread,
            fmt=marker,
            capsize=3,
            color=colour,
            label=f"{n} guesses a round, measured",
        )
        axis.plot(rows["a"], rows["predicted"], linestyle="--", color=colour, label=f"{n} guesses a round, predicted")
    axis.axhline(1, color="black", linewidth=1.5, linestyle=":", label="plain decoding")
    axis.set(xlabel="probability a that a guess is right", ylabel="speed-up over cached plain decoding", yscale="log")
    axis.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axis.set_title(f"Free guesses, some of them wrong\n{where}", fontsize=11)
    axis.legend(fontsize=9)
    return tight(figure)


def priced_oracle(times, quality: float, prices: tuple[float, ...], top: float | None = None) -> plt.Figure:
    """Predicted speed-up against the number of guesses, a line a price, the best of each marked.

    times: milliseconds by width (a Series); quality: how often a guess is right; prices: a guess over a target forward;
    top: where the axis ends, then a logarithmic one.
    """
    lengths = [width - 1 for width in times.index]
    figure, axis = plt.subplots(figsize=(7.5, 4.3))
    for k, price in enumerate(prices):
        speed = [float(theory.speedup(quality, n, price, times[n + 1] / times[1])) for n in lengths]
        best = max(range(len(lengths)), key=speed.__getitem__)
        label = f"a guess costs {price:g}: best at {lengths[best]} a round, {speed[best]:.2f}x"
        look = {"marker": MARKERS[k], "color": f"C{k}"}
        axis.plot(lengths, speed, ("-", "--", "-.")[k % 3], markersize=4, label=label, **look)
        axis.plot(lengths[best], speed[best], markersize=11, markeredgecolor="black", **look)
    axis.axhline(1, color="black", linestyle=":", linewidth=1)
    axis.set(xlabel="guesses a round", ylabel="predicted speed-up", title=f"Guesses right with probability {quality:g}")
    axis.margins(y=0.08)  # the best is marked by a large dot
    axis.set_ylim(bottom=0 if top is None else 0.02, top=top)
    if top is not None:  # one axis for all settings: equal factors, equal heights
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
    axis.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2))  # the lines go everywhere
    return tight(figure)


def oracle_dial(times) -> widgets.VBox:
    """Sliders for an oracle's quality and price: the predicted speed-up over the number of guesses.

    times: a measured width curve, ms by width.
    """
    top = 1.05 * max(width * times[1] / ms for width, ms in times.items())  # always right and free
    controls = [real("right with a", 0.7, 0.0, 1.0, 0.05), real("cost c", 0.1, 0.0, 1.0, 0.05)]
    return box("oracle", controls, lambda quality, price: priced_oracle(times, quality, (price,), top))


@exercise(
    "never less than one token a round",
    [
        (([5, 6, 7], [5, 6, 7, 8]), "all guesses right, and the target's token after them"),
        (
            ([5, 6, 7], [5, 9, 7, 8]),
            "the second guess is wrong; the third was checked behind a wrong token and counts for nothing",
        ),
        (([5, 7], [5, 9, 7]), "7 was said, but at another place"),
        (([], [3]), "without guesses a round is plain decoding"),
    ],
    lambda r: (lambda says: ([t if r.random() < 0.6 else r.randint(0, 3) for t in says[:-1]], says))(
        [r.randint(0, 3) for _ in range(r.randint(1, 7))]
    ),
)
def round_adds(guesses, says):
    """The agreeing guesses and one token of the target's own."""
    right = 0
    while right < len(guesses) and guesses[right] == says[right]:
        right += 1
    return guesses[:right] + [says[right]]


@exercise(
    "the claim holds only where the width curve is flat",
    [
        ((3, {1: 10.0, 2: 10.0, 4: 10.0}), "if width costs nothing the claim is right"),
        ((3, {1: 10.0, 2: 12.0, 4: 20.0}), "four tokens in 20 ms against 10 ms each"),
        ((1, {1: 10.0, 2: 12.0, 4: 20.0}), "one guess makes two tokens: a forward of width 2"),
    ],
    lambda r: (r.randint(0, 15), width_prices(r)),
)
def repaired_claim(n, T):
    """(n + 1) T(1) / T(n + 1)."""
    return (n + 1) * T[1] / T[n + 1]


@exercise(
    "on a busy machine this work is not free",
    [
        (([(4, 4)],), "nothing was wrong"),
        (([(4, 1), (4, 0), (2, 2)],), "3 + 4 + 0"),
        (([(4, 3)],), "one guess of four was computed for nothing; the target's own token is no waste"),
    ],
    lambda r: (pairs(r),),
)
def wasted(rounds):
    """Positions computed and not kept."""
    return sum(guessed - right for guessed, right in rounds)


@exercise(
    "a search engine in four lines; draft_and_check takes it as it is",
    [
        (([1, 2, 3, 1], 2), "1 stood at the beginning, and 2, 3 followed"),
        (([1, 2, 1, 3, 1], 1), "of two earlier occurrences the latest counts"),
        (([5, 5], 3), "a slice past the end is short, and that is fine"),
        (([1, 2, 3], 4), "3 was never seen before: no guess; the last token itself is no earlier occurrence"),
    ],
    lambda r: ([r.randint(0, 3) for _ in range(r.randint(1, 10))], r.randint(0, 5)),
)
def what_followed(text, n):
    """The tokens behind the latest earlier occurrence of the last token."""
    for place in range(len(text) - 2, -1, -1):
        if text[place] == text[-1]:
            return text[place + 1 : place + 1 + n]
    return []
