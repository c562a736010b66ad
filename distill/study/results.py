"""What a study found, as one dictionary: cells, contrasts and verdicts. docs/results-schema.md describes it.

Everything that depends on a clock lies under a key named `measured`; the rest is the same whenever the study is run.
"""

import os
import platform
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers

from distill import __version__
from distill.artifact import Artifact
from distill.evaluation.questions import Asked, ask
from distill.evaluation.server import engine_version
from distill.evaluation.statistics.intervals import SEEDS_FOR_A_CLAIM, Interval, difference
from distill.evaluation.statistics.power import minimum_detectable_difference
from distill.evaluation.statistics.significance import sign_flip_test, swap_test
from distill.flops import hardware
from distill.study.analysis.analyse import analyse
from distill.study.analysis.combination import factor as factor_of
from distill.study.analysis.family import correct
from distill.study.analysis.interactions import sentence as said_of_interaction
from distill.study.cells import cells
from distill.study.comparators import TEACHER, Majority, found_beside
from distill.study.equal_cost import Enclosing, Spends, enclosing, merged
from distill.study.equal_cost import said as stands_against
from distill.study.found import Found, FoundCell
from distill.study.outcomes import MemberOutcome
from distill.study.rows import ContrastRow, TraceRow, common_seeds
from distill.study.settings import EQUAL_COST, StudySettings
from distill.tasks.procedural import ProceduralTask
from distill.tasks.task import Task

SCHEMA = "distill-results/1"


def build_results(
    settings: StudySettings,
    outcomes: dict[str, MemberOutcome],
    failures: dict[str, str],
    *,
    command: str,
    asked_once: dict[str, Artifact] | None = None,
    traces: dict[str, Artifact] | None = None,
    seeds_declared: dict[str, list[int]] | None = None,
) -> dict[str, Any]:
    """The results of a study. `outcomes` by member id; a cell none of whose members is there is left out. `asked_once`:
    the evaluations of what was not trained here, by its id. `traces`: the sets of pairs by name. `seeds_declared`: with
    which the compared cells were begun, where that is known."""
    device = hardware(settings.hardware)
    asked = ask(settings.evaluate_settings().questions, settings.evaluate_settings().judges)
    students = {cell.id: FoundCell(cell, outcomes, device) for cell in cells(settings)}
    students = {name: f for name, f in students.items() if f.seeds}
    beside = found_beside(settings, students, asked_once or {})
    found: dict[str, Found] = {**students, **beside}
    metrics = settings.metrics(a.task.name for a in asked)
    compared = [
        (
            row,
            a,
            sides,
            _contrast(settings, row, size.name, a, metric, sides)
            | {"primary": row.verdict_size == size.name and metric == metrics[a.task.name]},
        )
        for row in settings.contrasts
        for size in settings.students
        for a in asked
        for metric in a.task.metrics
        if (sides := _sides(settings, found, size.name, row, a))
        and all(metric in side.metrics(a) for side in sides.all)
    ]
    contrasts = [contrast for *_, contrast in compared]
    analysis = analyse(settings, asked, found, traces)
    correct(contrasts, analysis["interactions"], metrics)
    for row, a, sides, contrast in compared:
        _decide(contrast, settings, row, a, sides)
    for entry in analysis["interactions"]:
        entry["sentence"] = said_of_interaction(entry, settings.confidence)
    primary = [c for c in contrasts if c["primary"]]
    return {
        "schema": SCHEMA,
        "title": settings.title,
        "question": settings.question,
        "distill_version": __version__,
        "command": command,
        "preset": settings.model_dump(mode="json", by_alias=True),
        "environment": _environment(),
        "hardware": asdict(device),
        "margin_points": settings.margin_points,
        "confidence": settings.confidence,
        "teacher": _teacher(settings, traces or {}),
        "tasks": [
            {
                "name": a.task.name,
                "answer_format": a.task.answer_format,
                "metrics": list(a.task.metrics),
                "metric": metrics[a.task.name],
                "questions": len(a.problems),
                "distinct_prompts": a.task.distinct_prompts,
                "description": _description(settings, a.task),
            }
            for a in asked
        ],
        "cells": [
            f.describe(asked, settings.confidence) | {"seeds_added": _seeds_added(settings, f, seeds_declared)}
            for f in students.values()
        ],
        "comparators": [f.describe(asked, settings.confidence) for f in beside.values()],
        "contrasts": contrasts,
        "verdicts": [
            {
                "task": c["task"],
                "verdict": c["verdict"],
                "sentence": c["sentence"] + _majority_beside(c, contrasts, asked, found),
                "contrast": c["id"],
            }
            for c in primary
        ],
        "analysis": analysis,
        "examples": _examples(settings, asked, found),
        "failures": [{"stage": name.split()[0], "cell": name.split()[-1], "reason": r} for name, r in failures.items()],
    }


