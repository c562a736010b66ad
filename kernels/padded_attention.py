"""Causal attention over packed documents as a few batched products: the "sdpa" implementation of varlen_attention.

Documents of similar length are padded on the right into one batch. With causal attention no mask is needed for
that: padding comes after every real token of its row, so no real query sees it, and what the padding's own queries
compute is dropped. A loop over documents would spend most of its time between kernels when documents are short.

The grouping depends on cu_seqlens alone: make a `padded_plan` once per pack and give it to every layer.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .document_bounds import read_bounds

# Starting another batch costs about as much as this many padded query-key pairs (a few hundred microseconds on a CPU).
GROUP_COST_PAIRS = 16384
# The plain products hold all scores of a batch, so its size is bounded; a longer document stands alone.
MAX_GROUP_PAIRS = 1 << 21
# A CPU's fused kernel has a slow bfloat16 backward (five times the plain products' time at 64 tokens, equal at
# 1024); beyond this length the scores' memory decides for the fused kernel.
MAX_PLAIN_LENGTH = 1024


@dataclass(frozen=True)
class Group:
    """Documents padded to one length: row (document, position) of the batch is token tokens[document * length + position]."""

    documents: int
    length: int
    tokens: Tensor  # [documents * length]; padding repeats the document's last token
    padding: Tensor  # places in `tokens` that are padding


@dataclass
class PaddedPlan:
    """How the documents of one pack are batched; independent of heads, dtype and layer."""

    cu_seqlens: Tensor  # what it was made from
    total_tokens: int
    longest: int
    groups: list[Group]
    places: Tensor  # [total_tokens]: each token's place in the concatenation of the groups' batches
    _biases: dict[tuple, Tensor] = field(default_factory=dict, repr=False)

    def bias(self, length: int, window: int | None, repeats: int, dtype: torch.dtype) -> Tensor:
        """[repeats * length, length]: 0 where a query sees a key, -inf elsewhere; shared by the layers."""
        key = (length, window, repeats, dtype)
        if key not in self._biases:
            with torch.inference_mode(False):  # a later call may train with what an evaluation made
                index = torch.arange(length, device=self.places.device)
                distance = index[:, None] - index
                hidden = (distance < 0) | (distance >= (length if window is None else window))
                bias = torch.zeros(length, length, dtype=dtype, device=hidden.device)
                self._biases[key] = bias.masked_fill_(hidden, float("-inf")).repeat(repeats, 1)
        return self._biases[key]


def padded_plan(cu_seqlens: Tensor) -> PaddedPlan:
    """The plan for documents cu_seqlens[i]:cu_seqlens[i+1]; int32 or int64, starting at 0, strictly ascending."""
    bounds = read_bounds(cu_seqlens)
    lengths = [end - start for start, end in pairwise(bounds)]
    groups, places, offset = [], torch.empty(bounds[-1], dtype=torch.int64), 0
    starts = torch.tensor(bounds[:-1])
    document_lengths = torch.tensor(lengths)
    for members in _batches(lengths):
        length = lengths[members[0]]
        index = torch.tensor(members)
        position = torch.arange(length)
        last = document_lengths[index, None] - 1
        tokens = starts[index, None] + torch.minimum(position, last)
        is_padding = (position > last).flatten()
        tokens = tokens.flatten()
        real = (~is_padding).nonzero().squeeze(1)
        places[tokens[real]] = real + offset
        offset += tokens.numel()
        device = cu_seqlens.device
        padding = is_padding.nonzero().squeeze(1)
        groups.append(Group(len(members), length, tokens.to(device), padding.to(device)))
    return PaddedPlan(cu_seqlens, bounds[-1], max(lengths), groups, places.to(cu_seqlens.device))


def _batches(lengths: list[int]) -> list[list[int]]:
    """Documents longest first, cut where a batch's padding has come to cost what another batch would."""
    batches: list[list[int]] = []
    wasted = 0
    for document in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches:
            longest = lengths[batches[-1][0]]
            more = longest**2 - lengths[document] ** 2
            if wasted + more <= GROUP_COST_PAIRS and (len(batches[-1]) + 1) * longest**2 <= MAX_GROUP_PAIRS:
                batches[-1].append(document)
                wasted += more
                continue
        batches.append([document])
        wasted = 0
    return batches


def padded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: PaddedPlan,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """out[T,Hq,D] of q[T,Hq,D], k[T,Hk,D], v[T,Hk,D] of one dtype."""
    batches = _Pad.apply(plan, q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1))
    outputs = []
    for i, group in enumerate(plan.groups):
        visible = None if window is None or window >= group.length else window
        outputs.append(_attend(plan, group, *batches[3 * i : 3 * i + 3], scale, visible, softcap))
    return _Unpad.apply(plan, *outputs).transpose(0, 1)


def _attend(
    plan: PaddedPlan,
    group: Group,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """[Hq, documents * length, D] of one batch."""
    batch, length = group.documents, group.length
    kv_heads, _, head_dim = k.shape
    shared = q.shape[0] // kv_heads  # query heads per key head
    # Queries of one key head stand below each other: [Hk * batch, shared * length, D].
    q = q.view(kv_heads, shared, batch, length, head_dim).transpose(1, 2)

    slow_fused_kernel = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16)
    if softcap is not None or (slow_fused_kernel and length <= MAX_PLAIN_LENGTH):
        q = q.reshape(kv_heads * batch, shared * length, head_dim)
        k, v = (x.view(kv_heads * batch, length, head_dim) for x in (k, v))
        bias = plan.bias(length, window, shared, q.dtype)
        if softcap is None:
            scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
        else:
            scores = softcap * torch.tanh(torch.bmm(q, k.transpose(1, 2)) * (scale / softcap)) + bias
        out = torch.bmm(scores.softmax(-1), v)
    else:
        k, v = (x.view(kv_heads, batch, length, head_dim).transpose(0, 1) for x in (k, v))
        q = q.transpose(0, 1).flatten(1, 2)  # [batch, Hq, length, D]
        mask = None if window is None else plan.bias(length, window, 1, q.dtype)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=shared > 1
        )
        return out.transpose(0, 1).reshape(kv_heads * shared, batch * length, head_dim)
    out = out.view(kv_heads, batch, shared, length, head_dim).transpose(1, 2)
    return out.reshape(kv_heads * shared, batch * length, head_dim)


class _Pad(torch.autograd.Function):
    """Tensors [heads, T, D] to each group's batches of them [heads, documents * length, D].

    A token stands in one place, and padding gets no gradient, so the backward is again one gather.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, plan: PaddedPlan, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        return tuple(x.index_select(1, group.tokens) for group in plan.groups for x in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count = len(grads) // len(ctx.plan.groups)
        return None, *(_concatenate(grads[i::count]).index_select(1, ctx.plan.places) for i in range(count))


class _Unpad(torch.autograd.Function):
    """The groups' outputs [heads, documents * length, D] to [heads, T, D]; padding's outputs are dropped."""

    @staticmethod
    def forward(ctx: FunctionCtx, plan: PaddedPlan, *outputs: Tensor) -> Tensor:
        ctx.plan = plan
        return _concatenate(outputs).index_select(1, plan.places)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = (grad.index_select(1, group.tokens).index_fill_(1, group.padding, 0) for group in ctx.plan.groups)
        return None, *grads


def _concatenate(batches: tuple[Tensor, ...]) -> Tensor:
    return batches[0] if len(batches) == 1 else torch.cat(batches, dim=1)
