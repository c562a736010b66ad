"""Passes over a vocabulary in chunks of rows: statistics of softmax(x W^T + b), and the gradients of any row loss.

Notation, for a row x and vocabulary entry v:

    raw = W x + b      t = raw / softcap      z = (softcap tanh(t)  or  raw) / temperature      p = softmax(z)

A row loss (row_losses.py) needs lse, z at K ids and perhaps the mean of z, and its gradient is a multiple of p plus a constant,
except at the ids. So a chunk's logits are turned once into a matrix M with  r M = factor * p * dz/draw  for some scale r of each row,
the ids' entries of M are replaced by what makes r M right there, and

    dx = r (M @ W)        dW += M^T @ (r x)        db += M^T @ r

M is never rescaled: r is applied to thin matrices. A constant u for all entries of a row is a rank-1 term:
dx += u sum_v W_v, dW_v += sum_rows u x, db_v += sum_rows u. Only softcap and such a constant together need M to be written with both.

How M comes about is a backend's matter (`choose_backend`): plain torch in blocks that stay in a CPU's cache, one Triton kernel over
the logits of a cuBLAS product, or a Triton product that never writes logits at all. All three are tested against the same
reference.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from .logits_backends import Logits, make_backend
from .row_losses import RowGradient, RowLoss, RowStats

DEFAULT_WORKSPACE_BYTES = {"cpu": 64 << 20, "cuda": 5 << 28}


def smallest_factor(dtype: torch.dtype) -> float:
    """Of what a row's ids get, the share that its factor is kept above.

    The factor may be 0, or small beside them, yet M at the ids is divided by it. That moves other entries of dz by this
    share of its largest: a millionth, or in float16, which ends at 65504, its own rounding.
    """
    return 2.0**-11 if dtype == torch.float16 else 1e-6


class Rows(NamedTuple):
    """The rows that count of hidden[N,H], in the dtype of the products; gathered and cast a chunk at a time."""

    hidden: Tensor
    index: Tensor | None  # [n] of the rows that count; None: all
    dtype: torch.dtype

    @property
    def size(self) -> int:
        return (self.hidden if self.index is None else self.index).shape[0]

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def chunk(self, rows: slice) -> Tensor:
        """[rows,H] with adjacent elements in a row."""
        x = self.hidden[rows] if self.index is None else self.hidden.index_select(0, self.index[rows])
        x = x.to(self.dtype)
        return x if x.stride(1) == 1 else x.contiguous()


class Head(NamedTuple):
    """weight[V,H] and bias[V] of the dtype the products run in, and what becomes of their logits."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    temperature: float


class Needs(NamedTuple):
    hidden: bool
    weight: bool
    bias: bool


