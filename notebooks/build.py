"""The workbook's one tool: makes notebooks from text, gives them headers, runs them, checks them.

    python notebooks/build.py convert FILE.py 03    a jupytext percent file becomes notebooks/03_*.ipynb
    python notebooks/build.py headers               headers, set-up cells, README badges and table, from CONTENTS
    python notebooks/build.py run [03 ...]          execute 1..n from a clean kernel and keep the outputs;
                                                    --time: and the time it took, for the header (on a quiet machine)
    python notebooks/build.py solutions [03 ...]    notebooks/solutions/: every exercise solved, and run
    python notebooks/build.py check [03 ...]        list what breaks the anatomy
    python notebooks/build.py renumber 10 11        a notebook with its files and every mention of its number

The repository's address is read from pyproject.toml; change it there and run `headers`.
"""

import argparse
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
MAX_LINES, MAX_COLUMNS, MAX_TABLE = 25, 99, 95
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}  # in Colab, and in JupyterLab
SECONDS = "run_seconds"  # in a notebook's metadata: what its header says of its own time
KERNEL = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "pygments_lexer": "ipython3",
    },
}
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Entry:
    """One notebook of the workbook: what its header says. `minutes` is reading and doing."""

    number: str
    slug: str
    title: str
    question: str
    minutes: int
    needs: str = ""
    memory: str = "1.5 GB"

    @property
    def file(self) -> str:
        return f"{self.number}_{self.slug}.ipynb"


CONTENTS = [
    Entry(
        "00",
        "start_here",
        "Start here",
        "What will I see? A text of the same law, in fewer passes of the model, on my machine.",
        15,
    ),
    Entry("01", "the_bottleneck", "The bottleneck", "Why is generation slow, when the chip is idle?", 30, "00"),
    Entry(
        "02",
        "guess_and_check",
        "Guess and check",
        "Are n right guesses n + 1 times faster, and what does a wrong guess cost?",
        30,
        "01",
    ),
    Entry(
        "03",
        "speculative_sampling",
        "Speculative sampling",
        "Which rule keeps guesses and still draws exactly from the target?",
        45,
        "02",
    ),
    Entry(
        "04", "lossless", "Lossless", "How do we know that nothing was lost, and would we notice if it were?", 60, "03"
    ),
    Entry(
        "04b",
        "bug_hunt",
        "The bug hunt",
        "Twelve samplers are wrong. Which one does what, and how few draws tell?",
        40,
        "04",
    ),
    Entry(
        "05",
        "speed_and_similarity",
        "Speed and similarity",
        "How much speed does a draft bring, as a function of how similar it is?",
        60,
        "03",
    ),
    Entry(
        "06",
        "how_far_to_guess",
        "How far to guess",
        "How far ahead should one guess, and can a plan do better than a fixed number?",
        50,
        "05",
    ),
    Entry(
        "07",
        "smaller_earlier_parallel",
        "Smaller, earlier, parallel",
        "Can a compressed copy, the target's first layers, parallel heads, or a layer that reads its mind be the "
        "oracle?",
        45,
        "05",
        "2 GB",
    ),
    Entry(
        "08",
        "the_search_engine",
        "The search engine as oracle",
        "Can a search replace the draft model, and on which text?",
        45,
        "03",
    ),
    Entry("09", "many_oracles", "Many oracles", "What if there are several guesses, or several guessers?", 60, "05"),
    Entry(
        "10",
        "which_rule",
        "Which rule",
        "Which rule keeps the most guesses, what may a drafter say of its own, and what does a lossy rule cost?",
        45,
        "09",
    ),
    Entry(
        "11",
        "encoder_decoder",
        "Encoder-decoder",
        "What changes when the model reads one text and writes another?",
        40,
        "03",
    ),
    Entry(
        "12",
        "the_engine",
        "The engine",
        "What can a faster engine save, what does that leave for speculation, and what do equal bits cost?",
        40,
        "05",
        "2 GB",
    ),
    Entry(
        "13",
        "a_real_model",
        "A real model",
        "What does speculation bring to a real chat model, and on which questions?",
        45,
        "05, 08",
    ),
    Entry(
        "14",
        "batches",
        "Batches",
        "Does it still pay when many texts are decoded at once, and when should I switch it off?",
        45,
        "05",
    ),
    Entry("99", "glossary", "Glossary and references", "What does that word mean, and where does it come from?", 10),
]


