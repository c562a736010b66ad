"""All there is before the first step: the student, its documents, the plan of every step, what it is validated on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill import console
from distill.flops import ModelShape
from distill.packing.arms import Arm
from distill.packing.balance import document_costs
from distill.packing.budget import Budget
from distill.packing.documents import rendered_documents
from distill.packing.pack import Document
from distill.packing.plan import Batch, Step, budget, plan
from distill.packing.render import Rendered, Rendering
from distill.packing.selection import Selection, selection
from distill.packing.source import TraceSet, verified_only
from distill.training.distillation import Teaching, teach
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
    until: Budget | None = None  # what ended the plan; None: whole epochs
    teaching: Teaching | None = None  # a teacher's distributions; None: the student learns from text alone
    unverified: dict[str, Any] | None = None  # what was left out for that; None: nothing was asked to be
    selection: Selection | None = None  # of the rendered pairs, what they get reasoning by; None: the seed

    @property
    def documents(self) -> Sequence[Document]:
        """The documents that are trained on, by reference; with the teacher's distributions where there are any."""
        return self.rendered.documents if self.teaching is None else self.teaching.documents


def make_ready(
    settings: TrainSettings, trace_set: TraceSet, *, weights: bool = True, documents: Path | None = None
) -> Ready:
    """The student, its documents, its plan and what it is validated on. Without `weights` the student is a shape.

    The documents are kept in the folder `documents`, or found there; without one they are in memory. Of several ranks
    that call this at once with the same folder, one tokenizes and all map its files.
    """
    arm, whole, unverified = settings.shown, trace_set, None
    if settings.keep == "verified":
        trace_set, unverified = verified_only(trace_set)
    chosen = selection(settings.select, trace_set)
    held_out = {p.problem.id for p in trace_set.pairs if is_held_out(p.problem.prompt, settings.validation)}
    origin = load_origin(
        settings.student,
        replace(trace_set, pairs=[p for p in trace_set.pairs if p.problem.id not in held_out]).texts(),
        packed=settings.packed,
        vocab_size=settings.vocab_size,
        seed=settings.seed,
        think_tags=settings.think_tags,
        lora=settings.lora,
        weights=weights,
    )
    # Saved with the student; the one it starts from may have been told otherwise.
    origin.chat.think = replace(origin.chat.think, mode_signal=settings.mode_signal)
    positions = getattr(origin.model.config, "max_position_embeddings", None)
    how = Rendering(
        settings.answers,
        max_length=min(settings.row_tokens, positions or settings.row_tokens),
        vocab_size=origin.model.config.vocab_size,
        modes=arm.modes,
    )
    with console.progress() as bar:
        task = bar.add_task("tokenizing", total=len(trace_set.pairs))
        rendered = rendered_documents(documents, trace_set, origin.chat, how, advance=lambda n: bar.advance(task, n))
    training, held = split(rendered, held_out, settings.validation)
    chosen = chosen and chosen.at(rendered.kept)
    priority = chosen and chosen.priority[training]
    steps, until = _plan(settings, arm, rendered, training, origin.shape, priority)
    validation = Validation.build(settings, rendered, held, arm.ratio) if held else None
    teaching = None
    if settings.distillation_weight:
        entries = origin.model.config.get_text_config().vocab_size
        teaching = teach(settings, whole, rendered, steps, origin.chat, entries)
    times = when(settings, steps, len(training))
    return Ready(origin, rendered, steps, validation, times, until, teaching, unverified, chosen)


def _plan(
    settings: TrainSettings,
    arm: Arm,
    rendered: Rendered,
    training: list[int],
    shape: ModelShape,
    priority: np.ndarray | None,
) -> tuple[list[Step], Budget | None]:
    """The steps over the `training` pairs, in references to the rendered documents, and what ended them."""
    references = [2 * pair + mode for pair in training for mode in (0, 1)]
    lengths = rendered.lengths[references]
    flops = document_costs(lengths, rendered.supervised[references], shape)
    batch = Batch(
        settings.batch_unit, settings.batch, settings.row_tokens, settings.packed, settings.balance_ranks or 1
    )
    common = dict(batch=batch, seed=settings.seed, flops=flops)
    if settings.tokens is not None:
        until = Budget("tokens", settings.tokens, lengths)
    else:
        epochs = sum(own for _, own in arm.curriculum) or settings.epochs
        until = budget(settings.match, lengths, epochs=epochs, **common)
    common |= dict(priority=priority, sampling=settings.sampling)
    steps = plan(arm, lengths, epochs=settings.epochs, until=until, **common)
    if settings.one_schedule:
        steps = [replace(step, index=number, of=len(steps)) for number, step in enumerate(steps)]
    if len(training) < rendered.n_pairs:
        steps = [replace(step, rows=[[references[r] for r in row] for row in step.rows]) for step in steps]
    return steps, until
