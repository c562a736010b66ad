"""Gains by kind of task: the mean over the tasks of one answer format, or of one domain.

These tasks and no others: their questions are drawn, the tasks are not. The same students answer all of them, so a
lucky seed is lucky on several tasks, and a seed's mean over tasks is what varies.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from distill.evaluation.statistics.intervals import difference
from distill.evaluation.statistics.resampling import Sample
from distill.study.analysis.combination import over_tasks
from distill.study.analysis.scaling import in_points

Sides = tuple[list[Sample], list[Sample]]  # treatment and control of one task, one sample a seed


def by_kind(kinds: Mapping[str, str], sides: Mapping[str, Sides], *, confidence: float) -> dict[str, dict[str, Any]]:
    """By kind, in the order of the tasks: `tasks` and `difference_points`. `kinds`: of tasks, by name; a task that has
    none is left out."""
    found = {}
    for kind in dict.fromkeys(kinds[name] for name in sides if name in kinds):
        tasks = [name for name in sides if kinds.get(name) == kind]
        treatment, control = (_means([sides[name][side] for name in tasks]) for side in (0, 1))
        interval = difference(treatment, control).interval(confidence)
        found[kind] = {"tasks": tasks, "difference_points": in_points(interval)}
    return found


def _means(of_tasks: Sequence[list[Sample]]) -> list[Sample]:
    return [over_tasks(of_seed) for of_seed in zip(*of_tasks, strict=True)]
