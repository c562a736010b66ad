"""Attention over packed documents, ours and others'.

make(documents) -> fn(q[T,Hq,D], k[T,Hk,D], v[T,Hk,D]) -> out[T,Hq,D]: what depends on the documents only is made once.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.bench.documents import Documents
from distill.bench.peers import Peer

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

        # Not compiled: that can take minutes (pytorch#182060). It holds some tokens x tokens booleans for a moment.
        mask = create_block_mask(visible, None, None, tokens, tokens, device=device)

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
