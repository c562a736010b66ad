"""What a study found, as one dictionary: cells, contrasts and verdicts. docs/results-schema.md describes it.

Everything that depends on a clock lies under a key named `measured`; the rest is the same whenever the study is run.
"""

import os
import platform
from dataclasses import asdict, replace
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
from distill.study.equal_cost import EqualCost
from distill.study.found import AtEqualCost, Found, FoundCell
from distill.study.outcomes import MemberOutcome
from distill.study.rows import ContrastRow, TraceRow, common_seeds
from distill.study.settings import StudySettings
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
            _contrast(settings, row, size.name, a, metric, *sides)
            | {"primary": row.verdict_size == size.name and metric == metrics[a.task.name]},
        )
        for row in settings.contrasts
        for size in settings.students
        for a in asked
        for metric in a.task.metrics
        if (sides := _sides(found, size.name, row)) and all(metric in side.metrics(a) for side in sides)
    ]
    contrasts = [contrast for *_, contrast in compared]
    analysis = analyse(settings, asked, found, traces)
    correct(contrasts, analysis["interactions"], metrics)
    for row, a, sides, contrast in compared:
        _decide(contrast, settings, row, a, *sides)
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
        "comparators": [
            f.describe(asked, settings.confidence) for f in beside.values() if not isinstance(f, EqualCost)
        ],
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


def _contrast(
    settings: StudySettings, row: ContrastRow, size: str, a: Asked, metric: str, treatment: Found, control: Found
) -> dict[str, Any]:
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
        "matched_on": "nothing" if _unmatched(treatment, control, a) else row.matched,
        "declared_matched_on": row.matched,
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
        "at_equal_cost": next((s.describe(a) for s in (treatment, control) if isinstance(s, EqualCost)), None),
    }


def _decide(
    contrast: dict[str, Any], settings: StudySettings, row: ContrastRow, a: Asked, treatment: Found, control: Found
) -> None:
    """Add `verdict` and `sentence`, which follow from all contrasts: from this one's p-value among the others."""
    points, margin, confidence = Interval(**contrast["difference_points"]), settings.margin_points, settings.confidence
    alone, verdict = decide(points, margin), decide(points, margin, significant=contrast["p_holm"] <= 1 - confidence)
    more, off = [], _unmatched(treatment, control, a)
    if verdict != alone:
        p = contrast["p_holm"]
        more.append(f"The interval alone would do; after Holm's correction for all that was declared p is {p:.3f}.")
    # Who spends less than was declared is worse than the one to compare with, and who spends more is better.
    favoured = off is not None and (off is control) == (off.spends(a) == "less")
    if off is not None and verdict == ("pays" if favoured else "does not pay"):
        more.append(f"The interval would say that it {verdict}, but {off.id} spent {off.spends(a)}.")
        verdict = "cannot tell"
    contrast["verdict"] = verdict
    said = [sentence(contrast, margin, confidence, on_reasoning=_on_reasoning(treatment, control)), *more]
    said += [side.said(a) for side in (treatment, control) if isinstance(side, AtEqualCost)]
    if off is not None:
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
    control = control.of if isinstance(control, AtEqualCost) else control
    arms = [side.cell.arm.arm if side.cell is not None else None for side in (treatment, control)]
    return arms == ["reasoning", "ift"]


def _answering(found: Found, a: Asked) -> Found:
    return found.answering(a) if isinstance(found, AtEqualCost) else found


def _unmatched(treatment: Found, control: Found, a: Asked) -> AtEqualCost | None:
    """The side of a contrast that is matched to the other's cost and could not spend just that."""
    for side, other in ((treatment, control), (control, treatment)):
        if isinstance(side, AtEqualCost) and side.matched is other and side.spends(a) != "as much":
            return side
    return None


def _seeds_added(settings: StudySettings, found: FoundCell, declared: dict[str, list[int]] | None) -> list[int]:
    """The seeds of a compared cell that it was not begun with."""
    rows = [*settings.contrasts, *settings.interactions]
    compared = {arm for row in rows for name in (row.treatment, row.control) for arm in settings.arms_behind(name)}
    if declared is None or found.cell.arm.id not in compared:
        return []
    return [seed for seed in found.seeds if seed not in declared.get(found.id, [])]


def _sides(found: dict[str, Found], size: str, row: ContrastRow) -> tuple[Found, Found] | None:
    """Both sides of a contrast in a size; None unless both are there, with a training seed in common."""
    names = (name if name == TEACHER else f"{size}-{name}" for name in (row.treatment, row.control))
    treatment, control = (found.get(name) for name in names)
    if treatment is None or control is None or not common_seeds(treatment.seeds, control.seeds):
        return None
    return treatment, control


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
    a majority its voters' own, of what is read between two students those of the nearer.
    """
    row = next(c for c in settings.contrasts if c.verdict_size is not None)
    pair = _sides(found, row.verdict_size, row)
    if pair is None:
        return []
    seed = common_seeds(*(f.seeds for f in pair))[0]
    examples = []
    for a in asked:
        shown = [(f.id, seed, f.members[seed].graded) for f in (_answering(side, a) for side in pair)]
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
