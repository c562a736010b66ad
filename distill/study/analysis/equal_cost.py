"""Students with reasoning against those without it that cost as much.

No student without reasoning costs just as much as one with it, so its accuracy at that cost is read from a line between
the two on their frontier that enclose it, over the logarithm of the cost, along which accuracy grows about evenly: what a
student in between would reach. Two students that share the questions reach less at that mean cost, so the line asks more
of reasoning, not less. Who is on that frontier is decided on one half of seeds and questions and estimated on the other, as in
frontier.py. Beyond the dearest on the frontier the best there is stands for it, since nobody has to spend more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.study.analysis.combination import Term, combine
from distill.study.analysis.draws import Draws
from distill.study.analysis.frontier import FEWEST, interval_of
from distill.study.analysis.points import Summary


@dataclass(frozen=True)
class Bracket:
    """Where a cost lies among the members of a frontier: each int[...] but `share`, how far it is from `below` to
    `above`, float64[...]. Both are the same member where the cost is outside; `cheaper`: of all of them."""

    below: np.ndarray
    above: np.ndarray
    share: np.ndarray
    cheaper: np.ndarray
    beyond: np.ndarray


def bracket(cost: np.ndarray, accuracy: np.ndarray, at: np.ndarray) -> Bracket:
    """The members of the frontier of cost[..., P] and accuracy[..., P] around at[...]."""
    P = cost.shape[-1]
    order = np.lexsort((-accuracy, np.broadcast_to(cost, accuracy.shape)), axis=-1)
    ordered, right = (np.take_along_axis(np.broadcast_to(x, accuracy.shape), order, axis=-1) for x in (cost, accuracy))
    member = np.ones(right.shape, bool)
    member[..., 1:] = right[..., 1:] > np.maximum.accumulate(right, axis=-1)[..., :-1]
    place, paid = np.arange(P), ordered <= at[..., None]
    low = np.where(member & paid, place, -1).max(axis=-1)
    high = np.where(member & ~paid, place, P).min(axis=-1)
    cheaper, beyond = low < 0, high == P
    low, high = np.where(cheaper, high, low), np.where(beyond, low, high)
    costs = np.take_along_axis(ordered, np.stack([low, high], axis=-1), axis=-1)
    logs = np.log(np.maximum(costs, 1e-12))
    width = logs[..., 1] - logs[..., 0]
    share = np.divide(np.log(np.maximum(at, 1e-12)) - logs[..., 0], width, out=np.zeros_like(width), where=width > 0)
    members = np.take_along_axis(order, np.stack([low, high], axis=-1), axis=-1)
    return Bracket(members[..., 0], members[..., 1], share, cheaper, beyond)


def read(found: Bracket, accuracy: np.ndarray) -> np.ndarray:
    """float64[...]: the accuracy[..., P] on the line."""
    below, above = (
        np.take_along_axis(accuracy, place[..., None], axis=-1)[..., 0] for place in (found.below, found.above)
    )
    return (1 - found.share) * below + found.share * above


def differences(draws: Draws, cost: np.ndarray, treatment: int, controls: Sequence[int], *, parted: bool) -> np.ndarray:
    """float64[B]: the treatment's accuracy less that of the controls at its cost[B, P], which are chosen on one half and
    estimated on the other; the mean of both ways. Not `parted`, both halves are all questions."""
    controls = list(controls)
    halves = draws.halves if parted else np.stack([draws.accuracy - draws.shifts] * 2, axis=1)
    costs = np.broadcast_to(cost[:, None], halves.shape)
    found = bracket(costs[..., controls], halves[..., controls], costs[..., treatment])
    other = halves[:, ::-1] + draws.shifts[:, None]
    return (other[..., treatment] - read(found, other[..., controls])).mean(axis=1)


def equal_cost(
    summaries: Sequence[Summary],
    cost: str,
    fixed: np.ndarray | None,
    treatment: int,
    controls: Sequence[int],
    draws: Draws,
    splits: Draws,
    *,
    confidence: float,
) -> dict[str, Any]:
    """One treatment at one cost. `fixed`: costs[P] that do not vary with the questions, such as of training."""
    mean = lambda seeds: np.mean([sample.value for sample in seeds])  # noqa: E731
    spent = fixed if fixed is not None else np.array([mean(s.costs[cost]) for s in summaries])
    right = np.array([mean(s.accuracy) for s in summaries])
    controls = list(controls)
    found = bracket(spent[controls], right[controls], np.asarray(spent[treatment]))
    share = float(found.share)
    ends = [(1 - share, controls[int(found.below)]), (share, controls[int(found.above)])]
    ends = [(weight, i) for weight, i in ends if weight]
    entry = {
        "id": summaries[treatment].label.id,
        "cost": cost,
        "at": float(spent[treatment]),
        "between": [summaries[i].label.id for _, i in ends],
        "beyond": bool(found.beyond),
    }
    if found.cheaper:
        return entry | {
            "between": [],
            "control_accuracy": None,
            "difference_points": None,
            "reason": "cheaper than everything without reasoning",
        }
    parted = summaries[treatment].accuracy[0].questions >= FEWEST
    values, drawn = (
        differences(
            d,
            np.broadcast_to(fixed, d.accuracy.shape) if fixed is not None else d.costs[cost],
            treatment,
            controls,
            parted=parted,
        )
        for d in (splits, draws)
    )
    terms = [Term(1.0, summaries[treatment].accuracy, summaries[treatment].seeds is not None)]
    terms += [Term(-weight, summaries[i].accuracy, summaries[i].seeds is not None) for weight, i in ends]
    plain = combine(terms, reach=1.0).interval(confidence)
    difference = interval_of(values, drawn, plain, confidence)
    return entry | {
        # The difference is a mean over two halves of the questions, so this can miss the share of them by a little.
        "control_accuracy": min(1.0, max(0.0, float(right[treatment] - difference.value))),
        "difference_points": {
            "value": 100 * difference.value,
            "low": 100 * max(difference.low, -1.0),
            "high": 100 * min(difference.high, 1.0),
        },
        "reason": None,
    }
