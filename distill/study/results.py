"""What a study found, as one dictionary: cells, contrasts and verdicts. docs/results-schema.md describes it.

Everything that depends on a clock lies under a key named `measured`; the rest is the same whenever the study is run.
"""

import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import transformers

from distill import __version__
from distill.artifact import Artifact, read_json
from distill.evaluation.answer_file import read_answers
from distill.evaluation.answers import Answer
from distill.evaluation.grading import metric_columns
from distill.evaluation.questions import Asked, ask
from distill.evaluation.server import engine_version
from distill.evaluation.settings import Questions
from distill.evaluation.statistics.intervals import SEEDS_FOR_A_CLAIM, Interval, difference, score
from distill.evaluation.statistics.power import minimum_detectable_difference
from distill.evaluation.statistics.resampling import Sample, resample
from distill.evaluation.statistics.significance import holm, sign_flip_test, swap_test
from distill.flops import Hardware, hardware
from distill.study.cells import Cell, cells
from distill.study.settings import ArmRow, ContrastRow, StudySettings

SCHEMA = "distill-results/1"


@dataclass(frozen=True)
class MemberOutcome:
    """What is known of one student."""

    student: Artifact
    evaluation: Artifact
    profile: Artifact

    @cached_property
    def answers(self) -> dict[str, list[Answer]]:
        """By task, in the order the questions were drawn."""
        by_task: dict[str, list[Answer]] = {}
        for answer in read_answers(self.evaluation.path / "answers.parquet"):
            by_task.setdefault(answer.task, []).append(answer)
        return by_task

    @cached_property
    def load(self) -> dict[str, Any]:
        """profile.json: `threads` of the server, and `tasks`."""
        return read_json(self.profile.path / "profile.json")

    def seconds_per_answer(self, task: str) -> float | None:
        """At the highest concurrency; None when nothing was answered there."""
        level = max(self.load["tasks"][task]["levels"], key=lambda level: level["concurrency"])
        return level["measured"]["duration_s"] / level["completed"] if level["completed"] else None

    def usd_per_answer(self, task: str, device: Hardware) -> float | None:
        seconds = self.seconds_per_answer(task)
        return None if seconds is None else device.usd(seconds, self.load.get("threads") or 1)

    def training_usd(self, device: Hardware) -> float:
        measured = self.student.summary["measured"]
        return device.usd(measured["seconds"], measured["threads"])


def build_results(
    settings: StudySettings,
    outcomes: dict[str, MemberOutcome],
    failures: dict[str, str],
    *,
    command: str,
) -> dict[str, Any]:
    """The results of a study. `outcomes` by member id; a cell none of whose members is there is left out."""
    device = hardware(settings.hardware)
    asked = ask([Questions(task=row.task, count=row.test, seed=settings.data_seed) for row in settings.tasks])
    grid = {cell.id: cell for cell in cells(settings)}
    found = {name: _Found(cell, outcomes, asked, device) for name, cell in grid.items()}
    found = {name: f for name, f in found.items() if f.members}
    contrasts = [
        _contrast(settings, row, size.name, a, metric, found)
        for row in settings.contrasts
        for size in settings.students
        for a in asked
        for metric in a.task.metrics
        if _common_seeds(found, size.name, row)
    ]
    _correct_p_values(contrasts)
    primary = [c for c in contrasts if c["primary"]]
    return {
        "schema": SCHEMA,
        "title": settings.title,
        "question": settings.question,
        "distill_version": __version__,
        "command": command,
        "preset": settings.model_dump(mode="json"),
        "environment": _environment(),
        "hardware": asdict(device),
        "margin_points": settings.margin_points,
        "confidence": settings.confidence,
        "teacher": {
            "name": settings.teacher,
            "cost_usd": 0.0,
            "note": "none: a procedural solver wrote the traces",
        },
        "tasks": [
            {
                "name": a.task.name,
                "answer_format": a.task.answer_format,
                "metrics": list(a.task.metrics),
                "questions": len(a.problems),
                "distinct_prompts": a.task.distinct_prompts,
                "description": (type(a.task).__doc__ or "").strip().split("\n")[0],
            }
            for a in asked
        ],
        "cells": [f.describe(settings.confidence) for f in found.values()],
        "contrasts": contrasts,
        "verdicts": [
            {"task": c["task"], "verdict": c["verdict"], "sentence": c["sentence"], "contrast": c["id"]}
            for c in primary
        ],
        "examples": _examples(settings, asked, found),
        "failures": [{"stage": name.split()[0], "cell": name.split()[-1], "reason": r} for name, r in failures.items()],
    }


