"""From-scratch students by name, and whether a name can be a student at all. Nothing heavy is imported."""

from pathlib import Path

from distill.errors import InputError, unknown_name
from distill.hub import looks_like_hub_id

# From-scratch sizes, Qwen2 layout: about 0.1M and 0.6M parameters, and two that want a GPU or a night.
SIZES: dict[str, dict[str, int]] = {
    "tiny": dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=172),
    "small": dict(num_hidden_layers=3, hidden_size=128, num_attention_heads=4, intermediate_size=344),
    "medium": dict(num_hidden_layers=4, hidden_size=256, num_attention_heads=4, intermediate_size=688),
}


def check_student(student: str) -> None:
    """Raises InputError for what is neither a size, nor a folder, nor looks like a Hub id (owner/name)."""
    if student not in SIZES and not Path(student).is_dir() and not looks_like_hub_id(student):
        if "/" in student:
            raise InputError(f"student {student}: no such folder, and not a Hub id (owner/name)")
        raise unknown_name("student", student, [*SIZES, "a folder", "a Hub id (owner/name)"])


def default_learning_rate(student: str) -> float:
    """Peak rate that learns in one pass: narrow from-scratch students take large steps, pretrained ones small."""
    return {"tiny": 3e-3, "small": 2e-3, "medium": 1e-3}.get(student, 1e-5)
