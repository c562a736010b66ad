"""Causal attention over packed documents in Triton, forward and backward: "triton" of varlen_attention.

For one head, queries i and keys j of the same document at local positions, a = scale:

    x_ij = q_i . k_j                         t_ij = tanh(a x_ij / softcap)          (with softcap)
    s_ij = a x_ij   or   softcap t_ij        visible: 0 <= i - j < window           (any i - j >= 0 without a window)
    p_ij = exp(s_ij - lse_i),  lse_i = log sum_j exp(s_ij)                          o_i = sum_j p_ij v_j

Everything is in base 2, where the exponential is one instruction: with y = x (or t) and b = a log2(e) (or
softcap log2(e)), exp(s - lse) = exp2(b y - lse2). The forward pass reads the keys of a tile of queries block by block
and keeps a running maximum m, the sum l and the output o of what it has seen:

    m' = max(m, max_j b y_ij)                    r = exp2(m - m')
    l' = r l + sum_j exp2(b y_ij - m')           o' = r o + sum_j exp2(b y_ij - m') v_j

and ends with o / l and lse2 = m + log2 l. With the upstream gradient g and delta_i = g_i . o_i, the backward pass makes
p again:

    dv_j = sum_i p_ij g_i        ds_ij = p_ij (g_i . v_j - delta_i) [ (1 - t_ij^2) ]
    dq_i = a sum_j ds_ij k_j     dk_j = a sum_i ds_ij q_i

One kernel owns a tile of keys and sums over the queries of all query heads of its key head; another owns a tile of
queries. Each output is written once, by one program, in a fixed order: no atomics, the same bits every time. The price
is that x and g . v are computed twice, seven products where atomics would need five.

Rows outside a program's own document are never loaded (they read as 0), so that not even a NaN gets from one document
into another. Blocks on the diagonal and on the window's edge are masked; those between are not. Offsets that can pass
2^31 are int64: of documents, of heads and of blocks; only those inside one block are int32.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_tiles import TILE_TOKENS, AttentionTiles
from .targets import KernelCase, Target

HEAD_SIZES = (64, 96, 128, 256)  # what the configurations are made for; others up to the last one are padded
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# Row strides are multiplied inside a block in int32.
LARGEST_STRIDE = (2**31 - 1) // (2 * TILE_TOKENS)
DELTA_ROWS = 32

_LOG2_E = tl.constexpr(1.4426950408889634)
# A running maximum that no score is below, finite so that subtracting it from itself is 0.
_LOWEST = tl.constexpr(-1.0e38)


class Blocks(NamedTuple):
    """Queries and keys one step of a program takes, and how it is compiled."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


class Configuration(NamedTuple):
    """Of the forward kernel, of the one for dk and dv, and of the one for dq."""

    forward: Blocks
    d_keys: Blocks
    d_queries: Blocks


# ---------------------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------------------


