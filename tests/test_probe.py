"""A model is believed when it has been tried: what a probe refuses, what a configuration refuses, and weights that
change."""

import copy
import pickle

import numpy as np
import pytest
import torch
import transformers as t
from models import build, tokenizer
from tokenizers import Tokenizer, models

import speclib
from speclib import LanguageModel, Sampling, categories, errors, fast, generate, probe
from speclib.drafters import (
    EagleDrafter,
    Exits,
    Heads,
    HeadsDrafter,
    LayerSkipDrafter,
    LookupDrafter,
    ModelDrafter,
    TreeDrafter,
)
from speclib.errors import ContextOverflow, IncompatibleModels, InvalidArgument, UnsupportedModel
from speclib.model.quantized import rounded_copy

GREEDY = Sampling(0)
SMALL = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {
    **SMALL,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
BART = {
    "vocab_size": 48,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}


def loud(model, dtype=torch.float64, seed=0):
    """With weights so large that positions, windows and order show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.25)
    return model.to(dtype).eval()


def llama(seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    return t.LlamaForCausalLM(t.LlamaConfig(**{**LLAMA, **options})).to(dtype).eval()


def greedy(model, prompt, n, drafter=None, gamma=3):
    return generate(model, [prompt], drafter, GREEDY, gamma, max_new_tokens=n, stop=[]).tokens[0].tolist()


# --- the probe
# ----------------------------------------------------------------------------------------------------------------


class Forgetful(t.LlamaForCausalLM):
    """Takes a cache and keeps nothing, or loses the last entry of what was read before."""

    lost = None

    def forward(self, *args, past_key_values=None, use_cache=None, **kwargs):
        if self.lost is None:
            return super().forward(*args, past_key_values=past_key_values, use_cache=use_cache, **kwargs)
        if self.lost == "all":
            return super().forward(*args, use_cache=False, **kwargs)
        out = super().forward(*args, past_key_values=past_key_values, use_cache=use_cache, **kwargs)
        for layer in past_key_values.layers if past_key_values is not None and self.lost == "values" else ():
            layer.values.mul_(0.9)
        return out


@pytest.mark.parametrize("lost", ["all", "values"])
def test_a_cache_that_does_not_hold_what_was_read_is_refused(lost):
    torch.manual_seed(0)
    model = Forgetful(t.LlamaConfig(**LLAMA)).eval()
    LanguageModel(model)
    # other weights, so that it is tried again
    model.lost, model.lm_head.weight.data = (lost, model.lm_head.weight.data.clone())
    with pytest.raises(UnsupportedModel, match="in pieces with its key-value cache gives other logits"):
        LanguageModel(model)
    LanguageModel(model, probe=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: t.CTRLLMHeadModel(t.CTRLConfig(vocab_size=48, n_embd=32, dff=48, n_layer=2, n_head=4, n_positions=64)),
        lambda: t.XLMWithLMHeadModel(
            t.XLMConfig(vocab_size=48, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=64)
        ),
        lambda: t.BertLMHeadModel(t.BertConfig(**SMALL, intermediate_size=48)),
        lambda: t.RobertaForCausalLM(
            t.RobertaConfig(**SMALL, intermediate_size=48, max_position_embeddings=64, is_decoder=True)
        ),
    ],
    ids=["ctrl", "xlm", "bert that sees ahead", "roberta skips positions of padding"],
)
def test_text_is_that_of_whole_forwards_or_refused(make):
    model, prompt = loud(make()), [5, 9, 13, 22]
    try:
        target = LanguageModel(model)
    except UnsupportedModel:
        return
    text = list(prompt)
    with torch.inference_mode():
        for _ in range(12):
            text.append(int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax()))
    assert greedy(target, prompt, 12) == greedy(target, prompt, 12, LookupDrafter()) == text[4:]


def test_a_padding_token_without_a_position_is_never_written():
    """Read in pieces, what follows it would move: it is among what is tried, then kept out of prompts and texts."""
    model = loud(
        t.RobertaForCausalLM(
            t.RobertaConfig(**SMALL, intermediate_size=48, max_position_embeddings=64, is_decoder=True)
        )
    )
    target, padding = LanguageModel(model), model.config.pad_token_id
    assert target.unwritten == padding
    with pytest.raises(InvalidArgument, match="padding token"):
        generate(target, [[5, padding, 9]])
    warm = Sampling(temperature=50.0)
    texts = generate(target, [[5, 9]] * 8, LookupDrafter(), warm, max_new_tokens=50, stop=[]).tokens
    assert all(padding not in tokens for tokens in texts) and len(set(torch.cat(texts).tolist())) > 30


def test_a_translator_of_that_kind_says_what_generate_says():
    config = t.M2M100Config(**{**BART, "pad_token_id": 1, "bos_token_id": 0}, max_position_embeddings=64)
    model = loud(t.M2M100ForConditionalGeneration(config))
    model.generation_config.forced_bos_token_id = 44
    right = model.generate(torch.tensor([[5, 9, 13, 22, 2]]), max_new_tokens=12, do_sample=False, num_beams=1)[
        0, 1:
    ].tolist()
    target = LanguageModel(model)
    got = [
        generate(target, [[5, 9, 13, 22, 2]], drafter, Sampling(0), max_new_tokens=12).tokens[0].tolist()
        for drafter in (None, LookupDrafter())
    ]
    assert got == [right, right] and right[0] == 44


TREES = {
    "gpt neo, local": lambda: t.GPTNeoForCausalLM(
        t.GPTNeoConfig(
            vocab_size=48,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=24,
            max_position_embeddings=64,
        )
    ),
    "bart": lambda: t.BartForCausalLM(
        t.BartConfig(**{**BART, "max_position_embeddings": 64}, is_decoder=True, is_encoder_decoder=False)
    ),
    "falcon with alibi": lambda: t.FalconForCausalLM(t.FalconConfig(**SMALL, alibi=True)),
    "opt": lambda: t.OPTForCausalLM(
        t.OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64)
    ),
    "gpt-j": lambda: t.GPTJForCausalLM(
        t.GPTJConfig(vocab_size=48, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64)
    ),
    "gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**LLAMA, num_key_value_heads=2, head_dim=8)),  # a 0-d buffer
}


@pytest.mark.parametrize("kind", TREES)
def test_a_tree_keeps_the_text_or_is_refused(kind):
    """Long enough to outgrow the local window: what a few tokens cannot show."""
    target = LanguageModel(loud(TREES[kind]()))
    plain = greedy(target, [5, 6, 7], 40)
    try:
        assert greedy(target, [5, 6, 7], 40, TreeDrafter(target, (2, 2), sampled=False)) == plain
    except UnsupportedModel as error:
        assert "guesses a chain" in str(error) and "\n" not in str(error)
    assert greedy(target, [5, 6, 7], 40, LookupDrafter()) == plain


NUMBERS = {
    "a number": lambda: torch.tensor(3.0),
    "none": lambda: torch.ones(0, 4),
    "truths": lambda: torch.tensor([True, False]),
    "whole": lambda: torch.arange(6, dtype=torch.uint8),
    "complex": lambda: torch.ones(3, 3, dtype=torch.complex64),
    "eight bits": lambda: torch.ones(4, 4).to(torch.float8_e4m3fn),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "rounded": lambda: torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8),
    "turned": lambda: torch.ones(4, 2).mT,
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_any_tensor_of_a_model_is_looked_at(kind):
    model = torch.nn.Linear(2, 2)
    model.register_buffer("more", NUMBERS[kind]())
    before = fast.fingerprint(model, numbers=True)
    assert fast.fingerprint(model, numbers=True) == before
    if kind == "complex":
        model.more.data.imag.fill_(2)
    elif kind not in ("none", "sparse", "rounded"):
        model.more.data.zero_()
    if kind not in ("none", "sparse", "rounded"):
        assert fast.fingerprint(model, numbers=True) != before
    model.weight.data[0, 0] += 1
    assert fast.fingerprint(model, numbers=True)[2:] != before[2:]


class Packed(torch.nn.Linear):
    """A layer whose numbers lie elsewhere than in a matrix, as packed ones do."""

    def __init__(self, old):
        super().__init__(old.in_features, old.out_features, False)
        self.numbers = old.weight
        del self.weight

    def forward(self, x):
        return torch.nn.functional.linear(x, self.numbers)


@pytest.mark.parametrize("kind", ["packed", "rounded", "one bias"])
def test_weights_that_the_fast_backend_cannot_read_are_refused_and_no_layer_is_skipped(kind):
    whole = t.LlamaForCausalLM(t.LlamaConfig(**{**LLAMA, "num_hidden_layers": 7}, num_key_value_heads=2)).eval()
    for layer in whole.model.layers:
        attention = layer.self_attn
        if kind == "packed":
            attention.o_proj = Packed(attention.o_proj)
        elif kind == "one bias":
            attention.q_proj.bias = torch.nn.Parameter(torch.zeros(32))
    target = rounded_copy(LanguageModel(whole)) if kind == "rounded" else LanguageModel(whole)
    with pytest.raises(UnsupportedModel, match="plain weights on one device; use backend='eager'"):
        LanguageModel(target.model, backend="fast")
    assert "first layers" not in categories.drafters(target) and isinstance(categories.usual(target), LookupDrafter)
    assert greedy(target, [5, 6, 7], 4, LookupDrafter()) == greedy(target, [5, 6, 7], 4)


def test_trees_are_refused_before_any_work():
    target = LanguageModel(loud(TREES["gpt neo, local"]()))
    calls = []
    target.model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(UnsupportedModel, match="last 24 slots"):
        generate(target, [[1, 2]], HeadsDrafter(Heads(2, 32), width=2), max_new_tokens=4)
    flex = llama()
    flex.set_attn_implementation("eager")
    target = LanguageModel(flex)
    flex.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModel, match="set_attn_implementation"):
        generate(target, [[1, 2]], TreeDrafter(target), max_new_tokens=4)
    assert not calls


class Slots(t.LlamaForCausalLM):
    """Counts positions by slots, whatever it is told."""

    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_model_that_counts_slots_is_refused_for_trees_alone():
    torch.manual_seed(0)
    target = LanguageModel(Slots(t.LlamaConfig(**LLAMA)).eval())
    with pytest.raises(UnsupportedModel, match="a tree of guesses read in one forward gives other logits"):
        target.context().extend(torch.tensor([[1, 2]]), parents=[-1, -1])
    assert len(greedy(target, [1, 2], 8, LookupDrafter())) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama grouped", "gpt2", "qwen2"])
@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_rounding_is_believed_with_room_to_spare(kind, dtype, backend, monkeypatch):
    seen, real = [], probe.apart
    monkeypatch.setattr(probe, "apart", lambda *rows: seen.append(real(*rows)) or seen[-1])
    monkeypatch.setattr(probe, "_tried", type(probe._tried)())
    model = build(kind, dtype=dtype)
    LanguageModel(model, backend=backend).try_trees()
    assert len(seen) == 4 and max(seen) < probe.LIMITS[dtype] / 2


def test_what_apart_means():
    rows = torch.tensor([[0.0, 2.0], [0.0, -2.0]])
    assert probe.apart(rows, rows) == 0 == probe.apart(rows, torch.full((2, 2), torch.nan))
    assert probe.apart(rows + 0.1, rows) == pytest.approx(0.1 / 2**0.5, rel=1e-5)
    assert probe.apart(rows + torch.tensor([[0.0], [torch.nan]]), rows) == torch.inf
    bound = torch.tensor([[0.0, -torch.inf], [1.0, 2.0]])
    assert probe.apart(bound, bound) == 0
    assert probe.tolerance(llama().double()) < probe.tolerance(llama()) < probe.tolerance(llama().bfloat16())
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert probe.tolerance(llama()) == probe.LIMITS[torch.bfloat16]
    finally:
        torch.set_float32_matmul_precision(precision)


def test_a_module_is_tried_once_and_dropout_later():
    model, calls = llama(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    LanguageModel(model)
    first = len(calls)
    LanguageModel(model)
    assert 0 < first == len(calls) <= 6
    model.lm_head.weight.data = torch.randn_like(model.lm_head.weight)
    LanguageModel(model)
    assert len(calls) == 2 * first
    training = llama(attention_dropout=0.5).train()
    target = LanguageModel(training)
    with pytest.raises(InvalidArgument, match="training mode"):
        greedy(target, [1, 2], 3)
    training.eval()
    assert len(greedy(target, [1, 2], 3)) == 3


def test_errors_of_the_model_become_typed_ones():
    model = llama()
    model.model.layers[1].register_forward_hook(lambda *_: {}["nothing"])
    with pytest.raises(UnsupportedModel, match="KeyError") as caught:
        LanguageModel(model)
    assert isinstance(caught.value.__cause__, KeyError)
    full = llama()

    def no_room(*_):
        raise torch.OutOfMemoryError("no room")

    full.register_forward_hook(no_room)
    with pytest.raises(torch.OutOfMemoryError):
        LanguageModel(full)


# --- what a few tokens cannot show
# --------------------------------------------------------------------------------------------

LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}


def test_longrope_is_refused_unless_its_factors_never_change():
    with pytest.raises(UnsupportedModel, match="max_position_embeddings = 16"):
        LanguageModel(llama(rope_parameters=LONG))
    phi = t.Phi3ForCausalLM(
        t.Phi3Config(**{**LLAMA, "pad_token_id": 0}, rope_parameters=LONG, original_max_position_embeddings=16)
    )
    with pytest.raises(UnsupportedModel, match="LongRoPE"):
        LanguageModel(phi.eval())
    target = LanguageModel(llama(dtype=torch.float64, rope_parameters=LONG, max_position_embeddings=16))
    assert greedy(target, [5, 6], 14) == greedy(target, [5, 6], 14, ModelDrafter(target), 5)
    with pytest.raises(ContextOverflow):
        greedy(target, [5, 6], 15)
    layered = type(
        "Config", (), {"rope_parameters": {"full_attention": LONG, "sliding_attention": {"rope_type": "default"}}}
    )
    with pytest.raises(UnsupportedModel, match="LongRoPE"):
        probe.check_configuration(llama(), layered, "layered", 64)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_other_factors_are_exact_up_to_the_limit(rope):
    target = LanguageModel(llama(dtype=torch.float64, rope_parameters={"rope_theta": 1e4, **rope}))
    draft = LanguageModel(llama(1, torch.float64))
    assert (
        len(
            {
                tuple(greedy(target, [5, 6], 62, drafter, 5))
                for drafter in (None, ModelDrafter(target), ModelDrafter(draft), LookupDrafter())
            }
        )
        == 1
    )
    with pytest.raises(ContextOverflow):
        greedy(target, [5, 6], 63)


def test_windows_and_chunks():
    """A window as long as the context rolls nothing, up to the very last slot of a tree."""
    target = LanguageModel(
        t.MistralForCausalLM(t.MistralConfig(**LLAMA, num_key_value_heads=2, sliding_window=64)).double().eval()
    )
    plain = greedy(target, [5, 6], 62)
    assert (
        greedy(target, [5, 6], 62, TreeDrafter(target, (3, 3, 2), sampled=False))
        == greedy(target, [5, 6], 62, ModelDrafter(target), 20)
        == plain
    )
    for model in (
        t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, head_dim=8, sliding_window=16)
        ),
        t.Llama4ForCausalLM(
            t.Llama4TextConfig(
                **SMALL,
                intermediate_size=48,
                intermediate_size_mlp=48,
                num_key_value_heads=2,
                head_dim=8,
                attention_chunk_size=16,
                num_local_experts=2,
            )
        ),
    ):
        with pytest.raises(UnsupportedModel, match="sliding-window or recurrent cache"):
            LanguageModel(model.eval())
    switch = t.SwitchTransformersForConditionalGeneration(
        t.SwitchTransformersConfig(
            vocab_size=48,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=2,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            num_heads=2,
            num_experts=2,
        )
    )
    with pytest.raises(UnsupportedModel, match="to an expert"):
        LanguageModel(switch.eval())


@pytest.mark.parametrize(
    ("make", "right"),
    [
        (
            lambda: t.RobertaForCausalLM(
                t.RobertaConfig(**SMALL, intermediate_size=48, max_position_embeddings=40, is_decoder=True)
            ),
            (None, 38),
        ),
        (
            lambda: t.OPTForCausalLM(
                t.OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=40)
            ),
            (None, 40),
        ),
        (
            lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=48, n_embd=32, n_layer=1, n_head=2, n_positions=40)),
            (None, 40),
        ),
        (
            lambda: t.MptForCausalLM(t.MptConfig(vocab_size=48, d_model=32, n_heads=4, n_layers=1, max_seq_len=40)),
            (None, 40),
        ),
        (lambda: t.BartForConditionalGeneration(t.BartConfig(**BART, max_position_embeddings=40)), (40, 40)),
        (
            lambda: t.T5ForConditionalGeneration(
                t.T5Config(vocab_size=48, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
            ),
            (None, None),
        ),
        (
            lambda: t.LEDForConditionalGeneration(
                t.LEDConfig(
                    **BART, max_encoder_position_embeddings=48, max_decoder_position_embeddings=24, attention_window=8
                )
            ),
            (48, 24),
        ),
    ],
    ids=["roberta", "opt", "gpt2", "mpt", "bart", "t5", "led"],
)
def test_limits_are_those_of_the_tables(make, right):
    model = make().eval()
    assert probe.limits(model) == right
    if right[1] and right[0] is None:
        with torch.inference_mode():
            model(input_ids=torch.full((1, right[1]), 5), use_cache=False)


def test_encoder_and_decoder_have_limits_of_their_own():
    model = loud(t.BartForConditionalGeneration(t.BartConfig(**BART, max_position_embeddings=32)))
    target = LanguageModel(model)
    assert len(greedy(target, [5] * 32, 31, LookupDrafter())) == 31
    with pytest.raises(ContextOverflow, match="encoder of .* reads at most 32"):
        greedy(target, [5] * 33, 4)
    with pytest.raises(ContextOverflow, match="at most 31 new tokens"):
        greedy(target, [5], 32)


# --- what a model reads and writes
# -------------------------------------------------------------------------------------------


def test_the_start_token_is_where_generate_looks():
    def t5(seed=0):
        return loud(
            t.T5ForConditionalGeneration(
                t.T5Config(vocab_size=48, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0)
            ),
            seed=seed,
        )

    for start in (7, [7], torch.tensor(7), torch.tensor([7])):
        model = t5()
        model.generation_config.decoder_start_token_id = start
        assert LanguageModel(model).context([5]).begin == [7]
    model = t5()
    (
        model.generation_config.decoder_start_token_id,
        model.generation_config.bos_token_id,
        model.config.decoder_start_token_id,
    ) = None, 9, 11
    assert LanguageModel(model).context([5]).begin == [9]
    model.generation_config.bos_token_id = None
    assert LanguageModel(model).context([5]).begin == [11]
    model.config.decoder_start_token_id = None
    with pytest.raises(UnsupportedModel, match="decoder_start_token_id"):
        LanguageModel(model).context([5])


@pytest.mark.parametrize(
    "given", [3, [3, 5], torch.tensor(3), torch.tensor([3, 5]), np.array([3, 5]), (3, 5)], ids=repr
)
def test_end_tokens_in_every_form(given):
    target = LanguageModel(llama())
    target.model.generation_config.eos_token_id = given
    assert target.end_tokens == frozenset([3, 5] if torch.as_tensor(given).numel() == 2 else [3])


def test_vocabulary_is_bounded_by_rows_and_highest_id():
    words = tokenizer([f"w{i}" for i in range(29)])
    words.add_tokens(["<tool>"])
    assert LanguageModel(llama(), words).vocabulary == 31
    assert LanguageModel(llama(vocab_size=20), words).vocabulary == 20
    target, narrow = LanguageModel(llama(vocab_size=32), words), LanguageModel(llama(1, vocab_size=30), words)
    calls = []
    target.model.register_forward_hook(lambda *_: calls.append(1))
    for drafter in (ModelDrafter(narrow), TreeDrafter(narrow)):
        with pytest.raises(IncompatibleModels, match="rows for 30 tokens"):
            generate(target, [[1, 2]], drafter, max_new_tokens=3)
    assert sum(calls) <= 12  # a probe of trees, no text
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "<end>": 40}, unk_token="<unk>"))  # ids with a gap
    gaps = t.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert len(gaps) == 3 and LanguageModel(llama(), gaps).vocabulary == 41
    bare = llama()
    bare.set_input_embeddings(torch.nn.Embedding(40, 32))
    assert LanguageModel(bare).vocabulary == 40


@pytest.mark.parametrize(
    "prompts",
    [
        torch.tensor([4, 5, 6]),
        torch.tensor([[4, 5, 6]], dtype=torch.int32),
        np.array([4, 5, 6]),
        [np.array([4, 5, 6])],
        [(np.int64(4), 5, torch.tensor(6))],
        iter([[4, 5, 6]]),
        {"input_ids": [4, 5, 6], "attention_mask": [1, 1, 1]},
        {"input_ids": torch.tensor([[0, 0, 4, 5, 6]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1]])},
        t.BatchEncoding({"input_ids": [[4, 5, 6, 0]], "attention_mask": [[1, 1, 1, 0]]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_prompts_in_every_usual_form(prompts):
    target = LanguageModel(llama())
    assert speclib.arguments.encode(target, prompts) == [[4, 5, 6]]


def test_rows_of_a_padded_batch_are_what_they_are_alone():
    target = LanguageModel(llama(dtype=torch.float64))
    batch = {
        "input_ids": torch.tensor([[0, 0, 4, 5], [7, 8, 9, 10]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
    }
    rows = [row.tolist() for row in generate(target, batch, None, GREEDY, max_new_tokens=5, stop=[]).tokens]
    assert rows == [greedy(target, [4, 5], 5), greedy(target, [7, 8, 9, 10], 5)]


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (None, "not a NoneType"),
        (5, "not a int"),
        (b"text", "not a bytes"),
        ([1, 2], "wrap one list"),
        ([], "there is no prompt"),
        ([torch.tensor([], dtype=torch.long)], "prompt 0 is empty"),
        (torch.tensor([[1.5, 2.0]]), r"1.5 \(a float\)"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "another list"),
        ([[True, 2]], r"True \(a bool\)"),
        ([{"role": "user", "content": "hello"}], r"target\.chat\(messages\) makes one prompt"),
        ([[{"role": "user", "content": "hello"}]], r"target\.chat\(messages\) makes one prompt"),
        ({"text": "w1"}, "without 'input_ids'"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "hides tokens between"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1]]}, "attention mask of 2"),
        ({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1]]}, "masks for 1"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, "prompt 0 is empty"),
        ("w1 \udc80", "lone surrogate"),
        ([[1, 48]], "not a token id between 0 and 47"),
    ],
    ids=repr,
)
def test_what_is_no_prompt_gets_its_own_sentence(prompts, words):
    target = LanguageModel(llama(), tokenizer())
    with pytest.raises(InvalidArgument, match=words) as caught:
        generate(target, prompts, max_new_tokens=2)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_and_stops_that_can_be_looked_at_once():
    target = LanguageModel(llama())
    plain = greedy(target, [1, 2], 9)
    out = generate(
        target,
        [[1, 2]],
        LookupDrafter(),
        GREEDY,
        np.int64(3),
        max_new_tokens=np.int32(9),
        stop=iter([np.int64(plain[4])]),
        seed=np.int64(7),
    )
    assert out.tokens[0].tolist() == plain[: plain.index(plain[4]) + 1]
    seeds = [
        generate(target, [[1, 2]] * 2, max_new_tokens=9, stop=[], seed=seed).tokens for seed in (2**62, np.int64(2**62))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*seeds, strict=True))


# --- weights that change
# -----------------------------------------------------------------------------------------------------


def merged(target):
    """As adapters are merged: through .data, which no version counts."""
    weight = target.model.model.layers[1].self_attn.k_proj.weight
    weight.data += torch.outer(torch.randn(weight.shape[0]), torch.randn(weight.shape[1]))


def trained(target):
    optimizer = torch.optim.SGD(target.model.parameters(), lr=0.1)
    target.model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()


def hooked(target):
    target.model.model.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: output + torch.linspace(-3, 3, 32)
    )


def wrapped(target):
    class Added(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.weight, self.bias = base, base.weight, base.bias

        def forward(self, x):
            return self.base(x) + x.roll(1, -1)

    attention = target.model.model.layers[0].self_attn
    attention.o_proj = Added(attention.o_proj)


def one_row(target):
    target.model.lm_head.weight.data[40] += 1.0


def replaced(target):
    target.model.load_state_dict(llama(1).state_dict(), assign=True)


CHANGES = {
    "load_state_dict": lambda target: target.model.load_state_dict(llama(1).state_dict()) and None,
    "assigned": replaced,
    "merged": merged,
    "trained": trained,
    "hooked": hooked,
    "wrapped": wrapped,
    "one row of the output": one_row,
    "double": lambda target: target.model.double() and None,
    "bfloat16": lambda target: target.model.bfloat16() and None,
    "deepcopy": copy.deepcopy,
    "pickle": lambda target: pickle.loads(pickle.dumps(target)),
}


@pytest.mark.parametrize("drafter", [None, "layers", "eagle"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_fast_backend_follows_its_weights_or_refuses(change, drafter):
    target, tokens = LanguageModel(llama(), backend="fast"), torch.arange(12)[None]
    made = {None: None, "layers": LayerSkipDrafter(1)}.get(drafter)
    if drafter == "eagle":
        made = EagleDrafter(speclib.drafters.Eagle(t.LlamaConfig(**LLAMA)))
    before = generate(target, [[1, 2]], made, Sampling(), 3, max_new_tokens=6, stop=[]) and target.context().extend(
        tokens
    )
    target = CHANGES[change](target) or target
    try:
        context = target.context()
    except UnsupportedModel as error:
        assert change in ("hooked", "wrapped") and "backend='eager'" in str(error)
        return
    with torch.inference_mode():
        right = target.model(input_ids=tokens).logits[0]
    got = context.extend(tokens)[0]
    assert got.dtype == right.dtype and (got - right).abs().max() < (0.5 if change == "bfloat16" else 1e-3)
    if change not in ("deepcopy", "pickle", "double", "bfloat16"):
        assert (got - before).abs().max() > 0.01
    if made:  # what was made of the old weights is made again
        fresh = LayerSkipDrafter(1) if drafter == "layers" else EagleDrafter(made.eagle)
        outs = [
            generate(target, [[1, 2, 3]], d, Sampling(), 3, max_new_tokens=12, stop=[], seed=1).trace.rounds
            for d in (made, fresh)
        ]
        assert [r.overlaps for r in outs[0]] == [r.overlaps for r in outs[1]]


def test_a_changed_copy_leaves_the_first_as_it_is():
    first = LanguageModel(llama(), backend="fast")
    other = copy.deepcopy(first)
    plain = greedy(first, [1, 2], 12)
    other.model.load_state_dict(llama(1).state_dict())
    assert (
        greedy(other, [1, 2], 12) == greedy(LanguageModel(llama(1)), [1, 2], 12) != plain == greedy(first, [1, 2], 12)
    )


def test_unchanged_weights_are_laid_out_once(monkeypatch):
    target = LanguageModel(llama(), backend="fast")
    decoder = target.decoder
    target.model(input_ids=torch.tensor([[1, 2]]), output_hidden_states=True)  # transformers leaves hooks of its own
    greedy(target, [1, 2], 4)
    assert target.decoder is decoder


@pytest.mark.parametrize("rows", [1, 3])
def test_trees_are_tried_once_a_text_however_many_rounds_it_has(rows, monkeypatch):
    """To compare all weights with those that were tried takes as long as several layers."""
    target, draft = (LanguageModel(llama(seed), backend="fast") for seed in (0, 1))
    calls, honest = [], probe.trees
    monkeypatch.setattr(probe, "trees", lambda *what: calls.append(what) or honest(*what))
    out = generate(target, [[1, 2, 3]] * rows, TreeDrafter(draft, (2, 1)), Sampling(0), 2, max_new_tokens=24, stop=[])
    assert len(out.trace.rounds) > 5 * rows and len(calls) <= 1 + 2 * rows, "before any work, and once a text and model"


def test_modules_handed_over_stay_as_they_are():
    heads, exits = Heads(2, 32), Exits((1,), 32)
    targets = {dtype: LanguageModel(llama(dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.bfloat16)}
    before = [copy.deepcopy(module.state_dict()) for module in (heads, exits)]
    drafters = [HeadsDrafter(heads), HeadsDrafter(heads, 2), LayerSkipDrafter(1, exits), LayerSkipDrafter(1, exits)]
    for dtype in (torch.bfloat16, torch.float32, torch.float64, torch.float32):
        for drafter in drafters:
            greedy(targets[dtype], [1, 2, 3], 4, drafter)
    for module, state in zip((heads, exits), before, strict=True):
        assert all(
            value.dtype == torch.float32 and torch.equal(value, state[name])
            for name, value in module.state_dict().items()
        )


def test_weights_without_numbers_are_refused_where_text_is_asked_for():
    with torch.device("meta"):
        model = t.LlamaForCausalLM(t.LlamaConfig(**LLAMA)).eval()
    with pytest.raises(UnsupportedModel, match="meta device"):
        generate(LanguageModel(model), [[1, 2]], max_new_tokens=2)


def test_what_writes_no_text_is_refused():
    for kind in (t.LlamaModel, t.LlamaForSequenceClassification):
        with pytest.raises(UnsupportedModel, match="output matrix"):
            LanguageModel(kind(t.LlamaConfig(**LLAMA)).eval())
    assert issubclass(errors.UnsupportedModel, TypeError)
