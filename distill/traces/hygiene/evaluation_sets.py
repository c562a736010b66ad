"""Questions that a model is to be judged by, as `distill traces check --against` names them.

gsm8k:PATH, aqua:PATH, add[=COUNT]   a task: its test split; of a made task, the questions `evaluate` asks
study.yaml, or the folder of a study  the test questions of every task of it
PATH[:FIELD]                          every row of JSON lines, Parquet or a data set
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.artifact import canonical_json, read_json
from distill.errors import InputError
from distill.settings import read_yaml
from distill.tasks import TASKS, get_task
from distill.tasks.problem import Problem
from distill.tasks.questions import OwnTask, QuestionFile
from distill.tasks.registry import EMBEDDED
from distill.tasks.rows import open_source

FIELDS = ("prompt", "question", "problem")  # what the text of a question is called, where nobody says
MADE = 300  # questions of a made task, as many as `distill evaluate` asks where nobody says


@dataclass(frozen=True)
class EvaluationSet:
    """Named questions. The name holds no folder, so that what is written about it is the same on every machine."""

    name: str
    what: str  # which questions these are, in words
    questions: tuple[tuple[str, str], ...]  # (id, text)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(canonical_json(self.questions).encode()).hexdigest()


def evaluation_sets(specs: Iterable[str]) -> list[EvaluationSet]:
    """Raises InputError for what cannot be read or holds no question."""
    sets = [found for spec in specs for found in _read(spec)]
    for found in sets:
        if not found.questions:
            raise InputError(f"--against {found.name}: no question in it")
    return sets


def _read(spec: str) -> list[EvaluationSet]:
    path = Path(spec)
    if spec.partition(":")[0].partition("=")[0] in TASKS and not path.exists():
        return [_of_task(spec)]
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _of_study(spec, read_yaml(path))
    if (path / "results.json").is_file():
        results = read_json(path / "results.json")
        return _of_study(spec, results.get("preset") if isinstance(results, dict) else None)
    return [_of_file(spec)]


def _of_task(spec: str) -> EvaluationSet:
    task, equals, count = spec.rpartition("=")
    if not equals or not count.isdecimal():
        task, count = spec, ""
    if task in EMBEDDED:
        return _drawn(task, int(count or MADE), 0)
    if count:
        return _drawn(task, int(count), 0)
    return EvaluationSet(
        _short(task), f"the test split of {_short(task)}", _named(get_task(task).problems("test", None, 0))
    )


def _drawn(task: str, count: int, seed: int) -> EvaluationSet:
    problems = get_task(task).problems("test", count, seed)
    what = f"{len(problems)} questions of the test split of {_short(task)}, drawn with seed {seed}"
    return EvaluationSet(_short(task), what, _named(problems))


def _of_study(spec: str, preset: Any) -> list[EvaluationSet]:
    rows = preset.get("tasks") if isinstance(preset, dict) else None
    seed = preset.get("data_seed", 0) if isinstance(preset, dict) else 0
    if not isinstance(rows, list) or not rows or not isinstance(seed, int):
        raise InputError(f"{spec}: expected a study with a list of tasks and a data_seed")
    sets = []
    for i, row in enumerate(rows):
        task, count = (row.get("task"), row.get("test")) if isinstance(row, dict) else (None, None)
        if not isinstance(task, str) or not isinstance(count, int):
            raise InputError(f"{spec}: field tasks.{i}: expected the name of a task and how many test questions")
        sets.append(_drawn(task, count, seed))
    return sets


def _of_file(spec: str) -> EvaluationSet:
    path, field = _path_and_field(spec)
    field = field or _field_of(path)
    problems = OwnTask("evaluation", QuestionFile(path=Path(path), prompt=field)).problems("all", None, 0)
    return EvaluationSet(
        f"{Path(path).name}:{field}", f"field {field} of every row of {Path(path).name}", _named(problems)
    )


def _path_and_field(spec: str) -> tuple[str, str]:
    """A Hub id has up to two colons of its own (owner/name:config:split), so a field comes after the third."""
    path, colon, field = spec.rpartition(":")
    if Path(spec).exists() or not colon:
        return spec, ""
    return (path, field) if Path(path).exists() or spec.count(":") == 3 else (spec, "")


def _field_of(path: str) -> str:
    source = open_source(Path(path))
    first = next(iter(source.rows()), None)
    if first is None:
        raise InputError(f"{path}: no question in it (it is empty)")
    row = first[1]()
    found = next((field for field in FIELDS if field in row), None)
    if found is None:
        raise InputError(
            f"{first[0]}: none of the fields {', '.join(FIELDS)} (found {', '.join(map(repr, row)) or 'none'}); "
            "name the question's as PATH:FIELD"[:400]
        )
    return found


def _named(problems: list[Problem]) -> tuple[tuple[str, str], ...]:
    return tuple((problem.id, problem.prompt) for problem in problems)


def _short(task: str) -> str:
    name, colon, path = task.partition(":")
    return f"{name}:{Path(path).name}" if colon else name
