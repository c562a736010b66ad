"""What every task offers, how a metric is computed, and which split a prompt belongs to.

A task is a source of problems and a grader. The split of a prompt is a function of the prompt alone, so train,
validation and test are disjoint whatever the seeds and counts of the calls that drew them.
"""

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

from distill.errors import InputError, unknown_name
from distill.tasks.checkers import QUICK, check
from distill.tasks.problem import AnswerFormat, Problem, Split
from distill.tasks.verdict import Verdict

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Metric:
    """A score over many graded answers, in two steps, so that a bootstrap grades once and resamples many times.

    `rows(problem, answer, verdict)` are the numbers of one answer, one row of a table; `verdict` is what the task's
    checker said of it. An unfinished answer is the empty string. `value(columns, sample_weight)` is the score of that
    table: columns of n numbers and, for a resample, how often each of the n rows was drawn (None: once each). Weights
    of many resamples, [draws, n], give the scores of all of them, [draws]. It is NaN for no rows.
    """

    name: str
    rows: Callable[[Problem, str, Verdict], dict[str, float]]
    value: Callable[..., float]

    def score(self, problems: Sequence[Problem], answers: Sequence[str], verdicts: Sequence[Verdict]) -> float:
        """The value over these answers."""
        rows = [self.rows(*one) for one in zip(problems, answers, verdicts, strict=True)]
        return self.value({name: [row[name] for row in rows] for name in rows[0]}) if rows else math.nan


def weighted_mean(column: str) -> Callable[..., Any]:
    """The `value` function of a metric that is the mean of one column."""

    def value(columns: Columns, sample_weight: Any = None) -> Any:
        return ratio_of_sums(columns[column], [1.0] * len(columns[column]), sample_weight)

    return value


def ratio_of_sums(above: Sequence[float], below: Sequence[float], sample_weight: Any = None) -> Any:
    """The sum of above[n] over that of below[n], NaN where that is 0; for weights[draws, n] of each draw."""
    import numpy as np

    weights = np.ones(len(above)) if sample_weight is None else np.asarray(sample_weight, dtype=float)
    sums = weights @ np.column_stack([np.asarray(above, dtype=float), np.asarray(below, dtype=float)])
    found = np.divide(*np.moveaxis(sums, -1, 0), out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] > 0)
    return found if found.ndim else float(found)


# The share of answers that the checker accepts: the primary metric of every task.
ACCURACY = Metric(
    "accuracy",
    rows=lambda problem, answer, verdict: {"correct": float(verdict.correct)},
    value=weighted_mean("correct"),
)


class Task(Protocol):
    """A family of problems and its grader."""

    name: str
    revision: str  # changes when the same call would give other problems, solutions or grades
    answer_format: AnswerFormat
    checker: str | None  # a name in checkers.CHECKERS, or "judge"; None: answers are not graded
    distinct_prompts: int | None  # over all splits
    metrics: dict[str, Metric]  # "accuracy" first

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """`count` distinct problems in an order drawn by `seed`; a smaller count gives the beginning of a larger.

        Raises InputError that says how many there are when there are fewer.
        """

    def solve(self, problem: Problem) -> tuple[str, str]:
        """(reasoning, answer) of the embedded teacher."""

    def is_correct(self, problem: Problem, answer: str) -> bool:
        """Whether `answer`, the text after the reasoning, is right. Safe and quick on any text.

        Raises InputError where the checker needs processes or models of its own.
        """


class CheckedByName:
    """Base of tasks whose `checker` is the name of one."""

    name: str
    checker: str

    def is_correct(self, problem: Problem, answer: str) -> bool:
        if self.checker not in QUICK:
            raise InputError(f"task {self.name}: checker {self.checker} needs a process or model of its own")
        return check(self.checker, problem.gold, answer).correct


def split_of(prompt: str) -> Split:
    """80 % train, 10 % validation, 10 % test, by a hash of the prompt."""
    percent = int.from_bytes(hashlib.sha256(prompt.encode()).digest()) % 100
    return "train" if percent < 80 else "validation" if percent < 90 else "test"


def check_request(split: str, count: int) -> None:
    """Raises InputError for a split or count that no task has."""
    if split not in get_args(Split):
        raise unknown_name("split", split, get_args(Split))
    if count < 1:
        raise InputError(f"count of problems: found {count}, expected at least 1")


def draw(task: str, split: str, pool: Sequence[Problem], count: int | None, seed: int) -> list[Problem]:
    """`count` of the problems of a split in an order drawn by `seed`; with None all of them in theirs.

    Raises InputError when there are fewer.
    """
    drawn = list(pool)
    if count is None:
        return drawn
    if count > len(drawn):
        raise too_few(task, split, count, str(len(drawn)))
    random.Random(f"{task} {split} {seed}").shuffle(drawn)
    return drawn[:count]


def too_few(task: str, split: str, count: int, there_are: str) -> InputError:
    of_split = "" if split == "all" else f"{split} "
    return InputError(f"task {task}: {count} {of_split}problems asked for, but there are only {there_are}")
