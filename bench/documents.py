"""Documents packed end to end: their bounds, random lengths of them, and how much attention they are."""

from typing import NamedTuple

import torch
from torch import Tensor


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
