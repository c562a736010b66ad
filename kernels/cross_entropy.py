"""Cross-entropy of a linear head that never holds the logits of all rows.

This file holds what does not depend on the implementation: arguments, which rows count, autograd. The arithmetic
is `chunked_cross_entropy.chunked_pass`; the specification is `reference.linear_cross_entropy`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .chunked_cross_entropy import LossOptions, Pass, chunked_pass

REDUCTIONS = ("mean", "sum", "none")


class LinearCrossEntropyStats(NamedTuple):
    """Detached results per row, all [N]: 0, 0 and False where the row is ignored."""

    lse: Tensor
    logprobs: Tensor
    correct: Tensor


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    token_weights: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    return_stats: bool = False,
    workspace_bytes: int | None = None,
) -> Tensor | tuple[Tensor, LinearCrossEntropyStats]:
    """Cross-entropy of softmax(hidden[N,H] @ weight[V,H].T + bias[V]) against labels[N]; float32 (or float64) loss.

    With reduction "mean" or "sum" the gradients are computed in the forward pass (6 N H V FLOP for all); with
    "none" the logits are computed again in the backward pass (8 N H V). Ignored rows cost nothing. A frozen
    hidden, weight or bias skips its gradient.

    Under autocast the products run in the autocast dtype, as F.linear's would; a float32 weight beside a hidden
    of lower precision is cast once. Softmax statistics are float32.

    token_weights[N]: multiplies each row's whole loss; a constant, not differentiated.
    reduction: "mean" divides by the count of kept rows, with token weights too; it is 0 if every row is ignored.
    z_loss: adds z_loss * lse^2 to each row.
    softcap: logits become softcap * tanh(logits / softcap).
    return_stats: also return LinearCrossEntropyStats, at the price of one argmax.
    workspace_bytes: bound on the logits held at once (at least one row's); the default is made for speed, and small
    beside the logits of all rows.
    """
    _check(hidden, weight, labels, bias, token_weights, reduction, label_smoothing, softcap, workspace_bytes)
    rows, kept_labels = _kept_rows(labels, ignore_index, weight.shape[0])
    row_weights = None
    if token_weights is not None:
        stats_dtype = torch.promote_types(hidden.dtype, torch.float32)
        row_weights = token_weights.detach().to(stats_dtype)
        row_weights = row_weights if rows is None else row_weights.index_select(0, rows)
    call = _Call(
        rows=rows,
        labels=kept_labels,
        row_weights=row_weights,
        options=LossOptions(z_loss, label_smoothing, softcap),
        dtype=_compute_dtype(hidden),
        scale=1.0 / max(1, kept_labels.shape[0]) if reduction == "mean" else 1.0,
        need_correct=return_stats,
        workspace_bytes=workspace_bytes,
        # Inside autograd.Function these two can no longer be asked.
        grad_enabled=torch.is_grad_enabled(),
        total_rows=labels.shape[0],
    )
    function = _RowLosses if reduction == "none" else _ReducedLoss
    loss, lse, logprobs, correct = function.apply(hidden, weight, bias, call)
    if not return_stats:
        return loss
    return loss, LinearCrossEntropyStats(call.spread(lse), call.spread(logprobs), call.spread(correct))


class _Call(NamedTuple):
    """What one call carries through autograd that is not differentiated."""

    rows: Tensor | None  # indices of the kept rows; None if all are
    labels: Tensor  # of the kept rows
    row_weights: Tensor | None  # of the kept rows
    options: LossOptions
    dtype: torch.dtype  # of the matrix products
    scale: float
    need_correct: bool
    workspace_bytes: int | None
    grad_enabled: bool
    total_rows: int

    def run(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        row_weights: Tensor | None,
        needs: tuple[bool, ...],
        need_correct: bool,
    ) -> Pass:
        x = hidden if self.rows is None else hidden.index_select(0, self.rows)
        return chunked_pass(
            x.to(self.dtype),
            weight.to(self.dtype),
            None if bias is None else bias.to(self.dtype),
            self.labels,
            row_weights,
            self.options,
            need_d_hidden=needs[0],
            need_d_weight=needs[1],
            need_d_bias=needs[2],
            need_correct=need_correct,
            workspace_bytes=self.workspace_bytes,
        )

    def spread(self, kept: Tensor) -> Tensor:
        """Values of the kept rows at their places among all rows, zeros elsewhere."""
        if self.rows is None:
            return kept
        return kept.new_zeros(self.total_rows, *kept.shape[1:]).index_copy_(0, self.rows, kept)


class _ReducedLoss(torch.autograd.Function):
    """Sum or mean: the gradients up to one factor are known in the forward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> tuple[Any, ...]:
        needs = tuple(call.grad_enabled and need for need in ctx.needs_input_grad[:3])
        result = call.run(hidden, weight, bias, call.row_weights, needs, call.need_correct)
        ctx.save_for_backward(result.d_hidden, result.d_weight, result.d_bias)
        ctx.call = call
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        stats = result.lse, result.logprobs, result.correct
        ctx.mark_non_differentiable(*(value for value in stats if value is not None))
        ctx.set_materialize_grads(False)
        return result.losses.sum() * call.scale, *stats

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if d_loss is None:
            return None, None, None, None
        factor = d_loss * ctx.call.scale
        # Products, never in place: the saved tensors must survive a second backward.
        d_hidden, d_weight, d_bias = (
            None if saved is None else _scaled(saved, factor, dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return None if d_hidden is None else ctx.call.spread(d_hidden), d_weight, d_bias, None


class _RowLosses(torch.autograd.Function):
    """No reduction: the upstream gradient differs by row and is known only in the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> tuple[Any, ...]:
        result = call.run(hidden, weight, bias, call.row_weights, (False, False, False), call.need_correct)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.call = call
        stats = result.lse, result.logprobs, result.correct
        ctx.mark_non_differentiable(*(value for value in stats if value is not None))
        ctx.set_materialize_grads(False)
        return call.spread(result.losses), *stats

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_losses: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if d_losses is None:
            return None, None, None, None
        call, (hidden, weight, bias) = ctx.call, ctx.saved_tensors
        factors = d_losses if call.rows is None else d_losses.index_select(0, call.rows)
        if call.row_weights is not None:
            factors = factors * call.row_weights
        result = call.run(hidden, weight, bias, factors, ctx.needs_input_grad[:3], need_correct=False)
        d_hidden, d_weight, d_bias = result.d_hidden, result.d_weight, result.d_bias
        return (
            None if d_hidden is None else call.spread(d_hidden.to(hidden.dtype)),
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
        )


def _scaled(saved: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """saved * factor in `dtype`, rounded once."""
    wide = torch.promote_types(saved.dtype, dtype)
    return torch.mul(saved if saved.dtype == wide else saved.to(wide), factor).to(dtype)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """F.linear's rule: autocast lowers everything but float64."""
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return hidden.dtype


def _kept_rows(labels: Tensor, ignore_index: int, vocabulary: int) -> tuple[Tensor | None, Tensor]:
    """Indices of the rows that count (None if all do) and their labels, checked against the vocabulary on a CPU."""
    rows = (labels != ignore_index).nonzero().squeeze(1)
    if rows.shape[0] == labels.shape[0]:
        rows, kept = None, labels
    else:
        kept = labels.index_select(0, rows)
    kept = kept.long()
    if kept.device.type == "cpu" and kept.numel():
        low, high = (int(value) for value in kept.aminmax())
        if low < 0 or high >= vocabulary:
            found = low if low < 0 else high
            raise ValueError(f"labels: got {found}, takes 0 to {vocabulary - 1} or ignore_index {ignore_index}")
    return rows, kept


def _check(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    token_weights: Tensor | None,
    reduction: str,
    label_smoothing: float,
    softcap: float | None,
    workspace_bytes: int | None,
) -> None:
    if hidden.ndim != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden: got {hidden.dtype} of shape {tuple(hidden.shape)}, takes floating point [N, H]")
    rows, width = hidden.shape
    if weight.ndim != 2 or weight.shape[1] != width or weight.shape[0] == 0:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, takes [V, {width}]")
    if weight.dtype not in (hidden.dtype, torch.float32) and not torch.is_autocast_enabled(hidden.device.type):
        raise ValueError(f"weight: got {weight.dtype}, takes {hidden.dtype} (hidden's) or torch.float32")
    if labels.shape != (rows,) or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"labels: got {labels.dtype} of shape {tuple(labels.shape)}, takes int64 or int32 [{rows}]")
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, takes [{weight.shape[0]}]")
    if token_weights is not None and token_weights.shape != (rows,):
        raise ValueError(f"token_weights: got shape {tuple(token_weights.shape)}, takes [{rows}]")
    if token_weights is not None and token_weights.requires_grad:
        raise ValueError("token_weights: got a tensor that requires a gradient, takes constants")
    for name, tensor in (("weight", weight), ("labels", labels), ("bias", bias), ("token_weights", token_weights)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name}: got a tensor on {tensor.device}, takes one on {hidden.device} (hidden's)")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}, takes one of {', '.join(REDUCTIONS)}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: got {label_smoothing}, takes 0 to 1")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: got {softcap}, takes a number above 0 or None")
    if workspace_bytes is not None and workspace_bytes <= 0:
        raise ValueError(f"workspace_bytes: got {workspace_bytes}, takes a number of bytes above 0 or None")
