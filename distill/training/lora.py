"""LoRA students: the base is frozen and a product with a low rank is trained beside each of its linear layers.

    y = W x + (alpha / rank) B A x        W[out, in] frozen, A[rank, in] drawn at random, B[out, rank] zero

PEFT puts the adapters into the model's layers in place, so the model keeps its class, its attention and its activation
checkpointing. Only A and B have gradients, moments and checkpoints.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from distill.artifact import write_json
from distill.errors import InputError
from distill.training.settings import Lora

_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."
_SAVED_PREFIX = "base_model.model."  # PEFT's own wrapper, whose names its files carry


def linear_layers(model: Any) -> dict[str, nn.Linear]:
    """Every linear layer of the decoder's blocks by name; the head is not among them."""
    blocks = model.get_decoder().layers
    (prefix,) = (name for name, module in model.named_modules() if module is blocks)
    return {f"{prefix}.{name}": m for name, m in blocks.named_modules() if isinstance(m, nn.Linear)}


def add_adapters(model: Any, lora: Lora, *, seed: int, source: str) -> Lora:
    """Freeze `model` and put adapters beside its linear layers, in place; returns `lora` with the targets it has.

    A is drawn on the CPU from `seed` alone. Raises InputError for targets that the model has not.
    """
    from peft import inject_adapter_in_model

    kinds = sorted({name.rpartition(".")[2] for name in linear_layers(model)})
    targets = kinds if lora.targets is None else sorted(set(lora.targets))
    unknown = [target for target in targets if target not in kinds]
    if unknown:
        raise InputError(
            f"lora_targets: student {source} has no linear layer {', '.join(unknown)} in its blocks; it has "
            f"{', '.join(kinds)}"
        )
    lora = lora._replace(targets=tuple(targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(adapter_config(lora), model)
    for module in model.modules():
        # PEFT would widen a layer's bf16 input to A's float32, and autocast narrow it again.
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    return lora


def adapter_config(lora: Lora, base: str | None = None, revision: str | None = None) -> Any:
    """PEFT's description of adapters on the model `base`."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        target_modules=list(lora.targets or ()),
        lora_dropout=0.0,  # a resumed run has no random state to lose
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        revision=revision,
    )


def adapter_weights(model: nn.Module) -> int:
    """Weights of all adapters; 0 without any."""
    return sum(p.numel() for name, p in model.named_parameters() if name.endswith((_A, _B)))


def hold_base_in(model: Any, dtype: torch.dtype) -> int:
    """Keep the frozen weights of matrix products in `dtype`, that of the products; returns how many there are.

    Autocast casts them to it anyway, at every use, for it remembers only casts of weights that are trained. So every
    bit of the training stays as it is, at half the memory. Embeddings and norms stay in float32, for their dtype would
    become that of the residual stream.
    """
    head = model.get_output_embeddings()
    is_tied = head.weight is model.get_input_embeddings().weight
    frozen = [*linear_layers(model).values(), *([] if is_tied else [head])]
    frozen = [layer for layer in frozen if not any(p.requires_grad for p in layer.parameters())]
    for layer in frozen:
        layer.to(dtype)
    return sum(p.numel() for layer in frozen for p in layer.parameters())


def save_adapter(
    lora: Lora, weights: Mapping[str, torch.Tensor], folder: Path, *, base: str, revision: str | None
) -> None:
    """Write the adapters among `weights` in PEFT's layout: adapter_model.safetensors and adapter_config.json."""
    adapters = {_SAVED_PREFIX + name.replace(".default.", "."): weights[name] for name in _adapter_names(weights)}
    save_file(
        {name: w.contiguous() for name, w in adapters.items()}, folder / "adapter_model.safetensors", {"format": "pt"}
    )
    values = adapter_config(lora, base, revision).to_dict() | {"inference_mode": True}
    # PEFT keeps names in sets, whose order is another in every process.
    write_json(folder / "adapter_config.json", {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()})


def merged(lora: Lora, weights: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of the same model without adapters by its own names, one at a time: W + (alpha / rank) B A in float32."""
    for name, w in weights.items():
        layer = name.removesuffix(_BASE + "weight")
        if layer + _A in weights:
            product = weights[layer + _B].float() @ weights[layer + _A].float()
            yield layer + ".weight", w.float() + lora.alpha / lora.rank * product
        elif not name.endswith((_A, _B)):
            yield name.replace(_BASE, "."), w


def _adapter_names(weights: Mapping[str, torch.Tensor]) -> Iterator[str]:
    return (name for name in weights if name.endswith((_A, _B)))
