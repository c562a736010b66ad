"""What was found of one entry of the results: the students of a cell, or what stands beside them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from distill.artifact import Artifact
from distill.evaluation.questions import Asked
from distill.evaluation.samples_and_budgets import by_question
from distill.evaluation.statistics.intervals import score
from distill.evaluation.statistics.matched_majority import majority_scores
from distill.evaluation.statistics.resampling import Sample, of_scores
from distill.flops import Hardware
from distill.study.cells import Cell
from distill.study.outcomes import MemberOutcome
from distill.tasks.task import Columns

_ASKED = ("traces", "think", "mode", "thinking_budget")  # of an arm's row, where it says them


class Found(ABC):
    """One side of a contrast. `seeds` are those of training; None for what was not trained, and pairs with any."""

    id: str
    cell: Cell | None = None
    seeds: list[int] | None

    def __init__(self) -> None:
        self._resampled: dict[tuple[str, str, int | None], Sample] = {}

    def samples(self, a: Asked, metric: str, seeds: Iterable[int | None]) -> list[Sample]:
        """One a seed, resampled once: an entry stands in several contrasts."""
        found = []
        for seed in seeds:
            key = (a.task.name, metric, seed if self.seeds is not None else None)
            if key not in self._resampled:
                self._resampled[key] = self._resample(a, metric, seed)
            found.append(self._resampled[key])
        return found

    @abstractmethod
    def metrics(self, a: Asked) -> list[str]:
        """Those it was scored in on a task; none where it was not asked."""

    @abstractmethod
    def _resample(self, a: Asked, metric: str, seed: int | None) -> Sample: ...

    @abstractmethod
    def columns(self, a: Asked, metric: str, seeds: list[int]) -> list[Columns]:
        """The rows of a metric that is no mean of scores, one table a seed."""

    @abstractmethod
    def per_question(self, a: Asked, name: str, seed: int | None) -> np.ndarray:
        """`accuracy`, `tokens` (of the output) or `flops` of each question in the order of `a.problems`, float64[Q]; of
        several answers to a question their mean."""

    @abstractmethod
    def mean(self, a: Asked, name: str, seeds: Iterable[int] | None = None) -> float | None:
        """`tokens` and `flops` of an answer or a vote, and `training_tokens`: means over `seeds`, all if not given."""

    def scored(self, a: Asked, confidence: float) -> dict[str, Any]:
        """`metrics` of a task in the results."""
        found = {}
        for metric in self.metrics(a):
            samples = self.samples(a, metric, [None] if self.seeds is None else self.seeds)
            found[metric] = {**asdict(score(samples, confidence=confidence))}
            found[metric]["per_seed"] = [sample.value for sample in samples]
        return found


class FoundCell(Found):
    """A cell with the outcomes of its members, by seed."""

    def __init__(self, cell: Cell, outcomes: dict[str, MemberOutcome], device: Hardware) -> None:
        super().__init__()
        self.id, self.cell, self.device = cell.id, cell, device
        self.members = {m.seed: outcomes[m.id] for m in cell.students() if m.id in outcomes}
        self.seeds = list(self.members)

    def metrics(self, a: Asked) -> list[str]:
        return list(a.task.metrics)

    def _resample(self, a: Asked, metric: str, seed: int | None) -> Sample:
        return self.members[seed].graded.resample(a, metric)

    def columns(self, a: Asked, metric: str, seeds: list[int]) -> list[Columns]:
        return [self.members[seed].graded.columns(a, metric) for seed in seeds]

    def per_question(self, a: Asked, name: str, seed: int | None) -> np.ndarray:
        member = self.members[seed]
        return member.graded.per_question(a, name, member.shape)

    def mean(self, a: Asked, name: str, seeds: Iterable[int] | None = None) -> float | None:
        of = {
            "tokens": lambda m: m.evaluation.summary[a.task.name]["tokens_per_answer"]["total"],
            "flops": lambda m: m.evaluation.summary[a.task.name]["flops_per_answer"],
            "training_tokens": lambda m: m.student.summary["tokens"],
        }
        return self.mean_of(of[name], seeds)

    def mean_of(
        self, value: Callable[[MemberOutcome], float | None], seeds: Iterable[int] | None = None
    ) -> float | None:
        """The mean over `seeds`, all if not given; None when any of them has none."""
        values = [value(self.members[seed]) for seed in (self.members if seeds is None else seeds)]
        return None if any(v is None for v in values) else float(np.mean(values))

    def describe(self, asked: list[Asked], confidence: float) -> dict[str, Any]:
        """Its entry in the results."""
        counted = ("flops", "tokens", "supervised_tokens", "examples", "steps")
        timed = ("seconds", "tokens_per_second", "supervised_tokens_per_second", "mfu", "peak_rss_bytes")
        training = {name: self.mean_of(lambda m, n=name: m.student.summary[n]) for name in counted}
        measured = {name: self.mean_of(lambda m, n=name: m.student.summary["measured"][n]) for name in timed}
        measured["usd"] = self.mean_of(lambda m: m.training_usd(self.device))
        arm = self.cell.arm
        return {
            "id": self.id,
            "arm": self.shown,
            "size": self.cell.size.name,
            "match": arm.match,
            "answers": arm.answers,
            **{name: value for name in _ASKED if (value := getattr(arm, name)) is not None},
            "seeds": self.seeds,
            "parameters": self._first.student.summary["parameters"],
            "learning_rate": self._learning_rate,
            "folder": "/".join(self._first.student.path.parts[-2:]),
            "training": {**training, "measured": measured},
            "tasks": {a.task.name: self._task(a, confidence) for a in asked},
            "serving": self._serving(),
        }

    @property
    def _learning_rate(self) -> float | list[float]:
        """The peak, and of a curriculum the first phase's; one a seed where seeds chose different ones of several."""
        rates = [_learning_rate(member.student, self.cell.size.learning_rate) for member in self.members.values()]
        return rates[0] if len(set(rates)) == 1 else rates

    @property
    def shown(self) -> str:
        """What its students were shown: an arm, or `phases`."""
        return self.cell.arm.arm or "phases"

    @cached_property
    def _first(self) -> MemberOutcome:
        return next(iter(self.members.values()))

    def _task(self, a: Asked, confidence: float) -> dict[str, Any]:
        name = a.task.name
        usd = self.mean_of(lambda m: m.usd_per_answer(name, self.device))
        summaries = [m.evaluation.summary[name] for m in self.members.values()]
        return asked_and_graded(
            a,
            self.scored(a, confidence),
            summaries,
            flops=self.mean(a, "flops"),
            seconds=self.mean_of(lambda m: m.seconds_per_answer(name)),
            usd=usd,
        ) | self._majority(a, confidence)

    def _majority(self, a: Asked, confidence: float) -> dict[str, Any]:
        """`samples`, where several answers were asked for: what they are worth as votes."""
        n = self._first.graded.samples(a)
        if n == 1:
            return {}
        votes = [
            of_scores(majority_scores(by_question(m.graded.answers[a.task.name]), a.task.answer_format, n))
            for m in self.members.values()
        ]
        values = {**asdict(score(votes, confidence=confidence)), "per_seed": [vote.value for vote in votes]}
        return {"samples": {"n": n, "majority": values}}

    def _serving(self) -> list[dict[str, Any]]:
        """The first seed's profile, by task and concurrency."""
        return [
            {
                "task": task,
                "concurrency": level["concurrency"],
                "n_requests": level["completed"],
                "failed": level["failed"],
                "measured": {
                    **{f"{name}_ms": _milliseconds(level["measured"][f"{name}_s"]) for name in ("ttft", "tpot", "e2e")},
                    "output_tokens_per_second": (level["measured"]["output_tokens_per_s"] or {}).get("value"),
                },
            }
            for task, result in self._first.load["tasks"].items()
            for level in result["levels"]
        ]


