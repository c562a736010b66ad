"""The control of a comparison at equal inference cost: students of one arm whose answers cost less and more.

Hardly ever does a student cost just as much as another. So a student is compared with two: those of the arm, among its
sizes, whose mean FLOPs an answer enclose its own. It does not pay where it beats neither by the margin. It pays where it
beats both, and all that are cheaper still, by the margin. A student in between is then beaten too, wherever its
accuracy would lie between theirs; nothing else is assumed of it. Which they are is decided by cost alone, so accuracy has no
part in whom it is compared with.

All have to say it, an intersection-union test (Berger, 1982, Technometrics 24, 295-300): p is the largest, and 1 where one
difference is a gain and another a loss; the interval reaches from the lowest end to the highest of the two.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distill.evaluation.questions import Asked
from distill.study.found import FoundCell
from distill.study.rows import common_seeds

Spends = Literal["as much", "less", "more"]


@dataclass(frozen=True)
class Enclosing:
    """`cells` that a treatment is compared with, the cheapest first, and how many times an answer of each it costs. Those
    that enclose it are the dearest of the cheaper and the cheapest of the dearer, or one that costs just as much; where all
    `spend` less or more than it, the nearest."""

    cells: tuple[FoundCell, ...]
    factors: tuple[float, ...]
    spends: Spends

    @property
    def near(self) -> tuple[bool, ...]:
        """Of each, whether it encloses the cost; of several that cost the same all do."""
        below = min((f for f in self.factors if f >= 1), default=None)
        above = max((f for f in self.factors if f <= 1), default=None)
        ends = {below} if below == 1 else {below, above}
        return tuple(f in ends for f in self.factors)


def enclosing(treatment: FoundCell, ladder: Iterable[FoundCell], a: Asked) -> Enclosing | None:
    """Those of `ladder` to compare with on a task. Means are over the training seeds in common with each; what has none
    is left out. None where nothing is left."""
    found: list[tuple[float, FoundCell]] = []
    for cell in ladder:
        if seeds := common_seeds(treatment.seeds, cell.seeds):
            found.append((treatment.mean(a, "flops", seeds) / cell.mean(a, "flops", seeds), cell))
    if not found:
        return None
    found.sort(key=lambda one: -one[0])
    cheaper, dearer = [one for one in found if one[0] >= 1], [one for one in found if one[0] < 1]
    kept = (
        cheaper if cheaper and cheaper[-1][0] == 1 else [*cheaper, *(one for one in dearer if one[0] == dearer[0][0])]
    )
    spends: Spends = "more" if not cheaper else "less" if not dearer and cheaper[-1][0] > 1 else "as much"
    return Enclosing(tuple(cell for _, cell in kept), tuple(factor for factor, _ in kept), spends)


def merged(parts: Sequence[dict[str, Any]], found: Enclosing) -> dict[str, Any]:
    """What contrasts with each of the cells say together."""
    points = [part["difference_points"] for part in parts]
    near = [part for part, is_near in zip(parts, found.near, strict=True) if is_near]
    one_sign = len({math.copysign(1, p["value"]) for p in points if p["value"]}) <= 1
    together = lambda name: max(part[name] for part in parts) if one_sign else 1.0  # noqa: E731
    kept = ("difference_points", "p_value", "per_seed", "n_seeds", "token_factor", "training_tokens_factor")
    return parts[0] | {
        "difference_points": {
            "value": _at_the_cost(
                [(f, p["value"]) for f, p, n in zip(found.factors, points, found.near, strict=True) if n]
            ),
            "low": min(p["low"] for p in points),
            "high": max(part["difference_points"]["high"] for part in near),
        },
        "p_value": together("p_value"),
        "p_value_students": together("p_value_students"),
        "detectable_points": max(part["detectable_points"] for part in near),
        "per_seed": [],
        "n_seeds": min(part["n_seeds"] for part in parts),
        "subject": min((part["subject"] for part in parts), key=lambda s: s != "these trained students"),
        **dict.fromkeys(("token_factor", "token_factor_interval", "flops_factor", "flops_factor_interval")),
        "training_tokens_factor": None,
        "at_equal_cost": {
            "spends": found.spends,
            "students": [
                {"cell": part["control"], "encloses": is_near, "flops_factor": factor}
                | {name: part[name] for name in kept}
                for part, factor, is_near in zip(parts, found.factors, found.near, strict=True)
            ],
        },
    }


def _at_the_cost(near: Sequence[tuple[float, float]]) -> float:
    """Between differences from students that cost less and more, in the logarithm of the cost, along which accuracy grows
    about evenly. `near`: by what factor, and the difference."""
    means = {f: [value for g, value in near if g == f] for f, _ in near}
    ends = [(math.log(f), sum(values) / len(values)) for f, values in means.items()]
    (low, first), (high, last) = ends[0], ends[-1]
    share = low / (low - high) if len(ends) > 1 else 0.0
    return (1 - share) * first + share * last


def said(contrast: dict[str, Any]) -> str:
    """Whom it was compared with, as a sentence."""
    each = [
        f"{one['cell']} at {1 / one['flops_factor']:.2g} times the FLOPs an answer ({d['value']:+.1f} points, {d['low']:+.1f} to "
        f"{d['high']:+.1f})"
        for one in contrast["at_equal_cost"]["students"]
        for d in [one["difference_points"]]
    ]
    which = {"as much": "", "less": ", than which none is dearer", "more": ", than which none is cheaper"}
    return f"It stands against {' and '.join(each)}{which[contrast['at_equal_cost']['spends']]}."
