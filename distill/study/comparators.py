"""What stands beside the arms of a study, and what is found of it: the teacher, the untrained base, majority votes."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from distill.artifact import Artifact
from distill.evaluation.questions import Asked
from distill.evaluation.samples_and_budgets import by_question
from distill.evaluation.statistics.matched_majority import affordable_votes, majority_scores
from distill.evaluation.statistics.resampling import Sample, of_scores
from distill.study.found import Found, FoundCell, asked_and_graded
from distill.study.outcomes import Graded, MemberOutcome
from distill.study.settings import StudySettings, TeacherRow
from distill.tasks.task import Columns

TEACHER = "teacher"


def found_beside(
    settings: StudySettings, cells: dict[str, FoundCell], asked_once: dict[str, Artifact]
) -> dict[str, Found]:
    """The comparators that there are results of, by id. `asked_once`: evaluations of the teacher and of bases, by id."""
    found: dict[str, Found] = {}
    if TEACHER in asked_once:
        found[TEACHER] = AskedOnce(TEACHER, asked_once[TEACHER], teacher=settings.comparators.teacher)
    for size in settings.students:
        name = f"{size.name}-base"
        if name in asked_once:
            found[name] = AskedOnce(name, asked_once[name], size=size.name, student=size.student)
        row = settings.comparators.majority
        pair = [cells.get(f"{size.name}-{arm}") for arm in (row.arm, row.matched)] if row else [None]
        if not all(pair) or not settings.seeds_of("majority", size):
            continue
        majority = Majority(f"{size.name}-majority", settings, *pair)
        if majority.seeds:
            found[majority.id] = majority
    return found


class AskedOnce(Found):
    """A model that was not trained here: one evaluation, and no seeds."""

    seeds = None

    def __init__(
        self,
        name: str,
        evaluation: Artifact,
        *,
        teacher: TeacherRow | None = None,
        size: str | None = None,
        student: str | None = None,
    ) -> None:
        super().__init__()
        self.id, self.evaluation, self.graded = name, evaluation, Graded(evaluation)
        self.teacher, self.size, self.student = teacher, size, student

    def metrics(self, a: Asked) -> list[str]:
        return list(a.task.metrics)

    def _resample(self, a: Asked, metric: str, seed: int | None) -> Sample:
        return self.graded.resample(a, metric)

    def columns(self, a: Asked, metric: str, seeds: list[int]) -> list[Columns]:
        return [self.graded.columns(a, metric)] * len(seeds)

    def mean(self, a: Asked, name: str, seeds: Iterable[int] | None = None) -> float | None:
        summary = self.evaluation.summary[a.task.name]
        if name == "training_tokens":
            return None
        if name == "flops" and self.teacher is not None:
            tokens = summary["tokens_per_answer"]
            each = self.teacher.parameters
            return None if each is None else 2 * each * (tokens["prompt"] + tokens["total"])
        return summary["tokens_per_answer"]["total"] if name == "tokens" else summary["flops_per_answer"]

    def _usd(self, a: Asked) -> float | None:
        row, tokens = self.teacher, self.evaluation.summary[a.task.name]["tokens_per_answer"]
        if row is None or row.usd_per_million_input is None or row.usd_per_million_output is None:
            return None
        return (row.usd_per_million_input * tokens["prompt"] + row.usd_per_million_output * tokens["total"]) / 1e6

    def describe(self, asked: list[Asked], confidence: float) -> dict[str, Any]:
        """Its entry in the results. Nothing was put under load, so it has no seconds; a teacher's price is by the token."""
        few_shot = {name: summary.get("few_shot") for name, summary in self.evaluation.summary.items()}
        return {
            "id": self.id,
            "kind": "base" if self.teacher is None else TEACHER,
            "size": self.size,
            "model": self.student if self.teacher is None else self.teacher.model,
            "seeds": [],
            "tasks": {
                a.task.name: asked_and_graded(
                    a,
                    self.scored(a, confidence),
                    [self.evaluation.summary[a.task.name]],
                    flops=self.mean(a, "flops"),
                    seconds=None,
                    usd=self._usd(a),
                )
                | ({} if few_shot[a.task.name] is None else {"few_shot": few_shot[a.task.name]})
                for a in asked
            },
        }


