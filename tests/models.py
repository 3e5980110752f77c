"""The small models and guessers that the tests share, and the exact laws of their texts."""

from contextlib import contextmanager
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from speclib import LanguageModel, embedded, generate
from speclib.drafters import (
    Block,
    BlockDrafter,
    Eagle,
    EagleDrafter,
    EnsembleDrafter,
    Exits,
    FallbackDrafter,
    Heads,
    HeadsDrafter,
    LayerSkipDrafter,
    LookupDrafter,
    ModelDrafter,
    NgramDrafter,
    RetrievalDrafter,
    SyntheticDrafter,
    TreeDrafter,
    build_index,
)
from speclib.errors import InvalidArgument
from speclib.law.distributions import Sampling, seeded
from speclib.law.exact import TableModel, outcomes, plain_law, walk
from speclib.model.quantized import rounded_copy
from speclib.training import loop

GREEDY = Sampling(temperature=0)
# transformers computes rotary tables and norms of a float64 model partly in float32
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
WORDS = [f"w{i}" for i in range(47)]

# --- random weights, with and without text


def tiny(kind="llama", backend="eager", vocabulary=3, layers=3, context=32, scale=15, seed=0):
    """A model in float64, with weights large enough that its rows differ from prefix to prefix."""
    torch.manual_seed(seed)
    ends = {"bos_token_id": None, "eos_token_id": None}
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=context,
            pad_token_id=None,
            **ends,
        )
        model = LlamaForCausalLM(config)
    else:
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=vocabulary, n_embd=8, n_layer=layers, n_head=2, n_positions=context, **ends)
        )
    model = model.double().eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights.mul_(scale)
    return LanguageModel(model, name=f"tiny {kind}", backend=backend)


@cache
def llama(vocabulary, seed, layers, context=32, scale=15):
    return tiny("llama", "eager", vocabulary, layers, context, scale, seed)


@cache
def build(kind, seed=0, dtype=torch.float64, layers=3, context=640):
    """A random model with weights large enough that its rows differ, and with norms and biases that are not 1 and 0."""
    torch.manual_seed(seed)
    common = {"vocab_size": 48, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2}
    size = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": context,
    }
    model = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**common, **size)),
        "llama grouped": lambda: LlamaForCausalLM(LlamaConfig(**common, **size, num_key_value_heads=2, head_dim=12)),
        "llama biased": lambda: LlamaForCausalLM(LlamaConfig(**common, **size, attention_bias=True, mlp_bias=True)),
        "mistral": lambda: MistralForCausalLM(
            MistralConfig(**common, **size, num_key_value_heads=2, sliding_window=None)
        ),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**common, **size, num_key_value_heads=1)),
        "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**common, **size)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**common, n_embd=32, n_layer=layers, n_head=4, n_positions=context)),
    }[kind]()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 1:
                weights.add_(0.2 * torch.randn_like(weights))
    return model.to(dtype).eval()


def text(length, seed=3):
    return torch.randint(48, (1, length), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def reference(kind, tokens, dtype=torch.float64):
    """transformers' own forward without any cache. [k, V]"""
    return build(kind, dtype=dtype)(tokens, use_cache=False).logits[0]


def sharp(kind=LlamaForCausalLM, backend="eager", seed=0, layers=2, words=7):
    """A model in float64 whose rows are far from uniform, and whose end-of-text is token 0."""
    torch.manual_seed(seed)
    if kind is GPT2LMHeadModel:
        config = GPT2Config(
            vocab_size=words, n_embd=16, n_layer=layers, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
        )
    elif kind is BloomForCausalLM:
        config = BloomConfig(vocab_size=words, hidden_size=16, n_layer=layers, n_head=2, bos_token_id=0, eos_token_id=0)
    else:
        config = LlamaConfig(
            vocab_size=words,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=0,
        )
    made = kind(config).double().eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)
    return LanguageModel(made, backend=backend)


