"""All analyses of a study, from what was found: `results["analysis"]`, which docs/results-schema.md describes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from distill.artifact import Artifact
from distill.evaluation.questions import Asked
from distill.evaluation.statistics.resampling import Sample
from distill.evaluation.statistics.significance import holm
from distill.study.analysis import draws as drawing
from distill.study.analysis import interactions
from distill.study.analysis.break_even import break_even, spread_over_answers
from distill.study.analysis.by_kind import by_kind
from distill.study.analysis.equal_cost import equal_cost
from distill.study.analysis.frontier import frontier
from distill.study.analysis.lengths import lengths
from distill.study.analysis.points import Label, Point, Summary, summary
from distill.study.analysis.prices import reasoning_ratios, teacher_usd, training_usd, usd_per_answer
from distill.study.analysis.scaling import Gain, in_points, scaling
from distill.study.comparators import TEACHER, AskedOnce, Majority
from distill.study.found import Found, FoundCell
from distill.study.routing.choices import Choice
from distill.study.rows import common_seeds
from distill.study.settings import StudySettings

COSTS = ("tokens", "flops")
ALL = "all"  # the mean over tasks


def analyse(
    settings: StudySettings,
    asked: list[Asked],
    found: Mapping[str, Found],
    traces: Mapping[str, Artifact] | None = None,
) -> dict[str, Any]:
    """Everything but what the contrasts say themselves. `found`: cells and comparators by id. `traces`: the sets of
    pairs by name, for what the teacher cost."""
    confidence, pairs = settings.confidence, list(_pairs(settings, asked, found))
    frontiers, at_equal_cost = _frontiers(asked, found, confidence)
    return {
        "frontier": frontiers,
        "equal_cost": at_equal_cost,
        "scaling": _scaling(settings, pairs),
        "by_format": _by_kind("format", {a.task.name: a.task.answer_format for a in asked}, pairs, confidence),
        "by_domain": _by_kind("domain", _domains(asked), pairs, confidence),
        "by_suite": _by_kind("suite", _suites(asked), pairs, confidence),
        "lengths": _lengths(asked, found, confidence),
        "break_even": [_break_even(settings, pair, traces or {}) for pair in pairs],
        "interactions": _interactions(settings, asked, found),
    }


# What is compared.


@dataclass(frozen=True)
class Pair:
    """A declared contrast in one size on one task; `names` are those of the preset."""

    a: Asked
    size: str
    names: tuple[str, str]
    treatment: Found
    control: Found

    @cached_property
    def seeds(self) -> list[int]:
        return common_seeds(self.treatment.seeds, self.control.seeds)

    def samples(self, metric: str = "accuracy") -> tuple[list[Sample], list[Sample]]:
        return self.treatment.samples(self.a, metric, self.seeds), self.control.samples(self.a, metric, self.seeds)


def _pairs(settings: StudySettings, asked: list[Asked], found: Mapping[str, Found]) -> Iterator[Pair]:
    """Of every declared contrast, each once: sizes and tasks in which both sides were scored and share a seed."""
    for names in dict.fromkeys((row.treatment, row.control) for row in settings.contrasts):
        for size in settings.students:
            for a in asked:
                pair = _pair(a, size.name, names, found)
                if pair is not None:
                    yield pair


def _pair(a: Asked, size: str, names: tuple[str, str], found: Mapping[str, Found]) -> Pair | None:
    sides = [found.get(name if name == TEACHER else f"{size}-{name}") for name in names]
    if None in sides or not all("accuracy" in side.metrics(a) for side in sides):
        return None
    pair = Pair(a, size, names, *sides)
    return pair if pair.seeds else None


def _label(found: Found) -> Label:
    if isinstance(found, FoundCell):
        arm = found.cell.arm
        asking = {name: getattr(arm, name) for name in ("think", "mode", "thinking_budget")}
        return Label(
            found.id,
            "cell",
            found.cell.size.name,
            found.shown,
            **asking,
            reasoned=max(reasoning_ratios(arm)) > 0,
        )
    if isinstance(found, Majority):
        of = _label(found.voters)
        return Label(found.id, "majority", of.size, of.arm, reasoned=of.reasoned)
    if isinstance(found, AskedOnce):
        kind = TEACHER if found.teacher is not None else "base"
        return Label(found.id, kind, found.size, reasoned=kind == TEACHER)
    assert isinstance(found, Choice)
    return Label(found.id, found.kind, found.size, found.thinks.shown, reasoned=True)


def _point(a: Asked, found: Found) -> Point:
    seeds = [None] if found.seeds is None else found.seeds
    table = lambda name: np.stack([found.per_question(a, name, seed) for seed in seeds])  # noqa: E731
    known = [name for name in COSTS if found.mean(a, name) is not None]
    return Point(
        _label(found),
        None if found.seeds is None else tuple(found.seeds),
        table("accuracy"),
        {name: table(name) for name in known},
    )


# One list of the results each.


def _frontiers(
    asked: list[Asked], found: Mapping[str, Found], confidence: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`frontier` and `equal_cost`, which look at the same draws."""
    by_task = {a.task.name: [_point(a, f) for f in found.values() if "accuracy" in f.metrics(a)] for a in asked}
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
    frontiers, at_equal_cost = [], []
    for name, view in views.items():
        for cost in COSTS:
            priced = view.with_cost(cost)
            if not priced.summaries:
                continue
            left_out = [s.label.id for s in view.summaries if cost not in s.costs]
            points, steps = frontier(priced.summaries, cost, priced.draws, priced.splits, confidence=confidence)
            frontiers.append({"task": name, "cost": cost, "points": points, "frontier": steps, "left_out": left_out})
            at_equal_cost += [{"task": name} | entry for entry in _equal_cost(priced, cost, None, confidence)]
        trained = view.of([i for i, s in enumerate(view.summaries) if s.label.id in training])
        if trained.summaries:
            flops = np.array([training[s.label.id] for s in trained.summaries])
            at_equal_cost += [
                {"task": name} | entry for entry in _equal_cost(trained, "training_flops", flops, confidence)
            ]
    return frontiers, at_equal_cost


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


