"""What the kernels decide on this machine, for `distill doctor`."""

import torch

from .attention import choose_attention, unsupported_attention


def describe() -> dict[str, dict[str, str]]:
    """Implementation by function and by device and dtype, and why a better one was not taken."""
    attention = {}
    for device_type in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):
        for dtype in (torch.bfloat16, torch.float32):
            name = choose_attention(device_type, dtype, 64)
            missing = unsupported_attention("flash-attn", device_type, dtype, 64)
            attention[f"{device_type} {str(dtype).removeprefix('torch.')}"] = (
                name if missing is None else f"{name} (not flash-attn: {missing})"
            )
    return {"linear_cross_entropy": {"all": "chunked torch"}, "varlen_attention": attention}
