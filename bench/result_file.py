"""Where a benchmark's result goes: found out before anything is measured."""

from pathlib import Path

from distill.artifact import require_file_place
from distill.errors import InputError


def prepare(out: Path) -> None:
    """Make the folder of `out`. Raises InputError when no file can be written there."""
    require_file_place(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
