"""Products with the vocabulary whose epilogue does the softmax's work, so that no pass over the logits is left to do.

For one row with hidden x, with c the softcap, T the temperature and (score, gain) as in vocabulary_rows:

    raw = W x + b        s = score(raw)        z = gain s        slope = 1 - s^2 with a softcap, else 1

`exp_logits` is the forward. Given a number a near the largest z, the row's anchor (the label's logit will nearly always do),

    E_v = exp(z_v - a) slope_v        S = sum_v exp(z_v - a)        lse = a + log S

so one product gives lse and, but for a factor of each row, the gradient: dz/draw softmax = E / (S T). E is rounded once, to
bfloat16; S is summed from what was not yet rounded. Each (row, tile of the vocabulary) writes its sum, maximum, argmax and
sum of scores to a place of its own; a second kernel reduces them, in one order, so results are the same in every run.

An anchor is bad when the largest z is more than MAX_DISTANCE from it. The reduction then makes the row's maximum its anchor
and flags it; a second launch repeats the tiles of flagged rows and returns at once where there are none. The host
never waits for the device.

`dz_logits` is the backward when lse is known: out = (softmax_factor exp(z - lse) + uniform) slope / T.

Both kernels are persistent: as many programs as the device holds at once walk over the tiles, and the loads of the next tile
are in flight during the epilogue of this one. Tiles are walked in groups of row blocks, so that the tiles in flight
at one time share their rows of x and of W in the L2 cache.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .targets import KernelCase, Target
from .vocabulary_rows import (
    LOG2_E,
    TRITON_NAMES,
    check_row_values,
    gain,
    inverse,
    kernel_case,
    softcap_score,
)

# Nats between a row's largest z and its anchor. bfloat16 and float32 end at exp(88): 60 leave exp(28) for a sum over the
# vocabulary and for a product with W. Below, the largest exponential is exp(-60), and whatever is at most exp(-27) of
# it, which no sum in float32 would notice, is still a normal number (they end at exp(-87)).
MAX_DISTANCE = 60.0

# Rows of one program of the reduction: 64 bytes of each tile's line of partial results.
REDUCE_ROWS, REDUCE_TILES = 16, 64
COLUMN_BLOCK, COLUMN_ROWS = 256, 32
NO_COLUMN = tl.constexpr(2**31 - 1)


class ExpLogits(NamedTuple):
    """Of rows[n], in float32 but for the int64 argmax: anchors really used, sums of exp(z - anchor), means of z."""

    anchor: Tensor
    sums: Tensor
    mean: Tensor | None
    argmax: Tensor | None


class Config(NamedTuple):
    """How the product is cut."""

    rows: int  # of x in a tile
    columns: int  # of the vocabulary in a tile
    depth: int  # of H in one step
    group: int  # row blocks walked together
    warps: int
    stages: int  # steps whose loads are in flight
    programs: int  # on one multiprocessor
    descriptors: bool  # loads and stores by TMA where the tensors allow it


# For rows that do not begin at multiples of 16 bytes: each element has a load and, in registers, a pointer of its own.
ODD_ROWS = Config(64, 128, 32, 8, 8, 3, 1, False)

# By architecture, the first is the one used.
# sm_90: the largest tile whose accumulator fits the registers of two warp groups: it needs the least L2 traffic per FLOP.
#   Its epilogue hides under nothing but loads, which costs the more the smaller H is; two programs of half the size on a
#   multiprocessor hide it under each other's products and need a third more L2 traffic.
# sm_100: the accumulator lies in tensor memory; the epilogue of a larger tile would not fit the registers.
# gfx942: splitting a product goes through its 64 KiB of shared memory.
# other: what fits the 99 KiB of shared memory of sm_86, sm_89 and sm_120.
CONFIGS = {
    "sm_80": (Config(128, 256, 32, 8, 8, 4, 1, False), Config(128, 128, 32, 8, 4, 4, 2, False)),
    "sm_90": (Config(128, 256, 64, 16, 8, 4, 1, True), Config(128, 128, 64, 16, 4, 3, 2, True)),
    "sm_100": (Config(128, 128, 64, 16, 4, 3, 2, True),),
    "gfx942": (Config(64, 128, 32, 8, 4, 2, 1, False),),
    "other": (Config(128, 128, 32, 8, 8, 3, 1, False),),
}


@triton.jit
def tile_place(tile, row_blocks, column_blocks, GROUP: tl.constexpr):
    """(row block, column block) of a tile: down the rows of a group, then to the next column."""
    group = tile // (GROUP * column_blocks)
    inside = tile % (GROUP * column_blocks)
    size = tl.minimum(row_blocks - group * GROUP, GROUP)
    return group * GROUP + inside % size, inside // size


@triton.jit
def product_halves(
    x,
    weight,
    row,
    column,
    n,
    vocabulary,
    width,
    x_stride,
    weight_stride,
    TMA: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """x @ weight.T from (row, column) on: the left and the right half of its columns, [ROWS, COLUMNS / 2] each.

    It is 0 beyond V. An epilogue of a half needs half the registers and half the shared memory.
    """
    product = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    if TMA:
        for k in range(0, width, DEPTH):
            product = tl.dot(x.load([row, k]), weight.load([column, k]).T, product)
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        depths = tl.arange(0, DEPTH)
        x_ptrs = x + rows.to(tl.int64)[:, None] * x_stride + depths[None, :]
        weight_ptrs = weight + columns.to(tl.int64)[None, :] * weight_stride + depths[:, None]
        x_inside = (rows < n)[:, None]
        weight_inside = (columns < vocabulary)[None, :]
        for k in range(0, width, DEPTH):
            if EVEN:
                x_mask, weight_mask = x_inside, weight_inside
            else:
                x_mask = x_inside & (depths < width - k)[None, :]
                weight_mask = weight_inside & (depths < width - k)[:, None]
            x_tile = tl.load(x_ptrs + k, mask=x_mask, other=0.0)
            weight_tile = tl.load(weight_ptrs + k, mask=weight_mask, other=0.0)
            product = tl.dot(x_tile, weight_tile, product)
    return tl.split(tl.permute(tl.reshape(product, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def scores(
    product,
    bias_ptr,
    column,
    vocabulary,
    inv_softcap,
    SOFTCAP: tl.constexpr,
    BIAS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Scores of a part of a product; 0 beyond V."""
    if BIAS:
        columns = column + tl.arange(0, COLUMNS)
        product += tl.load(bias_ptr + columns, mask=columns < vocabulary, other=0.0).to(tl.float32)[None, :]
    if SOFTCAP:
        product = softcap_score(product, inv_softcap)
    return product


