"""Resampling of questions and seeds, for what is no mean of scores: who is best, and where lines cross.

Every draw weighs the questions of a task anew, with exponential weights (Rubin's bootstrap, 1981, Annals of Statistics
9, 130-134: no draw leaves half of a few questions empty), the same for all models. A draw of seeds moves a model's mean by

    sum over seeds of g_s (x_s - mean) / sqrt(S (S - 1)),  over sqrt(chi-squared / (S - 1)),

g normal, which is Student's t around the mean of S seeds; resampling three seeds as if they were many would give two
thirds of their variance and no long tails. Models of one size share g_s by the number of the seed, as contrasts pair
them; those of two sizes share nothing. The draws of questions hold what is each student's own on every question once
already, so the seeds' part is made smaller by that, as in evaluation/statistics/seeds_and_questions.py.

Every draw also parts questions by chance in two halves, and so the seeds of what has three or more: what is chosen on
one half is estimated on the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from distill.evaluation.statistics.intervals import SEEDS_FOR_A_CLAIM
from distill.evaluation.statistics.resampling import Sample, batches
from distill.evaluation.statistics.seeds_and_questions import spread
from distill.study.analysis.points import Point

DRAWS = 1000
SPLITS = 50  # ways to part seeds and questions that a cross-fitted value is the mean over


@dataclass(frozen=True)
class Draws:
    """Means of P models over B draws: accuracy[B, P] and costs[B, P] of all seeds and questions, halves[B, 2, P] the
    accuracy on either half. A cost that a model does not have is NaN.

    shifts[B, P]: what seeds move both halves by. It is in accuracy and costs, and not in halves: it is no luck of one
    half that the other could tell, so what is chosen must not depend on it, and what is estimated must.
    """

    accuracy: np.ndarray
    halves: np.ndarray
    shifts: np.ndarray
    costs: dict[str, np.ndarray]

    def of(self, places: Sequence[int]) -> "Draws":
        """Of some of the models."""
        places = list(places)
        costs = {name: values[:, places] for name, values in self.costs.items()}
        return Draws(self.accuracy[:, places], self.halves[:, :, places], self.shifts[:, places], costs)


def over_tasks(draws: Sequence[Draws]) -> Draws:
    """Means over several tasks of the same models."""
    return Draws(
        np.mean([d.accuracy for d in draws], axis=0),
        np.mean([d.halves for d in draws], axis=0),
        np.mean([d.shifts for d in draws], axis=0),
        {name: np.mean([d.costs[name] for d in draws], axis=0) for name in draws[0].costs},
    )


class SeedDraws:
    """What B draws make of the seeds of every size, the same on all tasks: these are the same students."""

    def __init__(self, points: Sequence[Point], draws: int) -> None:
        self.draws = draws
        rng = np.random.default_rng(draws)
        seeds: dict[str | None, set[int]] = {}
        for point in points:
            seeds.setdefault(point.label.size, set()).update(point.seeds or ())
        self._normal = {
            size: dict(zip(sorted(of_size), rng.normal(size=(len(of_size), draws)), strict=True))
            for size, of_size in seeds.items()
        }
        self._uniform = {size: rng.random(draws) for size in seeds}
        self._first = {}
        for key in dict.fromkeys((point.label.size, point.seeds) for point in points if self._many(point)):
            S = len(key[1])
            odd = rng.integers(2, size=(draws, 1)) * (S % 2)  # which half has one more
            ranks = rng.permuted(np.broadcast_to(np.arange(S), (draws, S)), axis=1)
            self._first[key] = ranks < S // 2 + odd

    def halves(self, point: Point) -> np.ndarray:
        """bool[B, 2, S]: the seeds of a point in either half; all of them in both where there are fewer than three."""
        if not self._many(point):
            return np.ones((self.draws, 2, len(point.accuracy)), bool)
        first = self._first[point.label.size, point.seeds]
        return np.stack([first, ~first], axis=1)

    def shift(self, point: Point, samples: Sequence[Sample]) -> np.ndarray:
        """float64[B]: what is added to the mean of a point's samples, one a seed."""
        if not self._many(point):
            return np.zeros(self.draws)
        values, deviations = np.array([s.value for s in samples]), np.stack([s.deviations for s in samples])
        found = spread(values, deviations @ deviations.T, count_seeds=True)
        if found.seeds <= 0:
            return np.zeros(self.draws)
        S, size = len(values), point.label.size
        normal = np.stack([self._normal[size][seed] for seed in point.seeds], axis=1)
        student = normal @ (values - values.mean()) / np.sqrt(S * (S - 1))
        student /= np.sqrt(2 * special.gammaincinv((S - 1) / 2, self._uniform[size]) / (S - 1))
        left = max(found.seeds + found.questions - found.students, 0.0)
        return student * np.sqrt(left / found.seeds)

    @staticmethod
    def _many(point: Point) -> bool:
        return point.seeds is not None and len(point.seeds) >= SEEDS_FOR_A_CLAIM