# --- the address, headers, set-up cell ---------------------------------------------------------------------------


def address() -> str:
    """The repository's address: the only place it is written by hand is pyproject.toml."""
    return re.search(
        r'^Repository = "(https://github\.com/[^"/]+/[^"/]+)"$',
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        re.M,
    ).group(1)


def present() -> list[Entry]:
    """The entries of CONTENTS whose notebook exists."""
    return [entry for entry in CONTENTS if (FOLDER / entry.file).exists()]


def badges(file: str) -> str:
    """Colab and Binder badges of one notebook, `file` being its path below notebooks/."""
    repository = address().removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{file}"
    binder = f"https://mybinder.org/v2/gh/{repository}/main?urlpath=lab/tree/notebooks/{file}"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )


def header(entry: Entry, solved: bool = False, seconds: int | None = None) -> str:
    """The first cell of a notebook, or of its copy under solutions/. seconds: what it took to run."""
    entries = present()
    place = entries.index(entry)
    before, after = entries[:place][-1:], entries[place + 1 :][:1]
    links = [f"[previous: {e.title}]({e.file})" for e in before]
    links += [f"[contents]({'../../' if solved else '../'}README.md#the-notebooks)"]
    links[-1] += f" ([on GitHub]({address()}#the-notebooks))"  # Colab opens notebooks, and nothing else
    links += [f"[next: {e.title}]({e.file})" for e in after]
    facts = [f"about {entry.minutes} minutes"]
    facts += [f"runs in {seconds} s on two CPU cores"] if seconds else []
    facts += [f"under {entry.memory} of memory"]
    needs = [linked(f"notebook {number}") for number in entry.needs.split(", ") if number]
    facts += [f"needs {' and '.join(needs)}"] if needs else []
    title = f"# {entry.number} · {entry.title}" + (" (with solutions)" if solved else "")
    path = f"solutions/{entry.file}" if solved else entry.file
    return "\n\n".join([title, f"*{entry.question}*", badges(path), " · ".join(facts), " | ".join(links)])


def linked(text: str) -> str:
    """Markdown whose arXiv numbers and notebook numbers are links; other links, code, formulas, HTML stay as they are.

    A notebook's link is relative: JupyterLab, GitHub and Colab resolve it against the page that it stands on.
    """
    files = {entry.number: entry.file for entry in present()}

    def link(match: re.Match) -> str:
        if match["paper"]:
            return f"[{match['paper']}](https://arxiv.org/abs/{match['paper']})"
        number = match["number"] or match["linked"]
        return f"[{match['word'] or match['name']} {number}]({files[number]})" if number in files else match[0]

    ours = r"\[(?P<name>[Nn]otebook) (?P<linked>\d\d[a-z]?)\]\([^)]*\.ipynb\)"  # made again: files are renamed
    html = r"<details>.*?(?:\n\n|</details>)|<[^>]*>"  # up to an empty line, no Markdown is read there
    kept = rf"```.*?```|`[^`\n]*`|\$[^$]*\$|!?\[[^\]]*\]\([^)]*\)|{html}|https?://\S+|^#[^\n]*"
    paper, notebook = (
        r"(?<![\d.])(?P<paper>\d{4}\.\d{5})(?!\d|\.\d)",
        r"\b(?P<word>[Nn]otebook) (?P<number>\d\d[a-z]?)\b",
    )
    return re.sub(f"{ours}|{kept}|{paper}|{notebook}", link, text, flags=re.S | re.M)