@dataclass(frozen=True)
class _Sides:
    """Who is compared: a treatment with a control, or at equal inference cost with the one or two that enclose its cost."""

    treatment: Found
    controls: tuple[Found, ...]
    spends: Spends  # the controls, beside what was declared
    enclosing: Enclosing | None = None  # the controls, of `equal_cost`

    @property
    def control(self) -> Found:
        """The one whose answers are shown: of several the first that encloses the cost."""
        return self.controls[0 if self.enclosing is None else self.enclosing.near.index(True)]

    @property
    def all(self) -> tuple[Found, ...]:
        return self.treatment, *self.controls


def _sides(settings: StudySettings, found: dict[str, Found], size: str, row: ContrastRow, a: Asked) -> _Sides | None:
    """Both sides of a contrast in a size; None unless they are there, with training seeds in common."""
    treatment, control = (
        found.get(name if name == TEACHER else f"{size}-{name}") for name in (row.treatment, row.control)
    )
    if row.control == EQUAL_COST:
        return _at_equal_cost(settings, found, treatment, a)
    if treatment is None or control is None or not common_seeds(treatment.seeds, control.seeds):
        return None
    return _Sides(treatment, (control,), "less" if _capped(treatment, control, a) else "as much")


def _at_equal_cost(
    settings: StudySettings, found: dict[str, Found], treatment: Found | None, a: Asked
) -> _Sides | None:
    """A treatment with those of the sizes that there are which enclose its cost."""
    rungs = (found.get(f"{rung.name}-{settings.comparators.equal_cost.arm}") for rung in settings.ladder)
    ladder = [cell for cell in rungs if cell is not None]
    if treatment is None:
        return None
    enclosed = enclosing(treatment, ladder, a)
    return None if enclosed is None else _Sides(treatment, enclosed.cells, enclosed.spends, enclosed)


def _contrast(
    settings: StudySettings, row: ContrastRow, size: str, a: Asked, metric: str, sides: _Sides
) -> dict[str, Any]:
    parts = [_difference(settings, row, size, a, metric, sides.treatment, control) for control in sides.controls]
    contrast = parts[0] | {"at_equal_cost": None}
    if sides.enclosing is not None:
        contrast = merged(parts, sides.enclosing) | {"control": f"{size}-{EQUAL_COST}"}
    return contrast | {
        "matched_on": row.matched if sides.spends == "as much" else "nothing",
        "declared_matched_on": row.matched,
    }


