"""Causal attention over packed documents: arguments, the choice of an implementation, and the call of it.

The specification is `reference.varlen_attention`.
"""

from functools import cache
from importlib.util import find_spec
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import reference
from .attention_tiles import AttentionTiles, attention_tiles
from .document_bounds import check_bounds, check_lengths, check_plan, read_bounds
from .padded_attention import PaddedPlan, padded_attention, padded_plan

__all__ = [
    "IMPLEMENTATIONS",
    "AttentionPlan",
    "attention_plan",
    "choose_attention",
    "unsupported_attention",
    "varlen_attention",
]

# In order of preference. FlashAttention 3 and 4 serve one generation of GPUs each and FlashAttention 2 all of them;
# torch has a FlashAttention 2 of its own. Ours follows: it needs Triton only and does what those cannot.
IMPLEMENTATIONS = ("flash-attn-3", "flash-attn-4", "flash-attn", "torch-varlen", "triton", "sdpa", "eager")

AttentionPlan = PaddedPlan | AttentionTiles


def attention_plan(cu_seqlens: Tensor, total_tokens: int | None = None, max_seqlen: int | None = None) -> AttentionPlan:
    """How documents cu_seqlens[i]:cu_seqlens[i+1] are worked off: to be made once per pack and given to every layer.

    cu_seqlens: int32 or int64 [documents + 1], 0 first, strictly ascending, total_tokens last; checked here, so that no
    layer has to. On a GPU nothing waits for the device, so total_tokens and max_seqlen, which bounds the documents'
    lengths, must be given; on a CPU they are read from cu_seqlens where they are not.
    """
    if cu_seqlens.device.type != "cpu":
        if total_tokens is None or max_seqlen is None:
            name = "total_tokens" if total_tokens is None else "max_seqlen"
            raise ValueError(f"{name}: got None, takes a number: reading it from {cu_seqlens.device} would wait for it")
        check_bounds(cu_seqlens, total_tokens, max_seqlen)
        return attention_tiles(cu_seqlens, total_tokens, max_seqlen)
    plan = padded_plan(cu_seqlens)
    check_lengths(
        plan.total_tokens,
        plan.longest,
        plan.total_tokens if total_tokens is None else total_tokens,
        plan.longest if max_seqlen is None else max_seqlen,
    )
    return plan


def unsupported_attention(
    implementation: str,
    device_type: str,
    dtype: torch.dtype,
    head_dim: int,
    *,
    softcap: float | None = None,
    deterministic: bool = False,
    capability: tuple[int, int] | None = None,
) -> str | None:
    """Why `implementation` cannot do this, or None if it can. capability: of the GPU, the current one's by default."""
    if implementation in ("sdpa", "eager"):
        if implementation == "sdpa" and deterministic and device_type != "cpu":
            return "its backward is not deterministic on this device"
        return None
    if device_type != "cuda":
        return f"it runs on cuda, not on {device_type}"
    takes_fp32 = implementation == "triton"
    if dtype not in (torch.float16, torch.bfloat16) and not (takes_fp32 and dtype == torch.float32):
        return f"it takes float16{', float32' if takes_fp32 else ''} and bfloat16, not {dtype}"
    capability = _capability() if capability is None else capability
    if capability is not None and capability < (8, 0):
        return f"it takes GPUs of compute capability 8.0 and above, not {_dotted(capability)}"
    if implementation == "triton":
        if head_dim > 256:
            return f"it takes head sizes up to 256, not {head_dim}"
        return None if _is_installed("triton") else "triton is not installed"
    if head_dim > 256 or head_dim % 8:
        return f"it takes head sizes that are multiples of 8 up to 256, not {head_dim}"
    if implementation == "flash-attn-3":
        return _unsupported_flash_attn_3(head_dim, deterministic, capability)
    if implementation == "flash-attn-4":
        return _unsupported_flash_attn_4(head_dim, softcap, capability)
    if implementation == "flash-attn":
        return None if _is_installed("flash_attn", "flash_attn_interface.py") else "flash-attn is not installed"
    if softcap is not None:
        return "it has no softcap"
    if deterministic and not torch.are_deterministic_algorithms_enabled():
        return "it is deterministic only under torch.use_deterministic_algorithms(True)"
    if not _torch_varlen_takes("window_size"):
        return f"torch {torch.__version__} has no torch.nn.attention.varlen with window_size"
    return None


def _unsupported_flash_attn_3(head_dim: int, deterministic: bool, capability: tuple[int, int] | None) -> str | None:
    if not _is_installed("flash_attn_interface"):
        return "flash-attn-3 is not installed"
    if capability is None or capability[0] != 9 or torch.version.hip is not None:
        return f"it takes GPUs of compute capability 9, not {_dotted(capability)}"
    if deterministic and head_dim > 128:
        return f"its deterministic backward takes head sizes up to 128, not {head_dim}"
    return None


def _unsupported_flash_attn_4(head_dim: int, softcap: float | None, capability: tuple[int, int] | None) -> str | None:
    if not _is_installed("flash_attn", "cute/interface.py"):
        return "flash-attn-4 is not installed"
    if capability is None or capability[0] not in (10, 11) or torch.version.hip is not None:
        # It runs on 9 too, but without a window or determinism in its backward.
        return f"it takes GPUs of compute capability 10 and 11, not {_dotted(capability)}"
    if head_dim > 128:
        return f"it takes head sizes up to 128, not {head_dim}"
    if softcap is not None:
        return "its backward has no softcap"
    return None


