"""Sampling settings against transformers' own warpers, and the arithmetic of two distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from speclib.errors import InvalidArgument, NonFiniteLogits, SpeclibError
from speclib.law.distributions import Sampling, entropy, overlap, point_mass, residual, seeded, total_variation

# few different values: ties are common; -inf: a token that the model forbids
logit = st.sampled_from([-math.inf, -3.0, -1.0, 0.0, 0.5, 0.5, 2.0]) | st.floats(-20, 20, width=32)
rows = st.lists(logit, min_size=2, max_size=9).filter(lambda row: max(row) > -math.inf)
weights = st.lists(st.sampled_from([0.0, 1.0]) | st.floats(1e-6, 1), min_size=6, max_size=6)


def distribution(values):
    row = torch.tensor(values, dtype=torch.float64)
    return row / row.sum()


pairs = st.tuples(weights, weights).filter(lambda pair: sum(pair[0]) > 0 and sum(pair[1]) > 0)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    row=rows,
    temperature=st.sampled_from([1.0, 0.7, 1.9, 0.01]),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(0.01, 1.0),
    min_p=st.none() | st.floats(0.0, 1.0),
)
def test_settings_equal_transformers_warpers(row, temperature, top_k, top_p, min_p):
    scores = torch.tensor([row, row[::-1]], dtype=torch.float32)
    chain = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        chain.append(TopKLogitsWarper(top_k=top_k, min_tokens_to_keep=1))
    if top_p is not None:
        chain.append(TopPLogitsWarper(top_p=top_p, min_tokens_to_keep=1))
    if min_p is not None:
        chain.append(MinPLogitsWarper(min_p=min_p, min_tokens_to_keep=1))
    expected = torch.softmax(chain(torch.zeros(2, 1, dtype=torch.long), scores.clone()), -1)
    ours = Sampling(temperature, top_k, top_p, min_p).probabilities(scores)
    assert torch.equal(ours, expected)


def test_settings_equal_what_generate_samples_from():
    """`generate` itself builds the filters here, and hands out logits before and after them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # a random model is nearly uniform; the filters should have something to cut
    asked = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05}
    out = model.generate(
        torch.tensor([[2, 3, 4]]),
        do_sample=True,
        max_new_tokens=4,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
        **asked,
    )
    kept = []
    for logits, scores in zip(out.logits, out.scores, strict=True):
        ours = Sampling(**asked).probabilities(logits)
        torch.testing.assert_close(ours, scores.softmax(-1), rtol=1e-6, atol=1e-8)
        kept.append(int((ours > 0).sum()))
    assert max(kept) < 40


@settings(max_examples=100, deadline=None, derandomize=True)
@given(row=rows)
def test_temperature_zero_is_the_first_argmax(row):
    expected = [0.0] * len(row)
    expected[row.index(max(row))] = 1.0
    assert Sampling(temperature=0).probabilities(torch.tensor(row)).tolist() == expected


def test_filters_by_hand():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert Sampling(top_k=2).probabilities(logits).tolist() == pytest.approx([0.625, 0.375, 0, 0])
    # .5 + .3 crosses .7: .3 stays
    assert Sampling(top_p=0.7).probabilities(logits).tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert Sampling(min_p=0.2).probabilities(logits).tolist() == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0])
    assert Sampling(temperature=0.5).probabilities(logits).tolist() == pytest.approx(
        [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]
    )


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (0, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_shape_and_precision(shape, dtype):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = logits.clone()
    for sampling in (Sampling(), Sampling(temperature=0), Sampling(0.7, 3, 0.9, 0.1)):
        probabilities = sampling.probabilities(logits)
        assert probabilities.shape == shape
        assert probabilities.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(shape[:-1], dtype=probabilities.dtype))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1e6])
def test_extreme_temperatures_stay_finite(temperature):
    probabilities = Sampling(temperature=temperature).probabilities(torch.tensor([1e4, -1e4, 3.0, -math.inf]))
    assert probabilities.isfinite().all() and abs(probabilities.sum() - 1) < 1e-6


