"""Arguments that the linear losses share: what they take, checked where it costs no wait for a device.

Values on a GPU are checked by an assertion that runs there; with DISTILL_DEBUG=1 in the environment they are read
back instead, and the error is the one that a CPU gives.
"""

import math
import os

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """F.linear's rule: autocast lowers everything but float64."""
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return hidden.dtype


def kept_count(kept: Tensor | None, rows: Tensor) -> Tensor | int:
    """The number of rows that count, at least 1."""
    return max(1, rows.shape[0]) if kept is None else kept.sum().clamp_min(1)


def check_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, workspace_bytes: int | None
) -> None:
    if hidden.ndim != 2 or hidden.shape[1] == 0 or hidden.dtype not in DTYPES:
        found = f"{hidden.dtype} of shape {tuple(hidden.shape)}"
        raise ValueError(f"hidden: got {found}, takes bfloat16, float16, float32 or float64 [N, H] with H > 0")
    width = hidden.shape[1]
    if type(weight).__name__ == "DTensor":
        raise ValueError(
            "weight: got a sharded DTensor, takes the whole weight (call inside the FSDP module that owns it)"
        )
    if weight.ndim != 2 or weight.shape[1] != width or weight.shape[0] == 0:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, takes [V, {width}]")
    if weight.dtype not in (hidden.dtype, torch.float32) and not torch.is_autocast_enabled(hidden.device.type):
        raise ValueError(f"weight: got {weight.dtype}, takes {hidden.dtype} (hidden's) or torch.float32")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, takes [{weight.shape[0]}]")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name}: got a tensor on {tensor.device}, takes one on {hidden.device} (hidden's)")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap: got {softcap}, takes a finite number above 0 or None")
    if workspace_bytes is not None and workspace_bytes <= 0:
        raise ValueError(f"workspace_bytes: got {workspace_bytes}, takes a number of bytes above 0 or None")


def check_rows(hidden: Tensor, token_weights: Tensor | None, reduction: str) -> None:
    if token_weights is not None:
        if token_weights.shape != hidden.shape[:1]:
            raise ValueError(f"token_weights: got shape {tuple(token_weights.shape)}, takes [{hidden.shape[0]}]")
        if token_weights.requires_grad:
            raise ValueError("token_weights: got a tensor that requires a gradient, takes constants")
        if token_weights.device != hidden.device:
            found = f"a tensor on {token_weights.device}"
            raise ValueError(f"token_weights: got {found}, takes one on {hidden.device} (hidden's)")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}, takes one of {', '.join(REDUCTIONS)}")


def check_ids(name: str, ids: Tensor, counted: Tensor | None, vocabulary: int, besides: str) -> None:
    """ids where `counted` (everywhere if None) are entries of the vocabulary; `besides`: what else the argument takes."""
    if torch.compiler.is_compiling() or ids.numel() == 0:
        return
    if ids.device.type not in ("cpu", "cuda"):
        return
    wrong = (ids < 0) | (ids >= vocabulary)
    if counted is not None:
        wrong = wrong & counted
    if ids.device.type == "cuda" and not debugging():
        torch._assert_async(~wrong.any(), f"{name}: a value outside the vocabulary of {vocabulary}")
    elif wrong.any():
        found = int(ids[wrong][0])
        raise ValueError(f"{name}: got {found}, takes 0 to {vocabulary - 1}{besides}")


def debugging() -> bool:
    """Whether values on a device are read back to be checked: it costs a wait for the device in every call."""
    return os.environ.get("DISTILL_DEBUG", "") not in ("", "0")