class Gradients(NamedTuple):
    """d_hidden[n,H] in the products' dtype, d_weight[V,H] and d_bias[V] in float32 (float64 for float64)."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def statistics(
    hidden: Rows,
    head: Head,
    ids: Tensor,
    *,
    need_mean: bool = False,
    need_argmax: bool = False,
    workspace_bytes: int | None = None,
) -> RowStats:
    """Statistics of n rows at ids[n,K] (-1: none there)."""
    chunks = _chunks(hidden.size, head, workspace_bytes)
    backend = make_backend(head, chunks.step, hidden.device)
    total = _empty_stats(hidden, ids, need_mean, need_argmax)
    with computing_on(hidden.device):
        for rows in chunks:
            part = backend.statistics(hidden.chunk(rows), ids[rows], need_mean, need_argmax)
            _copy_stats(total, rows, part)
    return total


def gradients(
    hidden: Rows,
    head: Head,
    ids: Tensor,
    lse: Tensor,
    gradient: RowGradient,
    needs: Needs,
    *,
    workspace_bytes: int | None = None,
) -> Gradients:
    """Gradients for a RowGradient of all rows, with the lse of an earlier pass; the logits are computed again."""
    chunks = _chunks(hidden.size, head, workspace_bytes)
    backend = make_backend(head, chunks.step, hidden.device)
    result = _Accumulator(hidden, head, needs, len(chunks))
    with computing_on(hidden.device):
        for rows in chunks:
            part = RowGradient(*(None if value is None else value[rows] for value in gradient))
            result.add_written(backend, hidden.chunk(rows), ids[rows], lse[rows], part, rows)
    return result.finish()


def losses_and_gradients(
    hidden: Rows,
    head: Head,
    ids: Tensor,
    row_loss: RowLoss,
    needs: Needs,
    *,
    need_argmax: bool = False,
    workspace_bytes: int | None = None,
) -> tuple[Tensor, RowStats, Gradients]:
    """Losses[n], statistics, and gradients of the sum of losses, in one pass."""
    chunks = _chunks(hidden.size, head, workspace_bytes)
    backend = make_backend(head, chunks.step, hidden.device)
    total = _empty_stats(hidden, ids, False, need_argmax)
    losses = torch.empty_like(total.lse)
    result = _Accumulator(hidden, head, needs, len(chunks))
    # Statistics first, and the logits again, where M needs the loss's gradient while it is written, or nothing needs M.
    separate = row_loss.uses_mean and head.softcap is not None
    with computing_on(hidden.device):
        for rows in chunks:
            x, at = hidden.chunk(rows), ids[rows]
            if separate or not any(needs):
                stats = backend.statistics(x, at, row_loss.uses_mean, need_argmax)
                if any(needs):
                    losses[rows], gradient = row_loss.losses_and_gradient(stats, rows)
                    result.add_written(backend, x, at, stats.lse, gradient, rows)
                else:
                    losses[rows] = row_loss.losses(stats, rows)
            else:
                matrix, scale, stats = backend.exponentials(x, at, row_loss.uses_mean, need_argmax)
                losses[rows], gradient = row_loss.losses_and_gradient(stats, rows)
                result.add_scaled(matrix, scale, x, at, stats, gradient, rows)
            _copy_stats(total, rows, stats)
    return losses, total, result.finish()


def computing_on(device: torch.device) -> ExitStack:
    """Products keep the dtype they are given; Triton, which launches on the current device, launches on this one."""
    stack = ExitStack()
    stack.enter_context(torch.autocast(device.type, enabled=False))
    if device.type == "cuda":
        stack.enter_context(torch.cuda.device(device))
    return stack


class _Chunks:
    """Slices of at most `step` rows, of equal size."""

    def __init__(self, rows: int, step: int) -> None:
        self.rows, self.step = rows, step

    def __iter__(self) -> Iterator[slice]:
        return (slice(start, min(start + self.step, self.rows)) for start in range(0, self.rows, self.step))

    def __len__(self) -> int:
        return -(-self.rows // self.step)


def _chunks(rows: int, head: Head, workspace_bytes: int | None) -> _Chunks:
    """Chunks whose logits fit the workspace; one row at least."""
    vocabulary, width = head.weight.shape
    device_type = head.weight.device.type
    if workspace_bytes is None:
        workspace_bytes = DEFAULT_WORKSPACE_BYTES.get(device_type, 1 << 30)
        if device_type == "cpu":  # fewer rows would cost more in passes over dW than they save
            workspace_bytes = max(workspace_bytes, vocabulary * width * 4)
    limit = max(1, workspace_bytes // (vocabulary * head.weight.dtype.itemsize))
    step = max(1, -(-rows // max(1, -(-rows // limit))))
    if device_type == "cuda" and step >= 128:
        step = min(limit // 128 * 128, -(-step // 128) * 128)  # whole tiles of the matrix products
    return _Chunks(rows, max(1, step))


def _empty_stats(hidden: Rows, ids: Tensor, need_mean: bool, need_argmax: bool) -> RowStats:
    rows, device = hidden.size, hidden.device
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return RowStats(
        torch.empty(rows, dtype=wide, device=device),
        torch.empty(ids.shape, dtype=wide, device=device),
        torch.empty(rows, dtype=wide, device=device) if need_mean else None,
        torch.empty(rows, dtype=torch.int64, device=device) if need_argmax else None,
    )


def _copy_stats(total: RowStats, rows: slice, part: RowStats) -> None:
    for whole, values in zip(total, part, strict=True):
        if whole is not None:
            whole[rows] = values


def products_come_wide(device_type: str, dtype: torch.dtype) -> bool:
    """Whether a product of `dtype` can come out in float32, to be accumulated; a CPU has none that does."""
    return device_type == "cuda" and dtype in (torch.bfloat16, torch.float16)


class _Accumulator:
    """The three gradients as chunks come in; products are accumulated in float32 whatever the chunk."""

    def __init__(self, hidden: Rows, head: Head, needs: Needs, chunks: int) -> None:
        self.head, self.needs = head, needs
        self.wide = torch.promote_types(hidden.dtype, torch.float32)
        self.product_is_wide = products_come_wide(hidden.device.type, hidden.dtype)
        self.chunks = chunks
        self.d_hidden = head.weight.new_empty(hidden.size, hidden.hidden.shape[1]) if needs.hidden else None
        self.d_weight: Tensor | None = None
        self.part = None
        bias_like = head.weight[:, 0]
        self.d_bias = torch.zeros_like(bias_like, dtype=self.wide) if needs.bias else None
        self.uniform_x: Tensor | None = None  # sum over rows of u x, in float32: what every row of dW gets
        self.weight_sum: Tensor | None = None

    def add_scaled(
        self,
        matrix: Tensor,
        scale: Tensor | None,
        x: Tensor,
        ids: Tensor,
        stats: RowStats,
        gradient: RowGradient,
        rows: slice,
    ) -> None:
        """matrix[r,V] with scale * matrix = p * dz/draw * temperature everywhere; its ids' entries are replaced here."""
        softcap, temperature = self.head.softcap, self.head.temperature
        at_ids = gradient.at_ids if softcap is None else gradient.at_ids * _slope(stats.z, softcap, temperature)
        r = gradient.softmax_factor
        if r is not None:
            smallest = torch.where(ids >= 0, gradient.at_ids, 0.0).abs().amax(1) * smallest_factor(matrix.dtype)
            r = torch.where(r.abs() < smallest, torch.copysign(smallest, r), r)
        r = _product(r, scale)
        # A row without any gradient has r = 0; what stands in M is then of no account.
        _place(matrix, ids, at_ids if r is None else torch.where(r[:, None] == 0, 0.0, at_ids / r[:, None]))
        if temperature != 1.0:
            r = torch.full_like(stats.lse, 1 / temperature) if r is None else r / temperature
        self._add(matrix, r, x, rows)
        if gradient.uniform is not None:
            self._add_uniform(gradient.uniform / temperature, x, rows)

    def add_written(
        self, backend: Logits, x: Tensor, ids: Tensor, lse: Tensor, gradient: RowGradient, rows: slice
    ) -> None:
        """The backend writes dz with all its factors; the ids' entries are replaced here."""
        softcap, temperature = self.head.softcap, self.head.temperature
        matrix, z = backend.gradient(x, ids, lse, gradient.softmax_factor, gradient.uniform)
        at_ids = gradient.at_ids if gradient.uniform is None else gradient.at_ids + gradient.uniform[:, None]
        if softcap is not None:
            at_ids = at_ids * _slope(z, softcap, temperature)
        _place(matrix, ids, at_ids / temperature)
        self._add(matrix, None, x, rows)

    def _add(self, matrix: Tensor, r: Tensor | None, x: Tensor, rows: slice) -> None:
        weight = self.head.weight
        if self.d_hidden is not None:
            if r is None:
                torch.mm(matrix, weight, out=self.d_hidden[rows])
            elif self.product_is_wide:
                torch.mul(torch.mm(matrix, weight, out_dtype=self.wide), r[:, None], out=self.d_hidden[rows])
            else:
                torch.mul(torch.mm(matrix, weight), r[:, None], out=self.d_hidden[rows])
        if self.needs.weight:
            self._add_to_weight(matrix, x if r is None else torch.mul(x, r[:, None], out=torch.empty_like(x)))
        if self.d_bias is not None:
            _add_column_sums(self.d_bias, matrix, r)

    def _add_to_weight(self, matrix: Tensor, x: Tensor) -> None:
        first = self.d_weight is None
        if self.product_is_wide:
            if first:
                self.d_weight = torch.mm(matrix.t(), x, out_dtype=self.wide)
            else:
                torch.addmm(self.d_weight, matrix.t(), x, out_dtype=self.wide, out=self.d_weight)
        elif first and (self.chunks == 1 or x.dtype == self.wide):
            self.d_weight = torch.mm(matrix.t(), x).to(self.wide)
        elif x.dtype == self.wide:
            self.d_weight.addmm_(matrix.t(), x)
        else:
            # The product of bfloat16 matrices comes out as bfloat16, so each chunk's part is rounded once.
            self.part = torch.mm(matrix.t(), x, out=self.part)
            self.d_weight = torch.empty_like(self.part, dtype=self.wide) if first else self.d_weight
            _accumulate(self.d_weight, self.part, first)

    def _add_uniform(self, uniform: Tensor, x: Tensor, rows: slice) -> None:
        if self.d_hidden is not None:
            if self.weight_sum is None:
                self.weight_sum = self.head.weight.sum(0, dtype=self.wide)
            self.d_hidden[rows] = self.d_hidden[rows] + uniform[:, None] * self.weight_sum
        if self.needs.weight:
            part = (uniform[:, None] * x).sum(0)
            self.uniform_x = part if self.uniform_x is None else self.uniform_x + part
        if self.d_bias is not None:
            self.d_bias += uniform.sum()

    def finish(self) -> Gradients:
        if self.needs.weight and self.d_weight is None:  # there were no rows
            self.d_weight = torch.zeros_like(self.head.weight, dtype=self.wide)
        if self.uniform_x is not None:
            self.d_weight = self.d_weight.add_(self.uniform_x)
        return Gradients(self.d_hidden, self.d_weight, self.d_bias)


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a * b


