"""Tasks by name."""

from collections.abc import Callable
from pathlib import Path

from distill.errors import InputError, unknown_name
from distill.tasks import aqua, gsm8k
from distill.tasks.add import Add
from distill.tasks.max import Max
from distill.tasks.record import Record
from distill.tasks.task import Task

EMBEDDED: dict[str, Callable[[], Task]] = {"add": Add, "max": Max, "record": Record}
FILE_BACKED: dict[str, Callable[[Path], Task]] = {"gsm8k": gsm8k.load, "aqua": aqua.load}
TASKS = (*EMBEDDED, *FILE_BACKED)


def get_task(name: str, path: Path | None = None) -> Task:
    """A task by name. File-backed ones need a path: `get_task("gsm8k", path)` or `get_task("gsm8k:PATH")`.

    Raises InputError for an unknown name, a missing path or a file that cannot be read.
    """
    name, colon, rest = name.partition(":")
    if colon:
        path = Path(rest)
    if name in EMBEDDED and path is None:
        return EMBEDDED[name]()
    if name in EMBEDDED:
        raise InputError(f"task {name}: takes no path, found {str(path)!r}")
    if name not in FILE_BACKED:
        raise unknown_name("task", name, TASKS)
    if path is None or (colon and not rest):
        raise InputError(f"task {name}: needs a file, written {name}:PATH")
    return FILE_BACKED[name](path)
