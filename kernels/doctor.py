"""What the kernels decide on this machine, for `distill doctor`."""

from collections.abc import Callable, Sequence

import torch

from .attention import IMPLEMENTATIONS, unsupported_attention
from .fused_layers import LAYERS, liger_problem
from .logits_backends import BACKENDS, unsupported_backend

WIDTH, HEAD_DIM = 4096, 64  # what the decisions are shown for


def describe() -> dict[str, dict[str, str]]:
    """Implementation by function and by device and dtype, and on a GPU why a better one was not taken."""
    losses, attention, layers = {}, {}, {}
    for device in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):
        for dtype in (torch.bfloat16, torch.float32):
            name = f"{device} {str(dtype).removeprefix('torch.')}"
            losses[name] = _first(BACKENDS, lambda x, d=device, t=dtype: unsupported_backend(x, d, t, WIDTH), device)
            attention[name] = _first(
                IMPLEMENTATIONS, lambda x, d=device, t=dtype: unsupported_attention(x, d, t, HEAD_DIM), device
            )
        problem = liger_problem(device)
        layers[device] = "plain torch" + (f" ({problem})" if device == "cuda" else "") if problem else "liger-kernel"
    return {"linear losses": losses, "varlen_attention": attention, ", ".join(LAYERS): layers}


def _first(names: Sequence[str], reason: Callable[[str], str | None], device: str) -> str:
    """The first name without a reason against it and, on a GPU, the reasons against those before it."""
    reasons = {}
    for name in names:
        found = reason(name)
        if found is None:
            against = "; ".join(f"not {name}: {found}" for name, found in reasons.items())
            return f"{name} ({against})" if against and device == "cuda" else name
        reasons[name] = found
    raise ValueError(f"names: got {', '.join(names)}, none of which is supported")
