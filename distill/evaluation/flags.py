"""Questions as the command line writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.evaluation.settings import COUNT, UP_TO
from distill.settings import validate
from distill.tasks.benchmark import BENCHMARKS
from distill.tasks.questions import QuestionFile
from distill.tasks.registry import TASKS


def questions_of(
    counts: dict[str, str | None], data: Sequence[str], own: dict[str, Any], *, split: str | None, seed: int
) -> list[dict[str, Any]]:
    """Values for `Questions`, from `--tasks add,max=100,aime=all` and `--data gsm8k=PATH`, `--data mine=PATH`.

    A name of no task is one for questions of your own: `own` says which fields they have, and all of them are asked
    where nothing else is said. Raises InputError.
    """
    paths: dict[str, str] = {}
    for text in data:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise InputError(f"--data {text}: expected NAME=PATH")
        if name in paths:
            raise InputError(f"--data {text}: {name} is named twice")
        paths[name] = path
    mine = {name for name in paths if name not in (*TASKS, *BENCHMARKS) and not name.endswith((".yaml", ".yml"))}
    if own and not mine:
        raise InputError(f"--{next(iter(own)).replace('_', '-')}: only for --data with questions of your own")
    counts = {name: counts.get(name, "all" if name in mine else None) for name in (*counts, *paths)}
    if not counts:
        raise InputError("no questions: give --tasks, --data or both")
    return [
        {
            "task": name,
            "data": _own_file(name, paths[name], own) if name in mine else paths.get(name),
            "count": UP_TO if count is None else _count(name, count),
            "split": split or ("all" if name in mine else "test"),
            "seed": seed,
        }
        for name, count in counts.items()
    ]


def counts_of(counts: dict[str, str | None]) -> dict[str, Any]:
    """The most questions of each of `--tasks`; None for all."""
    return {name: COUNT if count is None else _count(name, count) for name, count in counts.items()}


def _count(name: str, text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise InputError(f"--tasks {name}={text}: expected how many questions, a whole number above 0, or all")
    return int(text)


def _own_file(name: str, path: str, own: dict[str, Any]) -> QuestionFile:
    """Questions of your own that can be graded."""
    for field in ("answer", "checker"):
        if field not in own:
            raise InputError(f"--data {name}={path}: questions of your own need --{field} (see --help) to be graded")
    return validate(QuestionFile, {"path": path, **own}, source=f"--data {name}={path}")


def budgets_of(text: str | None) -> tuple[str | None, ...]:
    """`64,256,none` as ("64", "256", None); without one (None,)."""
    return tuple(None if part == "none" else part for part in text.split(",")) if text else (None,)


def check_subject(student: Path | None, endpoint: str | None, model: str | None) -> None:
    """Raises InputError unless it is said in one way who answers."""
    if (student is None) == (endpoint is None):
        raise InputError("expected STUDENT or --endpoint, and " + ("found neither" if student is None else "not both"))
    if (endpoint is None) != (model is None):
        raise InputError("--endpoint and --model are given together or not at all")


def check_via(via: str | None, **flags: Any) -> None:
    """Raises InputError for another program than lm-eval, and for flags that say what that program decides itself."""
    if via != "lm-eval":
        raise InputError(f"--via: expected lm-eval, found {via}" if via else "--via-folder: only with --via lm-eval")
    if "student" in flags and flags.pop("student") is None:
        raise InputError("--via lm-eval: needs STUDENT, whose tokenizer it uses")
    usual = {"think": "free", "samples": 1, "score": "generated", "engine": "vllm", "temperature": 0.0, "top_p": 1.0}
    for name, value in flags.items():
        if value != usual.get(name):
            raise InputError(f"--{name.replace('_', '-')}: not with --via lm-eval, whose tasks say how they are asked")
