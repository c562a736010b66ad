"""Eager references: what every function of this package must compute, written for reading, in any dtype.

The fast versions are tested against these in float64. Nothing here saves memory or time.
"""

from itertools import pairwise

import torch
from torch import Tensor


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
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """loss and (lse[N], logprobs[N], correct[N]) of hidden[N,H] @ weight[V,H].T against labels[N].

    Rows whose label is `ignore_index` have loss, lse and log-probability 0 and are not correct. `mean` divides
    by the count of the other rows, with token weights too; it is 0 if there is none.
    """
    kept = labels != ignore_index
    target = labels.where(kept, 0)
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits if logits.dtype == torch.float64 else logits.float()

    lse = logits.logsumexp(-1)
    logprobs = logits.gather(1, target[:, None]).squeeze(1) - lse
    smooth = lse - logits.mean(-1)  # cross-entropy against the uniform distribution
    losses = (1 - label_smoothing) * -logprobs + label_smoothing * smooth + z_loss * lse**2
    if token_weights is not None:
        losses = losses * token_weights
    losses = losses.where(kept, 0.0)

    stats = (lse.where(kept, 0.0), logprobs.where(kept, 0.0), (logits.argmax(-1) == target) & kept)
    if reduction == "none":
        return losses, stats
    if reduction == "sum":
        return losses.sum(), stats
    return losses.sum() / kept.sum().clamp(min=1), stats


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
    ignore_index: int = -100,
) -> Tensor:
    """Divergence over K + 1 buckets, the teacher's ids and the rest, of hidden[N,H] @ weight[V,H].T / temperature."""
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logp_NV = (logits / temperature).log_softmax(-1)

    losses = []
    for logp_V, ids, logq in zip(logp_NV, teacher_ids.long(), teacher_logprobs.to(logp_NV.dtype), strict=True):
        listed = ids[~logq.isneginf()]
        rest = torch.ones_like(logp_V, dtype=torch.bool).index_fill(0, listed, False)
        logp = torch.cat([logp_V[listed], logp_V[rest].logsumexp(0)[None]])
        q = logq[~logq.isneginf()].exp()
        logq = torch.cat([q, (1 - q.sum()).clamp(min=torch.finfo(torch.float32).eps)[None]]).log()
        p, q = logp.exp(), logq.exp()
        logm = (beta * q + (1 - beta) * p).log()
        forward_kl, reverse_kl = (q * (logq - logp)).sum(), (p * (logp - logq)).sum()
        jsd = beta * (q * (logq - logm)).sum() + (1 - beta) * (p * (logp - logm)).sum()
        losses.append({"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd}[divergence])
    losses = torch.stack(losses)

    kept = torch.ones_like(losses, dtype=torch.bool) if labels is None else labels != ignore_index
    if ce_weight:
        hard = -logp_NV.gather(1, labels.where(kept, 0)[:, None]).squeeze(1)
        losses = (1 - ce_weight) * losses + ce_weight * hard
    if token_weights is not None:
        losses = losses * token_weights
    losses = losses.where(kept, 0.0)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / kept.sum().clamp(min=1)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """out[T,Hq,D] of causal attention inside each document cu_seqlens[i]:cu_seqlens[i+1] of q[T,Hq,D], k, v[T,Hk,D]."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries_per_key = q.shape[1] // k.shape[1]
    bounds = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    outputs = []
    # split, not slices: the backward of a slice writes a full-size gradient for every document
    for q_LHD, k_LHD, v_LHD in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        length = q_LHD.shape[0]
        k_LHD = k_LHD.repeat_interleave(queries_per_key, dim=1)
        v_LHD = v_LHD.repeat_interleave(queries_per_key, dim=1)
        scores_HLL = torch.einsum("qhd,khd->hqk", q_LHD, k_LHD) * scale
        if softcap is not None:
            scores_HLL = softcap * torch.tanh(scores_HLL / softcap)
        distance = torch.arange(length, device=q.device)[:, None] - torch.arange(length, device=q.device)
        visible = (distance >= 0) & (distance < (length if window is None else window))
        scores_HLL = scores_HLL.masked_fill(~visible, float("-inf"))
        probs_HLL = scores_HLL.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype)
        outputs.append(torch.einsum("hqk,khd->qhd", probs_HLL, v_LHD))
    return torch.cat(outputs)
