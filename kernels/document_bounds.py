"""Whether cu_seqlens describe a pack: 0 first, strictly ascending, T last, no document longer than max_seqlen.

On a CPU they are read and the error says what was found. On a GPU reading them would wait for the device, so the device
checks them itself and stops at the first bad pack; with DISTILL_DEBUG=1 in the environment they are read there too.
"""

import os
from itertools import pairwise

import torch
from torch import Tensor


def read_bounds(cu_seqlens: Tensor) -> list[int]:
    """cu_seqlens as numbers, 0 first and strictly ascending."""
    _check_shape(cu_seqlens)
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0:
        raise ValueError(f"cu_seqlens: got {bounds[0]} first, takes 0")
    for i, (start, end) in enumerate(pairwise(bounds)):
        if end <= start:
            raise ValueError(f"cu_seqlens: got {end} after {start} at index {i + 1}, takes strictly ascending values")
    return bounds


def check_bounds(cu_seqlens: Tensor, total_tokens: int, max_seqlen: int) -> None:
    """Raise ValueError, now on a CPU or in debug mode; on a GPU otherwise the device raises when it gets there."""
    if cu_seqlens.device.type == "cpu" or _debug():
        bounds = read_bounds(cu_seqlens)
        check_lengths(bounds[-1], max(end - start for start, end in pairwise(bounds)), total_tokens, max_seqlen)
        return
    assert_bounds(cu_seqlens, total_tokens, max_seqlen)


def assert_bounds(cu_seqlens: Tensor, total_tokens: int, max_seqlen: int) -> None:
    """Let the device of cu_seqlens raise, without waiting for it."""
    _check_shape(cu_seqlens)
    shortest, longest = torch.aminmax(cu_seqlens.diff())
    starts_at_0, ends_at_t = cu_seqlens.select(0, 0) == 0, cu_seqlens.select(0, -1) == total_tokens
    torch._assert_async(
        starts_at_0 & ends_at_t & (shortest > 0) & (longest <= max_seqlen),
        "cu_seqlens: takes 0 first, strictly ascending values, T last and no document longer than max_seqlen; "
        "DISTILL_DEBUG=1 says what it got",
    )


def check_lengths(end: int, longest: int, total_tokens: int, max_seqlen: int) -> None:
    """Raise ValueError unless documents that end at `end`, the longest of `longest` tokens, are the pack's."""
    if end != total_tokens:
        raise ValueError(f"cu_seqlens: got {end} last, takes T = {total_tokens}")
    if max_seqlen < longest:
        raise ValueError(f"max_seqlen: got {max_seqlen}, takes the longest document's length, {longest}, or more")


def check_plan(made_from: Tensor, cu_seqlens: Tensor) -> None:
    """Raise, now on a CPU and else on the device, unless a plan is of these documents: with another's they would mix."""
    if made_from.shape != cu_seqlens.shape:
        found, expected = made_from.shape[0] - 1, cu_seqlens.shape[0] - 1
        raise ValueError(f"plan: got one of {found} documents, takes one made from cu_seqlens, of {expected}")
    # A model hands one tensor to all layers, so there is hardly ever something to compare.
    if torch.compiler.is_compiling() or made_from is cu_seqlens:
        return
    is_same = (made_from == cu_seqlens).all()
    if cu_seqlens.device.type != "cpu":
        torch._assert_async(is_same, "plan: got one of other documents, takes one made from cu_seqlens")
    elif not is_same:
        raise ValueError("plan: got one of other documents, takes one made from cu_seqlens")


def _check_shape(cu_seqlens: Tensor) -> None:
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        found = f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
        raise ValueError(f"cu_seqlens: got {found}, takes int32 or int64 [documents + 1]")


@torch.compiler.assume_constant_result
def _debug() -> bool:
    return os.environ.get("DISTILL_DEBUG") == "1"
