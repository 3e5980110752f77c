"""Rounded copies: the rounding itself, what a copy keeps and saves, and the law of the text when it drafts."""

import pytest
import torch
from models import law_of, right_law, tiny
from transformers import LlamaConfig, LlamaForCausalLM

import speclib
from speclib.drafters import ModelDrafter
from speclib.errors import InvalidArgument, UnsupportedModel
from speclib.law.distributions import Sampling, overlap
from speclib.model.quantized import RoundedLinear, rounded, rounded_copy, weight_bytes


def test_rounding_is_to_the_nearest_step_of_each_row():
    weight = torch.tensor([[1.27, -0.634, 0.0], [0.0, 0.0, 0.0], [-25.4, 0.06, 12.65]])
    whole, scale = rounded(weight)
    assert whole.tolist() == [[127, -63, 0], [0, 0, 0], [-127, 0, 63]]
    assert ((whole * scale[:, None] - weight).abs() <= scale[:, None] / 2 + 1e-6).all()
    assert rounded(weight, 2)[0].unique().tolist() == [-1, 0, 1]
    for bad in (1, 9, 4.0):
        with pytest.raises(InvalidArgument, match="bits"):
            rounded(weight, bad)


@pytest.mark.parametrize("width", [64, 40, 8])  # of 64 alone torch's own int8 product makes something
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_rounded_matrix(dtype, width):
    torch.manual_seed(0)
    module = torch.nn.Linear(width, 32, bias=True, dtype=dtype)
    x = torch.randn(2, 5, width, dtype=dtype)
    copy = RoundedLinear(module)
    expected = x.double() @ (copy.weight.double() * copy.scale.double()[:, None]).T + module.bias.double()
    assert copy(x).shape == (2, 5, 32) and copy(x).dtype == dtype
    torch.testing.assert_close(copy(x).double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 0.05)


def small(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
    )
    return speclib.LanguageModel(LlamaForCausalLM(config).eval())


def test_a_copy_is_smaller_similar_and_leaves_the_original_alone():
    model = small()
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    text = torch.randint(64, (1, 40), generator=torch.Generator().manual_seed(0))
    p = model.context().extend(text).softmax(-1)
    similar = [
        float(overlap(p, rounded_copy(model, bits).context().extend(text).softmax(-1)).mean()) for bits in (8, 4, 2)
    ]
    assert 1 > similar[0] > 0.97 and similar[0] > similar[1] > similar[2]
    matrices = sum(
        m.weight.numel()
        for m in model.model.modules()
        if isinstance(m, torch.nn.Linear) and m is not model.model.lm_head
    )
    saved = weight_bytes(model) - weight_bytes(rounded_copy(model))
    assert 2.9 * matrices < saved < 3 * matrices  # 4 bytes become 1, and the scales are small
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(UnsupportedModel, match="no linear layers"):
        rounded_copy(tiny("gpt2"))


def test_generate_keeps_the_law_when_a_copy_drafts():
    target = tiny()
    law = law_of(target, ModelDrafter(rounded_copy(target, 3)), Sampling(), 2, 3, [0, 1])
    assert max(abs(law[text] - mass) for text, mass in right_law(target, Sampling(), 3, [0, 1]).items()) < 1e-12
