"""`aqua`: multiple-choice algebra from a file of JSON lines with `question`, `options`, `rationale` and `correct`.

    prompt     the question, then one option a line: `A) 32400`
    reasoning  the rationale
    answer     the letter

A file is split 80/10/10 by a hash of the prompt.
"""

from os.path import isdir  # of a Path it would raise for a name that is too long
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.tasks.checkers import check
from distill.tasks.file_task import FileTask, Worked, read_worked, split_by_hash
from distill.tasks.jsonl import text_field
from distill.tasks.problem import Problem

LETTERS = "ABCDEFGHIJ"
CHECKER = "choice"


def parse_row(row: dict[str, Any], where: str) -> Worked:
    """One row. Raises InputError when a field is missing or has another form."""
    question, rationale = text_field(row, "question", where), text_field(row, "rationale", where)
    correct, options = text_field(row, "correct", where).strip(), row.get("options")
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise InputError(f"{where}: field 'options': expected a list of 2 to {len(LETTERS)} options")
    lines = [question.strip()]
    for i, letter in enumerate(LETTERS[: len(options)]):
        option = text_field({f"options[{i}]": options[i]}, f"options[{i}]", where)
        if not option.startswith(f"{letter})"):
            raise InputError(
                f"{where}: field 'options': expected option {i + 1} to begin with '{letter})', found {option[:40]!r}"
            )
        lines.append(f"{letter}) {option[2:].strip()}")
    if correct not in LETTERS[: len(options)] or len(correct) != 1:
        raise InputError(f"{where}: field 'correct': expected one of {LETTERS[: len(options)]}, found {correct[:40]!r}")
    return Worked(Problem("aqua", "\n".join(lines), correct, "choice"), rationale.strip())


def is_correct(problem: Problem, answer: str) -> bool:
    """The chosen letter is the correct one."""
    return check("choice", problem.gold, answer).correct


def load(path: Path) -> FileTask:
    """The task in a file, or in the dev.json of a folder. Raises InputError."""
    file = path / "dev.json" if isdir(path) else path
    return FileTask("aqua", "choice", [file], list(split_by_hash(read_worked(file, parse_row))), "choice")
