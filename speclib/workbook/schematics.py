"""Pictures that come before the machinery. python -m speclib.workbook.schematics writes them to notebooks/images."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

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
    words(axis, 4.5, 1.42, r"$w_2 = \min(1,\; w_1\,p(x_2)/q(x_2))$", fontsize=11)
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


def cell(axis: plt.Axes, x: float, y: float, text: str, colour: str, size: float = 0.42, **options) -> None:
    """A square of a row of tokens or cache slots, its centre at x, y."""
    shape = FancyBboxPatch((x - size / 2, y - size / 2), size, size, "round,pad=0,rounding_size=0.05")
    shape.set(**{"facecolor": "white", "edgecolor": colour, "linewidth": 1.6} | options)
    axis.add_patch(shape)
    axis.text(x, y, text, ha="center", va="center", fontsize=9, color="black")


def one_round() -> plt.Figure:
    """A round: the drafter guesses, the target reads all guesses at once, the rule keeps some and adds one token."""
    axis = canvas(9, 2.7)
    box(axis, 0.8, 1.6, "text", "black")
    box(axis, 2.5, 1.6, "drafter", DRAFT, width=1.1)
    for k, mark in enumerate("abcd"):
        cell(axis, 3.75 + 0.5 * k, 1.6, mark, DRAFT)
    box(axis, 6.55, 1.6, "target", TARGET, width=1.1)
    arrow(axis, (1.35, 1.6), (1.85, 1.6))
    arrow(axis, (3.15, 1.6), (3.5, 1.6), DRAFT)
    arrow(axis, (5.55, 1.6), (5.9, 1.6))
    arrow(axis, (7.2, 1.6), (7.5, 1.6), TARGET)
    for k, (mark, colour) in enumerate((("a", ACCEPTED), ("b", ACCEPTED), ("x", TARGET))):
        cell(axis, 7.75 + 0.5 * k, 1.6, mark, colour)
    words(axis, 4.5, 2.25, "four guesses, one after the other: cheap")
    words(axis, 6.55, 0.95, "one pass\nreads all four")
    words(axis, 8.25, 0.95, "two passed, and one\ntoken of its own")
    axis.plot([8.25, 8.25, 0.8], [0.6, 0.25, 0.25], color="grey", linewidth=1.5)
    arrow(axis, (0.8, 0.25), (0.8, 1.25), "grey")
    words(axis, 4.5, 0.42, "the longer text goes into the next round", color="dimgrey")
    return axis.figure


def caches() -> plt.Figure:
    """What each model's cache holds at three moments of a round of three guesses, of which one passes."""
    axis = canvas(9.2, 3.4)
    moments = ("before: the newest\ntoken t is not read yet", "both have read", "after: what was\nrejected goes")
    held = {"draft": (DRAFT, ("..", "..tab", "..ta")), "target": (TARGET, ("..", "..tabc", "..ta"))}
    for m, moment in enumerate(moments):
        words(axis, 2.2 + 2.75 * m, 3.0, moment, fontsize=10)
        for row, (colour, texts) in enumerate(held.values()):
            for k in range(6):
                mark = texts[m][k] if k < len(texts[m]) else ""
                style = {"facecolor": "#f6d5c5"} if m == 1 and mark in ("b", "c") else {}
                style |= {} if mark else {"linestyle": ":", "edgecolor": "lightgrey"}
                cell(axis, 1.15 + 2.75 * m + 0.43 * k, 2.1 - 0.95 * row, mark.replace(".", "·"), colour, 0.4, **style)
    for row, (name, (colour, _)) in enumerate(held.items()):
        words(axis, 0.45, 2.1 - 0.95 * row, name, color=colour, weight="bold")
    words(axis, 4.95, 0.55, "drafted: a b c (the draft never reads its own last guess);  a passes, b does not (shaded)")
    words(axis, 4.95, 0.2, "the round writes a and one token of the target's own, which is the next t")
    return axis.figure


def parallel_heads() -> plt.Figure:
    """One state of the target, several small heads, a place each: none knows what the others guess."""
    axis = canvas(8.4, 2.6)
    box(axis, 1.1, 1.3, "target", TARGET, width=1.1)
    box(axis, 2.9, 1.3, "state", TARGET, width=0.9, linestyle="--")
    arrow(axis, (1.75, 1.3), (2.35, 1.3), TARGET)
    for k, (name, y) in enumerate((("its own head", 2.25), ("head 1", 1.6), ("head 2", 0.95), ("head 3", 0.3))):
        colour = TARGET if k == 0 else DRAFT
        box(axis, 4.75, y, name, colour, width=1.4)
        arrow(axis, (3.45, 1.3), (3.95, y), colour)
        arrow(axis, (5.55, y), (6.15, y), colour)
        cell(axis, 6.45, y, ("t", "a", "b", "c")[k], colour)
        words(axis, 7.5, y, ("next token", "one further", "two further", "three further")[k])
    words(axis, 2.9, 0.35, "the heads are told t, too", fontsize=9)
    return axis.figure


