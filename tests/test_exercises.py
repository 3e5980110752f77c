"""Every exercise of every notebook: the stub is told "not done yet", the solution "correct", a wrong answer neither -
and nothing raises.
"""

import ast

import matplotlib
import pytest

from notebooks import build

EXERCISES = [
    (entry, exercise)
    for entry in build.present()
    for exercise in build.exercises(build.read(build.FOLDER / entry.file))
]


@pytest.fixture(params=EXERCISES, ids=lambda pair: f"{pair[0].number}-cell{pair[1].cell}")
def exercise(request, monkeypatch, capsys):
    """The exercise, and the names that the notebook's imports cell gives it."""
    entry, exercise = request.param
    matplotlib.use("agg")
    monkeypatch.chdir(build.FOLDER)
    (imports,) = build.tagged(build.read(build.FOLDER / entry.file), "imports")
    names = {}
    exec(imports.source, names)
    capsys.readouterr()
    return exercise, names


def told(exercise, names, capsys) -> str:
    exec(exercise.check, names)
    return capsys.readouterr().out


def test_the_stub_is_not_done_yet(exercise, capsys):
    exercise, names = exercise
    exec(exercise.stub, names)
    assert told(exercise, names, capsys).startswith("not done yet")


def test_the_solution_is_correct(exercise, capsys):
    exercise, names = exercise
    exec(exercise.solution, names)
    assert told(exercise, names, capsys).startswith("correct")


def fails(*_args, **_kwargs):
    raise ZeroDivisionError("a reader's mistake")


@pytest.mark.parametrize("answer", [lambda *_args, **_kwargs: None, fails], ids=["None", "raises"])
def test_a_wrong_answer_is_told_so_and_raises_nothing(exercise, answer, capsys):
    exercise, names = exercise
    function = next(node.name for node in reversed(ast.parse(exercise.stub).body) if isinstance(node, ast.FunctionDef))
    answer.__name__ = function
    names[function] = answer
    said = told(exercise, names, capsys)
    assert said.strip() and not said.startswith(("correct", "not done yet"))
