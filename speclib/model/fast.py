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
from .context import Context, ancestry
from .products import Product, product

# One layer: (x [k, d], cosines and sines [k, 1, D] or None, keys [G, S, D], values, where the new ones go (slots [k] or
# a slice), how many slots are seen, mask [k, seen] or None) -> x [k, d]
Block = Callable[..., Tensor]


@dataclass(frozen=True)
class Decoder:
    """A transformer as plain functions. `heads`: groups of keys and values; `size`: of one head."""

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
    other architectures.
    """
    kind = type(model).__name__
    if kind in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"):
        return _llama(model)
    if kind == "GPT2LMHeadModel":
        return _gpt2(model)
    raise UnsupportedModel(
        f"the fast backend reads Llama, Mistral, Qwen2 and GPT-2 models, not {kind}; use backend='eager'"
    )


def fingerprint(model: nn.Module, numbers: bool = False) -> tuple:
    """What a copy of a model's weights depends on, to be compared with itself later: which modules and tensors, and
    what was done to them.

    Changes through `.data` leave a tensor's version as it is (adapters are merged in that way), so `numbers` looks at
    some of each tensor too:
    one in every row and every column of a matrix. On a GPU this waits for the device, once a text.
    """
    modules = tuple(
        (id(m), type(m), "forward" in vars(m), *map(_hooks, (m._forward_hooks, m._forward_pre_hooks)))
        for m in model.modules()
    )
    tensors = [t.detach() for t in (*model.parameters(), *model.buffers())]
    known = tuple(
        (t.data_ptr(), -1 if t.is_inference() else t._version, t.dtype, t.device, t.shape)
        for t in tensors
        if t.layout == torch.strided
    )
    if not numbers or any(t.is_meta for t in tensors):
        return modules, known
    some = [t.flatten()[:: t.shape[-1] + 1].sum(dtype=torch.float64) for t in tensors if t.numel()]
    return modules, known, np.from_dlpack(torch.stack(some).to("cpu")).tobytes()  # bytes: NaN equals itself


def _hooks(hooks: dict) -> int:
    """How many there are beside those by which transformers collects hidden states."""
    return sum(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks.values())


class FastContext(Context):
    """A `Context` whose forwards are the decoder's, with a cache of fixed capacity that doubles when it is full."""

    def __init__(self, language_model, prompt: Sequence[int] = ()):
        self.decoder: Decoder = language_model.decoder
        super().__init__(language_model, prompt)

    def _empty_cache(self) -> list[tuple[Tensor, Tensor]]:
        self.capacity = min(256, self.language_model.context_length or 256)
        return self._allocate()

    def _allocate(self) -> list[tuple[Tensor, Tensor]]:
        d = self.decoder
        store = torch.empty(len(d.blocks), 2, d.heads, self.capacity, d.size, dtype=d.dtype, device=d.device)
        return [(layer[0], layer[1]) for layer in store]

    def _grow(self, needed: int) -> None:
        while self.capacity < needed:
            self.capacity *= 2
        old, self._cache = self._cache, self._allocate()
        for (keys, values), (old_keys, old_values) in zip(self._cache, old, strict=True):
            keys[:, : self.length] = old_keys[:, : self.length]
            values[:, : self.length] = old_values[:, : self.length]

    def _forward(self, tokens: Tensor, keep: int, parents: Sequence[int] | None) -> Tensor:
        start, end = self.length, self.length + tokens.shape[1]
        if end > self.capacity:
            self._grow(end)
        states = self.decoder.norm(run(self.decoder, self.decoder.blocks, tokens[0], self._cache, start, parents))
        if self.wants_hidden:
            self.hidden = states[None]
        return self.decoder.output(states[-keep:])[None]

    def _remove(self, count: int) -> None:
        pass  # what lies behind `length` is overwritten before it is read

    def _move(self, places: list[int], start: int) -> None:
        index = torch.tensor(places, device=self.decoder.device)
        for keys, values in self._cache:  # [G, S, D]
            keys[:, start : start + len(places)] = keys[:, index]
            values[:, start : start + len(places)] = values[:, index]


def run(
    d: Decoder,
    blocks: Sequence[Block],
    tokens: Tensor,
    cache: Sequence[tuple[Tensor, Tensor]],
    start: int,
    parents: Sequence[int] | None = None,
) -> Tensor:
    """Reads tokens [k] behind `start` cached ones through `blocks`, entering keys and values into the cache. -> [k,
    d]
    """
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
    return through(d, blocks, tokens, positions, slice(start, end), end, cache, mask)


def through(
    d: Decoder,
    blocks: Sequence[Block],
    tokens: Tensor,
    positions: Tensor,
    slots: slice | Tensor,
    seen: int,
    cache: Sequence[tuple[Tensor, Tensor]],
    mask: Tensor | None,
) -> Tensor:
    """Tokens [k] through `blocks`, entered into `slots` of the cache, each seeing what `mask` [k, seen] shows it of the
    first `seen` slots. -> [k, d]
    """
    return layers(d, blocks, d.embed(tokens, positions), positions, slots, seen, cache, mask)


def layers(
    d: Decoder,
    blocks: Sequence[Block],
    x: Tensor,
    positions: Tensor,
    slots: slice | Tensor,
    seen: int,
    cache: Sequence[tuple[Tensor, Tensor]],
    mask: Tensor | None,
) -> Tensor:
    """The same for tokens that are embedded already, x [k, d] -> [k, d]"""
    cos, sin = (None, None) if d.rotary is None else (table[positions] for table in d.rotary)
    for block, (keys, values) in zip(blocks, cache, strict=False):
        x = block(x, cos, sin, keys, values, slots, seen, mask)
    return x


def _attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, grouped: bool, scale: float) -> Tensor:
    """q [k, H, D] over cached keys [G, S, D] -> [k, H * D]"""
    out = scaled_dot_product_attention(
        q.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, scale=scale, enable_gqa=grouped
    )
    return out[0].transpose(0, 1).reshape(q.shape[0], -1)


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

    def block(x, cos, sin, keys, values, slots, seen, mask):
        heads = qkv(rms_norm(x, width, norm1, eps)).view(-1, H + 2 * G, D)  # [k, H + 2G, D]
        turned = heads[:, : H + G]
        turned = turned * cos + torch.cat([-turned[..., half:], turned[..., :half]], -1) * sin
        keys[:, slots] = turned[:, H:].transpose(0, 1)
        values[:, slots] = heads[:, H + G :].transpose(0, 1)
        x = x + out(_attend(turned[:, :H], keys[:, :seen], values[:, :seen], mask, H != G, D**-0.5))
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

        def block(x, cos, sin, keys, values, slots, seen, mask):
            heads = qkv(layer_norm(x, (d,), *norm1, eps)).view(-1, 3, H, D)
            keys[:, slots] = heads[:, 1].transpose(0, 1)
            values[:, slots] = heads[:, 2].transpose(0, 1)
            x = x + out(_attend(heads[:, 0], keys[:, :seen], values[:, :seen], mask, False, D**-0.5))
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
