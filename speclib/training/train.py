"""The causal models: target and drafts, from text or from a teacher."""

import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import pooch
import torch
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..errors import TrainingError
from ..files import code_version, digest
from .corpus import Corpus, kept
from .loop import DEVICE, Training, adamw, language_loss, muon, run
from .recipes import Recipe
from .state import identity, read_card

SAMPLE_TOKENS = 400_000  # of a teacher's own text, for distillation
ATTENTION = "eager" if DEVICE.type == "cpu" else "sdpa"  # eager is faster to train on a CPU


def build(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised Llama with the recipe's shape; input and output embeddings are shared."""
    shape = {"hidden_size": recipe.width, "intermediate_size": recipe.feed_forward, "num_hidden_layers": recipe.layers}
    shape |= {"num_attention_heads": recipe.heads, "max_position_embeddings": recipe.context}
    words = {"vocab_size": len(tokenizer), "tie_word_embeddings": True}
    words |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(LlamaConfig(**shape, **words))


def load(folder: Path, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    """A finished model, on the GPU if there is one."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).to(DEVICE).eval()
    model.set_attn_implementation(ATTENTION)
    return model


def grow(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """A deeper copy of a Llama's weights that computes the same function: the start of a longer training.

    Each new block copies the layer below it, with output matrices of zero, so that it adds nothing until it learns to
    (block expansion, Wu et al. 2401.02415, section 3). New blocks are spread evenly. Raises TrainingError if `layers`
    are fewer than there are, or more than twice as many.
    """
    had = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("model.layers."))
    if not had <= layers <= 2 * had:
        raise TrainingError(f"a model of {had} layers can be grown to between {had} and {2 * had}, not to {layers}")
    doubled = {int((k + 0.5) * had / (layers - had)) for k in range(layers - had)}
    blocks = [(layer, is_copy) for layer in range(had) for is_copy in (False, True)[: 1 + (layer in doubled)]]
    grown = {name: value for name, value in state.items() if not name.startswith("model.layers.")}
    for place, (layer, is_copy) in enumerate(blocks):
        prefix = f"model.layers.{layer}."
        for name in filter(lambda name: name.startswith(prefix), state):
            silent = is_copy and name.endswith(("o_proj.weight", "down_proj.weight"))
            value = torch.zeros_like(state[name]) if silent else state[name].clone()
            grown[f"model.layers.{place}.{name.removeprefix(prefix)}"] = value
    return grown


def batch(tokens: np.ndarray, step: int, rows: int, width: int, seed: int) -> torch.Tensor:
    """Batch number `step`: `rows` windows of width + 1 tokens, no window twice before all were seen. [rows, width +
    1]
    """
    windows = (len(tokens) - 1) // width
    if windows < 1:
        raise TrainingError(f"the corpus has {len(tokens)} tokens, fewer than one window of {width}")
    starts = []
    for k in range(step * rows, (step + 1) * rows):
        epoch, place = divmod(k, windows)
        # a fixed affine walk visits every window once per epoch and needs no stored permutation
        stride = _coprime_stride(windows, seed + epoch)
        starts.append((place * stride + seed * 7919) % windows * width)
    return _windows(tokens, starts, width + 1)


def _coprime_stride(windows: int, seed: int) -> int:
    stride = int(windows * 0.6180339887) + seed * 2 + 1
    while math.gcd(stride, windows) != 1:
        stride += 1
    return stride


def _windows(tokens: np.ndarray, starts: list[int], width: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([tokens[start : start + width].astype(np.int64) for start in starts])).to(DEVICE)


def spread(tokens: np.ndarray, count: int, width: int) -> torch.Tensor:
    """`count` windows of at most `width` tokens, evenly spread over a text. [count, width]"""
    width = min(width, len(tokens))
    return _windows(tokens, np.linspace(0, len(tokens) - width, count).astype(int), width)


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "layers." in name}
    others = [p for name, p in model.named_parameters() if name not in matrices]
    return [muon((matrices.values(), recipe.learning_rate)), adamw(others, recipe.embedding_rate)]


def loss_of(model, inputs: torch.Tensor, teacher=None) -> torch.Tensor:
    """The `language_loss` on tokens [B, T + 1]."""
    return language_loss(lambda m: m(inputs[:, :-1], use_cache=False).logits, inputs[:, 1:], model, teacher)


@torch.no_grad()
def sample_text(teacher: LlamaForCausalLM, tokens: np.ndarray, amount: int, seed: int = 0) -> np.ndarray:
    """About `amount` tokens of the teacher's own text at temperature 1, begun by prompts from `tokens`. uint16 [N]"""
    torch.manual_seed(seed)
    rows, prompt, length, pieces = 64, 32, 256, []
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": length - prompt, "eos_token_id": None}
    for step in tqdm(range(-(-amount // (rows * length))), desc="teacher's text", unit="batch"):
        start = batch(tokens, step, rows, length, seed + 1)[:, :prompt]
        out = teacher.generate(start, attention_mask=torch.ones_like(start), pad_token_id=0, **options)
        pieces.append(out.cpu().numpy().astype(np.uint16).ravel())
    return np.concatenate(pieces)


def samples_of(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Text that the finished model in `folder` wrote, kept beside it between runs. uint16 [N]"""
    what = digest(pooch.file_hash(str(folder / "model.safetensors")), tokens, code_version("training"))
    path = folder.parent / "cache" / f"samples-{folder.name}-{what}.npy"
    return kept(path, lambda: sample_text(load(folder), tokens, SAMPLE_TOKENS))


@torch.no_grad()
def held_out_nats(model, tokens: np.ndarray, width: int, windows: int = 96) -> float:
    """Mean cross entropy in nats per token on evenly spread held-out windows of `width` tokens."""
    groups = spread(tokens, windows, width + 1).tensor_split(max(1, windows // 16))
    return sum(loss_of(model, rows).item() * len(rows) for rows in groups) / windows


def train(recipe: Recipe, corpus: Corpus, folder: Path, seed: int = 0, compile: bool = True) -> Path:
    """Trains `recipe` to its number of tokens and saves the model with its card under `folder`/name (see `loop.run`).

    Raises TrainingError if a model that it starts from is missing, for a state of another training (recipe, seed,
    corpus, tokenizer, code), or when the loss stops being finite.
    """
    own = identity(recipe, corpus, seed, *(folder / name for name in (recipe.start_from, recipe.teacher) if name))
    teacher = samples = None
    if recipe.teacher:
        teacher, samples = load(folder / recipe.teacher), samples_of(folder / recipe.teacher, corpus.tokens)
    torch.manual_seed(seed)
    model = build(recipe, corpus.tokenizer).to(DEVICE)
    model.set_attn_implementation(ATTENTION)
    before = 0  # a model that starts from another goes on reading where that one stopped
    if recipe.start_from:
        start, before = folder / recipe.start_from, read_card(folder / recipe.start_from)["tokens_seen"]
        model.load_state_dict(grow(load(start, torch.float32).state_dict(), recipe.layers))
    loss_function = torch.compile(loss_of, dynamic=False) if compile else loss_of

    def step(number: int, progress: float):
        width = recipe.short_context if progress < 1 - recipe.long_share else recipe.context
        rows = max(1, recipe.batch_tokens // width)
        from_teacher = (number * recipe.teacher_samples) % 1 >= 1 - recipe.teacher_samples
        text = samples if from_teacher else corpus.tokens
        loss = loss_function(model, batch(text, before // recipe.batch_tokens + number, rows, width, seed), teacher)
        return loss, [loss], rows * width

    def save(path: Path) -> dict:
        deepcopy(model).to(torch.bfloat16).save_pretrained(path)
        corpus.tokenizer.save_pretrained(path)
        nats = held_out_nats(model, corpus.held_out_tokens, recipe.context)
        nats_per_byte = nats * len(corpus.held_out_tokens) / sum(len(document.text) for document in corpus.held_out)
        return {
            "shape": {key: getattr(recipe, key) for key in ("layers", "width", "heads", "feed_forward", "context")},
            "started_from": recipe.start_from,
            "teacher": recipe.teacher,
            "held_out_nats_per_token": round(nats, 4),
            "held_out_bits_per_byte": round(nats_per_byte / math.log(2), 4),
        }

    marks = recipe.checkpoint_at
    return run(Training(recipe, model, optimizers(model, recipe), step, save, own, marks=marks, before=before), folder)
