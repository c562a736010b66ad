"""`distill train`: traces and settings in, a student in Hugging Face layout out."""

import importlib.metadata
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from distill import artifact, console
from distill.artifact import Artifact, Workspace
from distill.packing.chat import LABELLING_VERSION
from distill.packing.selection import selection_recipe
from distill.packing.source import TraceSet, read_traces
from distill.training import best
from distill.training.card import write_card
from distill.training.compile import resolve_compile
from distill.training.describe import describe
from distill.training.device import resolve_precision, this_device
from distill.training.grid import CANDIDATES, take_files, train_grid
from distill.training.log import last_loss
from distill.training.prepare import make_ready
from distill.training.ranks import Ranks, start_ranks
from distill.training.run import Run
from distill.training.save import save_student
from distill.training.settings import RunOptions, TrainSettings
from distill.training.sharding import gather_weights
from distill.training.student import student_identity

KIND = "student"
DOCUMENTS = "documents"  # entry of the folder: the tokenized documents while it is trained
TRAINER_VERSION = 3  # part of every key: raise it when the same settings give other weights


def train(settings: TrainSettings, traces: Path, options: RunOptions) -> Artifact:
    """Train one student, on every device that torchrun started a process for. Raises InputError for bad input, Stopped
    when told to stop."""
    if options.threads:
        torch.set_num_threads(options.threads)
    with start_ranks(cpu_offload=options.cpu_offload) as ranks:
        trace_set = ranks.together(lambda: read_traces(traces))
        planned = ranks.from_first(lambda: _planned_ranks(options.out)) or ranks.world
        for_these = settings.for_ranks(planned)
        if for_these.balance_ranks not in (None, settings.balance_ranks, ranks.world):
            console.note(f"{options.out}: steps stay balanced for {planned} ranks, as it was begun")
        return _train(for_these, trace_set, options, ranks)


def _planned_ranks(out: Path) -> int | None:
    """For how many ranks the rows of the training in `out` are balanced, so that any number of them goes on with it."""
    begun = (artifact.recipe_of(out) or {}).get("settings")
    planned = begun.get("balance_ranks") if isinstance(begun, dict) else None
    return planned if isinstance(planned, int) and planned > 0 else None


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
        options = options.model_copy(update={"documents": options.documents or options.out / DOCUMENTS})
        make = _make_with_best_rate if isinstance(settings.learning_rate, tuple) else _make
        return make(work, settings, trace_set, options, ranks)


def _make(work: Workspace, settings: TrainSettings, trace_set: TraceSet, options: RunOptions, ranks: Ranks) -> Artifact:
    """Run every step, and put the student into the folder."""
    prepare = lambda: make_ready(settings, trace_set, weights=ranks.is_first, documents=options.documents)  # noqa: E731
    ready = ranks.only_first(prepare)  # it tokenizes, and the others map its files
    ready = ranks.together(lambda: ready or prepare())
    run = Run(settings, options, ready, ranks)
    measured, validations = run.train(work.path)
    weights = gather_weights(ready.origin.model, ranks)

    def finish() -> Artifact:
        save_student(ready.origin, weights, work.path)
        summary = describe(settings, ready) | {"final_loss": last_loss(work.path), "measured": measured}
        if ready.validation is not None:
            lowest = best.best_of(validations)
            kept = lowest if settings.weights == "best" else validations[-1]
            summary["validation"] |= {"times": len(validations), "lowest": lowest, "kept": kept}
        return _commit(work, settings, summary, remove=("checkpoints", DOCUMENTS))

    return ranks.from_first(finish)


def _make_with_best_rate(
    work: Workspace, settings: TrainSettings, trace_set: TraceSet, options: RunOptions, ranks: Ranks
) -> Artifact:
    """Train with each of several learning rates, and make the best of these students that of the folder."""
    chosen, summary = train_grid(work, settings, options, ranks, lambda s, o: _train(s, trace_set, o, ranks))

    def finish() -> Artifact:
        take_files(chosen, work.path)
        of_one = settings.model_copy(update={"learning_rate": summary["learning_rate"]})
        return _commit(work, of_one, summary, remove=(CANDIDATES, DOCUMENTS))

    return ranks.from_first(finish)


def _commit(work: Workspace, settings: TrainSettings, summary: dict[str, Any], *, remove: tuple[str, ...]) -> Artifact:
    artifact.write_json(work.path / "metrics.json", summary)
    write_card(work.path, settings, summary, work.recipe)
    return work.commit(summary, remove=remove)


def recipe(settings: TrainSettings, traces_key: str) -> dict[str, Any]:
    """Everything the weights depend on. Raises InputError for a student that cannot be read."""
    student = student_identity(settings.student, settings.think_tags)
    device = this_device()
    dtype = resolve_precision(settings.precision, device, student["hidden"])
    # Keys from before there was a choice are those of what it was.
    is_as_before = {
        "keep": settings.keep == "all",
        "select": settings.select == "random",
        "sampling": settings.sampling == "shuffled",
        "reasoning_learning_rate": settings.reasoning_learning_rate in (None, settings.learning_rate),
    }
    not_in_it = {"student", "precision", "compile", *(name for name, same in is_as_before.items() if same)}
    return {
        "settings": settings.model_dump(mode="json", exclude=not_in_it),
        "student": student,
        "traces": traces_key,
        **selection_recipe(settings.select),
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
