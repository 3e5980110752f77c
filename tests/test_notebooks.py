"""The anatomy of every notebook, and of the tool that checks it."""

import runpy

import nbformat
import pytest
from PIL import Image, ImageChops, ImageStat

from notebooks import build
from speclib import experiments

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
    for name in ("pyproject.toml", "README.md"):
        (tmp_path / name).write_text((build.ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(build, "FOLDER", folder)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    source = tmp_path / "source.py"
    source.write_text(SOURCE.format(exercises=3 * EXERCISE))
    build.convert(source, "03")
    entry = build.present()[0]
    nb = build.read(folder / entry.file)
    nb.metadata[build.SECONDS] = 40
    build.dress(nb, entry)
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
    before = (build.FOLDER / entry.file).read_bytes()
    build.convert(tmp_path / "source.py", "03")
    assert (build.FOLDER / entry.file).read_bytes() == before


def test_the_set_up_is_folded_and_the_header_says_the_notebooks_own_time(made):
    nb, entry = made
    build.tidy(nb, entry)
    (setup,) = build.tagged(nb, "setup")
    assert setup.source.startswith("# @title") and setup.metadata["jupyter"] == {"source_hidden": True}
    assert setup.metadata["cellView"] == "form" and nb.metadata[build.SECONDS] == 40
    assert "runs in 40 s" in nb.cells[0].source and "runs in" not in build.header(entry)
    assert f"(../README.md#the-notebooks) ([on GitHub]({build.address()}#the-notebooks))" in nb.cells[0].source


def test_every_notebook_that_is_needed_is_linked():
    (entry,) = build.chosen(["13"])
    assert entry.needs == "05, 08"
    links = "[notebook 05](05_speed_and_similarity.ipynb) and [notebook 08](08_the_search_engine.ipynb)"
    assert f" · needs {links}\n" in build.header(entry)


def test_numbers_of_papers_and_notebooks_become_links_once():
    paper, notebook = "[2211.17192](https://arxiv.org/abs/2211.17192)", "[notebook 04](04_lossless.ipynb)"
    text = "Leviathan (2211.17192), arXiv 2211.17192; notebook 04, 0.22111, 77.2211171921, notebook 77."
    made = build.linked(text)
    assert made.count(paper) == 2 and made.count(notebook) == 1 and "notebook 77." in made and "0.22111," in made
    assert build.linked(made) == made
    assert build.linked("[notebook 04](04_old_name.ipynb)") == notebook
    for kept in (
        "# What notebook 04 says",
        "`2211.17192`, $2211.17192$",
        "```\nnotebook 04\n```",
        "[see notebook 04](x.md)",
        "<details><summary>Answer</summary>\nnotebook 04</details>",
    ):
        assert build.linked(kept) == kept


def test_a_notebook_moves_with_its_files_and_every_mention(made, tmp_path):
    room = tmp_path / "speclib" / "workbook" / "n03.py"
    room.parent.mkdir(parents=True)
    room.write_text('"""Notebook 03, and not notebook 031."""')
    folder = tmp_path / "notebooks"
    (folder / "solutions").mkdir()
    home = folder / "03_speculative_sampling.ipynb"
    (folder / "solutions" / home.name).write_text(home.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "README.md").write_text(f"[03](notebooks/{home.name}), Notebook 03")
    (folder / "build.py").write_text('Entry("02", "guess"), Entry(\n    "03",\n    "speculative_sampling",\n)')
    with pytest.raises(SystemExit, match="free"):
        build.renumber("03", "04")
    build.renumber("03", "77")
    assert not home.exists() and "n77.twice(twice)" in (folder / "77_speculative_sampling.ipynb").read_text("utf-8")
    assert room.with_name("n77.py").read_text() == '"""Notebook 77, and not notebook 031."""'
    assert (tmp_path / "README.md").read_text() == "[03](notebooks/77_speculative_sampling.ipynb), Notebook 77"
    assert (folder / "build.py").read_text().split("Entry(")[2].split() == ['"77",', '"speculative_sampling",', ")"]


def test_widgets_and_timing_are_tidied_away(made):
    nb, entry = made
    shown = {build.WIDGET: {"model_id": "1234"}, "text/plain": "VBox()", "text/html": "a still picture"}
    output = nbformat.v4.new_output("display_data", shown)
    nb.cells[-2].metadata["execution"] = {"iopub.execute_input": "now"}
    bar = {build.WIDGET: {"model_id": "5678"}, "text/plain": "trials:   0%|          | 0/20 [00:00<?, ?text/s]"}
    nb.cells[2].outputs = [nbformat.v4.new_output("display_data", bar), output]
    nb.metadata["widgets"] = {}
    build.tidy(nb, entry)
    assert (
        "1234" not in nbformat.writes(nb) and "execution" not in nb.cells[-2].metadata and "widgets" not in nb.metadata
    )
    (left,) = nb.cells[2].outputs  # of a progress bar nothing stays
    assert left.data["text/html"] == "a still picture"


def test_a_solved_copy_finds_what_lies_beside_the_notebook():
    text = "[a](images/a.png) [b](../data/b.md#c) `d[0](e.f)`\n```\ng[1](h.i)\n```\n[n](04_n.ipynb) [w](https://w.org/x.y)"
    moved = text.replace("(images/", "(../images/").replace("(../data/", "(../../data/")
    assert build.deeper(text) == moved
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("[a](images/tree.png) [b](images/nothing.png)")])
    assert build.dead_links(nb, build.FOLDER) == ["a link to images/nothing.png, which is not there"]
    assert len(build.dead_links(nb, build.FOLDER / "solutions")) == 2


