"""A trained student on disk, in Hugging Face layout."""

from pathlib import Path

from distill.training import checkpoint
from distill.training.student import Origin


def save_student(origin: Origin, folder: Path) -> None:
    """The student in Hugging Face layout, as transformers and vLLM load it."""
    chat = origin.chat
    model = origin.model.to(origin.save_dtype)
    if model.generation_config is not None:
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends] if ends is not None else []
        model.generation_config.eos_token_id = sorted({*ends, chat.end_of_turn})
    with checkpoint.disk_errors(folder):
        model.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    chat.think.save(folder)