def _scaling(settings: StudySettings, pairs: list[Pair]) -> list[dict[str, Any]]:
    """Of contrasts in two sizes or more whose parameters are known."""
    gains: dict[tuple[str, tuple[str, str]], list[Gain]] = {}
    for pair in pairs:
        parameters = _parameters(pair)
        if parameters is not None:
            trained = pair.treatment.seeds is not None or pair.control.seeds is not None
            gain = Gain(pair.size, parameters, *pair.samples(), trained)
            gains.setdefault((pair.a.task.name, pair.names), []).append(gain)
    return [
        {"task": task, "treatment": treatment, "control": control}
        | scaling(of_sizes, settings.margin_points, confidence=settings.confidence)
        for (task, (treatment, control)), of_sizes in gains.items()
        if len(of_sizes) > 1
    ]


def _parameters(pair: Pair) -> int | None:
    """Of the students of either side: they are of one size."""
    cells = [side for side in (pair.treatment, pair.control) if isinstance(side, FoundCell)]
    return next((m.student.summary["parameters"] for side in cells for m in side.members.values()), None)


def _domains(asked: list[Asked]) -> dict[str, str]:
    """The group of each benchmark; other tasks have none."""
    groups = {a.task.name: getattr(getattr(a.task, "benchmark", None), "group", None) for a in asked}
    return {name: group for name, group in groups.items() if group}


def _suites(asked: list[Asked]) -> dict[str, str]:
    """Domain and answer format together, as publications average over benchmarks."""
    formats = {a.task.name: a.task.answer_format for a in asked}
    return {name: f"{domain}/{formats[name]}" for name, domain in _domains(asked).items()}