def setup() -> str:
    """The set-up cell, the same in every notebook; Colab shows its first line as the title of a form."""
    name = address().rsplit("/", 1)[1]
    return f"""\
# @title Set-up: run this cell first
# On Colab: fetch the workbook and install it without touching Colab's own torch, numpy or pandas.
# Elsewhere: nothing.
import sys

if "google.colab" in sys.modules:
    import os
    import subprocess

    home = "/content/{name}"
    source = "{address()}"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", home]
    if not os.path.isdir(home):
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", source, home], check=True)
    subprocess.run(install, check=True)
    sys.path.insert(0, home)  # an editable install is seen by the next kernel only
    os.chdir(home + "/notebooks")"""


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def tagged(nb, tag: str) -> list:
    return [cell for cell in nb.cells if tag in tags(cell)]


def dress(nb, entry: Entry, solved: bool = False) -> None:
    """Puts the generated header and set-up cells in place, numbers the cells and leaves no other metadata than tags."""
    old = {id(cell) for tag in ("header", "setup") for cell in tagged(nb, tag)}
    kept = tagged(nb, "setup")
    body = [cell for cell in nb.cells if id(cell) not in old]
    start = kept[0] if kept and kept[0].source == setup() else nbformat.v4.new_code_cell(setup())
    start.metadata = {"tags": ["setup"]}
    for cell in body:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source)
    place = next((k for k, cell in enumerate(body) if cell.cell_type == "code"), len(body))
    nb.cells = [
        nbformat.v4.new_markdown_cell(header(entry, solved, nb.metadata.get(SECONDS)), metadata={"tags": ["header"]}),
        *body[:place],
        start,
        *body[place:],
    ]
    tidy(nb, entry)


def is_bar(output) -> bool:
    """Whether an output is a progress bar: tqdm's widget, gone when its work was done."""
    data = output.get("data", {})
    return WIDGET in data and re.search(r"\d+%\|", data.get("text/plain", "")) is not None


def tidy(nb, entry: Entry) -> None:
    """What may differ from one run to the next goes: timing, widget state, random identifiers."""
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.metadata = nbformat.from_dict(KERNEL | {key: nb.metadata[key] for key in (SECONDS,) if key in nb.metadata})
    for k, cell in enumerate(nb.cells):
        cell.id = f"n{entry.number}-{k:03d}"
        folded = FOLDED if "setup" in tags(cell) else {}
        cell.metadata = nbformat.from_dict(folded | ({"tags": sorted(tags(cell))} if tags(cell) else {}))
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_bar(output)]
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):  # dead without its kernel, and its identifier changes every time
                still = {kind: what for kind, what in output.data.items() if kind in ("image/png", "text/html")}
                output.data = nbformat.from_dict({"text/plain": "(a widget: run this cell to use it)", **still})


# --- reading and writing -----------------------------------------------------------------------------------------


def read(path: Path):
    return nbformat.read(path, as_version=4)


def write(nb, path: Path) -> None:
    nbformat.validate(nb)
    path.parent.mkdir(exist_ok=True)
    text = nbformat.writes(nb) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def chosen(numbers: list[str]) -> list[Entry]:
    """The entries with these numbers (all that exist if none is named). Exits with a message on an unknown one."""
    unknown = set(numbers) - {entry.number for entry in present()}
    if unknown:
        sys.exit(f"no notebook {', '.join(sorted(unknown))}; there are {', '.join(e.number for e in present())}")
    return [entry for entry in present() if not numbers or entry.number in numbers]


def convert(source: Path, number: str) -> Path:
    """Makes notebooks/NN_*.ipynb from a jupytext percent file. Outputs are dropped: run it afterwards."""
    import jupytext

    entry = next((entry for entry in CONTENTS if entry.number == number), None)
    if entry is None:
        sys.exit(f"notebook {number} is not in CONTENTS of {Path(__file__).name}: add it there first")
    nb = jupytext.read(source, fmt="py:percent")
    nb.cells = [cell for cell in nb.cells if cell.source.strip()]
    path = FOLDER / entry.file
    if not path.exists():
        write(nbformat.v4.new_notebook(), path)  # a header links the notebooks that exist: this one does now
    dress(nb, entry)
    write(nb, path)
    return path


