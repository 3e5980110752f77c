"""What notebooks share: the look of figures, the box of sliders that redraws one, and the check of an exercise."""

import base64
import ctypes
import io
import math
import random
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial, wraps
from itertools import islice
from numbers import Integral, Real
from textwrap import wrap
from time import monotonic, process_time
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.transforms import Bbox

from ..errors import ModelLoadError
from ..measure.experiments import machine
from ..measure.machine import usual_dtype
from ..model import gguf
from ..model.language_model import LanguageModel, load_model

# --- figures ---------------------------------------------------------------------------------------------------------

TARGET, DRAFT, ACCEPTED, REJECTED, PREDICTED = sns.color_palette("colorblind", 10).as_hex()[0:5]
MARKERS = "osD^vPX*"  # a second cue beside colour


def style() -> None:
    """One look for all figures, on an opaque background: call it once, after the imports."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    size = {"figure.figsize": (8, 4.2), "figure.dpi": 90, "savefig.dpi": 150}
    plt.rcParams.update(size | {"figure.facecolor": "white", "axes.facecolor": "white", "legend.frameon": True})
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


def real_model() -> tuple[LanguageModel | None, str]:
    """(SmolLM2, its description), or (None, why it is not here) and then everything goes on without it."""
    if not gguf.packaged():
        return None, f"{gguf.PACKAGE} is not installed"
    try:
        target = load_model("smollm2", dtype=usual_dtype(), backend="fast")
        return target, str(target)
    except ModelLoadError as error:
        return None, str(error)


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


def visible(text: str) -> str:
    """Text whose white space can be seen."""
    return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")


def spaced(text: str) -> str:
    """A token's text on an axis: white space can be seen, long runs of it are counted, nothing is a formula."""
    return re.sub("·{4,}", lambda run: f"·×{len(run[0])}", visible(text)).replace("$", r"\$")


def two_distributions(p, q, names: list[str] | None = None, axis: plt.Axes | None = None) -> plt.Axes:
    """Bars of p (target) and q (draft) over the same tokens [V], their overlap dark, what p has above q hatched."""
    if axis is None:
        _, axis = plt.subplots()
    p, q = [float(v) for v in p], [float(v) for v in q]
    places, common = range(len(p)), list(map(min, p, q))
    excess = [a - least for a, least in zip(p, common, strict=True)]
    axis.bar(places, p, 0.8, color=TARGET, alpha=0.35, edgecolor=TARGET, linewidth=1.5, label="target p")
    hatched = {"color": "none", "edgecolor": TARGET, "hatch": "///", "linewidth": 0}
    axis.bar(places, excess, 0.8, bottom=common, label="p above q: the residual", **hatched)
    axis.bar(places, common, 0.8, color=ACCEPTED, alpha=0.75, label="overlap min(p, q)")
    dash = {"linestyle": "none", "marker": "_", "markersize": 34 if len(p) < 8 else 22, "markeredgewidth": 3}
    axis.plot(places, q, color=DRAFT, label="draft q", **dash)
    axis.set_xticks(list(places), names or [str(k) for k in places])
    axis.set(xlabel="token", ylabel="probability")
    axis.legend(fontsize=9, markerscale=0.5)
    return axis


def beside(axis: plt.Axes, points: dict[str, tuple[float, float]]) -> None:
    """Names beside their points, each at the first of ten places where it stays inside and covers no mark, no name and
    no other text.
    """
    heights = (4, -12, 16, -24, 28)  # points above the mark's middle
    places = [(x, y, side) for y in heights for x, side in ((7, "left"), (-7, "right"))]
    covered = [
        Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in axis.transData.transform(list(points.values()))
    ]
    covered += [text.get_window_extent() for text in axis.texts]
    over = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5}  # the lines of equal speed-up
    for name, point in points.items():
        text = axis.annotate(name, point, textcoords="offset points", xytext=(0, 0), fontsize=9, bbox=over)
        for x, y, side in [*places, places[0]]:  # back to the first if none is free
            text.set(position=(x, y), ha=side)
            box = text.get_window_extent()
            if axis.bbox.containsx(box.x0) and axis.bbox.containsx(box.x1) and not box.count_overlaps(covered):
                break
        covered.append(box)


def folded(text: str, columns: int = 95) -> str:
    """A text whose longer lines are broken between words; white space stays as it is."""
    lines = (wrap(line, columns, drop_whitespace=False, replace_whitespace=False) or [""] for line in text.split("\n"))
    return "\n".join(part for parts in lines for part in parts)