def shows(nb, data):
    nb.cells[5].outputs = [nbformat.v4.new_output("display_data", data)]


def test_sentences_tables_and_figures_that_can_be_read_are_let_through(made):
    nb, entry = made
    for data in (
        {"text/plain": 30 * "a long sentence "},
        {"text/html": f"<table><tr>{5 * '<td>many words that can be wrapped where they stand</td>'}</tr></table>"},
    ):
        shows(nb, data)
        assert build.problems(nb, entry) == []
    shows(nb, {"image/png": "iVBOR"})
    nb.cells[5].outputs[0].metadata = {"image/png": {"alt": "Figure: a curve"}}
    assert build.problems(nb, entry) == []


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
        (lambda nb: nb.metadata.pop(build.SECONDS), "no time"),
        (lambda nb: nb.cells[2].metadata.pop("jupyter"), "not folded"),
        (lambda nb: nb.cells[5].update(source=f"n03.twice(twice)  # {80 * 'x'}"), "a line of 100 columns"),
        (lambda nb: nb.cells[1].update(source=nb.cells[1].source + "\nSee 2211.17192."), "is no link"),
        (lambda nb: nb.cells[1].update(source=nb.cells[1].source + "\n[x](99_none.ipynb)"), "is not there"),
        (lambda nb: nb.cells[1].update(source=nb.cells[1].source + "\n![](https://x.org/a.png)"), "alternative text"),
        (lambda nb: shows(nb, {"text/plain": "{'alpha': 0.5}"}), "dictionary"),
        (lambda nb: shows(nb, {"text/plain": 12 * "0.25     "}), "a table of"),
        (lambda nb: shows(nb, {"text/html": f"<table><tr>{12 * '<td>0.250000</td>'}</tr></table>"}), "a table of 120"),
        (lambda nb: shows(nb, {"image/png": "iVBOR"}), "figure without"),
    ],
)
def test_each_breakage_is_named(made, breakage, complaint):
    nb, entry = made
    breakage(nb)
    assert any(complaint in problem for problem in build.problems(nb, entry))


def test_the_moving_picture_is_small_and_is_that_of_its_record():
    race = runpy.run_path(str(build.FOLDER / "images" / "race.py"))
    ways = experiments.recorded("race")["ways"]
    texts = {name: [word for _, words in rounds for word in words] for name, rounds in ways.items()}
    assert {len(words) for words in texts.values()} == {race["TOKENS"]}
    assert len({"".join(word for word, _ in words) for words in texts.values()}) == 1  # greedy: the same text
    assert not any(guessed for _, guessed in texts["plain"]) and any(guessed for _, guessed in texts["speculative"])
    assert race["PICTURE"].stat().st_size < 300_000
    with Image.open(race["PICTURE"]) as kept:
        kept.seek(kept.n_frames - 1)
        apart = ImageChops.difference(kept.convert("RGB"), race["frame"](ways, 1e9))
    assert sum(ImageStat.Stat(apart).mean) / 3 < 2  # of 255: the colours are few, and letters differ with their drawer
