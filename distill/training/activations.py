"""What a layer keeps of its activations for the backward."""

from typing import Any

from distill.errors import InputError


def checkpoint_activations(model: Any) -> None:
    """Every layer keeps its input only, and is run again in the backward. Raises InputError for a model that cannot."""
    if not model.supports_gradient_checkpointing:
        raise InputError(f"{type(model).__name__} has no activation checkpointing; take --activation-checkpointing off")
    # No random state to keep: training is without dropout, and asking a GPU for it every layer would wait for it.
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False}
    )
