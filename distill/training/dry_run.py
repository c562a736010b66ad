"""`distill train --dry-run`: what a training would take, before it takes it. Nothing is trained and nothing written.

The documents are rendered and every step is planned, so examples, tokens and FLOPs are counted, not guessed. Memory is
counted from shapes (`memory.py`); time is FLOPs over the rate of this device times an assumed MFU.

On several devices (`ranks`) memory is that of one of them. Weights, gradients and moments are shared out; what is put
together to run is not, which is the embedding and head for all of a step and a layer with its successor, nor are
activations, for every device runs rows of its own.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.errors import InputError
from distill.packing.source import read_traces
from distill.training.describe import describe
from distill.training.memory import estimate_bytes
from distill.training.peak import peak_flops
from distill.training.prepare import Ready, make_ready, resolve_precision
from distill.training.run import peak_rss_bytes
from distill.training.settings import RunOptions, TrainSettings

# On a CPU what small students reach on two cores; on a GPU an assumption, until one has been measured.
ASSUMED_MFU = {"cpu": 0.2, "cuda": 0.4}
GIB = 2.0**30


def dry_run(settings: TrainSettings, traces: Path, options: RunOptions, ranks: int = 1) -> dict[str, Any]:
    """Counts, shares, memory and time on `ranks` devices like the one here. Raises InputError when the memory cannot fit
    the device."""
    if ranks < 1:
        raise InputError(f"ranks: got {ranks}, expected a number of devices of at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = settings.for_ranks(ranks)
    ready = make_ready(settings, read_traces(traces), weights=False, documents=options.documents)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_precision(settings.precision, device, ready.origin.model.config.hidden_size)
    is_sharded = ranks > 1 or options.cpu_offload
    held = 0 if is_sharded else ready.origin.hold_base(dtype)  # as the training does
    memory, has = _memory(settings, options, ready, device, dtype, held), device_bytes(device)
    if is_sharded:
        memory = _sharded(memory, options, ready, device, dtype, ranks)
    # On a CPU the libraries and the documents lie in the same memory: this process has them all by now.
    program = peak_rss_bytes() if device.type == "cpu" else 0
    needs = sum(memory.values()) + program
    if needs * (ranks if device.type == "cpu" else 1) > has:  # which is one CPU's memory for all of them
        largest = ", ".join(f"{name} {memory[name] / GIB:.1f}" for name in sorted(memory, key=memory.get)[:-4:-1])
        cure = "" if options.activation_checkpointing == "full" else "--activation-checkpointing full, "
        raise InputError(
            f"training {settings.student} needs about {needs / GIB:.1f} GiB{' on each device' if ranks > 1 else ''} "
            f"({largest}, ...), this {device.type} has "
            f"{has / GIB:.1f} GiB; try {cure}a smaller --row-tokens or a smaller --student"
        )
    counts = describe(settings, ready)
    trainings = len(settings.candidates)
    flops = {name: trainings * of_one for name, of_one in _flops(options, ready).items()}
    rate, source = peak_flops(device, dtype)
    mfu = ASSUMED_MFU[device.type]
    names = ("arm", "student", "parameters", "trainable_parameters", "pairs", "dropped_pairs", "steps", "rows")
    return {
        **{name: counts[name] for name in (*names, "row_fill", "examples", "tokens", "supervised_tokens")},
        "shares": _shares(counts),
        "matched": counts["matched"],
        "trainings": trainings,
        "ranks": ranks,
        "flops": flops,
        "memory_gib": {name: size / GIB for name, size in memory.items()},
        "measured": {
            "program_gib": program / GIB,
            "total_gib": needs / GIB,
            "device_gib": has / GIB,
            "seconds": sum(flops.values()) / (rate * mfu * ranks),
            "assumed_mfu": mfu,
            "peak_flops": rate,
            "peak_flops_source": source,
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
        },
    }


def _memory(
    settings: TrainSettings, options: RunOptions, ready: Ready, device: torch.device, dtype: torch.dtype, held: int
) -> dict[str, int]:
    rendered = ready.rendered
    rows = [row for step in ready.steps for row in step.rows]
    supervised = max(int(rendered.supervised[row].sum()) for row in rows)
    lengths = [rendered.lengths[row] for row in rows]
    if not settings.packed:  # rows of one document are run together, padded, up to row_tokens
        longest = max(lengths, key=lambda row: row[0])
        together = max(1, min(settings.row_tokens // longest[0], settings.batch))
        lengths, supervised = [longest.repeat(together)], supervised * together
    origin = ready.origin
    parameters = sum(p.numel() for p in origin.model.parameters())
    return estimate_bytes(
        origin.shape,
        parameters,
        frozen=parameters - origin.trainable_parameters,
        held=held,
        rank=origin.lora.rank if origin.lora else 0,
        rows=lengths,
        supervised=supervised,
        bf16=dtype is torch.bfloat16,
        device=device.type,
        checkpointing=options.activation_checkpointing,
    )


def _sharded(
    memory: dict[str, int], options: RunOptions, ready: Ready, device: torch.device, dtype: torch.dtype, ranks: int
) -> dict[str, int]:
    """Of one device of `ranks`, from what a single one needs."""
    if options.cpu_offload and device.type == "cpu":
        raise InputError("cpu_offload keeps a GPU's weights in the CPU's memory; there is no GPU here, so leave it out")
    states = {name: 0 if options.cpu_offload else memory[name] // ranks for name in ("weights", "gradients", "moments")}
    shape = ready.origin.shape
    layer = shape.layer_weights
    outside = sum(p.numel() for p in ready.origin.model.parameters()) - shape.layers * layer
    bf16 = dtype is torch.bfloat16 and device.type == "cuda"  # on a CPU they are put together in float32
    together = {
        "put_together": (2 if bf16 else 4) * (2 * outside + 3 * layer)
    }  # with gradients; one layer ahead has none
    return {**memory, **states, **together, **({"casts": 0} if bf16 else {})}


def _flops(options: RunOptions, ready: Ready) -> dict[str, float]:
    """Of the training, and of what is done besides: layers run again in the backward, and validation."""
    shape = ready.origin.shape
    seen = np.array([r for step in ready.steps for row in step.rows for r in row])
    lengths, supervised = ready.rendered.lengths[seen], int(ready.rendered.supervised[seen].sum())
    flops = {"training": shape.training_flops(lengths, supervised)}
    if options.activation_checkpointing == "full":
        flops["activation_checkpointing"] = shape.forward_flops(lengths, 0)
    if ready.validation is not None:
        flops["validation"] = len(ready.validate_after) * ready.validation.describe(shape)["flops"]
    return flops


def _shares(counts: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Each mode's share of the examples, the input tokens, the supervised ones, and what these weigh in the loss."""
    whole = {name: name for name in ("examples", "tokens", "supervised_tokens")} | {"loss": "loss_weight"}
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