def leaders(table) -> str:
    """Who leads a table of speed-ups (a row a method; columns speedup, low, high), and whose interval reaches as high:
    a tie, in words.
    """
    best = table["speedup"].max()
    near = table.index[table["high"] >= best].drop(table["speedup"].idxmax())
    return (
        f"{table['speedup'].idxmax()} leads, {best:.2f} times plain; as high within their intervals: "
        f"{'; '.join(near) or 'none'}"
    )


# --- widgets ---------------------------------------------------------------------------------------------------------

WIDE = {"continuous_update": False, "layout": {"width": "95%"}, "style": {"description_width": "initial"}}
_boxes: dict[str, widgets.Box] = {}  # kind -> the box that is alive


def integer(name: str, value: int, low: int, high: int) -> widgets.IntSlider:
    """A slider over whole numbers, as wide as the page."""
    return widgets.IntSlider(value=value, min=low, max=high, description=name, **WIDE)


def real(name: str, value: float, low: float, high: float, step: float) -> widgets.FloatSlider:
    """A slider over numbers, as wide as the page."""
    return widgets.FloatSlider(value=value, min=low, max=high, step=step, description=name, **WIDE)


def choice(name: str, value: Any, options: Sequence) -> widgets.SelectionSlider:
    """A slider over listed values, as wide as the page."""
    return widgets.SelectionSlider(options=options, value=value, description=name, **WIDE)


