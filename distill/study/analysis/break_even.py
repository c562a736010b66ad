"""What a right answer must be worth for the dearer arm to pay.

An answer of the treatment costs c_t - c_c more and is right p_t - p_c more often, so with right answers worth v it gains
v (p_t - p_c) - (c_t - c_c): nothing at v* = (c_t - c_c) / (p_t - p_c). The interval of v* is Fieller's: all v at which
the interval of that gain holds 0. It is bounded only where the difference in accuracy is not 0 for certain; where that may
be nothing, so may be the gain at any price, and what is left is the least that v* can be.

What is spent once, on training and on the teacher's answers, is spread over N answers and added to the cost of each.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize

from distill.evaluation.statistics.intervals import Difference, Interval, difference
from distill.evaluation.statistics.resampling import Sample

ANSWERS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)  # N


@dataclass(frozen=True)
class BreakEven:
    """`usd`: v*, or None and why. `pays`: above v*, below it, always, never, or None where nobody can tell. `at_least`:
    the least that v* can be, where there is no upper end."""

    usd: Interval | None
    pays: str | None
    reason: str | None
    at_least: float | None = None

    def values(self) -> dict[str, Any]:
        usd = None if self.usd is None else asdict(self.usd)
        return {"usd_per_correct": usd, "pays": self.pays, "reason": self.reason, "at_least_usd": self.at_least}


def break_even(
    treatment: Sequence[Sample], control: Sequence[Sample], extra_usd: np.ndarray, *, confidence: float
) -> BreakEven:
    """Of paired scores, one sample a seed, and extra_usd[S], what an answer of the treatment costs more."""
    between, extra = difference(list(treatment), list(control)), np.asarray(extra_usd, dtype=float)
    per_seed = np.array([t.value - c.value for t, c in zip(treatment, control, strict=True)])
    interval, dearer = between.interval(confidence), float(extra.mean()) > 0
    if interval.low <= 0 <= interval.high:
        reason = "the difference in accuracy may be nothing"
        if not dearer or interval.high <= 0:
            return BreakEven(None, None, reason)
        return BreakEven(None, None, reason, _least(between, per_seed, extra, confidence))
    if interval.low > 0 and not dearer:
        return BreakEven(None, "always", "right more often and no dearer")
    if interval.high < 0 and extra.mean() >= 0:
        return BreakEven(None, "never", "right less often and no cheaper")
    if interval.high < 0:  # cheaper and worse: the control is what is paid for
        between = replace(between, value=-between.value, centre=-between.centre)
        per_seed, extra = -per_seed, -extra
    value = float(extra.mean()) / between.value
    low, high = _least(between, per_seed, extra, confidence), _most(between, per_seed, extra, confidence)
    if high is None:
        return BreakEven(None, None, "the difference in accuracy may be nothing", low)
    pays = "above" if interval.low > 0 else "below"
    return BreakEven(Interval(value, min(low, value), max(high, value)), pays, None)


def _outside(between: Difference, per_seed: np.ndarray, extra: np.ndarray, confidence: float, per_usd: float) -> float:
    """Whether 0 is out of the interval of the gain at v = 1 / per_usd: positive then, negative where it is in it."""
    spread = between.spread
    if spread.freedom:
        spread = replace(spread, seeds=float(np.var(per_seed - per_usd * extra, ddof=1)) / len(extra))
    return 1 - confidence - spread.p_value(between.centre - per_usd * float(extra.mean()))


def _least(between: Difference, per_seed: np.ndarray, extra: np.ndarray, confidence: float) -> float:
    """The smallest v whose interval of the gain holds 0; 0 where the costs may be equal."""
    outside = lambda per_usd: _outside(between, per_seed, extra, confidence, per_usd)  # noqa: E731
    start = between.centre / extra.mean()
    step = between.spread.half_width(confidence) / extra.mean()
    for _ in range(40):
        if outside(start + step) > 0:
            return 1 / float(optimize.brentq(outside, start, start + step, rtol=1e-9))
        step *= 2
    return 0.0


def _most(between: Difference, per_seed: np.ndarray, extra: np.ndarray, confidence: float) -> float | None:
    """The largest v whose interval of the gain holds 0; None where there is none."""
    outside = lambda per_usd: _outside(between, per_seed, extra, confidence, per_usd)  # noqa: E731
    at = between.centre / extra.mean()
    if outside(0.0) <= 0 or outside(at) >= 0:
        return None
    return 1 / float(optimize.brentq(outside, 0.0, at, rtol=1e-9))


def spread_over_answers(
    treatment: Sequence[Sample],
    control: Sequence[Sample],
    extra_usd: np.ndarray,
    one_off_usd: np.ndarray,
    *,
    confidence: float,
) -> list[dict[str, Any]]:
    """v* with one_off_usd[S], what is spent once on the treatment beyond the control, spread over N answers."""
    return [
        {
            "answers": N,
            **break_even(treatment, control, extra_usd + one_off_usd / N, confidence=confidence).values(),
        }
        for N in ANSWERS
    ]