@triton.jit
def store_part(
    out, values, row, column, n, vocabulary, out_stride, TMA: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    if TMA:
        out.store([row, column], values.to(out.dtype))
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        pointers = out + rows.to(tl.int64)[:, None] * out_stride + columns[None, :]
        inside = (rows < n)[:, None] & (columns < vocabulary)[None, :]
        tl.store(pointers, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def exp_part(
    product,
    bias_ptr,
    anchor,
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
    WRITE: tl.constexpr,
    MEAN: tl.constexpr,
    ARGMAX: tl.constexpr,
    TMA: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes E; returns of each row the sum of exponentials, the largest score, its first index, the sum of scores."""
    places = tl.arange(0, COLUMNS)
    score = scores(product, bias_ptr, column, vocabulary, inv_softcap, SOFTCAP, BIAS, COLUMNS)
    score_sum = tl.sum(score, 1) if MEAN else anchor
    # In every tile: a branch for the last ones would keep the next product waiting for this epilogue's registers.
    score = tl.where((places < vocabulary - column)[None, :], score, -float("inf"))
    if ARGMAX:
        highest, first = tl.max(score, 1, return_indices=True)
        first += column
    else:
        highest = tl.max(score, 1)
        first = anchor
    # One multiply-add an element: the anchor's product is rounded once, the same for the whole row.
    exponential = tl.exp2(score * (gain * LOG2_E) - (anchor * LOG2_E)[:, None])
    total = tl.sum(exponential, 1)
    if WRITE:
        if SOFTCAP:
            exponential *= 1.0 - score * score
        store_part(out, exponential, row, column, n, vocabulary, out_stride, TMA, ROWS, COLUMNS)
    return total, highest, first, score_sum


@triton.jit
def exp_tile(
    tile,
    x,
    weight,
    bias_ptr,
    anchor_ptr,
    out,
    sum_ptr,
    max_ptr,
    score_ptr,
    best_ptr,
    n,
    vocabulary,
    width,
    x_stride,
    weight_stride,
    out_stride,
    gain,
    inv_softcap,
    SOFTCAP: tl.constexpr,
    BIAS: tl.constexpr,
    WRITE: tl.constexpr,
    MEAN: tl.constexpr,
    ARGMAX: tl.constexpr,
    TMA: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """E and the partial statistics of one tile; sum_ptr, max_ptr, score_ptr and best_ptr are [column blocks, n]."""
    row_block, column_block = tile_place(tile, tl.cdiv(n, ROWS), tl.cdiv(vocabulary, COLUMNS), GROUP)
    row, column = row_block * ROWS, column_block * COLUMNS
    left, right = product_halves(
        x, weight, row, column, n, vocabulary, width, x_stride, weight_stride, TMA, EVEN, ROWS, COLUMNS, DEPTH
    )
    rows = row + tl.arange(0, ROWS)
    inside = rows < n
    anchor = tl.load(anchor_ptr + rows, mask=inside, other=0.0)
    total, highest, first, score_sum = exp_part(
        left, bias_ptr, anchor, out, row, column, n, vocabulary, out_stride, gain, inv_softcap,
        SOFTCAP, BIAS, WRITE, MEAN, ARGMAX, TMA, ROWS, COLUMNS // 2,
    )  # fmt: skip
    right_total, right_highest, right_first, right_score_sum = exp_part(
        right, bias_ptr, anchor, out, row, column + COLUMNS // 2, n, vocabulary, out_stride, gain, inv_softcap,
        SOFTCAP, BIAS, WRITE, MEAN, ARGMAX, TMA, ROWS, COLUMNS // 2,
    )  # fmt: skip
    place = column_block.to(tl.int64) * n + rows
    tl.store(sum_ptr + place, total + right_total, mask=inside)
    tl.store(max_ptr + place, tl.maximum(highest, right_highest), mask=inside)
    if ARGMAX:
        tl.store(best_ptr + place, tl.where(right_highest > highest, right_first, first), mask=inside)
    if MEAN:
        tl.store(score_ptr + place, score_sum + right_score_sum, mask=inside)


@triton.jit(do_not_specialize=["n"])
def exp_logits_kernel(
    x,
    weight,
    bias_ptr,
    anchor_ptr,
    out,
    sum_ptr,
    max_ptr,
    score_ptr,
    best_ptr,
    flag_ptr,
    n,
    vocabulary,
    width,
    x_stride,
    weight_stride,
    out_stride,
    gain,
    inv_softcap,
    SOFTCAP: tl.constexpr,
    BIAS: tl.constexpr,
    WRITE: tl.constexpr,
    MEAN: tl.constexpr,
    ARGMAX: tl.constexpr,
    REPEAT: tl.constexpr,
    TMA: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    FLAG_ROWS: tl.constexpr,
):
    """Every tile; with REPEAT those of row blocks with a flag (one of every FLAG_ROWS rows) only."""
    column_blocks = tl.cdiv(vocabulary, COLUMNS)
    tiles = tl.cdiv(n, ROWS) * column_blocks
    if REPEAT:
        flags = tl.cdiv(n, FLAG_ROWS)
        flagged = 0
        for start in range(0, flags, 256):
            places = start + tl.arange(0, 256)
            flagged += tl.max(tl.load(flag_ptr + places, mask=places < flags, other=0), 0)
        if flagged > 0:
            for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
                row_block, _ = tile_place(tile, tl.cdiv(n, ROWS), column_blocks, GROUP)
                places = row_block * (ROWS // FLAG_ROWS) + tl.arange(0, ROWS // FLAG_ROWS)
                if tl.max(tl.load(flag_ptr + places, mask=places < flags, other=0), 0) > 0:
                    exp_tile(
                        tile, x, weight, bias_ptr, anchor_ptr, out, sum_ptr, max_ptr, score_ptr, best_ptr,
                        n, vocabulary, width, x_stride, weight_stride, out_stride, gain, inv_softcap,
                        SOFTCAP, BIAS, WRITE, MEAN, ARGMAX, TMA, EVEN, ROWS, COLUMNS, DEPTH, GROUP,
                    )  # fmt: skip
    else:
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            exp_tile(
                tile, x, weight, bias_ptr, anchor_ptr, out, sum_ptr, max_ptr, score_ptr, best_ptr,
                n, vocabulary, width, x_stride, weight_stride, out_stride, gain, inv_softcap,
                SOFTCAP, BIAS, WRITE, MEAN, ARGMAX, TMA, EVEN, ROWS, COLUMNS, DEPTH, GROUP,
            )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def reduce_kernel(
    anchor_ptr,
    used_anchor_ptr,
    sum_ptr,
    max_ptr,
    score_ptr,
    best_ptr,
    sums_ptr,
    mean_ptr,
    argmax_ptr,
    flag_ptr,
    n,
    vocabulary,
    tiles,
    gain,
    max_distance,
    MEAN: tl.constexpr,
    ARGMAX: tl.constexpr,
    REPEAT: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
):
    """Row results from partial ones [tiles, n], ROWS rows a program; with REPEAT the sums of flagged programs only."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    if REPEAT:
        wanted = tl.load(flag_ptr + tl.program_id(0)) > 0
    else:
        wanted = True
    if wanted:
        total = tl.zeros((ROWS,), dtype=tl.float32)
        scores = tl.zeros((ROWS,), dtype=tl.float32)
        highest = tl.full((ROWS,), -float("inf"), dtype=tl.float32)
        best = tl.zeros((ROWS,), dtype=tl.int32)
        for start in range(0, tiles, TILES):
            lines = start + tl.arange(0, TILES)
            places = lines.to(tl.int64)[:, None] * n + rows[None, :]
            mask = (lines < tiles)[:, None] & inside[None, :]
            total += tl.sum(tl.load(sum_ptr + places, mask=mask, other=0.0), 0)
            if not REPEAT:
                line_highest = tl.load(max_ptr + places, mask=mask, other=-float("inf"))
                new_highest = tl.maximum(highest, tl.max(line_highest, 0))
                if ARGMAX:
                    firsts = tl.load(best_ptr + places, mask=mask, other=NO_COLUMN)
                    first = tl.min(tl.where(line_highest == new_highest[None, :], firsts, NO_COLUMN), 0)
                    # Among NaN the index can be one beyond the vocabulary.
                    best = tl.where((new_highest > highest) & (first < vocabulary), first, best)
                if MEAN:
                    scores += tl.sum(tl.load(score_ptr + places, mask=mask, other=0.0), 0)
                highest = new_highest
        tl.store(sums_ptr + rows, total, mask=inside)
        if not REPEAT:
            anchor = tl.load(anchor_ptr + rows, mask=inside, other=0.0)
            bad = (tl.abs(highest * gain - anchor) > max_distance) & inside
            tl.store(used_anchor_ptr + rows, tl.where(bad, highest * gain, anchor), mask=inside)
            tl.store(flag_ptr + tl.program_id(0), tl.max(bad.to(tl.int32), 0))
            if ARGMAX:
                tl.store(argmax_ptr + rows, best.to(tl.int64), mask=inside)
            if MEAN:
                tl.store(mean_ptr + rows, scores * gain / vocabulary, mask=inside)


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


@triton.jit(do_not_specialize=["n"])
def column_sums_kernel(
    matrix_ptr, factor_ptr, sums_ptr, n, columns_count, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """One program a block of columns."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < columns_count
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, n, ROWS):
        rows = start + tl.arange(0, ROWS)
        pointers = matrix_ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        values = tl.load(pointers, mask=(rows < n)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        total += values * tl.load(factor_ptr + rows, mask=rows < n, other=0.0)[:, None]
    tl.store(sums_ptr + columns, tl.sum(total, 0), mask=inside)


def exp_logits(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    anchor: Tensor,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    out: Tensor | None,
    need_mean: bool = False,
    need_argmax: bool = False,
    config: Config | None = None,
) -> ExpLogits:
    """Statistics of z over raw = x[n,H] @ weight[V,H].T + bias[V], and out[n,V] = exp(z - anchor) slope in bfloat16.

    anchor[n], float32: any number near the row's largest z; what was really used is returned. out: None for statistics
    only; a row stride that is a multiple of 8 elements lets it be written by TMA. The argmax is the lowest index among
    equals. A NaN or inf in a row makes its sum NaN or inf; its argmax is then some index of the vocabulary.
    """
    n, vocabulary = x.shape[0], weight.shape[0]
    product = _product(x, weight, bias, out, softcap, temperature, config)
    check_row_values("anchor", anchor, n, x.device)
    used_anchor, sums = torch.empty(2, n, dtype=torch.float32, device=x.device)
    mean = torch.empty_like(sums) if need_mean else None
    argmax = torch.empty(n, dtype=torch.int64, device=x.device) if need_argmax else None
    if n == 0:
        return ExpLogits(used_anchor, sums, mean, argmax)

    tiles = triton.cdiv(vocabulary, product.config.columns)
    part_sums, part_highest = torch.empty(2, tiles, n, dtype=torch.float32, device=x.device)
    part_scores = torch.empty_like(part_sums) if need_mean else None
    part_best = torch.empty(tiles, n, dtype=torch.int32, device=x.device) if need_argmax else None
    reductions = triton.cdiv(n, REDUCE_ROWS)
    flags = torch.empty(reductions, dtype=torch.int32, device=x.device)
    for repeat in (False, True):
        # The repeat leaves the mean and the argmax as they are: they know no anchor.
        options = {"MEAN": need_mean and not repeat, "ARGMAX": need_argmax and not repeat, "REPEAT": repeat}
        exp_logits_kernel[(product.programs,)](
            product.x,
            product.weight,
            bias,
            used_anchor if repeat else anchor,
            product.out,
            part_sums,
            part_highest,
            part_scores,
            part_best,
            flags,
            *product.scalars,
            WRITE=out is not None,
            FLAG_ROWS=REDUCE_ROWS,
            **options,
            **product.constants,
        )
        reduce_kernel[(reductions,)](
            anchor,
            used_anchor,
            part_sums,
            part_highest,
            part_scores,
            part_best,
            sums,
            mean,
            argmax,
            flags,
            n,
            vocabulary,
            tiles,
            gain(softcap, temperature),
            MAX_DISTANCE,
            ROWS=REDUCE_ROWS,
            TILES=REDUCE_TILES,
            **options,
        )
    return ExpLogits(used_anchor, sums, mean, argmax)


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
    product = _product(x, weight, bias, out, softcap, temperature, config)
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


def column_sums(matrix: Tensor, row_factor: Tensor) -> Tensor:
    """[V] float32 = sum_i row_factor[i] matrix[i,:] of matrix[n,V] (any row stride), in one order."""
    check_matrix("matrix", matrix)
    n, columns = matrix.shape
    check_row_values("row_factor", row_factor, n, matrix.device)
    sums = torch.empty(columns, dtype=torch.float32, device=matrix.device)
    if columns:
        column_sums_kernel[(triton.cdiv(columns, COLUMN_BLOCK),)](
            matrix, row_factor, sums, n, columns, matrix.stride(0), ROWS=COLUMN_ROWS, COLUMNS=COLUMN_BLOCK
        )
    return sums


class _Product(NamedTuple):
    """x @ weight.T as the kernels take it; a tensor that TMA moves is a descriptor."""

    config: Config
    programs: int
    x: Tensor | TensorDescriptor
    weight: Tensor | TensorDescriptor
    out: Tensor | TensorDescriptor | None
    scalars: tuple[int | float, ...]
    constants: dict[str, Any]


def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    softcap: float | None,
    temperature: float,
    config: Config | None,
) -> _Product:
    for name, matrix in (("x", x), ("weight", weight), ("out", out)):
        if matrix is not None:
            check_matrix(name, matrix)
    n, width = x.shape
    vocabulary = weight.shape[0]
    if x.dtype != torch.bfloat16 or width == 0:
        raise ValueError(f"x: got {x.dtype} {tuple(x.shape)}, takes bfloat16 [n, H] with H > 0")
    if weight.dtype != x.dtype or weight.shape[1] != width or vocabulary == 0:
        raise ValueError(f"weight: got {weight.dtype} {tuple(weight.shape)}, takes {x.dtype} [V, {width}] with V > 0")
    if bias is not None and (bias.shape != (vocabulary,) or not bias.is_contiguous()):
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, takes contiguous ({vocabulary},)")
    if out is not None and (out.dtype != x.dtype or out.shape != (n, vocabulary)):
        raise ValueError(f"out: got {out.dtype} {tuple(out.shape)}, takes {x.dtype} ({n}, {vocabulary})")

    fits = all(map(_fits_descriptor, (x, weight, out)))
    config = config or (CONFIGS[_architecture(x.device)][0] if fits else ODD_ROWS)
    config = config._replace(descriptors=config.descriptors and fits)
    tiles = triton.cdiv(n, config.rows) * triton.cdiv(vocabulary, config.columns)
    out_stride = 0 if out is None else out.stride(0)
    scalars = (
        n, vocabulary, width, x.stride(0), weight.stride(0), out_stride, gain(softcap, temperature), inverse(softcap)
    )  # fmt: skip
    constants = _constants(config, softcap is not None, bias is not None, width % config.depth == 0)
    constants |= {"num_warps": config.warps, "num_stages": config.stages}
    programs = min(tiles, config.programs * _multiprocessors(x.device))
    if not config.descriptors:
        return _Product(config, programs, x, weight, out, scalars, constants)
    x = TensorDescriptor.from_tensor(x, [config.rows, config.depth])
    weight = TensorDescriptor.from_tensor(weight, [config.columns, config.depth])
    if out is not None:
        out = TensorDescriptor.from_tensor(out, [config.rows, config.columns // 2])
    return _Product(config, programs, x, weight, out, scalars, constants)


def _constants(config: Config, softcap: bool, bias: bool, even: bool) -> dict[str, Any]:
    """The constexpr arguments that both products share."""
    return {
        "SOFTCAP": softcap,
        "BIAS": bias,
        "TMA": config.descriptors,
        "EVEN": even,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "DEPTH": config.depth,
        "GROUP": config.group,
    }


def check_matrix(name: str, matrix: Tensor) -> None:
    if matrix.ndim != 2 or (matrix.shape[1] > 1 and matrix.stride(1) != 1):
        found = f"shape {tuple(matrix.shape)} with strides {matrix.stride()}"
        raise ValueError(f"{name}: got {found}, takes a matrix with adjacent elements in a row")


def _fits_descriptor(matrix: Tensor | None) -> bool:
    """Whether TMA can move tiles of this matrix: its rows begin at multiples of 16 bytes."""
    if matrix is None:
        return True
    row_bytes = matrix.stride(0) * matrix.element_size()
    return (
        matrix.shape[0] > 0
        and matrix.stride(0) >= matrix.shape[1]
        and row_bytes % 16 == 0
        and matrix.data_ptr() % 16 == 0
    )


@cache
def _architecture(device: torch.device) -> str:
    """A key of CONFIGS."""
    if device.type != "cuda":
        return "other"
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    return {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}.get((major, minor), "other")


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 1


# What changes the code of a product, in a covering set: all off, each on somewhere, all on together.
_EXP_OPTIONS = (
    {"WRITE"},
    {"WRITE", "MEAN", "ARGMAX"},
    {"WRITE", "SOFTCAP", "BIAS", "MEAN", "ARGMAX"},
    {"ARGMAX"},
    {"WRITE", "REPEAT"},
    {"WRITE", "SOFTCAP", "BIAS", "REPEAT"},
)
_DZ_OPTIONS = (set(), {"SOFTCAP", "BIAS", "UNIFORM"})
_OPTIONAL = {
    "BIAS": ("bias_ptr",),
    "WRITE": ("out",),
    "MEAN": ("score_ptr", "mean_ptr"),
    "ARGMAX": ("best_ptr", "argmax_ptr"),
    "UNIFORM": ("uniform_ptr",),
}


def compile_cases(target: Target) -> list[KernelCase]:
    """Both products in each configuration of the architecture, by TMA and by pointers, and the small kernels."""
    configs = CONFIGS.get(target.name, CONFIGS["other"])
    cases = []
    for config in configs:
        cases += _product_cases(config)
    cases += _product_cases(ODD_ROWS, odd=True)
    for options in (set(), {"MEAN", "ARGMAX"}, {"REPEAT"}):
        constants = {name: name in options for name in ("MEAN", "ARGMAX", "REPEAT")}
        constants |= {"ROWS": REDUCE_ROWS, "TILES": REDUCE_TILES} | _absent(options, ("MEAN", "ARGMAX"))
        cases.append(_case("reduce", reduce_kernel, options, constants, {}, 4, 3, False))
    for dtype in TRITON_NAMES.values():
        constants = {"ROWS": COLUMN_ROWS, "COLUMNS": COLUMN_BLOCK}
        types = {"matrix_ptr": f"*{dtype}"}
        cases.append(_case(f"column_sums {dtype}", column_sums_kernel, set(), constants, types, 4, 3, False))
    return cases


def _product_cases(config: Config, odd: bool = False) -> list[KernelCase]:
    """odd: rows at any stride, of any width."""
    loads = "tma" if config.descriptors else "odd rows" if odd else "pointers"
    how = f"{config.rows}x{config.columns}x{config.depth} {loads}"
    cases = []
    for kernel, name, covering, names in (
        (exp_logits_kernel, "exp_logits", _EXP_OPTIONS, ("WRITE", "MEAN", "ARGMAX", "REPEAT")),
        (dz_logits_kernel, "dz_logits", _DZ_OPTIONS, ("UNIFORM",)),
    ):
        for options in covering:
            constants = _constants(config, "SOFTCAP" in options, "BIAS" in options, not odd)
            constants |= {option: option in options for option in names} | {"FLAG_ROWS": REDUCE_ROWS}
            constants |= _absent(options, ("BIAS", *names))
            types = dict.fromkeys(("x", "weight", "out", "bias_ptr"), "*bf16")
            if config.descriptors:
                types["x"] = f"tensordesc<bf16[{config.rows},{config.depth}]>"
                types["weight"] = f"tensordesc<bf16[{config.columns},{config.depth}]>"
                types["out"] = f"tensordesc<bf16[{config.rows},{config.columns // 2}]>"
            label = f"{name} {how}"
            case = _case(label, kernel, options, constants, types, config.warps, config.stages, True)
            if odd:
                case = case._replace(aligned=tuple(name for name in case.aligned if not name.endswith("stride")))
            cases.append(case)
    return cases


def _absent(options: set[str], names: tuple[str, ...]) -> dict[str, None]:
    """The arguments that are None without their option."""
    return {argument: None for name in names if name not in options for argument in _OPTIONAL.get(name, ())}


def _case(
    label: str,
    kernel: Any,
    options: set[str],
    constants: dict[str, Any],
    types: dict[str, str],
    warps: int,
    stages: int,
    tensor_cores: bool,
) -> KernelCase:
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {name: kind for name, kind in (_TYPES | types).items() if name in kernel.arg_names}
    types = {name: kind for name, kind in types.items() if name not in constants}
    aligned = tuple(name for name, kind in types.items() if kind[0] == "*" or name.endswith("stride"))
    name = " ".join([label, *sorted(option.lower() for option in options)])
    return kernel_case(name, kernel, types, constants, aligned, warps, stages, tensor_cores)


# What every other argument is.
_TYPES = (
    {f"{name}_ptr": "*fp32" for name in ("anchor", "used_anchor", "sum", "max", "score", "sums", "mean")}
    | {f"{name}_ptr": "*fp32" for name in ("lse", "factor", "uniform")}
    | {"best_ptr": "*i32", "flag_ptr": "*i32", "argmax_ptr": "*i64"}
    | dict.fromkeys(("n", "vocabulary", "width", "tiles", "columns_count"), "i32")
    | dict.fromkeys(("x_stride", "weight_stride", "out_stride", "stride"), "i32")
    | dict.fromkeys(("gain", "inv_softcap", "inv_temperature", "max_distance"), "fp32")
)
