"""Intervals: questions are resampled, and training seeds too where there are enough of them.

Two sources of chance, two intervals. The questions: a bootstrap, whose draws of questions serve every student that was
asked them, so what is paired stays paired. For shares of right answers it is widened to hold the matching closed-form
score interval, because a bootstrap of answers that are all right (or never differ) has no width at all: Wilson (1927) for
one arm, Agresti & Min (2005) for a paired difference. The training seeds, where there are three or more: Student's t
interval of the mean over seeds; drawing three seeds again and again would make it half as wide as it is. The two are
added in quadrature on each side. With fewer seeds the interval speaks of these trained students only.
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
    values = [s.value for s in seeds]
    low, high = _percentiles([s.draws for s in seeds], confidence)
    if seeds[0].right is not None:
        n = len(seeds[0].right)
        wilson = stats.binomtest(round(np.mean(values) * n), n).proportion_ci(confidence, method="wilson")
        low, high = min(low, wilson.low), max(high, wilson.high)
    return _with_seeds(values, low, high, confidence, least=0.0)


def paired_difference(treatment: list[Sample], control: list[Sample], *, confidence: float = 0.95) -> Interval:
    """Treatment minus control, averaged over training seeds: the same questions, and the same seeds in the same order.

    Raises ValueError when the arms have different numbers of seeds: then there are no pairs.
    """
    if len(treatment) != len(control):
        raise ValueError(f"treatment has {len(treatment)} seeds and control {len(control)}; they are compared in pairs")
    pairs = list(zip(treatment, control, strict=True))
    low, high = _percentiles([t.draws - c.draws for t, c in pairs], confidence)
    if treatment[0].right is not None and control[0].right is not None:
        closed = _agresti_min(np.mean([t.right - c.right for t, c in pairs], axis=0), confidence)
        low, high = min(low, closed[0]), max(high, closed[1])
    return _with_seeds([t.value - c.value for t, c in pairs], low, high, confidence, least=-1.0)


def _percentiles(draws: list[np.ndarray], confidence: float) -> tuple[float, float]:
    """Of the mean over these students, on every resample of the questions."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.mean(draws, axis=0), [tail, 100 - tail])
    return float(low), float(high)


def _with_seeds(values: list[float], low: float, high: float, confidence: float, least: float) -> Interval:
    """Add what training seeds contribute to the interval low..high of the mean of `values`, one a seed.

    Every metric is a share, so nothing reaches past 1 or under `least`.
    """
    value, n, seeds = float(np.mean(values)), len(values), 0.0
    if n >= SEEDS_FOR_A_CLAIM:
        seeds = stats.t.ppf(0.5 + confidence / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
    below, above = np.hypot(max(value - low, 0.0), seeds), np.hypot(max(high - value, 0.0), seeds)
    return Interval(value, max(float(value - below), least), min(float(value + above), 1.0))


def _agresti_min(difference: np.ndarray, confidence: float) -> tuple[float, float]:
    """Wald interval of a mean paired difference (by question, in -1..1) after adding half an observation to each of
    the four cells: two questions more, of which one differs, half of it either way."""
    n = len(difference) + 2
    centre = difference.sum() / n
    variance = max((np.square(difference).sum() + 1) / n - centre**2, 0.0) / n
    half = stats.norm.ppf(0.5 + confidence / 2) * np.sqrt(variance)
    return float(centre - half), float(centre + half)
