"""What a person sees: progress on standard error, results on standard output."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

err = Console(stderr=True, highlight=False)
# Piped into a file there is no width to fit: wide enough for every table.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
_hushed = ContextVar("hushed", default=False)


def progress(*extra_columns: str) -> Progress:
    """A progress bar on standard error: description, bar, done/total, elapsed (without extra
    columns), remaining, then `extra_columns`.

    Extra columns are rich format strings over the task's fields, such as "loss {task.fields[loss]:.3f}". Nothing is
    shown where nobody looks: without a terminal, and in threads, whose work the main thread's bar stands for.
    """
    width = 40 if not extra_columns else 10 if err.width > 90 else 4
    columns = [TextColumn("{task.description}"), BarColumn(bar_width=width), MofNCompleteColumn()]
    if not extra_columns:  # 80 characters hold no more
        columns.append(TimeElapsedColumn())
    return Progress(
        *columns,
        TextColumn("eta"),
        TimeRemainingColumn(compact=True),
        *(TextColumn(column) for column in extra_columns),
        console=err,
        disable=not err.is_terminal or threading.current_thread() is not threading.main_thread(),
    )


def note(message: str) -> None:
    """One line for the person, on standard error, with no markup read from it."""
    if not _hushed.get():
        err.print(_printable(message), markup=False, soft_wrap=True)


@contextmanager
def hushed() -> Iterator[None]:
    """No notes meanwhile: those of parts of a work are of no use to who asked for the whole."""
    token = _hushed.set(True)
    try:
        yield
    finally:
        _hushed.reset(token)


def _printable(text: str) -> str:
    """`text` with nothing in it that a terminal would obey: servers and files are quoted in messages."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table on standard output; the first column is left-aligned, the others right."""
    view = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        view.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        view.add_row(*(str(cell) for cell in row))
    out.print(view)


def facts(title: str, values: dict[str, Any], indent: str = "") -> None:
    """Names and values on standard output, one a line, nested ones indented."""
    out.print(_printable(f"{indent}{title}"), markup=False, soft_wrap=True)
    for name, value in values.items():
        if isinstance(value, dict) and value:
            facts(name, value, indent + "  ")
            continue
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for number, entry in enumerate(value, start=1):
                facts(f"{name} {number}", entry, indent + "  ")
            continue
        text = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
        out.print(_printable(f"{indent}  {name}: {text}"), markup=False, soft_wrap=True)


def emit_json(value: Any) -> None:
    """A result for machines on standard output; what a terminal would obey, or cannot be encoded, is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
    escapes = {ord(c): json.dumps(c)[1:-1] for c in set(text) if not c.isprintable() and c != "\n"}
    sys.stdout.write(text.translate(escapes) + "\n")
