"""What a context must get right: the fast decoder against transformers' own forward, trees against their branches,
rollback, room.
"""

from functools import cache

import pytest
import torch
from models import TOLERANCE, build, reference, text
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import speclib
from speclib import LanguageModel, errors
from speclib.drafters import ModelDrafter, SyntheticDrafter
from speclib.model.context import ancestry
from speclib.model.fast import FastContext

FAST = ["llama", "llama grouped", "llama biased", "mistral", "qwen2", "gpt2"]


@cache
def language_model(kind, backend, seed=0, dtype=torch.float64, layers=3):
    return LanguageModel(build(kind, seed, dtype, layers), backend=backend)


# --- the fast decoder
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", FAST)
def test_fast_is_transformers_own_forward(kind, dtype):
    """Reading at once, in pieces, after a rollback, and past the 256 tokens that the cache first has room for."""
    tokens = text(300)
    right = reference(kind, tokens, dtype)
    model = language_model(kind, "fast", dtype=dtype)
    assert (model.context().extend(tokens)[0] - right).abs().max() < TOLERANCE[dtype]
    pieces = model.context()
    assert isinstance(pieces, FastContext) and pieces.capacity == 256
    pieces.extend(tokens[:, :250], keep=1)
    pieces.extend(text(9, seed=4))
    pieces.rollback(250)
    got = torch.cat(
        [
            pieces.extend(tokens[:, start : start + width])[0]
            for start, width in ((250, 1), (251, 4), (255, 1), (256, 1), (257, 43))
        ]
    )
    assert pieces.capacity == 512 and pieces.length == 300
    assert (got - right[250:]).abs().max() < TOLERANCE[dtype]
    assert right.std() > 0.3  # logits of a size that makes the tolerance mean something


def test_the_last_logits_only():
    tokens = text(20)
    for backend in ("eager", "fast"):
        model = language_model("llama", backend)
        assert model.context().extend(tokens, keep=1).shape == (1, 1, 48)
        assert (model.context().extend(tokens, keep=3)[0] - reference("llama", tokens)[-3:]).abs().max() < 1e-5


@pytest.mark.parametrize("backend", ["eager", "fast"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.inference_mode()
def test_hidden_states_are_those_behind_the_logits(kind, backend):
    model, tokens = language_model(kind, backend), text(12)
    context = model.context()
    context.wants_hidden = True
    context.extend(tokens[:, :8], keep=1)
    logits = context.extend(tokens[:, 8:])
    assert context.hidden.shape == (1, 4, 32)
    assert (build(kind).lm_head(context.hidden) - logits).abs().max() < 1e-10
    context.rollback(10)
    assert (build(kind).lm_head(context.last_hidden()) - logits[0, 1]).abs().max() < 1e-10


def test_what_the_fast_decoder_cannot_read_is_refused():
    with pytest.raises(errors.UnsupportedModel, match="not GPTNeoXForCausalLM; use backend='eager'"):
        LanguageModel(build("neox"), backend="fast")
    with pytest.raises(errors.InvalidArgument, match="backend must be one of eager, fast, compiled"):
        LanguageModel(build("llama"), backend="quick")
    scaled = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    )
    with pytest.raises(errors.UnsupportedModel, match="rotary"):
        LanguageModel(LlamaForCausalLM(scaled).eval(), backend="fast")
    other = GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=8, activation_function="relu")
    with pytest.raises(errors.UnsupportedModel, match="gelu_new"):
        LanguageModel(GPT2LMHeadModel(other).eval(), backend="fast")


@pytest.mark.parametrize("kind", FAST)
def test_greedy_text_is_the_same_from_both_backends(kind):
    greedy, prompts = speclib.Sampling(temperature=0), text(2 * 6).reshape(2, 6).tolist()
    runs = []
    for backend in ("eager", "fast"):
        target, draft = language_model(kind, backend), language_model(kind, backend, seed=1, layers=1)
        for drafter in (None, ModelDrafter(draft), SyntheticDrafter(0.8)):
            runs.append(
                [
                    t.tolist()
                    for t in speclib.generate(target, prompts, drafter, greedy, 4, max_new_tokens=20, stop=[]).tokens
                ]
            )
    assert all(run == runs[0] for run in runs)
    assert len({tuple(row) for row in runs[0]}) == 2


