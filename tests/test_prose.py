"""Numbers in the notebooks' prose: each stands in a cell of its notebook, is worked out beside it, or is listed here.

A claim is a decimal, a percentage, a factor ("3.6x", "4 times") or a count of things ("150 draws"). It is borne out by
a number in the source or output of a code cell that rounds to it, or by a sum in the prose ("2.4 / 1.6 = 1.5"), which
has to be right. What stands in a formula, or after a sign of comparison, defines something and claims nothing.
"""

import math
import re

import nbformat
import pytest

from notebooks import build

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+)"
THINGS = "tokens?|texts?|draws|samples|rounds|prompts|places|lines|forwards|answers|passes|tosses|matrices"
CLAIM = re.compile(rf"(?<![\w.,])({NUMBER})(%|x\b| times\b| (?:{THINGS})\b)?")
TERM = rf"\(*(?:log )?{NUMBER}\)*"
SIDE = rf"{TERM}(?: ?(?:[-+/*^]|\\cdot|\\times|x|(?=log)) ?{TERM})*"
DEFINED = {"95%"}  # the level of every interval
QUOTED = {
    "03": {"16.82", "7.90", "2.12", "180 lines"},  # an article's seconds and their ratio; the length of microspec.py
    "99": {"3.6"},  # a corollary
}


def words(nb) -> str:
    """The prose of a notebook: no header, headings, code, images, addresses, minutes of exercises, references."""
    cells = (c.source for c in nb.cells if c.cell_type == "markdown" and "header" not in build.tags(c))
    text = "\n\n".join(cells).partition("\n## References")[0]
    gone = r"```.*?```|`[^`\n]*`|!\[[^\]]*\]\([^)]*\)|\]\([^)]*\)|<[^>]*>|^#.*?$|\(\d+ minutes, [^)]*\)|\d{4}\.\d{5}"
    return re.sub(gone, " ", text, flags=re.S | re.M)


def numbers(text: str) -> set[float]:
    """All numbers in a text; 33% is 0.33."""
    found = re.findall(rf"({NUMBER}(?:e[-+]?\d+)?)(%?)", text)
    return {float(number.replace(",", "")) / (100 if percent else 1) for number, percent in found}


def value(side: str) -> float:
    """One side of a sum as prose or a formula writes it. Only digits, operators and log come here."""
    written = {r"\\cdot|\\times|x": "*", r"\^": "**", ",": "", rf"log ({NUMBER})": r"log(\1)"}
    for old, new in (written | {r"([\d)]) *(?=log|\()": r"\1*"}).items():
        side = re.sub(old, new, side)
    return float(eval(side, {"__builtins__": {}, "log": math.log}))


def sums(text: str) -> tuple[set[float], list[str]]:
    """The numbers of all sums in the text, and the sums that are wrong."""
    found, wrong = set(), []
    for sign in re.finditer(" = ", text):  # the longest sides that end and begin here
        left = re.search(rf"(?<![\w.^\\])(?<![-+/*] ){SIDE}$", text[: sign.start()])
        right = re.match(SIDE, text[sign.end() :])
        if not (left and right and re.search(r"\d ?[^\d.,)]", left[0])) or left[0].count("(") != left[0].count(")"):
            continue  # no sum: "c = 0.1", "T(8, 1) = 12"
        whole, last = f"{left[0]} = {right[0]}", right[0].rstrip(")")
        found |= numbers(whole)
        step = 1e-9 if "/" in last else 10.0 ** -len(last.partition(".")[2])
        wrong += [whole] if abs(value(left[0]) - value(last)) > 0.5000001 * step else []
    return found, wrong


def printed(nb) -> set[float]:
    """Every number in the source and the output of the code cells."""
    texts = []
    for cell in (cell for cell in nb.cells if cell.cell_type == "code"):
        texts.append(cell.source.replace("_", ""))  # 200_000
        for output in cell.outputs:
            data = output.get("data", {})
            texts += [output.get("text", ""), data.get("text/plain", "")]
            texts.append(re.sub("<[^>]*>", " ", data.get("text/html", "")))
    return numbers("\n".join(texts))


def unsupported(nb, allowed: set[str] = frozenset()) -> list[str]:
    """The claims that nothing bears out, with the words around them, and the sums that are wrong."""
    text = words(nb)
    known, found = sums(text)
    known |= printed(nb)
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", " ", text, flags=re.S)
    text = re.sub(rf"[\w)\]] ?[=<>] ?\(?{NUMBER}(?:, {NUMBER})*\)?", " ", text)
    for match in CLAIM.finditer(text):
        number, unit = match[1], match[2] or ""
        if {number, number + unit} & (allowed | DEFINED) or not ("." in number or unit):
            continue
        digits, share = number.replace(",", ""), 0.01 if unit == "%" else 1
        zeros = len(digits) - len(digits.rstrip("0")) if "," in number else -len(number.partition(".")[2])
        step = share * 10.0**zeros  # 600,000 is rounded to hundred thousands
        if not any(abs(x - share * float(digits)) <= 0.5000001 * step for x in known):
            found.append(" ".join(text[max(0, match.start() - 60) : match.end() + 20].split()))
    return found


@pytest.mark.parametrize("entry", build.present(), ids=lambda entry: entry.number)
def test_each_number_in_prose_has_its_cell(entry):
    assert unsupported(build.read(build.FOLDER / entry.file), QUOTED.get(entry.number, set())) == []


OUTPUT = nbformat.v4.new_output("stream", text="speed-up 1.9034, share 0.327, off 6.3e-01")
CELL = nbformat.v4.new_code_cell("n = 200_000", outputs=[OUTPUT])


@pytest.mark.parametrize(
    ("sentence", "holds"),
    [
        ("It writes 1.9x as fast, 33% of guesses pass, 0.63 is off; 200,000 samples.", True),
        ("With $q = (.6, .4)$ and c = 0.1 it costs 2.4 / 1.6 = 1.5 plain steps, and 1.5 is little.", True),
        ("`0.123` is code, [2211.17192](https://arxiv.org/abs/2211.17192) a paper; (10 minutes, easy).", True),
        ("It writes 1.91 times as fast.", False),
        ("It draws 300,000 samples.", False),
        ("It accepts 34% of its guesses, 7 tokens.", False),
        ("It costs $4 \\cdot (1 + .5) = 5$ plain steps.", False),
    ],
)
def test_a_planted_sentence(sentence, holds):
    nb = nbformat.v4.new_notebook(cells=[CELL, nbformat.v4.new_markdown_cell(sentence)])
    assert (unsupported(nb) == []) == holds