def tiny_with_text(seed: int, layers: int) -> LanguageModel:
    """A random Llama of 32 tokens whose end-of-text is a frequent token, so that stopping early would show."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=32, num_hidden_layers=layers, max_position_embeddings=64, eos_token_id=3, bos_token_id=1, **sizes
    )
    return LanguageModel(LlamaForCausalLM(config).eval(), Characters(), "tiny")


TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def small_chat(folder, **shape):
    """Saves a small Llama with random weights, the embedded tokenizer and a chat template. -> folder"""
    made = AutoTokenizer.from_pretrained(embedded.fetch("models/target"))
    made.chat_template = TEMPLATE
    torch.manual_seed(0)
    words = {"vocab_size": len(made), "eos_token_id": made.eos_token_id, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(hidden_size=32, **shape, **words)).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


class Characters:
    """The least tokenizer: a character is its code modulo 32."""

    eos_token_id = 3

    def __call__(self, text, return_tensors=None, **_):
        ids = [ord(character) % 32 for character in text]
        return (
            Batch(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
            if return_tensors
            else {"input_ids": ids}
        )

    def __len__(self):
        return 32

    def decode(self, ids, **_):
        return "".join(chr(64 + int(i)) for i in ids)

    def get_vocab(self):
        return {chr(64 + i): i for i in range(32)}


class Batch(dict):
    def to(self, device):
        return self


def tokenizer(words=WORDS):
    """A word is a token."""
    inner = Tokenizer(WordLevel({w: i for i, w in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def config_of(width):
    """Of an eagle over hidden states of that width."""
    return LlamaConfig(
        vocab_size=1,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )


# --- a pair that was really trained, and every guesser for it

VOCABULARY = 4
PROMPT = [0, 1, 2, 3, 1]
PROMPTS = [PROMPT, PROMPT[:1], [*PROMPT, 2, 1, 3], [0], [3, 3, 1, 0, 2]]  # five lengths, of one token and more


@cache
def corpus(rows=2048, width=12):
    """Texts for the models to learn: the next token depends on the last one and, half as often, on the one before
    it.
    """
    rng = np.random.default_rng(0)
    one, two = rng.dirichlet(np.full(VOCABULARY, 0.2), (2, VOCABULARY))
    text = rng.integers(VOCABULARY, size=(rows, width))
    for i in range(2, width):
        chances = (2 * one[text[:, i - 1]] + two[text[:, i - 2]]) / 3
        text[:, i] = (rng.random((rows, 1)) > chances.cumsum(-1)).sum(-1).clip(max=VOCABULARY - 1)
    return torch.from_numpy(text)


@cache
def trained(layers, width, steps):
    """A micro Llama after `steps` steps of AdamW, float32, with the fast backend."""
    torch.manual_seed(layers)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for step in range(steps):
        batch = corpus()[step * 32 % 2048 :][:32]
        loss = cross_entropy(model(batch[:, :-1], use_cache=False).logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < np.log(VOCABULARY) - 0.1  # it has learnt something: a guess at random costs log V
    return LanguageModel(model.eval(), name=f"trained {layers}", backend="fast")


@cache
def target(dtype=torch.float32):
    return precise(trained(2, 16, 300), dtype)


@cache
def draft(dtype=torch.float32):
    return precise(trained(1, 8, 60), dtype)  # less trained than the pair's own: rejections must be common


def precise(model, dtype):
    return LanguageModel(deepcopy(model.model).to(dtype), name=model.name, backend="fast")


@cache
def index():
    return build_index(corpus().flatten().tolist(), VOCABULARY)


def some(module, seed=2):
    """Untrained heads or exits are guessers too, once they differ from the target's own last layer."""
    torch.manual_seed(seed)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return module.requires_grad_(False)


