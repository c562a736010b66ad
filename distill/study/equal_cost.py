"""The control of a comparison at equal inference cost: students of one arm whose answers cost less and more.

Hardly ever does a student cost just as much as another. So a student is compared with two: those of the arm, among its
sizes, whose mean FLOPs an answer enclose its own. It pays where it beats both by the margin, and does not where it beats
neither by it. That holds for a student in between too, wherever its accuracy would lie between theirs; nothing else is
assumed of it. Which two is chosen by cost alone, so accuracy has no part in whom it is compared with.

Both have to say it, an intersection-union test (Berger, 1982, Technometrics 24, 295-300): p is the larger of both, and 1 where one
difference is a gain and the other a loss; the interval reaches from the lowest end to the highest.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distill.evaluation.questions import Asked
from distill.study.found import FoundCell

Spends = Literal["as much", "less", "more"]


@dataclass(frozen=True)
class Enclosing:
    """The cheaper and the dearer cell; one alone where it costs just as much, or where all `spend` less or more."""

    cells: tuple[FoundCell, ...]
    spends: Spends


def enclosing(treatment: FoundCell, ladder: Iterable[FoundCell], a: Asked) -> Enclosing:
    """The cells of `ladder` that enclose the mean FLOPs of an answer of `treatment` to a task, over all seeds of each."""
    costs = sorted(((cell.mean(a, "flops"), cell) for cell in ladder), key=lambda one: one[0])
    at = treatment.mean(a, "flops")
    below, above = [one for one in costs if one[0] <= at], [one for one in costs if one[0] >= at]
    if not below:
        return Enclosing((above[0][1],), "more")
    if not above:
        return Enclosing((below[-1][1],), "less")
    ends = (below[-1],) if below[-1][0] == at else (below[-1], above[0])
    return Enclosing(tuple(cell for _, cell in ends), "as much")


def merged(parts: Sequence[dict[str, Any]], spends: Spends) -> dict[str, Any]:
    """What contrasts with each of the enclosing cells say together, the cheaper first."""
    points, share = [part["difference_points"] for part in parts], _share(parts)
    one_sign = len({math.copysign(1, p["value"]) for p in points if p["value"]}) <= 1
    together = lambda name: max(part[name] for part in parts) if one_sign else 1.0  # noqa: E731
    return parts[0] | {
        "difference_points": {
            "value": (1 - share) * points[0]["value"] + share * points[-1]["value"],
            "low": min(p["low"] for p in points),
            "high": max(p["high"] for p in points),
        },
        "p_value": together("p_value"),
        "p_value_students": together("p_value_students"),
        "detectable_points": max(part["detectable_points"] for part in parts),
        "per_seed": [],
        "n_seeds": min(part["n_seeds"] for part in parts),
        "subject": min((part["subject"] for part in parts), key=lambda s: s != "these trained students"),
        **dict.fromkeys(("token_factor", "token_factor_interval", "flops_factor", "flops_factor_interval")),
        "training_tokens_factor": None,
        "at_equal_cost": {
            "spends": spends,
            "between": [
                {"cell": part["control"]}
                | {name: part[name] for name in ("difference_points", "p_value", "n_seeds")}
                | {name: part[name] for name in ("flops_factor", "token_factor")}
                for part in parts
            ],
        },
    }


def _share(parts: Sequence[dict[str, Any]]) -> float:
    """How far the cost is from the first's to the last's, in its logarithm, along which accuracy grows about evenly."""
    low, high = (math.log(parts[i]["flops_factor"]) for i in (0, -1))
    return min(max(low / (low - high), 0.0), 1.0) if low > high else 0.0


def said(contrast: dict[str, Any]) -> str:
    """Whom it was compared with, as a sentence."""
    ends = [
        f"{end['cell']} at {1 / end['flops_factor']:.2g} times the FLOPs an answer ({d['value']:+.1f} points, {d['low']:+.1f} to "
        f"{d['high']:+.1f})"
        for end in contrast["at_equal_cost"]["between"]
        for d in [end["difference_points"]]
    ]
    which = {"as much": "", "less": ", the dearest there is", "more": ", the cheapest there is"}
    return f"It stands against {' and '.join(ends)}{which[contrast['at_equal_cost']['spends']]}."
