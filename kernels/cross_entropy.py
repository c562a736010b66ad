"""Cross-entropy of a linear head that never holds the logits of all rows.

This file holds the arguments and the operator; the passes over the vocabulary are in linear_loss.py, what a row's loss is in
row_losses.py, and the specification is `reference.linear_cross_entropy`.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .linear_arguments import check_head, check_ids, check_rows, compute_dtype, kept_count
from .linear_loss import Needs, Rows, losses_and_gradients
from .linear_loss_ops import (
    cast_head,
    fake_gradients,
    kept_indices,
    register_fused_autograd,
    run_statistics,
    select,
    spread,
    spread_gradients,
)
from .row_losses import CrossEntropy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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
    ignore_index: int | None = -100,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    return_stats: bool = False,
    workspace_bytes: int | None = None,
    group: "ProcessGroup | None" = None,
) -> Tensor | tuple[Tensor, LinearCrossEntropyStats]:
    """Cross-entropy of softmax(hidden[N,H] @ weight[V,H].T + bias[V]) against labels[N]; float32 (or float64) loss.

    With reduction "mean" or "sum" the gradients are computed in the forward pass (6 N H V FLOP for all); with "none" or a
    group the logits are computed again in the backward pass (8 N H V). Ignored rows cost nothing. A frozen hidden,
    weight or bias skips its gradient. Works under torch.compile(fullgraph=True).

    Under autocast the products run in the autocast dtype, as F.linear's would; a float32 weight beside a hidden
    of lower precision is cast once. Softmax statistics are float32, and so are sums over chunks.

    token_weights[N]: multiplies each row's whole loss; a constant, not differentiated.
    reduction: "mean" divides by the count of kept rows, with token weights too; it is 0 if every row is ignored.
    ignore_index: None says that no row is ignored; a GPU is then not asked how many there are.
    z_loss: adds z_loss * lse^2 to each row.
    softcap: logits become softcap * tanh(logits / softcap).
    return_stats: also return LinearCrossEntropyStats.
    workspace_bytes: bound on the logits held at once (at least one row's); the default is made for speed, and small
    beside the logits of all rows. The result does not depend on it but for rounding.
    group: the vocabulary is split over the group's ranks: weight[V/ranks,H] and bias are this rank's, in the order of ranks, while
    hidden and labels are the same on all. The loss, the stats and hidden's gradient come out the same on all.
    """
    check_head(hidden, weight, bias, softcap, workspace_bytes)
    check_rows(hidden, token_weights, reduction)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: got {label_smoothing}, takes 0 to 1")
    if labels.shape != hidden.shape[:1] or labels.dtype not in (torch.int64, torch.int32):
        found = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"labels: got {found}, takes int64 or int32 [{hidden.shape[0]}]")
    if labels.device != hidden.device:
        raise ValueError(f"labels: got a tensor on {labels.device}, takes one on {hidden.device} (hidden's)")
    dtype = compute_dtype(hidden)
    shards = 1 if group is None else group.size()
    vocabulary = weight.shape[0] * shards
    kept = None if ignore_index is None else labels != ignore_index
    check_ids("labels", labels, kept, vocabulary, "" if ignore_index is None else f" or ignore_index {ignore_index}")
    if token_weights is not None:
        token_weights = token_weights.detach().to(torch.promote_types(dtype, torch.float32))

    if group is None and reduction != "none":
        grad = torch.is_grad_enabled()
        loss, lse, logprobs, correct, *_ = linear_cross_entropy_sum(
            hidden,
            weight,
            bias,
            labels.long(),
            kept,
            token_weights,
            z_loss,
            label_smoothing,
            softcap,
            dtype,
            [grad and x is not None and x.requires_grad for x in (hidden, weight, bias)],
            return_stats,
            workspace_bytes,
        )
        stats = (lse.detach(), logprobs.detach(), correct) if return_stats else None
    else:
        losses, stats = _row_losses(
            hidden, weight, bias, labels.long(), kept, token_weights, z_loss, label_smoothing, softcap, dtype,
            return_stats, workspace_bytes, group,
        )  # fmt: skip
        loss = losses if reduction == "none" else losses.sum()
    if reduction == "mean":
        loss = loss / kept_count(kept, labels)
    return (loss, LinearCrossEntropyStats(*stats)) if return_stats else loss


@torch.library.custom_op("distill::linear_cross_entropy_sum", mutates_args=())
def linear_cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    kept: Tensor | None,
    token_weights: Tensor | None,
    z_loss: float,
    label_smoothing: float,
    softcap: float | None,
    dtype: torch.dtype,
    needs: list[bool],
    need_stats: bool,
    workspace_bytes: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum of losses; lse, logprobs, correct[N] if asked for; gradients of hidden, weight, bias if needed; else empty."""
    rows = kept_indices(kept)
    weights = None if token_weights is None else select(token_weights, rows)
    row_loss = CrossEntropy(weights, z_loss, label_smoothing, weight.shape[0])
    kept_labels = select(labels, rows)
    losses, stats, found = losses_and_gradients(
        Rows(hidden, rows, dtype),
        cast_head(weight, bias, dtype, softcap, temperature=1.0),
        kept_labels[:, None],
        row_loss,
        Needs(*needs),
        need_argmax=need_stats,
        workspace_bytes=workspace_bytes,
    )
    if need_stats:
        per_row = (stats.lse, stats.z[:, 0] - stats.lse, stats.argmax == kept_labels)
        per_row = tuple(spread(x, rows, labels.shape[0]) for x in per_row)
    else:
        per_row = tuple(losses.new_empty(0, dtype=kind) for kind in (losses.dtype, losses.dtype, torch.bool))
    return losses.sum(), *per_row, *spread_gradients(found, rows, hidden)


@linear_cross_entropy_sum.register_fake
def _(hidden, weight, bias, labels, kept, token_weights, z_loss, label_smoothing, softcap, dtype, needs, need_stats, _):
    wide = torch.promote_types(dtype, torch.float32)
    rows = labels.shape if need_stats else (0,)
    return (
        hidden.new_empty((), dtype=wide),
        *(hidden.new_empty(rows, dtype=kind) for kind in (wide, wide, torch.bool)),
        *fake_gradients(hidden, weight, bias, dtype, needs),
    )


register_fused_autograd(linear_cross_entropy_sum)


def _row_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    kept: Tensor | None,
    token_weights: Tensor | None,
    z_loss: float,
    label_smoothing: float,
    softcap: float | None,
    dtype: torch.dtype,
    need_stats: bool,
    workspace_bytes: int | None,
    group: "ProcessGroup | None",
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """losses[N], composed from differentiable statistics, and (lse, logprobs, correct)."""
    ids = labels[:, None] if kept is None else torch.where(kept, labels, -1)[:, None]
    needs = {"need_mean": label_smoothing > 0, "need_argmax": need_stats}
    vocabulary = weight.shape[0]
    if group is None:
        stats = run_statistics(
            hidden, weight, bias, ids, kept, softcap, 1.0, dtype, **needs, workspace_bytes=workspace_bytes
        )
    else:
        from .vocabulary_parallel import parallel_statistics

        vocabulary *= group.size()
        stats = parallel_statistics(
            hidden, weight, bias, ids, kept, softcap, dtype, **needs, workspace_bytes=workspace_bytes, group=group
        )
    losses = CrossEntropy(token_weights, z_loss, label_smoothing, vocabulary).losses(stats, slice(None))
    if kept is not None:
        losses = torch.where(kept, losses, 0.0)
    if not need_stats:
        return losses, None
    correct = stats.argmax == labels
    if kept is not None:
        correct = correct & kept
    return losses, (stats.lse.detach(), (stats.z[:, 0] - stats.lse).detach(), correct)
