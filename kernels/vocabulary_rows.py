"""Statistics and gradients of rows of logits that a plain matrix product made, in any of the float dtypes a GPU multiplies.

For one row of raw logits, with c the softcap and T the temperature:

    s = tanh(raw / c) and gain = c / T        with a softcap
    s = raw           and gain = 1 / T        without
    z = gain s                                          what the softmax sees
    lse = log sum_v exp(z_v)                            online: one pass carries the maximum and the sum relative to it
    dz/draw = (1 - s^2) / T                             without a softcap 1 / T

Everything is computed in float32; s is called the score below. It orders the vocabulary as z does.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .targets import KernelCase, Target

LOG2_E = tl.constexpr(math.log2(math.e))

# Elements of a row that a program holds at once: 16 or 32 a thread, for loads enough in flight without spilling.
STATS_BLOCK, STATS_WARPS = 4096, 8
GRADIENT_BLOCK, GRADIENT_WARPS = 4096, 4

TRITON_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


class RowStats(NamedTuple):
    """Of rows[n]: lse in float32; mean of z over the vocabulary in float32; int64 index of the largest z."""

    lse: Tensor
    mean: Tensor | None
    argmax: Tensor | None


@triton.jit
def softcap_score(raw, inv_softcap):
    """tanh(raw / softcap), to float32 rounding of 1; the hardware's own tanh has 11 bits."""
    return 1.0 - 2.0 / (tl.exp2(raw * (inv_softcap * (2.0 * LOG2_E))) + 1.0)


