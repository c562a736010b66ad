"""Intervals of scores and of paired differences between arms.

Two sources of chance: the questions (`resampling.py`) and, with three or more of them, the training seeds
(`seeds_and_questions.py`). With fewer seeds an interval speaks of these trained students only. Every metric is a share,
and near the ends of its range, or where arms hardly differ, an estimated variance is too small or none at all, and
chance is not symmetric. So what is known of the spread goes into an interval made for shares:

- these students: Wilson's (1927), of as many independent answers as would have this variance (Korn & Graubard 1998,
  Survey Methodology 24, 193-201);
- an arm: of the logit, by the delta method; seeds that are drawn toward 1 differ less there, which Wilson's does not
  know (at 95 % right and seeds far apart it covers 92.8 %, this 93.9 %);
- a paired difference: Agresti & Min's (2005), of as many independent questions. Of these students it holds 0 too where
  the exact test does not find a difference: approximate intervals leave 0 out where five questions differ, all one way,
  and p is 0.06.

No interval has zero width or leaves its range.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from distill.evaluation.statistics.resampling import Sample
from distill.evaluation.statistics.seeds_and_questions import Spread, spread
from distill.evaluation.statistics.significance import sign_flip_test

SEEDS_FOR_A_CLAIM = 3


@dataclass(frozen=True)
class Interval:
    """A value and its interval at the stated confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A paired difference of two arms: its value, and the centre and spread of its interval. `exact_p` is the p-value
    of these students' exact test, None for an arm."""

    value: float
    centre: float
    spread: Spread
    exact_p: float | None = None

    def interval(self, confidence: float = 0.95) -> Interval:
        half = self.spread.half_width(confidence)
        held = [self.value] if self.exact_p is None or self.exact_p <= 1 - confidence else [self.value, 0.0]
        low, high = max(self.centre - half, -1.0), min(self.centre + half, 1.0)
        return Interval(self.value, float(min(low, *held)), float(max(high, *held)))

    @property
    def p_value(self) -> float:
        """Of no difference: at most 5 % where the 95 % interval leaves 0 out."""
        return self.spread.p_value(self.centre) if self.exact_p is None else self.exact_p


def score(seeds: list[Sample], *, confidence: float = 0.95) -> Interval:
    """A metric averaged over training seeds, one sample a seed.

    With the half-width h of the normal interval: logit(p) +- h / (p (1 - p)) for an arm, and for these students
    Wilson's interval of p (1 - p) (z / h)^2 answers. Where no variance was seen, Wilson's of as many as questions.
    """
    values, deviations = _table(seeds)
    found = spread(values, deviations @ deviations.T, count_seeds=len(seeds) >= SEEDS_FOR_A_CLAIM)
    value, z = float(values.mean()), float(special.ndtri(0.5 + confidence / 2))
    half = found.half_width(confidence)
    one = value * (1 - value)  # the variance of one answer
    varies = half**2 > 1e-9 * one > 0
    if varies and found.freedom:
        low, high = special.expit(special.logit(value) + np.array([-1, 1]) * half / one)
        return Interval(value, float(low), float(high))
    n = one * (z / half) ** 2 if varies else seeds[0].questions
    centre = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(max(one, 0.0) / n + (z / (2 * n)) ** 2)
    low, high = max(centre - reach, 0.0), min(centre + reach, 1.0)
    return Interval(value, float(min(low, value)), float(max(high, value)))


def paired_difference(treatment: list[Sample], control: list[Sample], *, confidence: float = 0.95) -> Interval:
    """Treatment minus control, averaged over training seeds: the same questions, and the same seeds in the same order.

    Raises ValueError when the arms have different numbers of seeds: then there are no pairs.
    """
    return difference(treatment, control).interval(confidence)


def difference(treatment: list[Sample], control: list[Sample]) -> Difference:
    """What `paired_difference` is the interval of, and `minimum_detectable_difference` the power of.

    Agresti & Min add half an observation to each of the four cells of right and wrong: two of them, one of which
    differs, half of it either way. Observations are questions; seeds that differ on other questions are worth up to
    one each. The exact test of a metric that is no mean needs its rows: whoever has them sets `exact_p`.
    """
    if len(treatment) != len(control):
        raise ValueError(f"treatment has {len(treatment)} seeds and control {len(control)}; they are compared in pairs")
    (t_values, t_deviations), (c_values, c_deviations) = _table(treatment), _table(control)
    values, deviations = t_values - c_values, t_deviations - c_deviations
    S, Q, value = len(values), treatment[0].questions, float(values.mean())
    covariance = deviations @ deviations.T
    found = spread(values, covariance, count_seeds=S >= SEEDS_FOR_A_CLAIM)
    within = float(np.diag(covariance).mean())  # the variance of one seed's difference
    n = Q * float(np.clip(within / found.students, 1, S)) if found.students > 1e-12 * within else Q
    centre = value * n / (n + 2)
    square = Q * within + value**2  # the mean square of an observation
    variance = ((square * n + 1) / (n + 2) - centre**2) / (n + 2)
    questions = max(found.questions + variance - found.students, 0.0)
    exact = None
    if S < SEEDS_FOR_A_CLAIM and all(sample.scores is not None for sample in (*treatment, *control)):
        exact = sign_flip_test(np.mean([t.scores - c.scores for t, c in zip(treatment, control, strict=True)], axis=0))
    return Difference(value, centre, replace(found, questions=questions, students=variance), exact)


def _table(seeds: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """values[S] and deviations[S, ...] of these students."""
    return np.array([s.value for s in seeds]), np.stack([s.deviations for s in seeds])