# --- trees
# ------------------------------------------------------------------------------------------------------------------

TREES = {
    "chain": [-1, 0, 1, 2],
    "star": [-1, -1, -1],
    "two branches": [-1, 0, -1, 2, 3],
    "bushy": [-1, -1, 0, 0, 1, 2, 2, 4, 7],
}
WITH_TREES = [
    ("eager", "llama"),
    ("eager", "gpt2"),
    ("eager", "neox"),
    ("fast", "llama"),
    ("fast", "llama grouped"),
    ("fast", "qwen2"),
    ("fast", "gpt2"),
]


def ancestors(parents, node):
    """From the root of the branch down to `node`, itself included."""
    line = []
    while node >= 0:
        line.append(node)
        node = parents[node]
    return line[::-1]


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(("backend", "kind"), WITH_TREES)
def test_a_tree_in_one_forward_is_its_branches_one_by_one(backend, kind, tree):
    parents, model, before, tokens = (
        TREES[tree],
        language_model(kind, backend),
        text(10),
        text(9, seed=5)[:, : len(TREES[tree])],
    )
    context = model.context()
    context.extend(before, keep=1)
    logits = context.extend(tokens, parents=parents)[0]
    for node in range(len(parents)):
        alone = reference(kind, torch.cat([before, tokens[:, ancestors(parents, node)]], 1))[-1]
        assert (logits[node] - alone).abs().max() < 1e-5, (tree, node)


@pytest.mark.parametrize(("backend", "kind"), WITH_TREES)
def test_one_branch_can_be_kept(backend, kind):
    """After `retain` the context is one that has read the kept branch and nothing else."""
    parents, before, tokens, after = TREES["bushy"], text(10), text(9, seed=5), text(4, seed=6)
    for node in (-1, 1, 3, 8):
        path = ancestors(parents, node)
        context = language_model(kind, backend).context()
        context.wants_hidden = True
        context.extend(before, keep=1)
        context.extend(tokens, parents=parents)
        seen = context.hidden
        context.retain(path)
        assert context.length == 10 + len(path)
        assert torch.equal(context.hidden, seen[:, path])
        right = reference(kind, torch.cat([before, tokens[:, path], after], 1))[-4:]
        assert (context.extend(after)[0] - right).abs().max() < 1e-5, node


def test_a_tree_also_fits_where_the_cache_grows():
    tokens = text(254)
    context = language_model("llama", "fast").context()
    context.extend(tokens, keep=1)
    guesses = text(9, seed=5)
    context.extend(guesses, parents=TREES["bushy"])
    context.retain([1, 4, 7, 8])
    right = reference("llama", torch.cat([tokens, guesses[:, [1, 4, 7, 8]], tokens[:, :2]], 1))[-2:]
    assert (context.extend(tokens[:, :2])[0] - right).abs().max() < 1e-5


def test_ancestry():
    sees, depths = ancestry([-1, 0, -1, 1])
    assert sees.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1]]
    assert depths.tolist() == [0, 1, 0, 2]
    for wrong in ([0], [-1, 2, 0], [-2]):
        with pytest.raises(errors.InvalidArgument, match="parents come before"):
            ancestry(wrong)


@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_rolling_back_to_where_nothing_was_read_is_an_error(backend):
    context = language_model("llama", backend).context()
    context.extend(text(5))
    for length in (-1, 6):
        with pytest.raises(errors.InvalidArgument, match=f"cannot roll back to {length} tokens: the context holds 5"):
            context.rollback(length)
    context.rollback(0)
    assert (context.extend(text(5))[0] - reference("llama", text(5))).abs().max() < 1e-5