def choose_attention(
    device_type: str,
    dtype: torch.dtype,
    head_dim: int,
    *,
    softcap: float | None = None,
    deterministic: bool = False,
    capability: tuple[int, int] | None = None,
) -> str:
    """The implementation varlen_attention uses for this; the only place that decides."""
    options = {"softcap": softcap, "deterministic": deterministic, "capability": capability}
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
    plan: `attention_plan(cu_seqlens, T, max_seqlen)`, to be made once and shared by a model's layers.
    implementation: one of IMPLEMENTATIONS; chosen by choose_attention by default.
    """
    if torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    _check(q, k, v, cu_seqlens, scale, window, softcap)
    implementation = _decide(implementation, q.device, q.dtype, q.shape[2], softcap, deterministic)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    with torch.autocast(q.device.type, enabled=False):
        if implementation == "sdpa":
            plan = plan if isinstance(plan, PaddedPlan) else padded_plan(cu_seqlens)
            check_plan(plan.cu_seqlens, cu_seqlens)
            check_lengths(plan.total_tokens, plan.longest, q.shape[0], max_seqlen)
            return padded_attention(q, k, v, plan, scale=scale, window=window, softcap=softcap)
        if implementation == "eager":
            bounds = read_bounds(cu_seqlens)
            check_lengths(bounds[-1], max(end - start for start, end in pairwise(bounds)), q.shape[0], max_seqlen)
            return reference.varlen_attention(q, k, v, cu_seqlens, scale=scale, window=window, softcap=softcap)
        # From here on nothing waits for the GPU; a plan's cu_seqlens were checked when it was made.
        if isinstance(plan, AttentionTiles):
            check_plan(plan.cu_seqlens, cu_seqlens)
            check_lengths(plan.total_tokens, plan.max_seqlen, q.shape[0], max_seqlen)
        else:
            check_bounds(cu_seqlens, q.shape[0], max_seqlen)
        if implementation == "triton":
            from .triton_attention import triton_attention

            tiles = plan if isinstance(plan, AttentionTiles) else attention_tiles(cu_seqlens, q.shape[0], max_seqlen)
            return triton_attention(q, k, v, tiles, scale=scale, window=window, softcap=softcap)
        cu_seqlens = cu_seqlens.int()
        left = -1 if window is None else window - 1  # all of them count the keys before the query
        if implementation == "torch-varlen":
            return _torch_varlen(q, k, v, cu_seqlens, max_seqlen, scale, left)
        return _flash_attn(implementation, q, k, v, cu_seqlens, max_seqlen, scale, left, softcap, deterministic)


def _decide(
    implementation: str | None,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    softcap: float | None,
    deterministic: bool,
) -> str:
    """The implementation asked for, if it can do this, or the one chosen."""
    options = {
        "softcap": softcap,
        "deterministic": deterministic,
        "capability": _capability(device) if device.type == "cuda" else None,
    }
    if implementation is None:
        return choose_attention(device.type, dtype, head_dim, **options)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: got {implementation!r}, takes one of {', '.join(IMPLEMENTATIONS)}")
    if reason := unsupported_attention(implementation, device.type, dtype, head_dim, **options):
        raise ValueError(f"implementation: got {implementation!r}, but {reason}")
    return implementation


@torch.compiler.assume_constant_result
def _capability(device: torch.device | None = None) -> tuple[int, int] | None:
    """Compute capability of the GPU, None without one."""
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None


def _dotted(capability: tuple[int, int] | None) -> str:
    return "no GPU" if capability is None else f"{capability[0]}.{capability[1]}"


@torch.compiler.assume_constant_result
def _is_installed(package: str, file: str = "") -> bool:
    """Whether a package is there, and a file in it; nothing is imported. FlashAttention 2 and 4 share a name."""
    return _find(package, file)


@cache  # not on _is_installed: torch.compile would look through it, with a warning, and trace the search
def _find(package: str, file: str) -> bool:
    spec = find_spec(package)
    if spec is None or not file:
        return spec is not None
    return any((Path(place) / file).is_file() for place in spec.submodule_search_locations or ())


def _flash_attn(
    implementation: str,
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
    no_bound: int | None = -1
    if implementation == "flash-attn-3":
        from flash_attn_interface import flash_attn_varlen_func
    elif implementation == "flash-attn-4":
        from flash_attn.cute import flash_attn_varlen_func

        no_bound = None
    else:
        from flash_attn import flash_attn_varlen_func
    out = flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
        softmax_scale=scale,
        causal=True,
        window_size=(no_bound if left < 0 else left, 0),
        softcap=softcap or 0.0,
        deterministic=deterministic,
    )
    return out[0] if isinstance(out, tuple) else out  # some versions return the lse too


@torch.compiler.assume_constant_result
def _torch_varlen_takes(name: str) -> bool:
    """Whether torch has a varlen_attn and it has this argument, which differs by version."""
    return name in _torch_varlen_parameters()


@cache
def _torch_varlen_parameters() -> frozenset[str]:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(signature(varlen_attn).parameters)


def _torch_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, left: int
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {}
    if _torch_varlen_takes("num_splits") and torch.version.hip is None:  # AMD's refuses it
        options["num_splits"] = 1  # its own choice can give NaN with FlashAttention 2
    if q.shape[1] != k.shape[1] and _torch_varlen_takes("enable_gqa"):  # without this argument it never asks
        options["enable_gqa"] = True
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    return varlen_attn(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scale, window_size=(left, 0), **options
    )


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> None:
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
    if cu_seqlens.device != q.device:
        raise ValueError(f"cu_seqlens: got a tensor on {cu_seqlens.device}, takes one on {q.device} (q's)")
    if scale is not None and not scale > 0:
        raise ValueError(f"scale: got {scale}, takes a number above 0 or None")
    if window is not None and window < 1:
        raise ValueError(f"window: got {window}, takes a number of keys from 1 or None")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: got {softcap}, takes a number above 0 or None")
