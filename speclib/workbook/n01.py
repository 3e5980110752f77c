"""Notebook 01, the bottleneck: caches, width curve, roofline."""

import ipywidgets as widgets
import seaborn as sns
from matplotlib.ticker import LogLocator

from .common import ACCEPTED, REJECTED, TARGET, box, choice, exercise, plt, tight


def cached_against_uncached(rows: list[dict]) -> plt.Figure:
    """Milliseconds for one more token against the length of the text, with and without a cache."""
    figure, axis = plt.subplots()
    for key, look, colour, label in (
        ("uncached", "--s", REJECTED, "no cache: read everything again"),
        ("cached", "-o", ACCEPTED, "cached: read the newest token"),
    ):
        axis.plot([r["length"] for r in rows], [r[key] for r in rows], look, color=colour, label=label)
    axis.set(xlabel="tokens in the text", ylabel="ms for one more token", ylim=(0, None))
    axis.set_title("What the key-value cache saves, on this machine")
    axis.legend()
    return tight(figure)


def width_curve(table, mark: int | None = None) -> plt.Figure:
    """Milliseconds of a forward against its width, with quartiles; the dotted line is one forward per token."""
    figure, axis = plt.subplots()
    axis.fill_between(table["width"], table["low"], table["high"], color=TARGET, alpha=0.25, label="middle half")
    axis.plot(table["width"], table["ms"], marker="o", color=TARGET, label="one forward over n tokens")
    one = table["ms"].iloc[0]
    axis.plot(table["width"], one * table["width"], linestyle=":", color="black", label="n forwards over one")
    if mark is not None:
        row = table[table["width"] == mark].iloc[0]
        axis.plot(mark, row["ms"], "D", color=REJECTED, markersize=11)
        axis.set_title(
            f"{mark} token{'s' * (mark > 1)}: {row['ms']:.1f} ms, {row['ms'] / one:.2f} times one, "
            f"{row['ms'] / mark:.2f} ms a token"
        )
    axis.set_xscale("log", base=2)
    axis.set(xlabel="tokens in one forward, n", ylabel="ms", ylim=(0, 1.4 * table["high"].max()))
    axis.legend()
    return tight(figure)


def layouts(table, floor: float) -> plt.Figure:
    """Milliseconds of a forward against the tokens it reads, a line for each value of `weights`; floor: ms that reading
    the weights takes.
    """
    figure, axis = plt.subplots()
    sns.lineplot(table, x="rows", y="ms", hue="weights", style="weights", markers=True, dashes=False, ax=axis)
    axis.axhline(floor, linestyle="--", color="black", label="reading the weights from memory")
    axis.set(xlabel="tokens in one forward", ylabel="one forward, ms", ylim=(0, 1.4 * table["ms"].max()))
    axis.legend()
    return tight(figure)


def where_time_goes(profiles: dict) -> plt.Figure:
    """The parts of one forward, from `latency.profile`, one bar for each name in `profiles`."""
    figure, axis = plt.subplots(figsize=(9, 1.3 + 0.8 * len(profiles)))
    hatches = ("", "//", "..", "xx", "--", "\\\\")
    for row, (name, table) in enumerate(profiles.items()):
        left = 0.0
        for k, part in enumerate(table.itertuples()):
            look = {"color": f"C{k}", "hatch": hatches[k % len(hatches)], "edgecolor": "white"}
            axis.barh(name, part.ms, left=left, label=part.kind if row == 0 else None, **look)
            left += part.ms
        axis.text(left, row, f" {left:.1f} ms", va="center")
    axis.set(xlabel="ms of one forward over one token")
    axis.set_xlim(0, 1.12 * axis.get_xlim()[1])
    axis.invert_yaxis()
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35), ncol=3, fontsize=9)
    return tight(figure)


def roofline(roof: dict, table, counts: list[tuple[int, int]]) -> plt.Figure:
    """The machine's two limits, and forwards of each width between them. counts: (bytes, operations) of each row of the
    table.
    """
    figure, axis = plt.subplots()
    intensity = [operations / read for read, operations in counts]
    speed = [operations / (1e6 * ms) for (_, operations), ms in zip(counts, table["ms"], strict=True)]
    grid = [min(intensity) / 2 * 1.2**k for k in range(45)]
    axis.loglog(
        grid,
        [min(roof["bytes_per_second"] * x, roof["operations_per_second"]) / 1e9 for x in grid],
        color="black",
        label="memory, then arithmetic",
    )
    axis.loglog(intensity, speed, "o", color=TARGET, label="forwards of this model")
    for width in (1, 8, 64):
        k = list(table["width"]).index(width)
        words = f"{width} token{'s' * (width > 1)}"
        axis.annotate(words, (intensity[k], speed[k]), xytext=(8, -4), textcoords="offset points", fontsize=10)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for ruler in (axis.xaxis, axis.yaxis):
        ruler.set_major_formatter("{x:g}")
        ruler.set_minor_formatter("")
    axis.set(xlabel="operations per byte of weights read", ylabel="GFLOP/s", title="Roofline, measured on this machine")
    axis.legend()
    return tight(figure)


def width_explorer(table, roof: dict, counts: list[tuple[int, int]]) -> widgets.VBox:
    """A slider over the measured widths: the place on the width curve, and how much of the arithmetic is used."""
    widths = list(table["width"])

    def draw(width):
        k = widths.index(width)
        used = counts[k][1] / (1e-3 * table["ms"].iloc[k]) / roof["operations_per_second"]
        words = f"{counts[k][1] / counts[k][0]:.1f} operations per byte; "
        return width_curve(table, width), words + f"<b>{used:.1%}</b> of the arithmetic this machine can do"

    return box("width", [choice("tokens", widths[len(widths) // 2], widths)], draw)


@exercise(
    "faster than this needs more than one token a forward",
    [
        ((7e9, 2, 3.5e12), "14 GB at 3.5 TB/s"),
        ((1e9, 4, 40e9), "4 GB at 40 GB/s"),
        ((8e9, 0.5, 100e9), "4 bits a weight: 4 GB at 100 GB/s"),
    ],
    lambda r: (r.randint(1, 700) * 1e8, r.choice([0.5, 1, 2, 4, 8]), r.randint(1, 400) * 1e10),
)
def most_tokens_per_second(parameters, size, bandwidth):
    """bandwidth / (parameters size)."""
    return bandwidth / (parameters * size)


@exercise(
    "up to there the memory sets the limit",
    [
        ((2, 3.35e12, 990e12), "a large GPU in half precision: about 300 tokens"),
        ((4, 40e9, 200e9), "4 bytes, 5 operations a byte"),
        ((1, 40e9, 200e9), "a quarter of the size, a quarter of the width: a token costs two operations a weight"),
    ],
    lambda r: (r.choice([0.5, 1, 2, 4, 8]), r.randint(1, 400) * 1e10, r.randint(1, 900) * 1e11),
)
def ridge_width(size, bandwidth, operations):
    """size operations / (2 bandwidth)."""
    return size * operations / (2 * bandwidth)


@exercise(
    "with a cache it would be prompt + new - 1",
    [((100, 1), "one token: the prompt once"), ((100, 3), "100 + 101 + 102"), ((10, 5), "10 + 11 + 12 + 13 + 14")],
    lambda r: (r.randint(1, 300), r.randint(0, 40)),
)
def uncached_positions(prompt, new):
    """prompt + (prompt + 1) + ..."""
    return sum(prompt + i for i in range(new))
