"""`distill train`: traces and settings in, a student in Hugging Face layout out."""

import importlib.metadata
from pathlib import Path
from typing import Any

import torch

from distill import artifact, console
from distill.artifact import Artifact
from distill.packing.chat import LABELLING_VERSION
from distill.packing.source import read_traces
from distill.training import best
from distill.training.prepare import describe, make_ready, resolve_precision
from distill.training.run import Run
from distill.training.save import save_student
from distill.training.settings import RunOptions, TrainSettings
from distill.training.student import student_identity

KIND = "student"
TRAINER_VERSION = 2  # part of every key: raise it when the same settings give other weights


def train(settings: TrainSettings, traces: Path, options: RunOptions) -> Artifact:
    """Train one student. Raises InputError for bad input, Stopped when told to stop."""
    if options.threads:
        torch.set_num_threads(options.threads)
    trace_set = read_traces(traces)
    with artifact.workspace(options.out, KIND, recipe(settings, trace_set.key)) as work:
        if work.finished:
            console.note(f"{options.out}: already trained, nothing to do")
            return work.finished
        ready = make_ready(settings, trace_set)
        run = Run(settings, options, ready)
        measured, validations = run.train(work.path)
        save_student(ready.origin, work.path)
        summary = describe(settings, ready) | {"measured": measured}
        if ready.validation is not None:
            lowest = best.best_of(validations)
            kept = lowest if settings.keep == "best" else validations[-1]
            summary["validation"] |= {"times": len(validations), "lowest": lowest, "kept": kept}
        artifact.write_json(work.path / "metrics.json", summary)
        return work.commit(summary, remove=("checkpoints",))


def recipe(settings: TrainSettings, traces_key: str) -> dict[str, Any]:
    """Everything the weights depend on. Raises InputError for a student that cannot be read."""
    student = student_identity(settings.student, settings.think_tags)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_precision(settings.precision, device, student["hidden"])
    return {
        "settings": settings.model_dump(mode="json", exclude={"student", "precision"}),
        "student": student,
        "traces": traces_key,
        "computed": {"device": device.type, "dtype": str(dtype).removeprefix("torch.")},
        "labelling_version": LABELLING_VERSION,
        "trainer_version": TRAINER_VERSION,
        "versions": _versions(device),
    }


def _versions(device: torch.device) -> dict[str, str | None]:
    """Of what computes the weights."""
    names = ["torch", "transformers", "tokenizers"]
    if device.type == "cuda":
        names += ["triton", "liger-kernel", "flash-attn"]
    return {name: next(iter(d.version for d in importlib.metadata.distributions(name=name)), None) for name in names}