CORPUS = [0, 1, 2, 3, 1, 1, 2, 0, 3, 1, 0, 2, 2, 1, 3]
CHAINS = {  # name -> dtype -> drafter
    "model": lambda dtype: ModelDrafter(draft(dtype)),
    "rounded model": lambda dtype: ModelDrafter(rounded_copy(draft(dtype), 3)),
    "similarity dial": lambda dtype: SyntheticDrafter(0.5),
    "lookup": lambda dtype: LookupDrafter(2),
    "n-gram, drawn": lambda dtype: NgramDrafter(3, CORPUS),
    "n-gram, likeliest": lambda dtype: NgramDrafter(3, CORPUS, "point"),
    "retrieval, drawn": lambda dtype: RetrievalDrafter(index(), 3, probabilities="counts"),
    "retrieval, likeliest": lambda dtype: RetrievalDrafter(index()),
    "heads, drawn": lambda dtype: HeadsDrafter(some(Heads(2, 16))),
    "heads, likeliest": lambda dtype: HeadsDrafter(some(Heads(2, 16)), choices="top"),
    "lookup, else a model": lambda dtype: FallbackDrafter(LookupDrafter(2, 2), ModelDrafter(draft(dtype)), most=1),
    "lookup, else eagle": lambda dtype: FallbackDrafter(LookupDrafter(2), EagleDrafter(some(Eagle(config_of(16))))),
    "eagle": lambda dtype: EagleDrafter(some(Eagle(config_of(16)))),
    "block": lambda dtype: BlockDrafter(some(Block(config_of(16), 2))),
    "block, likeliest": lambda dtype: BlockDrafter(some(Block(config_of(16), 2)), "point"),
    "layer skip": lambda dtype: LayerSkipDrafter(1),
    "layer skip with an exit": lambda dtype: LayerSkipDrafter(1, some(Exits((1,), 16))),
}
BUSHES = {  # trees of draws: they have many paths
    "tree, drawn": lambda dtype: TreeDrafter(draft(dtype), (2, 1)),
    "tree of eagle, drawn": lambda dtype: TreeDrafter(EagleDrafter(some(Eagle(config_of(16)))), (2, 1)),
    "tree of heads, drawn": lambda dtype: HeadsDrafter(some(Heads(2, 16)), 2),
    "ensemble of two that draw": lambda dtype: EnsembleDrafter(
        [HeadsDrafter(some(Heads(1, 16))), NgramDrafter(3, CORPUS)]
    ),
}
TREES = {
    "tree, all siblings drawn": lambda dtype: TreeDrafter(draft(dtype), (4,)),
    "tree, drawn best first": lambda dtype: TreeDrafter(draft(dtype), (2, 2), budget=3),
    "tree, likeliest": lambda dtype: TreeDrafter(draft(dtype), (2, 2), sampled=False),
    "tree, best first": lambda dtype: TreeDrafter(draft(dtype), (3, 2), sampled=False, budget=5),
    "tree of eagle, best first": lambda dtype: TreeDrafter(EagleDrafter(some(Eagle(config_of(16)))), (2, 2), budget=3),
    "tree of heads, likeliest": lambda dtype: HeadsDrafter(some(Heads(2, 16)), 3, "top"),
    "ensemble of copies and model": lambda dtype: EnsembleDrafter([LookupDrafter(2), ModelDrafter(draft(dtype))]),
}
GUESSER = CHAINS | BUSHES | TREES


# --- laws, and a training that dies


def law_of(target, drafter, sampling, gamma, length, prompt):
    """The law of generate(), by all its paths."""
    return outcomes(
        lambda draw: tuple(
            generate(target, [prompt], drafter, sampling, gamma, max_new_tokens=length, stop=[], draw=draw)
            .tokens[0]
            .tolist()
        )
    )


def right_law(target, sampling, length, prompt, eos=None):
    """The law of the target's own text: a fresh context for each prefix, so that no cache is trusted."""

    def row(prefix):
        with torch.inference_mode():
            return sampling.probabilities(target.context().extend(torch.tensor([[*prompt, *prefix]]))[0, -1]).numpy()

    return plain_law(TableModel(target.vocabulary, row), length, eos)


def sample_outcomes(run, n, seed):
    """How often each result came in `n` independent runs of `run(draw)`.

    Runs that have drawn the same so far go on together: where k of them draw from a row, `seeded` draws k tokens from
    it, and they part by what they drew. So `run` is called once for each path that was taken, and not n times; millions
    of short texts take seconds. What is asked of `run`, and what is raised, is as in `outcomes`.
    """
    if n < 1:
        raise InvalidArgument(f"n must be at least 1, not {n}")
    sampler = seeded(seed)

    def drawn(row, count):
        counts = sum(torch.bincount(sampler(part), minlength=len(row)) for part in row.expand(count, -1).split(2**18))
        return [(token, count) for token, count in enumerate(counts.tolist()) if count]

    return walk(run, n, drawn, limit=n)  # no path without a run that takes it


@contextmanager
def killed_at(step):
    """Whatever is trained in the block dies before that step, as Ctrl-C would have it."""
    steps, honest = iter(range(step)), loop.schedule

    def schedule(progress):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return honest(progress)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "schedule", schedule)
        yield
