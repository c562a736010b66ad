"""How long training and serving take on a row of hardware.yaml, and what that costs. What is assumed is said.

Training is FLOPs over what the devices reach: their peak times an assumed MFU.

Generation is a roofline. A step of the server reads the weights and the key-value cache of the requests in flight, and
computes a token for each; it takes what takes longer, bytes over bandwidth or FLOPs over the peak. Prompts are read at
the peak. Of that roofline a server reaches an assumed share.

Rates that were measured here (rates.py) take the place of both.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from distill.flops import Hardware
from distill.study.plan.answers import Batch
from distill.study.plan.counts import Training
from distill.study.plan.memory import GIB, SERVED
from distill.study.plan.shapes import Shape
from distill.training.dry_run import ASSUMED_MFU

ASSUMED_OF_ROOFLINE = 0.5  # of generation on a GPU, until one has been measured
START_S = {"train": 30.0, "serve": 90.0}  # of a process that trains, and of a server, on a GPU; assumptions as well


class Rates(Protocol):
    """How fast a student is trained and served. None: not known."""

    def training(self, size: str, shape: Shape, training: Training, devices: int) -> float | None:
        """Seconds of one training's steps."""

    def start(self, size: str, devices: int) -> float:
        """Seconds of a process that trains before its first step, and after its last."""

    def serving(self, size: str, shape: Shape, batches: list[Batch], devices: int) -> float | None:
        """Seconds of a server for all its requests, start included."""

    def describe(self) -> dict[str, Any]:
        """What they rest on, in words and numbers."""


@dataclass(frozen=True)
class Assumed:
    """From a row that has peak rates; for one without, only training, by a peak that was measured here."""

    row: Hardware
    kind: str  # of device: cuda, cpu
    peak: float | None  # FLOP/s of one device

    def training(self, size: str, shape: Shape, training: Training, devices: int) -> float | None:
        if self.peak is None:
            return None
        return training.flops / (self.peak * ASSUMED_MFU[self.kind] * devices)

    def start(self, size: str, devices: int) -> float:
        return self._start("train")

    def serving(self, size: str, shape: Shape, batches: list[Batch], devices: int) -> float | None:
        if self.row.memory_gb_per_s is None or self.row.peak_bf16_tflops is None or self.row.memory_gib is None:
            return None
        seconds = sum(self._batch(shape, batch, devices) for batch in batches)
        return self._start("serve") + seconds / ASSUMED_OF_ROOFLINE

    def _batch(self, shape: Shape, batch: Batch, devices: int) -> float:
        """At the roofline."""
        bandwidth = 1e9 * self.row.memory_gb_per_s * devices
        peak = 1e12 * self.row.peak_bf16_tflops * devices
        weights = shape.served_parameters * shape.save_bytes
        context = batch.prompt_tokens + batch.output_tokens / 2  # on the mean of an answer's steps
        room = max(0.0, SERVED * self.row.memory_gib * GIB * devices - weights)
        together = max(
            1.0, min(batch.concurrency, room / (shape.kv_bytes * (batch.prompt_tokens + batch.output_tokens)))
        )
        a_token = shape.model.generation_flops(int(batch.prompt_tokens), max(1, round(batch.output_tokens)))
        reading = shape.model.forward_flops([batch.prompt_tokens], 1)
        a_token = max(0.0, a_token - reading) / max(1.0, batch.output_tokens)
        step = max((weights + together * context * shape.kv_bytes) / bandwidth, together * a_token / peak)
        return batch.generated / together * step + batch.answers * reading / peak

    def _start(self, what: str) -> float:
        return START_S[what] if self.kind == "cuda" else 0.0

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "assumed",
            "assumed_mfu": ASSUMED_MFU[self.kind],
            "peak_flops": self.peak,
            "assumed_share_of_roofline": ASSUMED_OF_ROOFLINE,
            "start_seconds": START_S if self.kind == "cuda" else None,
        }
