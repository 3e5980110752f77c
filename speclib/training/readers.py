"""Training of the drafters that read a target's hidden states: parallel heads, early exits, eagle, parallel block; and
of a small draft model for another target than the embedded one, which reads the text alone.

The target stays as it is. A forward of it over each window of text supplies both the input (its hidden states) and the
goal (its distribution p at every place). The loss is one of `loop.LOSSES`, distances of the module's q from p:
total variation, which is 1 - alpha, the Kullback-Leibler divergence, or others made of the two.
"""

import json
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pooch
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..drafters.block import Block
from ..drafters.eagle import Eagle
from ..drafters.heads import Heads
from ..drafters.layer_skip import Exits
from ..errors import TrainingError
from ..files import reading
from .block import block_guesses
from .corpus import Corpus
from .loop import DEVICE, Training, adamw, distances, muon, run
from .recipes import TARGET
from .state import identity
from .train import batch, load, samples_of, spread

EXIT_LAYERS = (1, 2, 3, 4, 6, 8, 12, 16, 20)  # of the target's; those it has not are left out
HEADS = 4
# The shape of a small draft model: two layers are the fewest that can look up what followed an earlier occurrence of a
# word. Thin, because its output matrix, over the whole vocabulary, is most of what a guess reads.
DRAFT_WIDTH, DRAFT = 256, {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 704}


@dataclass(frozen=True)
class Reader:
    """The settings of a training. The last word of the name is the kind of module (see `make` and `guesses`)."""

    name: str
    tokens: int
    learning_rate: float = 2e-3  # of AdamW
    muon_rate: float | None = None  # of Muon for the matrices, or None: AdamW learns them too
    rows: int = 4  # windows in a batch
    width: int = 256  # tokens in a window
    samples: float = 0.0  # share of the batches that are the target's own text
    discount: float = 1.0  # what each further guess weighs in the loss, which the check reaches less often
    keeps: int | None = None  # how many tokens it may guess, the most frequent ones; None: all
    loss: str = "both"  # see `loop.LOSSES`
    count: int = HEADS  # guesses at once, of heads and of a block; guesses in a row that eagle is trained for
    rank: int = 0  # of a block's first-order head; 0: none
    feed_forward: int = 4  # times the target's width
    start: Path | None = field(default=None, repr=False)  # a folder with one of the same shape, from which it goes on
    start_sha256: str | None = None  # of its weights, which decide what comes of it; where they lie does not

    @property
    def kind(self) -> str:
        return self.name.rpartition("-")[2]


READERS = {  # tokens: steps x those of a batch
    "heads": Reader("heads", 585 * 1024),
    "exits": Reader("exits", 390 * 1024),
    "eagle": Reader("eagle", 2929 * 2048, muon_rate=0.02, rows=8, samples=0.25, discount=0.8),
    "block": Reader("block", 1464 * 2048, muon_rate=0.02, rows=8, samples=0.25, discount=0.8, rank=32),
}
# For another target: its own answers are all that is read; eagle and block guess the frequent tokens of its large
# vocabulary only.
_OTHER = {"samples": 0.0, "keeps": 16_384, "rows": 16, "width": 512}
OTHERS = {
    "exits": replace(READERS["exits"], rows=2),  # a row of logits over the whole vocabulary for each exit
    "eagle": replace(READERS["eagle"], tokens=6_000_000, count=2, **_OTHER),
    "block": replace(READERS["block"], tokens=6_000_000, count=6, rank=16, feed_forward=3, **_OTHER),
    "draft": Reader("draft", 6_000_000, muon_rate=0.02, width=512),
}


def make(reader: Reader, target: LlamaForCausalLM, kept: Tensor | None = None) -> nn.Module:
    """A fresh module of the reader's kind for a target; `kept`: see `Eagle`."""
    config, kind = target.config, reader.kind
    if kind == "heads":
        return Heads(reader.count, config.hidden_size)
    if kind == "exits":
        return Exits(tuple(layer for layer in EXIT_LAYERS if layer < config.num_hidden_layers), config.hidden_size)
    if kind == "draft":
        return draft_model(target)
    same = "vocab_size hidden_size num_attention_heads num_key_value_heads max_position_embeddings".split()
    shape = {"num_hidden_layers": 1, "intermediate_size": reader.feed_forward * config.hidden_size}
    own = LlamaConfig(**shape, **{key: getattr(config, key) for key in same})
    return Block(own, reader.count, reader.rank, kept) if kind == "block" else Eagle(own, kept)


