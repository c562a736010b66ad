"""What is said of several answers to a question beside the grades of all of them together: majority of n, accuracy by
thinking budget, and answers with thinking against those without."""

from collections.abc import Hashable
from typing import Any

import numpy as np

from distill.evaluation.answers import Answer
from distill.evaluation.statistics.intervals import score
from distill.evaluation.statistics.pass_at_k import majority_at_k
from distill.evaluation.statistics.resampling import of_scores
from distill.tasks.answers import final_answer
from distill.tasks.final_number import final_number
from distill.tasks.letters import option_letter
from distill.tasks.problem import AnswerFormat


def headline(answers: list[Answer]) -> list[Answer]:
    """The answers that a task's grades are of: those without a thinking budget, or with the largest."""
    budgets = {a.budget for a in answers}
    chosen = None if None in budgets else max(b for b in budgets if b is not None)
    return [a for a in answers if a.budget == chosen]


def by_question(answers: list[Answer]) -> list[list[Answer]]:
    """The samples of each question together, in their order."""
    questions: dict[str, list[Answer]] = {}
    for answer in answers:
        questions.setdefault(answer.problem_id, []).append(answer)
    return [sorted(samples, key=lambda a: a.sample) for samples in questions.values()]


def token_means(answers: list[Answer]) -> dict[str, float | None]:
    """Generated tokens an answer; None where there is no answer."""
    thinking, answer = ([getattr(a, f"{part}_tokens") for a in answers] for part in ("thinking", "answer"))
    columns = {"thinking": thinking, "answer": answer, "total": np.add(thinking, answer)}
    return {name: float(np.mean(column)) if answers else None for name, column in columns.items()}


def further_grades(answers: list[Answer], answer_format: AnswerFormat) -> dict[str, Any]:
    """Of one task's graded answers; only what applies."""
    result: dict[str, Any] = {}
    main = headline(answers)
    questions = by_question(main)
    n = len(questions[0])
    if n > 1:
        votes = [[vote(a, answer_format) for a in samples] for samples in questions]
        right = [[a.correct for a in samples] for samples in questions]
        result["samples"] = {
            "n": n,
            "pass_at_1": _interval([np.mean(r) for r in right]),
            f"majority_at_{n}": _interval(majority_at_k(votes, right, n)),
        }
    if len(main) < len(answers) or main[0].budget is not None:
        budgets = dict.fromkeys(a.budget for a in answers)
        ordered = sorted(budgets, key=lambda b: (b is None, b))
        result["curve"] = [_point(b, [a for a in answers if a.budget == b]) for b in ordered]
    thought = [a for a in main if a.thought]
    if 0 < len(thought) < len(main):
        without = [a for a in main if not a.thought]
        result["by_thinking"] = {"thought": _part(thought), "did_not": _part(without)}
    return result


def vote(answer: Answer, answer_format: AnswerFormat) -> Hashable | None:
    """An answer in a form that is equal where answers agree; None for one that is unfinished or empty."""
    if not answer.finished:
        return None
    if answer_format == "choice":
        return option_letter(answer.answer)
    number = final_number(answer.answer) if answer_format == "open" else None
    return number if number is not None else final_answer(answer.answer).casefold() or None


def _point(budget: int | None, answers: list[Answer]) -> dict[str, Any]:
    scores = [np.mean([a.correct for a in samples]) for samples in by_question(answers)]
    return {"budget": budget, "accuracy": _interval(scores), **_part(answers)}


def _part(answers: list[Answer]) -> dict[str, Any]:
    mean = lambda values: float(np.mean(list(values)))  # noqa: E731
    return {
        "n_answers": len(answers),
        "n_correct": sum(a.correct for a in answers),
        "unfinished_rate": mean(not a.finished for a in answers),
        "think_rate": mean(a.thought for a in answers),
        "tokens_per_answer": token_means(answers),
    }


def _interval(scores: Any) -> dict[str, float]:
    """A mean over questions with its 95 % interval."""
    found = score([of_scores(np.asarray(scores, dtype=float))])
    return {"value": found.value, "low": found.low, "high": found.high}
