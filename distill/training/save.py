"""A trained student on disk, as transformers, PEFT and vLLM load it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from distill.training import checkpoint, lora
from distill.training.log import Diverged
from distill.training.student import Origin


def save_student(origin: Origin, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write `weights`, one whole tensor on the CPU for every name of `origin.model.named_parameters()`.

    All weights trained: a model in Hugging Face layout, in `origin.save_dtype`. Adapters: PEFT's layout, which names
    the student they were trained on; with `merge` the whole model with them added in, and PEFT's layout in adapter/.
    Raises Diverged for a weight that is no number, of which the last step's loss knew nothing.
    """
    for name, w in weights.items():
        if not w.to(origin.save_dtype).isfinite().all():
            kind = str(origin.save_dtype).removeprefix("torch.")
            raise Diverged(
                f"weight {name} is not a finite number in {kind} after the last step; take a smaller learning rate"
            )
    places = [folder]
    with checkpoint.disk_errors(folder):
        if origin.lora is None:
            _save_model(origin, weights.items(), folder)
        else:
            if origin.lora.merge:
                places.append(folder / "adapter")
                places[-1].mkdir(exist_ok=True)
                _save_model(origin, lora.merged(origin.lora, weights), folder)
            revision = getattr(origin.model.config, "_commit_hash", None)
            lora.save_adapter(origin.lora, weights, places[-1], base=origin.source, revision=revision)
        for place in places:
            origin.chat.tokenizer.save_pretrained(place)
            origin.chat.think.save(place)


def _save_model(origin: Origin, weights: Iterable[tuple[str, torch.Tensor]], folder: Path) -> None:
    """Through a model of its own: the trained one may be sharded, or have adapters in it."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(origin.model.config, trust_remote_code=False)
    whole = dict(origin.model.named_buffers()) | {name: w.to(origin.save_dtype) for name, w in weights}
    model.load_state_dict(whole, strict=False, assign=True)  # not all buffers are for the disk
    model.tie_weights()
    model.generation_config = origin.model.generation_config
    if model.generation_config is not None:
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends] if ends is not None else []
        model.generation_config.eos_token_id = sorted({*ends, origin.chat.end_of_turn})
    model.save_pretrained(folder)
