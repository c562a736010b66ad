"""Three ways from rows x to what linear_loss.py needs of softmax(x W^T + b), and the choice between them.

    torch       a product, then plain torch over blocks of rows: any device, any dtype
    rows        a cuBLAS product, then one Triton kernel over its rows: any dtype on a GPU
    anchored    a Triton product that writes exponentials, never logits: bfloat16 on a GPU

A backend holds the buffer of one chunk and gives views of it, good until its next call.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .row_losses import RowStats

if TYPE_CHECKING:
    from .linear_loss import Head

BACKENDS = ("anchored", "rows", "torch")  # in order of preference
# Below it a row's lse is not taken as the difference of a logit and its log-probability.
FAR_LOGPROB = -50.0


class Logits(Protocol):
    def statistics(self, x: Tensor, ids: Tensor, need_mean: bool, need_argmax: bool) -> RowStats:
        """Of x[n,H] at ids[n,K]."""

    def exponentials(
        self, x: Tensor, ids: Tensor, need_mean: bool, need_argmax: bool
    ) -> tuple[Tensor, Tensor | None, RowStats]:
        """M[n,V], scale[n] (None: 1) and statistics: scale * M = p, times 1 - tanh^2 with a softcap."""

    def gradient(
        self, x: Tensor, ids: Tensor, lse: Tensor, factor: Tensor | None, uniform: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """dz/draw (factor * p + uniform) [n,V], and z[n,K] at the ids; ids are not treated apart."""


def unsupported_backend(backend: str, device_type: str, dtype: torch.dtype, width: int) -> str | None:
    """Why `backend` cannot be used for products of this dtype with weight[V,width], or None if it can."""
    if backend == "torch":
        return None
    if device_type != "cuda":
        return f"it runs on cuda, not on {device_type}"
    if not find_spec("triton"):
        return "triton is not installed"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes float32, bfloat16 and float16, not {dtype}"
    if backend == "anchored" and dtype != torch.bfloat16:
        return f"exponentials need the range and the size of bfloat16, not {dtype}"
    if backend == "anchored" and width % 8:
        return f"rows of {width} elements do not begin at multiples of 16 bytes: a library's product is faster there"
    return None


def choose_backend(device_type: str, dtype: torch.dtype, width: int) -> str:
    """The only place that decides."""
    return next(name for name in BACKENDS if unsupported_backend(name, device_type, dtype, width) is None)


def make_backend(head: "Head", rows: int, device: torch.device) -> Logits:
    """A backend for chunks of up to `rows` rows."""
    name = choose_backend(device.type, head.weight.dtype, head.weight.shape[1])
    return AnchoredLogits(head, rows) if name == "anchored" else ProductLogits(head, rows, use_triton=name == "rows")


class ProductLogits:
    """The logits of a chunk are written, in the products' dtype, and then overwritten by M."""

    def __init__(self, head: "Head", rows: int, *, use_triton: bool) -> None:
        self.head = head
        self.buffer = head.weight.new_empty(rows, head.weight.shape[0])
        self.softmax = _TritonRows(head) if use_triton else _TorchRows(head, rows)

    def _product(self, x: Tensor) -> Tensor:
        weight, bias = self.head.weight, self.head.bias
        logits = self.buffer[: x.shape[0]]
        return torch.mm(x, weight.t(), out=logits) if bias is None else torch.addmm(bias, x, weight.t(), out=logits)

    def statistics(self, x: Tensor, ids: Tensor, need_mean: bool, need_argmax: bool) -> RowStats:
        return self.softmax.statistics(self._product(x), ids, need_mean, need_argmax, write=False)[0]

    def exponentials(
        self, x: Tensor, ids: Tensor, need_mean: bool, need_argmax: bool
    ) -> tuple[Tensor, Tensor | None, RowStats]:
        logits = self._product(x)
        stats, scale = self.softmax.statistics(logits, ids, need_mean, need_argmax, write=True)
        return logits, scale, stats

    def gradient(
        self, x: Tensor, ids: Tensor, lse: Tensor, factor: Tensor | None, uniform: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits = self._product(x)
        z = z_at(logits, ids, self.head)
        self.softmax.gradient_(logits, lse, factor, uniform)
        return logits, z


def z_at(logits: Tensor, ids: Tensor, head: "Head") -> Tensor:
    """[n,K] in float32 or wider."""
    raw = logits.gather(1, ids.clamp_min(0))
    return capped(raw.to(torch.promote_types(raw.dtype, torch.float32)), ids, head)


def capped(raw: Tensor, ids: Tensor, head: "Head") -> Tensor:
    """z of the logits raw[n,K] at ids[n,K]; 0 where an id is -1."""
    if head.softcap is not None:
        raw = head.softcap * torch.tanh(raw / head.softcap)
    return torch.where(ids >= 0, raw if head.temperature == 1.0 else raw / head.temperature, 0.0)


def block_rows(vocabulary: int, itemsize: int, device_type: str) -> int:
    """Rows whose wide logits fit, with others, the L2 of each CPU core; on a GPU, a launch worth making."""
    size = (1 << 20) * torch.get_num_threads() if device_type == "cpu" else 1 << 28
    return max(1, size // (vocabulary * itemsize))


class _TorchRows:
    """Plain torch over blocks of rows, so that the wide logits of a chunk never exist; the buffers are reused."""

    def __init__(self, head: "Head", rows: int) -> None:
        self.head = head
        weight = head.weight
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        self.block = min(rows, block_rows(weight.shape[0], self.dtype.itemsize, weight.device.type))
        self.wide = torch.empty(self.block, weight.shape[0], dtype=self.dtype, device=weight.device)
        self.z = None if weight.dtype == self.dtype else torch.empty_like(self.wide)

    def _capped(self, logits: Tensor) -> Tensor:
        """z in the wide dtype; in place if that is the logits' own."""
        z = logits if self.z is None else self.z[: logits.shape[0]].copy_(logits)
        if self.head.softcap is not None:
            z.div_(self.head.softcap).tanh_().mul_(self.head.softcap)
        return z if self.head.temperature == 1.0 else z.div_(self.head.temperature)

    def _times_slope(self, values: Tensor, z: Tensor) -> Tensor:
        """values * (1 - tanh^2); z is used up."""
        if self.head.softcap is None:
            return values
        return values.mul_(z.mul_(self.head.temperature / self.head.softcap).square_().neg_().add_(1))

    def statistics(
        self, logits: Tensor, ids: Tensor, need_mean: bool, need_argmax: bool, *, write: bool
    ) -> tuple[RowStats, None]:
        parts = []
        for block, block_ids in zip(logits.split(self.block), ids.split(self.block), strict=True):
            z = self._capped(block)
            logp = torch.log_softmax(z, 1, out=self.wide[: block.shape[0]])
            column = block_ids[:, :1].clamp_min(0)
            logp_there = logp.gather(1, column)
            lse = (z.gather(1, column) - logp_there).squeeze(1)
            # Where an entry is masked out the difference is nothing but rounding, and of two infinities NaN.
            far = ~(logp_there.squeeze(1) > FAR_LOGPROB)
            if far.any():
                lse[far] = z[far].amax(1) - logp[far].amax(1)
            at_ids = torch.where(block_ids >= 0, z.gather(1, block_ids.clamp_min(0)), 0.0)
            parts.append((lse, at_ids, z.mean(1) if need_mean else lse, z.argmax(1) if need_argmax else lse))
            if write and self.head.softcap is None:
                torch.exp(logp, out=block)
            elif write:
                block.copy_(self._times_slope(logp.exp_(), z))
        if not parts:
            parts = [(self.wide[:0, 0], self.wide[:0, :1].expand(0, ids.shape[1]), self.wide[:0, 0], ids[:0, 0])]
        lse, z_ids, mean, argmax = (torch.cat(values) for values in zip(*parts, strict=True))
        return RowStats(lse, z_ids, mean if need_mean else None, argmax if need_argmax else None), None

    def gradient_(self, logits: Tensor, lse: Tensor, factor: Tensor | None, uniform: Tensor | None) -> None:
        for start in range(0, logits.shape[0], self.block):
            rows = slice(start, start + self.block)
            block = logits[rows]
            z = self._capped(block)
            dz = torch.sub(z, lse[rows, None], out=self.wide[: block.shape[0]]).exp_()
            if factor is not None:
                dz.mul_(factor[rows, None])
            if uniform is not None:
                dz.add_(uniform[rows, None])
            block.copy_(self._times_slope(dz, z).div_(self.head.temperature))


class _TritonRows:
    """vocabulary_rows.py over a whole chunk."""

    def __init__(self, head: "Head") -> None:
        self.head = head
        self.options = {"softcap": head.softcap, "temperature": head.temperature}

    def statistics(
        self, logits: Tensor, ids: Tensor, need_mean: bool, need_argmax: bool, *, write: bool
    ) -> tuple[RowStats, Tensor | None]:
        from .vocabulary_rows import row_gradient_, row_stats

        lse, mean, argmax = row_stats(logits, **self.options, need_mean=need_mean, need_argmax=need_argmax)
        stats = RowStats(lse, z_at(logits, ids, self.head), mean, argmax)
        if write:
            row_gradient_(logits, lse, None, None, **self.options)
        # The kernel writes dz/draw, which has the temperature in it.
        temperature = self.head.temperature
        return stats, None if temperature == 1.0 or not write else torch.full_like(lse, temperature)

    def gradient_(self, logits: Tensor, lse: Tensor, factor: Tensor | None, uniform: Tensor | None) -> None:
        from .vocabulary_rows import row_gradient_

        row_gradient_(logits, lse, factor, uniform, **self.options)


class AnchoredLogits:
    """M = exp(z - anchor), written by the epilogue of the product; its row sums, taken before rounding, are the scale.

    The anchor is the largest z of a row's ids (0 without any), so M needs no pass that finds a maximum. It is exact: only
    M is rounded.
    """

    def __init__(self, head: "Head", rows: int) -> None:
        weight = head.weight if head.weight.stride(1) == 1 else head.weight.contiguous()
        self.head = head._replace(weight=weight, bias=None if head.bias is None else head.bias.contiguous())
        self.rows = rows
        self.buffer: Tensor | None = None
        self.options = {"softcap": head.softcap, "temperature": head.temperature}

    def _matrix(self, rows: int) -> Tensor:
        if self.buffer is None:
            vocabulary = self.head.weight.shape[0]
            # The row stride is a multiple of 128 bytes whatever V is: tensor copies and products want it aligned.
            whole = self.head.weight.new_empty(self.rows, -(-vocabulary // 64) * 64)
            whole[:, vocabulary:] = 0  # a library's product may read beyond V and multiply by 0
            self.buffer = whole[:, :vocabulary]
        return self.buffer[:rows]

    def _exponentials(
        self, x: Tensor, ids: Tensor, out: Tensor | None, need_mean: bool, need_argmax: bool
    ) -> tuple[Tensor, RowStats]:
        from .vocabulary_gemm import exp_logits

        z = self._z_at(x, ids)
        if ids.shape[1] == 1:
            anchor = z[:, 0].contiguous()
        else:
            anchor = torch.where(ids >= 0, z, float("-inf")).amax(1)
            anchor = torch.where(anchor.isneginf(), 0.0, anchor)
        found = exp_logits(
            x,
            self.head.weight,
            self.head.bias,
            anchor,
            **self.options,
            out=out,
            need_mean=need_mean,
            need_argmax=need_argmax,
        )
        # Two orders of summation may put z at an id above lse by rounding: no log-probability may be above 0.
        lse = torch.maximum(found.anchor + found.sums.log(), anchor)
        return found.sums.reciprocal(), RowStats(lse, z, found.mean, found.argmax)

    def _z_at(self, x: Tensor, ids: Tensor) -> Tensor:
        from .indexed_logits import indexed_logits

        return capped(indexed_logits(x, self.head.weight, self.head.bias, ids), ids, self.head)

    def statistics(self, x: Tensor, ids: Tensor, need_mean: bool, need_argmax: bool) -> RowStats:
        return self._exponentials(x, ids, None, need_mean, need_argmax)[1]

    def exponentials(
        self, x: Tensor, ids: Tensor, need_mean: bool, need_argmax: bool
    ) -> tuple[Tensor, Tensor, RowStats]:
        matrix = self._matrix(x.shape[0])
        scale, stats = self._exponentials(x, ids, matrix, need_mean, need_argmax)
        return matrix, scale, stats

    def gradient(
        self, x: Tensor, ids: Tensor, lse: Tensor, factor: Tensor | None, uniform: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        from .vocabulary_gradient import dz_logits

        matrix = self._matrix(x.shape[0])
        factor = torch.ones_like(lse) if factor is None else factor
        dz_logits(x, self.head.weight, self.head.bias, lse, factor, uniform, **self.options, out=matrix)
        return matrix, self._z_at(x, ids) if self.head.softcap is not None else lse[:, None]
