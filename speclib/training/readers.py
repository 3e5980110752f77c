"""Parallel heads, early exits and eagle: small readers of a frozen target, taught by its own distributions.

All learn from one forward of the target per batch, and lose what the drafts lose: total variation, which is what
acceptance is, and some divergence (see `loop.distances`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..drafters.eagle import Eagle
from ..drafters.heads import Heads
from ..drafters.layer_skip import Exits
from .loop import DEVICE, Training, adamw, distances, muon, run
from .state import identity, need
from .train import batch, load

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
    loss, variation = distances(guessed, wanted)  # [B, T', count]
    weights = reader.discount ** torch.arange(loss.shape[-1], device=loss.device)
    return (loss.mean((0, 1)) * weights).sum() / weights.sum(), 1 - variation.detach().mean((0, 1))


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


def optimizers(reader: Reader, module: nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW, and for a reader that asks for it Muon for the matrices."""
    matrices = [p for p in module.parameters() if p.ndim == 2] if reader.muon_rate else []
    others = [p for p in module.parameters() if p.ndim != 2 or not reader.muon_rate]
    found = [adamw(others, reader.learning_rate, memory=0.98, decay=0.01)]
    return [*found, muon((matrices, reader.muon_rate))] if matrices else found


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
    for a reader that asks for it. Raises TrainingError without a target, for a state of another training, or when the
    loss stops being finite (see `loop.run`).
    """
    need(name, target_folder)
    reader, target = READERS[name], load(target_folder).requires_grad_(False)
    torch.manual_seed(seed)
    module = reader.make(target).to(DEVICE)
    rows, share, amount = rows or reader.rows, reader.samples if samples is not None else 0.0, amount or reader.tokens
    loss_function = torch.compile(loss_of, dynamic=False) if compile else loss_of

    def step(number: int, progress: float):
        inputs = batch(samples if (number * share) % 1 >= 1 - share else tokens, number, rows, width, seed)
        loss, overlaps = loss_function(reader, module, target, inputs.to(DEVICE)[:, :-1])
        return loss, [loss, overlaps], rows * width

    def save(path: Path) -> dict:
        path.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.to("cpu", torch.bfloat16).contiguous() for key, value in module.state_dict().items()}
        if isinstance(module, Exits):
            tensors["layers"] = torch.tensor(module.layers)
        if isinstance(module, Eagle):
            module.config.save_pretrained(path)
        save_file(tensors, path / "model.safetensors")
        return {
            "target_sha256": digest,
            "guesses": list(getattr(module, "layers", range(1, getattr(module, "count", STEPS) + 1))),
            "held_out_overlap": [round(value, 4) for value in held_out_overlap(reader, module, target, held_out)],
        }

    digest = pooch.file_hash(str(target_folder / "model.safetensors"))
    data = (tokens, held_out) if samples is None else (tokens, held_out, samples)
    settings = {"name": name, "amount": amount, "seed": seed, "rows": rows, "width": width, "samples": share}
    own, columns = identity(None, *data, target=digest, **settings), ("training loss", "overlap of each guess")
    whole = max(1, amount // (rows * width)) * rows * width
    return run(Training(name, module, optimizers(reader, module), step, save, whole, own, columns), folder)
