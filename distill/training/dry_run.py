"""`distill train --dry-run`: what a training would take, before it takes it. Nothing is trained and nothing written.

The documents are rendered and every step is planned, so examples, tokens and FLOPs are counted, not guessed. Memory is
counted from shapes (`memory.py`); time is FLOPs over the rate of this device times an assumed MFU.

On several devices (`ranks`) memory is that of one of them. Weights, gradients and moments are shared out; what is put
together to run is not, which is the embedding and head for all of a step and a layer with its successor, nor are
activations, for every device runs rows of its own.
"""

from pathlib import Path
from typing import Any

import torch

from distill.errors import InputError
from distill.packing.plan import busy_share
from distill.packing.source import read_traces
from distill.process import peak_rss_bytes
from distill.training.compile import resolve_compile
from distill.training.describe import describe
from distill.training.device import device_bytes, require_gpu_to_offload, resolve_precision, this_device
from distill.training.memory import device_bytes_needed
from distill.training.peak import peak_flops
from distill.training.prepare import Ready, make_ready
from distill.training.settings import RunOptions, TrainSettings

# On a CPU what small students reach on two cores; on a GPU an assumption, until one has been measured.
ASSUMED_MFU = {"cpu": 0.2, "cuda": 0.4}
GIB = 2.0**30


def dry_run(settings: TrainSettings, traces: Path, options: RunOptions, ranks: int = 1) -> dict[str, Any]:
    """Counts, shares, memory and time on `ranks` devices like the one here. Raises InputError when the memory cannot fit
    the device."""
    if ranks < 1:
        raise InputError(f"ranks: got {ranks}, expected a number of devices of at least 1")
    require_gpu_to_offload(options.cpu_offload)
    if options.threads:
        torch.set_num_threads(options.threads)
    settings, device = settings.for_ranks(ranks), this_device()
    is_compiled = resolve_compile(settings.compile, device)
    ready = make_ready(settings, read_traces(traces), weights=False, documents=options.documents)
    dtype = resolve_precision(settings.precision, device, ready.origin.model.config.hidden_size)
    memory = _memory(settings, options, ready, device, dtype, ranks)
    # On a CPU the libraries and the documents lie in the same memory: this process has them all by now.
    program = peak_rss_bytes() if device.type == "cpu" else 0
    needs, has = sum(memory.values()) + program, device_bytes(device)
    if needs * (ranks if device.type == "cpu" else 1) > has:  # which is one CPU's memory for all of them
        largest = ", ".join(f"{name} {memory[name] / GIB:.1f}" for name in sorted(memory, key=memory.get)[:-4:-1])
        cure = "" if options.activation_checkpointing == "full" else "--activation-checkpointing full, "
        raise InputError(
            f"training {settings.student} needs about {needs / GIB:.1f} GiB{' on each device' if ranks > 1 else ''} "
            f"({largest}, ...), this {device.type} has "
            f"{has / GIB:.1f} GiB; try {cure}a smaller --row-tokens or a smaller --student"
        )
    counts, trainings = describe(settings, ready), len(settings.candidates)
    of_one = {"training": counts["flops"], **_flops_besides(options, ready, counts, is_compiled)}
    flops = {name: trainings * value for name, value in of_one.items()}
    busy, once = busy_share(ready.steps, ranks), flops.get("validation", 0.0)  # whose rows are many
    rate, source = peak_flops(device, dtype)
    mfu = ASSUMED_MFU[device.type]
    names = (
        "arm",
        "student",
        "parameters",
        "trainable_parameters",
        "pairs",
        *(["unverified"] if ready.unverified else []),
        "dropped_pairs",
        "dropped_tokens",
        *(["selection"] if ready.selection else []),
        "steps",
        "rows",
    )
    more = ("row_fill", "examples", "tokens", "supervised_tokens", "shares", "matched")
    return {
        **{name: counts[name] for name in (*names, *more)},
        "trainings": trainings,
        "ranks": ranks,
        "busy_ranks": busy,
        "flops": flops,
        "memory_gib": {name: size / GIB for name, size in memory.items()},
        "measured": {
            "program_gib": program / GIB,
            "total_gib": needs / GIB,
            "device_gib": has / GIB,
            "seconds": (once + (sum(flops.values()) - once) / busy) / (rate * mfu * ranks),
            "assumed_mfu": mfu,
            "peak_flops": rate,
            "peak_flops_source": source,
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
        },
    }


def _memory(
    settings: TrainSettings,
    options: RunOptions,
    ready: Ready,
    device: torch.device,
    dtype: torch.dtype,
    ranks: int,
) -> dict[str, int]:
    """Bytes of one device of `ranks`, by what they are for."""
    rendered, origin = ready.rendered, ready.origin
    is_sharded = ranks > 1 or options.cpu_offload
    held = 0 if is_sharded else origin.hold_base(dtype)  # as the training does
    rows = [row for step in ready.steps for row in step.rows]
    supervised = max(int(rendered.supervised[row].sum()) for row in rows)
    lengths = [rendered.lengths[row] for row in rows]
    if not settings.packed:  # rows of one document are run together, padded, up to row_tokens
        longest = max(lengths, key=lambda row: row[0])
        together = max(1, min(settings.row_tokens // longest[0], settings.batch))
        lengths, supervised = [longest.repeat(together)], supervised * together
    parameters = sum(p.numel() for p in origin.model.parameters())
    return device_bytes_needed(
        origin.shape,
        parameters,
        ranks=ranks,
        offload=options.cpu_offload,
        frozen=parameters - origin.trainable_parameters,
        held=held,
        rank=origin.lora.rank if origin.lora else 0,
        rows=lengths,
        supervised=supervised,
        bf16=dtype is torch.bfloat16,
        device=device.type,
        checkpointing=options.activation_checkpointing,
    )


def _flops_besides(options: RunOptions, ready: Ready, counts: dict[str, Any], is_compiled: bool) -> dict[str, float]:
    """Of what is done besides forward and backward: layers run again in the backward, and validation."""
    shape, flops = ready.origin.shape, {}
    if options.activation_checkpointing == "full":
        lengths = ready.rendered.lengths[[r for step in ready.steps for row in step.rows for r in row]]
        flops["activation_checkpointing"] = shape.forward_flops(lengths, 0)
    elif options.activation_checkpointing == "selective" and is_compiled:  # all but attention, piece by piece
        flops["activation_checkpointing"] = 2.0 * shape.product_weights * counts["tokens"]
    if ready.validation is not None:
        flops["validation"] = len(ready.validate_after) * counts["validation"]["flops"]
    return flops
