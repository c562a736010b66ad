"""What stands beside the arms of a study, and what is found of it: the teacher, the untrained base, majority votes, and
the answers that a router and an oracle choose (routing/choices.py)."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from distill.artifact import Artifact
from distill.evaluation.questions import Asked, ask
from distill.evaluation.samples_and_budgets import by_question
from distill.evaluation.statistics.matched_majority import affordable_votes, majority_scores
from distill.evaluation.statistics.resampling import Sample, of_scores
from distill.flops import hardware
from distill.study.cells import cells
from distill.study.found import Found, FoundCell, asked_and_graded
from distill.study.outcomes import Graded, MemberOutcome
from distill.study.routing.choices import Routed
from distill.study.rows import StudentRow, TeacherRow
from distill.study.settings import StudySettings
from distill.tasks.task import Columns

TEACHER = "teacher"


def found_beside(
    settings: StudySettings, students: dict[str, FoundCell], asked_once: dict[str, Artifact]
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
        pair = _pair(settings, students, "majority", size, (row.arm, row.matched)) if row else None
        if pair and (majority := Majority(f"{size.name}-majority", settings, *pair)).seeds:
            found[majority.id] = majority
    for routed in routers(settings, students):
        found |= {routed.id: routed, routed.oracle.id: routed.oracle}
    return found


def routers(settings: StudySettings, students: dict[str, FoundCell]) -> list[Routed]:
    """One a size that has both arms of the router, with a training seed in common."""
    row, found = settings.comparators.router, []
    for size in settings.students if row is not None else []:
        pair = _pair(settings, students, "router", size, (row.thinks, row.direct))
        if pair and (routed := Routed(f"{size.name}-router", *pair)).seeds:
            found.append(routed)
    return found


def write_routers(settings: StudySettings, outcomes: dict[str, MemberOutcome], folder: Path) -> None:
    """router-<size>.json: fitted on all questions of the study, to decide on others (routing/router.py reads it)."""
    if settings.comparators.router is None:
        return
    asked = ask(settings.evaluate_settings().questions, settings.evaluate_settings().judges)
    found = {cell.id: FoundCell(cell, outcomes, hardware(settings.hardware)) for cell in cells(settings)}
    for routed in routers(settings, found):
        routed.router(asked).write(folder / f"router-{routed.size}.json")


def _pair(
    settings: StudySettings, students: dict[str, FoundCell], kind: str, size: StudentRow, arms: tuple[str, str]
) -> list[FoundCell] | None:
    """Both cells of a comparator in a size; None where it has none there, or one of them failed."""
    pair = [students.get(f"{size.name}-{arm}") for arm in arms]
    return pair if None not in pair and settings.seeds_of(kind, size) else None


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

    def per_question(self, a: Asked, name: str, seed: int | None) -> np.ndarray:
        if name != "flops":
            return self.graded.per_question(a, name)
        # As many a token, which the mean over all questions says: exact for a teacher's two a parameter, and nearly for a
        # base, whose questions with their examples are of like length.
        answers = self.graded.answers[a.task.name]
        tokens = np.array([x.prompt_tokens + x.thinking_tokens + x.answer_tokens for x in answers], dtype=np.float64)
        return self.mean(a, name) * tokens.reshape(len(a.problems), -1).mean(axis=1) / tokens.mean()

    def mean(self, a: Asked, name: str, seeds: Iterable[int] | None = None) -> float | None:
        summary = self.evaluation.summary[a.task.name]
        if name == "training_tokens":
            return None
        if name == "flops" and self.teacher is not None:
            tokens = summary["tokens_per_answer"]
            each = self.teacher.parameters
            return None if each is None else 2 * each * (tokens["prompt"] + tokens["total"])
        return summary["tokens_per_answer"]["total"] if name == "tokens" else summary["flops_per_answer"]

    def usd(self, a: Asked) -> float | None:
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
                    usd=self.usd(a),
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

    def per_question(self, a: Asked, name: str, seed: int | None) -> np.ndarray:
        if name == "accuracy":
            (sample,) = self.samples(a, name, [seed])
            return sample.scores
        graded, k, shape = self._ballots[seed], self.k(a), self._member(seed).shape
        each = k * graded.per_question(a, name, shape)
        return each - (k - 1) * self._reading(a, seed) if name == "flops" else each

    def _reading(self, a: Asked, seed: int) -> np.ndarray:
        """FLOPs of reading each question, float64[Q]: a vote reads it once, and k answers are generated after it."""
        prompts = [answer.prompt_tokens for answer in self._ballots[seed].answers[a.task.name]]
        shape = self._member(seed).shape
        each = np.array([shape.forward_flops([tokens], 0) for tokens in prompts])
        return each.reshape(len(a.problems), -1).mean(axis=1)

    def mean(self, a: Asked, name: str, seeds: Iterable[int] | None = None) -> float | None:
        if name == "training_tokens":
            return self.voters.mean(a, name, seeds)
        value = self._tokens if name == "tokens" else self._flops
        return float(np.mean([value(a, seed) for seed in (self.seeds if seeds is None else seeds)]))

    def _tokens(self, a: Asked, seed: int) -> float:
        return self.k(a) * self._summary(a, seed)["tokens_per_answer"]["total"]

    def _flops(self, a: Asked, seed: int) -> float:
        k = self.k(a)
        return k * self._summary(a, seed)["flops_per_answer"] - (k - 1) * float(self._reading(a, seed).mean())

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
