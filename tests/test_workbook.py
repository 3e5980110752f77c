"""The workbook's own room: who may enter it, and what it keeps alive."""

import ast
import base64
import gc
import io
import re
from pathlib import Path

import ipywidgets as widgets
import matplotlib
import pandas as pd
import pytest
import torch
from ipywidgets.widgets import widget as registry
from matplotlib import pyplot as plt

import speclib
from speclib import experiments, lengths
from speclib.loop.trace import Round, Trace
from speclib.workbook import common, n00, n01, n02, n03, n05, n06, n07, n08, n09, n11, n14

HOME = Path(speclib.__file__).parent
COMMANDS = {"demo.py", "bench.py"}  # they draw a figure when the work is done


def imported(source: str) -> set[str]:
    """Every name of a module that a file imports, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names)}
    return found


def test_only_commands_enter_the_workbook():
    files = [f for f in HOME.rglob("*.py") if "workbook" not in f.relative_to(HOME).parts]
    entered = {
        f.name for f in files if any("workbook" in name.split(".") for name in imported(f.read_text(encoding="utf-8")))
    }
    assert files and entered <= COMMANDS | {f.name for f in (HOME / "commands").glob("*.py")}


def test_a_notebook_has_a_room_of_its_own():
    for room in sorted((HOME / "workbook").glob("n*.py")):
        others = {
            name for name in imported(room.read_text(encoding="utf-8")) if name.startswith("n") and name[1:3].isdigit()
        }
        assert not others, room.name
    for notebook in sorted((HOME.parent / "notebooks").glob("*.ipynb")):
        text = notebook.read_text(encoding="utf-8")
        assert f"from speclib.workbook import common, n{notebook.name.split('_')[0]}\\n" in text, notebook.name


def test_a_figure_says_in_words_what_it_shows():
    figure, (left, right) = common.plt.subplots(1, 2)
    left.plot([1, 2], label="draft")
    left.set(title="Speed\nand price", xlabel="gamma", ylabel="times plain")
    right.plot([1, 2], label="target")
    picture, metadata = common.described(figure)
    common.plt.close(figure)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert metadata["alt"] == "Figure: Speed and price (times plain against gamma); target (values against kinds)"


def test_a_table_has_headers_that_wrap_and_blanks_for_what_is_missing():
    frame = pd.DataFrame({"tokens_per_round": [1.2345, float("nan")], 5: [1, 2]}, index=["a", "b_c"])
    page = common.table(frame, 1).data
    assert "<th>tokens per round</th>" in page and "<td>1.2</td>" in page and "<td></td>" in page
    assert "<th>b_c</th>" in page and "<th>5</th>" in page and "b_c" not in common.table(frame, index=False).data


def test_this_machine_in_two_lines():
    first, second = common.here().split("\n")
    assert first.endswith((" thread", " threads")) and torch.__version__ in second and "transformers" in second
    assert common.place({"gpu": "H100", "cpu": "EPYC", "threads": 1}) == "H100, 1 thread"


def test_a_lead_inside_the_intervals_is_called_a_tie():
    table = pd.DataFrame(
        {"speedup": [1.9, 2.0, 1.0], "low": [1.5, 1.9, 1.0], "high": [2.1, 2.2, 1.0]}, index=["a", "b", "plain"]
    )
    assert common.leaders(table) == "b leads, 2.00 times plain; as high within their intervals: a"
    assert common.leaders(table.drop("a")).endswith("within their intervals: none")


def test_guesses_pay_lose_or_are_within_noise():
    prompts = [
        [(1, 0), (1, 0), (3, 2), (3, 3), (5, 0), (7, 4), (0, 0)],
        [(1, 0), (1, 0), (3, 3), (3, 2), (5, 1), (0, 0)],
        [(1, 0), (1, 0), (3, 2), (3, 3), (5, 0), (0, 0), (0, 0)],
    ]
    lines = n08.worth({"code": prompts}, ((1, 2), (3, 4), (5, 6), (7, 7), (8, 9)), 0.4).splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["loses", "pays", "within noise", "too few", "too few"]
    assert "3 to 4 tokens:  30% of rounds, 2.50 guesses pass, the check costs 0.40 more" in lines[1]


def test_rounds_of_one_prompt_are_no_independent_samples():
    """One prompt that gains in a hundred rounds, and one in which as many gain nothing, show no gain together."""
    rounds = [100 * [(1, 1)], 100 * [(1, 0)]]
    line = n08.worth({"code": rounds}, [(1, 2)], 0.1)
    assert line.endswith("0.50 guesses pass, the check costs 0.10 more: within noise")


def test_ten_oracles_of_the_leaderboard():
    rows = pd.DataFrame(experiments.recorded("leaderboard")["rows"])
    table = n09.ten(rows)
    assert list(table.index) == list(n09.TEN) and table.notna().all(axis=None)
    row = rows[(rows["method"] == "eagle") & (rows["domain"] == "edit") & (rows["temperature"] == 0)].iloc[0]
    assert table.loc["eagle", "edit, greedy"] == round(row["speedup"], 2)


# --- widgets ---------------------------------------------------------------------------------------------------------

TIMES = pd.Series({1: 10.0, 2: 11.0, 4: 12.0})
WIDTHS = pd.DataFrame(
    {"width": [1, 2, 4], "ms": [10.0, 11.0, 12.0], "low": [9.0, 10.0, 11.0], "high": [11.0, 12.0, 13.0]}
)
POINTS = pd.DataFrame({"kind": ["measured"], "alpha": [0.6], "speedup": [1.2]})
GRID = pd.DataFrame([(b, n, 9.0 + b * n) for b in (1, 4) for n in (1, 3, 5)], columns=["rows", "tokens", "ms"])
EXITS = pd.DataFrame({"layers": [1, 2], "untrained": [0.1, 0.3], "trained": [0.4, None], "c": [0.2, 0.3]})


@pytest.fixture(scope="module")
def run():
    """A pair and a text of its draft model."""
    matplotlib.use("agg")
    pair = speclib.load_pair(backend="fast")
    out = speclib.generate(pair.target, "def f", speclib.drafters.ModelDrafter(pair.draft), max_new_tokens=8, stop=[])
    return pair, out


BOXES = {
    "race": lambda pair, out: n00.race_slider(out, out),
    "width": lambda pair, out: n01.width_explorer(WIDTHS, {"operations_per_second": 1e12}, [(1, 2), (1, 4), (1, 8)]),
    "oracle": lambda pair, out: n02.oracle_dial(TIMES),
    "round": lambda pair, out: n03.round_stepper(pair, "def f"),
    "speed": lambda pair, out: n05.speed_explorer(POINTS),
    "controller": lambda pair, out: n06.controller_stepper(out.trace, lengths.CostAwareLength({1: 1.0, 5: 1.1}, 0.1)),
    "layers": lambda pair, out: n07.layer_dial(EXITS),
    "lookup": lambda pair, out: n08.lookup_rounds(pair.tokenizer, [1] * 99, out.trace.rounds),
    "tree": lambda pair, out: n09.tree_builder(pair, "def f"),
    "batch": lambda pair, out: n14.switch_dial(GRID, {1: 1.0, 4: 2.0}, 0.6),
    "repair": lambda pair, out: n11.repair_stepper("a source", out, pair.tokenizer),
}


def controls(box) -> list[widgets.Widget]:
    """Every widget in a box that a reader moves."""
    inner = [found for child in getattr(box, "children", ()) for found in controls(child)]
    kinds = widgets.IntSlider | widgets.FloatSlider | widgets.SelectionSlider | widgets.Checkbox
    return inner + [box] * isinstance(box, kinds)


def alive() -> dict:
    """Every widget that is not closed, by its id; where ipywidgets 8.1, 8.0 and 7 keep them."""
    places = (registry, "_instances"), (widgets.Widget, "_active_widgets"), (widgets.Widget, "widgets")
    return next(getattr(place, name) for place, name in places if hasattr(place, name))


def move(control) -> None:
    """To another value, and back."""
    old = control.value
    values = getattr(control, "options", None) or (getattr(control, "min", not old), getattr(control, "max", not old))
    control.value = next(value for value in values if value != old)
    control.value = old


@pytest.mark.parametrize("kind", BOXES)
def test_moves_and_a_second_run_leave_no_widget(kind, run):
    BOXES[kind](*run)
    box = BOXES[kind](*run)  # the cell is run again: the first box is closed
    before = set(alive())
    for control in controls(box):
        move(control)
    assert set(alive()) == before
    again = BOXES[kind](*run)
    assert len(alive()) == len(before) and again.comm is not None and box.comm is None


@pytest.mark.parametrize("kind", BOXES)
def test_a_widget_leaves_a_still_picture_of_three_states(kind, run):
    figures, box = plt.get_fignums(), BOXES[kind](*run)
    moved = controls(box)
    before = [control.value for control in moved], [control.disabled for control in moved]
    data, metadata = box.still()
    if hasattr(widgets.VBox, "_repr_mimebundle_"):  # ipywidgets 8; 7 shows the widget alone
        assert {"application/vnd.jupyter.widget-view+json", *data} <= set(box._repr_mimebundle_()[0])
    assert ([control.value for control in moved], [control.disabled for control in moved]) == before
    said = metadata["image/png"]["alt"] if "image/png" in data else data["text/html"]
    named = re.findall(rf"{re.escape(moved[0].description)} = ([\d.]+)", said)
    ends = getattr(moved[0], "options", None) or (moved[0].min, moved[0].max)
    assert [float(name) for name in named] == sorted({round(v, 2) for v in (ends[0], ends[-1], moved[0].value)})
    if "image/png" in data:
        picture = base64.b64decode(data["image/png"])
        height, width = plt.imread(io.BytesIO(picture), format="png").shape[:2]
        assert len(picture) < 300_000 and height / width > 0.3 * len(named)
    assert plt.get_fignums() == figures


def test_a_box_with_nothing_to_move_shows_what_it_says():
    box = common.box("nothing", [], lambda: "too short")
    assert box.still() == ({}, {}) and box.children[0].value == "too short"
    if hasattr(widgets.VBox, "_repr_mimebundle_"):
        assert set(box._repr_mimebundle_()[0]) == {"text/plain", "application/vnd.jupyter.widget-view+json"}


def test_a_widget_holds_no_model_of_an_earlier_run():
    def live() -> int:
        gc.collect()
        return sum(type(thing) is speclib.LanguageModel for thing in gc.get_objects())

    counts = []
    for _ in range(3):
        pair = speclib.load_pair(backend="fast")
        n03.round_stepper(pair, "def f")
        n09.tree_builder(pair, "def f")
        counts.append(live())
        del pair
    assert counts[0] == counts[1] == counts[2]


# --- what a display promises -----------------------------------------------------------------------------------------


def test_a_lookup_shows_the_very_source_of_its_guesses(run):
    tokenizer = run[0].tokenizer
    text = tokenizer("alpha = beta\n" + "x = 1\n" * 60 + "alpha =")["input_ids"]
    size, end = n08.last_match(text, 4)
    page = n08.lookup_round(tokenizer, text, text[end : end + 2], 1)
    assert size and page.count(n08.GREY) >= 2 and " … " in page  # the source lies far back, and is on the page
    assert "no guess in this round" in n08.lookup_round(tokenizer, text, [], 0)


def test_characters_of_several_tokens_can_be_read(run):
    tokenizer, text = run[0].tokenizer, "# 平均 🎉\n"
    ids = tokenizer(text)["input_ids"]
    rounds = [Round(0, k, [], [], [1.0], 0, [token], 0.0, 0.0, 0.0) for k, token in enumerate(ids)]
    for page in (Trace(tokenizer.decode, rounds).to_html(), n08.lookup_round(tokenizer, ids, [], 0)):
        assert "平" in page and "🎉" in page and "\ufffd" not in page


def test_white_space_on_an_axis_is_seen_and_counted():
    assert common.spaced("\n        $x y\t") == "⏎·×8\\$x·y⇥" and common.spaced("   ") == "···"


def test_a_kept_and_a_rejected_guess_with_something_to_see():
    even, far = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])
    pairs = [(even, even, None), (even, far, None), (far, far, 1), (even, far, 1)]
    records = [{"p": p, "q": q, "replacement": own} for p, q, own in pairs]
    kept, rejected = n03.telling(records)
    assert kept is records[1] and rejected is records[3]
    assert len(n03.telling(records[:1])) == 1  # nothing was rejected


def test_one_alpha_stands_for_guesses_that_are_not_alike():
    assert n07.level([0.3] * 4) == pytest.approx(0.3, abs=1e-3)
    alpha = n07.level([0.5, 0.0])
    assert 1 + alpha + alpha**2 == pytest.approx(1.5, abs=1e-3)