def headers() -> None:
    """Regenerates everything that repeats the table of contents or the address."""
    for entry in present():
        for path, solved in ((FOLDER / entry.file, False), (FOLDER / "solutions" / entry.file, True)):
            if path.exists():
                nb = read(path)
                dress(nb, entry, solved)
                write(nb, path)
    for name, sections in generated().items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        for marker, content in sections.items():
            text = fill(text, marker, content)
        path.write_text(text, encoding="utf-8")


def renumber(old: str, new: str) -> None:
    """Moves a notebook to a free number: its files, its room in speclib/workbook, and what names them. Then run
    `headers`.
    """
    if old not in (numbers := [entry.number for entry in CONTENTS]) or new in numbers:
        sys.exit(f"renumber wants a number that is there and one that is free, not {old} and {new}")
    (entry,) = chosen([old])
    rooms = ROOT / "speclib" / "workbook"
    moves = [(folder / entry.file, folder / f"{new}_{entry.slug}.ipynb") for folder in (FOLDER, FOLDER / "solutions")]
    moves += [(rooms / f"n{old}.py", rooms / f"n{new}.py")]
    for before, after in moves:
        before.rename(after)
    words = {rf"\bn{old}\b": f"n{new}", rf"\b{old}_{entry.slug}\b": f"{new}_{entry.slug}"}
    words |= {rf"\b([Nn]otebook) {old}\b": rf"\1 {new}"}
    own = {after for _, after in moves}
    code = (path for pattern in ("*.md", "speclib/**/*.py", "tests/*.py") for path in ROOT.glob(pattern))
    for path in sorted({*own, *FOLDER.rglob("*.ipynb"), *code}):
        text = before = path.read_text(encoding="utf-8")
        for pattern, replacement in words.items():
            text = re.sub(pattern, replacement, text)
        if text != before:
            path.write_text(text, encoding="utf-8")
    source = FOLDER / Path(__file__).name
    at_home = source.read_text(encoding="utf-8")
    place = rf'("{old}")(,\s+"{entry.slug}")'
    source.write_text(re.sub(place, rf'"{new}"\2', at_home), encoding="utf-8")


def generated() -> dict[str, dict[str, str]]:
    """File -> marker -> the text that belongs between the two occurrences of the marker."""
    row = "| [{e.number} · {e.title}](notebooks/{e.file}) | {e.question} | {e.minutes} | {badges} |"
    table = ["| notebook | the question | minutes | open in |", "|---|---|---|---|"]
    table += [row.format(e=entry, badges=badges(entry.file)) for entry in present()]
    workflow = f"{address()}/actions/workflows/test.yml"
    top = f"[![Tests]({workflow}/badge.svg)]({workflow}) {badges(CONTENTS[0].file)}"
    clone = (
        f"```bash\ngit clone {address()}\ncd {address().rsplit('/', 1)[1]}\nmake demo    # the headline on your "
        f"machine\nmake chat    # your own questions to a real model\nmake lab     # the workbook\n```"
    )
    return {
        "README.md": {"<!-- badges -->": top, "<!-- commands -->": clone, "<!-- notebooks -->": "\n".join(table)},
        "CITATION.cff": {"# generated": f'repository-code: "{address()}"'},
    }


def fill(text: str, marker: str, content: str) -> str:
    """`text` with what stands between two occurrences of `marker` replaced."""
    before, _, after = text.split(marker)
    return f"{before}{marker}\n{content}\n{marker}{after}"


# --- running -----------------------------------------------------------------------------------------------------


