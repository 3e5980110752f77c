"""A reader turns the knobs: cells of notebooks 00, 02, 03 and 14 with other seeds, lengths, prompts, temperatures, and
on another backend. What they print as True must hold there too.
"""

import ast
import contextlib
import io
import re
from functools import partial

import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from transformers import DynamicCache

import speclib
from notebooks import build
from speclib import embedded, theory
from speclib.drafters import ModelDrafter
from speclib.law.distributions import Sampling, seeded
from speclib.measure import batches
from speclib.workbook import common, n14

CODE = embedded.prompts("code")[16]
LIBRARY = {
    "speclib": speclib,
    "embedded": embedded,
    "torch": torch,
    "pd": pd,
    "theory": theory,
    "DynamicCache": DynamicCache,
    "seeded": seeded,
    "partial": partial,
    "plt": plt,
    "ModelDrafter": ModelDrafter,
    "batches": batches,
    "common": common,
    "n14": n14,
}


@pytest.fixture(scope="module", params=["eager", "fast"])
def pair(request):
    return speclib.load_pair(dtype="float32", backend=request.param)


def cells(number: str) -> list:
    """The code cells of a notebook."""
    (entry,) = (entry for entry in build.present() if entry.number == number)
    return [cell for cell in build.read(build.FOLDER / entry.file).cells if cell.cell_type == "code"]


def played(number: str, wanted: list[str], names: dict, *changes: tuple[str, str], **parameters) -> str:
    """What the cells print that hold the `wanted` texts, with `changes` made in them, each of which must occur, and
    `parameters` set behind the cell that is tagged so: as papermill does it.
    """
    sources = [cell.source for cell in cells(number)]
    chosen = "\n\n".join(next(source for source in sources if text in source) for text in wanted)
    for old, new in changes:
        assert old in chosen
        chosen = chosen.replace(old, new)
    (given,) = (cell.source for cell in cells(number) if "parameters" in build.tags(cell))
    injected = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec("\n\n".join([given, injected, chosen]), LIBRARY | names)
    return out.getvalue()


def set_at_top(cell) -> set[str]:
    """The names that a cell sets for those below."""
    targets = [t for line in ast.parse(cell.source).body if isinstance(line, ast.Assign) for t in line.targets]
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def used(cell) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}


@pytest.mark.parametrize("number", ["00", "02", "03", "05", "06", "08", "09", "13", "14"])
def test_a_parameter_is_set_in_one_cell_and_used_below(number):
    code = cells(number)
    (place,) = (k for k, cell in enumerate(code) if "parameters" in build.tags(cell))
    names = set_at_top(code[place])
    assert names and names <= set().union(*map(used, code[place + 1 :]))  # each does something
    for cell in code[:place] + code[place + 1 :]:
        assert not names & set_at_top(cell)  # or what papermill has set would be set again


@pytest.mark.parametrize("entry", build.present(), ids=lambda entry: entry.number)
def test_no_length_is_compared_with_as_a_number(entry):
    nodes = [node for cell in cells(entry.number) for node in ast.walk(ast.parse(cell.source))]
    given = [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "max_new_tokens"]
    lengths = {value.value for value in given if isinstance(value, ast.Constant)}
    compared = [side for node in nodes if isinstance(node, ast.Compare) for side in [node.left, *node.comparators]]
    assert not lengths & {side.value for side in compared if isinstance(side, ast.Constant)}


@pytest.mark.parametrize("prompt, length", [("def", 8), (CODE, 1), (CODE, 12)])
def test_notebook_02_writes_the_plain_text(pair, prompt, length):
    names = {"pair": pair, "greedy": Sampling(temperature=0)}
    chosen = ["ids = ", "def draft_and_check", "draft_model =", "def perfect", "def right_with"]
    said = played("02", chosen, names, prompt=prompt, new_tokens=length)
    same = re.findall(r"same text[^:]*: (\w+)", said)
    assert len(same) == 9 and set(same) == {"True"}


@pytest.mark.parametrize("prompt, length, seed", [("def", 8, 0), (CODE, 1, 3), (CODE, 24, 1), (CODE, 24, 12345)])
def test_notebook_03_is_the_library_at_every_seed(pair, prompt, length, seed):
    chosen = [
        "def probabilities",
        "def make_draft",
        "def verify",
        "def speculative_sampling",
        "for t in (0, temperature)",
    ]
    names = {"pair": pair, "ids": pair.tokenizer(prompt)["input_ids"]}
    said = played("03", chosen, names, new_tokens=length, seed=seed, guesses=3, temperature=0.9)
    assert re.findall(r"same tokens as speclib: (\w+)", said) == ["True", "True"]


@pytest.mark.parametrize("prompt, length, temperature", [("def", 8, 0.7), (CODE, 1, 0.7), (CODE, 12, 0)])
def test_notebook_00_counts_what_was_run(pair, prompt, length, temperature):
    knobs = ("max_new_tokens=96", f"max_new_tokens={length}"), ("temperature=0.7", f"temperature={temperature}")
    said = played("00", ["plain = ", "fast = ", "greedy ="], {"pair": pair}, *knobs, prompt=prompt)
    tokens, passes = map(int, re.search(r"tokens: (\d+)  target passes: (\d+)", said).groups())
    assert tokens == passes == length and f"fewer target passes: {length > 1}" in said
    assert said.endswith("same greedy text, token for token: True\n")


@pytest.mark.parametrize("length, guesses, seed", [(1, 1, 0), (9, 7, 12345)])
def test_notebook_14_gives_each_row_its_own_text(length, guesses, seed, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    names = {"exact": speclib.load_pair(dtype="float64", backend="fast")}
    given = batches.texts(names["exact"].tokenizer, 16)[8:]
    chosen = ["listed = ", "others = "]
    said = played("14", chosen, names, sources=given, new_tokens=length, guesses=guesses, seed=seed)
    assert "8 texts, three at a time" in said
    assert re.findall(r": (True|False)$", said, re.M) == 6 * ["True"]
