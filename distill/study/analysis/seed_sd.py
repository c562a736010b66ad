"""How far apart training seeds of one arm fall: whether mixing reasoning and answers makes training less stable.

Of S seeds' accuracies on the same questions the variance V estimates var_a + var_e / Q (evaluation/statistics/
seeds_and_questions.py): what one training differs from the next by as a whole, and what it differs by on single questions,
which more questions would average out. The second is known from the questions, and stands beside the first.

The interval of sqrt(V) is that of a chi-squared distribution with S - 1 degrees of freedom; two kinds of arms are compared
by the F distribution of their pooled variances. Both take seeds for normal. Seeds that are right on the same questions are
known no better than seeds of which one differs on one question.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from distill.evaluation.statistics.intervals import Interval
from distill.evaluation.statistics.resampling import Sample


@dataclass(frozen=True)
class Variance:
    """Of seeds around their mean: `value` V, `freedom`, and `of_questions`, the part var_e / Q that single questions
    explain. `least`: what V may always be."""

    value: float
    freedom: int
    of_questions: float
    least: float

    def sd(self, confidence: float) -> Interval:
        """The standard deviation."""
        most, least = special.chdtri(self.freedom, [0.5 - confidence / 2, 0.5 + confidence / 2])
        ends = self.freedom * self.value / most, self.freedom * max(self.value, self.least) / least
        return Interval(*(float(np.sqrt(part)) for part in (self.value, *ends)))


def variance(seeds: Sequence[Sample]) -> Variance:
    """Of two or more seeds of one arm that were asked the same questions."""
    S, values, deviations = len(seeds), np.array([s.value for s in seeds]), np.stack([s.deviations for s in seeds])
    covariance = deviations @ deviations.T
    own = float(np.diag(covariance).mean())
    between = (float(covariance.sum()) - S * own) / (S * (S - 1))
    return Variance(float(np.var(values, ddof=1)), S - 1, max(own - between, 0.0), 1 / (S * seeds[0].questions ** 2))


def pooled(variances: Iterable[Variance]) -> Variance:
    """Of several arms, each around its own mean."""
    found = list(variances)
    freedom = sum(one.freedom for one in found)
    mean = lambda name: sum(one.freedom * getattr(one, name) for one in found) / freedom  # noqa: E731
    return Variance(mean("value"), freedom, mean("of_questions"), mean("least"))


def ratio(one: Variance, other: Variance, *, confidence: float) -> Interval:
    """Of standard deviations, with the F distribution's interval."""
    over, under = max(one.value, one.least), max(other.value, other.least)
    ends = special.fdtri(one.freedom, other.freedom, [0.5 + confidence / 2, 0.5 - confidence / 2])
    value, low, high = (float(np.sqrt(over / under / by)) for by in (1.0, *ends))
    return Interval(value, low, high)
