"""Intervals: questions are resampled, and training seeds too where there are enough of them.

The bootstrap is hierarchical: with three seeds or more, seeds are drawn with replacement, then questions; with fewer
the seeds stay as they are and the interval speaks of these trained students only. One draw of questions serves every
student that was asked them, so what is paired stays paired. For shares of right answers the percentile interval is
widened to hold the matching closed-form score interval, because a bootstrap of answers that are all right (or never
differ) has no width at all: Wilson (1927) for one arm, Agresti & Min (2005) for a paired difference.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from distill.tasks.task import Columns, Metric

RESAMPLES = 1000
SEEDS_FOR_A_CLAIM = 3


@dataclass(frozen=True)
class Interval:
    """A value and its interval at the stated confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Sample:
    """One student on one metric: its value, the value on every resample of the questions, and, where the metric is a
    share of right answers, which were right."""

    value: float
    draws: np.ndarray  # float64[RESAMPLES]
    right: np.ndarray | None  # float64[questions], 0 or 1


def resample(metric: Metric, columns: Columns) -> Sample:
    """Compute a metric on every resample. Students asked the same questions in the same order share the resamples."""
    columns = {name: np.asarray(values) for name, values in columns.items()}
    n = len(next(iter(columns.values())))
    rng = np.random.default_rng(n)
    weights = (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(RESAMPLES))
    draws = np.array([metric.value(columns, sample_weight=w) for w in weights])
    right = columns["correct"].astype(np.float64) if metric.name == "accuracy" else None
    return Sample(metric.value(columns), draws, right)


def score(seeds: list[Sample], *, confidence: float = 0.95) -> Interval:
    """A metric averaged over training seeds, one sample a seed."""
    value = float(np.mean([s.value for s in seeds]))
    picked = _picked_seeds(len(seeds))
    low, high = _percentiles(_average(seeds, picked), confidence)
    if seeds[0].right is not None:
        n = len(seeds[0].right)
        wilson = stats.binomtest(round(value * n), n).proportion_ci(confidence, method="wilson")
        low, high = min(low, wilson.low), max(high, wilson.high)
    return Interval(value, min(low, value), max(high, value))


def paired_difference(treatment: list[Sample], control: list[Sample], *, confidence: float = 0.95) -> Interval:
    """Treatment minus control, averaged over training seeds: the same questions, and the same seeds in the same order.

    Raises ValueError when the arms have different numbers of seeds: then there are no pairs.
    """
    if len(treatment) != len(control):
        raise ValueError(f"treatment has {len(treatment)} seeds and control {len(control)}; they are compared in pairs")
    value = float(np.mean([t.value - c.value for t, c in zip(treatment, control, strict=True)]))
    picked = _picked_seeds(len(treatment))
    low, high = _percentiles(_average(treatment, picked) - _average(control, picked), confidence)
    if treatment[0].right is not None and control[0].right is not None:
        difference = np.mean([t.right - c.right for t, c in zip(treatment, control, strict=True)], axis=0)
        closed = _agresti_min(difference, confidence)
        low, high = min(low, closed[0]), max(high, closed[1])
    return Interval(value, min(low, value), max(high, value))


def _picked_seeds(n: int) -> np.ndarray:
    """int64[RESAMPLES, n]: which seeds each resample averages."""
    if n < SEEDS_FOR_A_CLAIM:
        return np.tile(np.arange(n), (RESAMPLES, 1))
    return np.random.default_rng(n).integers(n, size=(RESAMPLES, n))


def _average(seeds: list[Sample], picked: np.ndarray) -> np.ndarray:
    draws = np.stack([s.draws for s in seeds], axis=1)  # [RESAMPLES, seeds]
    return np.take_along_axis(draws, picked, axis=1).mean(axis=1)


def _percentiles(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def _agresti_min(difference: np.ndarray, confidence: float) -> tuple[float, float]:
    """Wald interval of a mean paired difference (by question, in -1..1) after adding half an observation to each of
    the four cells: two questions more, of which one differs, half of it either way."""
    n = len(difference) + 2
    centre = difference.sum() / n
    variance = max((np.square(difference).sum() + 1) / n - centre**2, 0.0) / n
    half = stats.norm.ppf(0.5 + confidence / 2) * np.sqrt(variance)
    return float(centre - half), float(centre + half)
