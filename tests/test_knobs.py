"""A reader turns the knobs: cells of notebooks 00, 02 and 03 with other seeds, lengths, prompts, temperatures and on
another backend. What they print as True must hold there too.
"""

import contextlib
import io
import re

import pandas as pd
import pytest
import torch
from transformers import DynamicCache

import speclib
from notebooks import build
from speclib import embedded, theory
from speclib.law.distributions import Sampling, seeded

CODE = embedded.prompts("code")[16]
LIBRARY = {
    "speclib": speclib,
    "torch": torch,
    "pd": pd,
    "theory": theory,
    "DynamicCache": DynamicCache,
    "seeded": seeded,
}


@pytest.fixture(scope="module", params=["eager", "fast"])
def pair(request):
    return speclib.load_pair(dtype="float32", backend=request.param)


def played(number: str, wanted: list[str], names: dict, *changes: tuple[str, str]) -> str:
    """What the cells print that hold the `wanted` texts, with `changes` made in them; each must occur."""
    (entry,) = (entry for entry in build.present() if entry.number == number)
    sources = [cell.source for cell in build.read(build.FOLDER / entry.file).cells if cell.cell_type == "code"]
    chosen = "\n\n".join(next(source for source in sources if text in source) for text in wanted)
    for old, new in changes:
        assert old in chosen
        chosen = chosen.replace(old, new)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(chosen, LIBRARY | names)
    return out.getvalue()


@pytest.mark.parametrize("prompt, length", [("def", 8), (CODE, 1), (CODE, 12)])
def test_notebook_02_writes_the_plain_text(pair, prompt, length):
    names = {"pair": pair, "ids": pair.tokenizer(prompt)["input_ids"], "greedy": Sampling(temperature=0)}
    cells = ["def draft_and_check", "draft_model =", "def perfect", "def right_with"]
    said = played("02", cells, names | {"device": pair.target.device}, ("LENGTH = 64", f"LENGTH = {length}"))
    same = re.findall(r"same text[^:]*: (\w+)", said)
    assert len(same) == 9 and set(same) == {"True"}


@pytest.mark.parametrize("prompt, length, seed", [("def", 8, 0), (CODE, 1, 3), (CODE, 24, 1), (CODE, 24, 12345)])
def test_notebook_03_is_the_library_at_every_seed(pair, prompt, length, seed):
    cells = ["def probabilities", "def make_draft", "def verify", "def speculative_sampling", "seed, new ="]
    knobs = ("seed, new = 0, 60", f"seed, new = {seed}, {length}")
    said = played("03", cells, {"pair": pair, "ids": pair.tokenizer(prompt)["input_ids"]}, knobs)
    same = re.findall(r"same tokens as speclib: (\w+)", said)
    assert same == ["True", "True"]


@pytest.mark.parametrize("prompt, length, temperature", [("def", 8, 0.7), (CODE, 1, 0.7), (CODE, 12, 0)])
def test_notebook_00_counts_what_was_run(pair, prompt, length, temperature):
    knobs = ("max_new_tokens=96", f"max_new_tokens={length}"), ("temperature=0.7", f"temperature={temperature}")
    said = played("00", ["plain = ", "fast = ", "greedy ="], {"pair": pair, "prompt": prompt}, *knobs)
    tokens, passes = map(int, re.search(r"tokens: (\d+)  target passes: (\d+)", said).groups())
    assert tokens == passes == length and f"fewer target passes: {length > 1}" in said
    assert said.endswith("same greedy text, token for token: True\n")
