"""Tasks whose problems stand in a file, with a worked solution each."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from distill.artifact import file_sha256
from distill.errors import InputError
from distill.tasks.jsonl import parse_object, printable, raw_lines
from distill.tasks.problem import AnswerFormat, Problem, Split
from distill.tasks.task import ACCURACY, CheckedByName, check_request, draw, split_of


@dataclass(frozen=True)
class Worked:
    """A problem and the solution that the file gives."""

    problem: Problem
    reasoning: str


ParseRow = Callable[[dict[str, Any], str], Worked]  # (row, "file:line") -> Worked; raises InputError


class FileTask(CheckedByName):
    """A question that stands in the files twice is one problem; the first one counts, and test before train."""

    def __init__(
        self,
        name: str,
        answer_format: AnswerFormat,
        files: list[Path],
        worked: Iterable[tuple[Split, Worked]],
        checker: str,
    ):
        self.name = name
        self.answer_format = answer_format
        self.revision = "3 " + " ".join(file_sha256(file) for file in files)
        self.checker = checker
        self.metrics = {"accuracy": ACCURACY}
        self._reasoning: dict[str, str] = {}
        self._problems: dict[Split, list[Problem]] = {split: [] for split in get_args(Split)}
        for split, row in worked:
            if row.problem.id not in self._reasoning:
                self._reasoning[row.problem.id] = row.reasoning
                self._problems[split].append(row.problem)

    @property
    def distinct_prompts(self) -> int:
        return len(self._reasoning)

    def problems(self, split: Split, count: int | None, seed: int) -> list[Problem]:
        """As every task; with None all of a split, in the order of the file."""
        check_request(split, 1 if count is None else count)
        pool = list(self._problems[split])
        return draw(self.name, split, pool, count, seed)

    def solve(self, problem: Problem) -> tuple[str, str]:
        try:
            return self._reasoning[problem.id], problem.gold
        except KeyError:
            raise InputError(f"task {self.name}: no worked solution for {problem.id}; it is not in the file") from None


def read_worked(path: Path, parse_row: ParseRow) -> Iterator[Worked]:
    """Every row of a JSONL file. Raises InputError that names file, line and field."""
    for line, raw in raw_lines(path):
        where = f"{printable(path)}:{line}"
        yield parse_row(parse_object(raw, where), where)


def split_by_hash(rows: Iterable[Worked]) -> Iterator[tuple[Split, Worked]]:
    """One file holds all splits."""
    for row in rows:
        yield split_of(row.problem.prompt), row
