"""Causal attention over packed documents in Triton: "triton" of varlen_attention.

The launches of attention_kernels.py, as operators that torch.compile keeps whole and autograd knows.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .attention_configurations import (
    DELTA_ROWS,
    Blocks,
    Configuration,
    block_constants,
    configuration,
    delta_constants,
)
from .attention_kernels import LOG2_E, d_keys_kernel, d_queries_kernel, delta_kernel, forward_kernel
from .attention_tiles import TILE_TOKENS, AttentionTiles

# Row strides are multiplied inside a block in int32.
LARGEST_STRIDE = (2**31 - 1) // (2 * TILE_TOKENS)


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiles: AttentionTiles,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    blocks: Configuration | None = None,
) -> Tensor:
    """out[T,Hq,D] of q[T,Hq,D], k and v[T,Hk,D] of one dtype, one of DTYPES, with D up to 256.

    Differentiable once, and always with the same bits. `blocks` overrides the configuration made for the device.
    """
    out, _ = _attention(
        q,
        k,
        v,
        tiles.by_queries,
        tiles.by_keys,
        tiles.tile,
        scale,
        window or 0,
        softcap or 0.0,
        [number for kernel in blocks or () for number in kernel],
    )
    return out


def _configuration(blocks: list[int], q: Tensor, softcap: float) -> Configuration:
    if blocks:
        return Configuration(*(Blocks(*blocks[i : i + 4]) for i in (0, 4, 8)))
    return configuration(_architecture(q.device), q.shape[2], q.dtype, softcap > 0)


@cache
def _architecture(device: torch.device) -> int | str | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return 10 * properties.major + properties.minor


@torch.library.custom_op("distill::varlen_attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    by_queries: Tensor,
    by_keys: Tensor,
    tile: int,
    scale: float,
    window: int,
    softcap: float,
    blocks: list[int],
) -> tuple[Tensor, Tensor]:
    """out[T,Hq,D] and lse2[Hq,T], the base-2 log-sum-exp of the scores.

    window and softcap are 0 for none; blocks are the numbers of a Configuration, or none for the device's own.
    """
    q, k, v = (_rows(x) for x in (q, k, v))
    tokens, heads, head_dim = q.shape
    out = torch.empty((tokens, heads, head_dim), dtype=q.dtype, device=q.device)
    lse2 = torch.empty((heads, tokens), dtype=torch.float32, device=q.device)
    shape = _configuration(blocks, q, softcap).forward
    with _current(q.device):
        forward_kernel[(by_queries.shape[1] * (tile // shape.queries) * heads,)](
            q,
            k,
            v,
            out,
            lse2,
            by_queries,
            by_queries.shape[1],
            tokens,
            *_strides(q, k, v),
            heads,
            heads // k.shape[1],
            min(window, tokens),
            *_factors(scale, softcap),
            **block_constants(head_dim, tile, shape, window, softcap),
        )
    return out, lse2


@_attention.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op("distill::varlen_attention_backward", mutates_args=())
def _attention_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse2: Tensor,
    by_queries: Tensor,
    by_keys: Tensor,
    tile: int,
    scale: float,
    window: int,
    softcap: float,
    blocks: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv."""
    d_out, q, k, v, out = _rows(d_out), _rows(q), _rows(k), _rows(v), out.contiguous()
    tokens, heads, head_dim = q.shape
    key_heads = k.shape[1]
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse2)
    _, for_keys, for_queries = _configuration(blocks, q, softcap)
    strides = _strides(q, k, v, d_out)
    options = (heads // key_heads, min(window, tokens), *_factors(scale, softcap), scale)
    with _current(q.device):
        delta_kernel[(-(-tokens // DELTA_ROWS) * heads,)](
            out,
            d_out,
            delta,
            tokens,
            *_strides(d_out),
            heads,
            **delta_constants(head_dim),
        )
        d_keys_kernel[(by_keys.shape[1] * (tile // for_keys.keys) * key_heads,)](
            q,
            k,
            v,
            d_out,
            lse2,
            delta,
            dk,
            dv,
            by_keys,
            by_keys.shape[1],
            tokens,
            *strides,
            key_heads,
            *options,
            **block_constants(head_dim, tile, for_keys, window, softcap),
        )
        d_queries_kernel[(by_queries.shape[1] * (tile // for_queries.queries) * heads,)](
            q,
            k,
            v,
            d_out,
            lse2,
            delta,
            dq,
            by_queries,
            by_queries.shape[1],
            tokens,
            *strides,
            heads,
            *options,
            **block_constants(head_dim, tile, for_queries, window, softcap),
        )
    return dq, dk, dv


@_attention_backward.register_fake
def _(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, by_queries, by_keys, *ctx.options = inputs
    ctx.set_materialize_grads(False)  # nobody asks for a gradient through lse2
    ctx.save_for_backward(q, k, v, *output, by_queries, by_keys)


def _differentiate(ctx: Any, d_out: Tensor, d_lse2: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse2, by_queries, by_keys = ctx.saved_tensors
    d_qkv = _attention_backward(d_out, q, k, v, out, lse2, by_queries, by_keys, *ctx.options)
    return *d_qkv, None, None, *(None for _ in ctx.options)


_attention.register_autograd(_differentiate, setup_context=_save)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _rows(x: Tensor) -> Tensor:
    """x[T,H,D] with its columns next to each other and strides the kernels can multiply."""
    return x if x.stride(2) == 1 and x.stride(0) <= LARGEST_STRIDE else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


def _factors(scale: float, softcap: float) -> tuple[float, float]:
    """inner, to_log2: the scores in base 2 are to_log2 * tanh(inner * x), or to_log2 * x without a softcap."""
    if softcap:
        return scale / softcap, softcap * LOG2_E
    return 1.0, scale * LOG2_E