def started(reader: Reader, target: LlamaForCausalLM, kept: Tensor | None = None) -> tuple[nn.Module, int]:
    """(the module to train, how many tokens it has read): a fresh one, or that of `reader.start`, which may guess the
    tokens that it could before. Raises TrainingError if that is of another shape, or nothing is there.
    """
    if not reader.start:
        return make(reader, target, kept), 0
    with reading(reader.start, f"start from one of the shape of {reader.name}", TrainingError):
        tensors = load_file(reader.start / "model.safetensors")
        module = make(reader, target, tensors["kept"])
        module.load_state_dict(tensors)
        return module, json.loads((reader.start / "card.json").read_text("utf-8"))["tokens_seen"]


def draft_model(target: LlamaForCausalLM) -> LlamaForCausalLM:
    """A thin Llama of the target's vocabulary. Its embeddings, which are its output matrix too, begin as the target's
    in their main directions, so that little text is enough to learn the rest.
    """
    same = "vocab_size max_position_embeddings bos_token_id eos_token_id".split()
    words = {"tie_word_embeddings": True, **{key: getattr(target.config, key) for key in same}}
    width = min(DRAFT_WIDTH, target.config.hidden_size // 8 * 8)  # each head's is even
    model = LlamaForCausalLM(LlamaConfig(hidden_size=width, **DRAFT, **words))
    table = target.get_input_embeddings().weight.float()  # [V, d]
    directions = torch.linalg.eigh(table.mT @ table).eigenvectors[:, -width:]  # of the largest eigenvalues
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(table @ directions)
    return model


def most_frequent(tokens: np.ndarray, count: int) -> Tensor:
    """The ids of the `count` most frequent tokens, ascending. [count]"""
    counts = np.bincount(tokens, minlength=count)
    return torch.from_numpy(np.sort(np.argsort(-counts, kind="stable")[:count]))


def guesses(
    module: nn.Module, target: LlamaForCausalLM, inputs: Tensor, out, steps: int
) -> tuple[Tensor, Tensor, Tensor | float]:
    """A module's guesses at the T' usable places of a batch (of a block every `count`-th), and where in the target's
    output each finds its goal.

    inputs: tokens [B, T]; out: the target's output for them, with hidden states; steps: guesses of eagle. Returns

    - states [B, T', count, d], which the target's output matrix (a draft's its own) turns into logits of q;
    - places [T', count or 1]: guess j at place i is to match the target's distribution at position places[i, j];
    - what a first-order head adds to those logits [B, T', count, V or K], or 0.

    With the target's state at t (s_t) and token t + 1, each kind is to match the target's distribution at

        head i       s_t, token t + 1                  t + i + 1
        exit k       s_t after layer k                 t
        draft        tokens up to t                    t
        eagle        s_t or eagle's own, token t + 1   t + 1
        block mask i all s up to t, tokens to t + 1    t + i + 1
    """
    embed, last = target.model.embed_tokens, out.hidden_states[-1]
    place = torch.arange(inputs.shape[1], device=inputs.device)[:, None]
    if isinstance(module, Heads):
        n, T = module.count, inputs.shape[1]
        states = module(last[:, : T - n], embed(inputs[:, 1 : T - n + 1]))  # [B, T-n, n, d]
        return states, place[: T - n] + 1 + place[:n].mT, 0.0
    if isinstance(module, Exits):
        exits = [target.model.norm(module(out.hidden_states[layer], layer)) for layer in module.layers]
        return torch.stack(exits, 2), place, 0.0
    if isinstance(module, LlamaForCausalLM):
        return module.model(inputs, use_cache=False).last_hidden_state[:, :, None], place, 0.0
    if isinstance(module, Block):
        # an offset, so that not the same places are learnt from in each epoch
        states, places, before = block_guesses(module, target, inputs, out, inputs.sum() % module.count)
        return states, places, module.first_order(before) if module.rank else 0.0
    return unrolled(module, last[:, :-1], embed(inputs[:, 1:]), steps)[:, steps - 1 :], place[steps:], 0.0


def unrolled(eagle: Eagle, states: Tensor, embeddings: Tensor, steps: int) -> Tensor:
    """Eagle's guesses as in decoding, where each stands on states of its own, for all places of a text at once: the
    target's states [B, N, d], the embeddings of the tokens behind them [B, N, d] -> eagle's states [B, N, steps, d].

    Result s of a place is the guess there after s guesses in a row: the last s cache entries that it sees (`keys[1]` to
    `keys[s]`) are made of states that eagle itself reached at steps 0 to s - 1, and all before them (`keys[0]`) of the
    target's. In the attention that is one ordinary causal block, cut off s places back (`far`), and s single entries
    (`near`). The first `steps` - 1 places have too little text before them and mean nothing. After the "training-time
    test" of EAGLE-3 (2503.01840, section 3.2).
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
        k, v = (heads.repeat_interleave(q.shape[1] // k.shape[1], 1) for heads in (k, v))  # of a group each
        keys.append(k)
        values.append(v)
        far = (q @ keys[0].mT).float()  # [B, H, N, N]
        far = far.masked_fill(~torch.ones_like(far[0, 0], dtype=torch.bool).tril(-s), -torch.inf)
        # [B, H, N, 1] each
        near = [(q * _later(keys[i], s - i)).sum(-1, keepdim=True).float() for i in range(1, s + 1)]
        weights = torch.softmax(torch.cat([far, *near], -1) * attn.scaling, -1).to(v.dtype)
        seen = weights[..., : far.shape[-1]] @ values[0]
        seen = seen + sum(weights[..., i - 1 - s, None] * _later(values[i], s - i) for i in range(1, s + 1))
        x = x + attn.o_proj(seen.transpose(1, 2).flatten(-2))
        x = eagle.norm(x + layer.mlp(layer.post_attention_layernorm(x)))
        reached.append(x)
        states = _later(x, 1)
    return torch.stack(reached, 2)


def _later(x: Tensor, places: int) -> Tensor:
    """x [..., N, D] moved so many places on, zeros before it."""
    return pad(x, (0, 0, places, 0))[..., : x.shape[-2], :]


class Seen:
    """The target's last states at the tokens of windows [B, T] -> [B, T, d], each window looked at once: all layers of
    the target are most of a step, and the windows of one epoch come again in the next. At most `room` bytes are kept.
    """

    def __init__(self, target: LlamaForCausalLM, room: int = 4_000_000_000):
        self.target, self.room, self.kept = target, room, {}

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        rows = [row.tobytes() for row in inputs.cpu().numpy()]
        new = [k for k, row in enumerate(rows) if row not in self.kept]
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
            made = self.target.model(inputs[new], use_cache=False).last_hidden_state if new else []
        here = {rows[k]: states for k, states in zip(new, made, strict=True)}
        for row, states in here.items():
            if (len(self.kept) + 1) * states.nbytes <= self.room:
                self.kept[row] = states.clone()  # alone: not a part of what else was made
        return torch.stack([self.kept[row] if row in self.kept else here[row] for row in rows])


def loss_of(
    reader: Reader,
    module: nn.Module,
    target: LlamaForCausalLM,
    inputs: Tensor,
    counts: Tensor,
    last: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(mean loss, mean overlap of each guess with the target [count]) on tokens [B, T]; counts [B, T]: whether what the
    target says at a place is to be learnt; last: its last states [B, T, d], where they are known (see `Seen`).
    """
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        with torch.no_grad():
            if last is None:
                out = target(inputs, use_cache=False, output_hidden_states=True)
            else:
                out = CausalLMOutput(logits=target.lm_head(last), hidden_states=(last,))
        states, places, added = guesses(module, target, inputs, out, reader.count)
        writes = module if isinstance(module, LlamaForCausalLM) else target
        kept, matrix = getattr(module, "kept", None), writes.lm_head.weight
        guessed = linear(states, matrix if kept is None else matrix[kept]) + added  # [B, T', count, V or K]
    loss, variation = distances(guessed, out.logits[:, places], kept, reader.loss)  # [B, T', count]
    counts = counts[:, places].expand_as(loss).float()
    loss, variation = ((x * counts).sum((0, 1)) / counts.sum((0, 1)).clamp(min=1) for x in (loss, variation.detach()))
    weights = reader.discount ** torch.arange(len(loss), device=loss.device)
    return (loss * weights).sum() / weights.sum(), 1 - variation


@torch.no_grad()
def held_out_overlap(
    reader: Reader, module: nn.Module, target: LlamaForCausalLM, tokens: np.ndarray, counts: np.ndarray
) -> list[float]:
    """1 - total variation of each guess, over evenly spread held-out windows, at the places [N] that count."""
    windows = (spread(x, 32, reader.width).split(4) for x in (tokens, counts))
    rows = [loss_of(reader, module, target, *window)[1] for window in zip(*windows, strict=True)]
    return torch.stack(rows).mean(0).tolist()


def optimizers(reader: Reader, module: nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW, and for a reader that asks for it Muon for the matrices."""
    # rows of a table, which is no map between spaces: of a block, and of a draft
    tables = ("masks", "before", "after", "model.embed_tokens.weight")
    matrices, others = [], []
    for name, p in module.named_parameters():
        (matrices if reader.muon_rate and p.ndim == 2 and name not in tables else others).append(p)
    found = [adamw(others, reader.learning_rate, memory=0.98, decay=0.01)]
    return [*found, muon((matrices, reader.muon_rate))] if matrices else found


def train(
    reader: Reader, corpus: Corpus, folder: Path, seed: int = 0, compile: bool = True, other: Path | None = None
) -> Path:
    """Trains a reader for the target in `folder`, or in the folder `other`; writes safetensors and a card to
    `folder`/name (see `loop.run`).

    Raises TrainingError without a target, for a state of another training, or when the loss stops being finite.
    """
    place = other or folder / TARGET.name
    what = identity(reader, corpus, seed, *([] if other else [place]))
    if other:
        what["weights"][place.name] = pooch.file_hash(str(place / "model.safetensors"))
    target = load(place).requires_grad_(False)
    samples = samples_of(place, corpus.tokens) if reader.samples else None
    torch.manual_seed(seed)
    counts, held_out_counts = (
        np.ones(len(tokens), bool) if own is None else np.append(own[1:], False)  # whether the next is the target's own
        for tokens, own in ((corpus.tokens, corpus.written), (corpus.held_out_tokens, corpus.held_out_written))
    )
    kept = most_frequent(corpus.tokens[1:][counts[:-1]], reader.keeps) if reader.keeps else None
    module, before = started(reader, target, kept)
    module = module.to(DEVICE)
    loss_function = torch.compile(loss_of, dynamic=False) if compile else loss_of
    seen = Seen(target) if other and reader.kind != "exits" else lambda inputs: None  # exits read earlier states

    def step(number: int, progress: float):
        text = samples if (number * reader.samples) % 1 >= 1 - reader.samples else corpus.tokens
        number += before // (reader.rows * reader.width)  # one that was trained before goes on in the text, too
        inputs = batch(text, number, reader.rows, reader.width, seed)[:, :-1]
        learnt = batch(counts, number, reader.rows, reader.width, seed)[:, :-1] if other else torch.ones_like(inputs)
        loss, overlaps = loss_function(reader, module, target, inputs, learnt, seen(inputs))
        return loss, [loss, overlaps], inputs.numel()

    def covered(kept: Tensor) -> float:
        return round(float(np.isin(corpus.held_out_tokens[1:][held_out_counts[:-1]], kept.cpu().numpy()).mean()), 4)

    def save(path: Path) -> dict:
        path.mkdir(parents=True, exist_ok=True)
        if isinstance(module, LlamaForCausalLM):
            deepcopy(module).to(torch.bfloat16).save_pretrained(path)
            corpus.tokenizer.save_pretrained(path)
        else:
            write(path)
        overlaps = held_out_overlap(reader, module, target, corpus.held_out_tokens, held_out_counts)
        return {
            "target_sha256": what["weights"][place.name],
            **({"corpus": "the target's own answers"} if other else {}),
            **({"started_from": reader.start.name} if reader.start else {}),
            **({"kept": len(module.kept), "kept_share_of_held_out": covered(module.kept)} if reader.keeps else {}),
            "guesses": list(getattr(module, "layers", range(1, len(overlaps) + 1))),
            "held_out_overlap": [round(value, 4) for value in overlaps],
        }

    def write(path: Path) -> None:
        tensors = {key: value.to("cpu").contiguous() for key, value in module.state_dict().items()}
        tensors = {key: v.to(torch.bfloat16) if v.is_floating_point() else v for key, v in tensors.items()}
        if isinstance(module, Exits):
            tensors["layers"] = torch.tensor(module.layers)
        if isinstance(module, Eagle):
            module.config.save_pretrained(path)
        save_file(tensors, path / "model.safetensors")

    columns = ("training loss", "overlap of each guess")
    learning = optimizers(reader, module)
    return run(Training(reader, module, learning, step, save, what, columns, before=before), folder)