def _difference(
    settings: StudySettings, row: ContrastRow, size: str, a: Asked, metric: str, treatment: Found, control: Found
) -> dict[str, Any]:
    """Of one student from another of the same seed."""
    seeds = common_seeds(treatment.seeds, control.seeds)
    samples = treatment.samples(a, metric, seeds), control.samples(a, metric, seeds)
    between = difference(*samples)
    detectable = minimum_detectable_difference(between.spread, confidence=settings.confidence)
    per_seed = [100 * (t.value - c.value) for t, c in zip(*samples, strict=True)]
    if all(sample.scores is not None for sample in (*samples[0], *samples[1])):
        p_students = sign_flip_test(np.mean([t.scores - c.scores for t, c in zip(*samples, strict=True)], axis=0))
    else:
        tables = treatment.columns(a, metric, seeds), control.columns(a, metric, seeds)
        of_question = len(next(iter(tables[0][0].values()))) // len(a.problems)
        p_students = swap_test(a.task.metrics[metric], *tables, samples=of_question)
    if len(seeds) < SEEDS_FOR_A_CLAIM:
        between = replace(between, exact_p=p_students)
    points = _points(between.interval(settings.confidence))

    def factor(name: str) -> float | None:
        over, under = treatment.mean(a, name, seeds), control.mean(a, name, seeds)
        return over / under if over is not None and under else None

    def interval(name: str) -> dict[str, float] | None:
        if factor(name) is None:
            return None
        sides = (np.stack([side.per_question(a, name, s) for s in seeds]) for side in (treatment, control))
        found = factor_of(*sides, confidence=settings.confidence)
        return None if found is None else asdict(found)

    in_general = "reasoning" if _on_reasoning(treatment, control) else "these arms"
    return {
        "id": f"{a.task.name}/{size}/{metric}/{row.treatment}-vs-{row.control}",
        "task": a.task.name,
        "size": size,
        "metric": metric,
        "treatment": treatment.id,
        "control": control.id,
        "difference_points": asdict(points),
        "p_value": between.p_value,
        "p_value_students": p_students,
        "detectable_points": 100 * detectable,
        "per_seed": per_seed,
        "n_seeds": len(seeds),
        "n_questions": len(a.problems),
        "subject": in_general if len(seeds) >= SEEDS_FOR_A_CLAIM else "these trained students",
        "token_factor": factor("tokens"),
        "flops_factor": factor("flops"),
        "token_factor_interval": interval("tokens"),
        "flops_factor_interval": interval("flops"),
        "training_tokens_factor": factor("training_tokens"),
    }


def _decide(contrast: dict[str, Any], settings: StudySettings, row: ContrastRow, a: Asked, sides: _Sides) -> None:
    """Add `verdict` and `sentence`, which follow from all contrasts: from this one's p-value among the others."""
    points, margin, confidence = Interval(**contrast["difference_points"]), settings.margin_points, settings.confidence
    alone, verdict = decide(points, margin), decide(points, margin, significant=contrast["p_holm"] <= 1 - confidence)
    treatment, control, more = sides.treatment, sides.control, []
    if verdict != alone:
        p = contrast["p_holm"]
        more.append(f"The interval alone would do; after Holm's correction for all that was declared p is {p:.3f}.")
    # Who may not spend as much as was declared is worse than the one to compare with, and who spends more is better.
    favoured = (sides.spends == "less") == (not isinstance(treatment, Majority))
    if sides.spends != "as much" and verdict == ("pays" if favoured else "does not pay"):
        what = "the vote" if row.control != EQUAL_COST else contrast["control"]
        more.append(f"The interval would say that it {verdict}, but {what} spent {sides.spends}.")
        verdict = "cannot tell"
    contrast["verdict"] = verdict
    said = [sentence(contrast, margin, confidence, on_reasoning=_on_reasoning(treatment, control)), *more]
    said += [_of_votes(side, a) for side in (treatment, control) if isinstance(side, Majority)]
    said += [stands_against(contrast)] if row.control == EQUAL_COST else []
    if sides.spends != "as much":
        said.append(f"Declared as matched on {row.matched}; what both have equally much of is nothing.")
    if row.matched == "questions":
        shown = (
            f"{side.id} {side.mean_of(lambda m: m.student.summary['examples']):,.0f}" for side in (treatment, control)
        )
        said.append(
            f"Of the same questions {' and '.join(shown)} examples were shown: pairs are left out of each set apart."
        )
    contrast["sentence"] = " ".join(said)


def _description(settings: StudySettings, task: Task) -> str | None:
    """What a made task's questions are, or the file of questions of one's own."""
    own = {row.task: row.data.path for row in settings.tasks if row.data is not None}
    if task.name in own:
        return f"Questions of {own[task.name]}."
    return type(task).__doc__.split("\n")[0] if isinstance(task, ProceduralTask) else None


