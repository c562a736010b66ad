"""The questions of an evaluation, and the token ids they are asked with."""

from dataclasses import dataclass

from distill.errors import InputError
from distill.evaluation.settings import Questions
from distill.evaluation.subject import Subject
from distill.tasks import get_task
from distill.tasks.problem import Problem
from distill.tasks.task import Task
from distill.traces.trace import Mode


@dataclass(frozen=True)
class Asked:
    """The questions of one task."""

    task: Task
    problems: list[Problem]


def ask(questions: list[Questions]) -> list[Asked]:
    """The problems to be answered. Raises InputError for an unknown task or too many questions."""
    asked = []
    for q in questions:
        task = get_task(q.task)
        asked.append(Asked(task, task.problems(q.split, q.count, q.seed)))
    return asked


def prompt_ids(subject: Subject, asked: list[Asked], mode: Mode | None = None) -> dict[str, list[int]]:
    """Token ids of every question, by problem id, asked for `mode`. Raises InputError when one question is asked twice,
    and for a mode that the student does not know or needs."""
    problems = [problem for a in asked for problem in a.problems]
    rows = subject.chat.prompt_ids([p.prompt for p in problems], mode)
    ids = dict(zip([p.id for p in problems], rows, strict=True))
    if len(ids) < len(problems):
        raise InputError("--tasks: the same task is named twice")
    return ids


def positions_needed(subject: Subject, prompts: dict[str, list[int]], max_tokens: int) -> int:
    """Of the longest prompt and its answer. Raises InputError when the model has fewer."""
    limit = getattr(subject.config, "max_position_embeddings", None)
    longest = max(len(ids) for ids in prompts.values()) + max_tokens
    if limit is not None and longest > limit:
        raise InputError(
            f"{subject.folder}: prompts and --max-tokens need {longest} positions, but the model has {limit}"
        )
    return longest
