"""Outputs to grades: the answer alone is graded, never the reasoning, and what is not finished is wrong.

Checkers that may hang or take all memory (`math`, `ifeval`) run in processes of their own, under limits; the quick ones
run here: they take time linear in their texts and evaluate nothing. Longer texts than any that a model writes are cut.
"""

import importlib.metadata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distill.errors import InputError
from distill.evaluation.answers import Answer
from distill.evaluation.audit import audit, why_not_audited
from distill.evaluation.judging import Judges
from distill.evaluation.questions import Asked
from distill.evaluation.samples_and_budgets import token_means
from distill.flops import ModelShape
from distill.serve.judge import JudgeSettings
from distill.tasks.check_pool import LIMIT_S, MEMORY_BYTES, check_all
from distill.tasks.checkers import VERSION as CHECKERS_VERSION
from distill.tasks.ifeval import sentence_splitter
from distill.tasks.problem import Problem
from distill.tasks.task import Metric
from distill.tasks.verdict import Verdict

GRADING_VERSION = 4  # part of every key: raise it when the same output would get other grades
UNFINISHED = Verdict(False, "unfinished")
_CHARACTERS = 1_000_000  # of an answer, at its end
_LIBRARIES = {"math": ("math-verify", "sympy"), "ifeval": ("lm-eval", "langdetect", "nltk")}


def grade(
    asked: Sequence[Asked], answers: Sequence[Answer], judges: Judges | None = None, *, processes: int | None = None
) -> list[Answer]:
    """The answers with `correct`, `verdict`, `failure` and `scores`. Unfinished is wrong; reasoning is never graded; an
    answer on which the checker comes to no end is wrong. `processes` run the slow checkers, one a core if not given.

    Raises InputError when a task's answers cannot be graded, or judges do not answer.
    """
    checkers = {a.task.name: a.task.checker for a in asked}
    verdicts = [UNFINISHED] * len(answers)
    places: dict[str | None, list[int]] = defaultdict(list)  # by checker
    for place, answer in enumerate(answers):
        if answer.finished:
            places[checkers[answer.task]].append(place)
    for checker, mine in places.items():
        if checker is None or (checker == "judge" and judges is None):
            raise InputError(f"task {answers[mine[0]].task}: no checker or judge for its answers")
        if checker == "judge":
            for place, verdict in zip(mine, judges.judge([answers[p] for p in mine]), strict=True):
                verdicts[place] = verdict
            continue

        def keep(number: int, verdict: Verdict, mine: list[int] = mine) -> None:
            verdicts[mine[number]] = verdict

        pairs = ((answers[p].gold, answers[p].answer[-_CHARACTERS:]) for p in mine)
        check_all(checker, pairs, keep, processes=processes)
    return [
        replace(a, correct=v.correct, verdict=v.note, failure=v.failure, scores=dict(v.scores))
        for a, v in zip(answers, verdicts, strict=True)
    ]


def grading_recipe(asked: Sequence[Asked], judges: Sequence[JudgeSettings] = ()) -> dict[str, Any]:
    """All that grades depend on besides the answers and the tasks."""
    checkers = {a.task.checker for a in asked} | ({"math"} if any(a.task.checker == "number" for a in asked) else set())
    recipe: dict[str, Any] = {"version": [GRADING_VERSION, CHECKERS_VERSION]}
    for checker in sorted(checkers & _LIBRARIES.keys()):
        recipe |= {name: importlib.metadata.version(name) for name in _LIBRARIES[checker]}
        recipe |= {"limit_s": LIMIT_S, "memory_bytes": MEMORY_BYTES}
    if "ifeval" in checkers:
        recipe["sentences"] = sentence_splitter()
    if judges:
        recipe["judges"] = [one.identity for one in judges]
    return recipe


def metric_columns(metric: Metric, problems: list[Problem], answers: list[Answer]) -> dict[str, np.ndarray]:
    """The rows of a metric as columns, one entry a question; an unfinished answer is graded as no answer."""
    rows = [
        metric.rows(p, a.answer if a.finished else "", Verdict(a.correct, a.verdict, a.failure, a.scores))
        for p, a in zip(problems, answers, strict=True)
    ]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def summarise(
    asked: list[Asked], answers: list[Answer], shape: ModelShape | None, judges: Judges | None = None
) -> dict[str, Any]:
    """By task: metrics, rates, token means, modelled FLOPs, how it was graded and the audit of that. What is timed is
    under `measured`. Raises InputError when judges do not answer."""
    result = {}
    problems = {problem.id: problem for a in asked for problem in a.problems}
    for a in asked:
        mine = [answer for answer in answers if answer.task == a.task.name]
        theirs = [problems[answer.problem_id] for answer in mine]
        finished = [answer for answer in mine if answer.finished]
        flops = None  # of a model behind an endpoint nobody knows the shape
        if shape is not None:
            flops = sum(shape.generation_flops(x.prompt_tokens, x.thinking_tokens + x.answer_tokens) for x in mine)
        correct = sum(x.correct for x in mine)
        result[a.task.name] = {
            "n_questions": len(a.problems),
            "n_answers": len(mine),
            "n_correct": correct,
            "rows_left_out": a.rows_left_out,
            "metrics": {n: m.value(metric_columns(m, theirs, mine)) for n, m in a.task.metrics.items()},
            "unfinished_rate": 1 - len(finished) / len(mine),
            "think_rate": float(np.mean([x.thought for x in mine])),
            "accuracy_finished": float(np.mean([x.correct for x in finished])) if finished else None,
            "tokens_per_answer": {"prompt": float(np.mean([x.prompt_tokens for x in mine]))} | token_means(mine),
            "tokens_by_grade": {
                name: {"n_answers": len(some), **token_means(some)}
                for name, some in {
                    "right": [x for x in mine if x.correct],
                    "wrong": [x for x in mine if not x.correct],
                    "wrong_finished": [x for x in finished if not x.correct],
                }.items()
            },
            "grading": _grading(a, mine, judges),
            "audit": audit(a, mine, judges),
            "flops_per_answer": flops / len(mine) if flops is not None else None,
            "flops_per_correct": flops / correct if flops is not None and correct else None,
            "measured": {"mean_latency_seconds": float(np.mean([x.seconds for x in mine]))},
        }
    return result


def _grading(asked: Asked, answers: list[Answer], judges: Judges | None) -> dict[str, Any]:
    """By whom a task's answers were graded, on how many the checker came to no end, and why nobody audits them."""
    failures = Counter(a.failure for a in answers if a.failure is not None)
    said: dict[str, Any] = {"checker": asked.task.checker, "failures": dict(sorted(failures.items()))}
    if (reason := why_not_audited(asked, answers, judges)) is not None:
        said["not_audited"] = reason
    if asked.task.checker == "ifeval":
        said["sentences"] = sentence_splitter()
    if asked.task.checker == "judge" and judges is not None:
        said["agreement"] = judges.agreement(answers)
    return said