def _teacher(settings: StudySettings, traces: dict[str, Artifact]) -> dict[str, Any]:
    """Who wrote the pairs, and what that cost; null where it is not known."""
    sets = [{"name": row.name, "by": _author(row), **_bill(traces.get(row.name))} for row in settings.trace_rows]
    costs = [one["cost_usd"] for one in sets]
    authors = list(dict.fromkeys(one["by"] for one in sets))
    solved = authors == ["solver"]
    return {
        "name": ", ".join(authors),
        "cost_usd": 0.0 if solved else None if None in costs else sum(costs),
        "note": "a procedural solver wrote the traces" if solved else "",
        "sets": sets,
    }


def _author(row: TraceRow) -> str:
    if row.imported is not None:
        return row.imported.teacher
    if row.folder is not None:
        return row.folder.name
    return row.teacher if isinstance(row.teacher, str) else getattr(row.teacher, "model", None) or row.teacher.vllm


def _bill(made: Artifact | None) -> dict[str, Any]:
    """Of a finished set of pairs: how many, the tokens of their answers by mode, and what they cost; null if not known."""
    summary = made.summary if made is not None else {}
    modes = summary.get("bill") or {}
    costs = [one.get("cost_usd") for one in modes.values()]
    return {
        "pairs": summary.get("pairs"),
        "output_tokens": {mode: one.get("output_tokens") for mode, one in modes.items()},
        "cost_usd": None if not costs or None in costs else sum(costs),
    }


def _of_votes(majority: Majority, a: Asked) -> str:
    k, afford = majority.k(a), majority.affordable(a)
    cap = f", all that were drawn; the tokens pay for {afford}" if majority.capped(a) else ""
    return f"{majority.id} is the majority of {k} answer{'s' if k > 1 else ''} of {majority.voters.id}{cap}."


def _majority_beside(
    contrast: dict[str, Any], contrasts: list[dict[str, Any]], asked: list[Asked], found: dict[str, Found]
) -> str:
    """What a vote for the same tokens reaches, for the verdict's treatment; empty where none was declared."""
    majority = found.get(f"{contrast['size']}-majority")
    (a,) = (a for a in asked if a.task.name == contrast["task"])
    if contrast["control"] == f"{contrast['size']}-majority":
        return ""
    if not isinstance(majority, Majority) or majority.matched.id != contrast["treatment"] or not majority.metrics(a):
        return ""
    value = float(np.mean([sample.value for sample in majority.samples(a, "accuracy", majority.seeds)]))
    spent = "For fewer tokens" if majority.capped(a) else "For about as many tokens"
    said = f" {spent}, the majority of {majority.k(a)} answers of {majority.voters.id} is right on {value:.1%}"
    against = [c for c in contrasts if (c["task"], c["metric"]) == (a.task.name, "accuracy")]
    against = [c for c in against if (c["treatment"], c["control"]) == (contrast["treatment"], majority.id)]
    for c in against:
        d = c["difference_points"]
        said += f"; {c['treatment']} against it: {d['value']:+.1f} points ({d['low']:+.1f} to {d['high']:+.1f})"
    return f"{said}."


def _on_reasoning(treatment: Found, control: Found) -> bool:
    """Whether a contrast is about training on reasoning as such, against answers alone or the vote of several."""
    control = control.voters if isinstance(control, Majority) else control
    arms = [side.cell.arm.arm if side.cell is not None else None for side in (treatment, control)]
    return arms == ["reasoning", "ift"]


def _capped(treatment: Found, control: Found, a: Asked) -> Majority | None:
    """The majority of a contrast, where it was matched to the other side's tokens and drew too few answers for that."""
    for majority, other in ((treatment, control), (control, treatment)):
        matched = isinstance(majority, Majority) and majority.matched is other and majority.metrics(a)
        if matched and majority.capped(a):
            return majority
    return None


def _seeds_added(settings: StudySettings, found: FoundCell, declared: dict[str, list[int]] | None) -> list[int]:
    """The seeds of a compared cell that it was not begun with."""
    rows = [*settings.contrasts, *settings.interactions]
    compared = {arm for row in rows for name in (row.treatment, row.control) for arm in settings.arms_behind(name)}
    if declared is None or found.cell.arm.id not in compared:
        return []
    return [seed for seed in found.seeds if seed not in declared.get(found.id, [])]