class Majority(Found):
    """The vote of the students of one cell, who may spend as many output tokens on it as those of another on an answer.

    How many votes that buys is one number a task: the ratio of both cells' mean tokens over the seeds that they share.
    """

    def __init__(self, name: str, settings: StudySettings, voters: FoundCell, matched: FoundCell) -> None:
        super().__init__()
        self.id, self.row, self.voters, self.matched = name, settings.comparators.majority, voters, matched
        self.tasks = self.row.tasks or [row.task for row in settings.tasks]
        self.seeds = [s for s, m in voters.members.items() if m.sampled is not None and s in matched.members]

    @cached_property
    def _ballots(self) -> dict[int, Graded]:
        return {seed: Graded(self.voters.members[seed].sampled) for seed in self.seeds}

    def _member(self, seed: int) -> MemberOutcome:
        return self.voters.members[seed]

    def _one(self, a: Asked) -> float:
        """Tokens of one sampled answer."""
        return float(np.mean([self._summary(a, seed)["tokens_per_answer"]["total"] for seed in self.seeds]))

    def _summary(self, a: Asked, seed: int) -> dict[str, Any]:
        return self._member(seed).sampled.summary[a.task.name]

    def affordable(self, a: Asked) -> int:
        """Votes that the matched cell's tokens pay for."""
        return affordable_votes(self._one(a), self.matched.mean(a, "tokens", self.seeds))

    def k(self, a: Asked) -> int:
        return min(self.affordable(a), self.row.votes)

    def capped(self, a: Asked) -> bool:
        return self.k(a) < self.affordable(a)

    def metrics(self, a: Asked) -> list[str]:
        return ["accuracy"] if a.task.name in self.tasks else []

    def _resample(self, a: Asked, metric: str, seed: int | None) -> Sample:
        questions = by_question(self._ballots[seed].answers[a.task.name])
        return of_scores(majority_scores(questions, a.task.answer_format, self.k(a)))

    def columns(self, a: Asked, metric: str, seeds: list[int]) -> list[Columns]:
        raise NotImplementedError("a majority has scores and no rows")

    def mean(self, a: Asked, name: str, seeds: Iterable[int] | None = None) -> float | None:
        if name == "training_tokens":
            return self.voters.mean(a, name, seeds)
        value = self._tokens if name == "tokens" else self._flops
        return float(np.mean([value(a, seed) for seed in (self.seeds if seeds is None else seeds)]))

    def _tokens(self, a: Asked, seed: int) -> float:
        return self.k(a) * self._summary(a, seed)["tokens_per_answer"]["total"]

    def _flops(self, a: Asked, seed: int) -> float:
        """Of one vote: the prompt is read once, and k answers are generated after it."""
        k, shape = self.k(a), self._member(seed).shape
        prompts = np.array([answer.prompt_tokens for answer in self._ballots[seed].answers[a.task.name]])
        reading = shape.forward_flops(prompts, 0) / len(prompts)
        return k * self._summary(a, seed)["flops_per_answer"] - (k - 1) * reading

    def describe(self, asked: list[Asked], confidence: float) -> dict[str, Any]:
        """Its entry in the results. Seconds and price are those of k answers of the cell's own profile."""
        cell = self.voters.cell
        return {
            "id": self.id,
            "kind": "majority",
            "size": cell.size.name,
            "arm": cell.arm.arm,
            "of": self.voters.id,
            "matched": self.matched.id,
            "temperature": self.row.temperature,
            "seeds": self.seeds,
            "parameters": self._member(self.seeds[0]).student.summary["parameters"],
            "tasks": {a.task.name: self._task(a, confidence) for a in asked if self.metrics(a)},
        }

    def _task(self, a: Asked, confidence: float) -> dict[str, Any]:
        name, k = a.task.name, self.k(a)
        each = lambda value: self.voters.mean_of(value, self.seeds)  # noqa: E731
        seconds = each(lambda m: m.seconds_per_answer(name))
        usd = each(lambda m: m.usd_per_answer(name, self.voters.device))
        votes = {
            "k": k,
            "affordable": self.affordable(a),
            "drawn": self.row.votes,
            "capped": self.capped(a),
            "matched_tokens": self.matched.mean(a, "tokens", self.seeds),
            "single_accuracy": float(np.mean([self._summary(a, s)["metrics"]["accuracy"] for s in self.seeds])),
        }
        return asked_and_graded(
            a,
            self.scored(a, confidence),
            [self._summary(a, seed) for seed in self.seeds],
            flops=self.mean(a, "flops"),
            seconds=None if seconds is None else k * seconds,
            usd=None if usd is None else k * usd,
            answers=k,
        ) | {"votes": votes}