def eagle() -> plt.Figure:
    """Eagle: one layer reads the target's state and the token drawn, and hands its own state to its next step."""
    axis = canvas(9, 2.7)
    for k, x in enumerate((1.6, 4.4, 7.2)):
        box(axis, x, 1.35, "one layer", DRAFT, width=1.2)
        cell(axis, x, 0.4, ("t", "a", "b")[k], TARGET if k == 0 else DRAFT)
        cell(axis, x, 2.3, "abc"[k], DRAFT)
        arrow(axis, (x, 0.65), (x, 1.05), TARGET if k == 0 else DRAFT)
        arrow(axis, (x, 1.65), (x, 2.05), DRAFT)
        if k < 2:
            arrow(axis, (x + 0.7, 1.35), (x + 2.1, 1.35), DRAFT)
            words(axis, x + 1.75, 1.52, "its own state", fontsize=9)
            arrow(axis, (x + 0.3, 2.3), (x + 2.5, 0.5), "grey", linestyle=":")
    arrow(axis, (0.15, 1.35), (0.9, 1.35), TARGET)
    words(axis, 0.5, 1.75, "the target's\nstate", color=TARGET, fontsize=9)
    words(axis, 1.25, 2.3, "drawn", ha="right", fontsize=9)
    return axis.figure


def block() -> plt.Figure:
    """A parallel block: one pass of a layer over the target's states and a mask for each place ahead."""
    axis = canvas(9, 3.0)
    xs = (0.8, 2.0, 3.2, 5.0, 6.6, 8.2)
    axis.add_patch(Rectangle((0.2, 1.15), 8.6, 0.55, facecolor="white", edgecolor=DRAFT, linewidth=2))
    words(axis, 4.1, 1.43, "one layer, one pass")
    for k, x in enumerate(xs[:3]):
        cell(axis, x, 0.5, ("s", "t", "u")[k], TARGET)
        arrow(axis, (x, 0.75), (x, 1.12), TARGET)
    words(axis, 2.0, 0.12, "target's states, newest tokens", color=TARGET, fontsize=9)
    cell(axis, 3.5, 2.35, "u", TARGET)
    arrow(axis, (3.78, 2.35), (4.72, 2.35), "grey", linestyle=":")
    for k, x in enumerate(xs[3:]):
        cell(axis, x, 0.5, "?", DRAFT)
        cell(axis, x, 2.35, "abc"[k], DRAFT)
        arrow(axis, (x, 0.75), (x, 1.12), DRAFT)
        arrow(axis, (x, 1.73), (x, 2.1), DRAFT)
        if k < 2:
            arrow(axis, (x + 0.28, 2.35), (x + 1.32, 2.35), "grey", linestyle=":")
    words(axis, 6.6, 0.12, "a mask for each place ahead", fontsize=9)
    words(axis, 6.6, 2.82, "the first-order head: what came before each guess", color="dimgrey", fontsize=9)
    return axis.figure


def tree() -> plt.Figure:
    """A tree of guesses, its one row of tokens, and the mask: each guess sees the text and its own ancestors."""
    axis = canvas(9, 3.1)
    places = {"text": (0.7, 1.55), "a": (2.0, 2.2), "b": (2.0, 0.9), "c": (3.3, 2.6), "d": (3.3, 1.8), "e": (3.3, 0.9)}
    parents = {"a": "text", "b": "text", "c": "a", "d": "a", "e": "b"}
    for child, parent in parents.items():
        (x, y), (u, v) = places[parent], places[child]
        arrow(axis, (x + (0.5 if parent == "text" else 0.25), y), (u - 0.25, v), DRAFT)
    box(axis, *places["text"], "text", "black", width=0.8)
    for name in parents:
        cell(axis, *places[name], name, DRAFT)
    names = list(parents)
    for k, name in enumerate(names):
        words(axis, 5.55 + 0.43 * k, 2.75, name)
        words(axis, 4.45, 2.4 - 0.43 * k, name)
    words(axis, 4.95, 2.75, "text")
    for i, row in enumerate(names):
        sees, at = {row}, row
        while at in parents:
            at = parents[at]
            sees.add(at)
        for k, column in enumerate(["text", *names]):
            seen = column in sees
            x = 4.95 if k == 0 else 5.55 + 0.43 * (k - 1)
            cell(
                axis, x, 2.4 - 0.43 * i, "", TARGET if seen else "lightgrey", 0.36, facecolor="#cfe3f2" if seen else "w"
            )
    words(axis, 8.35, 1.55, "a row: a guess\nfilled: what it sees", fontsize=9)
    words(axis, 2.0, 0.25, "one pass of the target reads all five")
    return axis.figure


