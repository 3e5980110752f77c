"""The whole idea in one file: small, alone, quick, and right."""

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from notebooks import microspec
from speclib.law.distributions import Sampling
from speclib.law.exact import TableModel, max_difference, plain_law, rule_law
from speclib.law.statistics import g_test
from speclib.museum import EXHIBITS

FILE = Path(microspec.__file__)


def test_it_is_short_and_needs_nothing_but_python():
    lines = FILE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200 and max(map(len, lines)) <= 120
    imported = [
        node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    names = {alias.name for node in imported if isinstance(node, ast.Import) for alias in node.names} | {
        node.module for node in imported if hasattr(node, "module")
    }
    assert names <= sys.stdlib_module_names


def test_it_prints_difference_tokens_per_pass_and_the_bug():
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(FILE)], capture_output=True, text=True, check=True, timeout=60
    )
    took = os.times().children_user - before.children_user
    difference, bug = (float(x) for x in re.findall(r"differs .*?by (\S+)", done.stdout))
    assert difference < 1e-12 and bug > 1e-3 and "that is rounding" in done.stdout
    assert 1 < float(re.search(r"([\d.]+) tokens per pass", done.stdout)[1]) < 3
    assert took < 2 and len(done.stdout.splitlines()) < 12


@pytest.mark.parametrize(
    "knobs",
    [
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_p": 0.5},
        {"gamma": 1},
        {"gamma": 3},
        {"length": 2},
        {"seed": 7, "top_k": None, "length": 3},
    ],
)
def test_what_it_says_holds_for_other_settings(knobs, capsys):
    microspec.main(**knobs)
    assert "that is rounding" in capsys.readouterr().out


def under(model, **settings):
    return lambda words: microspec.filtered(model(words), **settings)


@pytest.mark.parametrize(("rule", "name"), [(microspec.the_rule, "token"), (microspec.a_wrong_rule, "resample from p")])
def test_its_laws_are_the_librarys(rule, name):
    words, models = (
        microspec.VOCABULARY,
        [under(model, temperature=0.9, top_k=5, top_p=0.95) for model in (microspec.target, microspec.draft)],
    )
    mine = {tuple(map(words.index, text)): mass for text, mass in microspec.exact_law(rule, *models, 2, 4).items()}

    def table(model):
        return TableModel(
            len(words), lambda prefix: [model([words[token] for token in prefix]).get(word, 0.0) for word in words]
        )

    target, draft = map(table, models)
    assert max_difference(mine, rule_law(EXHIBITS.get(name, name), target, draft, 2, 4)) < 1e-12
    assert (max_difference(mine, plain_law(target, 4)) < 1e-12) is (name == "token")


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.8}, {"temperature": 2.0, "top_k": 3, "top_p": 0.7}]
)
def test_its_filters_are_the_librarys(settings):
    row = {"a": 0.4, "b": 0.07, "c": 0.3, "d": 0.23}
    wanted = Sampling(**settings).probabilities(torch.tensor(list(row.values()), dtype=torch.float64).log()).tolist()
    assert [microspec.filtered(row, **settings).get(word, 0.0) for word in row] == pytest.approx(wanted, abs=1e-12)


def test_what_it_draws_is_what_it_sums():
    p, q = under(microspec.target, top_k=3), under(microspec.draft, top_k=3)
    microspec.random.seed(1)
    counts, ledger = Counter(), Counter()
    for _ in range(4000):
        counts[tuple(microspec.generate(microspec.the_rule, p, q, 2, 4, ledger))] += 1
    assert g_test(counts, dict(microspec.exact_law(microspec.the_rule, p, q, 2, 4))).p_value > 1e-6
    assert 4000 <= ledger["target passes"] < 16000 and ledger["kept"] <= ledger["guesses"]
