"""All there is before the first step: the student, its documents, the plan of every step, what it is validated on."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from distill import console
from distill.errors import InputError
from distill.flops import ModelShape
from distill.packing.arms import Arm
from distill.packing.plan import Batch, Step, plan
from distill.packing.render import Rendered, render
from distill.packing.source import TraceSet
from distill.training.settings import TrainSettings
from distill.training.student import Origin, load_origin
from distill.training.validation import Validation, is_held_out, split, when


@dataclass(frozen=True)
class Ready:
    """All there is before the first step."""

    origin: Origin
    rendered: Rendered
    steps: list[Step]
    validation: Validation | None
    validate_after: set[int]  # numbers of finished steps


def make_ready(settings: TrainSettings, trace_set: TraceSet, *, weights: bool = True) -> Ready:
    """The student, its documents, its plan and what it is validated on. Without `weights` the student is a shape."""
    arm = settings.shown
    held_out = {p.problem.id for p in trace_set.pairs if is_held_out(p.problem.prompt, settings.validation)}
    origin = load_origin(
        settings.student,
        TraceSet(trace_set.key, [p for p in trace_set.pairs if p.problem.id not in held_out]).texts(),
        packed=settings.packed,
        vocab_size=settings.vocab_size,
        seed=settings.seed,
        think_tags=settings.think_tags,
        weights=weights,
    )
    positions = getattr(origin.model.config, "max_position_embeddings", None)
    if positions is not None and settings.row_tokens > positions and not settings.packed:
        raise InputError(f"row_tokens={settings.row_tokens} exceeds the model's {positions} positions")
    with console.progress() as bar:
        task = bar.add_task("tokenizing", total=len(trace_set.pairs))
        rendered = render(
            trace_set.pairs,
            origin.chat,
            answers=settings.answers,
            max_length=min(settings.row_tokens, positions or settings.row_tokens),
            vocab_size=origin.model.config.vocab_size,
            modes=arm.modes,
            advance=lambda n: bar.advance(task, n),
        )
    training, held = split(rendered, held_out, settings.validation)
    steps = _plan(settings, arm, rendered, training)
    validation = Validation.build(settings, rendered, held, arm.ratio) if held else None
    return Ready(origin, rendered, steps, validation, when(settings, steps, len(training)))


def prepare(settings: TrainSettings, trace_set: TraceSet) -> tuple[Origin, Rendered, list[Step]]:
    """The student, its documents and its plan."""
    ready = make_ready(settings, trace_set)
    return ready.origin, ready.rendered, ready.steps


def _plan(settings: TrainSettings, arm: Arm, rendered: Rendered, training: list[int]) -> list[Step]:
    """The steps over the `training` pairs, in references to the rendered documents."""
    references = [2 * pair + mode for pair in training for mode in (0, 1)]
    lengths = np.array([rendered.documents[r].length for r in references])
    batch = Batch(settings.batch_unit, settings.batch, settings.row_tokens, settings.packed)
    steps = plan(arm, lengths, batch=batch, epochs=settings.epochs, seed=settings.seed, tokens=settings.tokens)
    if len(training) == rendered.n_pairs:
        return steps
    return [replace(step, rows=[[references[r] for r in row] for row in step.rows]) for step in steps]


def describe(settings: TrainSettings, ready: Ready) -> dict[str, Any]:
    """What will be trained on, counted from the plan: no clock is involved.

    Tokens are input tokens; by mode, the share of examples, tokens and loss (supervised tokens) is given. `validation`
    is what one validation reads and costs.
    """
    origin, rendered, steps = ready.origin, ready.rendered, ready.steps
    shape = ModelShape.from_config(origin.model.config)
    lengths = np.array([d.length for d in rendered.documents])
    supervised = np.array([d.supervised for d in rendered.documents])
    seen = np.array([r for step in steps for row in step.rows for r in row])
    rows = [row for step in steps for row in step.rows]
    by_mode = {}
    for mode, name in enumerate(("ift", "reasoning")):
        of_mode = seen[seen % 2 == mode]
        by_mode[name] = {
            "examples": len(of_mode),
            "tokens": int(lengths[of_mode].sum()),
            "supervised_tokens": int(supervised[of_mode].sum()),
        }
    row_slots = len(rows) * settings.row_tokens if settings.packed else None
    return {
        "arm": settings.arm,
        "student": settings.student,
        "parameters": sum(p.numel() for p in origin.model.parameters()),
        "vocabulary": origin.model.config.vocab_size,
        "steps": len(steps),
        "rows": len(rows),
        "examples": len(seen),
        "tokens": int(lengths[seen].sum()),
        "supervised_tokens": int(supervised[seen].sum()),
        "by_mode": by_mode,
        "flops": shape.training_flops(lengths[seen], int(supervised[seen].sum())),
        "row_fill": float(lengths[seen].sum() / row_slots) if row_slots else None,
        "pairs": rendered.n_pairs - (ready.validation.pairs if ready.validation else 0),
        "validation": ready.validation.describe(shape) if ready.validation else None,
        "dropped_pairs": rendered.dropped,
        "dropped_tokens": rendered.dropped_tokens,
    }


def resolve_precision(precision: str, device: torch.device, hidden: int) -> torch.dtype:
    """The dtype of matrix products. `auto` is bf16 on a GPU, and on CPUs that have it for students at least 256 wide:
    below, casts cost more than the products save."""
    if precision == "auto":
        pays = device.type == "cuda" or (torch.cpu._is_avx512_bf16_supported() and hidden >= 256)
        precision = "bf16" if pays else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32