def execute(nb, entry: Entry) -> float:
    """Runs all cells in a clean kernel, in notebooks/; returns seconds. Exits with a message on an error or any
    stderr.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    start = time.perf_counter()
    options = {
        "timeout": 600,
        "kernel_name": "python3",
        "record_timing": False,
        "store_widget_state": False,
        "coalesce_streams": True,
    }
    try:
        NotebookClient(nb, resources={"metadata": {"path": str(FOLDER)}}, **options).execute()
    except CellExecutionError as error:
        sys.exit(f"{entry.file}: {error}")
    for k, cell in enumerate(nb.cells):
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                sys.exit(f"{entry.file}: cell {k} writes to stderr:\n{output.text}")
    return time.perf_counter() - start


def run(numbers: list[str], timed: bool = False) -> None:
    for entry in chosen(numbers):
        nb = read(FOLDER / entry.file)
        dress(nb, entry)
        seconds = execute(nb, entry)
        if timed:
            nb.metadata[SECONDS] = max(5, 5 * round(seconds / 5))
            dress(nb, entry)
        tidy(nb, entry)
        write(nb, FOLDER / entry.file)
        print(f"{entry.file}: {seconds:.0f} s", flush=True)


# --- exercises ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exercise:
    """A stub (tagged `exercise`), the code cell that checks it, and the folded solution after it; "" where one is
    missing.
    """

    cell: int
    stub: str
    check: str
    solution: str


def exercises(nb) -> list[Exercise]:
    """The exercises of a notebook, in order."""
    places = [k for k, cell in enumerate(nb.cells) if "exercise" in tags(cell)]
    found = []
    for k, stop in zip(places, [*places[1:], len(nb.cells)], strict=True):
        rest = nb.cells[k + 1 : stop]
        check = next((c.source for c in rest if c.cell_type == "code"), "")
        texts = (
            re.search(r"<summary>[^<]*Solution.*?```python\n(.*?)\n```", c.source, re.S)
            for c in rest
            if c.cell_type == "markdown"
        )
        solution = next((match.group(1) for match in texts if match), "")
        found.append(
            Exercise(k, nb.cells[k].source, check if re.search(r"\bn\d\d[a-z]?\.\w+\(\w+\)", check) else "", solution)
        )
    return found


def deeper(text: str) -> str:
    """Markdown as it has to be a folder further down: links to files that have no copy there lead up."""
    code, file = r"```.*?```|`[^`\n]*`", r"(?!https?:|[^)]*\.ipynb)[\w./-]+\.\w+(?:#[\w-]+)?"
    return re.sub(rf"({code})|\]\(({file})\)", lambda m: m[1] or f"](../{m[2]})", text, flags=re.S)


def solved(entry: Entry):
    """The notebook with each stub replaced by its solution, and its exercises. Not run: the outputs are still the
    stubs'.
    """
    nb = read(FOLDER / entry.file)
    found = exercises(nb)
    for exercise in found:
        nb.cells[exercise.cell].source = exercise.solution
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = deeper(cell.source)
    dress(nb, entry, solved=True)
    return nb, found


def solutions(numbers: list[str]) -> None:
    """notebooks/solutions/NN_*.ipynb: each stub replaced by its solution, run, and every check satisfied."""
    for entry in chosen(numbers):
        nb, found = solved(entry)
        seconds = execute(nb, entry)
        tidy(nb, entry)
        for exercise in found:
            cell = next(c for c in nb.cells[exercise.cell + 1 :] if c.cell_type == "code")
            said = "".join(output.get("text", "") for output in cell.outputs)
            if "correct" not in said:
                sys.exit(f"{entry.file}: the solution of cell {exercise.cell} is told: {said!r}")
        write(nb, FOLDER / "solutions" / entry.file)
        print(f"solutions/{entry.file}: {len(found)} exercises, {seconds:.0f} s", flush=True)


# --- anatomy -----------------------------------------------------------------------------------------------------


def dead_links(nb, folder: Path) -> list[str]:
    """Complaints about links in Markdown that lead to no file, seen from `folder`."""
    prose = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", prose)
    return [f"a link to {target}, which is not there" for target in targets if not (folder / target).exists()]


def problems(nb, entry: Entry) -> list[str]:
    """What a notebook lacks of the anatomy, or has against the house rules; empty when all is well."""
    code = [(k, cell) for k, cell in enumerate(nb.cells) if cell.cell_type == "code"]
    prose = [cell.source for cell in nb.cells if cell.cell_type == "markdown"]
    found = []

    def require(condition: bool, message: str) -> None:
        if not condition:
            found.append(message)

    require(
        bool(nb.cells) and nb.cells[0].source == header(entry, seconds=nb.metadata.get(SECONDS)),
        "cell 0 is not the generated header: run `build.py headers`",
    )
    starts = [cell.source for cell in tagged(nb, "setup")]
    require(starts == [setup()], "no set-up cell, or not today's: run `build.py headers`")
    require(SECONDS in nb.metadata, "its header states no time: run `build.py run --time` on a quiet machine")
    for cell in nb.cells[1:]:
        if cell.cell_type == "markdown" and linked(cell.source) != cell.source:
            require(False, f"an arXiv or notebook number is no link: run `build.py headers`: {cell.source[:60]!r}")
    found += dead_links(nb, FOLDER)
    require(
        all(FOLDED.items() <= cell.metadata.items() for cell in tagged(nb, "setup")), "the set-up cell is not folded"
    )
    images = [text for text in prose if re.search(r"!\[\s*\]\(|<img(?![^>]*\balt=\"[^\"])", text)]
    require(not images, "an image in the text has no alternative text")
    order = [tag for _, cell in code for tag in ("setup", "imports") if tag in tags(cell)]
    require(order == ["setup", "imports"], "the first code cells are not the set-up and one cell tagged `imports`")
    goals = next((text for text in prose if re.search(r"^#+ .*Goals", text, re.M)), "")
    require(3 <= len(re.findall(r"^[-*] ", goals, re.M)) <= 5, "no Goals cell with three to five bullet points")
    require("Prerequisite" in goals, "the Goals cell names no prerequisites")
    require(any("Predict first" in text for text in prose), "nothing under the words `Predict first`")
    require(any("<details" in text for text in prose), "nothing is folded in <details>")
    for title in ("Recap", "Go further", "References"):
        require(any(re.search(rf"^(#+ |\*\*).*{title}", text, re.M | re.I) for text in prose), f"no heading `{title}`")

    tasks = exercises(nb)
    require(len(tasks) >= 3, f"{len(tasks)} exercises, three are wanted")
    for task in tasks:
        require(
            bool(re.search(r"^\s+return \.\.\.", task.stub, re.M)), f"cell {task.cell}: the stub does not `return ...`"
        )
        require(bool(task.check), f"cell {task.cell}: the next code cell calls no check, `nNN.name(name)`")
        require(bool(task.solution), f"cell {task.cell}: no folded <summary>Solution</summary> with a python block")

    for k, cell in code:
        lines = len(cell.source.splitlines())
        require(lines <= MAX_LINES, f"cell {k}: {lines} lines, {MAX_LINES} at most")
        columns = max(map(len, cell.source.splitlines()), default=0)
        require(columns <= MAX_COLUMNS, f"cell {k}: a line of {columns} columns, {MAX_COLUMNS} at most")
        require("nbval-skip" not in tags(cell) and "NBVAL_SKIP" not in cell.source, f"cell {k}: skipped by nbval")
    return found + unclean(nb)


def unclean(nb) -> list[str]:
    """What is wrong with a notebook's committed outputs."""
    code = [(k, cell) for k, cell in enumerate(nb.cells) if cell.cell_type == "code"]
    counts = [cell.execution_count for _, cell in code]
    found = [] if counts == list(range(1, len(counts) + 1)) else [f"not run 1..n from a clean kernel: {counts}"]
    found += ["widget state in the metadata"] if "widgets" in nb.metadata else []
    for k, cell in code:
        kinds = {output.get("name", output.output_type) for output in cell.outputs}
        found += [f"cell {k}: an output of kind {kind}" for kind in sorted(kinds & {"stderr", "error"})]
        for output in cell.outputs:
            found += [f"cell {k}: {problem}" for problem in unreadable(output)]
    return found


