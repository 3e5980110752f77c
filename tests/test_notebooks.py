"""The anatomy of every notebook, and of the tool that checks it."""

import nbformat
import pytest

from notebooks import build

ENTRIES = pytest.mark.parametrize("entry", build.present(), ids=lambda entry: entry.number)


def test_the_contents_are_the_notebooks_that_exist():
    assert sorted(path.name for path in build.FOLDER.glob("*.ipynb")) == [entry.file for entry in build.CONTENTS]


@ENTRIES
def test_anatomy(entry):
    assert build.problems(build.read(build.FOLDER / entry.file), entry) == []


@ENTRIES
def test_the_solved_copy_is_todays(entry):
    assert build.stale(entry) == []


# --- the checks themselves, on a notebook made here ---------------------------------------------------------------

SOURCE = """\
# %% [markdown]
# ## Goals
# - one
# - two
# - three
#
# Prerequisites: none. **Predict first** <details>...</details>

# %% tags=["imports"]
from speclib.workbook import n03

{exercises}
# %% [markdown]
# ## Recap
# ## Go further
# ## References
"""
EXERCISE = """\
# %% tags=["exercise"]
def twice(x):
    return ...

# %%
n03.twice(twice)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def twice(x):
#     return 2 * x
# ```
# </details>

"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A sound notebook 03 in a folder of its own, numbered as if it had been run."""
    (tmp_path / "pyproject.toml").write_text((build.ROOT / "pyproject.toml").read_text())
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    source = tmp_path / "source.py"
    source.write_text(SOURCE.format(exercises=3 * EXERCISE))
    build.convert(source, "03")
    entry = build.present()[0]
    nb = build.read(tmp_path / entry.file)
    for count, cell in enumerate((cell for cell in nb.cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
    return nb, entry


def test_a_sound_notebook_has_no_problems_and_its_exercises_are_found(made):
    nb, entry = made
    assert build.problems(nb, entry) == []
    assert [(e.check, e.solution) for e in build.exercises(nb)] == 3 * [
        ("n03.twice(twice)", "def twice(x):\n    return 2 * x")
    ]


def test_converting_again_changes_nothing(made, tmp_path):
    _, entry = made
    before = (tmp_path / entry.file).read_bytes()
    build.convert(tmp_path / "source.py", "03")
    assert (tmp_path / entry.file).read_bytes() == before


def test_a_notebook_moves_with_its_files_and_every_mention(made, tmp_path, monkeypatch):
    room = tmp_path / "speclib" / "workbook" / "n03.py"
    room.parent.mkdir(parents=True)
    room.write_text('"""Notebook 03, and not notebook 031."""')
    (tmp_path / "solutions").mkdir()
    home = tmp_path / "03_speculative_sampling.ipynb"
    (tmp_path / "solutions" / home.name).write_text(home.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "README.md").write_text(f"[03](notebooks/{home.name}), Notebook 03")
    (tmp_path / "build.py").write_text('Entry("02", "guess"), Entry(\n    "03",\n    "speculative_sampling",\n)')
    with pytest.raises(SystemExit, match="free"):
        build.renumber("03", "04")
    build.renumber("03", "77")
    assert not home.exists() and "n77.twice(twice)" in (tmp_path / "77_speculative_sampling.ipynb").read_text("utf-8")
    assert room.with_name("n77.py").read_text() == '"""Notebook 77, and not notebook 031."""'
    assert (tmp_path / "README.md").read_text() == "[03](notebooks/77_speculative_sampling.ipynb), Notebook 77"
    assert (tmp_path / "build.py").read_text().split("Entry(")[2].split() == ['"77",', '"speculative_sampling",', ")"]


def test_widgets_and_timing_are_tidied_away(made):
    nb, entry = made
    output = nbformat.v4.new_output("display_data", {build.WIDGET: {"model_id": "1234"}, "text/plain": "VBox()"})
    nb.cells[-2].metadata["execution"] = {"iopub.execute_input": "now"}
    nb.cells[2].outputs = [output]
    nb.metadata["widgets"] = {}
    build.tidy(nb, entry)
    assert (
        "1234" not in nbformat.writes(nb) and "execution" not in nb.cells[-2].metadata and "widgets" not in nb.metadata
    )


@pytest.mark.parametrize(
    ("breakage", "complaint"),
    [
        (lambda nb: nb.cells.pop(0), "header"),
        (lambda nb: nb.cells.pop(2), "set-up"),
        (lambda nb: nb.cells.pop(1), "Goals"),
        (lambda nb: nb.cells.pop(4), "exercises"),
        (lambda nb: nb.cells.pop(-1), "Recap"),
        (lambda nb: nb.cells[4].update(source="def twice(x):\n    return 2 * x"), "stub"),
        (lambda nb: nb.cells[5].update(source="twice(1)"), "calls no check"),
        (lambda nb: nb.cells[6].update(source="no solution"), "Solution"),
        (lambda nb: nb.cells[5].update(source="n03.twice(twice)\n" + 25 * "x = 1\n"), "26 lines"),
        (lambda nb: nb.cells[5].update(execution_count=9), "1..n"),
        (lambda nb: nb.cells[5].metadata.update(tags=["nbval-skip"]), "skipped"),
        (lambda nb: nb.cells[5].update(outputs=[nbformat.v4.new_output("stream", name="stderr", text="oh")]), "stderr"),
        (
            lambda nb: nb.cells[5].update(
                outputs=[nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
            ),
            "error",
        ),
        (lambda nb: nb.metadata.update(widgets={}), "widget state"),
    ],
)
def test_each_breakage_is_named(made, breakage, complaint):
    nb, entry = made
    breakage(nb)
    assert any(complaint in problem for problem in build.problems(nb, entry))