def png(figure: plt.Figure, dpi: float | None = None) -> bytes:
    """A figure as PNG; it is closed, so that it is not shown a second time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", facecolor="white", dpi=dpi)
    plt.close(figure)
    return buffer.getvalue()


class Box(widgets.VBox):
    """A widget that leaves a still picture behind, for whoever reads the notebook without a kernel."""

    def still(self) -> tuple[dict, dict]:
        """(data, metadata) by MIME type; `box` puts another in its place where there is something to move."""
        return {}, {}

    def _repr_mimebundle_(self, **options):
        data, metadata = self.still()
        return {**super()._repr_mimebundle_(**options), **data}, metadata


def still(controls: Sequence[widgets.Widget], draw: Callable) -> tuple[dict, dict]:
    """What `draw` shows where the first control stands at its lowest, its highest and its own value: the figures below
    each other, or if there are none the HTML.
    """
    first, others = controls[0], [control.value for control in controls[1:]]
    ends = getattr(first, "options", None) or (first.min, first.max)
    places = dict.fromkeys((ends[0], ends[-1], first.value))
    drawn = {place: draw(place, *others) for place in places}  # its own value last: `draw` may set other controls
    names = {value: f"{first.description} = {round(value, 2)}" for value in sorted(drawn)}
    parts = [(name, part) for value, name in names.items() for part in _parts(drawn[value])]
    figures = [(name, part) for name, part in parts if not isinstance(part, str)]
    if not figures:
        return {"text/html": "".join(f"<p><b>{name}</b></p>{part}" for name, part in parts)}, {}
    images = []
    for name, figure in figures:
        figure.text(0, 1.01, name, fontweight="bold")
        images.append(plt.imread(io.BytesIO(png(figure, dpi=70))))
    width, stacked = max(image.shape[1] for image in images), io.BytesIO()
    padded = [np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0)), constant_values=1) for image in images]
    plt.imsave(stacked, np.vstack(padded), format="png")
    said = f"What the slider changes: the figure at {', '.join(dict(figures))}"
    return {"image/png": base64.b64encode(stacked.getvalue()).decode()}, {"image/png": {"alt": said}}


def _parts(drawn) -> tuple:
    return drawn if isinstance(drawn, tuple) else (drawn,)


def box(kind: str, controls: Sequence[widgets.Widget], draw: Callable, together: bool = False) -> widgets.VBox:
    """Controls above what `draw(*their values)` returns: a figure, HTML, or several of these as a tuple.

    ipywidgets keeps every widget until it is closed, and a widget keeps what its callback draws from. So the last box
    of this kind is closed first, and a move replaces the bytes of one image. together: the controls in a box of their
    own.
    """
    if kind in _boxes:
        close(_boxes.pop(kind))

    def drawn() -> list[bytes | str]:
        made = _parts(draw(*(control.value for control in controls)))
        return [part if isinstance(part, str) else png(part) for part in made]

    parts = drawn()
    panes = [widgets.HTML(part) if isinstance(part, str) else widgets.Image(value=part, format="png") for part in parts]

    def show(_change) -> None:
        for pane, part in zip(panes, drawn(), strict=True):
            pane.value = part

    for control in controls:
        control.observe(show, "value")
    _boxes[kind] = Box([widgets.VBox(list(controls)), *panes] if together else [*controls, *panes])
    if controls:
        _boxes[kind].still = partial(still, controls, draw)
    return _boxes[kind]


def close(widget: widgets.Widget) -> None:
    """Closes a widget with all that is in it, and lets go of what its callbacks hold."""
    for part in (*getattr(widget, "children", ()), getattr(widget, "layout", None), getattr(widget, "style", None)):
        if part is not None:
            close(part)
    widget.unobserve_all()
    vars(widget).pop("still", None)
    widget.close()


# --- the check of an exercise ----------------------------------------------------------------------------------------

TRIALS = 30  # random inputs beside the cases that teach
SECONDS = 2.0  # of processor time, for one call
LONGEST = 10_000  # entries of an answer that are looked at
NEAR = 1e-5  # single precision

Case = tuple[tuple, str]  # arguments, and why the answer is what it is


def exercise(
    praise: str,
    teach: Sequence[Case],
    draw: Callable[[random.Random], tuple | None] | None,
    tell: bool = True,
    near: float = NEAR,
) -> Callable:
    """Turns a reference solution into the check of an exercise.

    The check takes the reader's function, prints one verdict and never raises: "not done yet" while the stub returns
    `...`, "not yet" with the first call that went wrong, or "correct" with `praise`. It compares with the reference on
    `teach`, on TRIALS inputs from `draw` (which may return None for an input without a clear answer), and last on
    `teach` again, in case an answer remembers. Without `draw`, on `teach` alone. tell: whether to say what was
    expected. near: how far off a number may be, as a share of it.
    """

    def make(reference: Callable) -> Callable:
        name = reference.__name__

        def inputs() -> Iterator[Case]:
            yield from teach
            if draw:
                r = random.Random(name)
                drawn = filter(None, iter(lambda: draw(r), ...))
                yield from ((arguments, "") for arguments in islice(drawn, TRIALS))
                yield from ((arguments, "this call was right the first time it was made") for arguments, _ in teach)

        @wraps(reference)
        def check(function: Callable) -> None:
            if not callable(function):
                print(
                    f"not yet: {name} wants the function, not {shown(function)}: leave out what stands behind its name"
                )
                return
            for arguments, why in inputs():
                wanted = plain(reference(*deepcopy(arguments)))
                if said := complaint(name, function, arguments, wanted, why, tell, near):
                    print(said)
                    return
            print(f"correct: {praise}")

        check.teach, check.draw, check.near = teach, draw, near
        return check

    return make


def complaint(
    name: str, function: Callable, arguments: tuple, wanted: Any, why: str, tell: bool, near: float
) -> str | None:
    """What is wrong with one call of a reader's function, beginning with the call; None if nothing is."""
    given, out = deepcopy(arguments), io.StringIO()
    answer, trouble = fenced(function, given, wanted, out)
    if answer is ...:
        return "not done yet: replace the ... in the cell above, run that cell, and then this one"
    changed = [
        new
        for new, old in zip(given, arguments, strict=True)
        if isinstance(old, list | dict) and repr(new) != repr(old)
    ]
    if not trouble and not changed and agrees(answer, wanted, near):
        return None
    expected = f"; expected {shown(wanted)}" if tell else ""
    if changed and not trouble:
        trouble = f"changed what it was given, to {shown(changed[0])}: others still need it, so work on a copy"
    elif answer is None and not trouble:
        trouble = f"returned nothing (None): is the word `return` missing?{expected}"
    elif not trouble:
        kinds = kind(answer), kind(wanted)
        differ = f" ({kinds[0]}, not {kinds[1]})" if kinds[0] != kinds[1] and wanted is not None else ""
        trouble = f"returned {shown(answer)}{differ}{expected}" + (f": {why}" if why else "")
    printed = f"; it printed {shown(out.getvalue())}" if out.getvalue() else ""
    return f"not yet: {name}({', '.join(map(shown, arguments))}) {trouble}{printed}"


class TooLong(BaseException):
    """Raised in a reader's function that does not come to an end; no `except Exception` there may catch it."""


def fenced(function: Callable, arguments: tuple, wanted: Any, out: io.StringIO) -> tuple[Any, str | None]:
    """(the answer as plain Python, what went wrong in words or None) of one call; what it prints goes to `out`.

    It runs in a thread of its own: an exception is raised in it from outside when its time is over, and again if a bare
    `except` swallows that one; what swallows all of them is left behind, so that the notebook goes on. (Signals would
    reach the main thread alone, and Windows has no timers.) A busy machine is no endless loop: what counts is processor
    time, and a fifth of the clock.
    """
    found, cpu, clock = [], process_time(), monotonic()

    def work() -> None:
        try:
            found.append((plain(function(*arguments), wanted), None))
        except TooLong:
            pass
        except SystemExit:
            found.append((None, "left Python by exit: return the answer instead"))
        except BaseException as error:
            found.append((None, f"raised {type(error).__name__}: {str(error)[:200]}; so nothing was returned"))

    worker = threading.Thread(target=work, daemon=True)
    with redirect_stdout(out):
        worker.start()
        worker.join(0.02)
        while worker.is_alive() and (spent := max(process_time() - cpu, (monotonic() - clock) / 5)) < 2 * SECONDS:
            if spent > SECONDS:
                here, error = ctypes.c_ulong(worker.ident), ctypes.py_object(TooLong)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(here, error)
            worker.join(0.02)
    still = ", and cannot be stopped: restart the kernel" if worker.is_alive() else ""
    return found[0] if found else (None, f"had not come to an end after some seconds{still}: does a loop never stop?")


