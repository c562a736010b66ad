"""The passes of linear_loss.py as operators: opaque to torch.compile, with shapes it can plan with and gradients.

`linear_statistics` is the primitive: lse[N], z[N,K] and mean[N], differentiable, so any loss of them is a few lines of torch; its
backward computes the logits again (8 N H V FLOP in all). The fused losses return their gradients from the forward
pass instead (6 N H V); `register_fused_autograd` is what their operators share.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .linear_loss import Gradients, Head, Needs, Rows, gradients, statistics
from .logits_backends import block_rows
from .row_losses import RowGradient, RowStats


def cast_head(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, softcap: float | None, temperature: float
) -> Head:
    return Head(weight.to(dtype), None if bias is None else bias.to(dtype), softcap, temperature)


def kept_indices(kept: Tensor | None) -> Tensor | None:
    """Indices of the rows that count; None if all do. Reads a count from the device unless `kept` is None."""
    if kept is None:
        return None
    rows = kept.nonzero().squeeze(1)
    return None if rows.shape[0] == kept.shape[0] else rows


def select(values: Tensor, rows: Tensor | None) -> Tensor:
    return values if rows is None else values.index_select(0, rows)


def spread(values: Tensor, rows: Tensor | None, total: int) -> Tensor:
    """Values of the kept rows at their places among all rows, zeros elsewhere."""
    if rows is None:
        return values
    return values.new_zeros(total, *values.shape[1:]).index_copy_(0, rows, values)


def spread_gradients(found: Gradients, rows: Tensor | None, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients as an operator returns them: an empty tensor stands for one that was not asked for."""
    absent = hidden.new_empty(0)
    d_hidden = absent if found.hidden is None else spread(found.hidden, rows, hidden.shape[0])
    return d_hidden, found.weight if found.weight is not None else absent.clone(), (
        found.bias if found.bias is not None else absent.clone()
    )  # fmt: skip


def fake_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(dtype, torch.float32)
    shapes = (hidden.shape, weight.shape, None if bias is None else bias.shape)
    return tuple(
        hidden.new_empty(shape, dtype=value_dtype) if need else hidden.new_empty(0)
        for shape, value_dtype, need in zip(shapes, (dtype, wide, wide), needs, strict=True)
    )


