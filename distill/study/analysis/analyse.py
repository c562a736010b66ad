"""All analyses of a study, from what was found: `results["analysis"]`, which docs/results-schema.md describes."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from distill.artifact import Artifact
from distill.evaluation.questions import Asked
from distill.evaluation.statistics.resampling import Sample
from distill.study.analysis import interactions
from distill.study.analysis.break_even import break_even, spread_over_answers
from distill.study.analysis.by_kind import by_kind
from distill.study.analysis.combination import over_tasks
from distill.study.analysis.lengths import lengths
from distill.study.analysis.prices import reasoning_ratios, teacher_usd, training_usd, usd_per_answer
from distill.study.analysis.scaling import Gain, in_points, scaling
from distill.study.analysis.seed_sd import Variance, pooled, ratio, variance
from distill.study.analysis.views import ALL, frontiers
from distill.study.comparators import TEACHER
from distill.study.found import Found, FoundCell
from distill.study.rows import common_seeds
from distill.study.settings import StudySettings


def analyse(
    settings: StudySettings,
    asked: list[Asked],
    found: Mapping[str, Found],
    traces: Mapping[str, Artifact] | None = None,
) -> dict[str, Any]:
    """Everything but what the contrasts say themselves. `found`: cells and comparators by id. `traces`: the sets of
    pairs by name, for what the teacher cost. Interactions lack what follows from all that was declared (family.py)."""
    confidence, pairs = settings.confidence, list(_pairs(settings, asked, found))
    of_costs, at_equal_cost = frontiers(settings, asked, found)
    return {
        "frontier": of_costs,
        "equal_cost": at_equal_cost,
        "scaling": _scaling(settings, pairs),
        "by_format": _by_kind("format", {a.task.name: a.task.answer_format for a in asked}, pairs, confidence),
        "by_domain": _by_kind("domain", _domains(asked), pairs, confidence),
        "by_suite": _by_kind("suite", _suites(asked), pairs, confidence),
        "lengths": _lengths(asked, found, confidence),
        "seed_sd": _seed_sd(asked, found, confidence),
        "seed_sd_of_kinds": _seed_sd_of_kinds(asked, found, confidence),
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
    metric: str = "accuracy"  # in which its task is decided, where both sides have that

    @cached_property
    def seeds(self) -> list[int]:
        return common_seeds(self.treatment.seeds, self.control.seeds)

    def samples(self, metric: str | None = None) -> tuple[list[Sample], list[Sample]]:
        metric = metric or self.metric
        return self.treatment.samples(self.a, metric, self.seeds), self.control.samples(self.a, metric, self.seeds)


def _pairs(settings: StudySettings, asked: list[Asked], found: Mapping[str, Found]) -> Iterator[Pair]:
    """Of every declared contrast, each once: sizes and tasks in which both sides were scored and share a seed."""
    metrics = settings.metrics(a.task.name for a in asked)
    for names in dict.fromkeys((row.treatment, row.control) for row in settings.contrasts):
        for size in settings.students:
            for a in asked:
                pair = _pair(a, size.name, names, found, metrics[a.task.name])
                if pair is not None:
                    yield pair


def _pair(
    a: Asked, size: str, names: tuple[str, str], found: Mapping[str, Found], metric: str = "accuracy"
) -> Pair | None:
    sides = [found.get(name if name == TEACHER else f"{size}-{name}") for name in names]
    if None in sides or not all("accuracy" in side.metrics(a) for side in sides):
        return None
    pair = Pair(a, size, names, *sides, metric if all(metric in side.metrics(a) for side in sides) else "accuracy")
    return pair if pair.seeds else None


# One list of the results each.


def _scaling(settings: StudySettings, pairs: list[Pair]) -> list[dict[str, Any]]:
    """Of contrasts in two sizes or more whose parameters are known."""
    gains: dict[tuple[str, str, tuple[str, str]], list[Gain]] = {}
    for pair in pairs:
        parameters = _parameters(pair)
        if parameters is not None:
            trained = pair.treatment.seeds is not None or pair.control.seeds is not None
            gain = Gain(pair.size, parameters, *pair.samples(), trained)
            gains.setdefault((pair.a.task.name, pair.metric, pair.names), []).append(gain)
    return [
        {"task": task, "metric": metric, "treatment": treatment, "control": control}
        | scaling(of_sizes, settings.margin_points, confidence=settings.confidence)
        for (task, metric, (treatment, control)), of_sizes in gains.items()
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


def _seed_sd(asked: list[Asked], found: Mapping[str, Found], confidence: float) -> list[dict[str, Any]]:
    """Of every cell with two training seeds or more, on every task and on their mean."""
    entries = []
    for cell in _of_several_seeds(found):
        for name, tasks in _views(asked):
            of_seeds = _variance(cell, tasks)
            thinks = [[m.evaluation.summary[a.task.name]["think_rate"] for a in tasks] for m in cell.members.values()]
            entries.append(
                {
                    "cell": cell.id,
                    "task": name,
                    "n_seeds": len(cell.seeds),
                    "sd_points": in_points(of_seeds.sd(confidence)),
                    "of_questions_points": 100 * float(np.sqrt(of_seeds.of_questions)),
                    "think_rate_per_seed": [float(np.mean(rates)) for rates in thinks],
                }
            )
    return entries


def _seed_sd_of_kinds(asked: list[Asked], found: Mapping[str, Found], confidence: float) -> list[dict[str, Any]]:
    """Of arms with all or no reasoning (`pure`), and of each way to have some, over all tasks. Arms that are asked in a way
    of their own are left out: their students stand there already, or are made to do the same."""
    name, tasks = _views(asked)[-1]
    kinds: dict[str, dict[str, Variance]] = {}
    for cell in _of_several_seeds(found):
        arm, ratios = cell.cell.arm, set(reasoning_ratios(cell.cell.arm))
        if arm.think is None and arm.mode is None and arm.thinking_budget is None:
            kind = "pure" if ratios in ({0}, {1}) else cell.shown.split(":")[0]
            kinds.setdefault(kind, {})[cell.id] = _variance(cell, tasks)
    of_kinds = {kind: pooled(cells.values()) for kind, cells in kinds.items()}
    pure = of_kinds.get("pure")
    return [
        {
            "kind": kind,
            "task": name,
            "cells": list(kinds[kind]),
            "freedom": one.freedom,
            "sd_points": in_points(one.sd(confidence)),
            "of_questions_points": 100 * float(np.sqrt(one.of_questions)),
            "over_pure": None if pure in (None, one) else asdict(ratio(one, pure, confidence=confidence)),
        }
        for kind, one in of_kinds.items()
    ]


def _of_several_seeds(found: Mapping[str, Found]) -> list[FoundCell]:
    return [f for f in found.values() if isinstance(f, FoundCell) and len(f.seeds) > 1]


def _views(asked: list[Asked]) -> list[tuple[str, list[Asked]]]:
    """Every task, and last all of them."""
    each = [(a.task.name, [a]) for a in asked]
    return each if len(asked) == 1 else [*each, (ALL, asked)]


def _variance(cell: FoundCell, tasks: list[Asked]) -> Variance:
    """Of the seeds' accuracies, each a mean over tasks."""
    of_tasks = [cell.samples(a, "accuracy", cell.seeds) for a in tasks]
    return variance([over_tasks(of_seed) for of_seed in zip(*of_tasks, strict=True)])


def _break_even(settings: StudySettings, pair: Pair, traces: Mapping[str, Artifact]) -> dict[str, Any]:
    entry = {"task": pair.a.task.name, "size": pair.size, "treatment": pair.names[0], "control": pair.names[1]}
    sides, seeds, confidence = (pair.treatment, pair.control), pair.seeds, settings.confidence
    each = [_known([usd_per_answer(side, pair.a, seed) for seed in seeds]) for side in sides]
    if any(usd is None for usd in each):
        return entry | {"measured": None, "reason": "an answer of one of both has no price"}
    training = [np.array([training_usd(side, seed) for seed in seeds]) for side in sides]
    teacher = [teacher_usd(settings, side, traces) for side in sides]
    samples, extra = pair.samples("accuracy"), each[0] - each[1]
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
    """Of every task and metric."""
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
    return entries
