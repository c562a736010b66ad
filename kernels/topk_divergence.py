"""Distillation from a teacher's top-k log-probabilities through a linear head, without the logits of all rows.

This file holds the arguments and the operator; the divergences themselves are `row_losses.TopkDivergence`, the passes over the
vocabulary linear_loss.py, and the specification is `reference.linear_topk_divergence`.
"""

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
    spread_gradients,
)
from .row_losses import DIVERGENCES, TopkDivergence

# How far above 1 a teacher's probabilities may add up: log-probabilities come rounded, at worst to bfloat16.
PROBABILITY_SLACK = 0.02


def linear_topk_divergence(
    hidden: Tensor,
    weight: Tensor,
    teacher_ids: Tensor,
    teacher_logprobs: Tensor,
    *,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    ce_weight: float = 0.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    token_weights: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = -100,
    workspace_bytes: int | None = None,
) -> Tensor:
    """Divergence of the student's softmax(hidden[N,H] @ weight[V,H].T / temperature) from a teacher's top k; float32.

    teacher_ids[N,K] (int64 or int32) and teacher_logprobs[N,K] are what vLLM returns as `logprobs`: natural logarithms, the ids of a
    row all different. Where a row has fewer than K, the rest have log-probability -inf. The mass that neither lists, the
    teacher's and the student's, is one more bucket. Both must be of one vocabulary.

    divergence: "forward_kl", KL(teacher, student); "reverse_kl", KL(student, teacher); "jsd", the generalised Jensen-Shannon
    divergence beta KL(teacher, m) + (1 - beta) KL(student, m) with m = beta teacher + (1 - beta) student (Agarwal et al.,
    arXiv 2306.13649).
    temperature: divides the student's logits, in the cross-entropy too; the teacher's log-probabilities must have been
    captured at the same one. No factor temperature^2 is applied.
    labels[N], ce_weight: the loss of a row is (1 - ce_weight) * divergence + ce_weight * cross-entropy. Rows whose label is
    ignore_index do not count; without labels all rows do, and with ignore_index=None, which asks a GPU nothing.
    The other arguments, the cost and the reductions are those of linear_cross_entropy.
    """
    check_head(hidden, weight, bias, softcap, workspace_bytes)
    check_rows(hidden, token_weights, reduction)
    _check_teacher(hidden, teacher_ids, teacher_logprobs, labels, weight.shape[0], ignore_index)
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence: got {divergence!r}, takes one of {', '.join(DIVERGENCES)}")
    if divergence == "jsd" and not 0 < beta < 1:
        raise ValueError(
            f"beta: got {beta}, takes a number between 0 and 1 (at its ends the divergence is 0 everywhere)"
        )
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}, takes a number above 0")
    if not 0 <= ce_weight <= 1:
        raise ValueError(f"ce_weight: got {ce_weight}, takes 0 to 1")
    if ce_weight and labels is None:
        raise ValueError("labels: got None, takes the labels [N] when ce_weight is not 0")

    dtype = compute_dtype(hidden)
    wide = torch.promote_types(dtype, torch.float32)
    kept = None if labels is None or ignore_index is None else labels != ignore_index
    # One tensor of ids: the teacher's, -1 where it lists none, and the label, which only cross-entropy asks for.
    ids = teacher_ids.long().masked_fill(teacher_logprobs.isneginf(), -1)
    if ce_weight:
        last = labels.long() if kept is None else labels.long().masked_fill(~kept, -1)
        ids = torch.cat([ids, last[:, None]], 1)
    else:
        ids = torch.cat([ids, ids.new_full((ids.shape[0], 1), -1)], 1)
    logprobs = teacher_logprobs.detach().to(wide)
    weights = None if token_weights is None else token_weights.detach().to(wide)

    if reduction == "none":
        stats = run_statistics(
            hidden, weight, bias, ids, kept, softcap, temperature, dtype,
            need_mean=False, need_argmax=False, workspace_bytes=workspace_bytes,
        )  # fmt: skip
        losses = TopkDivergence(ids, logprobs, weights, divergence, beta, ce_weight).losses(stats, slice(None))
        return losses if kept is None else torch.where(kept, losses, 0.0)
    grad = torch.is_grad_enabled()
    loss, *_ = linear_topk_divergence_sum(
        hidden,
        weight,
        bias,
        ids,
        logprobs,
        kept,
        weights,
        divergence,
        beta,
        temperature,
        ce_weight,
        softcap,
        dtype,
        [grad and x is not None and x.requires_grad for x in (hidden, weight, bias)],
        workspace_bytes,
    )
    return loss / kept_count(kept, ids) if reduction == "mean" else loss