@dataclass
class _Found:
    """One cell and what its members did."""

    cell: Cell
    outcomes: dict[str, MemberOutcome]
    asked: list[Asked]
    device: Hardware
    _resampled: dict[tuple[str, str], dict[int, Sample]] = field(default_factory=dict)

    @cached_property
    def members(self) -> dict[int, MemberOutcome]:
        """By seed."""
        return {m.seed: self.outcomes[m.id] for m in self.cell.students() if m.id in self.outcomes}

    def mean(self, value: Callable[[MemberOutcome], float | None], seeds: Iterable[int] | None = None) -> float | None:
        """The mean over `seeds`, all if not given; None when any of them has none."""
        values = [value(self.members[seed]) for seed in (self.members if seeds is None else seeds)]
        return None if any(v is None for v in values) else float(np.mean(values))

    def samples(self, a: Asked, metric: str, seeds: list[int] | None = None) -> list[Sample]:
        """One a seed, resampled once: a cell stands in several contrasts."""
        key = (a.task.name, metric)
        if key not in self._resampled:
            self._resampled[key] = {
                seed: resample(a.task.metrics[metric], columns)
                for seed, columns in zip(self.members, self.columns(a, metric), strict=True)
            }
        return [self._resampled[key][seed] for seed in (self.members if seeds is None else seeds)]

    def columns(self, a: Asked, metric: str, seeds: list[int] | None = None) -> list[dict[str, np.ndarray]]:
        """The graded rows of a metric, one table a seed."""
        return [
            metric_columns(a.task.metrics[metric], a.problems, self.members[seed].answers[a.task.name])
            for seed in (self.members if seeds is None else seeds)
        ]

    def describe(self, confidence: float) -> dict[str, Any]:
        counted = ("flops", "tokens", "supervised_tokens", "examples", "steps")
        timed = ("seconds", "tokens_per_second", "supervised_tokens_per_second", "mfu", "peak_rss_bytes")
        first = next(iter(self.members.values()))
        training = {name: self.mean(lambda m, n=name: m.student.summary[n]) for name in counted}
        measured = {name: self.mean(lambda m, n=name: m.student.summary["measured"][n]) for name in timed}
        measured["usd"] = self.mean(lambda m: m.training_usd(self.device))
        return {
            "id": self.cell.id,
            "arm": self.cell.arm.arm,
            "size": self.cell.size.name,
            "match": self.cell.arm.match,
            "answers": self.cell.arm.answers,
            "seeds": list(self.members),
            "parameters": first.student.summary["parameters"],
            "learning_rate": self.cell.size.learning_rate,
            "training": {**training, "measured": measured},
            "tasks": {a.task.name: self._task(a, confidence) for a in self.asked},
            "serving": self._serving(),
        }

    def _task(self, a: Asked, confidence: float) -> dict[str, Any]:
        name = a.task.name
        graded = lambda key: self.mean(lambda m: m.evaluation.summary[name][key])  # noqa: E731
        tokens = {
            part: self.mean(lambda m, p=part: m.evaluation.summary[name]["tokens_per_answer"][p])
            for part in ("prompt", "thinking", "answer", "total")
        }
        metrics = {}
        for metric in a.task.metrics:
            samples = self.samples(a, metric)
            interval = score(samples, confidence=confidence)
            metrics[metric] = {**asdict(interval), "per_seed": [sample.value for sample in samples]}
        seconds = self.mean(lambda m: m.seconds_per_answer(name))
        usd = self.mean(lambda m: m.usd_per_answer(name, self.device))
        thousand = None if usd is None else 1000 * usd
        flops = graded("flops_per_answer")
        accuracy = metrics["accuracy"]["value"]
        # All that was spent, over the right ones.
        per_correct = lambda spent: spent / accuracy if spent is not None and accuracy > 0 else None  # noqa: E731
        return {
            "metrics": metrics,
            "n_questions": len(a.problems),
            "unfinished_rate": graded("unfinished_rate"),
            "think_rate": graded("think_rate"),
            "accuracy_finished": graded("accuracy_finished"),
            "tokens_per_answer": tokens,
            "inference": {
                "flops_per_answer": flops,
                "flops_per_correct": per_correct(flops),
                "measured": {
                    "seconds_per_answer": seconds,
                    "usd_per_1000_answers": thousand,
                    "seconds_per_correct": per_correct(seconds),
                    "usd_per_1000_correct": per_correct(thousand),
                },
            },
        }

    def _serving(self) -> list[dict[str, Any]]:
        """The first seed's profile, by task and concurrency."""
        first = next(iter(self.members.values()))
        return [
            {
                "task": task,
                "concurrency": level["concurrency"],
                "n_requests": level["completed"],
                "failed": level["failed"],
                "measured": {
                    **{f"{name}_ms": _milliseconds(level["measured"][f"{name}_s"]) for name in ("ttft", "tpot", "e2e")},
                    "output_tokens_per_second": level["measured"]["output_tokens_per_s"],
                },
            }
            for task, result in first.load["tasks"].items()
            for level in result["levels"]
        ]


