"""One model on one task, question by question, with what its answers cost: what analyses look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import special

from distill.evaluation.statistics.intervals import SEEDS_FOR_A_CLAIM, Interval, score
from distill.evaluation.statistics.resampling import Sample, of_scores
from distill.evaluation.statistics.seeds_and_questions import spread
from distill.study.analysis.combination import over_tasks


@dataclass(frozen=True)
class Label:
    """What a point is."""

    id: str
    kind: str  # cell, teacher, base, majority, router or oracle
    size: str | None = None
    arm: str | None = None
    think: str | None = None
    mode: str | None = None
    thinking_budget: int | None = None
    reasoned: bool = False  # whether it, or anything of it, was trained on reasoning


@dataclass(frozen=True)
class Point:
    """One model on the questions of one task, float64[S, Q]: shares of right answers, and costs by their name.

    A cost that is not known is not there. `seeds`: None for what was not trained here; then S is 1.
    """

    label: Label
    seeds: tuple[int, ...] | None
    accuracy: np.ndarray
    costs: dict[str, np.ndarray]

    @cached_property
    def samples(self) -> list[Sample]:
        return [of_scores(row) for row in self.accuracy]

    def cost_samples(self, cost: str) -> list[Sample]:
        return [of_scores(row) for row in self.costs[cost]]


@dataclass(frozen=True)
class Summary:
    """A point's means over questions, one sample a seed: of one task, or over several."""

    label: Label
    seeds: tuple[int, ...] | None
    accuracy: list[Sample]
    costs: dict[str, list[Sample]]


def summary(of_tasks: Sequence[Point]) -> Summary:
    """The same model on one or more tasks."""
    first = of_tasks[0]
    mean = lambda samples: [over_tasks(of_seed) for of_seed in zip(*samples, strict=True)]  # noqa: E731
    costs = [name for name in first.costs if all(name in point.costs for point in of_tasks)]
    return Summary(
        first.label,
        first.seeds,
        mean([point.samples for point in of_tasks]),
        {name: mean([point.cost_samples(name) for point in of_tasks]) for name in costs},
    )


def cost_interval(seeds: Sequence[Sample], *, confidence: float) -> Interval:
    """A mean cost with the interval of its logarithm, by the delta method: costs are positive, and some answers long."""
    values, deviations = np.array([s.value for s in seeds]), np.stack([s.deviations for s in seeds])
    found = spread(values, deviations @ deviations.T, count_seeds=len(seeds) >= SEEDS_FOR_A_CLAIM)
    value = float(values.mean())
    if value <= 0:
        return Interval(value, value, value)
    ratio = float(np.exp(min(found.half_width(confidence) / value, special.log1p(1e6))))
    return Interval(value, value / ratio, value * ratio)


def accuracy_interval(seeds: Sequence[Sample], *, confidence: float) -> Interval:
    return score(list(seeds), confidence=confidence)
