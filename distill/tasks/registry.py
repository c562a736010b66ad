"""Tasks by name."""

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from distill.errors import InputError, unknown_name
from distill.tasks import aqua, gsm8k
from distill.tasks.add import Add
from distill.tasks.benchmark import BENCHMARKS, load_benchmark
from distill.tasks.benchmark_task import open_benchmark
from distill.tasks.max import Max
from distill.tasks.questions import OwnTask, QuestionFile
from distill.tasks.record import Record
from distill.tasks.rows import NotLoaded
from distill.tasks.task import Task

EMBEDDED: dict[str, Callable[[], Task]] = {"add": Add, "max": Max, "record": Record}
FILE_BACKED: dict[str, Callable[[Path], Task]] = {"gsm8k": gsm8k.load, "aqua": aqua.load}
TASKS = (*EMBEDDED, *FILE_BACKED)


@cache
def known_checker(task: str) -> str | None:
    """The checker of the task of that name, without its files; None for questions of your own."""
    if task in EMBEDDED:
        return EMBEDDED[task]().checker
    if task in FILE_BACKED:
        return {"gsm8k": gsm8k.CHECKER, "aqua": aqua.CHECKER}[task]
    return load_benchmark(task).checker if task in BENCHMARKS else None


def get_task(name: str, source: Path | QuestionFile | None = None, own: Iterable[str] = ()) -> Task:
    """A task by name. Those of a known file need its path: `get_task("gsm8k", path)` or `get_task("gsm8k:PATH")`.

    A benchmark is its name or its file, `mine.yaml`, and has a path only for rows that are not the published ones.
    `gsm8k` is the task of a file to train on; the benchmark of that name is `gsm8k.yaml`.
    Questions of your own come under any name that is not taken: `get_task("mine", QuestionFile(path=...))`; `own` are
    the names of those there are, for whoever mistypes one. Raises InputError for an unknown name, a missing path or a
    file that cannot be read.
    """
    if isinstance(source, QuestionFile):
        if name in TASKS:
            raise InputError(f"task {name}: the name is taken; questions of your own need another")
        return OwnTask(name, source)
    name, path = _name_and_path(name, source, own)
    if name in EMBEDDED:
        return EMBEDDED[name]()
    if name in FILE_BACKED:
        return FILE_BACKED[name](path)
    try:
        return open_benchmark(name, path)
    except NotLoaded as error:
        if path is not None:
            raise
        raise InputError(f"{error}; --data {name}=PATH takes rows that you have") from None


def require_task(name: str, own: Iterable[str] = ()) -> None:
    """Raises InputError where `get_task` would for the name alone. Rows are not opened, nor asked for on the Hub."""
    name, _ = _name_and_path(name, None, own)
    if _is_benchmark(name):
        load_benchmark(name)


def _is_benchmark(name: str) -> bool:
    return name not in FILE_BACKED and (name in BENCHMARKS or Path(name).suffix in (".yaml", ".yml"))


def _name_and_path(name: str, source: Path | None, own: Iterable[str]) -> tuple[str, Path | None]:
    """`gsm8k:PATH` taken apart. Raises InputError for a name that is no task's, and for a path too many or missing."""
    name, colon, rest = name.partition(":")
    path = Path(rest) if colon else source
    if name in EMBEDDED and path is not None:
        raise InputError(f"task {name}: takes no path, found {str(path)!r}")
    if _is_benchmark(name):
        if colon and not rest:
            raise InputError(f"task {name}: no rows after the colon; expected {name}:PATH, or {name} alone")
    elif name in FILE_BACKED:
        if path is None or (colon and not rest):
            raise InputError(f"task {name}: needs a file, written {name}:PATH")
    elif name not in EMBEDDED:
        if Path(name).suffix.lower() in (".jsonl", ".json", ".ndjson", ".parquet"):
            raise InputError(
                f"task {name}: a file of questions of your own; expected --data {name}, or its path in `data`"
            )
        raise unknown_name("task", name, {*TASKS, *BENCHMARKS, *own})
    return name, path
