"""Each rule as a law: it is one, it does what its paper says, and it leaves its arguments alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speclib.errors import InvalidArgument
from speclib.law.distributions import point_mass, residual, total_variation
from speclib.law.exact import fixed_table, max_difference, plain_law, rule_law
from speclib.law.rules import (
    RULES,
    Rule,
    block_law,
    chain_stops,
    drafted_probs,
    ensemble_law,
    find,
    lenience_law,
    token_law,
    typical_law,
)

LAWS = {name: rule.law for name, rule in RULES.items()}


def rows(generator, *shape, zeros=0.0, dtype=torch.float64):
    weights = torch.rand(shape, generator=generator, dtype=torch.float64) ** 3
    weights = torch.where(torch.rand(shape, generator=generator) < zeros, 0.0, weights)
    weights[..., 0] += 1e-9  # never a row without a possible token
    return (weights / weights.sum(-1, keepdim=True)).to(dtype)


def instance(seed, batch=64, n=3, vocabulary=5, zeros=0.3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    p = rows(generator, batch, n + 1, vocabulary, zeros=zeros, dtype=dtype)
    q = rows(generator, batch, n, vocabulary, zeros=zeros, dtype=dtype)
    q[: batch // 4] = p[: batch // 4, :n]  # some rows agree exactly
    drafted = torch.multinomial(q.reshape(-1, vocabulary).double(), 1, generator=generator).reshape(batch, n)
    return p, q, drafted


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("name", LAWS)
def test_a_verdict_is_a_law(name, n, dtype):
    p, q, drafted = instance(n, n=n, dtype=dtype)
    before = [tensor.clone() for tensor in (p, q, drafted)]
    verdict = LAWS[name](p, q, drafted)
    tight = 1e-12 if dtype == torch.float64 else 1e-5
    assert verdict.stop_probs.shape == (64, n + 1) and verdict.next_probs.shape == p.shape
    assert verdict.stop_probs.dtype == verdict.next_probs.dtype == dtype
    assert verdict.stop_probs.min() >= 0 and verdict.next_probs.min() >= 0
    assert (verdict.stop_probs.sum(-1) - 1).abs().max() < tight
    assert (verdict.next_probs.sum(-1) - 1).abs().max() < tight
    assert all(torch.equal(a, b) for a, b in zip(before, (p, q, drafted), strict=True))


@pytest.mark.parametrize("name", LAWS)
def test_rows_of_a_batch_do_not_meet(name):
    p, q, drafted = instance(9)
    together = LAWS[name](p, q, drafted)
    for i in range(0, 64, 7):
        alone = LAWS[name](p[i : i + 1], q[i : i + 1], drafted[i : i + 1])
        assert torch.equal(alone.stop_probs[0], together.stop_probs[i]) and torch.equal(
            alone.next_probs[0], together.next_probs[i]
        )


@pytest.mark.parametrize("name", LAWS)
def test_no_drafts_is_plain_decoding(name):
    p = rows(torch.Generator().manual_seed(0), 3, 1, 4)
    verdict = LAWS[name](p, p[:, :0], torch.zeros(3, 0, dtype=torch.long))
    assert torch.equal(verdict.stop_probs, torch.ones(3, 1, dtype=torch.float64)) and torch.equal(verdict.next_probs, p)


@pytest.mark.parametrize("name", ["token", "block"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-7, 1e-5, 1e-3]), vocabulary=st.sampled_from([3, 50]))
def test_nearly_equal_rows_in_float32(name, seed, scale, vocabulary):
    """Differences of the size of rounding must not make a probability negative or NaN: `multinomial` would refuse
    it.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(16, 5, vocabulary, generator=generator)
    p = logits.softmax(-1)
    q = (logits[:, :4] + scale * torch.randn(16, 4, vocabulary, generator=generator)).softmax(-1)
    drafted = torch.multinomial(q.reshape(-1, vocabulary), 1, generator=generator).reshape(16, 4)
    verdict = LAWS[name](p, q, drafted)
    assert verdict.stop_probs.isfinite().all() and verdict.next_probs.isfinite().all()
    assert verdict.stop_probs.min() >= 0 and verdict.next_probs.min() >= 0
    assert (verdict.stop_probs.sum(-1) - 1).abs().max() < 1e-5


def test_token_law_by_hand():
    p = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.4, 0.4], [0.1, 0.2, 0.7]]], dtype=torch.float64)
    q = torch.tensor([[[0.25, 0.5, 0.25], [0.8, 0.2, 0.0]]], dtype=torch.float64)
    verdict = token_law(p, q, torch.tensor([[1, 0]]))
    # the first draft passes with .25 / .5, the second with .2 / .8
    assert verdict.stop_probs[0].tolist() == pytest.approx([0.5, 0.5 * 0.75, 0.5 * 0.25])
    assert verdict.next_probs[0, 0].tolist() == pytest.approx([1, 0, 0])
    assert verdict.next_probs[0, 1].tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    assert torch.equal(verdict.next_probs[0, 2], p[0, 2])


