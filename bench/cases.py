"""What kernels are measured on: random inputs, one call of a contender with its gradients, and exact results.

Logits are as spread as a trained model's (standard deviation 4) and labels mostly likely: with flat logits, or labels
that are never predicted, methods that drop small gradients would be measured at what they never do.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.bench.attention_peers import Attention
from distill.bench.documents import Documents, causal_pairs
from distill.bench.loss_peers import IGNORE

LOGIT_STD = 4.0
_EXACT_LOGITS = 1 << 25  # of one block of the float64 reference


class LossCase(NamedTuple):
    hidden: Tensor  # [N,H], requires gradient
    weight: Tensor  # [V,H], requires gradient
    labels: Tensor  # int64[N]

    @property
    def kept(self) -> int:
        return int((self.labels != IGNORE).sum())

    @property
    def product_flops(self) -> float:
        """Of logits and both gradients, kept rows only, nothing computed twice."""
        return 6.0 * self.kept * self.hidden.shape[1] * self.weight.shape[0]

    @property
    def gradient_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (self.hidden, self.weight))


def loss_case(
    rows: int,
    hidden: int,
    vocabulary: int,
    ignored: float,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    *,
    label_raise: float = 1.0,
) -> LossCase:
    """`label_raise`: by how much a label's logit stands above the others, in units of LOGIT_STD^2."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32)

    weight = normal(vocabulary, hidden).mul_(LOGIT_STD * hidden**-0.5).to(dtype)
    labels = torch.randint(0, vocabulary, (rows,), generator=generator, device=device)
    # A label's own row of the weight in the hidden state raises its logit by |w|^2 = LOGIT_STD^2.
    x = normal(rows, hidden).add_(weight[labels], alpha=label_raise).to(dtype)
    order = torch.randperm(rows, generator=generator, device=device)
    labels[order[: round(rows * ignored)]] = IGNORE
    return LossCase(x.requires_grad_(), weight.requires_grad_(), labels)


def loss_and_gradients(function: Callable[..., Tensor], case: NamedTuple) -> Callable[[], tuple[Tensor, ...]]:
    """One call: the loss, and its gradients by the first two of the case's tensors."""

    def call() -> tuple[Tensor, ...]:
        loss = function(*case)
        return loss.detach(), *torch.autograd.grad(loss, case[:2])

    return call


def bare_products(case: LossCase) -> Callable[[], None]:
    """The three matrix products that no exact method can do without, over the kept rows."""
    x = case.hidden.detach()[case.labels != IGNORE]
    weight = case.weight.detach()
    logits = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    d_hidden, d_weight = torch.empty_like(x), torch.empty_like(weight)

    def call() -> None:
        torch.mm(x, weight.t(), out=logits)
        torch.mm(logits, weight, out=d_hidden)
        torch.mm(logits.t(), x, out=d_weight)

    return call


class TeacherCase(NamedTuple):
    hidden: Tensor  # [N,H], requires gradient
    weight: Tensor  # [V,H], requires gradient
    ids: Tensor  # int64[N,K]
    logprobs: Tensor  # float32[N,K], descending, of one distribution a row


def teacher_case(
    rows: int, hidden: int, vocabulary: int, kept: int, dtype: torch.dtype, device: torch.device, seed: int
) -> TeacherCase:
    # A student that is sure leaves so little beside the teacher's entries that float32 cannot say how much.
    base = loss_case(rows, hidden, vocabulary, 0.0, dtype, device, seed, label_raise=0.5)
    generator = torch.Generator(device).manual_seed(seed + 1)
    # Distinct ids without a permutation of the vocabulary: one from each of K equal ranges, the label first.
    width = vocabulary // (kept + 1)
    start = torch.arange(1, kept, device=device) * width
    others = start + torch.randint(0, width, (rows, kept - 1), generator=generator, device=device)
    ids = torch.cat([base.labels[:, None], (base.labels[:, None] + others) % vocabulary], 1)
    scores = torch.randn(rows, kept + 1, generator=generator, device=device).mul_(3).sort(descending=True).values
    logprobs = scores.log_softmax(1)[:, :kept].contiguous()  # what the last one has is the tail
    return TeacherCase(base.hidden, base.weight, ids, logprobs)


class AttentionCase(NamedTuple):
    q: Tensor  # [T,Hq,D], requires gradient
    k: Tensor  # [T,Hk,D], requires gradient
    v: Tensor  # [T,Hk,D], requires gradient
    upstream: Tensor  # [T,Hq,D], not uniform
    documents: Documents

    @property
    def forward_flops(self) -> float:
        """Of both products over the visible pairs; the backward pass has five products instead of two."""
        _, heads, head_dim = self.q.shape
        return 4.0 * heads * head_dim * causal_pairs(self.documents.lengths)

    @property
    def backward_flops(self) -> float:
        return 2.5 * self.forward_flops


def attention_case(
    lengths: list[int], heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, seed: int
) -> AttentionCase:
    generator = torch.Generator(device).manual_seed(seed)

    def normal(count: int) -> Tensor:
        return torch.randn(sum(lengths), count, head_dim, generator=generator, device=device).to(dtype)

    q, k, v = (normal(count).requires_grad_() for count in (heads, kv_heads, kv_heads))
    return AttentionCase(q, k, v, normal(heads), Documents.of(lengths, device))


def attention_forward(function: Attention, case: AttentionCase) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return function(case.q, case.k, case.v)

    return call


def attention_backward(function: Attention, case: AttentionCase) -> Callable[[], tuple[Tensor, ...]]:
    """The backward pass alone, of a forward pass done at the first call."""
    kept: list[Tensor] = []

    def call() -> tuple[Tensor, ...]:
        if not kept:
            kept.append(function(case.q, case.k, case.v))
        return torch.autograd.grad(kept[0], (case.q, case.k, case.v), case.upstream, retain_graph=True)

    return call


def attention_both(function: Attention, case: AttentionCase) -> Callable[[], tuple[Tensor, ...]]:
    def call() -> tuple[Tensor, ...]:
        out = function(case.q, case.k, case.v)
        return out.detach(), *torch.autograd.grad(out, (case.q, case.k, case.v), case.upstream)

    return call


def exact_row_loss(function: Callable[..., Any], case: NamedTuple, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss over `kept` rows and its gradients in float64, by blocks of rows: `function` is a reference."""
    hidden, weight, *others = case
    weight = weight.detach().double().requires_grad_()
    total, d_hidden, d_weight = 0.0, [], torch.zeros_like(weight)
    block = max(1, _EXACT_LOGITS // weight.shape[0])
    for x, *rest in zip(hidden.detach().split(block), *(t.split(block) for t in others), strict=True):
        x = x.double().requires_grad_()
        result = function(x, weight, *(t.double() if t.is_floating_point() else t for t in rest), reduction="sum")
        loss = result[0] if isinstance(result, tuple) else result
        dx, dw = torch.autograd.grad(loss, (x, weight))
        total, d_weight = total + loss.detach(), d_weight + dw
        d_hidden.append(dx)
    return total / kept, torch.cat(d_hidden) / kept, d_weight / kept


def exact_attention(case: AttentionCase) -> tuple[Tensor, ...]:
    """Output and gradients in float64."""
    from distill.kernels import reference

    q, k, v = (x.detach().double().requires_grad_() for x in case[:3])
    out = reference.varlen_attention(q, k, v, case.documents.cu_seqlens)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), case.upstream.double())


def relative_error(found: Tensor, exact: Tensor) -> float:
    """|found - exact| / |exact|, NaN included."""
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())
