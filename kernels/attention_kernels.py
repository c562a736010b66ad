"""Triton kernels of causal attention over packed documents, forward and backward.

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

from typing import Any

import triton
import triton.language as tl

from .attention_configurations import DTYPES, HEAD_SIZES, block_constants, configuration, delta_constants
from .attention_tiles import TILE_TOKENS
from .targets import KernelCase, Target

LOG2_E = 1.4426950408889634  # log2(e)

_LOG2_E = tl.constexpr(LOG2_E)
# A running maximum that no score is below, finite so that subtracting it from itself is 0.
_LOWEST = tl.constexpr(-1.0e38)


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
def forward_kernel(
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
def delta_kernel(
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
def d_keys_kernel(
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
def d_queries_kernel(
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


def compile_cases(target: Target) -> list[KernelCase]:
    """Every kernel for every head size, dtype and option it may be launched with on `target`."""
    cases = []
    for dtype, name in DTYPES.items():
        for head_dim in HEAD_SIZES:
            cases.append(_case(delta_kernel, f"{name} D={head_dim}", name, delta_constants(head_dim)))
            for option, window, softcap in _OPTIONS:
                blocks = configuration(target.arch, head_dim, dtype, softcap > 0)
                kernels = (forward_kernel, d_keys_kernel, d_queries_kernel)
                for kernel, its_blocks in zip(kernels, blocks, strict=True):
                    constants = block_constants(head_dim, TILE_TOKENS, its_blocks, window, softcap)
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
    kernel_name = kernel.__name__.removesuffix("_kernel")
    return KernelCase(
        f"attention_{kernel_name} {title}",
        kernel,
        signature,
        constants,
        tuple(aligned),
        num_warps,
        num_stages,
        kernel is not delta_kernel and dtype != "fp32",
    )
