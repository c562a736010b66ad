"""Ratios of paired measurements, with the interval that repeating them gives."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, Any]:
    """Numerator over denominator, measured together in each round.

    {"value": geometric mean of the rounds' ratios, "low", "high": 95 % t-interval of their logarithm's mean, None with
    a single round, "rounds": the ratios}. All None when a round has no ratio (a denominator of 0, an infinite cost).
    """
    a, b = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    usable = len(a) > 0 and np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()
    if not usable:
        return {"value": None, "low": None, "high": None, "rounds": []}
    logs = np.log(a / b)
    mean = logs.mean()
    low = high = None
    if len(logs) > 1:
        half = stats.t.ppf(0.5 + CONFIDENCE / 2, len(logs) - 1) * stats.sem(logs)
        low, high = float(np.exp(mean - half)), float(np.exp(mean + half))
    return {"value": float(np.exp(mean)), "low": low, "high": high, "rounds": np.exp(logs).tolist()}


def shown(value: dict[str, Any]) -> str:
    """A ratio for a table: `2.61x (2.48-2.75)`."""
    if value["value"] is None:
        return "-"
    if value["low"] is None:
        return f"{value['value']:.3g}x"
    return f"{value['value']:.3g}x ({value['low']:.3g}-{value['high']:.3g})"
