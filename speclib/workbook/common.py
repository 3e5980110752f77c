"""What several notebooks share: the look of figures, the slider that redraws one, and the check of an exercise."""

import base64
import io
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as widgets
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt

from ..measure.experiments import machine

TARGET, DRAFT, ACCEPTED, REJECTED, PREDICTED = sns.color_palette("colorblind", 10).as_hex()[0:5]
MARKERS = "osD^vPX*"


def style() -> None:
    """One look for all figures: call it once, after the imports."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.figsize": (8, 4.2),
            "figure.dpi": 90,
            "savefig.dpi": 150,
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "legend.frameon": True,
        }
    )
    if shell := sys.modules["IPython"].get_ipython():  # ipywidgets brings IPython; no shell: no notebook
        plt.switch_backend(plt.get_backend())  # it registers its own way to show a figure, and ours comes after it
        shell.display_formatter.formatters["image/png"].for_type(plt.Figure, described)


def described(figure: plt.Figure) -> tuple[str, dict]:
    """A figure as PNG in base64, and its metadata: an alternative text, which nbconvert's classic template shows."""
    said = []
    for axis in figure.axes:
        what = axis.get_title() or ", ".join(axis.get_legend_handles_labels()[1]) or "values"
        said.append(f"{what} ({axis.get_ylabel() or 'values'} against {axis.get_xlabel() or 'kinds'})")
    text = "; ".join(filter(None, [figure.get_suptitle(), *said])).replace("\n", " ")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", dpi=figure.dpi)
    return base64.b64encode(buffer.getvalue()).decode(), {"alt": f"Figure: {text}"}


def here() -> str:
    """This machine and the versions that run on it, in two lines."""
    facts = machine()
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers"))
    return f"{place(facts)}\nPython {facts['python']}, {versions}"


def place(facts: dict) -> str:
    """The processor or GPU of `experiments.machine()`, and its threads."""
    return f"{facts['gpu'] or facts['cpu']}, {facts['threads']} thread{'s' * (facts['threads'] > 1)}"


@dataclass(frozen=True)
class Shown:
    """What a notebook displays as HTML."""

    data: str = field(repr=False)  # a notebook keeps it once, and not as text a second time

    def _repr_html_(self) -> str:
        return self.data


def table(frame: pd.DataFrame, digits: int = 2, index: bool = True) -> Shown:
    """A frame, rounded, as a table whose headers wrap; missing values are left blank."""
    named = frame.rename(columns=lambda name: name.replace("_", " ") if isinstance(name, str) else name)
    return Shown(named.round(digits).to_html(index=index, border=0, na_rep=""))


def tight(figure: plt.Figure) -> plt.Figure:
    """The same figure, without margins that nothing stands in."""
    figure.tight_layout()
    return figure


def two_distributions(p, q, names: list[str] | None = None, axis: plt.Axes | None = None) -> plt.Axes:
    """Bars of p (target) and q (draft) over the same tokens [V], their overlap dark, what p has above q hatched."""
    if axis is None:
        _, axis = plt.subplots()
    p, q = [float(v) for v in p], [float(v) for v in q]
    places = range(len(p))
    axis.bar(places, p, 0.8, color=TARGET, alpha=0.35, edgecolor=TARGET, linewidth=1.5, label="target p")
    axis.bar(
        places,
        [max(a - b, 0) for a, b in zip(p, q, strict=True)],
        0.8,
        bottom=[min(a, b) for a, b in zip(p, q, strict=True)],
        color="none",
        edgecolor=TARGET,
        hatch="///",
        linewidth=0,
        label="p above q: the residual",
    )
    axis.bar(
        places,
        [min(a, b) for a, b in zip(p, q, strict=True)],
        0.8,
        color=ACCEPTED,
        alpha=0.75,
        label="overlap min(p, q)",
    )
    axis.plot(
        places,
        q,
        linestyle="none",
        marker="_",
        markersize=34 if len(p) < 8 else 22,
        markeredgewidth=3,
        color=DRAFT,
        label="draft q",
    )
    axis.set_xticks(list(places), names or [str(k) for k in places])
    axis.set(xlabel="token", ylabel="probability")
    axis.legend(fontsize=9, markerscale=0.5)
    return axis


def leaders(table) -> str:
    """Who leads a table of speed-ups (a row a method; columns speedup, low, high), and whose interval reaches as high:
    a tie, in words.
    """
    best = table["speedup"].max()
    near = table.index[table["high"] >= best].drop(table["speedup"].idxmax())
    return (
        f"{table['speedup'].idxmax()} leads, {best:.2f} times plain; as high within their intervals: "
        f"{', '.join(near) or 'none'}"
    )


def picture(figure) -> widgets.Image:
    """A matplotlib figure as an image widget; the figure is closed, so that it is not shown a second time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return widgets.Image(value=buffer.getvalue(), format="png")


def _verdict(function: Callable, cases: Iterable[tuple[tuple, Callable[[Any], str | None]]], praise: str) -> None:
    """Runs `function` on each case's arguments; the case says what is wrong with the answer, or None if nothing is."""
    for arguments, complaint in cases:
        try:
            answer = function(*arguments)
        except Exception as error:
            print(f"{function.__name__} raised {type(error).__name__}: {error}")
            return
        if answer is ...:
            print("not done yet: replace the ... and run this cell again")
            return
        try:
            wrong = complaint(answer)
        except Exception as error:
            wrong = f"returned {answer!r}, which could not be compared ({type(error).__name__}: {error})"
        if wrong:
            print(f"not yet: {wrong}")
            return
    print(f"correct: {praise}")


def _law(wanted: list[float], why: str) -> Callable[[Any], str | None]:
    """A complaint about a list of probabilities that is not `wanted`."""

    def complaint(answer):
        values = [float(v) for v in answer]
        close = len(values) == len(wanted) and all(abs(a - b) < 1e-9 for a, b in zip(values, wanted, strict=True))
        return (
            None if close else f"expected {[round(v, 4) for v in wanted]}, got {[round(v, 4) for v in values]}: {why}"
        )

    return complaint


def _number(wanted: float, why: str) -> Callable[[Any], str | None]:
    """A complaint about a number that is not `wanted`."""
    return lambda answer: (
        None if abs(float(answer) - wanted) < 1e-9 else f"expected {wanted:.6g}, got {float(answer):.6g}: {why}"
    )


def _same(wanted: Any, why: str) -> Callable[[Any], str | None]:
    """A complaint about anything that is not `wanted`."""
    return lambda answer: None if answer == wanted else f"expected {wanted!r}, got {answer!r}: {why}"
