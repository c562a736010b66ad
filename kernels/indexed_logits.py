"""Logits of a few vocabulary entries per row: out[i,k] = x_i . W[ids[i,k]] + b[ids[i,k]], in float32.

What a loss needs of a row besides its softmax: the label's logit, or those of a teacher's top k. Products of bfloat16 numbers are exact
in float32, so only the order of summation differs from that of a matrix product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .targets import KernelCase, Target

BLOCK_ELEMENTS = 2048  # of W that one program holds: enough loads in flight, few registers a thread


@triton.jit
def _indexed_logits_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    ids_ptr,
    out_ptr,
    x_stride,
    weight_stride,
    width,
    K,
    HAS_BIAS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    # One program a row. An id of -1 reads nothing and gives 0.
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    ids = tl.load(ids_ptr + row * K + k, mask=k < K, other=-1)
    present = ids >= 0
    total = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, width, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        x = tl.load(x_ptr + row * x_stride + h, mask=h < width, other=0.0).to(tl.float32)
        where = ids[:, None] * weight_stride + h[None, :]  # ids are int64: V * H may pass 2^31
        weight = tl.load(weight_ptr + where, mask=present[:, None] & (h < width)[None, :], other=0.0)
        total += tl.sum(weight.to(tl.float32) * x[None, :], 1)
    if HAS_BIAS:
        total += tl.load(bias_ptr + ids, mask=present, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * K + k, total, mask=k < K)


def _blocks(width: int, k: int) -> tuple[int, int]:
    block_k = triton.next_power_of_2(k)
    return block_k, max(16, min(triton.next_power_of_2(width), BLOCK_ELEMENTS // block_k))


def indexed_logits(x: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Tensor:
    """[n,K] float32 of x[n,H], weight[V,H] (unit strides in H), bias[V] and int64 ids[n,K]; 0 where an id is -1."""
    rows, k = ids.shape
    out = torch.empty(rows, k, dtype=torch.float32, device=x.device)
    if rows:
        block_k, block_h = _blocks(x.shape[1], k)
        _indexed_logits_kernel[(rows,)](
            x,
            weight,
            weight if bias is None else bias,
            ids.contiguous(),
            out,
            x.stride(0),
            weight.stride(0),
            x.shape[1],
            k,
            HAS_BIAS=bias is not None,
            BLOCK_K=block_k,
            BLOCK_H=block_h,
            num_warps=4,
        )
    return out


def compile_cases(target: Target) -> list[KernelCase]:
    """One label, and a teacher's 20 ids with a label, of bfloat16 and float32 heads."""
    cases = []
    for dtype in ("bf16", "fp32"):
        for k in (1, 21):
            block_k, block_h = _blocks(4096, k)
            signature = dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr"), f"*{dtype}")
            signature |= {"ids_ptr": "*i64", "out_ptr": "*fp32"}
            signature |= dict.fromkeys(("x_stride", "weight_stride", "width", "K"), "i32")
            constants = {"HAS_BIAS": True, "BLOCK_K": block_k, "BLOCK_H": block_h}
            signature |= dict.fromkeys(constants, "constexpr")
            cases.append(
                KernelCase(
                    name=f"indexed_logits {dtype} K={k}",
                    kernel=_indexed_logits_kernel,
                    signature=signature,
                    constants=constants,
                    aligned=(
                        "x_ptr",
                        "weight_ptr",
                        "bias_ptr",
                        "ids_ptr",
                        "out_ptr",
                        "x_stride",
                        "weight_stride",
                        "width",
                    ),
                    num_warps=4,
                    num_stages=3,
                    uses_tensor_cores=False,
                )
            )
    return cases
