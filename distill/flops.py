"""Training and inference FLOPs from a decoder's shapes and the lengths of what it reads.

A multiply-add is two FLOPs. Counted are the matrix products: projections, feed-forward, attention scores and their
product with the values, and the head. Looking up an embedding is free, norms and activations are left out (under 1 %
at these shapes). Attention is causal and per document: a document of s tokens costs s (s + 1) / 2 query-key pairs, so a
pack costs the sum over its documents, not its length squared.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from distill.errors import unknown_name


@dataclass(frozen=True)
class ModelShape:
    """What the count needs to know of a decoder with gated feed-forward layers and grouped-query attention."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    adapter_weights: int = 0  # of LoRA, in all layers together; with any, the other weights are frozen

    @classmethod
    def from_config(cls, config: Any, *, adapter_weights: int = 0) -> "ModelShape":
        """From a Hugging Face config of the Qwen2, Qwen3, Llama or Gemma kind."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate=config.intermediate_size,
            vocab=config.vocab_size,
            adapter_weights=adapter_weights,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of one layer that take part in matrix products."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    def forward_flops(self, lengths: Iterable[int] | np.ndarray, head_rows: int) -> float:
        """FLOPs of one forward over documents of `lengths` tokens, with the head on `head_rows` of the rows."""
        s = np.asarray(list(lengths) if not isinstance(lengths, np.ndarray) else lengths, dtype=np.float64)
        linear = 2.0 * (self.layers * self.layer_weights + self.adapter_weights) * s.sum()
        attention = 4.0 * self.layers * self.heads * self.head_dim * (s * (s + 1) / 2).sum()
        return float(linear + attention + 2.0 * self.hidden * self.vocab * head_rows)

    def training_flops(self, lengths: Iterable[int] | np.ndarray, head_rows: int) -> float:
        """FLOPs of forward and backward (twice the forward), without recomputation.

        With adapters the backward computes no gradients of frozen weights: of their products only those of the inputs,
        in the first layer too, where those of its queries, keys and values are in fact left out.
        """
        whole = 3.0 * self.forward_flops(lengths, head_rows)
        if not self.adapter_weights:
            return whole
        s = np.asarray(list(lengths) if not isinstance(lengths, np.ndarray) else lengths, dtype=np.float64)
        frozen = self.layers * self.layer_weights * s.sum() + self.hidden * self.vocab * head_rows
        return float(whole - 2.0 * frozen)

    def generation_flops(self, prompt_tokens: int, output_tokens: int) -> float:
        """FLOPs to read a prompt and generate `output_tokens` with a key-value cache.

        The last generated token is never read, and the head runs once a generated token.
        """
        if output_tokens <= 0:
            return 0.0
        return self.forward_flops([prompt_tokens + output_tokens - 1], output_tokens)


@dataclass(frozen=True)
class Hardware:
    """One row of hardware.yaml."""

    name: str
    description: str
    price_usd_per_hour: float
    power_watts: float | None
    peak_bf16_tflops: float | None
    memory_gib: float | None
    cores: int | None
    source: str
    date: str
    illustrative: bool

    def usd(self, seconds: float, threads: int | None = None) -> float:
        """The price of `seconds` of the device; with `threads`, of that share of its cores where it is priced by them."""
        share = 1.0 if threads is None or self.cores is None else min(1.0, threads / self.cores)
        return self.price_usd_per_hour * seconds / 3600.0 * share


@cache
def hardware_table() -> dict[str, Hardware]:
    """Every device in hardware.yaml, by name."""
    rows = yaml.safe_load(files("distill").joinpath("hardware.yaml").read_text(encoding="utf-8"))
    return {name: Hardware(name=name, **row) for name, row in rows.items()}


def hardware(name: str) -> Hardware:
    """One device. Raises InputError with the nearest names."""
    if name not in hardware_table():
        raise unknown_name("hardware", name, hardware_table())
    return hardware_table()[name]
