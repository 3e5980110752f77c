"""The fast backend: a small decoder of our own over the weights of a transformers model.

Two thirds of the time of a small model's forward is spent between the matrix products: in modules, checks and copies.
Here a forward is one plain function. Queries, keys and values come from one product, gate and up projections from
another, weights lie as the kernels read them (see `products`), and the cache is written in place, so that rolling back
only moves a number.

For Llama-shaped models (Llama, Mistral, Qwen2) and GPT-2. Equal to transformers' own forward up to rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, layer_norm, rms_norm, scaled_dot_product_attention, silu

from ..errors import UnsupportedModel
from ..law.distributions import precise
from .batch import FIRST, Slots
from .context import Context, ancestry
from .products import Product, product

# (queries [k, H, D], keys and values of the new tokens [k, G, D], and the cache's) -> [k, H * D]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
# One layer: (x [k, d], cosines and sines [k, 1, D] or None, keys and values of the cache, attend) -> x [k, d]
Block = Callable[..., Tensor]


@dataclass(frozen=True)
class Decoder:
    """A transformer as plain functions. `heads`: key-value heads, G; `size`: dimension of a head, D."""

    embed: Callable[[Tensor, Tensor], Tensor]  # (tokens [k], positions [k]) -> [k, d]
    blocks: tuple[Block, ...]
    norm: Callable[[Tensor], Tensor]  # [k, d] -> [k, d]: the state that the model is left with
    output: Callable[[Tensor], Tensor]  # such states [k, d] -> logits [k, V]
    rotary: tuple[Tensor, Tensor] | None  # cosines and sines by position [context, 1, D]
    heads: int
    size: int
    dtype: torch.dtype
    device: torch.device


def decoder(model) -> Decoder:
    """The decoder of a transformers model; its weights are copied where they are fused. Raises UnsupportedModel for
    other architectures, and for weights that are rounded, packed or on several devices.
    """
    kind = type(model).__name__
    readers = {f"{name}ForCausalLM": _llama for name in ("Llama", "Mistral", "Qwen2")} | {"GPT2LMHeadModel": _gpt2}
    if kind not in readers:
        raise UnsupportedModel(
            f"the fast backend reads Llama, Mistral, Qwen2 and GPT-2 models, not {kind}; use backend='eager'"
        )
    matrices = (t for t in (*model.parameters(), *model.buffers()) if t.ndim == 2)
    try:
        if all(t.is_floating_point() and t.itemsize > 1 and t.device == model.device for t in matrices):
            return readers[kind](model)
    except UnsupportedModel:
        raise
    except (AttributeError, TypeError):  # a layer without a plain matrix, biases that do not fit together
        pass
    raise UnsupportedModel("the fast backend reads plain weights on one device; use backend='eager'")


def fingerprint(model: nn.Module, numbers: bool = False) -> tuple:
    """What a copy of a model's weights depends on, to be compared with itself later: which modules and tensors, and
    what was done to them.

    Changes through `.data` leave a tensor's version as it is (adapters are merged in that way), so `numbers` looks at
    some of each tensor too: all of a vector, a diagonal of a matrix (quantized ones have their own arithmetic, and are
    left out), in single precision where a device has no other. On a GPU this waits for the device, once a text.
    """
    modules = tuple(
        (id(m), type(m), "forward" in vars(m), *map(_hooks, (m._forward_hooks, m._forward_pre_hooks)))
        for m in model.modules()
    )
    tensors = [t.detach() for t in (*model.parameters(), *model.buffers()) if t.layout == torch.strided]
    known = tuple((t.data_ptr(), -1 if t.is_inference() else t._version, t.dtype, t.device, t.shape) for t in tensors)
    if not numbers or any(t.is_meta for t in tensors):
        return modules, known
    sums: dict[torch.device, list[Tensor]] = {}
    for t in tensors:
        if t.numel() and not t.is_quantized:
            t = torch.view_as_real(t) if t.is_complex() else t.view(torch.uint8) if t.itemsize == 1 else t
            step, exact = t.shape[-1] + 1 if t.ndim > 1 else 1, precise(t.device)
            sums.setdefault(t.device, []).append(t.reshape(-1)[::step].sum(dtype=exact))
    # bytes: NaN equals itself
    return modules, known, *(np.from_dlpack(torch.stack(some).to("cpu")).tobytes() for some in sums.values())


def _hooks(hooks: dict) -> int:
    """How many there are beside those by which transformers collects hidden states."""
    return sum(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks.values())


class FastContext(Context):
    """A `Context` whose forwards are the decoder's, with a cache of fixed capacity that doubles when it is full."""

    def __init__(self, language_model, prompt: Sequence[int] = (), batch=None):
        self.decoder: Decoder = language_model.decoder
        super().__init__(language_model, prompt, batch)

    def _empty_cache(self) -> list[tuple[Tensor, Tensor]] | None:
        if self.batch:
            self.slots = self.batch.slots(self.decoder, self._shared)
            self.slots.add(self)
            return None
        self._capacity = min(FIRST, self.language_model.context_length or FIRST)
        return self._allocate()

    def _shared(self, rows: int, capacity: int) -> Slots:
        """An empty cache for so many texts of so many tokens."""
        d, slots = self.decoder, Slots(rows, capacity)
        like = torch.zeros(d.heads, 0, d.size, dtype=d.dtype, device=d.device)
        slots.layers = [(slots.empty(like), slots.empty(like)) for _ in d.blocks]
        return slots

    @property
    def capacity(self) -> int:
        """Tokens for which there is room."""
        return self.slots.capacity if self.slots else self._capacity

    @property
    def cache(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [G, S, D] of each layer."""
        return self.slots.row(self.row) if self.slots else self._cache

    def _allocate(self) -> list[tuple[Tensor, Tensor]]:
        d = self.decoder
        store = torch.empty(len(d.blocks), 2, d.heads, self.capacity, d.size, dtype=d.dtype, device=d.device)
        return [(layer[0], layer[1]) for layer in store]

    def make_room(self, end: int) -> None:
        """Room for `end` tokens."""
        if self.slots:
            self.slots.make_room(end)
        elif end > self._capacity:
            while self._capacity < end:
                self._capacity *= 2
            old, self._cache = self._cache, self._allocate()
            for (keys, values), (old_keys, old_values) in zip(self._cache, old, strict=True):
                keys[:, : self.length] = old_keys[:, : self.length]
                values[:, : self.length] = old_values[:, : self.length]

    def _forward(self, tokens: Tensor, keep: int, parents: Sequence[int] | None) -> Tensor:
        self.make_room(self.length + tokens.shape[1])
        states = self.decoder.norm(run(self.decoder, self.decoder.blocks, tokens[0], self.cache, self.length, parents))
        if self.wants_hidden:
            self.hidden = states[None]
        return self.decoder.output(states[-keep:])[None]

    def embedded(self, tokens: Tensor, positions: Tensor, states: Tensor | None) -> Tensor:
        """What goes into the first block, of tokens of several texts. -> [k, d]"""
        return self.decoder.embed(tokens, positions)

    @staticmethod
    def forward_rows(reads: Sequence) -> list[tuple[Tensor, Tensor]]:
        """(logits [1, keep, V], last states [1, k, d]) of each `batch.Read`, by one forward over all their tokens.

        Products read the tokens of all rows as one matrix, without padding; attention alone goes row by row.
        """
        context, slots = reads[0].context, reads[0].context.slots
        d = context.decoder
        slots.prune()
        reads, order = zip(
            *sorted(zip(reads, range(len(reads)), strict=True), key=lambda pair: pair[0].context.row), strict=True
        )
        starts, counts = [read.context.length for read in reads], [read.count for read in reads]
        seen = max(start + k for start, k in zip(starts, counts, strict=True))
        slots.make_room(seen)
        rows, most = len(slots.members), max(counts)
        mask = np.zeros((rows, most, seen), dtype=bool)
        mask[:, :, 0] = True  # padding attends to one slot, or its softmax would be of nothing
        positions = []
        for read, start, k in zip(reads, starts, counts, strict=True):
            sees, depths = read.layout()
            mask[read.context.row, :k, :start] = True
            mask[read.context.row, :k, start : start + k] = sees
            positions.append(depths + (start if read.position is None else read.position))
        places = np.concatenate([np.arange(k) for k in counts])  # of each token in its row's forward [T]
        row_of = np.repeat([read.context.row for read in reads], counts)
        at = torch.from_numpy(places + np.repeat(starts, counts)).to(d.device)
        whole = len(set(counts)) == 1 and len(reads) == rows
        index = torch.from_numpy(row_of).to(d.device), torch.from_numpy(places).to(d.device)
        attend = attention_of_rows(index, at, whole, torch.from_numpy(mask).to(d.device))
        positions = torch.from_numpy(np.concatenate(positions)).to(d.device)
        tokens = torch.cat([read.tokens[0] for read in reads])
        given = None if reads[0].states is None else torch.cat([read.states for read in reads])
        states = d.norm(
            layers(d, d.blocks, context.embedded(tokens, positions, given), positions, slots.layers, attend)
        )
        own = states.split(counts)
        kept = [read.kept for read in reads]
        logits = d.output(torch.cat([mine[-k:] for mine, k in zip(own, kept, strict=True)])).split(kept)
        found = dict(zip(order, zip(logits, own, strict=True), strict=True))
        return [(found[i][0][None], found[i][1][None]) for i in range(len(reads))]

    def _remove(self, count: int) -> None:
        pass  # what lies behind `length` is overwritten before it is read

    def _stores(self) -> list[tuple[Tensor, Tensor]]:
        return self.cache


def run(
    d: Decoder,
    blocks: Sequence[Block],
    tokens: Tensor,
    cache: Sequence[tuple[Tensor, Tensor]],
    start: int,
    parents: Sequence[int] | None = None,
) -> Tensor:
    """Reads tokens [k] behind `start` cached ones through `blocks`, entering keys and values into the cache.
    -> [k, d]"""
    k = tokens.shape[0]
    end = start + k
    mask = None
    if parents is not None:
        sees, depths = ancestry(parents)
        positions = (depths + start).to(d.device)
        mask = torch.cat([torch.ones(k, start, dtype=torch.bool), sees], 1).to(d.device)
    else:
        positions = torch.arange(start, end, device=d.device)
        if k > 1:
            mask = torch.ones(k, end, dtype=torch.bool, device=d.device).tril(start)
    x = d.embed(tokens, positions)
    return layers(d, blocks, x, positions, cache, attention(slice(start, end), end, mask))


def layers(
    d: Decoder,
    blocks: Sequence[Block],
    x: Tensor,
    positions: Tensor,
    cache: Sequence[tuple[Tensor, Tensor]],
    attend: Attend,
) -> Tensor:
    """Embedded tokens x [k, d] through `blocks`. -> [k, d]"""
    cos, sin = (None, None) if d.rotary is None else (table[positions] for table in d.rotary)
    for block, (keys, values) in zip(blocks, cache, strict=False):
        x = block(x, cos, sin, keys, values, attend)
    return x


def attention(slots: slice | Tensor, seen: int, mask: Tensor | None) -> Attend:
    """Attention of one text's new tokens, whose keys and values go into `slots` of the cache [G, S, D]: each token sees
    what `mask` [k, seen] shows it of the first `seen` slots."""

    def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        keys[:, slots], values[:, slots] = k.transpose(0, 1), v.transpose(0, 1)
        grouped = q.shape[1] != k.shape[1]
        out = scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys[None, :, :seen], values[None, :, :seen], attn_mask=mask, enable_gqa=grouped
        )
        return out[0].transpose(0, 1).reshape(q.shape[0], -1)

    return attend


def attention_of_rows(index: tuple[Tensor, Tensor], at: Tensor, whole: bool, mask: Tensor) -> Attend:
    """Attention of the new tokens of several texts. index: row and place in it of each token [T]; at: its slot [T];
    whole: all rows of the cache [R, G, S, D] have as many; mask [R, K, seen]: as in `attention`."""
    rows, most, seen = mask.shape

    def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        keys[index[0], :, at], values[index[0], :, at] = k, v
        if whole:
            padded = q.view(rows, most, *q.shape[1:])  # [R, K, H, D]
        else:
            padded = q.new_zeros(rows, most, *q.shape[1:])
            padded[index] = q
        out = scaled_dot_product_attention(
            padded.transpose(1, 2),
            keys[:rows, :, :seen],
            values[:rows, :, :seen],
            attn_mask=mask[:, None],
            enable_gqa=q.shape[1] != k.shape[1],
        ).transpose(1, 2)  # [R, K, H, D]
        return (out if whole else out[index]).reshape(q.shape[0], -1)

    return attend


def joint(*modules) -> Product:
    """One product for several linear layers that read the same input: x [k, in] -> [k, all their outputs]."""
    biases = [module.bias for module in modules]
    return product(torch.cat([module.weight for module in modules]), None if biases[0] is None else torch.cat(biases))


def llama_block(module, config) -> Block:
    """One layer of a Llama-shaped model."""
    attn, mlp = module.self_attn, module.mlp
    H, G, D, eps = config.num_attention_heads, config.num_key_value_heads, attn.head_dim, config.rms_norm_eps
    width, half = (config.hidden_size,), D // 2
    qkv, gate_up = joint(attn.q_proj, attn.k_proj, attn.v_proj), joint(mlp.gate_proj, mlp.up_proj)
    out, down = product(attn.o_proj.weight, attn.o_proj.bias), product(mlp.down_proj.weight, mlp.down_proj.bias)
    norm1, norm2 = module.input_layernorm.weight, module.post_attention_layernorm.weight

    def block(x, cos, sin, keys, values, attend):
        heads = qkv(rms_norm(x, width, norm1, eps)).view(-1, H + 2 * G, D)  # [k, H + 2G, D]
        turned = heads[:, : H + G]
        turned = turned * cos + torch.cat([-turned[..., half:], turned[..., :half]], -1) * sin
        x = x + out(attend(turned[:, :H], turned[:, H:], heads[:, H + G :], keys, values))
        gate, up = gate_up(rms_norm(x, width, norm2, eps)).chunk(2, -1)
        return x + down(silu(gate) * up)

    return block


def rotary_tables(embedding, context: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a rotary embedding by position [context, 1, D]."""
    # [1, context, D]
    cos, sin = embedding(torch.zeros(1, dtype=dtype, device=device), torch.arange(context, device=device)[None])
    return cos[0][:, None], sin[0][:, None]


def _llama(model) -> Decoder:
    config, inner = model.config, model.model
    if getattr(config, "rope_parameters", {}).get("rope_type", "default") in ("dynamic", "longrope"):
        raise UnsupportedModel(
            "the fast backend has rotary tables that do not change with the length of the text; use backend='eager'"
        )
    table, norm, eps = inner.embed_tokens.weight, inner.norm.weight, config.rms_norm_eps
    return Decoder(
        lambda tokens, _: embedding(tokens, table),
        tuple(llama_block(module, config) for module in inner.layers),
        lambda x: rms_norm(x, norm.shape, norm, eps),
        product(model.lm_head.weight),
        rotary_tables(inner.rotary_emb, config.max_position_embeddings, model.dtype, model.device),
        config.num_key_value_heads,
        inner.layers[0].self_attn.head_dim,
        model.dtype,
        model.device,
    )


def _gpt2(model) -> Decoder:
    config, inner = model.config, model.transformer
    if (
        config.activation_function != "gelu_new"
        or config.scale_attn_by_inverse_layer_idx
        or not config.scale_attn_weights
    ):
        raise UnsupportedModel(
            "the fast backend reads GPT-2 as OpenAI published it (gelu_new, plain attention scaling); use "
            "backend='eager'"
        )
    H, d, eps = config.n_head, config.n_embd, config.layer_norm_epsilon
    D = d // H

    def layer(module) -> Block:
        qkv, out, up, down = (
            product(conv.weight.T.contiguous(), conv.bias)
            for conv in (module.attn.c_attn, module.attn.c_proj, module.mlp.c_fc, module.mlp.c_proj)
        )
        norm1, norm2 = (module.ln_1.weight, module.ln_1.bias), (module.ln_2.weight, module.ln_2.bias)

        def block(x, cos, sin, keys, values, attend):
            heads = qkv(layer_norm(x, (d,), *norm1, eps)).view(-1, 3, H, D)
            x = x + out(attend(*heads.unbind(1), keys, values))
            return x + down(gelu(up(layer_norm(x, (d,), *norm2, eps)), approximate="tanh"))

        return block

    tokens_table, positions_table = inner.wte.weight, inner.wpe.weight
    norm = (inner.ln_f.weight, inner.ln_f.bias)

    return Decoder(
        lambda tokens, positions: embedding(tokens, tokens_table) + embedding(positions, positions_table),
        tuple(layer(m) for m in inner.h),
        lambda x: layer_norm(x, (d,), *norm, eps),
        product(model.lm_head.weight),
        None,
        H,
        D,
        model.dtype,
        model.device,
    )