def _milliseconds(values: dict[str, float] | None) -> dict[str, float] | None:
    return None if values is None else {p: 1000 * values[p] for p in ("p50", "p90", "p99")}


def _contrast(
    settings: StudySettings, row: ContrastRow, size: str, a: Asked, metric: str, found: dict[str, _Found]
) -> dict[str, Any]:
    treatment, control = found[f"{size}-{row.treatment}"], found[f"{size}-{row.control}"]
    seeds = _common_seeds(found, size, row)
    samples = treatment.samples(a, metric, seeds), control.samples(a, metric, seeds)
    between = difference(*samples)
    points = _points(between.interval(settings.confidence))
    detectable = minimum_detectable_difference(between.spread, confidence=settings.confidence)
    per_seed = [100 * (t.value - c.value) for t, c in zip(*samples, strict=True)]
    if all(sample.scores is not None for sample in (*samples[0], *samples[1])):
        p_students = sign_flip_test(np.mean([t.scores - c.scores for t, c in zip(*samples, strict=True)], axis=0))
    else:
        tables = treatment.columns(a, metric, seeds), control.columns(a, metric, seeds)
        p_students = swap_test(a.task.metrics[metric], *tables)
    factor = lambda value: treatment.mean(value, seeds) / control.mean(value, seeds)  # noqa: E731
    answered = lambda m: m.evaluation.summary[a.task.name]  # noqa: E731
    in_general = "reasoning" if _on_reasoning(treatment.cell.arm, control.cell.arm) else "these arms"
    contrast = {
        "id": f"{a.task.name}/{size}/{metric}/{row.treatment}-vs-{row.control}",
        "task": a.task.name,
        "size": size,
        "metric": metric,
        "treatment": treatment.cell.id,
        "control": control.cell.id,
        "matched_on": _matched_on(treatment.cell.arm, control.cell.arm),
        "difference_points": asdict(points),
        "p_value": between.p_value if len(seeds) >= SEEDS_FOR_A_CLAIM else p_students,
        "p_value_students": p_students,
        "detectable_points": 100 * detectable,
        "per_seed": per_seed,
        "n_seeds": len(seeds),
        "n_questions": len(a.problems),
        "subject": in_general if len(seeds) >= SEEDS_FOR_A_CLAIM else "these trained students",
        "token_factor": factor(lambda m: answered(m)["tokens_per_answer"]["total"]),
        "flops_factor": factor(lambda m: answered(m)["flops_per_answer"]),
        "training_tokens_factor": factor(lambda m: m.student.summary["tokens"]),
        "verdict": decide(points, settings.margin_points),
        "primary": metric == "accuracy" and row.verdict_size == size,
    }
    said = sentence(contrast, settings.margin_points, settings.confidence, on_reasoning=in_general == "reasoning")
    return contrast | {"sentence": said}


