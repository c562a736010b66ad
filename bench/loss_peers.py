"""Linear cross-entropy, ours and others': fn(hidden[N,H], weight[V,H], labels[N]) -> mean loss over labels not -100."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.bench.peers import LARGE_CHUNK, Peer

IGNORE = -100


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
    # Static but for the rows: after a second head torch would by itself make width and vocabulary dynamic.
    compiled = torch.compile(eager_loss, dynamic=False)
    # One compilation a head, two where some of its logits need 64-bit indices: past the limit it would run eagerly.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)

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
