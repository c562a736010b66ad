"""Questions of your own: a file, a folder saved by `datasets` or a data set on the Hub becomes a task.

    prompt     text, or a conversation that ends with the user's question
    answer     the gold answer where there is one: text or a number

Every row is a problem or a bad row: one that cannot be read, or that repeats an earlier question. Train, validation and
test are told apart by the hash of the prompt, as in every task; split "all" is all of them.
"""

import hashlib
import math
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from distill.artifact import canonical_json
from distill.errors import InputError, unknown_name
from distill.settings import Settings
from distill.tasks.checkers import QUICK, accepted_answers, check
from distill.tasks.checkers import VERSION as CHECKERS_VERSION
from distill.tasks.jsonl import checked_text, value_at
from distill.tasks.messages import SystemMessages, one_question, read_messages
from distill.tasks.metrics import METRICS, OF_RULES
from distill.tasks.problem import AnswerFormat, Problem, Split
from distill.tasks.rows import Row, open_source
from distill.tasks.task import ACCURACY, Metric, check_request, draw, split_of

VERSION = 1  # part of the revision: raise it when the same rows would give other problems or grades
TASK_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


class QuestionFile(Settings):
    """Where questions are, and which fields hold what; `extra.answer` is a field of a field."""

    path: Path  # JSON lines, Parquet, a folder saved by `datasets`, or a Hub id: owner/name[:config[:split]]
    prompt: str = Field("prompt", min_length=1)
    answer: str | None = Field(None, min_length=1)  # the gold answer's; None: there is none
    answer_format: AnswerFormat = "open"
    checker: str | None = None  # a name in checkers.QUICK, or math; None: answers are not graded
    metrics: tuple[str, ...] | None = Field(None, min_length=1)  # beside accuracy: squad_f1, rouge_l, macro_f1
    system: SystemMessages = "refuse"  # what becomes of a system message in front of the question
    skip_bad: bool = False  # keep rows that cannot be read as bad rows; the first one is an error otherwise

    @model_validator(mode="after")
    def _checker_has_gold(self) -> "QuestionFile":
        if self.checker is not None:
            if self.checker not in (*QUICK, "math"):
                raise unknown_name("checker of questions", self.checker, (*QUICK, "math"))
            if self.answer is None:
                raise ValueError(f"checker {self.checker} needs the field of the gold answer")
        return self

    @model_validator(mode="after")
    def _metrics_fit(self) -> "QuestionFile":
        known = [name for name in METRICS if name not in ("accuracy", *OF_RULES)]
        for metric in self.metrics or ():
            if metric not in known:
                raise unknown_name("metric of questions", metric, known)
            if self.checker is None:
                raise ValueError(f"metrics: {metric} stands beside accuracy, which needs a checker")
        return self


@dataclass(frozen=True)
class BadRow:
    """A row that gave no problem."""

    place: int  # number of the row, from 0
    source: str  # "file:line"
    reason: Literal["malformed", "repeated"]
    detail: str


