"""Triton's interpreter, as tests/conftest.py sets it up, computes what a GPU does: the other kernels' tests rest on it."""

import os
import subprocess
import sys

import pytest
import torch

from distill.process import child_environment

triton = pytest.importorskip("triton", reason="triton is not installed")
tl = pytest.importorskip("triton.language")
TensorDescriptor = pytest.importorskip("triton.tools.tensor_descriptor").TensorDescriptor

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in cast:RuntimeWarning")  # of values meant to overflow

N = 512
HALVES = [torch.bfloat16, torch.float16]


def bits(x):
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def assert_same_bits(found, expected):
    assert found.dtype == expected.dtype
    nan = expected.isnan()
    assert torch.equal(found.isnan(), nan)
    assert torch.equal(bits(found)[~nan], bits(expected)[~nan])


def any_floats(n=N):
    """fp32 of every size, with ties between two bf16 numbers, infinities, NaN, zeros and subnormal numbers."""
    patterns = torch.randint(-(2**31), 2**31, (n,), dtype=torch.int64).to(torch.int32)
    ties = (patterns[: n // 4] & -65536) | 0x8000
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.4e38, 1e-45, -1e-40, 65504, 1e-7])
    x = patterns.view(torch.float32)
    x[: n // 4] = ties.view(torch.float32)
    x[-len(special) :] = special
    return x


def test_no_child_inherits_the_switch():
    assert triton.knobs.runtime.interpret
    assert "TRITON_INTERPRET" not in os.environ
    code = "import triton, triton.language as tl; print(type(tl.sum).__name__, triton.knobs.runtime.interpret)"
    child = subprocess.run([sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True)
    assert child.stdout.split() == ["JITFunction", "False"], child.stderr


@triton.jit
def cast_kernel(x_ptr, y_ptr, z_ptr, N: tl.constexpr, ROUNDING: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(y_ptr + i, x.to(y_ptr.dtype.element_ty, fp_downcast_rounding=ROUNDING))
    tl.store(z_ptr + i, x)  # a store casts too


@pytest.mark.parametrize("source", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_casts_round_to_nearest_even(source, target):
    x = any_floats().to(source)
    y, z = torch.empty(2, N, dtype=target)
    cast_kernel[(1,)](x, y, z, N, None)
    assert_same_bits(y, x.to(target))
    assert_same_bits(z, x.to(target))


@pytest.mark.parametrize("source", [torch.int32, torch.uint8, torch.int8])
def test_casts_between_integers_and_bf16(source):
    x = torch.randint(-128 if source.is_signed else 0, 128, (N,)).to(source)
    y, z = torch.empty(2, N, dtype=torch.bfloat16)
    cast_kernel[(1,)](x, y, z, N, None)
    assert_same_bits(y, x.bfloat16())
    assert_same_bits(z, x.bfloat16())
    values = (torch.randn(N) * 40).bfloat16()
    values = values.abs() if source == torch.uint8 else values
    y, z = torch.empty(2, N, dtype=torch.int32)
    cast_kernel[(1,)](values, y, z, N, None)
    assert torch.equal(y, values.int()) and torch.equal(z, values.int())


def test_casts_towards_zero_where_asked():
    x = torch.randn(N)
    y, z = torch.empty(2, N, dtype=torch.bfloat16)
    cast_kernel[(1,)](x, y, z, N, "rtz")
    assert_same_bits(y, (bits(x) & -65536).view(torch.float32).bfloat16())


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, z_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    y = tl.load(y_ptr + i)
    z = tl.load(z_ptr + i)
    tl.store(out_ptr + i, x + y)
    tl.store(out_ptr + N + i, x - y)
    tl.store(out_ptr + 2 * N + i, x * y)
    tl.store(out_ptr + 3 * N + i, x / y)
    tl.store(out_ptr + 4 * N + i, -x)
    tl.store(out_ptr + 5 * N + i, tl.abs(x))
    tl.store(out_ptr + 6 * N + i, tl.maximum(x, y))
    tl.store(out_ptr + 7 * N + i, tl.minimum(x, y))
    tl.store(out_ptr + 8 * N + i, tl.where(x < y, x, z))
    tl.store(out_ptr + 9 * N + i, tl.where((x >= y) & (x != z), x, 0.3))
    tl.store(out_ptr + 10 * N + i, tl.fma(x, y, z))
    tl.store(out_ptr + 11 * N + i, x * 1.7 + 1)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_arithmetic_and_comparisons(dtype):
    x, y, z = (torch.randn(N).to(dtype) for _ in range(3))
    x[:8] = y[:8]
    z[8:16] = x[8:16]
    out = torch.empty(12, N, dtype=dtype)
    arithmetic_kernel[(1,)](x, y, z, out, N)
    exact = [v.double() for v in (x, y, z)]
    expected = [x + y, x - y, x * y, x / y, -x, x.abs(), x.maximum(y), x.minimum(y), torch.where(x < y, x, z)]
    expected.append(torch.where((x >= y) & (x != z), x, torch.tensor(0.3, dtype=dtype)))
    for row, values in zip(out, expected, strict=False):
        assert_same_bits(row, values)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(out[10].double(), exact[0] * exact[1] + exact[2], rtol=unit, atol=2 * unit)
    torch.testing.assert_close(out[11].double(), exact[0] * 1.7 + 1, rtol=4 * unit, atol=4 * unit)


def test_maximum_and_minimum_drop_a_nan():
    x, y, z = torch.randn(3, N)
    x[::3] = float("nan")
    y[1::3] = float("nan")
    out = torch.empty(12, N)
    arithmetic_kernel[(1,)](x, y, z, out, N)
    assert_same_bits(out[6], x.fmax(y))
    assert_same_bits(out[7], x.fmin(y))


@triton.jit
def argument_kernel(x_ptr, y_ptr, factor, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(y_ptr + i, x * factor)  # fp32
    tl.store(y_ptr + N + i, x * 1.7)  # of x
    tl.store(y_ptr + 2 * N + i, x.to(tl.float32) * (factor * factor))


def test_a_float_argument_is_fp32():
    x, factor = torch.randn(N).bfloat16(), torch.tensor(0.1).item()
    y = torch.empty(3, N)
    argument_kernel[(1,)](x, y, 0.1, N)
    assert_same_bits(y[0], x.float() * factor)
    assert_same_bits(y[1], (x * torch.tensor(1.7, dtype=torch.bfloat16)).float())
    assert_same_bits(y[2], x.float() * (torch.tensor(0.1) * torch.tensor(0.1)))


@triton.jit
def masked_load_kernel(x_ptr, y_ptr, n, N: tl.constexpr, OTHER: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < n, other=OTHER))
    filled = tl.full((N,), OTHER, y_ptr.dtype.element_ty)
    tl.store(y_ptr + N + i, filled)
    tl.store(y_ptr + 2 * N + i, tl.load(x_ptr + i), mask=i >= n)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("other", [-1.2345678, 0.0, float("-inf")])
def test_masked_loads_and_stores(dtype, other):
    x = torch.randn(N).to(dtype)
    before = torch.randn(3, N).to(dtype)
    y = before.clone()
    n = int(torch.randint(1, N, ()))
    masked_load_kernel[(1,)](x, y, n, N, other)
    fill = torch.full((N,), other, dtype=dtype)
    assert_same_bits(y[0], torch.cat([x[:n], fill[n:]]))
    assert_same_bits(y[1], fill)
    assert_same_bits(y[2], torch.cat([before[2, :n], x[n:]]))


@triton.jit
def dot_kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    OUT: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    k = tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k)
    if TRANSPOSED:
        b = tl.trans(tl.load(b_ptr + n[:, None] * K + k))
    else:
        b = tl.load(b_ptr + k[:, None] * N + n)
    c = tl.load(c_ptr + m[:, None] * N + n).to(OUT)
    c = tl.dot(a, b, c, input_precision=PRECISION, out_dtype=OUT)
    tl.store(c_ptr + m[:, None] * N + n, c)


def run_dot(dtype, precision, out, transposed=False):
    m, n, k = 16, 32, 64
    a, b, c = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype), torch.randn(m, n)
    found = c.clone()
    given = b.T.contiguous() if transposed else b
    dot_kernel[(1,)](a, given, found, m, n, k, precision, out, transposed)
    size = a.double().abs() @ b.double().abs() + c.double().abs()
    return a, b, c, found.double(), size


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("transposed", [False, True])
def test_dots_accumulate_in_fp32(dtype, transposed):
    precision = "ieee" if dtype == torch.float32 else None
    a, b, c, found, size = run_dot(dtype, precision, tl.float32, transposed)
    assert ((found - (a.double() @ b.double() + c.double())).abs() <= 1e-6 * size).all()


def test_an_fp32_dot_is_tf32_unless_the_kernel_says_otherwise():
    a, b, c, found, size = run_dot(torch.float32, None, tl.float32)
    cut_a, cut_b = ((bits(x) & -8192).view(torch.float32).double() for x in (a, b))
    assert ((found - (cut_a @ cut_b + c.double())).abs() <= 1e-6 * size).all()
    assert ((found - (a.double() @ b.double() + c.double())).abs() > 1e-5 * size).any()


def test_a_dot_may_accumulate_in_fp16():
    a, b, c, found, size = run_dot(torch.float16, None, tl.float16)
    exact = a.double() @ b.double() + c.half().double()
    assert ((found - exact).abs() <= 2e-2 * size).all()
    assert torch.equal(found, found.half().double())


@triton.jit
def atomic_kernel(x_ptr, places_ptr, sum_ptr, before_ptr, n, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    before = tl.atomic_add(sum_ptr + tl.load(places_ptr + i, mask=i < n, other=0), x, mask=i < n)
    tl.store(before_ptr + i, before, mask=i < n)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_atomic_additions_to_the_same_place(dtype):
    n, places = 90, 7
    x, where = torch.randn(n).to(dtype), torch.randint(places, (n,))
    total = torch.randn(places).to(dtype)
    expected, before = total.clone(), torch.empty(n, dtype=dtype)
    found_before = torch.empty(n, dtype=dtype)
    for i, j in enumerate(where.tolist()):
        before[i] = expected[j]
        expected[j] += x[i]
    atomic_kernel[(2,)](x, where, total, found_before, n, 64)
    assert_same_bits(total, expected)
    assert_same_bits(found_before, before)


@triton.jit
def functions_kernel(x_ptr, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(y_ptr + i, tl.exp2(x))
    tl.store(y_ptr + N + i, tl.log2(x))
    tl.store(y_ptr + 2 * N + i, tl.exp(x))
    tl.store(y_ptr + 3 * N + i, tl.log(x))
    tl.store(y_ptr + 4 * N + i, tl.rsqrt(x))
    tl.store(y_ptr + 5 * N + i, tl.sigmoid(x))
    tl.store(y_ptr + 6 * N + i, tl.sqrt(x))
    tl.store(y_ptr + 7 * N + i, tl.erf(x))


def test_functions():
    x = torch.rand(N) * 8 + 1e-3
    y = torch.empty(8, N)
    functions_kernel[(1,)](x, y, N)
    z = x.double()
    exact = [z.exp2(), z.log2(), z.exp(), z.log(), z.rsqrt(), z.sigmoid(), z.sqrt(), z.erf()]
    for found, expected in zip(y.double(), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=5e-7, atol=5e-7)


@triton.jit
def add_pair(a, b):
    return a * 0.5 + b


@triton.jit
def reduction_kernel(x_ptr, out_ptr, where_ptr, scan_ptr, M: tl.constexpr, N: tl.constexpr):
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    x = tl.load(x_ptr + m[:, None] * N + n)
    largest, at_largest = tl.max(x, axis=1, return_indices=True)
    smallest, at_smallest = tl.min(x, axis=1, return_indices=True, return_indices_tie_break_left=False)
    tl.store(out_ptr + m, tl.sum(x, axis=1))
    tl.store(out_ptr + M + m, largest)
    tl.store(out_ptr + 2 * M + m, smallest)
    tl.store(out_ptr + 3 * M + m, tl.max(x, axis=1))
    tl.store(out_ptr + 4 * M + m, tl.reduce(x, 1, add_pair))
    tl.store(where_ptr + m, at_largest)
    tl.store(where_ptr + M + m, at_smallest)
    tl.store(where_ptr + 2 * M + m, tl.argmax(x, axis=1))
    tl.store(scan_ptr + m[:, None] * N + n, tl.cumsum(x, axis=1))
    tl.store(out_ptr + 5 * M + m, tl.sum(x))  # of everything


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_reductions(dtype):
    m, n = 8, 32
    x = torch.randn(m, n).to(dtype)
    x[0, 5:9] = 9.0  # a tie: the first one is found
    out, where, scan = torch.empty(6, m), torch.empty(3, m, dtype=torch.int32), torch.empty(m, n)
    reduction_kernel[(1,)](x, out, where, scan, m, n)
    exact = x.double()
    # Sums of fp16 and bf16 are rounded to those; the running sum of bf16 is not.
    unit, size = torch.finfo(dtype).eps, exact.abs().sum(1)
    scan_unit = 1e-6 if dtype == torch.bfloat16 else unit
    assert ((out[0] - exact.sum(1)).abs() <= 8 * unit * size).all()
    assert ((scan - exact.cumsum(1)).abs() <= 8 * scan_unit * size[:, None]).all()
    assert ((out[5, 0] - exact.sum()).abs() <= 8 * unit * size.sum()).all()
    if dtype == torch.bfloat16:
        assert torch.equal(out[0].bfloat16().float(), out[0])
    assert torch.equal(out[1].double(), exact.amax(1)) and torch.equal(out[3].double(), exact.amax(1))
    assert torch.equal(out[2].double(), exact.amin(1))
    assert where[0].tolist() == exact.argmax(1).tolist() == where[2].tolist() and where[0, 0] == 5
    assert torch.equal(exact.gather(1, where[1, :, None].long())[:, 0], exact.amin(1))
    folded = exact[:, 0]
    for column in exact.T[1:]:
        folded = folded * 0.5 + column
    torch.testing.assert_close(out[4].double(), folded, rtol=0, atol=8 * unit * exact.abs().max().item())


@triton.jit
def descriptor_kernel(x, y_ptr, z, M: tl.constexpr, N: tl.constexpr, row, column):
    tile = x.load([row, column])
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    tl.store(y_ptr + m[:, None] * N + n, tile)
    z.store([row, column], tile)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (10, 16), (-3, 8), (16, 0)])
def test_descriptors_fill_with_zeros_and_keep_inside(dtype, row, column):
    rows, columns, m, n = 13, 24, 8, 16
    x, z = torch.randn(rows, columns).to(dtype), torch.randn(rows, columns).to(dtype)
    y = torch.empty(m, n, dtype=dtype)
    before = z.clone()
    descriptor_kernel[(1,)](
        TensorDescriptor.from_tensor(x, [m, n]), y, TensorDescriptor.from_tensor(z, [m, n]), m, n, row, column
    )
    wide = torch.zeros(rows + 40, columns + 40, dtype=dtype)
    wide[20 : 20 + rows, 20 : 20 + columns] = x
    assert_same_bits(y, wide[20 + row : 20 + row + m, 20 + column : 20 + column + n])
    inside = torch.zeros(rows, columns, dtype=torch.bool)
    inside[max(row, 0) : max(row + m, 0), column : column + n] = True
    assert_same_bits(z, torch.where(inside, x, before))


@triton.jit
def made_descriptor_kernel(x_ptr, y_ptr, rows, columns, M: tl.constexpr, N: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, shape=[rows, columns], strides=[columns, 1], block_shape=[M, N])
    y = tl.make_tensor_descriptor(y_ptr, shape=[columns, rows], strides=[rows, 1], block_shape=[N, M])
    i = tl.program_id(0) * M
    for j in tl.range(0, columns, N, num_stages=2):
        y.store([j, i], x.load([i, j]).T)


def test_descriptors_made_in_a_kernel():
    x = torch.randn(40, 24).bfloat16()
    y = torch.empty(24, 40, dtype=torch.bfloat16)
    made_descriptor_kernel[(3,)](x, y, 40, 24, 16, 16)
    assert_same_bits(y, x.T.contiguous())


@triton.jit
def overflow_kernel(out_ptr, stride):
    i = tl.program_id(0) * stride
    tl.store(out_ptr + tl.program_id(0), i)
    tl.store(out_ptr + 2 + tl.program_id(0), tl.program_id(0).to(tl.int64) * stride)


def test_int32_wraps_around_as_on_a_gpu():
    out = torch.empty(4, dtype=torch.int64)
    overflow_kernel[(2,)](out, 2**31 - 1)
    assert out.tolist() == [0, 2**31 - 1, 0, 2**31 - 1]
    out = torch.empty(6, dtype=torch.int64)
    overflow_kernel[(3,)](out[:5], 2**30)
    assert out[2] == -(2**31)
