"""Statistics of a head whose vocabulary is split over the ranks of a process group.

Each rank has rows of the weight, in the order of ranks, and all have the same hidden. With l_r the lse of rank r's entries,

    lse = log sum_r exp(l_r)     z_k = that of the rank that owns id k     mean = average of the ranks' means

which takes two reductions of a few numbers per row, whatever the vocabulary. Backward, rank r's share of d lse is
exp(l_r - lse), and the gradient of hidden, which every rank holds a part of, is summed over the group.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .linear_arguments import debugging
from .linear_loss_ops import linear_statistics
from .row_losses import RowStats


def parallel_statistics(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    kept: Tensor | None,
    softcap: float | None,
    dtype: torch.dtype,
    *,
    need_mean: bool,
    need_argmax: bool,
    workspace_bytes: int | None,
    group: dist.ProcessGroup,
) -> RowStats:
    """RowStats over the whole vocabulary, of ids[N,K] in it (-1: none), the same on every rank."""
    size = weight.shape[0]
    first = dist.get_rank(group) * size
    own_ids = torch.where((ids >= first) & (ids < first + size), ids - first, -1)
    lse, z, mean, argmax = linear_statistics(
        _SumGradient.apply(hidden, group), weight, bias, own_ids, kept, softcap, 1.0, dtype, need_mean, need_argmax,
        workspace_bytes,
    )  # fmt: skip
    best = None
    if need_argmax:
        with torch.no_grad():  # the logit that each rank's argmax has
            best = linear_statistics(
                hidden, weight, bias, argmax[:, None], kept, softcap, 1.0, dtype, False, False, workspace_bytes
            )[1].squeeze(1)
    lse, z, mean = _Combine.apply(lse, z, mean if need_mean else torch.zeros_like(lse), size, group)
    if kept is not None:
        lse = torch.where(kept, lse, 0.0)
    return RowStats(
        lse, z, mean if need_mean else None, None if best is None else _combined_argmax(best, argmax + first, group)
    )


def _combined_argmax(best: Tensor, argmax: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The lowest id among those of the ranks with the largest logit."""
    largest = best.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    found = torch.where(best == largest, argmax, torch.iinfo(argmax.dtype).max)
    dist.all_reduce(found, dist.ReduceOp.MIN, group=group)
    return found


def _check_equal_parts(largest: Tensor, smallest: Tensor) -> None:
    if largest.device.type == "cuda" and not debugging():
        torch._assert_async(largest == smallest, "weight: parts of the vocabulary that differ in size")
    elif largest != smallest:
        found = f"parts of {int(smallest)} to {int(largest)} entries over the group"
        raise ValueError(f"weight: got {found}, takes parts of one size")


class _SumGradient(torch.autograd.Function):
    """The same tensor on every rank, of whose gradient every rank will have a part."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        # In float32: the sum must not depend on the number of ranks by a rounding of each part.
        total = grad.to(torch.promote_types(grad.dtype, torch.float32), copy=True)
        dist.all_reduce(total, group=ctx.group)
        return total.to(grad.dtype), None


class _Combine(torch.autograd.Function):
    """lse[N], z[N,K] and mean[N] of each rank to those of the whole vocabulary; their gradients are the same on all ranks."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, lse: Tensor, z: Tensor, mean: Tensor, size: int, group: dist.ProcessGroup
    ) -> tuple[Any, ...]:
        # With the sizes of the parts, which must be equal for an id to have one owner.
        largest = torch.cat([lse, lse.new_full((1,), size), lse.new_full((1,), -size)])
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        _check_equal_parts(largest[-2], -largest[-1])
        largest = largest[:-2]
        sums = torch.cat([(lse - largest).exp()[:, None], mean[:, None], z], 1)
        dist.all_reduce(sums, group=group)
        total = largest + sums[:, 0].log()
        ctx.share = (lse - total).exp()
        ctx.ranks = dist.get_world_size(group)
        return total, sums[:, 2:].contiguous(), sums[:, 1] / ctx.ranks

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_lse: Tensor, d_z: Tensor, d_mean: Tensor) -> tuple[Tensor | None, ...]:
        return d_lse * ctx.share, d_z, d_mean / ctx.ranks, None, None
