"""The gradient of logits from a product whose epilogue makes it, when lse is known from an earlier pass.

out = (softmax_factor exp(z - lse) + uniform) slope / T          z and slope as in vocabulary_gemm.py
"""

import triton
import triton.language as tl
from torch import Tensor

from .targets import KernelCase, Target
from .vocabulary_gemm import product_halves, scores, store_part, tile_place
from .vocabulary_rows import LOG2_E, check_row_values
from .vocabulary_tiles import Config, product_cases, tiled_product


@triton.jit
def dz_part(
    product,
    bias_ptr,
    lse,
    factor,
    uniform,
    out,
    row,
    column,
    n,
    vocabulary,
    out_stride,
    gain,
    inv_softcap,
    SOFTCAP: tl.constexpr,
    BIAS: tl.constexpr,
    UNIFORM: tl.constexpr,
    TMA: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    score = scores(product, bias_ptr, column, vocabulary, inv_softcap, SOFTCAP, BIAS, COLUMNS)
    gradient = tl.exp2(score * (gain * LOG2_E) - (lse * LOG2_E)[:, None]) * factor[:, None]
    if UNIFORM:
        gradient += uniform[:, None]
    if SOFTCAP:
        gradient *= 1.0 - score * score
    store_part(out, gradient, row, column, n, vocabulary, out_stride, TMA, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["n"])
def dz_logits_kernel(
    x,
    weight,
    bias_ptr,
    lse_ptr,
    factor_ptr,
    uniform_ptr,
    out,
    n,
    vocabulary,
    width,
    x_stride,
    weight_stride,
    out_stride,
    gain,
    inv_softcap,
    inv_temperature,
    SOFTCAP: tl.constexpr,
    BIAS: tl.constexpr,
    UNIFORM: tl.constexpr,
    TMA: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    row_blocks = tl.cdiv(n, ROWS)
    column_blocks = tl.cdiv(vocabulary, COLUMNS)
    for tile in tl.range(tl.program_id(0), row_blocks * column_blocks, tl.num_programs(0), flatten=True):
        row_block, column_block = tile_place(tile, row_blocks, column_blocks, GROUP)
        row, column = row_block * ROWS, column_block * COLUMNS
        left, right = product_halves(
            x, weight, row, column, n, vocabulary, width, x_stride, weight_stride, TMA, EVEN, ROWS, COLUMNS, DEPTH
        )
        rows = row + tl.arange(0, ROWS)
        inside = rows < n
        lse = tl.load(lse_ptr + rows, mask=inside, other=0.0)
        factor = tl.load(factor_ptr + rows, mask=inside, other=0.0) * inv_temperature
        uniform = factor
        if UNIFORM:
            uniform = tl.load(uniform_ptr + rows, mask=inside, other=0.0) * inv_temperature
        dz_part(
            left, bias_ptr, lse, factor, uniform, out, row, column, n, vocabulary, out_stride, gain, inv_softcap,
            SOFTCAP, BIAS, UNIFORM, TMA, ROWS, COLUMNS // 2,
        )  # fmt: skip
        dz_part(
            right, bias_ptr, lse, factor, uniform, out, row, column + COLUMNS // 2, n, vocabulary, out_stride, gain,
            inv_softcap, SOFTCAP, BIAS, UNIFORM, TMA, ROWS, COLUMNS // 2,
        )  # fmt: skip


def dz_logits(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    softmax_factor: Tensor,
    uniform: Tensor | None,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    out: Tensor,
    config: Config | None = None,
) -> None:
    """out[n,V] = (softmax_factor exp(z - lse) + uniform) slope / T over raw = x[n,H] @ weight[V,H].T + bias[V].

    lse, softmax_factor and uniform are [n] float32; no uniform is 0.
    """
    n = x.shape[0]
    product = tiled_product(x, weight, bias, out, softcap, temperature, config)
    for name, values in (("lse", lse), ("softmax_factor", softmax_factor), ("uniform", uniform)):
        check_row_values(name, values, n, x.device)
    if n:
        dz_logits_kernel[(product.programs,)](
            product.x,
            product.weight,
            bias,
            lse,
            softmax_factor,
            uniform,
            product.out,
            *product.scalars,
            1.0 / temperature,
            UNIFORM=uniform is not None,
            **product.constants,
        )


def compile_cases(target: Target) -> list[KernelCase]:
    """Without any option and with all."""
    optional = {"BIAS": ("bias_ptr",), "UNIFORM": ("uniform_ptr",)}
    return product_cases("dz_logits", dz_logits_kernel, target, (set(), {"SOFTCAP", "BIAS", "UNIFORM"}), optional)
