"""The product with the vocabulary whose epilogue does the softmax's work, so that no pass over the logits is left to do.

For one row with hidden x, with c the softcap, T the temperature and (score, gain) as in vocabulary_rows:

    raw = W x + b        s = score(raw)        z = gain s        slope = 1 - s^2 with a softcap, else 1

Given a number a near the largest z, the row's anchor (the label's logit will nearly always do),

    E_v = exp(z_v - a) slope_v        S = sum_v exp(z_v - a)        lse = a + log S

so one product gives lse and, but for a factor of each row, the gradient: dz/draw softmax = E / (S T). E is rounded once, to
bfloat16; S is summed from what was not yet rounded. Each (row, tile of the vocabulary) writes its sum, maximum, argmax and
sum of scores to a place of its own; a second kernel reduces them, in one order, so results are the same in every run.

An anchor is bad when the largest z is more than MAX_DISTANCE from it. The reduction then makes the row's maximum its anchor
and flags it; a second launch repeats the tiles of flagged rows and returns at once where there are none. The host
never waits for the device.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .targets import KernelCase, Target
from .vocabulary_rows import LOG2_E, check_row_values, gain, softcap_score
from .vocabulary_tiles import Config, option_case, product_cases, tiled_product

# Nats between a row's largest z and its anchor. bfloat16 and float32 end at exp(88): 60 leave exp(28) for a sum over the
# vocabulary and for a product with W. Below, the largest exponential is exp(-60), and whatever is at most exp(-27) of
# it, which no sum in float32 would notice, is still a normal number (they end at exp(-87)).
MAX_DISTANCE = 60.0

# Rows of one program of the reduction: 64 bytes of each tile's line of partial results.
REDUCE_ROWS, REDUCE_TILES = 16, 64
NO_COLUMN = tl.constexpr(2**31 - 1)


class ExpLogits(NamedTuple):
    """Of rows[n], in float32 but for the int64 argmax: anchors really used, sums of exp(z - anchor), means of z."""

    anchor: Tensor
    sums: Tensor
    mean: Tensor | None
    argmax: Tensor | None


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
    product = tiled_product(x, weight, bias, out, softcap, temperature, config)
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


# What changes the code, in a covering set: each off and on somewhere, all that go together on together.
_COVERING = (
    {"WRITE"},
    {"WRITE", "MEAN", "ARGMAX"},
    {"WRITE", "SOFTCAP", "BIAS", "MEAN", "ARGMAX"},
    {"ARGMAX"},
    {"WRITE", "REPEAT"},
    {"WRITE", "SOFTCAP", "BIAS", "REPEAT"},
)
# By option, the arguments that are None without it.
_OPTIONAL = {
    "BIAS": ("bias_ptr",),
    "WRITE": ("out",),
    "MEAN": ("score_ptr", "mean_ptr"),
    "ARGMAX": ("best_ptr", "argmax_ptr"),
    "REPEAT": (),
}


def compile_cases(target: Target) -> list[KernelCase]:
    cases = product_cases("exp_logits", exp_logits_kernel, target, _COVERING, _OPTIONAL, {"FLAG_ROWS": REDUCE_ROWS})
    blocks = {"ROWS": REDUCE_ROWS, "TILES": REDUCE_TILES}
    for options in (set(), {"MEAN", "ARGMAX"}, {"REPEAT"}):
        cases.append(
            option_case("reduce", reduce_kernel, options, _OPTIONAL, blocks, {}, 4, 3, uses_tensor_cores=False)
        )
    return cases
