"""RMSNorm, rotary embedding and gated MLP of a Hugging Face decoder on a GPU, computed by liger-kernel.

For a row x, a weight w and the offset o (1 in Gemma, whose weights are stored less 1, and 0 elsewhere):

    RMSNorm            x / sqrt(mean(x^2) + eps) * (o + w)
    rotary embedding   (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) of the halves of each head, at the token's position
    gated MLP          down(act(gate x) * (up x)), act = silu or tanh-approximated gelu: SwiGLU and GEGLU

Each is one kernel where plain torch takes several passes over memory. liger's own functions that patch a model also
replace classes and functions of the transformers module, for every other model of the process and for those on a CPU,
where liger cannot run. So its autograd functions are called here, and only the given model's modules are changed:
their `forward`, not their class, parameters or names, so a checkpoint is the same with and without.

Two of liger's habits are not taken over. Its RMSNorm may write its gradient over the one it was given, which others may
hold: that is off. Its gated activation writes gradients over what it saved: a second backward, which would read them,
raises here instead.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LAYERS = ("RMSNorm", "rotary embedding", "gated MLP")
DEVICE_TYPES = ("cuda",)
OLDEST_LIGER = (0, 8)
ROTARY = "apply_rotary_pos_emb"  # what transformers calls it


class Family(NamedTuple):
    """What tells models of one type apart."""

    prefix: str  # of its classes: Qwen2RMSNorm, Qwen2Attention, Qwen2MLP
    offset: float  # of the RMSNorm's weight
    casting: str  # liger's name for where the RMSNorm rounds
    activation: str  # name of the setting


# By transformers' model_type: those whose layers all lose at most twice what plain torch loses, as the tests check.
FAMILIES = {
    "qwen2": Family("Qwen2", 0.0, "llama", "hidden_act"),
    "qwen3": Family("Qwen3", 0.0, "llama", "hidden_act"),
    "llama": Family("Llama", 0.0, "llama", "hidden_act"),
    "gemma": Family("Gemma", 1.0, "gemma", "hidden_act"),
    "gemma2": Family("Gemma2", 1.0, "gemma", "hidden_activation"),
    "gemma3_text": Family("Gemma3", 1.0, "gemma", "hidden_activation"),
}

# liger's autograd function of each activation: its file in liger_kernel.ops, its name.
ACTIVATIONS = {
    "silu": ("swiglu", "LigerSiLUMulFunction"),
    "swish": ("swiglu", "LigerSiLUMulFunction"),
    "gelu_pytorch_tanh": ("geglu", "LigerGELUMulFunction"),
}


def unsupported_fusion(layer: str, config: Any, device_type: str) -> str | None:
    """Why `layer`, one of LAYERS, of a model with this transformers config stays in plain torch, or None."""
    if layer not in LAYERS:
        raise ValueError(f"layer: got {layer!r}, takes one of {', '.join(LAYERS)}")
    if problem := liger_problem(device_type):
        return problem
    if config.model_type not in FAMILIES:
        return f"{config.model_type} is not one of {', '.join(FAMILIES)}"
    activation = getattr(config, FAMILIES[config.model_type].activation)
    if layer == "gated MLP" and activation not in ACTIVATIONS:
        return f"its activation is {activation}, not one of {', '.join(ACTIVATIONS)}"
    return None


def liger_problem(device_type: str) -> str | None:
    """Why no layer at all can be liger's on this device, or None."""
    if device_type not in DEVICE_TYPES:
        return f"it runs on {' and '.join(DEVICE_TYPES)}, not on {device_type}"
    if find_spec("triton") is None:
        return "triton is not installed"
    found = _liger_version()
    if found is None:
        return "liger-kernel is not installed"
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_LIGER:
        return f"liger-kernel {found} is installed, {'.'.join(map(str, OLDEST_LIGER))} or newer is needed"
    return None


