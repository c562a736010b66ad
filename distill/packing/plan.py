"""What every optimizer step sees, decided before training: a cursor into the plan is the whole data state."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from distill.errors import InputError
from distill.packing.arms import Arm, Phase, Sampling, phases
from distill.packing.balance import balance, row_sums
from distill.packing.binning import best_fit_decreasing
from distill.packing.budget import ROUNDING, Budget, Match

BatchUnit = Literal["examples", "tokens"]
Rows = list[list[int]]


@dataclass(frozen=True)
class Step:
    """One optimizer step: rows of document references, and where in its phase's schedule it stands."""

    rows: Rows
    phase: int  # `Phase.number`
    index: int  # steps of the phase before this one
    of: int  # steps in the phase


@dataclass(frozen=True)
class Batch:
    """How much goes into a step and into a row.

    `examples`: a step is `size` examples, as published studies count, and rows are cut inside it. `tokens`: rows are
    packed globally over an epoch, and a step is `size // row_tokens` of them: shuffled, or with several `ranks` grouped
    so that each `ranks` of them cost nearly the same. Not packed, a row is one document, and neither `row_tokens` nor
    `ranks` matters here.
    """

    unit: BatchUnit
    size: int
    row_tokens: int
    packed: bool = True
    ranks: int = 1


def plan(
    arm: Arm,
    lengths: np.ndarray,
    *,
    batch: Batch,
    epochs: int,
    seed: int,
    flops: np.ndarray | None = None,
    until: Budget | None = None,
    priority: np.ndarray | None = None,
    sampling: Sampling = "shuffled",
) -> list[Step]:
    """The steps of a whole training.

    `lengths`: int64[2 * pairs], input tokens of each document reference. `flops`: float64[2 * pairs], what training on
    each costs; several ranks need it. An arm of phases has epochs of its own. `priority` says which pairs get reasoning
    first and `sampling` how modes are ordered, as `phases` has both; rows of a batch of tokens are shuffled anyway.

    With `until` the epochs are repeated or cut so that the plan ends with the first step that reaches the budget. Of
    several phases each is cut at the same multiple of itself, to a step. Raises InputError when one would have none.
    """
    n_pairs = len(lengths) // 2
    if n_pairs == 0:
        raise InputError("there is nothing to train on: no pair is left")
    cut = partial(_steps, lengths=lengths, batch=batch, seed=seed, flops=flops)
    shown = phases(arm, n_pairs, epochs, seed, priority, sampling)
    found = [_whole(phase, cut) for phase in shown] if until is None else _until(until, arm, shown, cut)
    return [
        Step(rows, phase.number, index, len(steps))
        for phase, steps in zip(shown, found, strict=True)
        for index, rows in enumerate(steps)
    ]


