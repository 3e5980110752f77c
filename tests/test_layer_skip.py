"""Layer skipping: the law of the text, the shared cache, and what it refuses."""

import pytest
import torch
from models import GREEDY, law_of, right_law, tiny
from transformers import OPTConfig, OPTForCausalLM

import speclib
from speclib.drafters import Exits, LayerSkipDrafter
from speclib.errors import IncompatibleModels, InvalidArgument, UnsupportedModel
from speclib.law.distributions import Sampling, overlap
from speclib.law.exact import max_difference


def some_exits(*layers):
    torch.manual_seed(1)
    exits = Exits(layers, 8)
    with torch.no_grad():
        exits.weight.normal_()
        exits.bias.normal_()
    return exits.double().requires_grad_(False)


@pytest.mark.parametrize("backend", ["eager", "fast"])
@pytest.mark.parametrize(
    ("kind", "layers", "exits", "vocabulary", "gamma", "length", "sampling"),
    [
        ("llama", 1, False, 2, 2, 4, Sampling()),
        ("llama", 2, True, 3, 2, 3, Sampling(temperature=0.7)),
        ("gpt2", 1, False, 3, 1, 3, Sampling(top_k=2)),
    ],
)
def test_generate_keeps_the_law(backend, kind, layers, exits, vocabulary, gamma, length, sampling):
    target, prompt = tiny(kind, backend, vocabulary), [0, 1]
    drafter = LayerSkipDrafter(layers, some_exits(layers) if exits else None)
    law = law_of(target, drafter, sampling, gamma, length, prompt)
    assert max_difference(law, right_law(target, sampling, length, prompt)) < 1e-12
    assert sum(law.values()) == pytest.approx(1, abs=1e-12) and len(law) > 2


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_greedy_identity_also_past_the_first_capacity_of_the_cache(kind, backend):
    target = tiny(kind, backend, vocabulary=30, context=300, scale=3)
    prompts = torch.randint(30, (2, 6), generator=torch.Generator().manual_seed(0)).tolist()
    plain = speclib.generate(target, prompts, None, GREEDY, max_new_tokens=280, stop=[])
    skipped = speclib.generate(target, prompts, LayerSkipDrafter(2), GREEDY, 4, max_new_tokens=280, stop=[])
    assert all(torch.equal(a, b) for a, b in zip(plain.tokens, skipped.tokens, strict=True))
    assert len(skipped.trace.rounds) < 560  # some guesses were right, some wrong: both paths were walked
    assert any(r.accepted < len(r.drafted) for r in skipped.trace.rounds)


def test_both_caches_draft_from_the_same_distributions_and_all_layers_are_the_target():
    """The recorded overlaps are those of the first layers read afresh; with all layers they are 1."""
    for layers in (1, 2, 3):
        found = []
        for backend in ("eager", "fast"):
            target = tiny(backend=backend, vocabulary=5)
            out = speclib.generate(
                target, [[0, 1, 2]], LayerSkipDrafter(layers), Sampling(), 3, max_new_tokens=20, stop=[], seed=4
            )
            found.append([value for r in out.trace.rounds for value in r.overlaps])
        assert found[0] == pytest.approx(found[1], abs=1e-6)
        assert (min(found[0]) > 1 - 1e-6) == (layers == 3)


def test_guesses_behind_the_text_leave_the_targets_logits_as_they_are():
    target, text = tiny(backend="fast", vocabulary=5), [0, 1, 2, 3]
    fresh = target.context().extend(torch.tensor([[*text, 4]]))
    context = target.context(text)
    guesser = LayerSkipDrafter(2).start(context, Sampling(), speclib.distributions.seeded(0))
    context.extend(torch.tensor([text[:-1]]))
    guesser.propose(text, 4)
    assert context.length == 3
    after = context.extend(torch.tensor([[text[-1], 4]]))
    torch.testing.assert_close(after, fresh[:, -2:], rtol=0, atol=1e-12)


def test_an_exit_changes_the_guess_as_its_formula_says():
    target, exits = tiny(backend="fast", vocabulary=5), some_exits(1)
    with torch.inference_mode():
        out = target.model(torch.tensor([[0, 1, 2]]), output_hidden_states=True)
        x = out.hidden_states[1]
        normed = x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float64).eps).sqrt()
        q = target.model.lm_head(target.model.model.norm(x + normed @ exits.weight[0].T + exits.bias[0]))[
            0, -1
        ].softmax(-1)
        p = out.logits[0, -1].softmax(-1)
    trace = speclib.generate(
        target, [[0, 1, 2]], LayerSkipDrafter(1, exits), draft_length=1, max_new_tokens=2, stop=[]
    ).trace
    assert trace.rounds[0].overlaps[0] == pytest.approx(float(overlap(p, q)), abs=1e-6)


def test_refusals_are_one_line():
    target = tiny()
    for bad in (0, -1, 1.5, True, "2"):
        with pytest.raises(InvalidArgument, match="layers must be"):
            LayerSkipDrafter(bad)
    with pytest.raises(InvalidArgument, match="no trained exit after layer 2, only after 1"):
        LayerSkipDrafter(2, some_exits(1))
    with pytest.raises(InvalidArgument, match="has 3 layers"):
        speclib.generate(target, [[0]], LayerSkipDrafter(4), max_new_tokens=4)
    with pytest.raises(IncompatibleModels, match="width 4"):
        speclib.generate(target, [[0]], LayerSkipDrafter(1, Exits((1,), 4)), max_new_tokens=4)
    opt = OPTForCausalLM(
        OPTConfig(
            vocab_size=8, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1, word_embed_proj_dim=8
        )
    ).eval()
    with pytest.raises(UnsupportedModel):
        speclib.generate(speclib.LanguageModel(opt), [[0]], LayerSkipDrafter(1), max_new_tokens=4)
