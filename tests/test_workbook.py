"""The workbook's own room: who may enter it, and what it keeps alive."""

import ast
import base64
from pathlib import Path

import pandas as pd
import torch

import speclib
from speclib import experiments
from speclib.workbook import common, n09

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


def test_ten_oracles_of_the_leaderboard():
    rows = pd.DataFrame(experiments.recorded("leaderboard")["rows"])
    table = n09.ten(rows)
    assert list(table.index) == list(n09.TEN) and table.notna().all(axis=None)
    row = rows[(rows["method"] == "eagle") & (rows["domain"] == "edit") & (rows["temperature"] == 0)].iloc[0]
    assert table.loc["eagle", "edit, greedy"] == round(row["speedup"], 2)