def unreadable(output) -> list[str]:
    """What is hard to read in an output: tables that are too wide, dictionaries, figures without words.

    A long sentence is wrapped where it is shown; a printed table falls apart, and a dictionary breaks in mid-word.
    """
    data = output.get("data", {})
    shown = "text/html" in data or "image/png" in data
    text = output.get("text", "") if output.output_type == "stream" else "" if shown else data.get("text/plain", "")
    wide = [line for line in text.splitlines() if len(line) > MAX_TABLE and re.search(r"\S {2,}\S+ {2,}\S", line)]
    found = [f"prints a table of {len(wide[0])} columns, {MAX_TABLE} at most"] if wide else []
    found += ["prints a dictionary"] if re.search(r"\{(['\"][^'\"\n]*['\"]|\([^)\n]*\)|\d+): ", text) else []
    for rows in re.findall(r"<table.*?</table>", data.get("text/html", ""), re.S):
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr.*?</tr>", rows, re.S)]
        words = [[max(map(len, cell.split()), default=0) for cell in row] for row in cells]  # words wrap
        wide = max(sum(row) + 2 * len(row) for row in words)
        found += [f"shows a table of {wide} columns, {MAX_TABLE} at most"] if wide > MAX_TABLE else []
    found += ["a figure without alternative text"] * (
        "image/png" in data and not output.metadata.get("image/png", {}).get("alt")
    )
    return found