def fuse_layers(model: nn.Module, device: torch.device | None = None) -> list[str]:
    """Let liger-kernel compute what it can of a transformers model; returns what was replaced, such as "25 RMSNorm".

    `device`: where the model runs; where its weights are if not given, which offloaded ones are not. To be called before
    the model is compiled. Calling it again changes nothing.
    What unsupported_fusion has a reason against stays as it is; so does a module of a kind not known here.
    """
    config = model.config
    device_type = (device or next(model.parameters()).device).type
    done = []
    for layer in LAYERS:
        if unsupported_fusion(layer, config, device_type) is not None:
            continue
        family = FAMILIES[config.model_type]
        suffix, make = _REPLACEMENTS[layer]
        modules = [module for module in model.modules() if type(module).__name__ == family.prefix + suffix]
        forward = make(family, config)
        replaced = [module for module in modules if _replace_forward(module, forward)]
        if replaced:
            done.append(f"{len(replaced)} {layer}")
    return done


def _replace_forward(module: nn.Module, forward: Callable[[nn.Module], Callable[..., Any] | None]) -> bool:
    """Give this module alone the forward made from its own; False if it has one already, or none can be made."""
    if "forward" in vars(module):
        return False
    function = forward(module)
    if function is None:
        return False
    module.forward = MethodType(function, module)
    return True


def _rms_norm(family: Family, config: Any) -> Callable[[nn.Module], Callable[..., Any]]:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    def forward(self: nn.Module, hidden_states: Tensor) -> Tensor:
        in_place, row_mode = False, None
        return LigerRMSNormFunction.apply(
            hidden_states, self.weight, config.rms_norm_eps, family.offset, family.casting, in_place, row_mode
        )

    return lambda module: forward


def _gated_mlp(family: Family, config: Any) -> Callable[[nn.Module], Callable[..., Any]]:
    file, name = ACTIVATIONS[getattr(config, family.activation)]
    multiply = _backward_once(getattr(import_module(f"liger_kernel.ops.{file}"), name))

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.down_proj(multiply.apply(self.gate_proj(x), self.up_proj(x)))

    return lambda module: forward


def _backward_once(function: type) -> type:
    """liger's autograd function, with an error where a second backward would be silently wrong."""
    its_backward = function.backward  # torch.compile does not take it from the class inside another backward

    def backward(ctx: Any, gradient: Tensor) -> Any:
        if getattr(ctx, "is_used", False):
            raise RuntimeError("fuse_layers: liger's gated activation allows one backward, its inputs are gone")
        ctx.is_used = True
        return its_backward(ctx, gradient)

    return type(function.__name__, (function,), {"backward": staticmethod(backward)})


def _rotary(family: Family, config: Any) -> Callable[[nn.Module], Callable[..., Any] | None]:
    from liger_kernel.ops.rope import LigerRopeFunction

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        # Its kernel alone of the three is launched on the current GPU, which need not be the tensors'.
        is_eager_cuda = q.device.type == "cuda" and not torch.compiler.is_compiling()
        with torch.cuda.device(q.device) if is_eager_cuda else nullcontext():
            return LigerRopeFunction.apply(q, k, cos, sin)

    @cache
    def forward(kind: type[nn.Module]) -> Callable[..., Any] | None:
        """The attention's own forward, except that the one name means something else in it; one for all layers."""
        plain = kind.forward
        if not isinstance(plain, FunctionType) or ROTARY not in plain.__code__.co_names:
            return None
        names = plain.__globals__ | {ROTARY: rotate}
        # torch.compile looks the names of a function that says which module it is from up in that module.
        del names["__name__"]
        function = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
        function.__kwdefaults__ = plain.__kwdefaults__
        return function

    return lambda module: forward(type(module))


# Layer -> (how its modules' class is called after the family's prefix, what makes their new forward).
_REPLACEMENTS = {
    "RMSNorm": ("RMSNorm", _rms_norm),
    "rotary embedding": ("Attention", _rotary),
    "gated MLP": ("MLP", _gated_mlp),
}


def _liger_version() -> str | None:
    try:
        return version("liger-kernel")
    except PackageNotFoundError:
        return None