def _learning_rate(student: Artifact, declared: float | dict[str, float]) -> float:
    """What was chosen of several on validation, else what the training was given."""
    settings = student.recipe.get("settings") or {}
    return student.summary.get("learning_rate") or settings.get("learning_rate", declared)


def asked_and_graded(
    a: Asked,
    metrics: dict[str, Any],
    summaries: list[dict[str, Any]],
    *,
    flops: float | None,
    seconds: float | None,
    usd: float | None,
    answers: int = 1,
) -> dict[str, Any]:
    """One task of an entry: its scores, and means over the `summaries` of its evaluations.

    `flops`, `seconds` and `usd` are of one result, which is made of so many `answers`; their tokens are counted together.
    """
    mean = lambda name: _mean(summary[name] for summary in summaries)  # noqa: E731
    tokens = {
        part: _mean(summary["tokens_per_answer"][part] for summary in summaries)
        for part in ("prompt", "thinking", "answer", "total")
    }
    tokens |= {part: answers * tokens[part] for part in ("thinking", "answer", "total")}
    thousand = None if usd is None else 1000 * usd
    accuracy = metrics["accuracy"]["value"]
    # All that was spent, over the right ones.
    per_correct = lambda spent: spent / accuracy if spent is not None and accuracy > 0 else None  # noqa: E731
    apart = _by_thinking(summaries)
    return {
        "metrics": metrics,
        "n_questions": len(a.problems),
        "unfinished_rate": mean("unfinished_rate"),
        "think_rate": mean("think_rate"),
        "accuracy_finished": mean("accuracy_finished"),
        "grading": _grading([summary for summary in summaries if "grading" in summary]),
        "tokens_per_answer": tokens,
        **({"by_thinking": apart} if apart else {}),
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


def _by_thinking(summaries: list[dict[str, Any]]) -> dict[str, dict[str, Any]] | None:
    """Answers before which a student thought and those before which it did not, of all seeds; None unless there are both."""
    parts: dict[str, list[dict[str, Any]]] = {"thought": [], "did_not": []}
    for summary in summaries:
        whole = {1.0: {"thought": summary}, 0.0: {"did_not": summary}}
        for name, part in summary.get("by_thinking", whole.get(summary["think_rate"], {})).items():
            parts[name].append(part)
    return {name: _together(of) for name, of in parts.items()} if all(parts.values()) else None


def _together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts summed, and means over all answers."""
    n = [part["n_answers"] for part in parts]
    mean = lambda values: float(np.average(values, weights=n))  # noqa: E731
    return {
        "n_answers": sum(n),
        "n_correct": sum(part["n_correct"] for part in parts),
        "unfinished_rate": mean([part["unfinished_rate"] for part in parts]),
        "tokens_per_answer": {
            name: mean([part["tokens_per_answer"][name] for part in parts]) for name in ("thinking", "answer", "total")
        },
    }


def _grading(summaries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How far graders of these answers agree, over all seeds; None of answers that were graded as somebody else's."""
    if not summaries:
        return None
    audits = [summary["audit"] for summary in summaries if summary.get("audit")]
    judged = [one for summary in summaries if (one := summary["grading"].get("agreement"))]
    answers = sum(one["judged"] for one in judged)
    return {
        "checker": summaries[0]["grading"]["checker"],
        "no_end": sum(sum(summary["grading"]["failures"].values()) for summary in summaries),
        "second_checker": audits[0]["second_checker"] if audits else None,
        **{name: sum(audit[name] for audit in audits) for name in ("n_answers", "n_disagree", "only_second_right")},
        "judged": answers,
        "unanimous": sum(one["judged"] * one["unanimous"] for one in judged if one["judged"]) / answers
        if answers
        else None,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    values = list(values)
    return None if any(v is None for v in values) else float(np.mean(values))


def _milliseconds(values: dict[str, float] | None) -> dict[str, float] | None:
    return None if values is None else {p: 1000 * values[p] for p in ("p50", "p90", "p99")}
