"""What a row's loss is, once its softmax is known: cross-entropy, and divergences from a teacher's top-k.

Every loss here is a function of a row's lse = logsumexp(z), of z at K ids, and of the mean of z. So its gradient is

    dz = softmax_factor * softmax(z) + uniform        everywhere but at the ids
    dz = at_ids + uniform                             at the ids

which is all that the passes over the vocabulary (linear_loss.py) need to know of a loss. `losses` is ordinary
differentiable torch; `losses_and_gradient` adds its derivative by hand, since gradients of a sum are made inside an
operator where autograd does not record. The tests hold one against the other.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class RowStats(NamedTuple):
    """Of n rows with ids[n,K]: the logits z are capped and divided by the temperature."""

    lse: Tensor  # [n]
    z: Tensor  # [n,K], at the ids; 0 where an id is -1
    mean: Tensor | None = None  # [n], over the vocabulary
    argmax: Tensor | None = None  # [n], the lowest id among equals


class RowGradient(NamedTuple):
    softmax_factor: Tensor | None  # [n]; None: 1 for all
    at_ids: Tensor  # [n,K]; equal where ids of one row are equal, anything where an id is -1
    uniform: Tensor | None = None  # [n]


class RowLoss(Protocol):
    uses_mean: bool

    def losses(self, stats: RowStats, rows: slice) -> Tensor:
        """[n], differentiable with respect to stats.lse, stats.z and stats.mean."""

    def losses_and_gradient(self, stats: RowStats, rows: slice) -> tuple[Tensor, RowGradient]:
        """`losses`, and the gradient of their sum."""


class CrossEntropy:
    """u [(1 - s) (lse - z_y) + s (lse - mean z) + c lse^2]; ids[n,1] are the labels y."""

    def __init__(self, weights: Tensor | None, z_loss: float, label_smoothing: float, vocabulary: int) -> None:
        self.weights = weights  # u[N]; None: 1 for all
        self.z_loss = z_loss
        self.smoothing = label_smoothing
        self.vocabulary = vocabulary
        self.uses_mean = label_smoothing > 0

    def losses(self, stats: RowStats, rows: slice) -> Tensor:
        losses = stats.lse - stats.z[:, 0]
        if self.smoothing:
            losses = (1 - self.smoothing) * losses + self.smoothing * (stats.lse - stats.mean)
        if self.z_loss:
            losses = losses + self.z_loss * stats.lse.square()
        return losses if self.weights is None else losses * self.weights[rows]

    def losses_and_gradient(self, stats: RowStats, rows: slice) -> tuple[Tensor, RowGradient]:
        logprobs = stats.z[:, 0] - stats.lse
        at_label = torch.expm1(logprobs)  # p - 1 without cancellation
        factor = uniform = None
        if self.z_loss:
            extra = 2 * self.z_loss * stats.lse
            factor = 1 + extra
            at_label = at_label + extra * logprobs.exp()
        if self.smoothing:
            at_label = at_label + self.smoothing
            uniform = torch.full_like(stats.lse, -self.smoothing / self.vocabulary)
        if self.weights is not None:
            weights = self.weights[rows]
            factor = weights if factor is None else factor * weights
            at_label = at_label * weights
            uniform = None if uniform is None else uniform * weights
        return self.losses(stats, rows), RowGradient(factor, at_label[:, None], uniform)


DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


class TopkDivergence:
    """u [(1 - w) D(q, p) + w (lse - z_y)] between a teacher's q and the student's p over K + 1 buckets.

    The buckets are the teacher's K ids and, together, the rest of the vocabulary: q_t = 1 - sum q_k, p_t = 1 - sum p_k. With
    m = beta q + (1 - beta) p,

        forward_kl  sum_b q_b log(q_b / p_b)
        reverse_kl  sum_b p_b log(p_b / q_b)
        jsd         beta sum_b q_b log(q_b / m_b) + (1 - beta) sum_b p_b log(p_b / m_b)

    With G_b = dD/dp_b and mean G = sum_b p_b G_b, a logit of bucket b with probability p_v has dD/dz_v = p_v (G_b - mean G):

        forward_kl  G_b = -q_b / p_b      reverse_kl  G_b = log(p_b / q_b) + 1      jsd  G_b = (1 - beta) log(p_b / m_b)

    The rest's mass is a difference from 1, so below the rounding of 1 it is not known and stands at that floor. An id of -1
    is no bucket. ids[n,K+1] are the teacher's ids and then the label; -1 where there is none.
    """

    uses_mean = False

    def __init__(
        self,
        ids: Tensor,
        teacher_logprobs: Tensor,
        weights: Tensor | None,
        divergence: str,
        beta: float,
        ce_weight: float,
    ) -> None:
        self.ids = ids  # [N,K+1]
        self.teacher_logprobs = teacher_logprobs  # [N,K]
        self.weights = weights
        self.divergence = divergence
        self.beta = beta
        self.ce_weight = ce_weight

    def losses(self, stats: RowStats, rows: slice) -> Tensor:
        return self._mixed(self._divergence(stats, rows)[0], stats, rows)

    def losses_and_gradient(self, stats: RowStats, rows: slice) -> tuple[Tensor, RowGradient]:
        divergence, p, p_times_g, tail_g = self._divergence(stats, rows)
        mean_g = p_times_g.sum(1, keepdim=True)
        factor = tail_g - mean_g[:, 0]
        at_teacher = p_times_g[:, :-1] - p[:, :-1] * mean_g
        at_label = factor[:, None]  # of no account: without cross-entropy there is no label
        if self.ce_weight:
            # The label lies in the rest, or is one of the teacher's ids.
            logprobs = (stats.z - stats.lse[:, None]).clamp_max(0)
            ids, label = self.ids[rows, :-1], self.ids[rows, -1:]
            is_label = (ids == label) & (label >= 0)
            at_label = at_label * logprobs[:, -1:].exp() * ~is_label.any(1, keepdim=True)
            at_label = at_label + torch.where(is_label, at_teacher, 0.0).sum(1, keepdim=True)
            keep, add = 1 - self.ce_weight, self.ce_weight
            hard_at_label = torch.expm1(logprobs[:, -1:])
            hard_at_teacher = torch.where(is_label, hard_at_label, logprobs[:, :-1].exp())
            factor = keep * factor + add
            at_teacher = keep * at_teacher + add * hard_at_teacher
            at_label = keep * at_label + add * hard_at_label
        at_ids = torch.cat([at_teacher, at_label], 1)
        if self.weights is not None:
            factor = factor * self.weights[rows]
            at_ids = at_ids * self.weights[rows, None]
        return self._mixed(divergence, stats, rows), RowGradient(factor, at_ids)

    def _mixed(self, divergence: Tensor, stats: RowStats, rows: slice) -> Tensor:
        losses = divergence
        if self.ce_weight:
            losses = (1 - self.ce_weight) * divergence + self.ce_weight * (stats.lse - stats.z[:, -1])
        return losses if self.weights is None else losses * self.weights[rows]

    def _divergence(self, stats: RowStats, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """D[n], p[n,K+1], p_b G_b[n,K+1] and the rest's G[n]; the last bucket is the rest."""
        present = self.ids[rows, :-1] >= 0
        floor = torch.finfo(stats.lse.dtype).eps
        logp = (stats.z[:, :-1] - stats.lse[:, None]).masked_fill(~present, float("-inf"))
        logq = self.teacher_logprobs[rows].to(logp.dtype).masked_fill(~present, float("-inf"))
        p, q = _with_rest(logp.exp(), floor), _with_rest(logq.exp(), floor)
        # The logarithm of a bucket that is not there is taken as 0, and so is its share of every sum.
        logp = torch.cat([logp.masked_fill(~present, 0.0), p[:, -1:].log()], 1)
        logq = torch.cat([logq.masked_fill(~present, 0.0), q[:, -1:].log()], 1)
        if self.divergence == "forward_kl":
            return (q * (logq - logp)).sum(1), p, -q, -q[:, -1] / p[:, -1]
        if self.divergence == "reverse_kl":
            ratio = logp - logq
            return (p * ratio).sum(1), p, p * (ratio + 1), ratio[:, -1] + 1
        beta = self.beta
        m = beta * q + (1 - beta) * p
        logm = torch.where(m > 0, m, 1.0).log()
        from_student = (1 - beta) * (logp - logm)
        loss = (beta * q * (logq - logm) + p * from_student).sum(1)
        return loss, p, p * from_student, from_student[:, -1]


def _with_rest(probabilities: Tensor, floor: float) -> Tensor:
    """[n,K+1] of [n,K]: the mass that is left, at least `floor`."""
    rest = (1 - probabilities.sum(1, keepdim=True)).clamp_min(floor)
    return torch.cat([probabilities, rest], 1)
