"""Intervals: questions are resampled, and training seeds too where there are enough of them.

The bootstrap is hierarchical: with three seeds or more, seeds are drawn with replacement, then questions; with fewer
the seeds stay as they are and the interval speaks of these trained students only. One draw of questions serves every
seed and both arms of a comparison, so what is paired stays paired. For shares of right answers the percentile interval
is widened to hold the matching closed-form score interval, because a bootstrap of answers that are all right (or never
differ) has no width at all: Wilson (1927) for one arm, Agresti & Min (2005) for a paired difference.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from distill.tasks.task import Columns, Metric

RESAMPLES = 2000
SEEDS_FOR_A_CLAIM = 3


@dataclass(frozen=True)
class Interval:
    """A value and its interval at the stated confidence."""

    value: float
    low: float
    high: float


def score(metric: Metric, seeds: list[Columns], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """A metric averaged over training seeds. Each entry of `seeds` has the same questions in the same order."""
    value = float(np.mean([metric.value(columns) for columns in seeds]))
    low, high = _percentiles(_resampled([seeds], metric, seed)[0], confidence)
    if metric.name == "accuracy":
        n = _questions(seeds[0])
        wilson = stats.binomtest(round(value * n), n).proportion_ci(confidence, method="wilson")
        low, high = min(low, wilson.low), max(high, wilson.high)
    return Interval(value, min(low, value), max(high, value))


def paired_difference(
    metric: Metric, treatment: list[Columns], control: list[Columns], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Treatment minus control, averaged over seeds, the same questions in the same order in every entry."""
    values = [float(np.mean([metric.value(c) for c in arm])) for arm in (treatment, control)]
    draws = _resampled([treatment, control], metric, seed)
    low, high = _percentiles(draws[0] - draws[1], confidence)
    if metric.name == "accuracy":
        closed = _agresti_min(treatment, control, confidence)
        low, high = min(low, closed[0]), max(high, closed[1])
    value = values[0] - values[1]
    return Interval(value, min(low, value), max(high, value))


def _resampled(arms: list[list[Columns]], metric: Metric, seed: int) -> np.ndarray:
    """float64[arms, RESAMPLES]: the metric of each arm, averaged over (resampled) seeds, on resampled questions."""
    rng = np.random.default_rng(seed)
    n = _questions(arms[0][0])
    draws = np.empty((len(arms), RESAMPLES))
    equal = len({len(arm) for arm in arms}) == 1
    for b in range(RESAMPLES):
        weights = np.bincount(rng.integers(n, size=n), minlength=n)
        picked = None
        for a, arm in enumerate(arms):
            if picked is None or not equal:  # seeds of equal number are paired: same initialisation, same order
                picked = _draw_seeds(len(arm), rng)
            values = {s: metric.value(arm[s], sample_weight=weights) for s in set(picked)}
            draws[a, b] = np.mean([values[s] for s in picked])
    return draws


def _draw_seeds(n: int, rng: np.random.Generator) -> list[int]:
    return list(range(n)) if n < SEEDS_FOR_A_CLAIM else rng.integers(n, size=n).tolist()


def _percentiles(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def _agresti_min(treatment: list[Columns], control: list[Columns], confidence: float) -> tuple[float, float]:
    """Wald interval of a paired difference of shares after adding half an observation to each of the four cells."""
    mean = lambda arm: np.mean([np.asarray(c["correct"], dtype=np.float64) for c in arm], axis=0)  # noqa: E731
    difference = mean(treatment) - mean(control)
    n = len(difference) + 2
    centre = difference.sum() / n
    variance = max((np.square(difference).sum() + 1) / n - centre**2, 0.0) / n
    half = stats.norm.ppf(0.5 + confidence / 2) * np.sqrt(variance)
    return float(centre - half), float(centre + half)


def _questions(columns: Columns) -> int:
    return len(next(iter(columns.values())))
