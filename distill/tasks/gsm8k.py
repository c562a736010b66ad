"""`gsm8k`: grade-school problems from JSONL files with `question` and `answer`.

    question   Natalia sold clips to 48 of her friends ...          -> the prompt
    answer     ... sold 48/2 = <<48/2=24>>24 clips in May. #### 72  -> reasoning without the calculator marks; gold 72

A folder with train.jsonl and test.jsonl keeps its own test set; a tenth of its train file, chosen by a hash of the
prompt, is validation. A single file is split 80/10/10 by the same hash.
"""

import re
from itertools import chain
from os.path import isdir  # of a Path it would raise for a name that is too long
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.tasks.checkers import check
from distill.tasks.file_task import FileTask, Worked, read_worked, split_by_hash
from distill.tasks.final_number import final_number
from distill.tasks.jsonl import text_field
from distill.tasks.problem import Problem
from distill.tasks.task import split_of

CHECKER = "number"
_CALCULATOR_MARK = re.compile(r"<<[^<>]*+>>")


def parse_row(row: dict[str, Any], where: str) -> Worked:
    """One row. Raises InputError when a field is missing or the answer has no `#### number`."""
    question, solution = text_field(row, "question", where), text_field(row, "answer", where)
    steps, mark, gold = solution.rpartition("####")
    if not mark or final_number(gold) is None:
        raise InputError(
            f"{where}: field 'answer': expected worked steps, then `#### number`, found {solution[-40:]!r}"
        )
    reasoning = _CALCULATOR_MARK.sub("", steps).strip()
    if not reasoning:
        raise InputError(f"{where}: field 'answer': no worked steps before `####`")
    return Worked(Problem("gsm8k", question.strip(), gold.strip(), "open"), reasoning)


def is_correct(problem: Problem, answer: str) -> bool:
    """Equal as numbers: commas, $, trailing zeros and units do not matter."""
    return check("number", problem.gold, answer).correct


def load(path: Path) -> FileTask:
    """The task in a folder or a single file. Raises InputError."""
    if not isdir(path):
        return FileTask("gsm8k", "open", [path], list(split_by_hash(read_worked(path, parse_row))), CHECKER)
    files = [path / "test.jsonl", path / "train.jsonl"]
    for file in files:
        if not file.is_file():
            raise InputError(
                f"{file}: no such file; expected a folder with train.jsonl and test.jsonl, or one JSONL file"
            )
    test = (("test", worked) for worked in read_worked(files[0], parse_row))
    train = (
        ("validation" if split_of(worked.problem.prompt) == "validation" else "train", worked)
        for worked in read_worked(files[1], parse_row)
    )
    return FileTask("gsm8k", "open", files, list(chain(test, train)), CHECKER)
