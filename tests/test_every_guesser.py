"""Every guesser and every draft length, in generate() itself on a pair that was really trained: exactly, by chance, and
greedily.

Exactly: in float64 all paths of generate() sum to the target's own law. By chance: 200,000 texts and more of generate()
in float32, drawn by the production sampler. Significance 1e-6, fixed here; every seed stands in the test; nothing is
tried twice. The museum's guessers must fail.
"""

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from models import BUSHES, CHAINS, GUESSER, PROMPT, TREES, VOCABULARY, sample_outcomes, target

from speclib import drafters, generate, lengths
from speclib.law.distributions import Sampling
from speclib.law.exact import TableModel, law_variation, max_difference, outcomes, plain_law
from speclib.law.statistics import SIGNIFICANCE, g_test, samples_needed
from speclib.loop.lengths import ConfidenceLength, CostAwareLength, FixedLength, HeuristicLength, Length
from speclib.museum import GUESSERS, GuesserExhibit

GAMMA, LENGTH = 2, 3  # a joint of 64 cells, longer than gamma, so that the bonus token is in it
MANY = 200_000


@cache
def right_law(length, sampling, dtype=torch.float32):
    """The law of the target's own text after PROMPT: a fresh context for each prefix, so that no cache is trusted."""

    def row(prefix):
        logits = target(dtype).context().extend(torch.tensor([[*PROMPT, *prefix]]))[0, -1]
        return sampling.probabilities(logits).double().numpy()

    return plain_law(TableModel(VOCABULARY, row), length)


PLANS = {  # each really chooses, see below
    "confidence": ConfidenceLength(0.5, 2),
    "heuristic": HeuristicLength(2, 3),
    "cost-aware": CostAwareLength({1: 1.0, 2: 1.1, 3: 1.57}, 0.1, prior=0.99, weight=0.5),
}


@dataclass(frozen=True)
class Case:
    """What is handed to generate(). length: of the text; the four tokens of the plans let one round decide on the
    next.
    """

    guesser: str
    rule: str = "token"
    plan: Length = FixedLength(GAMMA)
    sampling: Sampling = Sampling()
    length: int = LENGTH

    def drafter(self, dtype=torch.float32):
        return GUESSER[self.guesser](dtype)


TOP = Sampling(top_k=3)  # fewer paths, and tokens that only one of the two models holds possible
CASES = {f"{name}, token": Case(name) for name in CHAINS} | {
    f"{name}, block": Case(name, "block", sampling=TOP) for name in CHAINS
}
CASES |= {name: Case(name) for name in TREES} | {name: Case(name, sampling=TOP) for name in BUSHES}
CASES |= {
    f"{name} length, {rule}": Case("model", rule, plan, TOP, 4)
    for name, plan in PLANS.items()
    for rule in ("token", "block")
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def program(case, drafter, rule, dtype=torch.float32):
    """One text of generate(), as a function of chance."""

    def run(draw):
        out = generate(target(dtype), [PROMPT], drafter, case.sampling, case.plan, rule, case.length, [], draw=draw)
        return tuple(out.tokens[0].tolist())

    return run


@every
def test_every_path_sums_to_the_targets_law(case):
    """In float64, of the two likeliest tokens each: eight texts or sixteen, whose two models differ in what they hold
    possible.
    """
    case = replace(case, sampling=Sampling(top_k=2))
    law = outcomes(program(case, case.drafter(torch.float64), case.rule, torch.float64))
    assert max_difference(law, right_law(case.length, case.sampling, torch.float64)) < 1e-12
    assert sum(law.values()) == pytest.approx(1, abs=1e-12) and len(law) == 2**case.length


@every
def test_two_hundred_thousand_texts_follow_the_targets_law(case):
    right = right_law(case.length, case.sampling)
    result = g_test(sample_outcomes(program(case, case.drafter(), case.rule), MANY, seed=2026), right)
    print(f"{case}, seed 2026: {result}")
    assert len(right) == (case.sampling.top_k or VOCABULARY) ** case.length
    assert result.n == MANY and result.p_value > SIGNIFICANCE, str(result)


@every
def test_greedy_text_is_the_targets_own(case):
    prompts = [PROMPT, [3, 3, 0], [2]]
    plain, ours = (
        generate(target(), prompts, drafter, Sampling(temperature=0), case.plan, case.rule, 24, [])
        for drafter in (None, case.drafter())
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.tokens, ours.tokens, strict=True))
    assert any(r.drafted for r in ours.trace.rounds)


