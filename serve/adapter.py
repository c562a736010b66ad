"""A folder that holds LoRA adapters in PEFT's layout and no model: what they are for, and how vLLM is told."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from distill.errors import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what its --max-lora-rank takes


@dataclass(frozen=True)
class Adapter:
    """LoRA adapters on a disk."""

    folder: Path
    base: str  # the model they were trained on: a folder or a Hugging Face id
    rank: int
    weights: int  # how many, in all layers together

    def server_arguments(self, name: str) -> list[str]:
        """For vLLM's server, so that it knows base and adapters together by `name`."""
        rank = next(rank for rank in VLLM_RANKS if rank >= self.rank)
        return ["--enable-lora", "--lora-modules", f"{name}={self.folder}", "--max-lora-rank", str(rank)]


def read_adapter(folder: str | Path) -> Adapter | None:
    """The adapters in `folder`; None where there are none, or a whole model that needs none.

    Raises InputError when they are damaged, pickled, too large for vLLM, or were trained on a folder that is gone.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base, rank = config["base_model_name_or_path"], config["r"]
    except (ValueError, KeyError, TypeError):
        base = rank = None
    if not isinstance(base, str) or not base or type(rank) is not int or rank < 1:
        raise InputError(f"{folder / CONFIG}: damaged; expected r and base_model_name_or_path")
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder}: has no {WEIGHTS}; other formats can run code and are not read")
    if rank > VLLM_RANKS[-1]:
        raise InputError(f"{folder}: rank {rank}, but vLLM serves at most {VLLM_RANKS[-1]}; train with --merge")
    if not Path(base).is_dir() and (Path(base).is_absolute() or base.count("/") > 1 or base.startswith(".")):
        raise InputError(
            f"{folder}: adapters for {base}, which is not there; run from where it was trained, or --merge"
        )
    try:
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            weights = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / WEIGHTS}: cannot be read ({error})") from None
    return Adapter(folder, base, rank, weights)
