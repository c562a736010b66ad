"""What one device holds while a student is trained and served, and whether that fits.

Training: as `distill train --dry-run` counts it, with the rows that need the most. Serving: the weights, and a key-value
cache that must hold at least the longest prompt with its answer. vLLM takes SERVED of a device; several devices share
weights and cache evenly.
"""

from dataclasses import dataclass
from typing import Any

import torch

from distill.flops import Hardware, ModelShape
from distill.process import peak_rss_bytes
from distill.study.plan.counts import Training
from distill.study.plan.shapes import Shape
from distill.training.device import device_bytes, resolve_precision
from distill.training.memory import device_bytes_needed
from distill.training.settings import ActivationCheckpointing, TrainSettings

GIB = 2.0**30
SERVED = 0.9  # vLLM's own share of a device


@dataclass(frozen=True)
class Device:
    """One device of a hardware row: its kind and memory. Where the row has no memory it is this machine's."""

    kind: str  # cuda, or cpu
    bytes: float

    @classmethod
    def of(cls, row: Hardware) -> "Device":
        if row.memory_gib is None:
            return cls("cpu", float(device_bytes(torch.device("cpu"))))
        return cls("cuda" if row.cores is None else "cpu", row.memory_gib * GIB)


@dataclass(frozen=True)
class Need:
    """Bytes of one device by what they are for, and what it has."""

    parts: dict[str, float]
    has: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.has

    @property
    def largest(self) -> str:
        names = sorted(self.parts, key=lambda name: -self.parts[name])[:3]
        return ", ".join(f"{name.replace('_', ' ')} {self.parts[name] / GIB:.1f}" for name in names)

    def to_json(self) -> dict[str, Any]:
        return {
            "parts_gib": {name: size / GIB for name, size in self.parts.items()},
            "total_gib": self.total / GIB,
            "device_gib": self.has / GIB,
            "fits": self.fits,
        }


def while_training(
    settings: TrainSettings,
    shape: Shape,
    training: Training,
    device: Device,
    devices: int,
    checkpointing: ActivationCheckpointing = "off",
) -> Need:
    dtype = resolve_precision(settings.precision, torch.device(device.kind), shape.model.hidden)
    bf16 = dtype is torch.bfloat16
    parts: dict[str, float] = device_bytes_needed(
        shape.model,
        shape.parameters,
        ranks=devices,
        frozen=shape.parameters - shape.trainable,
        held=shape.held if bf16 and devices == 1 else 0,
        rank=settings.lora.rank if settings.lora else 0,
        rows=training.widest,
        supervised=training.most_supervised,
        bf16=bf16,
        device=device.kind,
        checkpointing=checkpointing,
    )
    if device.kind == "cpu":
        parts = parts | {"program": float(peak_rss_bytes())}  # with its libraries, as this process has them
    has = device.bytes / devices if device.kind == "cpu" else device.bytes  # processes of one machine share it
    return Need({name: float(size) for name, size in parts.items()}, has)


def is_divisible(model: ModelShape, devices: int) -> bool:
    """Whether vLLM can spread a model over so many devices: heads and units evenly, key-value heads evenly or whole."""
    evenly = model.heads % devices == model.intermediate % devices == 0
    return evenly and (model.kv_heads % devices == 0 or devices % model.kv_heads == 0)


def while_serving(shape: Shape, device: Device, devices: int, longest: float) -> Need:
    """`longest`: tokens of a prompt and its answer."""
    parts = {
        "weights": shape.served_parameters * shape.save_bytes / devices,
        "longest_answer": longest * shape.kv_bytes / min(devices, shape.model.kv_heads),
    }
    return Need(parts, SERVED * device.bytes)
