"""How fast a training goes and what it takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from distill.training.device import peak_bytes


@dataclass(frozen=True)
class Speed:
    """Means over the steps of this process so far, validation left out; memory is the most so far, of this process on a
    CPU, of tensors on a GPU. `mfu` is a share of what the devices could compute."""

    tokens_per_second: float
    supervised_tokens_per_second: float
    mfu: float
    memory_bytes: int

    def __str__(self) -> str:
        """At most 31 characters: "2.5k/9.9k tok/s MFU 40% 12G", supervised tokens first."""
        gib = self.memory_bytes / 2**30
        memory = f"{gib:.1f}G" if gib < 9.95 else f"{gib:.0f}G"
        rates = f"{_short(self.supervised_tokens_per_second)}/{_short(self.tokens_per_second)}"
        return f"{rates} tok/s MFU {self.mfu:.0%} {memory}"


class Meter:
    """Counts what this process trains on and times it, from when it is made; `peak` is FLOP/s of all devices together."""

    def __init__(self, device: torch.device, peak: float):
        self.device, self.peak = device, peak
        self.tokens = self.supervised_tokens = 0
        self.flops = self.validation_seconds = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start, validation included."""
        return time.monotonic() - self._started

    def add(self, counts: dict[str, Any]) -> None:
        """A step's counts of tokens, supervised tokens and FLOPs."""
        self.tokens += counts["tokens"]
        self.supervised_tokens += counts["supervised_tokens"]
        self.flops += counts["flops"]

    @contextmanager
    def validating(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.validation_seconds += time.monotonic() - start

    def speed(self) -> Speed:
        elapsed = max(self.seconds - self.validation_seconds, 1e-9)
        return Speed(
            tokens_per_second=self.tokens / elapsed,
            supervised_tokens_per_second=self.supervised_tokens / elapsed,
            mfu=self.flops / elapsed / self.peak,
            memory_bytes=peak_bytes(self.device),
        )


def _short(number: float) -> str:
    """In at most 4 characters: 980, 9.9k, 120k, 1.2M."""
    for unit in ("", "k", "M", "G"):
        if number < 999.5 or unit == "G":
            break
        number /= 1000
    return f"{number:.1f}{unit}" if unit and number < 9.95 else f"{number:.0f}{unit}"
