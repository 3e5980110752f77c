"""The parallel block drafter taught at many places at once: masks behind many entries of a text, by one attention.

See `drafters.block`. The masks of an entry see the entries up to it and each other, as they will when they guess.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..drafters.block import Block


def block_states(block: Block, states: Tensor, embeddings: Tensor, anchors: Tensor) -> Tensor:
    """The states that the masks behind some entries reach: [B, A, count, d], which the target's output matrix makes
    logits of.

    states [B, N, d]: the target's, each beside the embedding [B, N, d] of the token behind it; anchors [A]: the entries
    behind which masks stand.
    """
    layer, attn, count = block.layer, block.layer.self_attn, block.count
    entries = block.joined(states, embeddings)
    x = block.masked(entries[:, anchors]).flatten(1, 2)  # [B, A count, d]
    ahead = torch.arange(1, count + 1, device=x.device)
    own = torch.arange(entries.shape[1], device=x.device)
    cos, sin = block.rotary(x, torch.cat([own, (anchors[:, None] + ahead).flatten()])[None])
    whole = layer.input_layernorm(torch.cat([entries, x], 1))
    # [B, H or G, N + A count, D]
    q, k, v = (
        project(whole).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
        for project in (attn.q_proj, attn.k_proj, attn.v_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, cos.to(q.dtype), sin.to(q.dtype))
    text = (own <= anchors[:, None]).repeat_interleave(count, 0)  # [A count, N]
    group = torch.arange(len(anchors), device=x.device).repeat_interleave(count)
    mask = torch.cat([text, group[:, None] == group], 1)
    seen = scaled_dot_product_attention(
        q[:, :, len(own) :], k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
    )  # of the masks alone: what an entry would go on to, nobody reads
    x = x + attn.o_proj(seen.transpose(1, 2).flatten(-2))
    x = block.norm(x + layer.mlp(layer.post_attention_layernorm(x)))
    return x.unflatten(1, (-1, count))


def block_guesses(
    block: Block, target: LlamaForCausalLM, inputs: Tensor, out, offset: Tensor | int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """(states of all guesses [B, A, count, d], the places [A, count] where the target says what each ought to be, the
    tokens before each [B, A, count]) at every `count`-th entry of inputs [B, T].

    out: what the target makes of the inputs, hidden states included; offset: the first entry, 0 <= offset < count (a
    tensor on the inputs' device, or a number). Logits of guess i: states through the output matrix's rows (those of
    `kept`), plus `block.first_order` of the token before it if there is a head. Wanted: out.logits[:, places].
    """
    count, T = block.count, inputs.shape[1]
    anchors = torch.arange(0, T - 2 * count + 1, count, device=inputs.device) + offset
    states = block_states(block, out.hidden_states[-1][:, :-1], target.model.embed_tokens(inputs[:, 1:]), anchors)
    places = anchors[:, None] + torch.arange(1, count + 1, device=inputs.device)
    return states, places, inputs[:, places]
