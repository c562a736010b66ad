"""torch.compile of a decoder's layers, one by one.

All layers of a kind share their compiled pieces, so a deep model compiles as fast as a shallow one. The number of tokens
is dynamic. Documents are not compiled at all: how many there are, how long, and how attention works them off differ in
every pack, so attention stays one opaque call, which splits a layer into what is before it and what is after: a few
more launches a layer, and no compilation after the first training step and the first validation.

A compiled layer rounds differently, so whether layers are compiled is part of what names a student.
"""

import os
import shutil
from importlib.util import find_spec
from typing import Any

import torch
import torch.fx.experimental._config

from distill.errors import InputError
from distill.training.settings import Compile

# A layer's pieces are compiled again with and without gradients, for layers of another kind, for a batch of one.
_MOST_VARIANTS = 32


def resolve_compile(setting: Compile, device: torch.device) -> bool:
    """Whether layers are compiled: `auto` on a GPU that has Triton, never on a CPU. Raises InputError for an `on` that
    cannot be."""
    if setting == "auto":
        return device.type == "cuda" and find_spec("triton") is not None
    if setting == "on":
        if device.type == "cuda" and find_spec("triton") is None:
            raise InputError("compile on: needs triton, which is not installed; take --compile off")
        if device.type == "cpu" and not has_cpp_compiler():
            raise InputError("compile on: needs a C++ compiler on a CPU (g++, clang++ or $CXX); take --compile off")
    return setting == "on"


def has_cpp_compiler() -> bool:
    """Whether torch.compile finds what it needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


def compile_layers(model: Any, *, backend: Any = "inductor") -> None:
    """Let every layer of a transformers decoder be compiled when it is first run.

    To be called after `fuse_layers` and `checkpoint_activations`, before or after layers are sharded: a checkpointed layer
    runs its compiled self again, and what gathers a sharded layer's weights is not compiled.
    """
    from transformers import AttentionInterface

    from distill.kernels.transformers_attention import NAME, packed_attention

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_VARIANTS)
    # Else a first pack with as many documents as a head has columns, say, is compiled for packs of that kind only.
    torch.fx.experimental._config.use_duck_shape = False
    AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))
    for layer in model.get_decoder().layers:
        layer.compile(backend=backend, dynamic=True)