def resample(points: Sequence[Point], costs: Sequence[str], seeds: SeedDraws) -> Draws:
    """Draws of seeds and questions. `points`: models that were asked the same questions."""
    drawn = _draws(points, costs, seeds, weigh=True)
    for place, point in enumerate(points):
        drawn.shifts[:, place] = seeds.shift(point, point.samples)
        drawn.accuracy[:, place] += drawn.shifts[:, place]
        for name in costs:
            if name in point.costs:
                drawn.costs[name][:, place] += seeds.shift(point, point.cost_samples(name))
    return drawn


def split(points: Sequence[Point], costs: Sequence[str], seeds: SeedDraws) -> Draws:
    """All seeds and questions every time, in other halves."""
    return _draws(points, costs, seeds, weigh=False)


def _draws(points: Sequence[Point], costs: Sequence[str], seeds: SeedDraws, *, weigh: bool) -> Draws:
    draws, questions = seeds.draws, points[0].accuracy.shape[1]
    unknown = np.full(questions, np.nan)
    table = np.concatenate([point.accuracy for point in points]).T  # [questions, all seeds of all points]
    starts = np.cumsum([0, *(len(point.accuracy) for point in points[:-1])])
    mean = lambda values, kept: (  # noqa: E731
        np.add.reduceat(values * kept, starts, axis=-1) / np.add.reduceat(kept, starts, axis=-1)
    )
    spent = [
        np.stack([point.costs[name].mean(axis=0) if name in point.costs else unknown for point in points], axis=1)
        for name in costs
    ]
    kept = np.concatenate([seeds.halves(point) for point in points], axis=-1).astype(float)  # [draws, 2, all seeds]
    rng = np.random.default_rng(questions)
    in_first = np.arange(questions) < (questions + 1) // 2
    accuracy, halves = np.empty((draws, len(points))), np.empty((draws, 2, len(points)))
    of_costs = {name: np.empty((draws, len(points))) for name in costs}
    for some in batches(draws, questions):
        rows = some.stop - some.start
        weights = rng.exponential(size=(rows, questions)) if weigh else np.ones((rows, questions))
        first = weights * rng.permuted(np.broadcast_to(in_first, weights.shape), axis=1)
        total = weights.sum(axis=1, keepdims=True)
        accuracy[some] = mean(weights @ table / total, np.ones((1, table.shape[1])))
        for name, values in zip(costs, spent, strict=True):
            of_costs[name][some] = weights @ values / total
        # One question has no second half: then both are all of it.
        for side, part in enumerate((first, weights - first) if questions > 1 else (weights, weights)):
            halves[some, side] = mean(part @ table / part.sum(axis=1, keepdims=True), kept[some, side])
    of_costs = {name: _ties_kept(values) for name, values in of_costs.items()}
    return Draws(_ties_kept(accuracy), _ties_kept(halves), np.zeros_like(accuracy), of_costs)


def _ties_kept(values: np.ndarray) -> np.ndarray:
    """Rounded to seven digits: equal columns of a matrix product can differ in the sixteenth, and who is on a frontier
    depends on what is equal."""
    return values.astype(np.float32).astype(np.float64)