BAD = [
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", 1e-40),
    ("temperature", "1"),
    ("temperature", None),
    ("top_k", 0),
    ("top_k", -1),
    ("top_k", 2.5),
    ("top_k", True),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("top_p", "0.9"),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("min_p", math.nan),
]


def test_numpys_numbers_are_numbers():
    given = Sampling(temperature=np.float32(0.5), top_k=np.int64(3), top_p=np.float64(0.9), min_p=np.float32(0))
    assert given == Sampling(temperature=0.5, top_k=3, top_p=0.9, min_p=0) and type(given.top_k) is int
    with pytest.raises(InvalidArgument, match="top_k"):
        Sampling(top_k=np.float64(3))


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_settings_say_which(name, value):
    with pytest.raises(InvalidArgument, match=name) as caught:
        Sampling(**{name: value})
    assert (
        "\n" not in str(caught.value)
        and isinstance(caught.value, ValueError)
        and isinstance(caught.value, SpeclibError)
    )


@pytest.mark.parametrize("row", [[math.nan, 0.0, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0), Sampling(top_k=2)], ids=["plain", "greedy", "top-k"]
)
def test_logits_that_are_no_numbers(row, sampling):
    with pytest.raises(NonFiniteLogits):
        sampling.probabilities(torch.tensor([[0.0, 1.0, 2.0], row]))


def test_point_mass():
    one = point_mass(torch.tensor([[2, 0], [1, 1]]), 3, torch.float64)
    assert one.dtype == torch.float64
    assert one.tolist() == [[[0, 0, 1], [1, 0, 0]], [[0, 1, 0], [0, 1, 0]]]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(pair=pairs)
def test_overlap_and_residual_put_p_together_again(pair):
    """min(p, q) + P(rejected) residual = p: the whole of Leviathan's proof, as arithmetic."""
    p, q = map(distribution, pair)
    before = p.clone(), q.clone()
    beta = overlap(p, q)
    assert float(beta + total_variation(p, q)) == pytest.approx(1, abs=1e-12)
    rest = residual(p, q)
    assert float(rest.sum()) == pytest.approx(1, abs=1e-12) and (rest >= 0).all()
    torch.testing.assert_close(torch.minimum(p, q) + (1 - beta) * rest, p, rtol=0, atol=1e-12)
    assert torch.equal(p, before[0]) and torch.equal(q, before[1])


def test_residual_of_equal_rows_is_p():
    p = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    assert torch.equal(residual(p, p), p)
    assert residual(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).tolist() == [1.0, 0.0]


def test_residual_survives_rounding():
    """Logits shifted by a constant give the same law up to rounding: the residual must stay a distribution."""
    logits = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    p, q = logits.softmax(-1), (logits + 7.3).softmax(-1)
    rest = residual(p, q)
    empty = (p - q).clamp_min(0).sum(-1) == 0
    assert 0.01 < empty.double().mean() < 0.99  # both kinds of row occur
    assert rest.isfinite().all() and (rest.sum(-1) - 1).abs().max() < 1e-6


def test_entropy_in_nats():
    rows = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert entropy(rows).tolist() == pytest.approx([math.log(4), 0.0])


def test_seeded_draws():
    probabilities = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    one, other = seeded(7), seeded(7)
    first = [one(probabilities) for _ in range(5)]
    assert all(torch.equal(a, other(probabilities)) for a in first)
    assert first[0].shape == (3, 4) and first[0].max() < 5
    assert not all(torch.equal(a, first[0]) for a in first)
    another = seeded(8)
    assert not all(torch.equal(a, another(probabilities)) for a in first)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_never_draws_the_impossible():
    probabilities = torch.tensor([0.0, 1e-7, 0.0, 1 - 1e-7, 0.0]).expand(200_000, 5)
    assert set(seeded(3)(probabilities).tolist()) <= {1, 3}