@triton.jit
def _tile(tiles, tile_count, HEADS, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """(document's start int64, its length, local start of this program's rows, head); heads fastest."""
    program = tl.program_id(0)
    head = program % HEADS
    part = program // HEADS
    column = tiles + part // (TILE // BLOCK)
    start = tl.load(column)
    end = tl.load(column + tile_count)
    first = tl.load(column + 2 * tile_count) + (part % (TILE // BLOCK)) * BLOCK
    return start.to(tl.int64), end - start, first - start, head


@triton.jit
def _load(rows_of, first, stride, limit, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows first : first + BLOCK of one head, [BLOCK, BLOCK_D]; 0 from row `limit` and from column HEAD_DIM on."""
    row = tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK_D)
    pointers = rows_of + tl.cast(first, tl.int64) * stride + row[:, None] * stride + column[None, :]
    is_there = row[:, None] < limit - first
    if HEAD_DIM != BLOCK_D:
        is_there = is_there & (column[None, :] < HEAD_DIM)
    return tl.load(pointers, mask=is_there, other=0.0)


@triton.jit
def _store(rows_of, value, first, stride, limit, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    row = tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK_D)
    pointers = rows_of + tl.cast(first, tl.int64) * stride + row[:, None] * stride + column[None, :]
    is_there = row[:, None] < limit - first
    if HEAD_DIM != BLOCK_D:
        is_there = is_there & (column[None, :] < HEAD_DIM)
    tl.store(pointers, value.to(rows_of.dtype.element_ty), mask=is_there)


@triton.jit
def _tanh(x, IS_FP32: tl.constexpr):
    """tanh by the exponential. Near 0 it cancels, to an absolute error of 1e-7; fp32 inputs get the series there."""
    result = 1.0 - 2.0 / (tl.exp2(x * (2.0 * _LOG2_E)) + 1.0)
    if IS_FP32:
        z = x * x
        series = -1382.0 / 155925.0
        series = series * z + 62.0 / 2835.0
        series = series * z - 17.0 / 315.0
        series = series * z + 2.0 / 15.0
        series = series * z - 1.0 / 3.0
        result = tl.where(z < 0.09, x + x * z * series, result)
    return result


@triton.jit
def _visible(query, key, window, HAS_WINDOW: tl.constexpr):
    visible = query >= key
    if HAS_WINDOW:
        visible = visible & (query - key < window)
    return visible


@triton.jit
def _key_bounds(first, length, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Keys begin : end are read by queries first : first + BLOCK_M; in blocks of inside : diagonal all is visible."""
    end = tl.minimum(first + BLOCK_M, length)
    diagonal = (first + 1) // BLOCK_N * BLOCK_N
    begin = 0
    inside = 0
    if HAS_WINDOW:
        begin = tl.maximum(first - window + 1, 0) // BLOCK_N * BLOCK_N
        inside = first + BLOCK_M - window
    return begin, inside, diagonal, end


@triton.jit(do_not_specialize=["tile_count", "tokens", "window"])
def _forward_kernel(
    q,
    k,
    v,
    out,
    lse2,
    tiles,
    tile_count,
    tokens,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    heads,
    group,
    window,
    inner,
    to_log2,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    start, length, first, head = _tile(tiles, tile_count, heads, TILE, BLOCK_M)
    if first >= length:
        return
    key_head = tl.cast(head // group, tl.int64)
    head = tl.cast(head, tl.int64)
    k += start * k_stride + key_head * k_head_stride
    v += start * v_stride + key_head * v_head_stride
    queries = _load(q + start * q_stride + head * q_head_stride, first, q_stride, length, HEAD_DIM, BLOCK_M, BLOCK_D)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    highest = tl.full([BLOCK_M], _LOWEST, tl.float32)
    query = first + tl.arange(0, BLOCK_M)
    begin, inside, diagonal, end = _key_bounds(first, length, window, BLOCK_M, BLOCK_N, HAS_WINDOW)
    for block in tl.range(begin, end, BLOCK_N):
        keys = _load(k, block, k_stride, length, HEAD_DIM, BLOCK_N, BLOCK_D)
        y = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        if HAS_SOFTCAP:
            y = _tanh(y * inner, queries.dtype == tl.float32)
        if (block < inside) | (block >= diagonal):
            key = block + tl.arange(0, BLOCK_N)
            y = tl.where(_visible(query[:, None], key[None, :], window, HAS_WINDOW), y, float("-inf"))
        higher = tl.maximum(highest, tl.max(y, 1) * to_log2)
        p = tl.exp2(y * to_log2 - higher[:, None])
        rescale = tl.exp2(highest - higher)
        total = total * rescale + tl.sum(p, 1)
        values = _load(v, block, v_stride, length, HEAD_DIM, BLOCK_N, BLOCK_D)
        acc = tl.dot(p.to(values.dtype), values, acc * rescale[:, None], input_precision="ieee")
        highest = higher

    out_stride = heads * HEAD_DIM
    out += start * out_stride + head * HEAD_DIM
    _store(out, acc / total[:, None], first, out_stride, length, HEAD_DIM, BLOCK_M, BLOCK_D)
    tl.store(lse2 + head * tokens + start + query, highest + tl.log2(total), mask=query < length)


@triton.jit(do_not_specialize=["tokens"])
def _delta_kernel(
    out,
    d_out,
    delta,
    tokens,
    d_out_stride,
    d_out_head_stride,
    heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """delta[head, token] = sum over the head's columns of out * d_out."""
    program = tl.program_id(0)
    head = tl.cast(program % heads, tl.int64)
    first = program // heads * BLOCK_M
    o = _load(out + head * HEAD_DIM, first, heads * HEAD_DIM, tokens, HEAD_DIM, BLOCK_M, BLOCK_D)
    g = _load(d_out + head * d_out_head_stride, first, d_out_stride, tokens, HEAD_DIM, BLOCK_M, BLOCK_D)
    row = first + tl.arange(0, BLOCK_M)
    tl.store(delta + head * tokens + row, tl.sum(o.to(tl.float32) * g.to(tl.float32), 1), mask=row < tokens)


@triton.jit(do_not_specialize=["tile_count", "tokens", "window"])
def _d_keys_kernel(
    q,
    k,
    v,
    d_out,
    lse2,
    delta,
    dk,
    dv,
    tiles,
    tile_count,
    tokens,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    d_out_stride,
    d_out_head_stride,
    key_heads,
    group,
    window,
    inner,
    to_log2,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    start, length, first, key_head = _tile(tiles, tile_count, key_heads, TILE, BLOCK_N)
    if first >= length:
        return
    key_head = tl.cast(key_head, tl.int64)
    keys = _load(k + start * k_stride + key_head * k_head_stride, first, k_stride, length, HEAD_DIM, BLOCK_N, BLOCK_D)
    values = _load(v + start * v_stride + key_head * v_head_stride, first, v_stride, length, HEAD_DIM, BLOCK_N, BLOCK_D)

    # Queries read from the diagonal on. Before `inside` a block has queries before some key, from `edge` on queries
    # from which some key is out of the window.
    inside = first + BLOCK_N - 1
    edge = length
    end = length
    if HAS_WINDOW:
        edge = first + window - BLOCK_M + 1
        end = tl.minimum(length, first + BLOCK_N - 1 + window)
    key = first + tl.arange(0, BLOCK_N)
    dk_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    # Hoisting addresses out of these loops costs more registers than there are beside two sums.
    for query_head in tl.range(0, group, disable_licm=True):
        head = key_head * group + query_head
        q_head = q + start * q_stride + head * q_head_stride
        d_out_head = d_out + start * d_out_stride + head * d_out_head_stride
        for block in tl.range(first, end, BLOCK_M, disable_licm=True):
            query = block + tl.arange(0, BLOCK_M)
            queries = _load(q_head, block, q_stride, length, HEAD_DIM, BLOCK_M, BLOCK_D)
            lse2_row = tl.load(lse2 + head * tokens + start + query, mask=query < length, other=0.0)
            y = tl.dot(keys, tl.trans(queries), input_precision="ieee")  # transposed: [keys, queries]
            if HAS_SOFTCAP:
                y = _tanh(y * inner, keys.dtype == tl.float32)
            p = tl.exp2(y * to_log2 - lse2_row[None, :])
            if (block < inside) | (block >= edge):
                p = tl.where(_visible(query[None, :], key[:, None], window, HAS_WINDOW), p, 0.0)
            g = _load(d_out_head, block, d_out_stride, length, HEAD_DIM, BLOCK_M, BLOCK_D)
            dv_sum = tl.dot(p.to(g.dtype), g, dv_sum, input_precision="ieee")
            if HAS_SOFTCAP:
                p = p * (1.0 - y * y)
            delta_row = tl.load(delta + head * tokens + start + query, mask=query < length, other=0.0)
            ds = p * (tl.dot(values, tl.trans(g), input_precision="ieee") - delta_row[None, :])
            dk_sum = tl.dot(ds.to(queries.dtype), queries, dk_sum, input_precision="ieee")

    stride = key_heads * HEAD_DIM
    offset = start * stride + key_head * HEAD_DIM
    _store(dk + offset, dk_sum * scale, first, stride, length, HEAD_DIM, BLOCK_N, BLOCK_D)
    _store(dv + offset, dv_sum, first, stride, length, HEAD_DIM, BLOCK_N, BLOCK_D)


@triton.jit(do_not_specialize=["tile_count", "tokens", "window"])
def _d_queries_kernel(
    q,
    k,
    v,
    d_out,
    lse2,
    delta,
    dq,
    tiles,
    tile_count,
    tokens,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    d_out_stride,
    d_out_head_stride,
    heads,
    group,
    window,
    inner,
    to_log2,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    start, length, first, head = _tile(tiles, tile_count, heads, TILE, BLOCK_M)
    if first >= length:
        return
    key_head = tl.cast(head // group, tl.int64)
    head = tl.cast(head, tl.int64)
    k += start * k_stride + key_head * k_head_stride
    v += start * v_stride + key_head * v_head_stride
    q += start * q_stride + head * q_head_stride
    d_out += start * d_out_stride + head * d_out_head_stride
    queries = _load(q, first, q_stride, length, HEAD_DIM, BLOCK_M, BLOCK_D)
    g = _load(d_out, first, d_out_stride, length, HEAD_DIM, BLOCK_M, BLOCK_D)
    query = first + tl.arange(0, BLOCK_M)
    lse2_row = tl.load(lse2 + head * tokens + start + query, mask=query < length, other=0.0)
    delta_row = tl.load(delta + head * tokens + start + query, mask=query < length, other=0.0)

    dq_sum = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    begin, inside, diagonal, end = _key_bounds(first, length, window, BLOCK_M, BLOCK_N, HAS_WINDOW)
    for block in tl.range(begin, end, BLOCK_N):
        keys = _load(k, block, k_stride, length, HEAD_DIM, BLOCK_N, BLOCK_D)
        y = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        if HAS_SOFTCAP:
            y = _tanh(y * inner, queries.dtype == tl.float32)
        p = tl.exp2(y * to_log2 - lse2_row[:, None])
        if (block < inside) | (block >= diagonal):
            key = block + tl.arange(0, BLOCK_N)
            p = tl.where(_visible(query[:, None], key[None, :], window, HAS_WINDOW), p, 0.0)
        if HAS_SOFTCAP:
            p = p * (1.0 - y * y)
        values = _load(v, block, v_stride, length, HEAD_DIM, BLOCK_N, BLOCK_D)
        ds = p * (tl.dot(g, tl.trans(values), input_precision="ieee") - delta_row[:, None])
        dq_sum = tl.dot(ds.to(keys.dtype), keys, dq_sum, input_precision="ieee")

    stride = heads * HEAD_DIM
    _store(dq + start * stride + head * HEAD_DIM, dq_sum * scale, first, stride, length, HEAD_DIM, BLOCK_M, BLOCK_D)


# ---------------------------------------------------------------------------------------------------------------------
# Configurations
# ---------------------------------------------------------------------------------------------------------------------

# By family of architectures, by bytes of an element, by columns of a head as padded. On Hopper the limit is registers:
# both sums of the kernel for dk and dv live in them, 128 a thread for 128 keys of 128 columns. On Blackwell they lie in
# tensor memory. "small" is for 99 KiB of shared memory and for whatever is not known. fp32 has no tensor cores. Chosen
# to compile without spills where that is required; not yet by timing.
_FP32 = {
    64: Configuration(Blocks(64, 32, 4, 2), Blocks(32, 32, 8, 2), Blocks(32, 32, 8, 2)),
    128: Configuration(Blocks(32, 32, 8, 2), Blocks(16, 16, 8, 2), Blocks(32, 32, 4, 2)),
    256: Configuration(Blocks(32, 16, 8, 2), Blocks(16, 16, 8, 1), Blocks(16, 16, 4, 2)),
}
_CONFIGURATIONS = {
    "hopper": {
        2: {
            64: Configuration(Blocks(128, 64, 4, 3), Blocks(64, 128, 8, 3), Blocks(128, 64, 8, 3)),
            128: Configuration(Blocks(128, 64, 8, 3), Blocks(32, 128, 8, 3), Blocks(128, 64, 8, 3)),
            256: Configuration(Blocks(128, 64, 8, 2), Blocks(16, 64, 8, 3), Blocks(128, 32, 8, 2)),
        },
        4: _FP32,
    },
    "blackwell": {
        2: {
            64: Configuration(Blocks(128, 64, 4, 3), Blocks(64, 128, 8, 3), Blocks(128, 64, 4, 3)),
            128: Configuration(Blocks(128, 64, 8, 3), Blocks(32, 128, 8, 3), Blocks(128, 64, 8, 3)),
            256: Configuration(Blocks(128, 32, 8, 2), Blocks(16, 64, 8, 2), Blocks(64, 64, 8, 2)),
        },
        4: _FP32,
    },
    "ampere": {
        2: {
            64: Configuration(Blocks(128, 64, 8, 3), Blocks(64, 64, 8, 2), Blocks(128, 64, 8, 2)),
            128: Configuration(Blocks(128, 64, 8, 2), Blocks(32, 64, 8, 2), Blocks(64, 64, 8, 2)),
            256: Configuration(Blocks(64, 32, 8, 2), Blocks(16, 32, 8, 2), Blocks(32, 32, 8, 2)),
        },
        4: _FP32,
    },
    "small": {
        2: {
            64: Configuration(Blocks(128, 64, 4, 2), Blocks(32, 64, 4, 2), Blocks(64, 64, 4, 2)),
            128: Configuration(Blocks(64, 64, 4, 2), Blocks(32, 64, 8, 2), Blocks(64, 32, 4, 2)),
            256: Configuration(Blocks(64, 32, 8, 2), Blocks(16, 32, 8, 2), Blocks(32, 16, 8, 2)),
        },
        4: _FP32,
    },
}
# The derivative of a softcap takes registers that the kernel for dk and dv has not left there.
_HOPPER_D_KEYS_WITH_SOFTCAP = {64: Blocks(32, 128, 8, 3), 128: Blocks(32, 64, 8, 3)}
_FAMILIES = {80: "ampere", 90: "hopper", 100: "blackwell", 103: "blackwell"}


def padded_head(head_dim: int) -> int:
    """Columns a kernel holds of a head: tensor cores take 16 at least, Triton takes powers of two."""
    return max(16, triton.next_power_of_2(head_dim))


def configuration(arch: int | str | None, head_dim: int, dtype: torch.dtype, has_softcap: bool) -> Configuration:
    """What the kernels are launched with on an architecture, named as in targets.py (90, "gfx942"; None: unknown)."""
    family, columns = _FAMILIES.get(arch, "small"), max(64, padded_head(head_dim))
    chosen = _CONFIGURATIONS[family][dtype.itemsize][columns]
    if has_softcap and family == "hopper" and dtype.itemsize == 2:
        return chosen._replace(d_keys=_HOPPER_D_KEYS_WITH_SOFTCAP.get(columns, chosen.d_keys))
    return chosen


def compile_cases(target: Target) -> list[KernelCase]:
    """Every kernel for every head size, dtype and option it may be launched with on `target`."""
    cases = []
    for dtype, name in DTYPES.items():
        for head_dim in HEAD_SIZES:
            cases.append(_case(_delta_kernel, f"{name} D={head_dim}", name, _delta_constants(head_dim)))
            for option, window, softcap in _OPTIONS:
                blocks = configuration(target.arch, head_dim, dtype, softcap > 0)
                kernels = (_forward_kernel, _d_keys_kernel, _d_queries_kernel)
                for kernel, its_blocks in zip(kernels, blocks, strict=True):
                    constants = _constants(head_dim, TILE_TOKENS, its_blocks, window, softcap)
                    title = f"{name} D={head_dim} {option} {its_blocks.queries}x{its_blocks.keys}"
                    cases.append(_case(kernel, title, name, constants))
    return cases


_OPTIONS = (("plain", 0, 0.0), ("window", 1, 0.0), ("softcap", 0, 1.0), ("window+softcap", 1, 1.0))
_FP32_POINTERS = ("lse2", "delta")
_NUMBERS = ("inner", "to_log2", "scale")
_INTEGERS = ("tile_count", "tokens", "heads", "key_heads", "group", "window")


def _case(kernel: Any, title: str, dtype: str, constants: dict[str, Any]) -> KernelCase:
    """Arguments by their names: strides are multiples of 16, as those of any head size here are."""
    constants = dict(constants)
    num_warps, num_stages = constants.pop("num_warps"), constants.pop("num_stages")
    signature, aligned = {}, []
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in _NUMBERS:
            signature[name] = "fp32"
        elif name in _INTEGERS:
            signature[name] = "i32"
        else:
            pointer = "*i32" if name == "tiles" else "*fp32" if name in _FP32_POINTERS else f"*{dtype}"
            signature[name] = "i32" if name.endswith("_stride") else pointer
            aligned.append(name)
    kernel_name = kernel.__name__.strip("_").removesuffix("_kernel")
    return KernelCase(
        f"attention_{kernel_name} {title}",
        kernel,
        signature,
        constants,
        tuple(aligned),
        num_warps,
        num_stages,
        kernel is not _delta_kernel and dtype != "fp32",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Launches, as operators that torch.compile keeps whole
# ---------------------------------------------------------------------------------------------------------------------


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiles: AttentionTiles,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    blocks: Configuration | None = None,
) -> Tensor:
    """out[T,Hq,D] of q[T,Hq,D], k and v[T,Hk,D] of one dtype, one of DTYPES, with D up to 256.

    Differentiable once, and always with the same bits. `blocks` overrides the configuration made for the device.
    """
    out, _ = _attention(
        q,
        k,
        v,
        tiles.by_queries,
        tiles.by_keys,
        tiles.tile,
        scale,
        window or 0,
        softcap or 0.0,
        [number for kernel in blocks or () for number in kernel],
    )
    return out


def _configuration(blocks: list[int], q: Tensor, softcap: float) -> Configuration:
    if blocks:
        return Configuration(*(Blocks(*blocks[i : i + 4]) for i in (0, 4, 8)))
    return configuration(_architecture(q.device), q.shape[2], q.dtype, softcap > 0)


@cache
def _architecture(device: torch.device) -> int | str | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return 10 * properties.major + properties.minor


@torch.library.custom_op("distill::varlen_attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    by_queries: Tensor,
    by_keys: Tensor,
    tile: int,
    scale: float,
    window: int,
    softcap: float,
    blocks: list[int],
) -> tuple[Tensor, Tensor]:
    """out[T,Hq,D] and lse2[Hq,T], the base-2 log-sum-exp of the scores.

    window and softcap are 0 for none; blocks are the numbers of a Configuration, or none for the device's own.
    """
    q, k, v = (_rows(x) for x in (q, k, v))
    tokens, heads, head_dim = q.shape
    out = torch.empty((tokens, heads, head_dim), dtype=q.dtype, device=q.device)
    lse2 = torch.empty((heads, tokens), dtype=torch.float32, device=q.device)
    shape = _configuration(blocks, q, softcap).forward
    with _current(q.device):
        _forward_kernel[(by_queries.shape[1] * (tile // shape.queries) * heads,)](
            q,
            k,
            v,
            out,
            lse2,
            by_queries,
            by_queries.shape[1],
            tokens,
            *_strides(q, k, v),
            heads,
            heads // k.shape[1],
            window,
            *_factors(scale, softcap),
            **_constants(head_dim, tile, shape, window, softcap),
        )
    return out, lse2


@_attention.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op("distill::varlen_attention_backward", mutates_args=())
def _attention_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse2: Tensor,
    by_queries: Tensor,
    by_keys: Tensor,
    tile: int,
    scale: float,
    window: int,
    softcap: float,
    blocks: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv."""
    d_out, q, k, v, out = _rows(d_out), _rows(q), _rows(k), _rows(v), out.contiguous()
    tokens, heads, head_dim = q.shape
    key_heads = k.shape[1]
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse2)
    _, for_keys, for_queries = _configuration(blocks, q, softcap)
    strides = _strides(q, k, v, d_out)
    options = (heads // key_heads, window, *_factors(scale, softcap), scale)
    with _current(q.device):
        _delta_kernel[(triton.cdiv(tokens, DELTA_ROWS) * heads,)](
            out,
            d_out,
            delta,
            tokens,
            *_strides(d_out),
            heads,
            **_delta_constants(head_dim),
        )
        _d_keys_kernel[(by_keys.shape[1] * (tile // for_keys.keys) * key_heads,)](
            q,
            k,
            v,
            d_out,
            lse2,
            delta,
            dk,
            dv,
            by_keys,
            by_keys.shape[1],
            tokens,
            *strides,
            key_heads,
            *options,
            **_constants(head_dim, tile, for_keys, window, softcap),
        )
        _d_queries_kernel[(by_queries.shape[1] * (tile // for_queries.queries) * heads,)](
            q,
            k,
            v,
            d_out,
            lse2,
            delta,
            dq,
            by_queries,
            by_queries.shape[1],
            tokens,
            *strides,
            heads,
            *options,
            **_constants(head_dim, tile, for_queries, window, softcap),
        )
    return dq, dk, dv


@_attention_backward.register_fake
def _(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, by_queries, by_keys, *ctx.options = inputs
    ctx.set_materialize_grads(False)  # nobody asks for a gradient through lse2
    ctx.save_for_backward(q, k, v, *output, by_queries, by_keys)


def _differentiate(ctx: Any, d_out: Tensor, d_lse2: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse2, by_queries, by_keys = ctx.saved_tensors
    d_qkv = _attention_backward(d_out, q, k, v, out, lse2, by_queries, by_keys, *ctx.options)
    return *d_qkv, None, None, *(None for _ in ctx.options)


_attention.register_autograd(_differentiate, setup_context=_save)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _rows(x: Tensor) -> Tensor:
    """x[T,H,D] with its columns next to each other and strides the kernels can multiply."""
    return x if x.stride(2) == 1 and x.stride(0) <= LARGEST_STRIDE else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


def _factors(scale: float, softcap: float) -> tuple[float, float]:
    """inner, to_log2: the scores in base 2 are to_log2 * tanh(inner * x), or to_log2 * x without a softcap."""
    if softcap:
        return scale / softcap, softcap * _LOG2_E.value
    return 1.0, scale * _LOG2_E.value


def _delta_constants(head_dim: int) -> dict[str, Any]:
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head(head_dim),
        "BLOCK_M": DELTA_ROWS,
        "num_warps": 4,
        "num_stages": 1,
    }


def _constants(head_dim: int, tile: int, blocks: Blocks, window: int, softcap: float) -> dict[str, Any]:
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head(head_dim),
        "TILE": tile,
        "BLOCK_M": blocks.queries,
        "BLOCK_N": blocks.keys,
        "HAS_WINDOW": window > 0,
        "HAS_SOFTCAP": softcap > 0,
        "num_warps": blocks.num_warps,
        "num_stages": blocks.num_stages,
    }
