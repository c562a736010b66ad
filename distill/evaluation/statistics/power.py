"""How small a difference a study could have seen: after it, from the spread it found; before, from assumptions."""

import math

import numpy as np
from scipy import special

from distill.evaluation.statistics.intervals import SEEDS_FOR_A_CLAIM
from distill.evaluation.statistics.seeds_and_questions import Spread

POWER = 0.8


def minimum_detectable_difference(spread: Spread, *, confidence: float = 0.95, power: float = POWER) -> float:
    """The true difference whose interval leaves 0 out with the probability `power`, as a share; at most 1.

    With seeds the t-test's power counts, at Satterthwaite's degrees of freedom for the two parts of the spread;
    without, the normal test's: (z of confidence + z of power) standard errors. As the interval, it is at least half of
    that for these very students.
    """
    students = (special.ndtri(0.5 + confidence / 2) + special.ndtri(power)) * math.sqrt(spread.students)
    if not spread.freedom:
        return min(float(students), 1.0)
    variance = spread.seeds + spread.questions
    freedom = spread.freedom * (variance / spread.seeds) ** 2 if spread.seeds > 0 else math.inf
    if freedom > 1e4:
        errors = special.ndtri(0.5 + confidence / 2) + special.ndtri(power)
    else:
        from statsmodels.stats.power import TTestPower

        nobs = freedom + 1
        effect = TTestPower().solve_power(None, nobs=nobs, alpha=1 - confidence, power=power)
        errors = np.asarray(effect).item() * math.sqrt(nobs)
    return min(max(float(errors * math.sqrt(variance)), float(students) / 2), 1.0)


def expected_spread(questions: int, discordance: float, *, seeds: int = 1, seed_spread: float = 0.0) -> Spread:
    """The spread of a paired difference to reckon with before a study.

    `discordance`: the share of questions on which the arms will differ. `seed_spread`: the standard deviation of one
    seed's difference over seeds, as a share. All seeds are taken to differ on the same questions, the worst case.
    """
    of_questions = discordance / questions
    if seeds < SEEDS_FOR_A_CLAIM:
        return Spread(0.0, of_questions, of_questions, 0)
    return Spread(seed_spread**2 / seeds, of_questions, of_questions, seeds - 1)
