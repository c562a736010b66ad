"""Who is measured beside our kernels: one small adapter each, and why one cannot be measured here.

A peer is used as its own documentation says, at its defaults; a variant that is better in some respect has a line of
its own. Nothing is imported before `load`, so a package that is missing is a reason in the result and not an error.

    losses       fn(hidden[N,H], weight[V,H], labels[N]) -> mean loss over the labels that are not -100
    divergences  fn(hidden[N,H], weight[V,H], teacher_ids[N,K], teacher_logprobs[N,K]) -> mean loss, forward KL
    attentions   make(documents) -> fn(q[T,Hq,D], k[T,Hk,D], v[T,Hk,D]) -> out[T,Hq,D]
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
LARGE_CHUNK = 4096  # rows after which, on a GPU, a chunk's passes over the weight cost less than its arithmetic
SMALL_CHUNK = 256  # on a CPU a chunk's logits want to stay near the cache


class Peer(NamedTuple):
    """`load()` returns the function to measure. `missing(device type)` says why it cannot be, or None."""

    load: Callable[[], Callable[..., Any]]
    package: str | None = None  # module that must be installed
    devices: tuple[str, ...] = ("cpu", "cuda")
    needs: Callable[[], str | None] | None = None  # any other reason
    is_same_function: bool = True  # as the others of its table, so that results can be compared

    def missing(self, device_type: str) -> str | None:
        if device_type not in self.devices:
            return f"runs on {' and '.join(self.devices)}, not on {device_type}"
        if self.package is not None and find_spec(self.package) is None:
            return f"{self.package.replace('_', '-')} is not installed"
        return self.needs() if self.needs is not None else None


class Documents(NamedTuple):
    """The bounds of packed documents, on the host and on the device, before any timing."""

    cu_seqlens: Tensor  # int32[B + 1] on the device
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, lengths: list[int], device: torch.device) -> "Documents":
        bounds = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
        return cls(bounds, tuple(lengths))

    @property
    def longest(self) -> int:
        return max(self.lengths)


# --- linear cross-entropy ---------------------------------------------------------------------------------------------


def eager_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """What a training loop without any of this does: all logits, widened to float32."""
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, ignore_index=IGNORE)


def _ours() -> Callable[..., Tensor]:
    from distill.kernels import linear_cross_entropy

    return linear_cross_entropy


def _ours_with(backend: str) -> Callable[[], Callable[..., Tensor]]:
    def load() -> Callable[..., Tensor]:
        loss = _ours()

        def forced(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
            with only_backend(backend):
                return loss(hidden, weight, labels)

        return forced

    return load


@contextmanager
def only_backend(name: str) -> Iterator[None]:
    """Our linear losses with one of their backends, to compare them: users have no such switch."""
    from distill.kernels import logits_backends

    chosen = logits_backends.BACKENDS
    logits_backends.BACKENDS = (name,)
    try:
        yield
    finally:
        logits_backends.BACKENDS = chosen


def _compiled() -> Callable[..., Tensor]:
    compiled = torch.compile(eager_loss)

    def call(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        torch._dynamo.mark_dynamic(hidden, 0)  # one compilation for all row counts of a head
        torch._dynamo.mark_dynamic(labels, 0)
        return compiled(hidden, weight, labels)

    return call


def _torch_chunked(policy: str) -> Callable[[], Callable[..., Tensor]]:
    def load() -> Callable[..., Tensor]:
        options = torch.nn.LinearCrossEntropyOptions(acc_policy=policy)
        return lambda hidden, weight, labels: F.linear_cross_entropy(hidden, weight, labels, options=options)

    return load


def _needs_torch_chunked() -> str | None:
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return None
    return f"torch {torch.__version__} has no linear_cross_entropy with options"


def _liger() -> Callable[..., Tensor]:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy


def _liger_large_chunks() -> Callable[..., Tensor]:
    loss = _liger()

    def call(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        # Liger divides the rows by ceil(V / (multiplier * H)) and rounds up to a power of two.
        chunks = -(-hidden.shape[0] // LARGE_CHUNK)
        multiplier = -(-weight.shape[0] // (weight.shape[1] * chunks))
        return loss(hidden, weight, labels, chunk_mem_const=multiplier, accum_dtype=torch.float32)

    return call


def _cut_cross_entropy(implementation: str) -> Callable[[], Callable[..., Tensor]]:
    def load() -> Callable[..., Tensor]:
        from cut_cross_entropy import linear_cross_entropy

        return lambda hidden, weight, labels: linear_cross_entropy(hidden, weight, labels, impl=implementation)

    return load


def _quack() -> Callable[..., Tensor]:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy


LOSSES = {
    "distill": Peer(_ours),
    "distill anchored": Peer(_ours_with("anchored"), "triton", ("cuda",)),
    "distill rows": Peer(_ours_with("rows"), "triton", ("cuda",)),
    "eager": Peer(lambda: eager_loss),
    "torch.compile": Peer(_compiled, devices=("cuda",)),
    "torch chunked": Peer(_torch_chunked("auto"), needs=_needs_torch_chunked),
    "torch chunked, accurate": Peer(_torch_chunked("accurate"), needs=_needs_torch_chunked),
    "Liger": Peer(_liger, "liger_kernel", ("cuda",)),
    "Liger, 4096-row chunks": Peer(_liger_large_chunks, "liger_kernel", ("cuda",)),
    "Cut Cross-Entropy": Peer(_cut_cross_entropy("cce"), "cut_cross_entropy", ("cuda",)),
    "Cut Cross-Entropy, exact": Peer(_cut_cross_entropy("cce_exact"), "cut_cross_entropy", ("cuda",)),
    "QuACK": Peer(_quack, "quack", ("cuda",)),
}


# --- divergence from a teacher's top k --------------------------------------------------------------------------------


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


# --- attention over packed documents ----------------------------------------------------------------------------------

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def _own_function(implementation: str | None) -> Callable[[], Callable[[Documents], Attention]]:
    def load() -> Callable[[Documents], Attention]:
        from distill.kernels import attention_plan, varlen_attention

        def make(documents: Documents) -> Attention:
            bounds, longest = documents.cu_seqlens, documents.longest
            plan = attention_plan(bounds, sum(documents.lengths), longest)
            return lambda q, k, v: varlen_attention(q, k, v, bounds, longest, implementation=implementation, plan=plan)

        return make

    return load


def _not_there(implementation: str) -> Callable[[], str | None]:
    def reason() -> str | None:
        from distill.kernels.attention import unsupported_attention

        return unsupported_attention(implementation, "cuda", torch.bfloat16, 128)

    return reason


def document_loop() -> Callable[[Documents], Attention]:
    def make(documents: Documents) -> Attention:
        lengths = list(documents.lengths)

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # split, not slices: the backward of a slice writes a full-size gradient for every document
            parts = zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (q, k, v)), strict=True)
            outs = [_sdpa(*(x[None] for x in part))[0] for part in parts]
            return torch.cat(outs, dim=1).transpose(0, 1)

        return call

    return make


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def _padded(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Documents], Attention]:
    """All documents padded to the longest, as one batch; padding them and taking the rows back is part of the time."""

    def make(documents: Documents) -> Attention:
        count, longest = len(documents.lengths), documents.longest
        position = torch.arange(longest)
        real = position < torch.tensor(documents.lengths)[:, None]
        rows = real.flatten().nonzero().squeeze(1).to(documents.cu_seqlens.device)
        is_whole = bool(real.all())  # documents of one length need no padding

        def batch(x: Tensor) -> Tensor:
            if not is_whole:
                x = x.new_zeros(count * longest, *x.shape[1:]).index_copy(0, rows, x)
            return x.view(count, longest, *x.shape[1:]).transpose(1, 2)

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = attend(batch(q), batch(k), batch(v)).transpose(1, 2).flatten(0, 1)
            return out if is_whole else out.index_select(0, rows)

        return call

    return make


def _cudnn() -> Callable[[Documents], Attention]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parameters = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, True, q.shape[1] != k.shape[1])
        if not torch.backends.cuda.can_use_cudnn_attention(parameters):  # without grouped queries it may
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return _sdpa(q, k, v)

    return _padded(attend)


def _flex() -> Callable[[Documents], Attention]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    attend = torch.compile(flex_attention, dynamic=False)

    def make(documents: Documents) -> Attention:
        device = documents.cu_seqlens.device
        lengths = torch.tensor(documents.lengths, device=device)
        document = torch.arange(len(documents.lengths), device=device).repeat_interleave(lengths)
        tokens = sum(documents.lengths)

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (document[query] == document[key])

        # Compiled: made eagerly it would hold tokens x tokens booleans.
        mask = torch.compile(create_block_mask)(visible, None, None, tokens, tokens, device=device)

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            heads = (x.transpose(0, 1)[None] for x in (q, k, v))
            out = attend(*heads, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
            return out[0].transpose(0, 1)

        return call

    return make


_OWN_NAMES = {"triton": "distill triton", "torch-varlen": "torch varlen (FA2)"}


def attentions() -> dict[str, Peer]:
    """What varlen_attention chooses, each implementation it could have chosen on a GPU, and what else there is."""
    from distill.kernels.attention import IMPLEMENTATIONS

    forced = {
        attention_name(name): Peer(_own_function(name), devices=("cuda",), needs=_not_there(name))
        for name in IMPLEMENTATIONS
        if name not in ("sdpa", "eager")
    }
    return {
        "distill": Peer(_own_function(None)),
        **forced,
        "FlexAttention": Peer(_flex, devices=("cuda",)),
        "cuDNN, padded": Peer(_cudnn, devices=("cuda",)),
        "SDPA per document": Peer(document_loop),
        "SDPA padded": Peer(lambda: _padded(_sdpa)),
    }


def attention_name(implementation: str) -> str:
    """The contender that is varlen_attention with this implementation."""
    return _OWN_NAMES.get(implementation, implementation)


def document_lengths(total: int, mean: float, spread: float, generator: torch.Generator) -> list[int]:
    """Log-normal lengths (`spread`: of the logarithm) that make `total` tokens together; the last one is cut to fit."""
    lengths: list[int] = []
    location = torch.log(torch.tensor(mean)) - spread**2 / 2
    while sum(lengths) < total:
        drawn = int(torch.exp(location + spread * torch.randn((), generator=generator)))
        lengths.append(max(1, min(drawn, total - sum(lengths))))
    return lengths


def causal_pairs(lengths: tuple[int, ...] | list[int]) -> int:
    """Query-key pairs of causal attention inside each document."""
    return sum(n * (n + 1) // 2 for n in lengths)