def test_block_law_by_hand():
    """The toy example of 2403.10444: p = (1/3, 2/3), q = (2/3, 1/3), two drafts."""
    p = torch.tensor([[[1 / 3, 2 / 3]] * 3], dtype=torch.float64)
    q = torch.tensor([[[2 / 3, 1 / 3]] * 2], dtype=torch.float64)
    stops = {d: block_law(p, q, torch.tensor([d])).stop_probs[0].tolist() for d in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    # weights: (0, 0): 1/2, 1/4. (0, 1): 1/2, min(1, 1/2 * 2) = 1: the second token makes up for the first.
    assert stops[0, 0] == pytest.approx([0.75, 0, 0.25])  # at w = 1/2 nothing of w p lies above q: no stop after one
    assert stops[0, 1] == pytest.approx([0, 0, 1])
    # (1, 0): 1, 1/2: the first is safe, h_1 = (1/3) / (1/3) = 1. (1, 1): 1, 1.
    assert stops[1, 0] == pytest.approx([0, 0.5, 0.5])
    assert stops[1, 1] == pytest.approx([0, 0, 1])


@pytest.mark.parametrize("law", [token_law, block_law])
def test_equal_rows_are_always_accepted(law):
    p, _, _ = instance(4)
    drafted = p[:, :3].argmax(-1)
    stops = law(p, p[:, :3].clone(), drafted).stop_probs
    assert torch.equal(stops[:, :3], torch.zeros(64, 3, dtype=torch.float64)) and torch.equal(
        stops[:, 3], torch.ones(64, dtype=torch.float64)
    )


@pytest.mark.parametrize("law", [token_law, block_law])
def test_temperature_zero_accepts_while_the_argmax_agrees(law):
    """Point masses on both sides: the number of leading matches, then the target's argmax, and no chance left."""
    generator = torch.Generator().manual_seed(2)
    best = torch.randint(3, (200, 5), generator=generator)
    drafted = torch.where(
        torch.rand(200, 4, generator=generator) < 0.7, best[:, :4], torch.randint(3, (200, 4), generator=generator)
    )
    verdict = law(point_mass(best, 3), point_mass(drafted, 3), drafted)
    matches = (drafted == best[:, :4]).long().cumprod(1).sum(1)
    assert set(matches.tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(verdict.stop_probs, point_mass(matches, 5))
    row = torch.arange(200)
    assert torch.equal(verdict.next_probs[row, matches], point_mass(best, 3)[row, matches])


def test_deterministic_drafts_are_point_masses():
    """A guess without chance: accepted with probability p(x), and never drawn again after its rejection."""
    p = torch.tensor([[[0.3, 0.7, 0.0], [0.2, 0.3, 0.5]]], dtype=torch.float64)
    verdict = token_law(p, point_mass(torch.tensor([[0]]), 3, torch.float64), torch.tensor([[0]]))
    assert verdict.stop_probs[0].tolist() == pytest.approx([0.7, 0.3])
    assert verdict.next_probs[0, 0].tolist() == pytest.approx([0, 1, 0])


def test_a_forbidden_token_is_never_accepted():
    p = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
    q = torch.tensor([[[0.9, 0.1]]])
    for law in (token_law, block_law):
        assert law(p, q, torch.tensor([[0]])).stop_probs.tolist() == [[1.0, 0.0]]


def test_chain_stops():
    assert chain_stops(torch.tensor([[0.5, 0.25]])).tolist() == [[0.5, 0.375, 0.125]]
    assert drafted_probs(torch.tensor([[[0.1, 0.9], [0.6, 0.4]]]), torch.tensor([[1, 0]])).tolist() == [
        [pytest.approx(0.9), pytest.approx(0.6)]
    ]


def test_typical_law_by_hand():
    p = torch.tensor([[[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [1.0, 0.0, 0.0]]], dtype=torch.float64)
    q = torch.full((1, 2, 3), 1 / 3, dtype=torch.float64)
    # thresholds: 0.3 exp(-H) is .135 and .202, so epsilon = .09 decides in both rows
    assert typical_law(p, q, torch.tensor([[2, 0]])).stop_probs[0].tolist() == [0, 1, 0]
    assert typical_law(p, q, torch.tensor([[2, 0]]), epsilon=0.2, delta=0.3).stop_probs[0].tolist() == [1, 0, 0]
    flat = torch.full((1, 2, 50), 0.02, dtype=torch.float64)  # high entropy lowers the bar to 0.3 / 50
    assert typical_law(flat, flat[:, :1], torch.tensor([[7]])).stop_probs[0].tolist() == [0, 1]


def test_lenience():
    p, q, drafted = instance(5)
    strict, lenient = lenience_law(p, q, drafted, 1.0), lenience_law(p, q, drafted, 0.5)
    assert torch.equal(strict.stop_probs, token_law(p, q, drafted).stop_probs) and torch.equal(
        strict.next_probs, token_law(p, q, drafted).next_probs
    )
    assert (lenient.stop_probs[:, -1] >= strict.stop_probs[:, -1]).all() and (
        lenient.stop_probs[:, -1] > strict.stop_probs[:, -1]
    ).any()
    for bad in (0, -1, 1.5, math.nan):
        with pytest.raises(InvalidArgument, match="lenience"):
            lenience_law(p, q, drafted, bad)


def test_the_ensembles_law_depends_on_gamma():
    """A token that a guess was made for follows w p + (1 - w) q, every other one p: which is which, gamma decides."""
    p, q = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]], dtype=torch.float64)
    target, draft, weight = fixed_table(p.tolist()), fixed_table(q.tolist()), 0.6
    mixture = weight * p + (1 - weight) * q
    kept = torch.minimum(mixture, q).sum()
    # three tokens: two guesses and the last one; or a guess, and a bonus where it was kept, and the last one
    wanted = {2: [mixture, mixture, p], 1: [mixture, kept * p + (1 - kept) * mixture, p]}
    for gamma, rows in wanted.items():
        law = rule_law(lambda *rows: ensemble_law(*rows, weight), target, draft, gamma, 3)
        for place, row in enumerate(rows):
            found = torch.zeros(3, dtype=torch.float64)
            for text, mass in law.items():
                found[text[place]] += mass
            torch.testing.assert_close(found, row, rtol=0, atol=1e-12)
    assert (
        max_difference(rule_law(lambda *rows: ensemble_law(*rows, 1.0), target, draft, 2, 3), plain_law(target, 3))
        < 1e-12
    )
    with pytest.raises(InvalidArgument, match="weight"):
        ensemble_law(p.expand(1, 2, 3), q.expand(1, 1, 3), torch.tensor([[0]]), 0)


