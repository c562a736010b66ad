"""Tokens of right and of wrong answers of one cell.

The ratio's interval is that of its logarithm by the delta method, over questions and, with three or more, seeds: all
answers to one question are drawn together. Answers cut off at the limit are wrong and long by construction, so the ratio
is said of finished answers too.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from distill.study.analysis.combination import of_logarithm

FEWEST = 10  # questions with a right answer, and with a wrong one, for a ratio with an interval


def lengths(
    right: np.ndarray, finished: np.ndarray, tokens: np.ndarray, *, confidence: float
) -> dict[str, dict[str, Any] | None]:
    """`right`, `wrong`, `ratio` and `ratio_finished` of bool[S, Q, n], bool[S, Q, n] and tokens[S, Q, n]."""
    return {
        "right": _described(tokens[right]),
        "wrong": _described(tokens[~right]),
        "ratio": ratio(tokens, ~right, right, confidence=confidence),
        "ratio_finished": ratio(tokens, ~right & finished, right, confidence=confidence),
    }


def ratio(tokens: np.ndarray, over: np.ndarray, under: np.ndarray, *, confidence: float) -> dict[str, float] | None:
    """Mean tokens[S, Q, n] where `over` by those where `under`; None where either is true on too few questions."""
    if min(int(part.any(axis=(0, 2)).sum()) for part in (over, under)) < FEWEST:
        return None
    means = [float(tokens[part].mean()) for part in (over, under)]
    if min(means) <= 0:
        return None
    # What every answer adds to the logarithm of the ratio.
    shares = [part * (tokens - mean) / (part.mean() * mean) for part, mean in zip((over, under), means, strict=True)]
    relative = (shares[0] - shares[1]).mean(axis=2)
    return asdict(of_logarithm(means[0] / means[1], relative, confidence=confidence))


def _described(tokens: Sequence[float]) -> dict[str, Any]:
    values = np.asarray(tokens, dtype=float)
    if not len(values):
        return {"n": 0, "mean": None, "p50": None, "p90": None}
    p50, p90 = np.quantile(values, [0.5, 0.9])
    return {"n": len(values), "mean": float(values.mean()), "p50": float(p50), "p90": float(p90)}
