"""`distill train`: traces and settings in, a student in Hugging Face layout out."""

import importlib.metadata
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from distill import artifact, console
from distill.artifact import Artifact
from distill.packing.chat import LABELLING_VERSION
from distill.packing.source import TraceSet, read_traces
from distill.training import best
from distill.training.card import write_card
from distill.training.compile import resolve_compile
from distill.training.describe import describe
from distill.training.grid import CANDIDATES, take_files, train_grid
from distill.training.prepare import make_ready, resolve_precision
from distill.training.ranks import Ranks, start_ranks
from distill.training.run import Run
from distill.training.save import save_student
from distill.training.settings import RunOptions, TrainSettings
from distill.training.sharding import gather_weights
from distill.training.student import student_identity

KIND = "student"
DOCUMENTS = "documents"  # entry of the folder: the tokenized documents while it is trained
TRAINER_VERSION = 2  # part of every key: raise it when the same settings give other weights


def train(settings: TrainSettings, traces: Path, options: RunOptions) -> Artifact:
    """Train one student, on every device that torchrun started a process for. Raises InputError for bad input, Stopped
    when told to stop."""
    if options.threads:
        torch.set_num_threads(options.threads)
    with start_ranks(cpu_offload=options.cpu_offload) as ranks:
        trace_set = ranks.together(lambda: read_traces(traces))
        return _train(settings.for_ranks(ranks.world), trace_set, options, ranks)


def _train(settings: TrainSettings, trace_set: TraceSet, options: RunOptions, ranks: Ranks) -> Artifact:
    with ExitStack() as stack:
        work = ranks.from_first(
            lambda: stack.enter_context(
                artifact.workspace(options.out, KIND, recipe(settings, trace_set.key), expendable=(DOCUMENTS,))
            )
        )
        if work.finished:
            console.note(f"{options.out}: already trained, nothing to do")
            return work.finished
        kept = options.documents or options.out / DOCUMENTS
        if isinstance(settings.learning_rate, tuple):
            shared = options.model_copy(update={"documents": kept})
            chosen, summary = train_grid(work, settings, shared, ranks, lambda s, o: _train(s, trace_set, o, ranks))

            def take() -> Artifact:
                take_files(chosen, work.path)
                artifact.write_json(work.path / "metrics.json", summary)
                one = settings.model_copy(update={"learning_rate": summary["learning_rate"]})
                write_card(work.path, one, summary, work.recipe)
                return work.commit(summary, remove=(CANDIDATES, DOCUMENTS))

            return ranks.from_first(take)
        make = lambda: make_ready(settings, trace_set, weights=ranks.is_first, documents=kept)  # noqa: E731
        ready = ranks.only_first(make)  # it tokenizes, and the others map its files
        ready = ranks.together(lambda: ready or make())
        run = Run(settings, options, ready, ranks)
        measured, validations = run.train(work.path)
        weights = gather_weights(ready.origin.model, ranks)

        def finish() -> Artifact:
            save_student(ready.origin, weights, work.path)
            summary = describe(settings, ready) | {"measured": measured}
            if ready.validation is not None:
                lowest = best.best_of(validations)
                kept = lowest if settings.keep == "best" else validations[-1]
                summary["validation"] |= {"times": len(validations), "lowest": lowest, "kept": kept}
            artifact.write_json(work.path / "metrics.json", summary)
            write_card(work.path, settings, summary, work.recipe)
            return work.commit(summary, remove=("checkpoints", DOCUMENTS))

        return ranks.from_first(finish)


def recipe(settings: TrainSettings, traces_key: str) -> dict[str, Any]:
    """Everything the weights depend on. Raises InputError for a student that cannot be read."""
    student = student_identity(settings.student, settings.think_tags)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_precision(settings.precision, device, student["hidden"])
    return {
        "settings": settings.model_dump(mode="json", exclude={"student", "precision", "compile"}),
        "student": student,
        "traces": traces_key,
        "computed": {
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "compiled": resolve_compile(settings.compile, device),
        },
        "labelling_version": LABELLING_VERSION,
        "trainer_version": TRAINER_VERSION,
        "versions": _versions(device, ["peft"] if settings.lora else []),
    }


def _versions(device: torch.device, more: list[str]) -> dict[str, str | None]:
    """Of what computes the weights."""
    names = ["torch", "transformers", "tokenizers", *more]
    if device.type == "cuda":
        names += ["triton", "liger-kernel", "flash-attn"]
    return {name: next(iter(d.version for d in importlib.metadata.distributions(name=name)), None) for name in names}
