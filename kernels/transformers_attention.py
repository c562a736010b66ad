"""varlen_attention as an attention implementation of transformers.

    register_attention()
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="distill")
    model(input_ids=ids[1,T], position_ids=positions[1,T], use_cache=False, cu_seq_lens_q=cu, cu_seq_lens_k=cu,
          max_length_q=longest, max_length_k=longest, plan=attention_plan(cu, T, longest))

The keyword names are Hugging Face's own for packed input; `plan` is optional and saves its making in every layer.
No mask function is registered, so the model builds no mask and the documents' bounds arrive here as they are.
"""

from typing import Any

import torch
from torch import Tensor

from .attention import AttentionPlan, varlen_attention

NAME = "distill"
# What some models give their attention that changes its result and that ours does not know: sinks, biases, chosen keys.
UNKNOWN = ("s_aux", "position_bias", "indices", "block_indices")


def register_attention() -> str:
    """Makes the implementation known to transformers; returns the name to give as attn_implementation."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    return NAME


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    plan: AttentionPlan | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """out[1,T,Hq,D] of query[1,Hq,T,D], key and value[1,Hk,T,D]; refuses to run where documents could mix."""
    if cu_seq_lens_q is None:
        raise ValueError("cu_seq_lens_q: got None, takes the documents' bounds; without them documents would mix")
    if cu_seq_lens_k is not None and cu_seq_lens_k is not cu_seq_lens_q:
        same = cu_seq_lens_k.shape == cu_seq_lens_q.shape and (
            cu_seq_lens_q.device.type != "cpu" or torch.equal(cu_seq_lens_k, cu_seq_lens_q)
        )
        if not same:
            raise ValueError("cu_seq_lens_k: got other bounds than cu_seq_lens_q, takes the same")
    if max_length_q is None:
        raise ValueError("max_length_q: got None, takes the longest document's length")
    if attention_mask is not None:
        raise ValueError("attention_mask: got a mask, takes None: packed documents are told apart by cu_seq_lens_q")
    if dropout:
        raise ValueError(f"dropout: got {dropout}, takes 0 (set attention_dropout=0 in the model's config)")
    if query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        found = f"query {tuple(query.shape)} and key {tuple(key.shape)}"
        raise ValueError(f"query: got {found}, takes one packed row without a cache, [1, heads, T, D]")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise ValueError("module: got a bidirectional attention layer, takes causal ones")
    layer_type = getattr(module, "layer_type", None)
    if layer_type == "chunked_attention" or (layer_type == "sliding_attention" and sliding_window is None):
        raise ValueError(f"module: got a layer of {layer_type} whose bounds are in its mask only, takes no such layers")
    for name in UNKNOWN:
        if others.get(name) is not None:
            raise ValueError(
                f"{name}: got one, takes None: this attention has no such thing, so it cannot run this model"
            )
    if query.dtype != value.dtype:  # rotary embedding in float32 beside a projection in the autocast dtype
        query, key = query.to(value.dtype), key.to(value.dtype)
    out = varlen_attention(
        # squeeze, not [0]: the backward of an index fills a tensor of zeros
        *(x.squeeze(0).transpose(0, 1) for x in (query, key, value)),
        cu_seq_lens_q,
        max_length_q,
        scale=scaling,
        window=sliding_window,
        softcap=softcap,
        plan=plan,
    )
    return out.unsqueeze(0), None
