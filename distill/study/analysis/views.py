"""Every model of a study on one task, or over all of them: who is on the frontier, and who is better at equal cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.evaluation.questions import Asked
from distill.study.analysis import draws as drawing
from distill.study.analysis.equal_cost import equal_cost
from distill.study.analysis.frontier import frontier
from distill.study.analysis.points import Label, Point, Summary, summary
from distill.study.analysis.prices import reasoning_ratios
from distill.study.comparators import TEACHER, AskedOnce, Majority
from distill.study.found import Found, FoundCell
from distill.study.routing.choices import Choice
from distill.study.rows import ArmRow
from distill.study.settings import StudySettings

COSTS = ("tokens", "flops")
ALL = "all"  # the mean over tasks


def frontiers(
    settings: StudySettings, asked: list[Asked], found: Mapping[str, Found]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`frontier` and `equal_cost`, which look at the same draws."""
    confidence = settings.confidence
    by_task = {
        a.task.name: [_point(settings, a, f) for f in found.values() if "accuracy" in f.metrics(a)] for a in asked
    }
    by_task = {name: points for name, points in by_task.items() if points}
    points = [point for points in by_task.values() for point in points]
    seeds, parts = drawing.SeedDraws(points, drawing.DRAWS), drawing.SeedDraws(points, drawing.SPLITS)
    views = {
        name: _View(
            [summary([point]) for point in points],
            drawing.resample(points, COSTS, seeds),
            drawing.split(points, COSTS, parts),
        )
        for name, points in by_task.items()
    }
    everywhere = [
        id_ for id_ in found if all(any(s.label.id == id_ for s in view.summaries) for view in views.values())
    ]
    if len(views) > 1 and everywhere:
        views[ALL] = _over_tasks(by_task, views, everywhere)
    training = {name: flops for name, f in found.items() if (flops := _training_flops(f)) is not None}
    of_costs, at_equal_cost = [], []
    for name, view in views.items():
        for cost in COSTS:
            priced = view.with_cost(cost)
            if not priced.summaries:
                continue
            left_out = [s.label.id for s in view.summaries if cost not in s.costs]
            points, steps = frontier(priced.summaries, cost, priced.draws, priced.splits, confidence=confidence)
            of_costs.append({"task": name, "cost": cost, "points": points, "frontier": steps, "left_out": left_out})
            at_equal_cost += [{"task": name} | entry for entry in _equal_cost(priced, cost, None, confidence)]
        trained = view.of([i for i, s in enumerate(view.summaries) if s.label.id in training])
        if trained.summaries:
            flops = np.array([training[s.label.id] for s in trained.summaries])
            at_equal_cost += [
                {"task": name} | entry for entry in _equal_cost(trained, "training_flops", flops, confidence)
            ]
    return of_costs, at_equal_cost


@dataclass(frozen=True)
class _View:
    """What there is of one task, or over several, and its draws; one place a model in all three."""

    summaries: list[Summary]
    draws: drawing.Draws
    splits: drawing.Draws

    def of(self, places: list[int]) -> "_View":
        return _View([self.summaries[i] for i in places], self.draws.of(places), self.splits.of(places))

    def with_cost(self, cost: str) -> "_View":
        return self.of([i for i, s in enumerate(self.summaries) if cost in s.costs])


def _over_tasks(by_task: dict[str, list[Point]], views: dict[str, _View], ids: list[str]) -> _View:
    """Means over all tasks, of those asked on all of them."""
    places = {name: {p.label.id: i for i, p in enumerate(points)} for name, points in by_task.items()}
    chosen = [views[name].of([places[name][id_] for id_ in ids]) for name in by_task]
    return _View(
        [summary([points[places[name][id_]] for name, points in by_task.items()]) for id_ in ids],
        drawing.over_tasks([view.draws for view in chosen]),
        drawing.over_tasks([view.splits for view in chosen]),
    )


def _training_flops(found: Found) -> float | None:
    return found.mean_of(lambda member: member.student.summary["flops"]) if isinstance(found, FoundCell) else None


def _equal_cost(view: _View, cost: str, fixed: np.ndarray | None, confidence: float) -> list[dict[str, Any]]:
    labels = [s.label for s in view.summaries]
    controls = [i for i, label in enumerate(labels) if not label.reasoned]
    treatments = [i for i, label in enumerate(labels) if label.reasoned and label.kind in ("cell", "router")]
    if not controls:
        return []
    return [
        equal_cost(view.summaries, cost, fixed, i, controls, view.draws, view.splits, confidence=confidence)
        for i in treatments
    ]


def _label(settings: StudySettings, found: Found) -> Label:
    if isinstance(found, FoundCell):
        arm = found.cell.arm
        asking = {name: getattr(arm, name) for name in ("think", "mode", "thinking_budget")}
        return Label(
            found.id,
            "cell",
            found.cell.size.name,
            found.shown,
            **asking,
            reasoned=any(max(reasoning_ratios(one)) > 0 for one in _learned(settings, found)),
        )
    if isinstance(found, Majority):
        of = _label(settings, found.voters)
        return Label(found.id, "majority", of.size, of.arm, reasoned=of.reasoned)
    if isinstance(found, AskedOnce):
        kind = TEACHER if found.teacher is not None else "base"
        return Label(found.id, kind, found.size, reasoned=kind == TEACHER)
    assert isinstance(found, Choice)
    return Label(found.id, found.kind, found.size, found.thinks.shown, reasoned=True)


def _learned(settings: StudySettings, found: FoundCell) -> list[ArmRow]:
    """The arms that made a cell's students: its own, and where they go on from another's that one too."""
    member = found.cell.students()[0]
    arms = [member.cell.arm]
    while (member := member.origin(settings)) is not None:
        arms.append(member.cell.arm)
    return arms


def _point(settings: StudySettings, a: Asked, found: Found) -> Point:
    seeds = [None] if found.seeds is None else found.seeds
    table = lambda name: np.stack([found.per_question(a, name, seed) for seed in seeds])  # noqa: E731
    known = [name for name in COSTS if found.mean(a, name) is not None]
    return Point(
        _label(settings, found),
        None if found.seeds is None else tuple(found.seeds),
        table("accuracy"),
        {name: table(name) for name in known},
    )
