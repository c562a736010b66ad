"""Fused accelerator mathematics, imported as distill.kernels. It knows nothing else of the project.

Importing this package imports neither torch nor triton: a name is loaded from its file when it is first used.
"""

from importlib import import_module

# No file carries the name of a function: importing it would put the module in the function's place.
_HOME_OF = {
    "linear_cross_entropy": "cross_entropy",
    "linear_topk_divergence": "topk_divergence",
    "varlen_attention": "attention",
    "attention_plan": "attention",
    "choose_attention": "attention",
    "register_attention": "transformers_attention",
    "fuse_layers": "fused_layers",
    "describe": "doctor",
}

__all__ = list(_HOME_OF)


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
