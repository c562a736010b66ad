"""Weighted sums over the rows of a matrix: the gradient of the bias."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .targets import KernelCase, Target
from .vocabulary_rows import TRITON_NAMES, check_row_values, kernel_case
from .vocabulary_tiles import check_matrix

BLOCK_COLUMNS, BLOCK_ROWS = 256, 32


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


def column_sums(matrix: Tensor, row_factor: Tensor) -> Tensor:
    """[V] float32 = sum_i row_factor[i] matrix[i,:] of matrix[n,V] (any row stride), in one order."""
    check_matrix("matrix", matrix)
    n, columns = matrix.shape
    check_row_values("row_factor", row_factor, n, matrix.device)
    sums = torch.empty(columns, dtype=torch.float32, device=matrix.device)
    if columns:
        column_sums_kernel[(triton.cdiv(columns, BLOCK_COLUMNS),)](
            matrix, row_factor, sums, n, columns, matrix.stride(0), ROWS=BLOCK_ROWS, COLUMNS=BLOCK_COLUMNS
        )
    return sums


def compile_cases(target: Target) -> list[KernelCase]:
    """In each dtype."""
    constants = {"ROWS": BLOCK_ROWS, "COLUMNS": BLOCK_COLUMNS}
    types = {"factor_ptr": "*fp32", "sums_ptr": "*fp32"} | dict.fromkeys(("n", "columns_count", "stride"), "i32")
    aligned = ("matrix_ptr", "factor_ptr", "sums_ptr", "stride")
    return [
        kernel_case(
            f"column_sums {dtype}", column_sums_kernel, {"matrix_ptr": f"*{dtype}"} | types, constants, aligned, 4, 3
        )
        for dtype in TRITON_NAMES.values()
    ]
