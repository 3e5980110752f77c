"""Parallel heads, early exits and eagle: small readers of a frozen target, taught by its own distributions.

All learn from one forward of the target per batch, and lose what the drafts lose: total variation, which is what
acceptance is, and some divergence (see `train.loss_of`). Training is resumable in the same way.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax, pad
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..drafters.eagle import Eagle
from ..drafters.heads import Heads
from ..drafters.layer_skip import Exits
from ..errors import TrainingError
from .loop import SAVE_EVERY_SECONDS, schedule
from .state import identity, load_state, save_card, save_state
from .train import batch

EXIT_LAYERS = (1, 2, 3, 4, 6, 8, 12, 16, 20)  # of the target's; those it has not are left out
HEADS = 4
STEPS = 4  # guesses in a row that eagle is trained for


@dataclass(frozen=True)
class Reader:
    """What is trained: a module, and its guesses at each position as logits [B, T', count, V] beside the target's own
    laws (as logits, the same shape).
    """

    name: str
    make: Callable[[LlamaForCausalLM], nn.Module]
    guesses: Callable[[nn.Module, LlamaForCausalLM, Tensor, object], tuple[Tensor, Tensor]]
    tokens: int
    learning_rate: float = 2e-3  # of AdamW
    muon_rate: float | None = None  # of Muon for the matrices, or None: AdamW learns them too
    rows: int = 4  # windows in a batch
    samples: float = 0.0  # share of the batches that are the target's own text
    discount: float = 1.0  # what each further guess weighs in the loss, which the check reaches less often


def _head_guesses(heads: Heads, target: LlamaForCausalLM, inputs: Tensor, out) -> tuple[Tensor, Tensor]:
    """Head i at position t has the state at t and token t + 1, and is to say what the target says at t + i + 1."""
    n, T = heads.count, inputs.shape[1]
    # [B, T-n, n, d]
    states = heads(out.hidden_states[-1][:, : T - n], target.model.embed_tokens(inputs[:, 1 : T - n + 1]))
    wanted = torch.stack([out.logits[:, i + 1 : T - n + i + 1] for i in range(n)], 2)
    return linear(states, target.lm_head.weight), wanted


def _exit_guesses(exits: Exits, target: LlamaForCausalLM, inputs: Tensor, out) -> tuple[Tensor, Tensor]:
    """The exit after layer k at position t is to say what the target says at t."""
    states = torch.stack([target.model.norm(exits(out.hidden_states[layer], layer)) for layer in exits.layers], 2)
    return linear(states, target.lm_head.weight), out.logits.unsqueeze(2).expand(-1, -1, len(exits.layers), -1)


def _exits(target: LlamaForCausalLM) -> Exits:
    config = target.config
    return Exits(tuple(layer for layer in EXIT_LAYERS if layer < config.num_hidden_layers), config.hidden_size)


def _eagle(target: LlamaForCausalLM) -> Eagle:
    config = target.config
    return Eagle(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=4 * config.hidden_size,
            num_hidden_layers=1,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
        )
    )


def _eagle_guesses(eagle: Eagle, target: LlamaForCausalLM, inputs: Tensor, out) -> tuple[Tensor, Tensor]:
    """With the state at t, or what eagle takes for it after so many guesses, and token t + 1 it is to say what the
    target says at t + 1.
    """
    states = unrolled(eagle, out.hidden_states[-1][:, :-1], target.model.embed_tokens(inputs[:, 1:]), STEPS)[
        :, STEPS - 1 :
    ]
    return linear(states, target.lm_head.weight), out.logits[:, STEPS:].unsqueeze(2).expand(-1, -1, STEPS, -1)


def unrolled(eagle: Eagle, states: Tensor, embeddings: Tensor, steps: int) -> Tensor:
    """The states that eagle reaches at each place when its last 0, 1, 2 ... guesses stood on states of its own: [B, N,
    d], [B, N, d] -> [B, N, steps, d].

    All places at once (the training-time test of EAGLE-3, 2503.01840, section 3.2): at step s a place sees, of the text
    up to s places back, what was made of the target's states, and of each later place what was made at the step at
    which a guess would have stood there. The first `steps` - 1 places mean nothing.
    """
    layer, attn = eagle.layer, eagle.layer.self_attn
    cos, sin = eagle.rotary(states, torch.arange(states.shape[1], device=states.device)[None])
    keys, values, reached = [], [], []
    for s in range(steps):
        x = eagle.joined(states, embeddings)
        # [B, H, N, D]
        q, k, v = (
            project(layer.input_layernorm(x)).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
            for project in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        keys.append(k)
        values.append(v)
        far = (q @ keys[0].mT).float()  # [B, H, N, N]
        far = far.masked_fill(~torch.ones_like(far[0, 0], dtype=torch.bool).tril(-s), -torch.inf)
        # [B, H, N, 1] each
        near = [(q * _later(keys[i], s - i)).sum(-1, keepdim=True).float() for i in range(1, s + 1)]
        weights = torch.softmax(torch.cat([far, *near], -1) * attn.scaling, -1).to(v.dtype)
        seen = weights[..., : far.shape[-1]] @ values[0] + sum(
            weights[..., i - 1 - s, None] * _later(values[i], s - i) for i in range(1, s + 1)
        )
        x = x + attn.o_proj(seen.transpose(1, 2).flatten(-2))
        x = eagle.norm(x + layer.mlp(layer.post_attention_layernorm(x)))
        reached.append(x)
        states = _later(x, 1)
    return torch.stack(reached, 2)


def _later(x: Tensor, places: int) -> Tensor:
    """x [..., N, D] moved so many places on, zeros before it."""
    return pad(x, (0, 0, places, 0))[..., : x.shape[-2], :]


READERS = {
    reader.name: reader
    for reader in (
        Reader("heads", lambda target: Heads(HEADS, target.config.hidden_size), _head_guesses, tokens=600_000),
        Reader("exits", _exits, _exit_guesses, tokens=400_000),
        Reader("eagle", _eagle, _eagle_guesses, tokens=6_000_000, muon_rate=0.02, rows=8, samples=0.25, discount=0.8),
    )
}


def loss_of(reader: Reader, module: nn.Module, target: LlamaForCausalLM, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(mean loss, mean overlap of each guess with the target [count]) on tokens [B, T]."""
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        with torch.no_grad():
            out = target(inputs, use_cache=False, output_hidden_states=True)
        guessed, wanted = reader.guesses(module, target, inputs, out)
    student, wanted = log_softmax(guessed.float(), -1), log_softmax(wanted.float(), -1)
    p = wanted.exp()
    variation = 0.5 * (p - student.exp()).abs().sum(-1)  # [B, T', count]
    divergence = (p * (wanted - student)).sum(-1)
    weights = reader.discount ** torch.arange(variation.shape[-1], device=variation.device)
    return ((variation + 0.3 * divergence).mean((0, 1)) * weights).sum() / weights.sum(), 1 - variation.detach().mean(
        (0, 1)
    )


@torch.no_grad()
def held_out_overlap(
    reader: Reader, module: nn.Module, target: LlamaForCausalLM, tokens: np.ndarray, windows: int = 32, width: int = 256
) -> list[float]:
    """1 - total variation of each guess, over evenly spread held-out windows."""
    width = min(width, len(tokens))
    starts = np.linspace(0, len(tokens) - width, windows).astype(int)
    rows = [
        loss_of(
            reader, module, target, torch.from_numpy(tokens[s : s + width].astype(np.int64))[None].to(target.device)
        )[1]
        for s in starts
    ]
    return torch.stack(rows).mean(0).tolist()


def optimizers(reader: Reader, module: nn.Module) -> list[tuple[torch.optim.Optimizer, float]]:
    """The optimisers of a reader, each with its learning rate."""
    matrices = [p for p in module.parameters() if p.ndim == 2] if reader.muon_rate else []
    others = [p for p in module.parameters() if p.ndim != 2 or not reader.muon_rate]
    found = [
        (
            torch.optim.AdamW(others, lr=reader.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
            reader.learning_rate,
        )
    ]
    return found + (
        [(torch.optim.Muon(matrices, lr=reader.muon_rate, momentum=0.95, weight_decay=0.01), reader.muon_rate)]
        if matrices
        else []
    )


def train(
    name: str,
    tokens: np.ndarray,
    held_out: np.ndarray,
    target_folder: Path,
    folder: Path,
    amount: int | None = None,
    seed: int = 0,
    rows: int | None = None,
    width: int = 256,
    samples: np.ndarray | None = None,
    compile: bool = False,
) -> Path:
    """Trains "heads", "exits" or "eagle" for the target in `target_folder`; writes safetensors and a card to
    `folder`/name.

    amount: tokens to see, and rows: windows in a batch, else the reader's own numbers; samples: the target's own text,
    for a reader that asks for it. Resumes from `folder`/name.state. Raises TrainingError without a target, for a state
    of another training, or when the loss stops being finite.
    """
    if not (target_folder / "card.json").exists():
        raise TrainingError(f"{name} needs a finished target, which is not in {target_folder}; train it first")
    reader, device = READERS[name], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, share = rows or reader.rows, reader.samples if samples is not None else 0.0
    digest = pooch.file_hash(str(target_folder / "model.safetensors"))
    target = (
        LlamaForCausalLM.from_pretrained(target_folder, dtype=torch.bfloat16).to(device).eval().requires_grad_(False)
    )
    if device.type == "cpu":
        target.set_attn_implementation("eager")  # faster than sdpa there
    torch.manual_seed(seed)
    module = reader.make(target).to(device)
    optims = optimizers(reader, module)
    amount, state_path = amount or reader.tokens, folder / f"{name}.state"
    data = (tokens, held_out) if samples is None else (tokens, held_out, samples)
    settings = {"name": name, "amount": amount, "seed": seed, "rows": rows, "width": width, "samples": share}
    own = identity(None, *data, target=digest, **settings)
    step, seconds, curve = 0, 0.0, []
    if state := load_state(state_path, own, device):
        module.load_state_dict(state["module"])
        for (optim, _), saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        step, seconds, curve = state["step"], state["seconds"], state["curve"]

    def save() -> None:
        weights = {"module": module.state_dict(), "optims": [optim.state_dict() for optim, _ in optims]}
        save_state(state_path, own, **weights, step=step, seconds=seconds, curve=curve)

    loss_function = torch.compile(loss_of, dynamic=False) if compile else loss_of
    steps, saved_at, last = max(1, amount // (rows * width)), time.perf_counter(), time.perf_counter()
    smooth = None
    with tqdm(total=steps, initial=step, desc=name, unit="step", mininterval=5) as bar:
        while step < steps:
            for optim, rate in optims:
                optim.param_groups[0]["lr"] = rate * schedule(step / steps)
            inputs = batch(samples if (step * share) % 1 >= 1 - share else tokens, step, rows, width, seed)
            loss, overlaps = loss_function(reader, module, target, inputs.to(device)[:, :-1])
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss of {name} is {loss.item()} at step {step}; try a lower learning rate")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            for optim, _ in optims:
                optim.step()
                optim.zero_grad(set_to_none=True)
            step += 1
            now = time.perf_counter()
            seconds, last = seconds + now - last, now
            smooth = overlaps if smooth is None else 0.95 * smooth + 0.05 * overlaps
            bar.update()
            if step % 25 == 0 or step == steps:
                curve.append([step * rows * width, [round(value, 4) for value in smooth.tolist()], round(seconds, 1)])
                bar.set_postfix(overlap=" ".join(f"{value:.2f}" for value in smooth.tolist()))
            if now - saved_at > SAVE_EVERY_SECONDS:
                save()
                saved_at = now
    save()
    return _save(reader, module, target, held_out, folder / name, own, steps * rows * width, seconds, curve)


def _save(
    reader: Reader,
    module: nn.Module,
    target,
    held_out: np.ndarray,
    path: Path,
    identity: dict,
    seen: int,
    seconds: float,
    curve: list,
) -> Path:
    """Writes bf16 safetensors and `card.json` to `path`; returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().to("cpu", torch.bfloat16).contiguous() for key, value in module.state_dict().items()}
    if isinstance(module, Exits):
        tensors["layers"] = torch.tensor(module.layers)
    if isinstance(module, Eagle):
        module.config.save_pretrained(path)
    save_file(tensors, path / "model.safetensors")
    card = {
        "name": path.name,
        "parameters": sum(p.numel() for p in module.parameters()),
        "target_sha256": identity["target"],
        "tokens_seen": seen,
        "guesses": list(getattr(module, "layers", range(1, getattr(module, "count", STEPS) + 1))),
        "held_out_overlap": [round(value, 4) for value in held_out_overlap(reader, module, target, held_out)],
        "seconds": round(seconds),
        "machine": f"{torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + ' CPU'}, "
        f"{torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "overlap_curve": {"columns": ["tokens", "overlap of each guess in training", "seconds"], "rows": curve},
    }
    save_card(path, card, identity)
    return path