@pytest.mark.parametrize("name", LAWS)
def test_guesses_not_made_leave_the_shorter_law(name):
    """Random batches, the rows of q after the first k set to 0: the law of k guesses, and nothing behind them."""
    p, q, drafted = instance(11)
    for k in range(3):
        short = LAWS[name](p[:, : k + 1], q[:, :k], drafted[:, :k])
        padded = LAWS[name](p, torch.cat([q[:, :k], 0 * q[:, k:]], 1), drafted)
        torch.testing.assert_close(padded.stop_probs[:, : k + 1], short.stop_probs, rtol=0, atol=1e-12)
        assert padded.stop_probs[:, k + 1 :].abs().max() == 0
        reached = short.stop_probs > 0
        torch.testing.assert_close(
            padded.next_probs[:, : k + 1][reached], short.next_probs[reached], rtol=0, atol=1e-12
        )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), vocabulary=st.integers(2, 6), zeros=st.sampled_from([0.0, 0.5]))
def test_one_draft_is_accepted_with_the_overlap(seed, vocabulary, zeros):
    """Mean acceptance over drafts is sum(min(p, q)), and accepted plus recovered mass is p, for both lossless rules."""
    generator = torch.Generator().manual_seed(seed)
    p, q = rows(generator, 2, vocabulary, zeros=zeros), rows(generator, 1, vocabulary, zeros=zeros)[0]
    drafts = q.nonzero()  # [K, 1]: every token that can be drafted
    weight = q[drafts[:, 0]]
    for law in (token_law, block_law):
        verdict = law(p.expand(len(drafts), 2, vocabulary), q.expand(len(drafts), 1, vocabulary), drafts)
        accepted = weight * verdict.stop_probs[:, 1]
        assert float(accepted.sum()) == pytest.approx(float(1 - total_variation(p[0], q)), abs=1e-12)
        emitted = torch.zeros(vocabulary, dtype=torch.float64).index_add(0, drafts[:, 0], accepted)
        emitted += ((weight * verdict.stop_probs[:, 0])[:, None] * verdict.next_probs[:, 0]).sum(0)
        torch.testing.assert_close(emitted, p[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(verdict.next_probs[:, 1], p[1].expand(len(drafts), vocabulary))


def test_the_residual_stands_at_its_own_position():
    p, q, drafted = instance(6, zeros=0.0)
    verdict = token_law(p, q, drafted)
    for i in range(3):
        assert torch.equal(verdict.next_probs[:, i], residual(p[:, i], q[:, i]))


def test_find():
    assert find("token").law is token_law and find("block").lossless
    mine = Rule("mine", token_law, True, "here")
    assert find(mine) is mine
    with pytest.raises(InvalidArgument, match="token, block, typical, lenience"):
        find("tokens")
    assert {name: rule.lossless for name, rule in RULES.items()} == {
        "token": True,
        "block": True,
        "typical": False,
        "lenience": False,
        "ensemble": False,
    }
    assert all(rule.source for rule in RULES.values())
