"""What the statistics of a trace set are made of: shares with an interval, lengths, and a projection to more questions.

The unit is the question. Several samples of one question say less than as many questions, so an interval counts them
as their variance within and between questions says (the design effect of cluster sampling).
"""

import math
from typing import Any

import numpy as np

CONFIDENCE = 0.95
PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
_Z = 1.959963984540054
_RESAMPLES = 1000
_MOST_GROUPS = 10_000


def share(flags: np.ndarray, places: np.ndarray) -> dict[str, Any]:
    """The share of true flags with Wilson's interval. `places` says whose question a row is; both of n rows."""
    n = len(flags)
    found = {"value": None, "low": None, "high": None, "count": int(flags.sum()), "of": n}
    if n == 0:
        return found
    value = found["count"] / n
    low, high = wilson(value, _effective(flags.astype(np.float64), places, value))
    return found | {"value": value, "low": low, "high": high}


def wilson(value: float, n: float) -> tuple[float, float]:
    """Wilson's (1927) interval of a share of `n` independent rows, at 95 %."""
    centre = (value + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(value * (1 - value) / n + _Z**2 / (4 * n**2))
    return max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value))


def _effective(flags: np.ndarray, places: np.ndarray, value: float) -> float:
    """How many independent rows say as much about the share as these do."""
    n, (_, question) = len(flags), np.unique(places, return_inverse=True)
    questions = int(question.max()) + 1
    if questions == n:
        return n
    if value in (0.0, 1.0) or questions == 1:
        return questions  # nothing can be said of the variance within a question
    residual = np.bincount(question, weights=flags - value)
    variance = questions / (questions - 1) * (residual @ residual) / n**2
    return n if variance == 0 else min(max(value * (1 - value) / variance, 1.0), n)


def lengths(values: np.ndarray) -> dict[str, Any] | None:
    """Total, mean, percentiles and histogram of lengths int64[n]; None where there are none."""
    if len(values) == 0:
        return None
    total = exact_sum(values)
    return {
        "total": total,
        "mean": total / len(values),
        "percentiles": {
            f"p{p}": float(q) for p, q in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)
        },
        "histogram": histogram(values),
    }


def exact_sum(values: np.ndarray) -> int:
    """Of int64[n], also where it does not fit into 64 bits."""
    if len(values) and int(np.abs(values).max()) > 2**63 // len(values) - 1:
        return sum(values.tolist())
    return int(values.sum())


def histogram(values: np.ndarray) -> dict[str, list[int]]:
    """Counts of lengths int64[n] between edges a quarter of an octave apart: counts[i] of them are at least edges[i] and
    less than edges[i + 1]. Bins at either end in which nothing lies are left out."""
    edges = _edges(int(values.max()))
    counts = np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges) - 1)
    filled = np.flatnonzero(counts)
    first, last = int(filled[0]), int(filled[-1])
    return {"edges": edges[first : last + 2].tolist(), "counts": counts[first : last + 1].tolist()}


def _edges(most: int) -> np.ndarray:
    steps = math.ceil(4 * math.log2(max(most, 1) + 1)) + 2
    return np.unique([0, *(min(round(2 ** (k / 4)), 2**63 - 1) for k in range(steps))]).astype(np.int64)


def project(totals: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(expected, low, high) float64[k] of the sums over `n` further questions, from what each of q questions came to:
    totals float64[q, k].

    A bootstrap over questions for the mean, widened by sqrt(1 + q / n) for the chance in the new ones. Above 10,000
    questions random groups of them are drawn, which have the same variance. nan where q is 1: that has no variance.
    """
    q = len(totals)
    mean = totals.mean(0)
    if q < 2:
        return n * mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    rng = np.random.default_rng(q)
    group = rng.permutation(q) % min(q, _MOST_GROUPS)
    sizes = np.bincount(group).astype(np.float64)
    sums = np.stack([np.bincount(group, weights=column) for column in totals.T], axis=1)
    draws = np.empty((_RESAMPLES, totals.shape[1]))
    for i in range(_RESAMPLES):
        weights = np.bincount(rng.integers(len(sizes), size=len(sizes)), minlength=len(sizes))
        draws[i] = weights @ sums / (weights @ sizes)
    wider = mean + (draws - mean) * math.sqrt(1 + q / n)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(wider, [tail, 100 - tail], axis=0)
    return n * mean, n * np.clip(low, 0, None), n * high
