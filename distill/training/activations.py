"""What a layer keeps of its activations for the backward, and what it computes again there.

    off         everything
    selective   its input, and what is dear to compute: the results of matrix products and of attention. Norms, rotary
                embedding, activation functions, residual sums and casts, a few passes over memory, are run again
    full        its input only: the whole layer is run again

Attention's result is kept with its log-sum-exp, which is all its backward asks for besides q, k and v. Where attention
on a CPU is made of plain products of scores, only its result is kept, never the scores.
"""

from functools import cache, partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from distill.errors import InputError
from distill.training.settings import ActivationCheckpointing

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


def checkpoint_activations(model: Any, how: ActivationCheckpointing) -> None:
    """Let every layer of a transformers model keep less. Raises InputError for a model that cannot.

    To be called before the layers are compiled or sharded; nothing of the model is replaced.
    """
    if how == "off":
        return
    if not model.supports_gradient_checkpointing:
        raise InputError(f"{type(model).__name__} has no activation checkpointing; take --activation-checkpointing off")
    # No random state to keep: training is without dropout, and asking a GPU for it every layer would wait for it.
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _policy(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if _is_dear(operator) else CheckpointPolicy.PREFER_RECOMPUTE


@cache
def _is_dear(operator: Any) -> bool:
    """Attention goes by the operator's name: torch's, FlashAttention's and ours all carry it."""
    return operator in _PRODUCTS or "attention" in str(operator) or "attn" in str(operator)
