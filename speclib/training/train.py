"""The causal models: target and drafts, from text or from a teacher."""

import json
import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..errors import TrainingError
from .loop import DEVICE, Training, adamw, distances, muon, run
from .recipes import Recipe
from .state import identity

ATTENTION = "eager" if DEVICE.type == "cpu" else "sdpa"  # eager is faster to train on a CPU


def build(recipe: Recipe, tokenizer) -> LlamaForCausalLM:
    """A freshly initialised Llama with the recipe's shape; input and output embeddings are shared."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


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
    grown = {name: value for name, value in state.items() if not name.startswith("model.layers.")}
    place = 0
    for layer in range(had):
        for is_copy in (False, True)[: 1 + (layer in doubled)]:
            prefix = f"model.layers.{layer}."
            for name, value in state.items():
                if name.startswith(prefix):
                    silent = is_copy and name.endswith(("o_proj.weight", "down_proj.weight"))
                    grown[f"model.layers.{place}." + name.removeprefix(prefix)] = (
                        torch.zeros_like(value) if silent else value.clone()
                    )
            place += 1
    return grown


def batch(tokens: np.ndarray, step: int, rows: int, width: int, seed: int) -> torch.Tensor:
    """Batch number `step`: `rows` windows of width + 1 tokens, no window twice before all were seen. [rows, width +
    1]
    """
    windows = (len(tokens) - 1) // width
    if windows < 1:
        raise TrainingError(f"the corpus has {len(tokens)} tokens, fewer than one window of {width}")
    first = step * rows
    rows_seen = []
    for k in range(first, first + rows):
        epoch, place = divmod(k, windows)
        # a fixed affine walk visits every window once per epoch and needs no stored permutation
        stride = _coprime_stride(windows, seed + epoch)
        start = (place * stride + seed * 7919) % windows * width
        rows_seen.append(tokens[start : start + width + 1].astype(np.int64))
    return torch.from_numpy(np.stack(rows_seen))


def _coprime_stride(windows: int, seed: int) -> int:
    stride = int(windows * 0.6180339887) + seed * 2 + 1
    while math.gcd(stride, windows) != 1:
        stride += 1
    return stride


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "layers." in name}
    others = [p for name, p in model.named_parameters() if name not in matrices]
    return [muon((matrices.values(), recipe.learning_rate)), adamw(others, recipe.embedding_rate)]


def loss_of(model, inputs: torch.Tensor, teacher=None) -> torch.Tensor:
    """Mean loss per token of inputs [B, T + 1]: cross entropy in nats, or with a teacher the `distances` from it."""
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        logits = model(inputs[:, :-1], use_cache=False).logits  # [B, T, V]
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher(inputs[:, :-1], use_cache=False).logits
    if teacher is None:
        return cross_entropy(logits.float().flatten(0, 1), inputs[:, 1:].flatten())
    return distances(logits, wanted)[0].mean()


@torch.no_grad()
def sample_text(
    teacher: LlamaForCausalLM,
    tokens: np.ndarray,
    amount: int,
    seed: int = 0,
    rows: int = 64,
    prompt: int = 32,
    length: int = 256,
) -> np.ndarray:
    """About `amount` tokens of the teacher's own text at temperature 1, begun by prompts from `tokens`. uint16 [N]"""
    torch.manual_seed(seed)
    pieces = []
    with tqdm(total=amount, desc="teacher's text", unit="tok", unit_scale=True) as bar:
        for step in range(-(-amount // (rows * length))):
            start = batch(tokens, step, rows, length, seed + 1)[:, :prompt].to(teacher.device)
            out = teacher.generate(
                start,
                attention_mask=torch.ones_like(start),
                do_sample=True,
                top_k=0,
                max_new_tokens=length - prompt,
                eos_token_id=None,
                pad_token_id=0,
            )
            pieces.append(out.cpu().numpy().astype(np.uint16).ravel())
            bar.update(rows * length)
    return np.concatenate(pieces)


@torch.no_grad()
def held_out_nats(model, tokens: np.ndarray, width: int, windows: int = 96) -> float:
    """Mean cross entropy in nats per token on evenly spread held-out windows of `width` tokens."""
    model.eval()
    width = min(width, len(tokens) - 1)
    starts = np.linspace(0, len(tokens) - width - 1, windows).astype(int)
    total = 0.0
    for group in np.array_split(starts, max(1, windows // 16)):
        rows = torch.from_numpy(np.stack([tokens[s : s + width + 1].astype(np.int64) for s in group])).to(model.device)
        with torch.autocast(rows.device.type, dtype=torch.bfloat16):
            logits = model(rows[:, :-1], use_cache=False).logits
        total += cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten()).item() * len(group)
    model.train()
    return total / windows


def train(
    recipe: Recipe,
    tokens: np.ndarray,
    held_out: np.ndarray,
    held_out_bytes: int,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    teacher: LlamaForCausalLM | None = None,
    samples: np.ndarray | None = None,
    seed: int = 0,
    compile: bool = True,
) -> Path:
    """Trains `recipe` to its number of tokens and saves the model with its card under `folder`/name (see `loop.run`).

    tokens, held_out: uint16 token arrays; samples: the teacher's own text, for recipes that ask for it.
    Raises TrainingError for a state of another training (recipe, seed, corpus, tokenizer, code), or when the loss stops
    being finite.
    """
    torch.manual_seed(seed)
    model = build(recipe, tokenizer).to(DEVICE)
    tokens_before = 0  # a model that starts from another goes on reading where that one stopped
    if recipe.start_from:
        start = LlamaForCausalLM.from_pretrained(folder / recipe.start_from, dtype=torch.float32)
        model.load_state_dict(grow(start.state_dict(), recipe.layers))
        tokens_before = json.loads((folder / recipe.start_from / "card.json").read_text("utf-8"))["tokens_seen"]
    first_step = tokens_before // recipe.batch_tokens
    model.set_attn_implementation(ATTENTION)
    loss_function = torch.compile(loss_of, dynamic=False) if compile else loss_of

    def step(number: int, progress: float):
        width = recipe.short_context if progress < 1 - recipe.long_share else recipe.context
        rows = max(1, recipe.batch_tokens // width)
        from_teacher = samples is not None and (number * recipe.teacher_samples) % 1 >= 1 - recipe.teacher_samples
        inputs = batch(samples if from_teacher else tokens, first_step + number, rows, width, seed).to(DEVICE)
        loss = loss_function(model, inputs, teacher)
        return loss, [loss], rows * width

    def save(path: Path) -> dict:
        """Writes bf16 safetensors and the tokenizer."""
        nats = held_out_nats(model, held_out, recipe.context)
        deepcopy(model).to(torch.bfloat16).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return {
            "shape": {key: getattr(recipe, key) for key in ("layers", "width", "heads", "feed_forward", "context")},
            "started_from": recipe.start_from,
            "teacher": recipe.teacher,
            "held_out_nats_per_token": round(nats, 4),
            "held_out_bits_per_byte": round(nats / math.log(2) * len(held_out) / held_out_bytes, 4),
        }

    others = tuple(folder / name / "model.safetensors" for name in (recipe.start_from, recipe.teacher) if name)
    data = (tokens, held_out) if samples is None else (tokens, held_out, samples)
    own = identity(tokenizer, *data, files=others, recipe=repr(recipe), seed=seed)
    marks, optims = recipe.checkpoint_at, optimizers(model, recipe)
    return run(
        Training(recipe.name, model, optims, step, save, recipe.tokens, own, marks=marks, before=tokens_before), folder
    )
