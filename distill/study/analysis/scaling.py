"""How a gain grows with the student: a straight line over the logarithm of its parameters, every size counting alike.

The interval of the slope counts questions, which all sizes share, and training seeds, which they do not. It says how
well the line through these sizes is known, and nothing of other sizes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import optimize

from distill.evaluation.statistics.intervals import Interval, difference
from distill.evaluation.statistics.resampling import Sample
from distill.study.analysis.combination import Combination, Term, combine, paired


@dataclass(frozen=True)
class Gain:
    """A contrast in one size, one sample a seed on both sides. `trained`: False where neither side has seeds."""

    size: str
    parameters: int
    treatment: list[Sample]
    control: list[Sample]
    trained: bool = True

    @cached_property
    def differences(self) -> list[Sample]:
        return paired(self.treatment, self.control)

    @property
    def value(self) -> float:
        return float(np.mean([sample.value for sample in self.differences]))

    def points(self, confidence: float) -> dict[str, float]:
        return in_points(difference(self.treatment, self.control).interval(confidence))


def scaling(gains: Sequence[Gain], margin_points: float, *, confidence: float) -> dict[str, Any]:
    """One contrast on one task, sizes in ascending order."""
    gains = sorted(gains, key=lambda gain: gain.parameters)
    slope = per_doubling(gains)
    crossing, reason = pays_from(gains, margin_points / 100, confidence=confidence)
    return {
        "sizes": [
            {"size": g.size, "parameters": g.parameters, "difference_points": g.points(confidence)} for g in gains
        ],
        "per_doubling_points": None if slope is None else in_points(slope.interval(confidence)),
        "pays_from_parameters": crossing,
        "reason": reason,
    }


def per_doubling(gains: Sequence[Gain]) -> Combination | None:
    """The slope per doubling of parameters, as a share; None with one number of parameters."""
    doublings = _doublings(gains)
    return _weighted(gains, _slope_weights(doublings)) if np.ptp(doublings) > 0 else None


def pays_from(
    gains: Sequence[Gain], margin: float, *, confidence: float
) -> tuple[dict[str, float | None] | None, str | None]:
    """The parameters from which the line reaches the margin (a share), or None and why there are none.

    Its interval are the sizes at which the line's own interval holds the margin (Fieller's); an end outside the sizes
    of the study is None.
    """
    slope = per_doubling(gains)
    if slope is None:
        return None, "one size"
    if slope.interval(confidence).low <= 0:
        return None, "the gain may not grow with size"
    doublings = _doublings(gains)
    weights, middle = _slope_weights(doublings), doublings.mean()
    least, most = float(doublings.min()), float(doublings.max())
    crossing = float(middle + (margin - np.mean([gain.value for gain in gains])) / slope.value)
    if not least < crossing <= most:
        return None, f"the line is {'above' if crossing <= least else 'below'} the margin in all sizes"

    def outside(x: float) -> float:
        """Whether the margin is out of the line's interval: positive then, negative where it is in it."""
        height = _weighted(gains, 1 / len(gains) + (x - middle) * weights)
        return 1 - confidence - height.spread.p_value(height.centre - margin)

    ends = []
    for end in (least, most):
        if outside(end) <= 0:
            ends.append(None)
        else:
            held = outside(crossing) < 0 < outside(end)
            ends.append(float(2 ** (optimize.brentq(outside, crossing, end, xtol=1e-4) if held else crossing)))
    return {"value": float(2**crossing), "low": ends[0], "high": ends[1]}, None


def in_points(interval: Interval) -> dict[str, float]:
    """In percentage points."""
    return asdict(Interval(100 * interval.value, 100 * interval.low, 100 * interval.high))


def _doublings(gains: Sequence[Gain]) -> np.ndarray:
    return np.log2([gain.parameters for gain in gains])


def _slope_weights(doublings: np.ndarray) -> np.ndarray:
    """Of the least-squares slope."""
    centred = doublings - doublings.mean()
    return centred / (centred @ centred)


def _weighted(gains: Sequence[Gain], weights: np.ndarray) -> Combination:
    return combine([Term(float(w), g.differences, g.trained) for w, g in zip(weights, gains, strict=True) if w])
