"""A pair that was really trained, in float32: its texts against its own exact law, with a control that passes and
controls that must not.

Significance 1e-6, fixed before anything is drawn; the seeds stand in the tests; nothing is tried twice.
"""

from functools import cache

import pytest
import torch
from models import PROMPT, VOCABULARY, trained

from speclib import generate
from speclib.drafters import ModelDrafter
from speclib.law.exact import Loop, TableModel, law_variation, plain_law, rule_law, sample_many
from speclib.law.rules import Rule, Verdict, token_law
from speclib.law.statistics import SIGNIFICANCE, g_test, samples_needed, two_sample_g
from speclib.museum import GUESSERS

GAMMA, LENGTH = 2, 3  # a joint of 64 cells, longer than gamma, so that the bonus token is in it
MANY, REAL = 500_000, 2_000


@pytest.fixture(scope="session")
def pair():
    return trained(2, 16, 300), trained(1, 8, 100)


@cache
def table(layers, width, steps):
    """The conditional laws of a trained model after PROMPT, as it computes them, put into a table."""
    model = trained(layers, width, steps)

    def row(prefix):
        with torch.inference_mode():
            probabilities = model.model(torch.tensor([[*PROMPT, *prefix]])).logits[0, -1].double().softmax(-1)
        return probabilities.numpy()

    return TableModel(VOCABULARY, row)


@pytest.fixture(scope="session")
def tables(pair):
    return table(2, 16, 300), table(1, 8, 100)


def recover_from_p(p, q, drafted):
    """Wrong: after a rejection, draws from p and not from the residual."""
    return Verdict(token_law(p, q, drafted).stop_probs, p)


def sharpened(q):
    """Wrong: the rule is told another q than was drawn from."""
    told = q.sqrt()
    return q, told / told.sum(-1, keepdim=True)


BROKEN = {"recovery from p": Loop(law=recover_from_p), "another q": Loop(proposes=sharpened)}


def test_the_pair_is_worth_testing(tables):
    """Neither equal nor strangers, with chance in every row, and with controls that enough texts can tell apart."""
    target, draft = tables
    overlap = 1 - law_variation(plain_law(target, 1), plain_law(draft, 1))
    right = plain_law(target, LENGTH)
    assert 0.3 < overlap < 0.98 and len(right) == 64 and max(right.values()) < 0.5
    for loop in BROKEN.values():
        assert samples_needed(rule_law(loop, target, draft, GAMMA, LENGTH), right, SIGNIFICANCE, 0.999) < MANY / 2


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_million_texts_of_a_trained_pair_follow_its_law(rule, tables):
    counts = sample_many(rule, *tables, GAMMA, LENGTH, MANY, seed=2026)
    result = g_test(counts, plain_law(tables[0], LENGTH))
    assert result.n == MANY and result.p_value > SIGNIFICANCE, str(result)


def test_the_null_control_passes_and_the_broken_ones_do_not(tables):
    right = plain_law(tables[0], LENGTH)
    assert g_test(sample_many("token", *tables, 0, LENGTH, MANY, seed=1), right).p_value > SIGNIFICANCE
    for name, loop in BROKEN.items():
        assert g_test(sample_many(loop, *tables, GAMMA, LENGTH, MANY, seed=2), right).p_value < SIGNIFICANCE, name


def texts(target, drafter, rule="token", seed=0):
    """How often generate() itself wrote each text, in float32."""
    out = generate(target, [PROMPT] * REAL, drafter, None, GAMMA, rule, LENGTH, [], seed)
    counts = {}
    for tokens in out.tokens:
        counts[tuple(tokens.tolist())] = counts.get(tuple(tokens.tolist()), 0) + 1
    return counts, out.summary()


def all_pass(p, q, drafted):
    """A wrong rule: every guess is accepted."""
    return Verdict(torch.eye(drafted.shape[1] + 1)[-1:].to(p).expand(len(p), -1), p)


def test_generate_itself_follows_the_law_and_its_broken_versions_do_not(pair, tables):
    """Models, caches, rollback and rule in float32: thousands of texts of the loop that a reader runs."""
    target, draft = pair
    right = plain_law(tables[0], LENGTH)
    plain, _ = texts(target, None, seed=3)
    ours, summary = texts(target, ModelDrafter(draft), seed=4)
    assert g_test(plain, right).p_value > SIGNIFICANCE
    assert g_test(ours, right).p_value > SIGNIFICANCE and two_sample_g(ours, plain).p_value > SIGNIFICANCE
    assert summary["alpha"] < 0.98 and 0 < summary["accepted_share"] < 1  # guesses were taken and rejected
    wrong, _ = texts(target, ModelDrafter(draft), Rule("everything", all_pass, False, "wrong"), seed=4)
    assert g_test(wrong, right).p_value < SIGNIFICANCE
    worse, _ = texts(target, GUESSERS["favourite as drawn"].around(ModelDrafter(draft)), seed=4)
    assert g_test(worse, right).p_value < SIGNIFICANCE