def encoder_decoder() -> plt.Figure:
    """The encoder reads the source once; the rounds concern the decoder alone."""
    axis = canvas(8.4, 2.3)
    box(axis, 0.9, 1.75, "source", "black", width=1.0)
    box(axis, 2.9, 1.75, "encoder", TARGET, width=1.2)
    box(axis, 5.3, 1.75, "states of the source", TARGET, width=2.2, linestyle="--")
    box(axis, 5.3, 0.7, "decoder", TARGET, width=1.2)
    box(axis, 2.3, 0.7, "text and guesses", DRAFT, width=1.7)
    box(axis, 7.5, 0.7, "rule", "black", width=0.9)
    for start, end in (((1.45, 1.75), (2.2, 1.75)), ((3.6, 1.75), (4.1, 1.75)), ((3.2, 0.7), (4.6, 0.7))):
        arrow(axis, start, end)
    arrow(axis, (6.0, 0.7), (6.95, 0.7))
    arrow(axis, (5.3, 1.45), (5.3, 1.0), TARGET)
    words(axis, 2.9, 2.15, "once", color=TARGET)
    words(axis, 5.3, 0.2, "each round: reads the states again, by cross-attention")
    return axis.figure


def oracles() -> plt.Figure:
    """Where each oracle gets its guess from."""
    axis = canvas(9, 3.2)
    rows = (
        ("a small model", "the text", "draft model, distilled or not"),
        ("the target, compressed", "the text", "int8 copy, its first layers"),
        ("the target's own state", "what it thought of the last token", "parallel heads, eagle"),
        ("a search engine", "text that was seen before", "prompt lookup, n-grams, retrieval"),
        ("several of these", "all of it", "trees, ensembles, one first and else another"),
    )
    for x, title in ((1.5, "who guesses"), (4.3, "what it looks at"), (7.2, "in this workbook")):
        words(axis, x, 2.95, title, weight="bold")
    for k, (who, what, here) in enumerate(rows):
        y = 2.45 - 0.52 * k
        box(axis, 1.5, y, who, DRAFT, width=2.3)
        words(axis, 4.3, y, what)
        words(axis, 7.2, y, here)
    return axis.figure


def engines() -> plt.Figure:
    """The same forward by three engines: the products stay, what lies between them shrinks."""
    axis = canvas(9, 2.5)
    rows = (("eager", 10, 0.46), ("fast", 7, 0.22), ("compiled", 7, 0.04))
    for k, (name, count, gap) in enumerate(rows):
        y, x, width = 1.95 - 0.65 * k, 1.5, 2.6 / count
        words(axis, 0.75, y, name, weight="bold")
        for _ in range(count):
            axis.add_patch(Rectangle((x, y - 0.17), width, 0.34, facecolor=TARGET, alpha=0.75))
            axis.add_patch(
                Rectangle((x + width, y - 0.17), gap, 0.34, facecolor="white", edgecolor=REJECTED, hatch="//")
            )
            x += width + gap
    axis.add_patch(Rectangle((1.5, 0.1), 0.3, 0.2, facecolor=TARGET, alpha=0.75))
    words(axis, 1.9, 0.2, "products: read the weights", ha="left", fontsize=9)
    axis.add_patch(Rectangle((4.6, 0.1), 0.3, 0.2, facecolor="white", edgecolor=REJECTED, hatch="//"))
    words(axis, 5.0, 0.2, "between them: Python, dispatch, copies (not to scale)", ha="left", fontsize=9)
    return axis.figure


PICTURES: dict[str, Callable[[], plt.Figure]] = {
    "round": one_round,
    "caches": caches,
    "oracles": oracles,
    "heads": parallel_heads,
    "eagle": eagle,
    "block": block,
    "tree": tree,
    "which_rule": rules,
    "claim": claim,
    "encoder_decoder": encoder_decoder,
    "engines": engines,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        figure = draw()
        figure.savefig(FOLDER / f"{name}.png", dpi=110, facecolor="white", metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
