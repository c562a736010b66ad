"""Holm's correction over everything that a study declares: contrasts and interactions are one family.

The chance that any of its claims is false is at most 1 - confidence. What a study asks first - the contrasts that decide
verdicts, and interactions, each in its task's metric - has half the weight, so that many contrasts beside it do not
drown it; Holm (1979) is valid for any weights chosen before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def correct(
    contrasts: Sequence[dict[str, Any]], interactions: Sequence[dict[str, Any]], metrics: Mapping[str, str]
) -> None:
    """Add `p_holm` to each. `metrics`: the one of each task in which it is decided."""
    first = [bool(c["primary"]) for c in contrasts] + [i["metric"] == metrics[i["task"]] for i in interactions]
    entries, shares = [*contrasts, *interactions], {kind: 1 / max(first.count(kind), 1) for kind in (True, False)}
    corrected = weighted_holm([entry["p_value"] for entry in entries], [shares[kind] for kind in first])
    for entry, p in zip(entries, corrected, strict=True):
        entry["p_holm"] = p


def weighted_holm(p_values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Corrected p-values, in the order given; with equal weights Holm's own."""
    p, weight = np.asarray(p_values, dtype=float), np.asarray(weights, dtype=float)
    order = np.argsort(p / weight, kind="stable")
    left = np.cumsum(weight[order][::-1])[::-1]  # of what was not rejected before
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] / weight[order] * left), 1.0)
    return corrected.tolist()
