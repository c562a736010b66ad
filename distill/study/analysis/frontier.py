"""The best accuracy for at most a cost: who is on the Pareto frontier, and what it is worth without the winner's luck.

Of many cells the one that looks best is partly the luckiest, so its accuracy on the questions and seeds that it was chosen
by is too high. Here it is chosen on one half of them and estimated on the other, and the other way round, and both are
averaged, over many ways to part them (cross-fitted; draws.py). Fewer than three seeds are not parted: then it is these
students that are spoken of.

Ties: of equal accuracy the cheaper is on the frontier; of equal cost the more accurate; of both equal, both are, and
the first is chosen. What may be chosen for at most a cost is decided by the costs over all questions.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from distill.evaluation.statistics.intervals import Interval
from distill.study.analysis.draws import Draws
from distill.study.analysis.points import Summary, accuracy_interval, cost_interval

FEWEST = 8  # questions that are parted in halves
ORACLE = "oracle"  # a bound that nobody can buy: a point that is never on the frontier


def on_frontier(cost: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """bool[..., P]: whether no other of the P points is as cheap and as accurate, and better in one of the two."""
    cheap, right = cost[..., None, :] <= cost[..., :, None], accuracy[..., None, :] >= accuracy[..., :, None]
    better = (cost[..., None, :] < cost[..., :, None]) | (accuracy[..., None, :] > accuracy[..., :, None])
    return ~(cheap & right & better).any(axis=-1)


def best(cost: np.ndarray, accuracy: np.ndarray, at: np.ndarray) -> np.ndarray:
    """int[..., C]: the most accurate of the points that cost[P] at most at[C], given accuracy[..., P]; the cheaper of
    equally accurate ones. Each of `at` must pay for a point."""
    order = np.argsort(cost, kind="stable")
    ordered = accuracy[..., order]
    highest = np.maximum.accumulate(ordered, axis=-1)
    new = np.ones(ordered.shape, bool)
    new[..., 1:] = ordered[..., 1:] > highest[..., :-1]
    leader = np.maximum.accumulate(np.where(new, np.arange(len(cost)), 0), axis=-1)
    affordable = np.searchsorted(cost[order], at, side="right") - 1
    return order[leader[..., affordable]]


def cross_fitted(cost: np.ndarray, draws: Draws, at: np.ndarray) -> np.ndarray:
    """float64[B, C]: the accuracy on either half of the best on the other, and the mean of both."""
    chosen = best(cost, draws.halves, at)
    found = draws.halves[:, ::-1] + draws.shifts[:, None]
    return np.take_along_axis(found, chosen, axis=-1).mean(axis=1)


def interval_of(splits: np.ndarray, draws: np.ndarray, around: Interval, confidence: float) -> Interval:
    """The mean of splits[K], with the interval that draws[B] give it, or that `around` an estimate that chooses nothing,
    whichever reaches farther: draws of what never varies are all the same.

    A draw parts seeds and questions in one way and the value is the mean over many, so what ways differ by is taken out
    of the draws' variance.
    """
    value, mean = float(splits.mean()), float(draws.mean())
    kept = max(1 - float(splits.var()) / float(draws.var()), 0.0) if draws.var() > 0 else 0.0
    low, high = np.sqrt(kept) * (np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2]) - mean)
    return Interval(
        value, value + min(float(low), around.low - around.value), value + max(float(high), around.high - around.value)
    )


def frontier(
    summaries: Sequence[Summary], cost: str, draws: Draws, splits: Draws, *, confidence: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """`points` and `frontier` of one cost in the results, of points that all have it."""
    costs = [cost_interval(s.costs[cost], confidence=confidence) for s in summaries]
    scores = [accuracy_interval(s.accuracy, confidence=confidence) for s in summaries]
    able = [i for i, s in enumerate(summaries) if s.label.kind != ORACLE]
    draws, splits = draws.of(able), splits.of(able)
    spent, right = np.array([costs[i].value for i in able]), np.array([scores[i].value for i in able])
    members = dict(zip(able, on_frontier(spent, right), strict=True))
    stability = dict(zip(able, on_frontier(draws.costs[cost], draws.accuracy).mean(axis=0), strict=True))
    points = [
        {
            "id": s.label.id,
            **{name: getattr(s.label, name) for name in ("kind", "size", "arm", "think", "mode", "thinking_budget")},
            "cost": asdict(costs[i]),
            "accuracy": asdict(scores[i]),
            "on_frontier": bool(members.get(i, False)),
            "stability": float(stability[i]) if i in stability else None,
        }
        for i, s in enumerate(summaries)
    ]
    at = np.unique(spent)
    steps = best(spent, right, at)
    parted = summaries[0].accuracy[0].questions >= FEWEST
    values, drawn = (cross_fitted(spent, d, at) if parted else d.accuracy[:, steps] for d in (splits, draws))
    ends = [interval_of(values[:, c], drawn[:, c], scores[able[i]], confidence) for c, i in enumerate(steps)]
    return points, {
        "id": [summaries[able[i]].label.id for i in steps],
        "cost": [float(value) for value in at],
        "accuracy": [end.value for end in ends],
        "low": [max(end.low, 0.0) for end in ends],
        "high": [min(end.high, 1.0) for end in ends],
        "not_cross_fitted": [float(value) for value in right[steps]],
        "cross_fitted": parted,
    }
