"""The shape of a student or teacher without its weights: from its folder, from models.yaml, or from the Hub.

A model is built on torch's meta device, where it is shapes and nothing else, so that parameters and adapters are counted
by the code that trains them.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml

from distill.errors import InputError
from distill.flops import ModelShape
from distill.hub import asking_the_hub
from distill.training.lora import adapter_weights, add_adapters, hold_base_in
from distill.training.settings import Lora, TrainSettings
from distill.training.sizes import SIZES, check_student
from distill.training.student import SCRATCH_POSITIONS

TABLE = "models.yaml"


@dataclass(frozen=True)
class KnownModel:
    """One model of models.yaml."""

    config: dict[str, Any]  # fields of a Hugging Face config
    parameters: int  # as published
    source: str
    text_only: bool = True


@dataclass(frozen=True)
class Shape:
    """What planning needs of a model."""

    model: ModelShape
    parameters: int
    trainable: int
    held: int  # frozen weights that are kept in bf16, where the files have them so
    save_bytes: int  # of a weight, in the file and in the server's memory
    positions: int | None
    source: str  # where the shape is from

    @property
    def served_parameters(self) -> int:
        """Adapters are merged, or small beside the model."""
        return self.parameters - self.model.adapter_weights

    @property
    def kv_bytes(self) -> int:
        """Of a token in the key-value cache."""
        return 2 * self.model.layers * self.model.kv_heads * self.model.head_dim * self.save_bytes


@cache
def known_models() -> dict[str, KnownModel]:
    """models.yaml by Hub id, those of the same shape too."""
    rows = yaml.safe_load(files("distill").joinpath(TABLE).read_text(encoding="utf-8"))
    found = {}
    for name, row in rows.items():
        for one in (name, *row.pop("also", ())):
            found[one] = KnownModel(**row)
    return found


def student_shape(settings: TrainSettings) -> Shape:
    """Of the student that these settings train. Raises InputError for one that is nowhere, or reads more than text."""
    return model_shape(settings.student, vocab_size=settings.vocab_size, lora=settings.lora)


def model_shape(name: str, *, vocab_size: int = 512, lora: Lora | None = None, trained: bool = True) -> Shape:
    """Of a from-scratch size, a folder or a Hub id. A from-scratch student's vocabulary is taken as full. What is not to be
    `trained` may read more than text. Raises InputError, for a mixture of experts too, whose FLOPs are not counted."""
    check_student(name)
    if name in SIZES:
        from transformers import Qwen2Config

        config = Qwen2Config(
            **SIZES[name],
            vocab_size=-(-vocab_size // 8) * 8,
            num_key_value_heads=SIZES[name]["num_attention_heads"],
            tie_word_embeddings=True,
            max_position_embeddings=SCRATCH_POSITIONS,
        )
        return _built(config, name, lora, torch.float32, f"size {name}")
    folder = Path(name)
    if folder.is_dir():
        return _of_config(_read(name), name, lora, str(folder / "config.json"))
    known = known_models().get(name)
    if known is None:
        return _of_config(_read(name), name, lora, "the Hugging Face Hub")
    if trained and not known.text_only:
        raise InputError(f"student {name}: reads more than text; expected a model of text alone")
    from transformers import AutoConfig

    values = dict(known.config)
    return _built(AutoConfig.for_model(values.pop("model_type"), **values), name, lora, torch.bfloat16, TABLE)


def _read(name: str) -> Any:
    from transformers import AutoConfig

    try:
        with asking_the_hub(name):
            return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a damaged folder, or no network, makes transformers raise almost anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"student {name}: its config.json cannot be read ({reason})") from None


def _of_config(config: Any, name: str, lora: Lora | None, source: str) -> Shape:
    if config.get_text_config() is not config:
        raise InputError(f"student {name}: {config.model_type} reads more than text; expected a model of text alone")
    return _built(config, name, lora, getattr(config, "dtype", None) or torch.float32, source)


def _built(config: Any, name: str, lora: Lora | None, dtype: torch.dtype, source: str) -> Shape:
    from transformers import AutoModelForCausalLM

    if any(getattr(config, field, None) for field in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise InputError(f"student {name}: a mixture of experts, whose FLOPs are not counted")
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"student {name}: {source} describes no decoder ({str(error).splitlines()[0]})") from None
    held = 0
    if lora is not None:
        with torch.device("meta"):
            add_adapters(model, lora, seed=0, source=name)
        held = hold_base_in(model, torch.bfloat16) if dtype is torch.bfloat16 else 0
    return Shape(
        model=ModelShape.from_config(config, adapter_weights=adapter_weights(model)),
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        held=held,
        save_bytes=torch.empty(0, dtype=dtype).element_size(),
        positions=getattr(config, "max_position_embeddings", None),
        source=source,
    )
