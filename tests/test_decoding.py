"""The loop: greedy identity, stops, lengths, seeds, errors - on tiny models in double precision."""

import pytest
import torch
from models import build
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

import speclib
from speclib import errors
from speclib.drafters import EnsembleDrafter, FallbackDrafter, LookupDrafter, ModelDrafter, SyntheticDrafter
from speclib.law.distributions import seeded
from speclib.model.context import Context
from speclib.model.fast import FastContext


def tiny(seed, layers=2, vocabulary=40, context=256):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    return speclib.LanguageModel(LlamaForCausalLM(config).double().eval())


@pytest.fixture(scope="module")
def pair():
    return tiny(0), tiny(1, layers=1)


GREEDY = speclib.Sampling(temperature=0)


def prompts(count, length=6, vocabulary=40):
    generator = torch.Generator().manual_seed(7)
    return torch.randint(vocabulary, (count, length), generator=generator).tolist()


@pytest.mark.parametrize(
    ("backend", "count", "tokens", "drafter"),
    [("fast", 200, 128, lambda _: SyntheticDrafter(0.9)), ("eager", 20, 64, ModelDrafter)],
)
def test_greedy_is_transformers_own_on_200_prompts(pair, backend, count, tokens, drafter):
    target, draft = (speclib.LanguageModel(model.model, backend=backend) for model in pair)
    texts = prompts(count)
    ids = torch.tensor(texts)
    plain = target.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )[:, 6:]
    # different prompts, different texts: the comparison has something to see
    assert len({tuple(row) for row in plain.tolist()}) > 0.75 * count
    out = speclib.generate(target, texts, drafter(draft), GREEDY, 4, max_new_tokens=tokens, stop=[])
    assert all(torch.equal(a, b) for a, b in zip(out.tokens, plain, strict=True))


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("gamma", [0, 1, 4, 9])
@pytest.mark.parametrize("drafter", [ModelDrafter, lambda _: LookupDrafter(), lambda _: SyntheticDrafter(0.7)])
def test_greedy_identity_of_every_guesser(pair, rule, gamma, drafter):
    target, draft = pair
    plain = speclib.generate(target, prompts(4), None, GREEDY, max_new_tokens=50, stop=[])
    fast = speclib.generate(target, prompts(4), drafter(draft), GREEDY, gamma, rule, 50, stop=[])
    assert all(torch.equal(a, b) for a, b in zip(plain.tokens, fast.tokens, strict=True))


def test_seed_and_rows(pair):
    target, draft = pair
    run = lambda texts, seed: [
        t.tolist()
        for t in speclib.generate(target, texts, ModelDrafter(draft), max_new_tokens=30, stop=[], seed=seed).tokens
    ]
    texts = prompts(3)
    assert run(texts, 5) == run(texts, 5) != run(texts, 6)
    assert run(texts, 5)[0] == run(texts[:1], 5)[0]
    one, other = run([texts[0]] * 2, 5)
    assert one != other  # the same prompt twice: two texts


@pytest.mark.parametrize("length", [1, 2, 5, 17])
def test_max_new_tokens_is_exact(pair, length):
    target, draft = pair
    out = speclib.generate(target, prompts(2), ModelDrafter(draft), draft_length=6, max_new_tokens=length, stop=[])
    assert [len(t) for t in out.tokens] == [length, length]
    assert sum(len(r.drafted) + 1 for r in out.trace.rounds) >= 2 * length


def test_a_draft_model_follows_a_text_it_did_not_write(pair):
    """As in an ensemble, where another guesser's branch was taken: what it read of its own is forgotten."""
    target, draft = pair
    text = prompts(1)[0]
    start = lambda: ModelDrafter(draft).start(target.context(text), speclib.Sampling(), seeded(0))
    follower = start()
    follower.prepare(text)
    own = follower.propose(text, 4).tokens.tolist()
    written = [*text, (own[0] + 1) % 40, own[1], own[2], 5]
    assert torch.allclose(follower.propose(written, 1).probs, start().propose(written, 1).probs, atol=1e-12)


def test_stop_ids_cut_where_plain_decoding_would(pair):
    target, _ = pair
    cut = 0
    for seed in range(10):
        text = speclib.generate(
            target, prompts(1), None, GREEDY if seed == 0 else speclib.Sampling(), max_new_tokens=40, stop=[], seed=seed
        )
        stop = text.tokens[0][25].item()
        plain = speclib.generate(target, prompts(1), None, GREEDY, max_new_tokens=40, stop=[stop])
        fast = speclib.generate(target, prompts(1), SyntheticDrafter(1.0), GREEDY, 7, max_new_tokens=40, stop=[stop])
        assert torch.equal(plain.tokens[0], fast.tokens[0])
        cut += len(plain.tokens[0]) < 40
    assert cut > 0


def state(model):
    """All that a caller could find changed in a model: weights, settings, hooks, modes."""
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.model.modules()]
    rest = (
        str(model.model.config),
        str(model.model.generation_config),
        model.model.training,
        hooks,
        [p.requires_grad for p in model.model.parameters()],
        model.context_length,
    )
    return weights, rest


def unchanged(before, after):
    return (
        before[1] == after[1]
        and before[0].keys() == after[0].keys()
        and all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    )


