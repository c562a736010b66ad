"""What a training step holds in memory, counted from shapes before anything is allocated.

P parameters and their training state, all float32 masters: weights 4P, gradients 4P, AdamW's moments 8P; with bf16
autocast 2 bytes more for every weight of a matrix product, its cast. With LoRA the base's weights have neither
gradients nor moments, and those that are held in bf16 take 2 bytes each and no cast.

Activations that a layer keeps for its backward, T tokens of the widest row, hidden H, A query and K key-value heads of
size D, feed-forward F, c bytes an element of a matrix product (4, or 2 in bf16), per token:

    two norms            x and its normalised self in float32, 8H each
    products' inputs     after a norm 4H, twice; in bf16 each of the five projections has a cast of its own, 2H
    attention            q, the output and its copy for the projection; k, v; lse in float32:    c (3AD + 2KD) + 4A
    feed-forward         gate, up, the gate's activation, their product:                         4cF

With adapters of rank r each of the seven products keeps cr more. What a frozen product without one does not keep is not
counted off.

This is what transformers' plain layers keep; fused ones keep less. On a CPU in bf16, attention keeps the scores of
documents up to a length, cA times that length squared. With activation checkpointing a layer keeps its input, 4H, and
with `selective` what its seven products and attention made, c (2AD + 2KD + 2H + 2F) + 4A; one layer at a time keeps
all of it, of which attention's output, gate and up are there already.

The head never holds all logits: R supervised rows of hidden states and their gradients, cRH each, its workspace, and
the float32 gradient of its weight, 4VH, unless that is frozen.
"""

from typing import Any

import numpy as np

from distill.flops import ModelShape
from distill.kernels.linear_loss import DEFAULT_WORKSPACE_BYTES
from distill.kernels.padded_attention import MAX_PLAIN_LENGTH
from distill.training.settings import ActivationCheckpointing


def estimate_bytes(
    shape: ModelShape,
    parameters: int,
    *,
    frozen: int = 0,
    held: int = 0,
    rank: int = 0,
    rows: list[np.ndarray],
    supervised: int,
    bf16: bool,
    device: str,
    checkpointing: ActivationCheckpointing,
) -> dict[str, int]:
    """Bytes by what they are for, at the worst moment of a step.

    `rows`: the documents' lengths of each row; `supervised`: the most supervised tokens of a row. Of the `parameters`,
    `frozen` are not trained and `held` in bf16; `rank` is that of the adapters.
    """
    c = 2 if bf16 else 4
    head = shape.vocab * shape.hidden
    trained = parameters - frozen
    products = shape.product_weights + head
    tokens = max(int(lengths.sum()) for lengths in rows)
    layer = (activation_bytes(shape, c) + 7 * c * rank) * tokens
    if bf16 and device == "cpu":
        scores = max(int(np.square(lengths[lengths <= MAX_PLAIN_LENGTH]).sum()) for lengths in rows)
        layer += c * shape.heads * scores
    kept, there = 4 * shape.hidden * tokens, 0
    if checkpointing == "selective":
        attention, wide = c * shape.heads * shape.head_dim * tokens, 2 * c * shape.intermediate * tokens
        key_values = 2 * c * shape.kv_heads * shape.head_dim * tokens
        kept += 2 * attention + key_values + 2 * c * shape.hidden * tokens + wide + 4 * shape.heads * tokens
        there = attention + wide
    return {
        "weights": 4 * (parameters - held) + 2 * held,
        "gradients": 4 * trained,
        "moments": 8 * trained,
        "casts": 2 * max(0, products - held) if bf16 else 0,
        "activations": shape.layers * layer if checkpointing == "off" else shape.layers * kept + layer - there,
        "head": 2 * c * supervised * shape.hidden
        + _workspace(shape, supervised, c, device)
        + (0 if frozen else 4 * head),
    }


def device_bytes_needed(
    shape: ModelShape, parameters: int, *, ranks: int = 1, offload: bool = False, bf16: bool, device: str, **of_one: Any
) -> dict[str, int]:
    """The same of one device of `ranks`, with `of_one` as `estimate_bytes` takes it.

    Weights, gradients and moments are shared out, or with `offload` elsewhere; what is put together to run is not.
    """
    needed = estimate_bytes(shape, parameters, bf16=bf16, device=device, **of_one)
    if ranks == 1 and not offload:
        return needed
    states = {name: 0 if offload else needed[name] // ranks for name in ("weights", "gradients", "moments")}
    adapters = shape.adapter_weights // shape.layers
    layer = shape.layer_weights + adapters
    outside = parameters - shape.layers * layer
    gradients = adapters if adapters else outside + layer  # the layer that comes next has none yet
    in_bf16 = bf16 and device == "cuda"  # on a CPU they are put together in float32
    together = {"put_together": (2 if in_bf16 else 4) * (outside + 2 * layer + gradients)}
    return {**needed, **states, **together, **({"casts": 0} if in_bf16 else {})}


def activation_bytes(shape: ModelShape, c: int) -> int:
    """Of one token in one layer."""
    norms = 2 * (8 * shape.hidden + 4)  # 4: the root mean square
    inputs = (10 if c == 2 else 8) * shape.hidden
    attention = c * shape.head_dim * (3 * shape.heads + 2 * shape.kv_heads) + 4 * shape.heads
    return norms + inputs + attention + 4 * c * shape.intermediate


def _workspace(shape: ModelShape, rows: int, c: int, device: str) -> int:
    limit = DEFAULT_WORKSPACE_BYTES[device]
    if device == "cpu":
        limit = max(limit, 4 * shape.vocab * shape.hidden)
    return min(limit, rows * shape.vocab * c)
