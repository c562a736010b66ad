"""Weighted sums of scores of several students, with their interval: slopes over sizes, differences of differences.

The same two sources of chance as for one difference (evaluation/statistics): seeds, which are drawn apart for every
term, and questions, which all terms share. Variances of seeds add up; degrees of freedom are Satterthwaite's. What is
added to the spread where students hardly differ is Agresti's and Min's for a paired difference, two observations that
differ, here as large as the root of the sum of the squared weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.evaluation.statistics.intervals import SEEDS_FOR_A_CLAIM, Interval
from distill.evaluation.statistics.resampling import Sample, of_scores
from distill.evaluation.statistics.seeds_and_questions import Spread, spread


@dataclass(frozen=True)
class Term:
    """A score or a paired difference, one sample a seed, and its weight. `trained`: False for what has no seeds."""

    weight: float
    seeds: Sequence[Sample]
    trained: bool = True


@dataclass(frozen=True)
class Combination:
    """A weighted sum, and the centre and spread of its interval; `reach` is the farthest from 0 that it can be.

    `exact_p`: the p-value of these students' exact test, where there is one and seeds are too few to count.
    """

    value: float
    centre: float
    spread: Spread
    reach: float
    exact_p: float | None = None

    def interval(self, confidence: float) -> Interval:
        half = self.spread.half_width(confidence)
        held = [self.value] if self.exact_p is None or self.exact_p <= 1 - confidence else [self.value, 0.0]
        low, high = max(self.centre - half, -self.reach), min(self.centre + half, self.reach)
        return Interval(self.value, float(min(low, *held)), float(max(high, *held)))

    @property
    def p_value(self) -> float:
        """Of a sum of nothing."""
        return self.spread.p_value(self.centre) if self.exact_p is None else self.exact_p


def combine(terms: Sequence[Term], *, reach: float | None = None) -> Combination:
    """The sum of weight times mean over seeds. All samples are of the same questions.

    With fewer than three seeds in any trained term it is a sum over these trained students.
    """
    questions = terms[0].seeds[0].questions
    unit = float(np.sqrt(sum(term.weight**2 for term in terms)))
    counted = all(len(term.seeds) >= SEEDS_FOR_A_CLAIM for term in terms if term.trained)
    counted = counted and any(term.trained for term in terms)
    value, deviations, own, within, parts = 0.0, 0.0, 0.0, 0.0, []
    for term in terms:
        values, each = np.array([s.value for s in term.seeds]), np.stack([s.deviations for s in term.seeds])
        covariance, square, S = each @ each.T, term.weight**2, len(term.seeds)
        found = spread(values, covariance, count_seeds=counted and term.trained)
        value += term.weight * float(values.mean())
        deviations = deviations + term.weight * each.mean(axis=0)
        own += square * (found.students - found.questions)  # of seeds on questions, which differs between students
        within += square * (float(np.diag(covariance).mean()) - found.students)
        if found.freedom:
            parts.append((square * found.seeds, S - 1))
    students = float(deviations @ deviations)
    within += students  # the variance of this sum over one seed of each
    S = float(np.mean([len(term.seeds) for term in terms]))
    n = questions * float(np.clip(within / students, 1, S)) if students > 1e-12 * within else questions
    scaled = value / unit
    centre = scaled * n / (n + 2)
    square = questions * within / unit**2 + scaled**2  # the mean square of an observation
    variance = unit**2 * ((square * n + 1) / (n + 2) - centre**2) / (n + 2)
    of_questions = max(variance - own, 0.0) if counted else variance
    seeds, freedom = _pooled(parts)
    reach = sum(abs(term.weight) for term in terms) if reach is None else reach
    return Combination(value, unit * centre, Spread(seeds, of_questions, variance, freedom), reach)


def _pooled(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """The sum of variances with so many degrees of freedom each, and Satterthwaite's for it; none without any."""
    if not parts:
        return 0.0, 0
    total = sum(variance for variance, _ in parts)
    if total <= 0:
        return 0.0, min(freedom for _, freedom in parts)
    return total, total**2 / sum(variance**2 / freedom for variance, freedom in parts)


def of_logarithm(value: float, relative: np.ndarray, *, confidence: float) -> Interval:
    """A positive value with the interval of its logarithm, by the delta method: of costs, and of ratios of them.

    relative[S, Q]: what question q adds to the logarithm with seed s, in a mean over questions. Questions are drawn, and
    with three of them or more seeds.
    """
    samples = [of_scores(row) for row in relative]
    values, deviations = np.array([s.value for s in samples]), np.stack([s.deviations for s in samples])
    found = spread(values, deviations @ deviations.T, count_seeds=len(samples) >= SEEDS_FOR_A_CLAIM)
    factor = float(np.exp(min(found.half_width(confidence), 30.0)))
    return Interval(value, value / factor, value * factor)


def factor(over: np.ndarray, under: np.ndarray, *, confidence: float) -> Interval | None:
    """The mean of over[S, Q] as a multiple of that of under[S, Q], paired by seed and question; None where one is nothing."""
    means = float(over.mean()), float(under.mean())
    if min(means) <= 0:
        return None
    return of_logarithm(means[0] / means[1], over / means[0] - under / means[1], confidence=confidence)


def paired(treatment: Sequence[Sample], control: Sequence[Sample]) -> list[Sample]:
    """Treatment minus control of every seed, on the same questions."""
    return [
        Sample(
            t.value - c.value,
            t.questions,
            t.deviations - c.deviations,
            t.scores - c.scores if t.scores is not None and c.scores is not None else None,
        )
        for t, c in zip(treatment, control, strict=True)
    ]


def over_tasks(samples: Sequence[Sample]) -> Sample:
    """One student's mean over several tasks, which are these and no others: every task's own questions are drawn.

    It has as many questions as there would be of one task for a mean that varies as much.
    """
    if len(samples) == 1:
        return samples[0]
    T = len(samples)
    effective = T**2 / sum(1 / sample.questions for sample in samples)
    deviations = np.concatenate([sample.deviations for sample in samples]) / T
    return Sample(float(np.mean([sample.value for sample in samples])), int(effective), deviations, None)
