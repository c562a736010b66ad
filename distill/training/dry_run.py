"""`distill train --dry-run`: what a training would take, before it takes it. Nothing is trained and nothing written.

The documents are rendered and every step is planned, so examples, tokens and FLOPs are counted, not guessed. Memory is
counted from shapes (`memory.py`); time is FLOPs over the rate of this device times an assumed MFU.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.errors import InputError
from distill.flops import ModelShape
from distill.packing.source import read_traces
from distill.training.memory import estimate_bytes
from distill.training.peak import peak_flops
from distill.training.prepare import Ready, describe, make_ready, resolve_precision
from distill.training.run import peak_rss_bytes
from distill.training.settings import RunOptions, TrainSettings

# On a CPU what small students reach on two cores; on a GPU an assumption, until one has been measured.
ASSUMED_MFU = {"cpu": 0.2, "cuda": 0.4}
GIB = 2.0**30


def dry_run(settings: TrainSettings, traces: Path, options: RunOptions) -> dict[str, Any]:
    """Counts, shares, memory and time. Raises InputError when the memory cannot fit the device."""
    if options.threads:
        torch.set_num_threads(options.threads)
    ready = make_ready(settings, read_traces(traces), weights=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_precision(settings.precision, device, ready.origin.model.config.hidden_size)
    memory, has = _memory(settings, options, ready, device, dtype), device_bytes(device)
    # On a CPU the libraries and the documents lie in the same memory: this process has them all by now.
    program = peak_rss_bytes() if device.type == "cpu" else 0
    needs = sum(memory.values()) + program
    if needs > has:
        largest = ", ".join(f"{name} {memory[name] / GIB:.1f}" for name in sorted(memory, key=memory.get)[:-4:-1])
        cure = "" if options.activation_checkpointing == "full" else "--activation-checkpointing full, "
        raise InputError(
            f"training {settings.student} needs about {needs / GIB:.1f} GiB ({largest}, ...), this {device.type} has "
            f"{has / GIB:.1f} GiB; try {cure}a smaller --row-tokens or a smaller --student"
        )
    counts = describe(settings, ready)
    flops = _flops(options, ready)
    rate, source = peak_flops(device, dtype)
    mfu = ASSUMED_MFU[device.type]
    names = ("arm", "student", "parameters", "pairs", "dropped_pairs", "steps", "rows", "row_fill", "examples")
    return {
        **{name: counts[name] for name in (*names, "tokens", "supervised_tokens")},
        "shares": _shares(counts),
        "flops": flops,
        "memory_gib": {name: size / GIB for name, size in memory.items()},
        "measured": {
            "program_gib": program / GIB,
            "total_gib": needs / GIB,
            "device_gib": has / GIB,
            "seconds": sum(flops.values()) / (rate * mfu),
            "assumed_mfu": mfu,
            "peak_flops": rate,
            "peak_flops_source": source,
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
        },
    }


def _memory(
    settings: TrainSettings, options: RunOptions, ready: Ready, device: torch.device, dtype: torch.dtype
) -> dict[str, int]:
    documents = ready.rendered.documents
    rows = [[documents[r] for r in row] for step in ready.steps for row in step.rows]
    supervised = max(sum(d.supervised for d in row) for row in rows)
    lengths = [np.array([d.length for d in row]) for row in rows]
    if not settings.packed:  # rows of one document are run together, padded, up to row_tokens
        longest = max(lengths, key=lambda row: row[0])
        together = max(1, min(settings.row_tokens // longest[0], settings.batch))
        lengths, supervised = [longest.repeat(together)], supervised * together
    return estimate_bytes(
        ModelShape.from_config(ready.origin.model.config),
        sum(p.numel() for p in ready.origin.model.parameters()),
        rows=lengths,
        supervised=supervised,
        bf16=dtype is torch.bfloat16,
        device=device.type,
        checkpointing=options.activation_checkpointing == "full",
    )


def _flops(options: RunOptions, ready: Ready) -> dict[str, float]:
    """Of the training, and of what is done besides: layers run again in the backward, and validation."""
    shape = ModelShape.from_config(ready.origin.model.config)
    documents = [ready.rendered.documents[r] for step in ready.steps for row in step.rows for r in row]
    lengths, supervised = np.array([d.length for d in documents]), sum(d.supervised for d in documents)
    flops = {"training": shape.training_flops(lengths, supervised)}
    if options.activation_checkpointing == "full":
        flops["activation_checkpointing"] = shape.forward_flops(lengths, 0)
    if ready.validation is not None:
        flops["validation"] = len(ready.validate_after) * ready.validation.describe(shape)["flops"]
    return flops


def _shares(counts: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Each mode's share of the examples, the input tokens and the loss (supervised tokens)."""
    whole = {"examples": "examples", "tokens": "tokens", "loss": "supervised_tokens"}
    return {
        mode: {name: of_mode[key] / counts[key] for name, key in whole.items()}
        for mode, of_mode in counts["by_mode"].items()
    }


def device_bytes(device: torch.device) -> int:
    """Memory of the GPU; or of the machine, or of the container this runs in where that is less."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text().strip()
        except OSError:
            continue
        has = min(has, int(text)) if text.isdecimal() else has
    return has