def test_no_guesser_and_no_length_is_left_out():
    tested = {type(make(torch.float32)).__name__ for make in GUESSER.values()}
    assert tested == {name for name in drafters.__all__ if name.endswith("Drafter")} - {"Drafter"}
    assert {type(case.plan) for case in CASES.values()} == {
        kind for name, kind in vars(lengths).items() if name.endswith("Length") and name != "Length"
    }


@pytest.mark.parametrize("name", PLANS)
def test_each_plan_chooses(name):
    """Where two guesses may be made, sometimes one is: what is tested above is no fixed length."""
    out = generate(
        target(), [PROMPT] * 100, CHAINS["model"](torch.float32), TOP, PLANS[name], max_new_tokens=4, stop=[], seed=1
    )
    assert {len(r.drafted) for r in out.trace.rounds if r.position < len(PROMPT) + 2} == {1, 2}


# --- the museum's guessers
# -------------------------------------------------------------------------------------------------

SHOWN_BY = {
    "looks back": ["model", "tree, drawn"],
    "favourite as drawn": ["model", "n-gram, drawn", "retrieval, drawn", "heads, drawn", "layer skip"],
    "copied as drawn": ["lookup", "n-gram, likeliest", "retrieval, likeliest"],
    "another head's q": ["heads, drawn"],
    "siblings apart": ["tree, drawn", "tree of heads, drawn", "ensemble of two that draw"],
    "with replacement": ["tree, drawn", "tree of heads, drawn"],
    "duplicates dropped": ["ensemble of two that draw"],
    "tree read as a chain": ["tree, drawn", "tree, likeliest", "tree, best first", "ensemble of copies and model"],
}


def shown(name, guesser):
    """Two tokens, for a mistake goes wrong in the first place already; heads can be taken for each other if there are
    two.
    """
    return Case(guesser, length=3 if name == "another head's q" else 2)


@pytest.mark.parametrize(
    ("name", "guesser"), [(name, guesser) for name, guessers in SHOWN_BY.items() for guesser in guessers]
)
def test_every_broken_guesser_is_caught(name, guesser):
    """Its exact law is off, and the G-test sees it with as many texts as it is said to need, but at least 200,000, seed
    4.
    """
    exhibit, case = GUESSERS[name], shown(name, guesser)
    run, right = program(case, exhibit.around(case.drafter()), exhibit.rule), right_law(case.length, case.sampling)
    wrong = outcomes(run)
    variation, needed = law_variation(wrong, right), samples_needed(wrong, right)
    # a law all the same: nothing crashes, nothing warns
    assert sum(wrong.values()) == pytest.approx(1, abs=1e-5) and variation > 1e-3
    result = g_test(sample_outcomes(run, max(MANY, needed), seed=4), right)
    print(f"{name}, {guesser}: TV {variation:.4f}, needs {needed:,}, seed 4: {result}")
    assert result.p_value < SIGNIFICANCE


@pytest.mark.parametrize("guesser", ["model", "tree, drawn"])
def test_an_exhibit_with_no_mistake_keeps_the_law(guesser):
    """What surrounds the mistakes is not what is caught."""
    honest, case = GuesserExhibit(name="honest", where="", what="", needs=""), shown("honest", guesser)
    assert (
        max_difference(
            outcomes(program(case, honest.around(case.drafter()), honest.rule)), right_law(case.length, case.sampling)
        )
        < 1e-6
    )


def test_every_exhibit_is_shown_and_described():
    assert SHOWN_BY.keys() == GUESSERS.keys()
    for name, exhibit in GUESSERS.items():
        assert exhibit.name == name and exhibit.where and exhibit.needs and ":" in exhibit.what
