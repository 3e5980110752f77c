"""Models and caches: extending and rolling back, loading, and clear errors."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from models import WORDS, tokenizer
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import speclib
from speclib import embedded, errors
from speclib.law.exact import TableModel, max_difference, outcomes, plain_law


def build(kind, seed=0, vocabulary=48):
    torch.manual_seed(seed)
    common = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.3}
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
    }
    return {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**common, **size)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**common, **size, num_key_value_heads=1)),
        "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**common, **size)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**common, n_embd=32, n_layer=2, n_head=2, n_positions=128)),
    }[kind]().eval()


def save(folder, kind="llama", words=WORDS, **options):
    build(kind, **options).save_pretrained(folder)
    tokenizer(words).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.3)])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "qwen2"])
def test_width_and_rollback_do_not_change_logits(kind, dtype, tolerance):
    model = speclib.LanguageModel(build(kind).to(dtype))
    text = torch.arange(1, 21)[None]
    together = model.context().extend(text)[0]
    step, trimmed = model.context(), model.context()
    one_by_one = torch.cat([step.extend(text[:, i : i + 1])[0] for i in range(20)])
    assert (together - one_by_one).abs().max() < tolerance
    trimmed.extend(text[:, :10])
    trimmed.extend(torch.full((1, 7), 5))
    trimmed.rollback(10)
    assert trimmed.length == 10
    assert (trimmed.extend(text[:, 10:])[0] - together[10:]).abs().max() < tolerance
    with pytest.raises(errors.InvalidArgument):
        trimmed.rollback(21)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "qwen2"])
def test_any_saved_pair_loads_and_is_greedy_lossless(tmp_path, kind):
    pair = speclib.load_pair(save(tmp_path / "target", kind), save(tmp_path / "draft", kind, seed=1), dtype="float64")
    greedy = speclib.Sampling(temperature=0)
    plain, fast = (
        speclib.generate(pair.target, [[1, 2, 3]], d, greedy, max_new_tokens=40)
        for d in (None, speclib.drafters.ModelDrafter(pair.draft))
    )
    assert torch.equal(plain.tokens[0], fast.tokens[0])


def test_padded_vocabularies_are_cut_to_the_tokenizer(tmp_path):
    pair = speclib.load_pair(
        save(tmp_path / "t", vocabulary=64), save(tmp_path / "d", seed=1, vocabulary=56), dtype="float64"
    )
    assert pair.target.vocabulary == pair.draft.vocabulary == 48
    out = speclib.generate(pair.target, "w1", speclib.drafters.ModelDrafter(pair.draft), max_new_tokens=100, stop=[])
    assert out.tokens[0].max() < 48


def test_clear_errors(tmp_path):
    target = save(tmp_path / "target")
    with pytest.raises(errors.IncompatibleModels, match="different tokenizers"):
        speclib.load_pair(target, save(tmp_path / "other", words=WORDS[::-1]))
    with pytest.raises(errors.ModelLoadError, match="cannot load"):
        speclib.load_model(tmp_path / "nothing")
    with pytest.raises(errors.InvalidArgument, match="needs a draft"):
        speclib.load_pair(target)
    with pytest.raises(errors.InvalidArgument, match="dtype"):
        speclib.load_model(target, dtype="float31")
    with pytest.raises(errors.InvalidArgument, match="sees no device 'quantum' here"):
        speclib.load_model(target, device="quantum")
    pickled = tmp_path / "pickled"
    shutil.copytree(target, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(errors.ModelLoadError, match="safetensors"):
        speclib.load_model(pickled)
    broken = tmp_path / "broken"
    shutil.copytree(target, broken)
    (broken / "model.safetensors").write_bytes(b"not a weight file")
    with pytest.raises(errors.ModelLoadError):
        speclib.load_model(broken)


SIZE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: MistralForCausalLM(MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=16)),
            "sliding-window or recurrent cache",
        ),
        (
            lambda: Gemma2ForCausalLM(Gemma2Config(**SIZE, num_key_value_heads=2, head_dim=8, sliding_window=16)),
            "sliding-window or recurrent cache",
        ),
        (
            lambda: MambaForCausalLM(MambaConfig(vocab_size=48, hidden_size=16, state_size=4, num_hidden_layers=2)),
            "cannot be rolled back",
        ),
    ],
    ids=["mistral with a window", "gemma", "mamba"],
)
@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_caches_that_forget_are_refused(make, words, backend):
    with pytest.raises(errors.UnsupportedModel, match=words) as caught:
        speclib.LanguageModel(make().eval(), name="forgetful", backend=backend)
    assert "\n" not in str(caught.value)


def test_a_window_as_long_as_the_context_is_no_window():
    model = MistralForCausalLM(MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=128)).eval()
    text = torch.arange(20)[None]
    context = speclib.LanguageModel(model).context()
    together = context.extend(text)
    context.rollback(5)
    assert (context.extend(text[:, 5:]) - together[:, 5:]).abs().max() < 1e-5


# --- encoder-decoder models
# ---------------------------------------------------------------------------------------------


def t5(seed=0, layers=2, vocabulary=48):
    """A T5 in float64 with weights large enough that its rows differ; its text starts from token 1."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=16,
        d_ff=24,
        d_kv=8,
        num_layers=2,
        num_decoder_layers=layers,
        num_heads=2,
        decoder_start_token_id=1,
        pad_token_id=0,
        eos_token_id=None,
    )
    model = T5ForConditionalGeneration(config).double().eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights.mul_(3)
    return speclib.LanguageModel(model, name=f"T5 {seed}")


