"""What the stages of a study left on disk, as its results read it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from distill.artifact import Artifact, read_json
from distill.evaluation.answer_file import read_answers
from distill.evaluation.answers import Answer
from distill.evaluation.grading import metric_columns
from distill.evaluation.questions import Asked
from distill.evaluation.statistics.resampling import Sample, resample
from distill.flops import Hardware, ModelShape


@dataclass(frozen=True)
class Graded:
    """The graded answers of one evaluation, as many samples to every question of a task."""

    evaluation: Artifact

    @cached_property
    def answers(self) -> dict[str, list[Answer]]:
        """By task, in the order the questions were drawn; the samples of one question together."""
        by_task: dict[str, list[Answer]] = {}
        for answer in read_answers(self.evaluation.path / "answers.parquet"):
            by_task.setdefault(answer.task, []).append(answer)
        return by_task

    def samples(self, a: Asked) -> int:
        """Answers to each question."""
        return len(self.answers[a.task.name]) // len(a.problems)

    def columns(self, a: Asked, metric: str) -> dict[str, np.ndarray]:
        """The rows of a metric, one an answer."""
        problems = [problem for problem in a.problems for _ in range(self.samples(a))]
        return metric_columns(a.task.metrics[metric], problems, self.answers[a.task.name])

    def per_question(self, a: Asked, name: str, shape: ModelShape | None = None) -> np.ndarray:
        """`accuracy`, `tokens` of the output, or with a model's shape `flops`: float64[Q], means over the samples."""
        answers = self.answers[a.task.name]
        output = [answer.thinking_tokens + answer.answer_tokens for answer in answers]
        of = {
            "accuracy": lambda: [answer.correct for answer in answers],
            "tokens": lambda: output,
            "flops": lambda: shape.generation_flops_by_answer([answer.prompt_tokens for answer in answers], output),
        }[name]
        return np.array(of(), dtype=np.float64).reshape(len(a.problems), -1).mean(1)

    def resample(self, a: Asked, metric: str) -> Sample:
        """How the metric varies with the questions; of several answers to each, it is their mean."""
        return resample(a.task.metrics[metric], self.columns(a, metric), samples=self.samples(a))


@dataclass(frozen=True)
class MemberOutcome:
    """What is known of one student."""

    student: Artifact
    evaluation: Artifact
    profile: Artifact
    shape: ModelShape | None = None
    sampled: Artifact | None = None  # the evaluation that majority votes are drawn from

    @cached_property
    def graded(self) -> Graded:
        return Graded(self.evaluation)

    @cached_property
    def load(self) -> dict[str, Any]:
        """profile.json: `threads` of the server, and `tasks`."""
        return read_json(self.profile.path / "profile.json")

    def seconds_per_answer(self, task: str) -> float | None:
        """At the highest concurrency, or of rates alone the highest; None when nothing was answered there, or the task not
        put under load."""
        levels = self.load["tasks"].get(task, {"levels": []})["levels"]
        most = lambda level: (level["concurrency"] or 0, level["load"].get("rate") or 0.0)  # noqa: E731
        level = max(levels, key=most, default=None)
        return None if level is None else level["measured"]["seconds_per_answer"]

    def usd_per_answer(self, task: str, device: Hardware) -> float | None:
        seconds = self.seconds_per_answer(task)
        return None if seconds is None else device.usd(seconds, self.load.get("threads") or 1)

    def training_usd(self, device: Hardware) -> float:
        measured = self.student.summary["measured"]
        return device.usd(measured["seconds"], measured["threads"])
