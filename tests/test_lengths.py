"""How far to guess: every plan keeps the law, and each does what it says. One that looks at the drawn token is in the
museum: test_every_guesser.py.
"""

import pytest
import torch
from models import llama, right_law

from speclib import theory
from speclib.drafters import ModelDrafter
from speclib.errors import InvalidArgument
from speclib.law.distributions import Sampling
from speclib.law.exact import max_difference, outcomes
from speclib.loop.decoding import generate
from speclib.loop.lengths import ConfidenceLength, CostAwareLength, FixedLength, HeuristicLength
from speclib.loop.trace import Round

CURVE = {1: 1.0, 2: 1.05, 3: 1.3, 4: 1.3, 5: 1.1}
PLANS = [
    FixedLength(2),
    ConfidenceLength(0.5, 3),
    ConfidenceLength(0.9, 2),
    HeuristicLength(1, 3),
    HeuristicLength(3, 4),
    CostAwareLength(CURVE, 0.1),
    CostAwareLength(CURVE, 0.9, probe=2),
]
PROMPT = [0, 1]


def law(target, drafter, plan, length, stop=()):
    def run(draw):
        out = generate(target, [PROMPT], drafter, Sampling(), plan, "token", length, list(stop), draw=draw)
        return tuple(out.tokens[0].tolist())

    return outcomes(run)


@pytest.mark.parametrize("stop", [(), (1,)])
@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_keeps_the_law(plan, stop):
    target, draft = llama(2, 0, 2), llama(2, 1, 1)
    right = right_law(target, Sampling(), 4, PROMPT, *stop)
    assert max_difference(law(target, ModelDrafter(draft), plan, 4, stop), right) < 1e-12


@pytest.mark.parametrize("plan", PLANS)
def test_greedy_text_does_not_depend_on_the_plan(plan):
    target, draft = llama(5, 3, 2), llama(5, 4, 1)
    plain, planned = (
        generate(target, [PROMPT], d, Sampling(temperature=0), plan, max_new_tokens=24, stop=[]).tokens[0]
        for d in (None, ModelDrafter(draft))
    )
    assert torch.equal(plain, planned)


def round_of(drafted, accepted, overlap=0.5):
    return Round(0, 0, list(range(drafted)), [overlap] * drafted, [], accepted, [0] * (accepted + 1), 0.0, 0.0, 0.0)


def test_confidence_stops_before_the_draw():
    plan = ConfidenceLength(0.6, 5).start()
    assert plan.next_length() == 5
    assert plan.goes_on(torch.tensor([0.7, 0.3])) and not plan.goes_on(torch.tensor([0.5, 0.5]))
    target, draft = llama(5, 3, 2), llama(5, 4, 1)
    sure = generate(
        target, [PROMPT], ModelDrafter(draft), Sampling(), ConfidenceLength(1.0, 4), max_new_tokens=20, stop=[]
    )
    assert {len(r.drafted) for r in sure.trace.rounds[:-1]} == {1}  # one guess is always made


def test_heuristic_goes_up_by_two_and_down_by_one():
    plan = HeuristicLength(3, 6).start()
    seen = [plan.next_length()]
    for accepted in (3, 5, 6, 2, 0, 0, 0, 0, 0, 0):
        plan.observe(round_of(plan.next_length(), min(accepted, plan.next_length())))
        seen.append(plan.next_length())
    assert seen == [3, 5, 6, 6, 5, 4, 3, 2, 1, 1, 1]


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.6, 0.8, 0.95])
def test_cost_aware_finds_the_best_length(alpha):
    settings = CostAwareLength(CURVE, 0.1, probe=1)
    plan = settings.start()
    for _ in range(400):
        n = plan.next_length()
        plan.observe(round_of(n, min(n, 1), alpha))
    assert plan.alpha == pytest.approx(alpha, abs=0.01)
    speeds = {gamma: float(theory.speedup(alpha, gamma, 0.1, CURVE[gamma + 1])) for gamma in range(5)}
    assert settings.best(plan.alpha) == max(speeds, key=speeds.get)
    assert settings.best(0.6) == 4  # five tokens are cheaper to check than three or four: it never asks for those


def test_cost_aware_stops_guessing_and_looks_again():
    plan = CostAwareLength(CURVE, 0.9, prior=0.1, weight=1.0, probe=5).start()
    lengths = []
    for _ in range(15):
        n = plan.next_length()
        lengths.append(n)
        plan.observe(round_of(n, 0, 0.1))
    assert lengths == [0, 0, 0, 0, 1] * 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConfidenceLength(1.5),
        lambda: ConfidenceLength(0.5, -1),
        lambda: HeuristicLength(0),
        lambda: HeuristicLength(5, 4),
        lambda: CostAwareLength({2: 1.0}, 0.1),
        lambda: CostAwareLength({1: 0.0}, 0.1),
        lambda: CostAwareLength({1: 1.0}, -1),
        lambda: CostAwareLength({1: 1.0}, 0.1, memory=0),
    ],
)
def test_settings_that_cannot_be(make):
    with pytest.raises(InvalidArgument):
        make()