@torch.library.custom_op("distill::linear_topk_divergence_sum", mutates_args=())
def linear_topk_divergence_sum(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    teacher_logprobs: Tensor,
    kept: Tensor | None,
    token_weights: Tensor | None,
    divergence: str,
    beta: float,
    temperature: float,
    ce_weight: float,
    softcap: float | None,
    dtype: torch.dtype,
    needs: list[bool],
    workspace_bytes: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of losses, and gradients of hidden, weight and bias if needed (else empty); ids[N,K+1] end with the label."""
    rows = kept_indices(kept)
    kept_ids = select(ids, rows)
    weights = None if token_weights is None else select(token_weights, rows)
    losses, _, found = losses_and_gradients(
        Rows(hidden, rows, dtype),
        cast_head(weight, bias, dtype, softcap, temperature),
        kept_ids,
        TopkDivergence(kept_ids, select(teacher_logprobs, rows), weights, divergence, beta, ce_weight),
        Needs(*needs),
        workspace_bytes=workspace_bytes,
    )
    return losses.sum(), *spread_gradients(found, rows, hidden)


@linear_topk_divergence_sum.register_fake
def _(
    hidden,
    weight,
    bias,
    ids,
    logprobs,
    kept,
    token_weights,
    divergence,
    beta,
    temperature,
    ce,
    softcap,
    dtype,
    needs,
    _,
):
    wide = torch.promote_types(dtype, torch.float32)
    return hidden.new_empty((), dtype=wide), *fake_gradients(hidden, weight, bias, dtype, needs)


register_fused_autograd(linear_topk_divergence_sum)


def _check_teacher(
    hidden: Tensor, ids: Tensor, logprobs: Tensor, labels: Tensor | None, vocabulary: int, ignore_index: int | None
) -> None:
    rows = hidden.shape[0]
    if ids.ndim != 2 or ids.shape[0] != rows or ids.shape[1] == 0 or ids.dtype not in (torch.int64, torch.int32):
        found = f"{ids.dtype} of shape {tuple(ids.shape)}"
        raise ValueError(f"teacher_ids: got {found}, takes int64 or int32 [{rows}, K], K at least 1")
    if logprobs.shape != ids.shape or not logprobs.is_floating_point():
        found = f"{logprobs.dtype} of shape {tuple(logprobs.shape)}"
        raise ValueError(f"teacher_logprobs: got {found}, takes floating point {list(ids.shape)}")
    tensors = {"teacher_ids": ids, "teacher_logprobs": logprobs}
    if labels is not None:
        if labels.shape != (rows,) or labels.dtype not in (torch.int64, torch.int32):
            found = f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise ValueError(f"labels: got {found}, takes int64 or int32 [{rows}]")
        tensors["labels"] = labels
    for name, tensor in tensors.items():
        if tensor.device != hidden.device:
            raise ValueError(f"{name}: got a tensor on {tensor.device}, takes one on {hidden.device} (hidden's)")
    counted = ~logprobs.isneginf()
    kept = None if labels is None or ignore_index is None else labels != ignore_index
    check_ids("teacher_ids", ids, counted if kept is None else counted & kept[:, None], vocabulary, "")
    if labels is not None:
        check_ids(
            "labels", labels, kept, vocabulary, "" if ignore_index is None else f" or ignore_index {ignore_index}"
        )
    if hidden.device.type == "cpu" and not torch.compiler.is_compiling() and logprobs.numel():
        mass = logprobs.detach().double().exp().sum(1)
        mass = mass if kept is None else mass.where(kept, 0.0)
        worst = float(mass.max())
        if not worst <= 1 + PROBABILITY_SLACK:
            raise ValueError(
                f"teacher_logprobs: got a row whose probabilities add up to {worst:.3f}, takes natural logarithms of probabilities"
            )
        repeated = ids.long().masked_fill(~counted, -1).sort(1).values
        repeated = (repeated[:, 1:] == repeated[:, :-1]) & (repeated[:, 1:] >= 0)
        if (repeated if kept is None else repeated & kept[:, None]).any():
            raise ValueError("teacher_ids: got a row with the same id twice, takes different ones")