def plain(answer: Any, wanted: Any = ()) -> Any:
    """An answer as plain Python: numbers of any type, and arrays, tuples and generators as lists; others as they are.

    An array of one entry is a number where a number is wanted.
    """
    if hasattr(answer, "tolist"):  # numpy, torch, pandas
        answer = answer.tolist()
        while isinstance(answer, list) and len(answer) == 1 and isinstance(wanted, Real):
            answer = answer[0]
    if isinstance(answer, bool | str | bytes | dict | set | frozenset):
        return answer
    if isinstance(answer, Integral):
        return int(answer)
    if isinstance(answer, Real | Decimal):
        return float(answer)
    return [plain(entry) for entry in islice(answer, LONGEST)] if isinstance(answer, Iterable) else answer


def agrees(answer: Any, wanted: Any, near: float) -> bool:
    """Whether plain answers are the same, numbers up to a share `near`. Text is no number, and neither is True."""
    if isinstance(wanted, list):
        same = isinstance(answer, list) and len(answer) == len(wanted)
        return same and all(agrees(a, w, near) for a, w in zip(answer, wanted, strict=True))
    if not isinstance(answer, Real) or not isinstance(wanted, Real):
        return type(answer) is type(wanted) and answer == wanted
    if isinstance(answer, bool) and not isinstance(wanted, bool):
        return False
    return math.isclose(answer, wanted, rel_tol=0 if isinstance(wanted, int) else near, abs_tol=1e-4)


def kind(value: Any) -> str:
    """What a value is, in a reader's words."""
    names = {bool: "True or False", str: "text", Real: "a number", list: "a list", dict: "a dictionary", set: "a set"}
    return next((words for kind, words in names.items() if isinstance(value, kind)), f"a {type(value).__name__}")


def shown(value: Any) -> str:
    """A value as a reader would write it, numbers to six digits, at most 200 characters."""
    if isinstance(value, float):
        text = repr(float(f"{value:.6g}"))
    elif isinstance(value, list | tuple):
        inside = ", ".join(map(shown, value[:50])) + ", ..." * (len(value) > 50)
        text = f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{shown(key)}: {shown(entry)}" for key, entry in value.items()) + "}"
    else:
        try:
            text = repr(value)
        except Exception:  # it is the reader's
            text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else text[:197] + "..."


# --- random arguments ------------------------------------------------------------------------------------------------


def chance(r: random.Random) -> float:
    """A probability, 0 and 1 more often than others."""
    return r.choice([0.0, 1.0, *(round(r.random(), 2) for _ in range(6))])


def law(r: random.Random, size: int, zeros: bool = True) -> list[float]:
    """Probabilities of `size` tokens, multiples of 1/20, so that they print short and may be equal."""
    cuts = [r.randint(0, 20) for _ in range(size - 1)] if zeros else r.sample(range(1, 20), size - 1)
    ends = [0, *sorted(cuts), 20]
    return [(high - low) / 20 for low, high in zip(ends, ends[1:], strict=False)]


def two_laws(r: random.Random) -> tuple[list[float], list[float]]:
    """p and q over the same tokens; now and then the same, or without a common token."""
    size, one = r.randint(2, 6), r.random()
    p, q = law(r, size), law(r, size)
    return (p, list(p)) if one < 0.1 else (p + [0.0] * size, [0.0] * size + q) if one < 0.2 else (p, q)


def pairs(r: random.Random, most: int = 8) -> list[tuple[int, int]]:
    """Rounds as pairs (guessed, right), at least one guess in all."""
    return [(n := r.randint(k == 0, most), r.randint(0, n)) for k in range(r.randint(1, 6))]


def width_prices(r: random.Random, first: float | None = None) -> dict[int, float]:
    """The price of a forward by its width, 1 to 16, in any order and with bumps; `first` is the price of one token."""
    widths = r.sample(range(1, 17), 16)
    return {n: first if first and n == 1 else round(r.uniform(1, 3), 2) for n in widths}
