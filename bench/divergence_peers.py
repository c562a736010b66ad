"""Divergence from a teacher's top k, ours and others'.

fn(hidden[N,H], weight[V,H], teacher_ids[N,K], teacher_logprobs[N,K]) -> mean loss, forward KL where nothing else is said.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.bench.peers import LARGE_CHUNK, Peer

SMALL_CHUNK = 256  # on a CPU a chunk's logits want to stay near the cache


def _ours_divergence(**options: Any) -> Callable[[], Callable[..., Tensor]]:
    def load() -> Callable[..., Tensor]:
        from distill.kernels import linear_topk_divergence

        return lambda *inputs: linear_topk_divergence(*inputs, **options)

    return load


def eager_divergence(
    hidden: Tensor, weight: Tensor, ids: Tensor, logprobs: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """Forward KL over the teacher's ids and the rest, in plain torch over all logits."""
    logits = F.linear(hidden, weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    student = logits.log_softmax(-1).gather(1, ids)
    least = torch.finfo(student.dtype).eps
    rest, teacher_rest = ((1 - x.exp().sum(1)).clamp_min(least) for x in (student, logprobs))
    rows = (logprobs.exp() * (logprobs - student)).sum(1) + teacher_rest * (teacher_rest.log() - rest.log())
    return rows.sum() if reduction == "sum" else rows.mean()


def _chunked_divergence() -> Callable[..., Tensor]:
    """The same by chunks of rows that are computed again in the backward pass: what a careful user writes."""
    from torch.utils.checkpoint import checkpoint

    def part(x: Tensor, weight: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
        return eager_divergence(x, weight, ids, logprobs, reduction="sum")

    def call(hidden: Tensor, weight: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
        chunk = LARGE_CHUNK if hidden.is_cuda else SMALL_CHUNK
        parts = zip(*(tensor.split(chunk) for tensor in (hidden, ids, logprobs)), strict=True)
        losses = [checkpoint(part, x, weight, i, p, use_reentrant=False) for x, i, p in parts]
        return torch.stack(losses).sum() / hidden.shape[0]

    return call


def _liger_jsd() -> Callable[..., Tensor]:
    """Liger takes the teacher's hidden states and head, so it has one more product: the teacher here is as wide."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    loss = LigerFusedLinearJSD(jsd_beta=0.5)

    def call(hidden: Tensor, weight: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
        return loss(hidden, weight, hidden.detach(), weight.detach(), None)

    return call


DIVERGENCES = {
    "distill": Peer(_ours_divergence(divergence="forward_kl")),
    "distill, JSD": Peer(_ours_divergence(divergence="jsd"), is_same_function=False),
    "eager": Peer(lambda: eager_divergence),
    "torch chunked": Peer(_chunked_divergence),
    "Liger JSD, dense teacher": Peer(_liger_jsd, "liger_kernel", ("cuda",), is_same_function=False),
}