def _slope(z: Tensor, softcap: float, temperature: float) -> Tensor:
    """dz/draw * temperature = 1 - tanh^2, at z."""
    return 1 - (z * (temperature / softcap)).square()


def _place(matrix: Tensor, ids: Tensor, values: Tensor) -> None:
    """matrix[i, ids[i,k]] = values[i,k] in place; ids of -1 place nothing.

    One assignment, in which equal places get equal values: an id of -1 takes the place and the value of an id of
    its row that is there, and where there is none, of what stands at 0 already.
    """
    values = values.to(matrix.dtype)
    present = ids >= 0
    if ids.shape[1] > 1:
        some = present.to(torch.uint8).argmax(1, keepdim=True)
        ids = torch.where(present, ids, ids.gather(1, some))
        values = torch.where(present, values, values.gather(1, some))
        present = present.any(1, keepdim=True)
    values = torch.where(present, values, matrix[:, :1])
    # Not scatter_, which on a CPU passes over the whole matrix.
    matrix[torch.arange(matrix.shape[0], device=matrix.device)[:, None], ids.clamp_min(0)] = values


def _accumulate(total: Tensor, part: Tensor, first: bool) -> None:
    """total += part (= part if first) in pieces: torch converts a mixed-dtype operand as a whole beforehand."""
    rows = max(1, (1 << 20) * torch.get_num_threads() // (total.shape[1] * total.dtype.itemsize))
    for total_block, part_block in zip(total.split(rows), part.split(rows), strict=True):
        total_block.copy_(part_block) if first else total_block.add_(part_block)


def _add_column_sums(total: Tensor, matrix: Tensor, r: Tensor | None) -> None:
    """total[V] += matrix^T @ r in float32."""
    if matrix.device.type == "cuda":
        from .column_sums import column_sums

        total += column_sums(matrix, torch.ones_like(matrix[:, 0], dtype=total.dtype) if r is None else r)
        return
    step = max(1, (1 << 20) * torch.get_num_threads() // (matrix.shape[1] * total.dtype.itemsize))
    for start in range(0, matrix.shape[0], step):
        block = matrix[start : start + step].to(total.dtype)
        total += block.sum(0) if r is None else r[start : start + step] @ block
