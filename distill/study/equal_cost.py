"""What an arm reaches for as many FLOPs an answer as another takes: the control of a verdict at equal inference cost."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.evaluation.questions import Asked
from distill.evaluation.statistics.resampling import Sample, of_scores
from distill.study.found import AtEqualCost, FoundCell, Spends
from distill.tasks.task import Columns


@dataclass(frozen=True)
class Place:
    """Between which two cells a cost lies, and how far it is from `below` to `above`; one of them twice where it is that
    one's own, or outside of all."""

    below: FoundCell
    above: FoundCell
    share: float
    spends: Spends = "as much"


class EqualCost(AtEqualCost):
    """Accuracy of one arm at the cost of `matched`: between those two of its sizes whose mean FLOPs an answer enclose it, over
    the logarithm of the cost, along which accuracy grows about evenly. Two students that share the questions at that mean
    cost reach less, so the line asks more of reasoning.

    Which two is chosen by cost alone. No accuracy decides whom reasoning is compared with, and there is nothing of that kind to
    correct for; analysis/equal_cost.py compares with the best there is instead. Means of FLOPs over all questions and
    seeds are taken as known: they vary far less than accuracies do. Outside of all sizes the nearest one stands.
    """

    def __init__(self, name: str, matched: FoundCell, ladder: Iterable[FoundCell]) -> None:
        super().__init__()
        self.id, self.matched, self.ladder = name, matched, list(ladder)
        self.seeds = [s for s in matched.seeds if all(s in cell.members for cell in self.ladder)]
        self._places: dict[str, Place] = {}

    def place(self, a: Asked) -> Place:
        if a.task.name not in self._places:
            self._places[a.task.name] = self._place(a)
        return self._places[a.task.name]

    def _place(self, a: Asked) -> Place:
        at = self.matched.mean(a, "flops", self.seeds)
        costs = sorted(((cell.mean(a, "flops", self.seeds), cell) for cell in self.ladder), key=lambda one: one[0])
        if at < costs[0][0]:
            return Place(costs[0][1], costs[0][1], 0.0, "more")
        (low, below), *_ = [one for one in costs if one[0] <= at][::-1]
        (high, above), *_ = [one for one in costs if one[0] >= at] or [(low, below)]
        if high <= low:
            return Place(below, below, 0.0, "as much" if low == at else "less")
        return Place(below, above, float(np.log(at / low) / np.log(high / low)))

    @property
    def of(self) -> FoundCell:
        return self.ladder[0]

    def spends(self, a: Asked) -> Spends:
        return self.place(a).spends

    def answering(self, a: Asked) -> FoundCell:
        """The nearer of both."""
        place = self.place(a)
        return place.above if place.share > 0.5 else place.below

    def metrics(self, a: Asked) -> list[str]:
        return ["accuracy"] if self.seeds else []

    def _resample(self, a: Asked, metric: str, seed: int | None) -> Sample:
        return of_scores(self.per_question(a, metric, seed))

    def columns(self, a: Asked, metric: str, seeds: list[int]) -> list[Columns]:
        raise NotImplementedError("a line between two students has scores and no rows")

    def per_question(self, a: Asked, name: str, seed: int | None) -> np.ndarray:
        place = self.place(a)
        low, high = (cell.per_question(a, name, seed) for cell in (place.below, place.above))
        return self._scale(a, name) * ((1 - place.share) * low + place.share * high)

    def mean(self, a: Asked, name: str, seeds: Iterable[int] | None = None) -> float | None:
        place, seeds = self.place(a), self.seeds if seeds is None else seeds
        low, high = (cell.mean(a, name, seeds) for cell in (place.below, place.above))
        return self._scale(a, name) * ((1 - place.share) * low + place.share * high)

    def _scale(self, a: Asked, name: str) -> float:
        """FLOPs are as many as those that it is matched to, where a line over their logarithm has more."""
        place = self.place(a)
        if name != "flops" or place.below is place.above:
            return 1.0
        low, high = (cell.mean(a, "flops", self.seeds) for cell in (place.below, place.above))
        return self.matched.mean(a, "flops", self.seeds) / ((1 - place.share) * low + place.share * high)

    def describe(self, a: Asked) -> dict[str, Any]:
        """What a contrast says of it in the results."""
        place = self.place(a)
        between = [place.below.id] if place.below is place.above else [place.below.id, place.above.id]
        return {"between": between, "share": place.share, "spends": place.spends}

    def said(self, a: Asked) -> str:
        place = self.place(a)
        at, low, high = (cell.mean(a, "flops", self.seeds) for cell in (self.matched, place.below, place.above))
        if place.below is not place.above:
            return (
                f"{self.id} is read between {place.below.id} and {place.above.id}, which take {low / at:.2g} and "
                f"{high / at:.2g} times the FLOPs an answer."
            )
        end = {"as much": "", "less": ", the dearest there is", "more": ", the cheapest there is"}[place.spends]
        return f"{self.id} is {place.below.id}{end}, which takes {low / at:.2g} times the FLOPs an answer."