def _points(interval: Interval) -> Interval:
    return Interval(100 * interval.value, 100 * interval.low, 100 * interval.high)


def decide(points: Interval, margin: float, *, significant: bool = True) -> str:
    """*pays* when the whole interval reaches the margin and the difference is `significant` among all that were tested,
    *does not pay* when all of the interval is under the margin, else *cannot tell*."""
    if points.low >= margin and significant:
        return "pays"
    return "does not pay" if points.high < margin else "cannot tell"


def sentence(contrast: dict[str, Any], margin: float, confidence: float, *, on_reasoning: bool) -> str:
    """One contrast as a person would say it.

    `on_reasoning`: reasoning against ift, so that it speaks of reasoning; any other pair of arms is spoken of by name.
    """
    d, seeds, control = contrast["difference_points"], contrast["n_seeds"], contrast["control"]
    narrow = contrast["subject"] == "these trained students"
    if on_reasoning:
        size = contrast["size"]
        who = (
            f"reasoning, in these trained students of size {size},"
            if narrow
            else f"training {size} students on reasoning"
        )
        does, does_not, against = "pays", "does not pay", f" against {control}"
    else:
        who = f"{contrast['treatment']}, in these trained students," if narrow else contrast["treatment"]
        does, does_not, against = f"beats {control} by the margin", f"does not beat {control} by the margin", ""
    factor, between = contrast["token_factor"], contrast.get("token_factor_interval")
    spent = "" if factor is None else f" at {factor:.1f}x the output tokens"
    if between is not None and (low := f"{between['low']:.1f}x") != (high := f"{between['high']:.1f}x"):
        spent += f" ({low} to {high})"
    what = {
        "pays": f"{who} {does}",
        "does not pay": f"{who} {does_not}",
        "cannot tell": f"this study cannot tell whether {who} {does}",
    }[contrast["verdict"]]
    return (
        f"On {contrast['task']}, {what}: {d['value']:+.1f} points of {contrast['metric']}{against} "
        f"({confidence:.0%} interval {d['low']:+.1f} to {d['high']:+.1f}, margin {margin:g}; {contrast['n_questions']} "
        f"questions, {seeds} training seed{'s' if seeds > 1 else ''}){spent}."
    )


def _examples(settings: StudySettings, asked: list[Asked], found: dict[str, Found]) -> list[dict[str, Any]]:
    """Two questions a task on which the verdict's two arms differ, or else its first two, as both answered them.

    Both students have the first training seed that the arms have in common; of several answers the first is shown, and of
    a majority its voters' own, and of two that enclose a cost the cheaper.
    """
    row = next(c for c in settings.contrasts if c.verdict_size is not None)
    examples = []
    for a in asked:
        sides = _sides(settings, found, row.verdict_size, row, a)
        if sides is None:
            continue
        pair = sides.treatment, sides.control
        seed = common_seeds(*(f.seeds for f in pair))[0]
        pair = [f.voters if isinstance(f, Majority) else f for f in pair]
        shown = [(f.id, seed, f.members[seed].graded) for f in pair]
        answers = [graded.answers[a.task.name][:: graded.samples(a)] for _, _, graded in shown]
        indices = range(len(a.problems))
        differing = [i for i in indices if answers[0][i].correct != answers[1][i].correct]
        for i in (differing + [i for i in indices if i not in set(differing)])[:2]:
            examples.append(
                {
                    "task": a.task.name,
                    "prompt": a.problems[i].prompt,
                    "gold": a.problems[i].gold,
                    "answers": [
                        {
                            "cell": cell,
                            "seed": seed,
                            "thinking": of_arm[i].thinking,
                            "answer": of_arm[i].answer,
                            "correct": of_arm[i].correct,
                            "finished": of_arm[i].finished,
                            "thinking_tokens": of_arm[i].thinking_tokens,
                            "answer_tokens": of_arm[i].answer_tokens,
                        }
                        for (cell, seed, _), of_arm in zip(shown, answers, strict=True)
                    ],
                }
            )
    return examples


def _environment() -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "vllm": engine_version("vllm"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "os": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if gpu else "cpu",
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