def _correct_p_values(contrasts: list[dict[str, Any]]) -> None:
    """Add `p_holm`: over the contrasts that decide a verdict, one a task, for these; over all declared for the others."""
    corrected = holm([c["p_value"] for c in contrasts])
    primary = [i for i, c in enumerate(contrasts) if c["primary"]]
    for i, p in zip(primary, holm([contrasts[i]["p_value"] for i in primary]), strict=True):
        corrected[i] = p
    for contrast, p in zip(contrasts, corrected, strict=True):
        contrast["p_holm"] = p


def _on_reasoning(treatment: ArmRow, control: ArmRow) -> bool:
    """Whether a contrast is about training on reasoning as such."""
    return treatment.arm == "reasoning" and control.arm == "ift"


def _matched_on(treatment: ArmRow, control: ArmRow) -> str:
    """`samples`: both saw the same examples. `steps`, `tokens`, `flops`: both took as many as the arm `reasoning` with
    the same answers, or one is that arm. Else `nothing`."""
    arms = (treatment, control)
    kinds = {arm.match for arm in arms if arm.match != "samples"}
    if not kinds:
        return "samples"
    reached = all(arm.match in kinds or arm.arm == "reasoning" for arm in arms)
    of_one = len({arm.answers == "gold" for arm in arms}) == 1  # stripped answers follow the teacher's own reasoning
    return kinds.pop() if reached and of_one and len(kinds) == 1 else "nothing"


def _common_seeds(found: dict[str, _Found], size: str, row: ContrastRow) -> list[int]:
    """Training seeds that both arms of a contrast have in a size."""
    arms = [found.get(f"{size}-{arm}") for arm in (row.treatment, row.control)]
    return [seed for seed in arms[0].members if seed in arms[1].members] if all(arms) else []


def _points(interval: Interval) -> Interval:
    return Interval(100 * interval.value, 100 * interval.low, 100 * interval.high)


def decide(points: Interval, margin: float) -> str:
    """*pays* when the whole interval reaches the margin, *does not pay* when all of it is under, else *cannot tell*."""
    if points.low >= margin:
        return "pays"
    return "does not pay" if points.high < margin else "cannot tell"


def sentence(contrast: dict[str, Any], margin: float, confidence: float, *, on_reasoning: bool) -> str:
    """One contrast as a person would say it.

    `on_reasoning`: reasoning against ift, so that it speaks of reasoning; any other pair of arms is spoken of by name.
    """
    d, seeds, control = contrast["difference_points"], contrast["n_seeds"], contrast["control"]
    narrow = contrast["subject"] == "these trained students"
    if on_reasoning:
        who = "reasoning, in these trained students," if narrow else "training on reasoning"
        does, does_not, against = "pays", "does not pay", f" against {control}"
    else:
        who = f"{contrast['treatment']}, in these trained students," if narrow else contrast["treatment"]
        does, does_not, against = f"beats {control} by the margin", f"does not beat {control} by the margin", ""
    what = {
        "pays": f"{who} {does}",
        "does not pay": f"{who} {does_not}",
        "cannot tell": f"this study cannot tell whether {who} {does}",
    }[contrast["verdict"]]
    return (
        f"On {contrast['task']}, {what}: {d['value']:+.1f} points of {contrast['metric']}{against} "
        f"({confidence:.0%} interval {d['low']:+.1f} to {d['high']:+.1f}, margin {margin:g}; {contrast['n_questions']} "
        f"questions, {seeds} training seed{'s' if seeds > 1 else ''}) at {contrast['token_factor']:.1f}x the output tokens."
    )


def _examples(settings: StudySettings, asked: list[Asked], found: dict[str, _Found]) -> list[dict[str, Any]]:
    """Two questions a task on which the verdict's two arms differ, or else its first two, as both answered them.

    Both students have the first training seed that the arms have in common.
    """
    row = next(c for c in settings.contrasts if c.verdict_size is not None)
    seeds = _common_seeds(found, row.verdict_size, row)
    if not seeds:
        return []
    pair = [found[f"{row.verdict_size}-{arm}"] for arm in (row.treatment, row.control)]
    shown = [(f.cell.id, seeds[0], f.members[seeds[0]]) for f in pair]
    examples = []
    for a in asked:
        answers = [member.answers[a.task.name] for _, _, member in shown]
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