@torch.library.custom_op("distill::linear_statistics", mutates_args=())
def linear_statistics(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    kept: Tensor | None,
    softcap: float | None,
    temperature: float,
    dtype: torch.dtype,
    need_mean: bool,
    need_argmax: bool,
    workspace_bytes: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lse[N], z[N,K], mean[N] and argmax[N] (the last two empty unless asked for); zeros where a row is not kept.

    ids[N,K] int64, -1 where there is none; kept[N] bool, None if all rows are.
    """
    rows = kept_indices(kept)
    head = cast_head(weight, bias, dtype, softcap, temperature)
    stats = statistics(
        Rows(hidden, rows, dtype),
        head,
        select(ids, rows),
        need_mean=need_mean,
        need_argmax=need_argmax,
        workspace_bytes=workspace_bytes,
    )
    return tuple(ids.new_empty(0) if x is None else spread(x, rows, hidden.shape[0]) for x in stats)


@linear_statistics.register_fake
def _(hidden, weight, bias, ids, kept, softcap, temperature, dtype, need_mean, need_argmax, workspace_bytes):
    wide = torch.promote_types(dtype, torch.float32)
    rows = ids.shape[:1]
    return (
        hidden.new_empty(rows, dtype=wide),
        hidden.new_empty(ids.shape, dtype=wide),
        hidden.new_empty(rows, dtype=wide) if need_mean else ids.new_empty(0),
        ids.new_empty(rows) if need_argmax else ids.new_empty(0),
    )


@torch.library.custom_op("distill::linear_gradients", mutates_args=())
def linear_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    kept: Tensor | None,
    lse: Tensor,
    z: Tensor,
    d_lse: Tensor | None,
    d_z: Tensor | None,
    d_mean: Tensor | None,
    softcap: float | None,
    temperature: float,
    dtype: torch.dtype,
    needs: list[bool],
    workspace_bytes: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden[N,H], weight[V,H] and bias[V] (empty where not needed) from those of linear_statistics."""
    rows = kept_indices(kept)
    ids, lse, z = select(ids, rows), select(lse, rows), select(z, rows)
    factor = torch.zeros_like(lse) if d_lse is None else select(d_lse, rows)
    at_ids = factor[:, None] * (z - lse[:, None]).exp()
    if d_z is not None:
        d_z = select(d_z, rows)
        at_ids = at_ids + (_summed_over_equals(ids, d_z) if ids.shape[1] > 1 else d_z)
    uniform = None if d_mean is None else select(d_mean, rows) / weight.shape[0]
    found = gradients(
        Rows(hidden, rows, dtype),
        cast_head(weight, bias, dtype, softcap, temperature),
        ids,
        lse,
        RowGradient(factor, at_ids, uniform),
        Needs(*needs),
        workspace_bytes=workspace_bytes,
    )
    return spread_gradients(found, rows, hidden)


def _summed_over_equals(ids: Tensor, values: Tensor) -> Tensor:
    """[n,K] sums of values[n,K] over equal ids[n,K]: an id that is there twice has the gradients of both."""
    step = block_rows(ids.shape[1] ** 2, values.itemsize, ids.device.type)
    parts = zip(ids.split(step), values.split(step), strict=True)
    return torch.cat([((at[:, :, None] == at[:, None, :]) * part[:, None, :]).sum(2) for at, part in parts])


@linear_gradients.register_fake
def _(hidden, weight, bias, ids, kept, lse, z, d_lse, d_z, d_mean, softcap, temperature, dtype, needs, workspace_bytes):
    return fake_gradients(hidden, weight, bias, dtype, needs)


def _save_statistics(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, ids, kept, *ctx.options = inputs
    ctx.save_for_backward(hidden, weight, bias, ids, kept, output[0], output[1])
    ctx.mark_non_differentiable(output[3])
    ctx.set_materialize_grads(False)


def _statistics_backward(
    ctx: FunctionCtx, d_lse: Tensor | None, d_z: Tensor | None, d_mean: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, ids, kept, lse, z = ctx.saved_tensors
    softcap, temperature, dtype, need_mean, _, workspace_bytes = ctx.options
    needs = list(ctx.needs_input_grad[:3])
    found = linear_gradients(
        hidden, weight, bias, ids, kept, lse, z, d_lse, d_z, d_mean if need_mean else None,
        softcap, temperature, dtype, needs, workspace_bytes,
    )  # fmt: skip
    parameters = (hidden, weight, bias)
    return *(value.to(x.dtype) if need else None for value, x, need in zip(found, parameters, needs, strict=True)), *[
        None
    ] * 8


linear_statistics.register_autograd(_statistics_backward, setup_context=_save_statistics)


def run_statistics(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    kept: Tensor | None,
    softcap: float | None,
    temperature: float,
    dtype: torch.dtype,
    *,
    need_mean: bool,
    need_argmax: bool,
    workspace_bytes: int | None,
) -> RowStats:
    """linear_statistics with None for what was not asked for."""
    lse, z, mean, argmax = linear_statistics(
        hidden, weight, bias, ids, kept, softcap, temperature, dtype, need_mean, need_argmax, workspace_bytes
    )
    return RowStats(lse, z, mean if need_mean else None, argmax if need_argmax else None)


def register_fused_autograd(operator: Any) -> None:
    """Autograd of an operator of (hidden, weight, bias, ...) that returns (loss, ..., d_hidden, d_weight, d_bias)."""

    def save(ctx: FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[-3:])
        ctx.dtypes = [None if x is None else x.dtype for x in inputs[:3]]
        ctx.inputs = len(inputs)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    def backward(ctx: FunctionCtx, d_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        rest = [None] * (ctx.inputs - 3)
        if d_loss is None:
            return None, None, None, *rest
        return *(
            scaled_gradient(saved, d_loss, dtype) if need else None
            for saved, dtype, need in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[:3], strict=True)
        ), *rest

    operator.register_autograd(backward, setup_context=save)


@torch.library.custom_op("distill::scaled_gradient", mutates_args=())
def scaled_gradient(saved: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """saved * factor in `dtype`, rounded once; a new tensor, since `saved` must survive a second backward.

    An operator without a derivative: `saved` is a constant, so differentiating this product would be wrong, and now
    it raises.
    """
    wide = torch.promote_types(saved.dtype, torch.float32)
    factor = factor.to(wide).reshape(1)  # without dimensions it would be rounded to a lower dtype of `saved` first
    scaled = torch.empty_like(saved, dtype=dtype)
    # In blocks: where dtypes differ a CPU converts its operands as a whole beforehand.
    step = block_rows(math.prod(saved.shape[1:]), wide.itemsize, saved.device.type)
    for block, out in zip(saved.split(step), scaled.split(step), strict=True):
        torch.mul(block, factor, out=out)
    return scaled


@scaled_gradient.register_fake
def _(saved, factor, dtype):
    return torch.empty_like(saved, dtype=dtype)