def stale(entry: Entry) -> list[str]:
    """What is wrong with the solved copy of a notebook."""
    path = FOLDER / "solutions" / entry.file
    if not path.exists():
        return ["there is no solved copy: run `build.py solutions`"]
    nb, wanted = read(path), solved(entry)[0]
    if [cell.source for cell in nb.cells] != [cell.source for cell in wanted.cells]:
        return ["the solved copy is not today's: run `build.py solutions`"]
    return [f"solved copy: {problem}" for problem in dead_links(nb, path.parent) + unclean(nb)]


def check(numbers: list[str]) -> None:
    complaints = [
        f"{entry.file}: {problem}"
        for entry in chosen(numbers)
        for problem in problems(read(FOLDER / entry.file), entry) + stale(entry)
    ]
    if complaints:
        sys.exit("\n".join(complaints))
    print(f"{len(chosen(numbers))} notebooks: all well")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("convert", help="make a notebook from a jupytext percent file")
    making.add_argument("source", type=Path)
    making.add_argument("number")
    commands.add_parser("headers", help="regenerate headers, set-up cells, README badges and table")
    for action, text in (
        (run, "execute and keep outputs"),
        (solutions, "make and run the solved copies"),
        (check, "list anatomy problems"),
    ):
        parser_of = commands.add_parser(action.__name__, help=text)
        parser_of.add_argument("numbers", nargs="*", metavar="NN", help="which notebooks (default: all)")
        if action is run:
            parser_of.add_argument("--time", action="store_true", help="let the headers say what it took")
    moving = commands.add_parser("renumber", help="move a notebook to a free number")
    moving.add_argument("old")
    moving.add_argument("new")
    options = parser.parse_args()
    if options.command == "renumber":
        renumber(options.old, options.new)
    elif options.command == "convert":
        print(convert(options.source, options.number).relative_to(ROOT))
    elif options.command == "headers":
        headers()
    elif options.command == "run":
        run(options.numbers, options.time)
    else:
        {"solutions": solutions, "check": check}[options.command](options.numbers)


if __name__ == "__main__":
    main()
