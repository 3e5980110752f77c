"""Pictures that come before the machinery. python -m speclib.workbook.schematics writes them to notebooks/images."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from .common import ACCEPTED, DRAFT, REJECTED, TARGET, plt

Point = tuple[float, float]
FOLDER = Path(__file__).resolve().parents[2] / "notebooks" / "images"


def canvas(width: float, height: float) -> plt.Axes:
    """An empty sheet, a unit an inch, white also on a dark page."""
    figure, axis = plt.subplots(figsize=(width, height), facecolor="white")
    figure.subplots_adjust(0, 0, 1, 1)
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    return axis


def box(axis: plt.Axes, x: float, y: float, text: str, colour: str, width: float = 0.9, **options) -> None:
    """A rounded box around a word, its centre at x, y."""
    shape = FancyBboxPatch((x - width / 2, y - 0.22), width, 0.44, "round,pad=0.03,rounding_size=0.1")
    shape.set(facecolor="white", edgecolor=colour, linewidth=2, **options)
    axis.add_patch(shape)
    axis.text(x, y, text, ha="center", va="center", fontsize=11, color="black")


def arrow(axis: plt.Axes, start: Point, end: Point, colour: str = "black", **style) -> None:
    axis.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=colour, linewidth=1.5, **style)
    )


def words(axis: plt.Axes, x: float, y: float, text: str, **style) -> None:
    axis.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 10, "color": "black"} | style)


def rules() -> plt.Figure:
    """Three ways to judge guesses: one after the other, as a block, several at one place."""
    axis = canvas(9, 3.3)
    for left, title in ((0, "token"), (3.1, "block"), (6.2, "several drafts")):
        words(axis, left + 1.4, 3.05, title, fontsize=13, weight="bold")
    for k in range(2):  # a door before each guess
        box(axis, 0.75 + 1.3 * k, 2.2, f"guess {k + 1}", DRAFT)
        words(axis, 0.75 + 1.3 * k, 1.65, rf"$p(x_{k + 1})/q(x_{k + 1})$", fontsize=11)
    arrow(axis, (1.25, 2.2), (1.55, 2.2), ACCEPTED)
    words(axis, 1.4, 0.75, "a door each:\nthe first that stays shut\nends the round")
    for k in range(2):  # one product for both
        box(axis, 3.85 + 1.3 * k, 2.2, f"guess {k + 1}", DRAFT)
    axis.plot([3.4, 3.4, 5.6, 5.6], [1.85, 1.72, 1.72, 1.85], color=TARGET, linewidth=2)
    words(axis, 4.5, 1.42, r"$p(x_1)\,p(x_2)\;/\;q(x_1)\,q(x_2)$", fontsize=11)
    words(axis, 4.5, 0.65, "one weight for all so far:\nthe last test that passes\nends the round")
    box(axis, 6.75, 1.95, "text", "black", width=0.7)
    for k, y in enumerate((2.5, 1.95, 1.4)):
        box(axis, 8.2, y, f"guess {'abc'[k]}", DRAFT)
        arrow(axis, (7.15, 1.95), (7.7, y), (ACCEPTED, REJECTED, "grey")[k])
    words(axis, 7.6, 0.65, "one place, several chances:\neach is judged by what the ones\nbefore have left of $p$")
    return axis.figure


def claim() -> plt.Figure:
    """A drafter makes a token and states a law; the rule believes the law."""
    axis = canvas(8.4, 2.5)
    box(axis, 1.0, 1.25, "drafter", DRAFT, width=1.3)
    box(axis, 3.7, 1.9, "token x", DRAFT, width=1.3)
    box(axis, 3.7, 0.6, "claimed q", DRAFT, width=1.3, linestyle="--")
    box(axis, 6.1, 1.25, "rule", TARGET, width=1.0)
    box(axis, 7.7, 1.25, "text", ACCEPTED, width=0.9)
    for start, end in (((1.7, 1.4), (3.0, 1.85)), ((1.7, 1.1), (3.0, 0.65)), ((4.4, 1.85), (5.55, 1.4))):
        arrow(axis, start, end)
    arrow(axis, (4.4, 0.65), (5.55, 1.1))
    arrow(axis, (6.65, 1.25), (7.2, 1.25))
    arrow(axis, (6.1, 2.15), (6.1, 1.55), TARGET)
    words(axis, 6.1, 2.3, "target's p")
    arrow(axis, (3.7, 1.6), (3.7, 0.9), REJECTED, linestyle=":")
    words(axis, 3.85, 1.25, "must be drawn from it", ha="left", color=REJECTED, fontsize=9)
    return axis.figure


PICTURES: dict[str, Callable[[], plt.Figure]] = {"which_rule": rules, "claim": claim}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        figure = draw()
        figure.savefig(FOLDER / f"{name}.png", dpi=110, facecolor="white", metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