def busy_share(steps: Sequence[Step], ranks: int) -> float:
    """Share of the turns of `ranks` devices in which there is a row: they take a step's rows in turns, and the last turn
    may be short."""
    turns = sum(-(-len(step.rows) // ranks) for step in steps)
    return sum(len(step.rows) for step in steps) / (turns * ranks)


def budget(
    match: Match, lengths: np.ndarray, flops: np.ndarray, *, batch: Batch, epochs: int, seed: int
) -> Budget | None:
    """What the arm `reasoning` spends in as many epochs; None for samples, which are whole epochs of any arm."""
    if match == "samples":
        return None
    if match == "steps":
        reference = plan(Arm.parse("reasoning"), lengths, batch=batch, epochs=epochs, seed=seed, flops=flops)
        return Budget("steps", len(reference))
    of_documents = lengths if match == "tokens" else flops
    return Budget(match, epochs * of_documents[1::2].sum().item(), of_documents)


def _whole(phase: Phase, cut: partial) -> list[Rows]:
    """The steps of a phase's epochs; what fills no step is the last."""
    steps = list(cut(phase.epochs))
    return [rows for number, (rows, full) in enumerate(steps) if full or number == len(steps) - 1]


def _until(until: Budget, arm: Arm, shown: list[Phase], cut: partial) -> list[list[Rows]]:
    """The steps of each phase. Phase k ends where the budget's share of phases 0 to k is reached, so that what a step
    spends too much is not added up over phases."""
    shares = np.ones(1)
    if len(shown) > 1:
        shares = np.cumsum([sum(map(until.spent, _whole(phase, cut))) for phase in shown])
        shares = shares / shares[-1]
    found, spent = [], 0
    for phase, share in zip(shown, shares, strict=True):
        enough = until.amount * (share - ROUNDING)
        steps = []
        for rows, full in cut(phase.repeated()) if spent < enough else ():
            after = spent + until.spent(rows)
            if full or after >= enough:  # an epoch may end the training with a step that is not full
                steps.append(rows)
                spent = after
            if spent >= enough:
                break
        if not steps:
            raise InputError(
                f"arm '{arm}': {until.amount:g} {until.kind} are so few that phase {len(found) + 1} of {len(shown)} "
                "has no step of its own"
            )
        found.append(steps)
    return found


def _steps(
    epochs: Iterable[np.ndarray], *, lengths: np.ndarray, batch: Batch, seed: int, flops: np.ndarray | None
) -> Iterator[tuple[Rows, bool]]:
    """(a step, whether it is full), and at the end of each epoch what fills no step yet: the last step of a training
    that ends there. One that goes on takes those documents again, in the step that they then fill."""
    if batch.unit == "examples":
        streams: Iterable[list] = (references.tolist() for references in epochs)
    else:
        streams = _rows_of_epochs(epochs, lengths, batch, seed, flops)
    waiting: list = []
    for items in streams:
        waiting += items
        start = 0
        for end in _ends(waiting, lengths, batch):
            yield _as_rows(waiting[start:end], lengths, batch), True
            start = end
        waiting = waiting[start:]
        if waiting:
            yield _as_rows(waiting, lengths, batch), False


def _ends(waiting: list, lengths: np.ndarray, batch: Batch) -> Iterable[int]:
    """Where full steps of what is waiting end."""
    if batch.unit == "examples":
        return range(batch.size, len(waiting) + 1, batch.size)
    if batch.packed:
        rows_a_step = max(1, batch.size // batch.row_tokens)
        return range(rows_a_step, len(waiting) + 1, rows_a_step)
    ends, size = [], 0  # one document a row: rows up to the token count
    for number, (reference,) in enumerate(waiting, start=1):
        size += int(lengths[reference])
        if size >= batch.size:
            ends.append(number)
            size = 0
    return ends


def _as_rows(items: list, lengths: np.ndarray, batch: Batch) -> Rows:
    return _packed(np.array(items), lengths, batch) if batch.unit == "examples" else items


def _rows_of_epochs(
    epochs: Iterable[np.ndarray], lengths: np.ndarray, batch: Batch, seed: int, flops: np.ndarray | None
) -> Iterator[Rows]:
    """Each epoch's rows in the order of training."""
    begun = 0  # rows in the group of `ranks` that the epochs so far have left unfilled
    for epoch, references in enumerate(epochs):
        rows = _packed(references, lengths, batch)
        if batch.ranks == 1 or not batch.packed:
            order = np.random.default_rng([seed, 3, epoch]).permutation(len(rows))
            yield [rows[i] for i in order]
            continue
        # An epoch ends with its cheapest rows, too few for a group. The cheapest of the next fill it up, and the groups
        # after it begin where steps do.
        costs = row_sums(rows, flops)
        cheapest = np.argsort(costs, kind="stable")[: -begun % batch.ranks].tolist()
        others = np.delete(np.arange(len(rows)), cheapest)
        groups = balance(others.tolist(), costs[others], batch.ranks, [seed, 3, epoch])
        yield [rows[i] for i in (*cheapest, *(i for group in groups for i in group))]
        begun = (begun + len(rows)) % batch.ranks


def _packed(references: np.ndarray, lengths: np.ndarray, batch: Batch) -> Rows:
    if not batch.packed:
        return [[reference] for reference in references.tolist()]
    return best_fit_decreasing(lengths[references], batch.row_tokens, names=references)
