"""Causal attention over packed documents: arguments, the choice of an implementation, and the call of it.

The specification is `reference.varlen_attention`.
"""

from functools import cache
from importlib.util import find_spec
from inspect import signature
from itertools import pairwise

import torch
from torch import Tensor

from . import reference
from .padded_attention import AttentionPlan, attention_plan, document_bounds, padded_attention

__all__ = ["IMPLEMENTATIONS", "attention_plan", "choose_attention", "unsupported_attention", "varlen_attention"]

# In order of preference.
IMPLEMENTATIONS = ("flash-attn", "torch-varlen", "sdpa", "eager")


def unsupported_attention(
    implementation: str,
    device_type: str,
    dtype: torch.dtype,
    head_dim: int,
    *,
    softcap: float | None = None,
    deterministic: bool = False,
) -> str | None:
    """Why `implementation` cannot do this, or None if it can."""
    if implementation in ("sdpa", "eager"):
        if implementation == "sdpa" and deterministic and device_type != "cpu":
            return "its backward is not deterministic on this device"
        return None
    if device_type != "cuda":
        return f"it runs on cuda, not on {device_type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {dtype}"
    if head_dim > 256 or head_dim % 8:
        return f"it takes head sizes that are multiples of 8 up to 256, not {head_dim}"
    if implementation == "flash-attn":
        return None if find_spec("flash_attn") else "flash-attn is not installed"
    if softcap is not None:
        return "it has no softcap"
    if deterministic and not torch.are_deterministic_algorithms_enabled():
        return "it is deterministic only under torch.use_deterministic_algorithms(True)"
    if "window_size" not in _torch_varlen_parameters():
        return f"torch {torch.__version__} has no torch.nn.attention.varlen with window_size"
    return None


def choose_attention(
    device_type: str,
    dtype: torch.dtype,
    head_dim: int,
    *,
    softcap: float | None = None,
    deterministic: bool = False,
) -> str:
    """The implementation varlen_attention uses for this; the only place that decides."""
    options = {"softcap": softcap, "deterministic": deterministic}
    return next(
        name for name in IMPLEMENTATIONS if unsupported_attention(name, device_type, dtype, head_dim, **options) is None
    )


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    deterministic: bool = False,
    implementation: str | None = None,
    plan: AttentionPlan | None = None,
) -> Tensor:
    """out[T,Hq,D] of causal attention inside each document cu_seqlens[i]:cu_seqlens[i+1] of q[T,Hq,D], k, v[T,Hk,D].

    scale: of the scores; D ** -0.5 by default. window: keys a query sees, itself included; all before it by default.
    softcap: scores become softcap * tanh(scores / softcap). Hq is a multiple of Hk. Under autocast q, k and v are
    lowered to its dtype, as torch's own attention does.
    plan: `attention_plan(cu_seqlens)`, to be made once and shared by a model's layers; used by "sdpa" only.
    implementation: one of IMPLEMENTATIONS; chosen by choose_attention by default.
    """
    if torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    _check(q, k, v, scale, window, softcap)
    options = {"softcap": softcap, "deterministic": deterministic}
    if implementation is None:
        implementation = choose_attention(q.device.type, q.dtype, q.shape[2], **options)
    elif implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: got {implementation!r}, takes one of {', '.join(IMPLEMENTATIONS)}")
    elif reason := unsupported_attention(implementation, q.device.type, q.dtype, q.shape[2], **options):
        raise ValueError(f"implementation: got {implementation!r}, but {reason}")
    scale = q.shape[2] ** -0.5 if scale is None else scale
    with torch.autocast(q.device.type, enabled=False):
        if implementation == "sdpa":
            plan = attention_plan(cu_seqlens) if plan is None else plan
            _check_lengths(plan.total_tokens, plan.longest, q.shape[0], max_seqlen)
            return padded_attention(q, k, v, plan, scale=scale, window=window, softcap=softcap)
        if implementation == "eager":
            bounds = document_bounds(cu_seqlens)
            _check_lengths(bounds[-1], max(end - start for start, end in pairwise(bounds)), q.shape[0], max_seqlen)
            return reference.varlen_attention(q, k, v, cu_seqlens, scale=scale, window=window, softcap=softcap)
        # On a GPU the contents of cu_seqlens are not read: that would wait for the device.
        cu_seqlens = cu_seqlens.int()
        left = -1 if window is None else window - 1  # both libraries count the keys before the query
        if implementation == "flash-attn":
            return _flash_attn(q, k, v, cu_seqlens, max_seqlen, scale, left, softcap, deterministic)
        return _torch_varlen(q, k, v, cu_seqlens, max_seqlen, scale, left)


def _flash_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    left: int,
    softcap: float | None,
    deterministic: bool,
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        softmax_scale=scale,
        causal=True,
        window_size=(left, 0),
        softcap=softcap or 0.0,
        deterministic=deterministic,
    )


@cache
def _torch_varlen_parameters() -> frozenset[str]:
    """Names of the arguments of torch's varlen_attn, which differ by version; none if it is not there."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(signature(varlen_attn).parameters)


def _torch_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, left: int
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options = {}
    parameters = _torch_varlen_parameters()
    if "num_splits" in parameters:
        options["num_splits"] = 1  # its own choice can give NaN with FlashAttention 2
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in parameters:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return varlen_attn(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scale, window_size=(left, 0), **options
    )


def _check(q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None, softcap: float | None) -> None:
    if q.ndim != 3 or 0 in q.shape:
        raise ValueError(f"q: got shape {tuple(q.shape)}, takes [T, Hq, D], none of them 0")
    tokens, heads, head_dim = q.shape
    for name, x in (("k", k), ("v", v)):
        if x.ndim != 3 or x.shape[0] != tokens or x.shape[2] != head_dim or x.shape[1] != k.shape[1]:
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, takes [{tokens}, Hk, {head_dim}]")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name}: got {x.dtype} on {x.device}, takes {q.dtype} on {q.device} (q's)")
    if k.shape[1] == 0 or heads % k.shape[1]:
        raise ValueError(f"q: got {heads} heads, takes a multiple of the {k.shape[1]} heads of k")
    if scale is not None and not scale > 0:
        raise ValueError(f"scale: got {scale}, takes a number above 0 or None")
    if window is not None and window < 1:
        raise ValueError(f"window: got {window}, takes a number of keys from 1 or None")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: got {softcap}, takes a number above 0 or None")


def _check_lengths(end: int, longest: int, total: int, max_seqlen: int) -> None:
    if end != total:
        raise ValueError(f"cu_seqlens: got {end} last, takes T = {total}")
    if max_seqlen < longest:
        raise ValueError(f"max_seqlen: got {max_seqlen}, takes the longest document's length, {longest}, or more")
