"""How large each room is, in code lines: a change shows what it adds.

A budget may be raised in a commit of its own that says why. Where a room stands above the size it ought to have (in the
second column), its budget is what it has today, and may only fall.
"""

import ast
import io
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "speclib"
BUDGETS = {  # room: (code lines at most, what it ought to come down to)
    "law": (749, 700),
    "model": (1690, 850),
    "drafters": (1334, 1150),
    "loop": (913, 550),
    "measure": (1390, 650),
    "training": (1286, 800),
    "museum": (440, 400),
    "exactness": (948, 950),
    "workbook": (3040, 1500),
    "commands": (1181, 450),
    ".": (295, 250),
}
SILENT = {getattr(tokenize, name) for name in "COMMENT NL NEWLINE INDENT DEDENT ENDMARKER".split()}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(source: str) -> int:
    """Lines with code on them: comments, docstrings and blank lines not counted."""
    rows = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            rows.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            rows -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(rows)


def test_what_counts():
    assert code_lines('"""Doc."""\n\n# why\nx = [\n    1,\n]\n\n\ndef f():\n    """Says."""\n    return 1\n') == 5


@pytest.mark.parametrize("room", BUDGETS)
def test_a_room_keeps_its_budget(room):
    files = PACKAGE.glob("*.py") if room == "." else (PACKAGE / room).rglob("*.py")
    used, (most, aim) = sum(code_lines(file.read_text("utf-8")) for file in files), BUDGETS[room]
    print(f"{room:10} {used:5} of {most} lines (to come down to {aim})")
    assert 0 < used <= most, f"{room} has {used} code lines; its budget is {most}"


def test_every_room_has_a_budget():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"."}
    assert rooms == set(BUDGETS)


@pytest.mark.parametrize("room", ["law", "model", "drafters", "loop", "measure"])
def test_the_library_does_not_know_that_there_is_a_workbook(room):
    told = [file.name for file in (PACKAGE / room).rglob("*.py") if "notebook" in file.read_text("utf-8").lower()]
    assert not told, f"{told} speak of notebooks"