def _by_kind(field: str, kinds: dict[str, str], pairs: list[Pair], confidence: float) -> list[dict[str, Any]]:
    grouped: dict[tuple[str, tuple[str, str]], list[Pair]] = {}
    for pair in pairs:
        grouped.setdefault((pair.size, pair.names), []).append(pair)
    entries = []
    for (size, (treatment, control)), group in grouped.items():
        # A mean over tasks needs the same seeds on all of them, and pairs have: seeds are of cells.
        sides = {pair.a.task.name: pair.samples() for pair in group}
        for kind, values in by_kind(kinds, sides, confidence=confidence).items():
            entries.append({field: kind, "size": size, "treatment": treatment, "control": control, **values})
    return entries


def _lengths(asked: list[Asked], found: Mapping[str, Found], confidence: float) -> list[dict[str, Any]]:
    return [
        {"cell": f.id, "task": a.task.name, **lengths(*_answers(f, a), confidence=confidence)}
        for f in found.values()
        if isinstance(f, FoundCell)
        for a in asked
    ]


def _answers(found: FoundCell, a: Asked) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether right, whether finished, and output tokens, each [S, Q, n]."""
    table = [
        [(x.correct, x.finished, x.thinking_tokens + x.answer_tokens) for x in member.graded.answers[a.task.name]]
        for member in found.members.values()
    ]
    right, finished, tokens = np.moveaxis(np.array(table), -1, 0).reshape(3, len(table), len(a.problems), -1)
    return right.astype(bool), finished.astype(bool), tokens


def _break_even(settings: StudySettings, pair: Pair, traces: Mapping[str, Artifact]) -> dict[str, Any]:
    entry = {"task": pair.a.task.name, "size": pair.size, "treatment": pair.names[0], "control": pair.names[1]}
    sides, seeds, confidence = (pair.treatment, pair.control), pair.seeds, settings.confidence
    each = [_known([usd_per_answer(side, pair.a, seed) for seed in seeds]) for side in sides]
    if any(usd is None for usd in each):
        return entry | {"measured": None, "reason": "an answer of one of both has no price"}
    training = [np.array([training_usd(side, seed) for seed in seeds]) for side in sides]
    teacher = [teacher_usd(settings, side, traces) for side in sides]
    samples, extra = pair.samples(), each[0] - each[1]
    measured = break_even(*samples, extra, confidence=confidence).values()
    measured["usd_per_answer"] = _both(each)
    measured["one_off_usd"] = {"training": _both(training), "teacher": _both(teacher)}
    once = training[0] - training[1]
    measured["with_training"] = spread_over_answers(*samples, extra, once, confidence=confidence)
    measured["with_training_and_teacher"] = (
        None
        if None in teacher
        else spread_over_answers(*samples, extra, once + teacher[0] - teacher[1], confidence=confidence)
    )
    return entry | {"measured": measured, "reason": None}


def _known(values: list[float | None]) -> np.ndarray | None:
    return None if None in values else np.array(values, dtype=float)


def _both(values: list[Any]) -> dict[str, float | None]:
    treatment, control = (None if value is None else float(np.mean(value)) for value in values)
    return {"treatment": treatment, "control": control}


def _interactions(settings: StudySettings, asked: list[Asked], found: Mapping[str, Found]) -> list[dict[str, Any]]:
    """Of every task and metric; Holm's correction is over all of them."""
    entries = []
    for row in settings.interactions:
        names = (row.treatment, row.control)
        for a in asked:
            pairs = [_pair(a, size, names, found) for size in row.students]
            if None in pairs:
                continue
            for metric in a.task.metrics:
                gains = [interactions.Gain(*pair.samples(metric)) for pair in pairs]
                interaction = interactions.interaction(*gains)
                entries.append(
                    {
                        "task": a.task.name,
                        "metric": metric,
                        "treatment": row.treatment,
                        "control": row.control,
                        "students": list(row.students),
                        "difference_points": in_points(interaction.interval(settings.confidence)),
                        "p_value": interaction.p_value,
                        "n_seeds": min(len(pair.seeds) for pair in pairs),
                        "n_questions": len(a.problems),
                    }
                )
    for entry, p in zip(entries, holm([entry["p_value"] for entry in entries]), strict=True):
        entry["p_holm"] = p
        entry["sentence"] = interactions.sentence(entry, settings.confidence)
    return entries
