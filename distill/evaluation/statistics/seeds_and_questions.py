r"""How wide an interval must be when training seeds and questions are both drawn by chance.

Every one of S training seeds answers the same questions. The score of seed s on question q has a part of the seed, a
part of the question, and what is left:

    x_sq = mu + a_s + b_q + e_sq                var(mean of x) = var_a / S + var_b / Q + var_e / (S Q)

Two estimates come from the data, with `covariance`[S, S] of the seeds' values over draws of questions:

    A = variance of the seeds' values / S           estimates var_a / S + var_e / (S Q), with S - 1 degrees of freedom
    k = mean of covariance                          estimates var_b / Q + var_e / (S Q), with about Q
    B = k - (mean of its diagonal - k) / (S - 1)    estimates var_b / Q                 (the off-diagonal mean)

The mean's variance is A + B: one part of two degrees of freedom where there are three seeds, and one that is as good
as known. That is the Behrens-Fisher problem with one known variance. Adding half-widths, t and z, in quadrature
covers up to 97.7 % of the time with three seeds, Satterthwaite's degrees of freedom down to 92.2 %. What is used here
is a Bayesian interval, mean given v normal of variance v + B, with a prior chosen for its frequentist coverage:

    p(v) ~ ((v + B) / v)^g / v

With g = 0 it is Behrens' and Fisher's, which covers too often (97.7 %). With g = 1 it matches to second order (Ghosh
& Kim 2001, Canadian Journal of Statistics 29, 5-17, find this form for two unknown variances): with r = A / (A + B),
half-widths agree with Welch's (1947, Biometrika 34, 28-35) in the terms of order 1 / (S - 1) when the posterior mean
of v / A - 1 is 2 r / (S - 1), and under a prior v^-1 f(v) it is 2 (1 + d log f / d log v) / (S - 1), so f = (v + B) /
v. Three seeds then cover 93.6 to 95.4 %. g = 3/4 puts three seeds, the fewest there are, in the middle: 94.1 to 95.9
%, five 94.8 to 95.5 %, ten 95.0 to 95.2 %, whatever the variances are. For x = (S - 1) A / v it means a chi-squared
distribution with S - 1 degrees of freedom, weighted by (1 + B / v)^g. Where B = 0 that is Student's t, where A = 0
the normal interval.

Seeds can agree by accident, and exactly, since shares of right answers move in steps of one question. So the
half-width is at least half of that of these very students, z sqrt(k), which raises 95.9 to 96.0 %. All of it would
cover 98.7 % where training again changes single answers but not the score.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

_MATCHING = 0.75  # g above
_LOG_X = np.linspace(-24.0, 7.0, 200)  # for the trapezoidal rule in log x, which is good to nine digits here
_X = np.exp(_LOG_X)


@dataclass(frozen=True)
class Spread:
    """The variance of a mean over seeds: its parts `seeds` (A), with `freedom` degrees of freedom, and `questions` (B);
    and `students` (k), that of the mean over these very students, which alone counts where `freedom` is 0."""

    seeds: float
    questions: float
    students: float
    freedom: float

    def half_width(self, confidence: float) -> float:
        """Of the interval around an estimate of this spread."""
        z = float(special.ndtri(0.5 + confidence / 2))
        least = z * float(np.sqrt(self.students))
        if not self.freedom:
            return least
        if self._seeds_agree:
            return max(z * float(np.sqrt(self.questions)), least / 2)
        unit = np.sqrt(self.seeds + self.questions)
        outside = lambda h: self._mass_outside(h * unit) - (1 - confidence)  # noqa: E731
        top = 2 * z
        while outside(top) > 0:
            top *= 2
        return max(float(optimize.brentq(outside, 0.0, top, rtol=1e-8) * unit), least / 2)

    def p_value(self, distance: float) -> float:
        """The smallest 1 - confidence whose interval around an estimate at this distance from 0 leaves 0 out."""
        distance = abs(distance)
        if not self.freedom:
            return _normal_outside(distance, self.students)
        around = _normal_outside(distance, self.questions) if self._seeds_agree else self._mass_outside(distance)
        return max(around, _normal_outside(2 * distance, self.students))

    @property
    def _seeds_agree(self) -> bool:
        """Up to rounding: then nothing but the questions is left, which is normal."""
        return self.seeds <= 1e-12 * self.questions

    def _mass_outside(self, distance: float) -> float:
        """The posterior probability that the mean is farther than `distance` from its estimate."""
        v = self.freedom * self.seeds / _X
        log_weight = self.freedom / 2 * _LOG_X - _X / 2 + _MATCHING * np.log1p(self.questions / v)
        weight = np.exp(log_weight - log_weight.max())
        return float(weight @ (2 * special.ndtr(-distance / np.sqrt(v + self.questions))) / weight.sum())


def _normal_outside(distance: float, variance: float) -> float:
    """The probability that a normal number is farther than `distance` from its mean."""
    return float(2 * special.ndtr(-distance / np.sqrt(variance))) if variance else float(distance == 0)


def spread(values: np.ndarray, covariance: np.ndarray, *, count_seeds: bool) -> Spread:
    """The spread of the mean of values[S], with the covariance[S, S] of these over draws of questions."""
    S = len(values)
    students = max(float(covariance.mean()), 0.0)  # by rounding under 0 where the seeds' deviations cancel out
    if not count_seeds:
        return Spread(0.0, students, students, 0)
    questions = max((S * students - float(np.diag(covariance).mean())) / (S - 1), 0.0)
    return Spread(float(np.var(values, ddof=1)) / S, questions, students, S - 1)