class OwnTask:
    """The questions of a QuestionFile as a task, in the order of the rows.

    Raises InputError for what cannot be read, for the first malformed row (without `skip_bad`), and for no question.
    """

    def __init__(self, name: str, file: QuestionFile):
        if not TASK_NAME.fullmatch(name):
            raise InputError(f"task {name!r}: expected a name of letters, digits, '_', '.' and '-'")
        self.name = name
        self.answer_format = file.answer_format
        self.checker = file.checker
        self.bad_rows: list[BadRow] = []
        self.rows = 0  # of the source: problems and bad rows
        self.is_correct: Callable[[Problem, str], bool] | None = None
        self.metrics: dict[str, Metric] = {}
        if file.checker is not None:
            if file.checker in QUICK:  # math needs processes of its own
                self.is_correct = lambda problem, answer: check(file.checker, problem.gold, answer).correct
            self.metrics = {"accuracy": ACCURACY}
        self._file = file
        self._problems: list[Problem] = []
        self._places = array("q")
        self.revision = self._load()
        self.metrics |= {name: METRICS[name](self._problems) for name in file.metrics or ()}

    @property
    def distinct_prompts(self) -> int:
        return len(self._problems)

    def problems(self, split: Split | Literal["all"], count: int | None, seed: int) -> list[Problem]:
        """`count` of a split in an order drawn by `seed`, or with None all of it in the order of the rows."""
        if split != "all":
            check_request(split, 1 if count is None else count)
            pool = [problem for problem in self._problems if split_of(problem.prompt) == split]
        else:
            check_request("train", 1 if count is None else count)
            pool = list(self._problems)
        return draw(self.name, split, pool, count, seed)

    def places(self) -> dict[str, int]:
        """Problem id -> number of its row, from 0."""
        return {problem.id: place for problem, place in zip(self._problems, self._places, strict=True)}

    def solve(self, problem: Problem) -> tuple[str, str]:
        raise InputError(
            f"task {self.name}: has no worked solutions; --teacher says who answers (a server's URL, or vllm:MODEL)"
        )

    def _load(self) -> str:
        """Read every row. Returns the revision: a hash of what was read."""
        file = self._file
        content = hashlib.sha256(canonical_json([VERSION, CHECKERS_VERSION, file.answer_format, file.checker]).encode())
        if file.metrics is not None:
            content.update(canonical_json(file.metrics).encode())
        source = open_source(file.path, [field for field in (file.prompt, file.answer) if field])
        for field in (file.prompt, file.answer):
            if field:
                source.require(field)
        seen: dict[bytes, int] = {}  # hash of a prompt -> number of the first row that has it
        for place, (where, read) in enumerate(source.rows()):
            name = where.removeprefix(source.prefix)
            self.rows += 1
            try:
                problem = self._problem(read(), where)
                first = seen.setdefault(hashlib.sha256(problem.prompt.encode()).digest()[:16], place)
                if first == place:
                    self._problems.append(problem)
                    self._places.append(place)
                    content.update(canonical_json([problem.prompt, problem.gold]).encode())
                    continue
                bad = BadRow(place, name, "repeated", f"the same question as row {first + 1}")
            except InputError as error:
                if not file.skip_bad:
                    raise
                bad = BadRow(place, name, "malformed", str(error).removeprefix(f"{where}: "))
            self.bad_rows.append(bad)
            content.update(canonical_json([bad.source, bad.reason, bad.detail]).encode())
        if not self._problems:
            raise InputError(f"{source.path}: no question in it ({self._first_fault()})")
        return content.hexdigest()

    def _first_fault(self) -> str:
        return f"{self.bad_rows[0].source}: {self.bad_rows[0].detail}" if self.bad_rows else "the file is empty"

    def _problem(self, row: Row, where: str) -> Problem:
        file = self._file
        prompt = prompt_text(row, file.prompt, where, file.system)
        gold = gold_text(value_at(row, file.answer, where), file.answer, where) if file.answer else ""
        if file.checker in QUICK:
            verdict = check(file.checker, gold, accepted_answers(gold)[0] if file.checker == "squad" else gold)
            if not verdict.correct:
                raise InputError(
                    f"{where}: field {file.answer!r}: checker {file.checker} calls it no answer ({verdict.note})"
                )
        return Problem(self.name, prompt, gold, file.answer_format)


def prompt_text(row: Row, field: str, where: str, system: SystemMessages) -> str:
    """The prompt that a field holds, as text or as a conversation. Raises InputError."""
    value = value_at(row, field, where)
    if isinstance(value, list):
        return one_question(read_messages(value, field, where), field, where, system).strip()
    return checked_text(value, field, where).strip()


def gold_text(value: Any, field: str, where: str) -> str:
    """A gold answer, which may be a number: tables keep whole numbers as 42.0 where one is missing.

    Raises InputError for anything else.
    """
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value) if value.is_integer() and abs(value) < 2**53 else value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{where}: field {field!r}: expected text or a number, found {value!r:.40}")
    return checked_text(value, field, where).strip()
