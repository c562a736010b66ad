"""What a student is trained on: which mode each pair is shown in, and in what order."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np

from distill.errors import InputError, unknown_name
from distill.traces.trace import Mode, Pair

Answers = Literal["teacher", "stripped", "gold"]
Sampling = Literal["shuffled", "stratified"]


@dataclass(frozen=True)
class Arm:
    """`ift`, `reasoning`, `mixed:R` or `sequential:R`; R is the share of pairs shown with their reasoning. Or `phases`,
    a curriculum: every pair in each phase, R of its own; `ratio` is then the share over all of them."""

    kind: Literal["ift", "reasoning", "mixed", "sequential", "phases"]
    ratio: float
    curriculum: tuple[tuple[float, int], ...] = ()  # (R, epochs) of each phase

    @classmethod
    def parse(cls, text: str) -> "Arm":
        """Read an arm as the command line writes it. Raises InputError."""
        kind, colon, ratio = text.partition(":")
        if kind not in ("ift", "reasoning", "mixed", "sequential"):
            raise unknown_name("arm", text, ["ift", "reasoning", "mixed:R", "sequential:R"])
        if kind in ("ift", "reasoning"):
            if colon:
                raise InputError(f"arm {text!r}: {kind} takes no ratio; expected {kind!r} or 'mixed:{ratio}'")
            return cls(kind, 1.0 if kind == "reasoning" else 0.0)
        try:
            share = float(ratio)
        except ValueError:
            share = float("nan")
        if not 0.0 <= share <= 1.0:
            raise InputError(
                f"arm {text!r}: the share of reasoning, as in '{kind}:0.5', must be from 0 to 1, found {ratio!r}"
            )
        return cls(kind, share)

    @classmethod
    def of_phases(cls, curriculum: Iterable[tuple[float, int]]) -> "Arm":
        """A curriculum of (share of reasoning, epochs)."""
        curriculum = tuple(curriculum)
        shown = sum(ratio * epochs for ratio, epochs in curriculum)
        return cls("phases", shown / sum(epochs for _, epochs in curriculum), curriculum)

    def __str__(self) -> str:
        return self.kind if self.kind in ("ift", "reasoning", "phases") else f"{self.kind}:{self.ratio:g}"

    @property
    def chooses(self) -> bool:
        """Whether it shows some pairs with their reasoning and others without, so that it matters which."""
        return any(0 < ratio < 1 for ratio, _ in self.curriculum or ((self.ratio, 1),))

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes this arm shows at all."""
        return (("ift",) if self.ratio < 1 else ()) + (("reasoning",) if self.ratio > 0 else ())


def content(pair: Pair, mode: Mode, answers: Answers) -> tuple[str, str]:
    """(reasoning, answer) that a student sees for a pair in a mode.

    `teacher`: the teacher's own answer in that mode. `stripped`: the reasoning trace's answer, also where the
    reasoning is not shown. `gold`: the given label, after the reasoning where it is shown.
    """
    trace = pair.trace(mode)
    if answers == "gold":
        if not pair.problem.gold:
            raise InputError(f"{pair.problem.id}: has no gold answer, which --answers gold needs")
        return trace.reasoning, pair.problem.gold
    if answers == "stripped":
        return trace.reasoning, pair.reasoning.answer
    return trace.reasoning, trace.answer


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own learning-rate schedule.

    `number`: its place in the curriculum; of `sequential` 0 is the one without reasoning and 1 the one with it.
    `epochs`: one int64[n] array an epoch, of document references in order. A reference is 2 * pair + (1 if the pair is
    shown with its reasoning else 0). `further(k)` is the same references in the order of the k-th epoch after those.
    """

    number: int
    epochs: tuple[np.ndarray, ...]
    further: Callable[[int], np.ndarray]

    def repeated(self) -> Iterator[np.ndarray]:
        """Its epochs, and then further ones without end."""
        yield from self.epochs
        yield from map(self.further, count())


def phases(
    arm: Arm,
    n_pairs: int,
    epochs: int,
    seed: int,
    priority: np.ndarray | None = None,
    sampling: Sampling = "shuffled",
) -> list[Phase]:
    """The order in which an arm shows `n_pairs` pairs.

    Which pairs get reasoning is one ranking cut at R, so the pairs of a smaller R are among those of a larger one. It is
    drawn from the seed; with `priority` (int64[n_pairs]) smaller ones come first, and equal ones in the seed's order.
    `mixed` is one shuffled phase; `sequential` shows its IFT pairs first, then its reasoning pairs; `phases` has epochs
    of its own. With one seed the arms with one phase see the pairs in the same order if they are `shuffled`;
    `stratified` spreads both modes evenly over an epoch.
    """
    ranking = np.random.default_rng([seed, 1]).permutation(n_pairs)
    if priority is not None:
        ranking = ranking[np.argsort(priority[ranking], kind="stable")]

    def phase(number: int, ratio: float, first: int, own: int, further: int, of: int, mode: int | None = None) -> Phase:
        """Orders `first`, ..., first + own - 1, and after those `further`, further + of, further + 2 of, ..."""
        with_reasoning = np.zeros(n_pairs, dtype=np.int64)
        with_reasoning[ranking[: round(ratio * n_pairs)]] = 1

        def order(epoch: int) -> np.ndarray:
            pairs = np.random.default_rng([seed, 2, epoch]).permutation(n_pairs)
            references = 2 * pairs + with_reasoning[pairs]
            if sampling == "stratified":
                references = evenly_spread(references)
            return references if mode is None else references[references % 2 == mode]

        return Phase(number, tuple(map(order, range(first, first + own))), lambda k: order(further + k * of))

    if arm.kind == "phases":
        *first, total = np.cumsum([0, *(own for _, own in arm.curriculum)]).tolist()
        return [
            phase(number, ratio, at, own, total + number, len(first))
            for number, ((ratio, own), at) in enumerate(zip(arm.curriculum, first, strict=True))
        ]
    modes = (0, 1) if arm.kind == "sequential" else (None,)
    found = [phase(number, arm.ratio, 0, epochs, epochs, 1, mode) for number, mode in enumerate(modes)]
    return [phase for phase in found if len(phase.epochs[0])]


def evenly_spread(references: np.ndarray) -> np.ndarray:
    """The documents of each mode in their order, those with reasoning at equal distances among the others: the first k of
    n have k / n of either mode, to less than one document."""
    place = np.empty(len(references))
    for mode in (0, 1):
        (own,) = np.nonzero(references % 2 == mode)
        place[own] = (np.arange(len(own)) + 0.5) / max(len(own), 1)
    return references[np.argsort(place, kind="stable")]
