"""Notebook 02, guess and check: perfect oracles, wrong ones, and their prices."""

from collections.abc import Callable

import ipywidgets as widgets

from ..law import theory
from .common import ACCEPTED, MARKERS, PREDICTED, REJECTED, TARGET, _number, _same, _verdict, picture, plt, tight


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


def priced_oracle(times, quality: float, prices: tuple[float, ...]) -> plt.Figure:
    """Predicted speed-up against the number of guesses, a line a price, the best of each marked.

    times: milliseconds by width (a Series); quality: how often a guess is right; prices: a guess over a target forward.
    """
    lengths = [width - 1 for width in times.index]
    figure, axis = plt.subplots(figsize=(7.5, 3.6))
    for k, price in enumerate(prices):
        speed = [float(theory.speedup(quality, n, price, times[n + 1] / times[1])) for n in lengths]
        best = max(range(len(lengths)), key=speed.__getitem__)
        label = f"a guess costs {price:g}: best {lengths[best]} guesses, {speed[best]:.2f}x"
        axis.plot(
            lengths,
            speed,
            marker=MARKERS[k],
            markersize=4,
            linestyle=("-", "--", "-.")[k % 3],
            color=f"C{k}",
            label=label,
        )
        axis.plot(lengths[best], speed[best], marker=MARKERS[k], markersize=11, color=f"C{k}", markeredgecolor="black")
    axis.axhline(1, color="black", linestyle=":", linewidth=1)
    axis.set(xlabel="guesses a round", ylabel="predicted speed-up", title=f"Guesses right with probability {quality:g}")
    axis.margins(y=0.08)  # the best is marked by a large dot
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=9)
    return tight(figure)


def oracle_dial(times) -> widgets.VBox:
    """Sliders for an oracle's quality and price; the predicted speed-up over the number of guesses, with a measured
    width curve (ms by width).
    """
    quality = widgets.FloatSlider(0.7, min=0.0, max=1.0, step=0.05, continuous_update=False, description="right with a")
    price = widgets.FloatSlider(0.1, min=0.0, max=1.0, step=0.05, continuous_update=False, description="cost c")
    image = widgets.Image(format="png")

    def show(_change=None):
        image.value = picture(priced_oracle(times, quality.value, (price.value,))).value

    quality.observe(show, "value")
    price.observe(show, "value")
    show()
    return widgets.VBox([quality, price, image])


def round_adds(function: Callable) -> None:
    """The agreeing guesses and one token of the target's own."""
    cases = [
        (([5, 6, 7], [5, 6, 7, 8]), _same([5, 6, 7, 8], "all guesses right, and the target's token after them")),
        (
            ([5, 6, 7], [5, 9, 7, 8]),
            _same(
                [5, 9], "the second guess is wrong; the third was checked behind a wrong token and counts for nothing"
            ),
        ),
        (([], [3]), _same([3], "without guesses a round is plain decoding")),
    ]
    _verdict(function, cases, "never less than one token a round")


def repaired_claim(function: Callable) -> None:
    """(n + 1) T(1) / T(n + 1)."""
    flat, rising = {1: 10.0, 2: 10.0, 4: 10.0}, {1: 10.0, 2: 12.0, 4: 20.0}
    cases = [
        ((3, flat), _number(4.0, "if width costs nothing the claim is right")),
        ((3, rising), _number(2.0, "four tokens in 20 ms against 10 ms each")),
    ]
    _verdict(function, cases, "the claim holds only where the width curve is flat")


def wasted(function: Callable) -> None:
    """Positions computed and not kept."""
    cases = [(([(4, 4)],), _number(0, "nothing was wrong")), (([(4, 1), (4, 0), (2, 2)],), _number(7, "3 + 4 + 0"))]
    _verdict(function, cases, "on a busy machine this work is not free")


def what_followed(function: Callable) -> None:
    """The tokens behind the latest earlier occurrence of the last token."""
    cases = [
        (([1, 2, 3, 1], 2), _same([2, 3], "1 stood at the beginning, and 2, 3 followed")),
        (([1, 2, 1, 3, 1], 1), _same([3], "of two earlier occurrences the latest counts")),
        (([5, 5], 3), _same([5], "a slice past the end is short, and that is fine")),
        (
            ([1, 2, 3], 4),
            _same([], "3 was never seen before: no guess; the last token itself is no earlier occurrence"),
        ),
    ]
    _verdict(function, cases, "a search engine in four lines; draft_and_check takes it as it is")