def test_an_encoder_decoder_is_greedy_lossless_and_reads_its_prompt_once(monkeypatch):
    target, draft, prompt = t5(), t5(1, 1), [5, 6, 7, 8, 9]
    right = target.model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=None)[0, 1:]
    assert len(right.unique()) > 2
    encoder, reads = target.model.get_encoder(), []
    hook = encoder.register_forward_hook(lambda *_: reads.append(1))
    for drafter in (None, speclib.drafters.ModelDrafter(draft), speclib.drafters.LookupDrafter()):
        reads.clear()
        out = speclib.generate(
            target, [prompt], drafter, speclib.Sampling(temperature=0), 4, max_new_tokens=16, stop=[]
        )
        assert torch.equal(out.tokens[0], right) and reads == [1]
    hook.remove()


def test_an_encoder_decoder_keeps_its_law():
    """Every path of generate() over three tokens, against rows that transformers computes without any cache."""
    target, draft, prompt = t5(vocabulary=2), t5(1, 1, vocabulary=2), [1, 1, 0, 1]

    def row(prefix):
        with torch.inference_mode():
            return (
                target.model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[1, *prefix]]))
                .logits[0, -1]
                .softmax(-1)
                .numpy()
            )

    right = plain_law(TableModel(2, row), 3)
    for drafter in (speclib.drafters.ModelDrafter(draft), speclib.drafters.LookupDrafter()):
        law = outcomes(
            lambda draw, drafter=drafter: tuple(
                speclib.generate(target, [prompt], drafter, None, 2, "token", 3, [], draw=draw).tokens[0].tolist()
            )
        )
        assert max_difference(law, right) < 1e-12
    other = plain_law(TableModel(2, lambda prefix: row((0, *prefix))), 3)
    assert max_difference(right, other) > 1e-3  # what the prefix is matters to this model


def test_models_of_two_kinds_do_not_pair():
    with pytest.raises(
        errors.IncompatibleModels, match="one of T5 0 and .* is an encoder-decoder model and the other is not"
    ):
        speclib.generate(
            t5(), [[1]], speclib.drafters.ModelDrafter(speclib.LanguageModel(build("llama"))), max_new_tokens=8
        )
    with pytest.raises(errors.UnsupportedModel, match="not T5ForConditionalGeneration"):
        speclib.LanguageModel(t5().model, backend="fast")
    with pytest.raises(errors.UnsupportedModel, match="trees"):
        t5().context([1, 2]).extend(torch.tensor([[1]]), parents=[-1])


def test_embedded_models_are_what_was_registered(tmp_path, monkeypatch):
    names = speclib.ladder()
    assert len(names) >= 6
    assert {speclib.DEFAULT_DRAFT} <= set(names)
    for name in (*names, "target"):
        embedded.fetch(f"models/{name}")
    copy = tmp_path / "data"
    shutil.copytree(embedded.DATA / "models" / names[0], copy / "models" / names[0])
    monkeypatch.setattr(embedded, "DATA", copy)
    weights = copy / "models" / names[0] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(errors.ModelLoadError, match="SHA-256"):
        speclib.load_model(names[0])
    weights.unlink()
    with pytest.raises(errors.ModelLoadError, match="missing"):
        speclib.load_model(names[0])


def test_the_embedded_pair_is_lossless_when_greedy():
    pair = speclib.load_pair(dtype="float64")
    greedy, prompt = speclib.Sampling(temperature=0), embedded.prompts("code")[9]
    plain, fast = (
        speclib.generate(pair.target, prompt, d, greedy, max_new_tokens=24, stop=[])
        for d in (None, speclib.drafters.ModelDrafter(pair.draft))
    )
    assert torch.equal(plain.tokens[0], fast.tokens[0])


def test_a_configuration_without_one_number_of_heads_refuses_no_text(monkeypatch):
    model = speclib.LanguageModel(build("llama"))
    bare = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(num_attention_heads=None))
    unknown = SimpleNamespace(model=SimpleNamespace(config=bare), dtype=torch.float32)
    assert model.bytes_per_token > 0 == speclib.LanguageModel.bytes_per_token.fget(unknown)
    monkeypatch.setattr(speclib.LanguageModel, "bytes_per_token", 0)
    assert len(speclib.generate(model, [[1, 2, 3]], max_new_tokens=4, stop=[]).tokens[0]) == 4
