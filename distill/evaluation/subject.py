"""A student to be evaluated: what is known of it before a server is started."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from distill import artifact
from distill.errors import InputError
from distill.flops import ModelShape
from distill.packing.chat import ChatFormat, ThinkFormat
from distill.serve import read_adapter

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Subject:
    """A student to be evaluated: a folder in Hugging Face layout, or of LoRA adapters in PEFT's."""

    folder: Path
    tokenizer: Any
    chat: ChatFormat | None  # None: the tokenizer has no chat template, and questions can only be put as text
    config: Any
    identity: dict[str, Any]
    shape: ModelShape

    @property
    def dtype(self) -> str:
        """The checkpoint's own dtype: vLLM would turn fp32 into bf16, and then other answers come out."""
        name = str(getattr(self.config, "dtype", None)).removeprefix("torch.")
        return name if name in DTYPES else "auto"

    def require_chat(self) -> ChatFormat:
        """Raises InputError where there is none."""
        if self.chat is None:
            raise InputError(
                f"{self.folder}: the tokenizer has no chat template, which is needed to mark the assistant's turn"
            )
        return self.chat


def load_subject(folder: Path) -> Subject:
    """Raises InputError when the folder is not a servable model."""
    adapter = read_adapter(folder)
    whole = folder if adapter is None else Path(adapter.base)
    if adapter is None and not (folder / "config.json").is_file():
        raise InputError(f"{folder}: has no config.json; expected a student made by `distill train`")
    if (folder / artifact.RECIPE).exists():
        identity: dict[str, Any] = {"student": artifact.read(folder, "student", made_by="distill train").key}
    else:
        identity = {"files": artifact.folder_identity(folder)}
        if adapter is not None:
            identity["base"] = artifact.folder_identity(whole) if whole.is_dir() else adapter.base
    try:
        config = AutoConfig.from_pretrained(whole, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # A shape that cannot be priced is said now, not after all answers are there.
        shape = ModelShape.from_config(config, adapter_weights=adapter.weights if adapter else 0)
    except Exception as error:  # a damaged folder makes transformers raise almost anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = f"{folder}: " + (f"the base of its adapters, {adapter.base}, " if adapter else "")
        raise InputError(f"{what}cannot be loaded ({reason})") from None
    chat = ChatFormat(tokenizer, ThinkFormat.load(folder), source=str(folder)) if tokenizer.chat_template else None
    return Subject(folder, tokenizer, chat, config, identity, shape)
