"""The training loop: one function, resumable after a kill at any moment.

State (weights, both optimisers, step, losses) is written beside the model every few minutes, as a whole (see `state`).
The order of the data depends on the seed and the step alone: a resumed run sees exactly the batches that an
undisturbed run would have seen.
"""

import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, log_softmax
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..errors import TrainingError
from .recipes import Recipe
from .state import identity, load_state, save_card, save_state

SAVE_EVERY_SECONDS = 120


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


def schedule(progress: float) -> float:
    """Learning-rate factor at a share of the training: short warm-up, plateau, linear descent over the last half."""
    return min(1.0, progress / 0.01 + 0.02, (1.0 - progress) / 0.5 + 0.01)


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers (more learning per token on a CPU's budget), AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers." in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers." in name)]
    return [
        torch.optim.Muon(matrices, lr=recipe.learning_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.embedding_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def loss_of(model, inputs: torch.Tensor, teacher=None) -> torch.Tensor:
    """Mean loss in nats per token: cross entropy, or with a teacher the divergence from its distribution.

    The student minimises KL(teacher || student) and total variation together: the acceptance rate *is*
    one minus the total variation (Leviathan et al., Theorem 3.5), and the KL term keeps the gradient alive where
    the two barely overlap. inputs: [B, T + 1].
    """
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        logits = model(inputs[:, :-1], use_cache=False).logits  # [B, T, V]
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher(inputs[:, :-1], use_cache=False).logits
    if teacher is None:
        return cross_entropy(logits.float().flatten(0, 1), inputs[:, 1:].flatten())
    student, wanted = log_softmax(logits.float(), -1), log_softmax(wanted.float(), -1)
    p, q = wanted.exp(), student.exp()
    divergence = (p * (wanted - student)).sum(-1).mean()
    variation = 0.5 * (p - q).abs().sum(-1).mean()
    return 0.3 * divergence + variation


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
    """Trains `recipe` to its number of tokens and saves the model with its card under `folder`/name.

    tokens, held_out: uint16 token arrays; samples: the teacher's own text, for recipes that ask for it.
    Resumes from `folder`/name.state if it is there. Raises TrainingError if that state belongs to another training
    (recipe, seed, corpus, tokenizer, code) or the loss stops being finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    model = build(recipe, tokenizer).to(device)
    tokens_before = 0  # a model that starts from another goes on reading where that one stopped
    if recipe.start_from:
        start = LlamaForCausalLM.from_pretrained(folder / recipe.start_from, dtype=torch.float32)
        model.load_state_dict(grow(start.state_dict(), recipe.layers))
        tokens_before = json.loads((folder / recipe.start_from / "card.json").read_text("utf-8"))["tokens_seen"]
    first_step = tokens_before // recipe.batch_tokens
    model.set_attn_implementation("eager" if device.type == "cpu" else "sdpa")  # faster to train than sdpa on a CPU
    optims = optimizers(model, recipe)
    others = tuple(folder / name / "model.safetensors" for name in (recipe.start_from, recipe.teacher) if name)
    data = (tokens, held_out) if samples is None else (tokens, held_out, samples)
    state_path, own = (
        folder / f"{recipe.name}.state",
        identity(tokenizer, *data, files=others, recipe=repr(recipe), seed=seed),
    )
    step, seen, seconds, curve = 0, 0, 0.0, []
    total = recipe.tokens
    if state := load_state(state_path, own, device):
        model.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        step, seen, seconds, curve = state["step"], state["seen"], state["seconds"], state["curve"]

    loss_function = torch.compile(loss_of, dynamic=False) if compile else loss_of
    began, saved_at, started_with = time.perf_counter(), time.perf_counter(), seconds
    bar = tqdm(total=total, initial=seen, desc=recipe.name, unit="tok", unit_scale=True, mininterval=5)
    smooth = None
    while seen < total:
        progress = seen / total
        width = recipe.short_context if progress < 1 - recipe.long_share else recipe.context
        rows = max(1, recipe.batch_tokens // width)
        from_teacher = samples is not None and (step * recipe.teacher_samples) % 1 >= 1 - recipe.teacher_samples
        inputs = batch(samples if from_teacher else tokens, first_step + step, rows, width, seed).to(device)
        for optim, rate in zip(optims, (recipe.learning_rate, recipe.embedding_rate), strict=True):
            for group in optim.param_groups:
                group["lr"] = rate * schedule(progress)
        loss = loss_function(model, inputs, teacher)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss of {recipe.name} is {loss.item()} at step {step}; try a lower learning rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + rows * width
        seconds = started_with + time.perf_counter() - began
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        bar.update(rows * width)
        if step % 50 == 0 or seen >= total:
            curve.append([seen, round(smooth, 4), round(seconds, 1)])
            bar.set_postfix(loss=f"{smooth:.3f}")
        for share in recipe.checkpoint_at:
            if progress < share <= seen / total:
                name = f"{recipe.name}-at-{round(100 * share):02d}"
                nats = held_out_nats(model, held_out, recipe.context)
                save_model(
                    model,
                    tokenizer,
                    folder / name,
                    recipe,
                    seen,
                    curve,
                    nats,
                    held_out_bytes / len(held_out),
                    seconds,
                    own,
                    tokens_before,
                )
        if time.perf_counter() - saved_at > SAVE_EVERY_SECONDS or seen >= total:
            weights = {"model": model.state_dict(), "optims": [o.state_dict() for o in optims]}
            save_state(state_path, own, **weights, step=step, seen=seen, seconds=seconds, curve=curve)
            saved_at = time.perf_counter()
    bar.close()
    nats = held_out_nats(model, held_out, recipe.context)
    return save_model(
        model,
        tokenizer,
        folder / recipe.name,
        recipe,
        seen,
        curve,
        nats,
        held_out_bytes / len(held_out),
        seconds,
        own,
        tokens_before,
    )


def save_model(
    model,
    tokenizer,
    path: Path,
    recipe: Recipe,
    seen,
    curve,
    nats,
    bytes_per_token,
    seconds,
    identity: dict,
    tokens_before=0,
) -> Path:
    """Writes bf16 safetensors, the tokenizer and `card.json` to `path`; returns `path`."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    card = {
        "name": path.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "shape": {
            "layers": recipe.layers,
            "width": recipe.width,
            "heads": recipe.heads,
            "feed_forward": recipe.feed_forward,
            "context": recipe.context,
        },
        "tokens_seen": tokens_before + seen,
        "started_from": recipe.start_from,
        "teacher": recipe.teacher,
        "held_out_nats_per_token": round(nats, 4),
        "held_out_bits_per_byte": round(nats / math.log(2) / bytes_per_token, 4),
        "seconds": round(seconds),
        "machine": f"{torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + ' CPU'}, "
        f"{torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "corpus": "corpus.json",
        "loss_curve": {"columns": ["tokens", "training loss (nats)", "seconds"], "rows": curve},
    }
    save_card(path, card, identity)
    return path