@triton.jit
def row_stats_kernel(
    logits_ptr,
    lse_ptr,
    mean_ptr,
    argmax_ptr,
    vocabulary,
    stride,
    gain,
    inv_softcap,
    SOFTCAP: tl.constexpr,
    MEAN: tl.constexpr,
    ARGMAX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    highest = -float("inf")  # score
    total = 0.0  # of exp(z - gain * highest)
    score_sum = 0.0
    best = 0
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocabulary
        score = tl.load(row_ptr + columns, mask=inside, other=-float("inf")).to(tl.float32)
        if SOFTCAP:
            score = tl.where(inside, softcap_score(score, inv_softcap), -float("inf"))
        if ARGMAX:
            block_highest, first = tl.max(score, 0, return_indices=True)
            # Among NaN the index can be one beyond the vocabulary.
            best = tl.where((block_highest > highest) & (start + first < vocabulary), start + first, best)
        else:
            block_highest = tl.max(score, 0)
        if MEAN:
            score_sum += tl.sum(tl.where(inside, score, 0.0), 0)
        new_highest = tl.maximum(highest, block_highest)
        # While only -inf was seen there is nothing to be relative to: -inf less itself is NaN.
        reference = tl.where(new_highest == -float("inf"), 0.0, new_highest)
        scale = gain * LOG2_E
        total = total * tl.exp2((highest - reference) * scale) + tl.sum(tl.exp2((score - reference) * scale), 0)
        highest = new_highest
    tl.store(lse_ptr + row, highest * gain + tl.log2(total) / LOG2_E)
    if MEAN:
        tl.store(mean_ptr + row, score_sum * gain / vocabulary)
    if ARGMAX:
        tl.store(argmax_ptr + row, best.to(tl.int64))


@triton.jit
def row_gradient_kernel(
    logits_ptr,
    lse_ptr,
    factor_ptr,
    uniform_ptr,
    vocabulary,
    stride,
    gain,
    inv_softcap,
    inv_temperature,
    SOFTCAP: tl.constexpr,
    FACTOR: tl.constexpr,
    UNIFORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row and block of the vocabulary."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    pointers = logits_ptr + row * stride + columns
    score = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    if SOFTCAP:
        score = softcap_score(score, inv_softcap)
    gradient = tl.exp2((score * gain - tl.load(lse_ptr + row)) * LOG2_E)
    if FACTOR:
        gradient *= tl.load(factor_ptr + row)
    if UNIFORM:
        gradient += tl.load(uniform_ptr + row)
    if SOFTCAP:
        gradient *= 1.0 - score * score
    tl.store(pointers, (gradient * inv_temperature).to(logits_ptr.dtype.element_ty), mask=inside)


def row_stats(
    logits: Tensor,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    need_mean: bool = False,
    need_argmax: bool = False,
) -> RowStats:
    """Statistics of z over raw logits[n,V] (any row stride) in one pass; the argmax is the lowest index among equals.

    A NaN or +inf in a row makes its lse NaN or inf; its argmax is then some index of the vocabulary.
    """
    check_logits(logits)
    n, vocabulary = logits.shape
    lse = torch.empty(n, dtype=torch.float32, device=logits.device)
    mean = torch.empty_like(lse) if need_mean else None
    argmax = torch.empty(n, dtype=torch.int64, device=logits.device) if need_argmax else None
    if n:
        row_stats_kernel[(n,)](
            logits,
            lse,
            mean,
            argmax,
            vocabulary,
            logits.stride(0),
            gain(softcap, temperature),
            inverse(softcap),
            SOFTCAP=softcap is not None,
            MEAN=need_mean,
            ARGMAX=need_argmax,
            BLOCK=STATS_BLOCK,
            num_warps=STATS_WARPS,
        )
    return RowStats(lse, mean, argmax)


def row_gradient_(
    logits: Tensor,
    lse: Tensor,
    softmax_factor: Tensor | None,
    uniform: Tensor | None,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> None:
    """Overwrites raw logits[n,V] by (softmax_factor exp(z - lse) + uniform) dz/draw.

    lse, softmax_factor and uniform are [n] float32; no softmax_factor is 1, no uniform is 0.
    """
    check_logits(logits)
    n, vocabulary = logits.shape
    for name, values in (("lse", lse), ("softmax_factor", softmax_factor), ("uniform", uniform)):
        check_row_values(name, values, n, logits.device)
    if n:
        row_gradient_kernel[(n, triton.cdiv(vocabulary, GRADIENT_BLOCK))](
            logits,
            lse,
            softmax_factor,
            uniform,
            vocabulary,
            logits.stride(0),
            gain(softcap, temperature),
            inverse(softcap),
            1.0 / temperature,
            SOFTCAP=softcap is not None,
            FACTOR=softmax_factor is not None,
            UNIFORM=uniform is not None,
            BLOCK=GRADIENT_BLOCK,
            num_warps=GRADIENT_WARPS,
        )


def gain(softcap: float | None, temperature: float) -> float:
    """z per score."""
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}, takes a number above 0")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: got {softcap}, takes a number above 0 or None")
    return (1.0 if softcap is None else softcap) / temperature


def inverse(softcap: float | None) -> float:
    return 0.0 if softcap is None else 1.0 / softcap


def check_logits(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0 or (logits.shape[1] > 1 and logits.stride(1) != 1):
        found = f"shape {tuple(logits.shape)} with strides {logits.stride()}"
        raise ValueError(f"logits: got {found}, takes [n, V] with V > 0 and adjacent elements in a row")
    if logits.dtype not in TRITON_NAMES:
        raise ValueError(f"logits: got {logits.dtype}, takes float32, bfloat16 or float16")


def check_row_values(name: str, values: Tensor | None, n: int, device: torch.device) -> None:
    if values is None:
        return
    if values.shape != (n,) or values.dtype != torch.float32 or not values.is_contiguous() or values.device != device:
        found = f"{values.dtype} {tuple(values.shape)} with strides {values.stride()} on {values.device}"
        raise ValueError(f"{name}: got {found}, takes contiguous float32 ({n},) on {device}")


def compile_cases(target: Target) -> list[KernelCase]:
    """Both kernels in each dtype, with everything on and everything off."""
    aligned = ("logits_ptr", "lse_ptr", "stride")
    scalars = {"vocabulary": "i32", "stride": "i32", "gain": "fp32", "inv_softcap": "fp32"}
    cases = []
    for dtype in TRITON_NAMES.values():
        for everything in (False, True):
            label = f"{dtype} softcap mean argmax" if everything else dtype
            constants = {"SOFTCAP": everything, "MEAN": everything, "ARGMAX": everything, "BLOCK": STATS_BLOCK}
            pointers = {"logits_ptr": f"*{dtype}", "lse_ptr": "*fp32"}
            if everything:
                pointers |= {"mean_ptr": "*fp32", "argmax_ptr": "*i64"}
            else:
                constants |= {"mean_ptr": None, "argmax_ptr": None}
            cases.append(
                kernel_case(
                    f"row_stats {label}", row_stats_kernel, pointers | scalars, constants, aligned, STATS_WARPS, 3
                )
            )
            label = f"{dtype} softcap factor uniform" if everything else dtype
            constants = {"SOFTCAP": everything, "FACTOR": everything, "UNIFORM": everything, "BLOCK": GRADIENT_BLOCK}
            pointers = {"logits_ptr": f"*{dtype}", "lse_ptr": "*fp32"}
            if everything:
                pointers |= {"factor_ptr": "*fp32", "uniform_ptr": "*fp32"}
            else:
                constants |= {"factor_ptr": None, "uniform_ptr": None}
            cases.append(
                kernel_case(
                    f"row_gradient {label}",
                    row_gradient_kernel,
                    pointers | scalars | {"inv_temperature": "fp32"},
                    constants,
                    aligned,
                    GRADIENT_WARPS,
                    3,
                )
            )
    return cases


def kernel_case(
    name: str,
    kernel: object,
    types: dict[str, str],
    constants: dict[str, object],
    aligned: tuple[str, ...],
    num_warps: int,
    num_stages: int,
    uses_tensor_cores: bool = False,
) -> KernelCase:
    """A KernelCase whose signature has the kernel's order of arguments; what is in constants is a constexpr."""
    signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
    return KernelCase(name, kernel, signature, constants, aligned, num_warps, num_stages, uses_tensor_cores)
