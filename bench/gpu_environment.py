"""What a GPU measurement was made with: the device, the versions, the sources, and the two ceilings of the same run."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from distill.bench.rounds import Clock

_PACKAGES = (
    *("torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy", "quack-kernels"),
    *("flash-attn", "flash-attn-3", "flash-attn-4"),
)
# Whose change makes earlier measurements those of something else.
_SOURCES = (
    *("kernels/*.py", "bench/gpu_*.py", "bench/*peers.py", "bench/cases.py", "bench/documents.py", "bench/rounds.py"),
    *("distill/packing/pack.py", "distill/flops.py"),
)
_OTHERS = ("gpu_child.py", "gpu_tables.py", "gpu_targets.py")  # which do not measure
_SQUARE = {"cuda": 8192, "cpu": 256}
_COPY_BYTES = {"cuda": 4 << 30, "cpu": 1 << 22}
_REPEATS = 20
_WARM_SECONDS = 0.2  # an idle GPU takes a while to raise its clocks


def environment(device: torch.device) -> dict[str, Any]:
    """What must be the same for measurements to stand side by side."""
    is_cuda = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if is_cuda else None
    return {
        "gpu": properties.name if properties else None,
        "capability": f"{properties.major}.{properties.minor}" if properties else None,
        "multiprocessors": properties.multi_processor_count if properties else None,
        "memory_gib": round(properties.total_memory / (1 << 30), 1) if properties else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "sources": _sources(),
    }


def session(device: torch.device, commit: str | None) -> dict[str, Any]:
    """The machine as found, the commit, and the ceilings: a bf16 product (FLOP/s), a copy (bytes/s, read and written).

    The commit is of the session and not of the environment: the hash of the sources decides what belongs together, and
    the result's own file in the tree makes it one "with changes".
    """
    clock = Clock(device)
    n = _SQUARE[device.type]
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    source = torch.randint(0, 256, (_COPY_BYTES[device.type],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    ceilings = {}
    for name, amount, call in (
        ("matmul_flops", 2.0 * n**3, lambda: a @ b),
        ("copy_bytes_per_second", 2.0 * source.numel(), lambda: target.copy_(source)),
    ):
        started = time.monotonic()
        while time.monotonic() - started < _WARM_SECONDS:
            clock.seconds(call)
        ceilings[name] = amount / sorted(clock.seconds(call) for _ in range(_REPEATS))[_REPEATS // 2]
    return {"commit": commit or _commit(), **_settings_as_found(device), "measured": ceilings}


def _settings_as_found(device: torch.device) -> dict[str, Any]:
    """Driver, power limit and clock limit, as the driver's own tool says them; nothing is changed."""
    names = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem")
    if device.type != "cuda":
        return {}
    which = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"  # as nvidia-smi counts them, not torch
    query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", f"--id={which}"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [part.strip() for part in done.stdout.strip().split(",")]
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tree() -> Path:
    """The folder that holds kernels/ and bench/ (a source tree), or distill.kernels' parent where it is installed."""
    return Path(__file__).resolve().parent.parent


def _commit() -> str | None:
    """Of the source tree, with a mark if it has changes; None where there is none, or git is not there."""
    tree = _tree()
    if not (tree / ".git").exists():
        return None
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(tree), *command], capture_output=True, text=True, timeout=30)
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + (" with changes" if changes.stdout.strip() else "") or None


def _sources() -> str:
    """16 hex digits of the files that measure and are measured."""
    tree, digest = _tree(), hashlib.sha256()
    for pattern in _SOURCES:
        for file in sorted(tree.glob(pattern)):
            if file.name not in _OTHERS:
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