@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_state_is_left_as_found_also_after_an_exception(pair, backend, monkeypatch):
    """NaN logits in the third round, and a `draw` that fails: models, settings and random state stay, and the next text
    is the right one.
    """
    target, draft = (speclib.LanguageModel(model.model, backend=backend) for model in pair)
    before, random = [state(target), state(draft)], torch.get_rng_state()

    def text():
        return speclib.generate(
            target, prompts(1), ModelDrafter(draft), draft_length=3, max_new_tokens=20, stop=[], seed=4
        )

    right, forwards, honest = text(), [], Context._forward if backend == "eager" else FastContext._forward

    def poisoned(self, tokens, keep, parents):
        logits = honest(self, tokens, keep, parents)
        if self.language_model is target:
            forwards.append(tokens.shape[1])
            if len(forwards) == 4:  # the prompt, and three rounds
                return logits * float("nan")
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(Context if backend == "eager" else FastContext, "_forward", poisoned)
        with pytest.raises(errors.NonFiniteLogits, match="check its weights"):
            text()
    assert len(forwards) == 4 and len(right.trace.rounds) > 3

    def broken(probabilities):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        speclib.generate(target, prompts(1), ModelDrafter(draft), draw=broken)
    assert all(map(unchanged, before, [state(target), state(draft)]))
    assert (
        torch.equal(torch.get_rng_state(), random)
        and torch.is_grad_enabled()
        and torch.get_default_dtype() == torch.float32
    )
    assert torch.equal(text().tokens[0], right.tokens[0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 1, 2, 3, "draft"])
def test_one_bad_number_is_found_wherever_it_stands(pair, monkeypatch, row, value, temperature):
    """In any row of a round of three guesses, reached or not, or in the draft's own logits."""
    target, draft = pair
    honest = Context._forward

    def poisoned(self, tokens, keep, parents):
        logits = honest(self, tokens, keep, parents).clone()
        if row == "draft" and self.language_model is draft:
            logits[0, -1, 5] = value
        if row != "draft" and tokens.shape[1] == 4:
            logits[0, row, 5] = value
        return logits

    monkeypatch.setattr(Context, "_forward", poisoned)
    with pytest.raises(errors.NonFiniteLogits, match="check its weights"):
        speclib.generate(
            target,
            [[1, 2, 3]],
            ModelDrafter(draft),
            speclib.Sampling(temperature),
            draft_length=3,
            max_new_tokens=12,
            stop=[],
        )


@pytest.mark.parametrize(
    "prompt, new, remedy", [(60, 10, "by 6 tokens or ask for at most 4 new"), (70, 10, "by 7 tokens or more$")]
)
def test_a_text_too_long_for_the_context_is_told_by_how_much(prompt, new, remedy):
    target = tiny(1, context=64)
    with pytest.raises(errors.ContextOverflow, match=f"shorten the prompt {remedy}"):
        speclib.generate(target, [[1] * prompt], max_new_tokens=new)
    left = 1 if prompt > 64 else 4
    assert len(speclib.generate(target, [[1] * (64 - left)], max_new_tokens=left, stop=[]).tokens[0]) == left


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"prompts": []}, errors.InvalidArgument),
        ({"prompts": [[]]}, errors.InvalidArgument),
        ({"prompts": [1, 2]}, errors.InvalidArgument),
        ({"prompts": [[40]]}, errors.InvalidArgument),
        ({"prompts": [[-1]]}, errors.InvalidArgument),
        ({"prompts": "text"}, errors.InvalidArgument),  # this model has no tokenizer
        ({"draft_length": -1}, errors.InvalidArgument),
        ({"draft_length": 1.5}, errors.InvalidArgument),
        ({"max_new_tokens": 0}, errors.InvalidArgument),
        ({"max_new_tokens": 300}, errors.ContextOverflow),
        ({"rule": "nonsense"}, errors.InvalidArgument),
        ({"stop": "text"}, errors.InvalidArgument),
        ({"stop": [1.5]}, errors.InvalidArgument),
        ({"seed": -1}, errors.InvalidArgument),
        ({"sampling": "greedy"}, errors.InvalidArgument),
        ({"drafter": "a model"}, errors.InvalidArgument),
        ({"drafter": ModelDrafter(tiny(2, vocabulary=30))}, errors.IncompatibleModels),
        ({"drafter": ModelDrafter(tiny(2, context=64))}, errors.ContextOverflow),
        ({"drafter": EnsembleDrafter([LookupDrafter(), ModelDrafter(tiny(2, context=64))])}, errors.ContextOverflow),
        ({"drafter": FallbackDrafter(LookupDrafter(), ModelDrafter(tiny(2, context=64)))}, errors.ContextOverflow),
    ],
)
def test_bad_input_is_one_line_before_any_work(pair, options, error):
    with pytest.raises(error) as caught:
        speclib.generate(pair[0], **{"prompts": [[1, 2]], **options})
    assert "\n" not in str(caught.value)


def test_poisoned_weights_and_training_mode():
    broken = tiny(0)
    with torch.no_grad():
        broken.model.lm_head.weight[3, 0] = float("nan")
    with pytest.raises(errors.NonFiniteLogits):
        speclib.generate(broken, [[1]])
    training = tiny(0)
    training.model.train()
    with pytest.raises(errors.InvalidArgument, match="training mode"):
        speclib.generate(training, [[1]])


class HostReads(TorchFunctionMode):
    """Counts what makes the host wait for the device: every value that it looks at."""

    LOOKS = {"tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy"}

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += getattr(function, "__name__", "") in self.LOOKS
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_the_host_looks_once_a_round(temperature, rule):
    target, draft = (speclib.LanguageModel(build("llama", seed, torch.float32, 2), backend="fast") for seed in (0, 1))
    for drafter in (ModelDrafter(draft), None):
        with HostReads() as reads:
            out = speclib.generate(
                target, [[1, 2, 3]], drafter, speclib.Sampling(temperature), 4, rule, max_new_tokens=40, stop=[]
            )
        assert reads.count == len(out.trace.rounds)
