"""The questions of an evaluation, and the token ids they are asked with."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from distill import console
from distill.errors import InputError
from distill.evaluation.gradable import check_gradable
from distill.evaluation.settings import COUNT, UP_TO, EvaluateSettings, Questions
from distill.evaluation.subject import Subject
from distill.serve.judge import JudgeSettings
from distill.tasks import get_task
from distill.tasks.problem import Problem, Split
from distill.tasks.task import Task
from distill.traces.trace import Mode


@dataclass(frozen=True)
class Asked:
    """The questions of one task."""

    task: Task
    problems: list[Problem]

    @property
    def rows_left_out(self) -> int:
        """Rows of the source that repeat another one or cannot be read."""
        return len(getattr(self.task, "bad_rows", ()))


@dataclass(frozen=True)
class Prompts:
    """The token ids of every question, by problem id, and how they end."""

    ids: dict[str, list[int]]
    opened: bool = False  # inside a think block
    as_text: bool = False  # not a chat: the answer is all of the text up to a stop
    stop: tuple[str, ...] = ()
    shots: dict[str, int] = field(default_factory=dict)  # examples before each question, by task


def ask(questions: list[Questions], judges: tuple[JudgeSettings, ...] = ()) -> list[Asked]:
    """The problems to be answered. Raises InputError for an unknown task, too many questions, or none to be graded."""
    asked, own = [], [q.task for q in questions if q.data is not None]
    for q in questions:
        task = get_task(q.task, q.data, own)
        check_gradable(task, judges)
        if (q.count is None or q.split == "all") and not hasattr(task, "places"):
            raise InputError(
                f"task {task.name}: say how many questions of which split; there is no list of all of them"
            )
        asked.append(Asked(task, _problems(task, q)))
    return asked


def _problems(task: Task, q: Questions) -> list[Problem]:
    if q.count == UP_TO and (found := up_to(task, q.split, COUNT, q.seed)):
        return found
    return task.problems(q.split, 1 if q.count == UP_TO else q.count, q.seed)


def up_to(task: Task, split: Split | Literal["all"], count: int, seed: int) -> list[Problem]:
    """`count` of a split in the order drawn by `seed`, or as many as there are: a smaller count gives the beginning of a
    larger. Empty where a single one cannot be had."""
    found: list[Problem] = []
    low, high, wanted = 0, count + 1, count  # low can be had, high cannot
    while high - low > 1:
        try:
            found, low = task.problems(split, wanted, seed), wanted
        except InputError:
            high = wanted
        wanted = (low + high) // 2
    return found


def note_rows_left_out(asked: list[Asked]) -> None:
    """One line a task for the person: how many rows of its source are not asked, and the first of them."""
    for a in asked:
        if a.rows_left_out:
            rows = a.task.bad_rows
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(row.reason for row in rows).items())
            console.note(
                f"task {a.task.name}: rows left out: {kinds}; the first is {rows[0].source} ({rows[0].detail:.200})"
            )


def recipe_of(settings: EvaluateSettings, asked: list[Asked]) -> dict[str, Any]:
    """The settings for a key, with the number of questions where it is only said how many at most."""
    values = settings.of_recipe()
    for question, a in zip(values["questions"], asked, strict=True):
        if question.get("count") == UP_TO:
            question["count"] = len(a.problems)
    return values


def prompt_ids(subject: Subject, asked: list[Asked], mode: Mode | None = None) -> dict[str, list[int]]:
    """Token ids of every question, by problem id, asked for `mode`. Raises InputError when one question is asked twice,
    and for a mode that the student does not know or needs."""
    problems = distinct_problems(asked)
    rows = subject.require_chat().prompt_ids([p.prompt for p in problems], mode)
    return dict(zip([p.id for p in problems], rows, strict=True))


def distinct_problems(asked: list[Asked]) -> list[Problem]:
    """All problems in their order. Raises InputError when one question is asked twice."""
    problems = [problem for a in asked for problem in a.problems]
    if len({p.id for p in problems}) < len(problems):
        raise InputError("--tasks: the same task is named twice")
    return problems


def positions_needed(subject: Subject, prompts: dict[str, list[int]], max_tokens: int) -> int:
    """Of the longest prompt and its answer. Raises InputError when the model has fewer."""
    limit = getattr(subject.config, "max_position_embeddings", None)
    longest = max(len(ids) for ids in prompts.values()) + max_tokens
    if limit is not None and longest > limit:
        raise InputError(
            f"{subject.folder}: prompts and --max-tokens need {longest} positions, but the model has {limit}"
        )
    return longest
