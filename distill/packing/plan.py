"""What every optimizer step sees, decided before training: a cursor into the plan is the whole data state."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distill.errors import InputError
from distill.packing.arms import Arm, phases
from distill.packing.binning import best_fit_decreasing

BatchUnit = Literal["examples", "tokens"]


@dataclass(frozen=True)
class Step:
    """One optimizer step: rows of document references, and where in its phase's schedule it stands."""

    rows: list[list[int]]
    phase: int
    index: int  # steps of the phase before this one
    of: int  # steps in the phase


@dataclass(frozen=True)
class Batch:
    """How much goes into a step and into a row.

    `examples`: a step is `size` examples, as published studies count, and rows are cut inside it. `tokens`: rows are
    packed globally over an epoch, shuffled, and a step is `size // row_tokens` of them. Not packed, a row is one
    document and `row_tokens` does not matter here.
    """

    unit: BatchUnit
    size: int
    row_tokens: int
    packed: bool = True


def plan(
    arm: Arm, lengths: np.ndarray, *, batch: Batch, epochs: int, seed: int, tokens: int | None = None
) -> list[Step]:
    """The steps of a whole training.

    `lengths`: int64[2 * pairs], input tokens of each document reference. An arm of phases has epochs of its own. With
    `tokens`, `epochs` is ignored and the plan ends with the first step that reaches that many input tokens. Raises
    InputError for a curriculum that cannot be cut that way.
    """
    n_pairs = len(lengths) // 2
    if n_pairs == 0:
        raise InputError("there is nothing to train on: no pair is left")
    if tokens is not None:
        if arm.kind in ("sequential", "phases"):
            raise InputError(f"arm '{arm}' cannot be matched on tokens: the cut would fall on its last phase only")
        one_epoch = sum(int(lengths[r].sum()) for p in phases(arm, n_pairs, 1, seed) for r in p.epochs)
        epochs = -(-tokens // one_epoch)
    steps = []
    for number, phase in enumerate(phases(arm, n_pairs, epochs, seed)):
        rows = list(_steps(phase.epochs, lengths, batch, seed))
        if tokens is not None:
            reached = np.cumsum([sum(int(lengths[row].sum()) for row in step) for step in rows])
            rows = rows[: int(np.searchsorted(reached, tokens)) + 1]
        steps += [Step(step, number, i, len(rows)) for i, step in enumerate(rows)]
    return steps


def _steps(epochs: tuple[np.ndarray, ...], lengths: np.ndarray, batch: Batch, seed: int) -> Iterator[list[list[int]]]:
    if batch.unit == "examples":
        stream = np.concatenate(epochs)
        for start in range(0, len(stream), batch.size):
            yield _rows(stream[start : start + batch.size], lengths, batch)
        return
    rows_a_step = max(1, batch.size // batch.row_tokens)
    rows = []
    for epoch, references in enumerate(epochs):
        packed = _rows(references, lengths, batch)
        order = np.random.default_rng([seed, 3, epoch]).permutation(len(packed))
        rows += [packed[i] for i in order]
    if batch.packed:
        for start in range(0, len(rows), rows_a_step):
            yield rows[start : start + rows_a_step]
        return
    step, size = [], 0  # one document a row: fill the step with rows up to the token count
    for row in rows:
        step.append(row)
        size += int(lengths[row[0]])
        if size >= batch.size:
            yield step
            step, size = [], 0
    if step:
        yield step


def _rows(references: np.ndarray, lengths: np.ndarray, batch: Batch) -> list[list[int]]:
    if not batch.packed:
        return [[reference] for reference in references.tolist()]
    return best_fit_decreasing(lengths[references], batch.row_tokens, names=references)
