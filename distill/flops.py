"""Training and inference FLOPs from a decoder's shapes and the lengths of what it reads.

A multiply-add is two FLOPs. Counted are the matrix products: projections, feed-forward, attention scores and their
product with the values, and the head. Looking up an embedding is free, norms and activations are left out (under 1 %
at these shapes). Attention is causal and per document: a document of s tokens costs s (s + 1) / 2 query-key pairs, so a
pack costs the sum over its documents, not its length squared. In a layer with a sliding window no query has more keys
than the window.
"""

from collections import Counter
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
    windows: tuple[int, ...] = ()  # keys that a query sees, of each layer where it does not see all before it

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
            windows=tuple(
                config.sliding_window
                for kind in getattr(config, "layer_types", None) or ()
                if kind == "sliding_attention"
            ),
        )

    @property
    def layer_weights(self) -> int:
        """Weights of one layer that take part in matrix products."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def product_weights(self) -> int:
        """The same of all layers, adapters included; the head is not among them."""
        return self.layers * self.layer_weights + self.adapter_weights

    def forward_flops(self, lengths: Iterable[int] | np.ndarray, head_rows: int) -> float:
        """FLOPs of one forward over documents of `lengths` tokens, with the head on `head_rows` of the rows."""
        s = _float(lengths)
        attention = 4.0 * self.heads * self.head_dim * self._query_key_pairs(s).sum()
        return float(2.0 * self.product_weights * s.sum() + attention + 2.0 * self.hidden * self.vocab * head_rows)

    def training_flops(self, lengths: Iterable[int] | np.ndarray, head_rows: int) -> float:
        """FLOPs of forward and backward (twice the forward), without recomputation.

        With adapters the backward computes no gradients of frozen weights: of their products only those of the inputs,
        in the first layer too, where those of its queries, keys and values are in fact left out.
        """
        head = self._training_flops_a_weight * self.hidden * self.vocab * head_rows
        return float(self.training_flops_by_document(lengths).sum() + head)

    def training_flops_by_document(self, lengths: Iterable[int] | np.ndarray) -> np.ndarray:
        """The same of each document, the head left out, float64[documents]."""
        s = _float(lengths)
        a_token = self._training_flops_a_weight * self.layers * self.layer_weights + 6.0 * self.adapter_weights
        return a_token * s + 12.0 * self.heads * self.head_dim * self._query_key_pairs(s)

    @property
    def _training_flops_a_weight(self) -> float:
        """Of the model's own weights, for a row."""
        return 4.0 if self.adapter_weights else 6.0

    def _query_key_pairs(self, s: np.ndarray) -> np.ndarray:
        """Of each document of s tokens, in all layers together."""
        pairs = (self.layers - len(self.windows)) * s * (s + 1) / 2
        for window, layers in Counter(self.windows).items():
            w = np.minimum(s, window)
            pairs += layers * (w * (w + 1) / 2 + (s - w) * w)
        return pairs

    def generation_flops(self, prompt_tokens: int, output_tokens: int) -> float:
        """FLOPs to read a prompt and generate `output_tokens` with a key-value cache.

        The last generated token is never read, and the head runs once a generated token.
        """
        return float(self.generation_flops_by_answer([prompt_tokens], [output_tokens])[0])

    def generation_flops_by_answer(
        self, prompt_tokens: Iterable[int] | np.ndarray, output_tokens: Iterable[int] | np.ndarray
    ) -> np.ndarray:
        """The same of each of n answers, float64[n]."""
        out = _float(output_tokens)
        s = _float(prompt_tokens) + out - 1
        attention = 4.0 * self.heads * self.head_dim * self._query_key_pairs(s)
        return np.where(out > 0, 2.0 * self.product_weights * s + attention + 2.0 * self.hidden * self.vocab * out, 0.0)


def _float(lengths: Iterable[int] | np.ndarray) -> np.ndarray:
    return np.asarray(lengths if isinstance(lengths, np.ndarray) else list(lengths), dtype=np.float64)


@dataclass(frozen=True)
class Hardware:
    """One row of hardware.yaml."""

    name: str
    description: str
    price_usd_per_hour: float
    power_watts: float | None
    peak_bf16_tflops: float | None
    memory_gib: float | None
    memory_gb_per_s: float | None
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
