"""JSON lines from files that others wrote: one clear line for whatever is wrong with one."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import InputError

_LONGEST_LINE = 64 << 20  # bytes: more is no row of questions but a file without line ends


def printable(path: Path | str) -> str:
    """A path as text that fits on a line and can be written down, whatever the file is called."""
    return "".join(c if c.isprintable() else "?" for c in str(path))


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of every line that is not blank. Raises InputError for an unreadable file."""
    try:
        with open(path, "rb", opener=_open_regular) as file:
            number = 0
            while raw := file.readline(_LONGEST_LINE + 1):
                number += 1
                if len(raw) > _LONGEST_LINE:
                    raise InputError(
                        f"{printable(path)}:{number}: a line of more than {_LONGEST_LINE >> 20} MiB; expected JSON lines"
                    )
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise InputError(f"{printable(path):.300}: cannot be read ({error.strerror})") from None
    except ValueError:  # a path with a NUL character
        raise InputError(f"{printable(path):.300}: cannot be read (no such file)") from None


def _open_regular(path: str, flags: int) -> int:
    """A pipe would make the first of several readings the last, or never open."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{printable(path)}: cannot be read (not a regular file)")
    return descriptor


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """One line as a JSON object. `where` is "file:line". Raises InputError, for a key that stands twice too."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start} of the line)") from None
    except json.JSONDecodeError as error:
        array = "; of an array, `jq -c '.[]' FILE` writes one object a line" if raw.lstrip().startswith(b"[") else ""
        raise InputError(f"{where}: not valid JSON (column {error.colno}: {error.msg}{array})") from None
    except _RepeatedKey as error:
        raise InputError(f"{where}: not valid JSON (the key {error.args[0]!r:.60} stands twice)") from None
    except (ValueError, RecursionError):  # an integer of thousands of digits; brackets nested thousands deep
        raise InputError(f"{where}: not valid JSON (a number too long or nested too deep)") from None
    if not isinstance(value, dict):
        array = "; `jq -c '.[]' FILE` writes the objects of an array one a line" if isinstance(value, list) else ""
        raise InputError(f"{where}: expected a JSON object, found {type(value).__name__}{array}")
    return value


class _RepeatedKey(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKey(next(key for i, key in enumerate(keys) if key in keys[:i]))
    return found


def value_at(row: dict[str, Any], field: str, where: str) -> Any:
    """The value of a field; `extra.answer` is the key `answer` of the object `extra`, unless a key has that whole name.

    Raises InputError when it is missing.
    """
    if field in row:
        return row[field]
    value: Any = row
    for key in field.split("."):
        if not isinstance(value, dict) or key not in value:
            found = ", ".join(map(repr, row))[:200] or "none"
            raise InputError(f"{where}: field {field!r} is missing (found {found})")
        value = value[key]
    return value


def text_field(row: dict[str, Any], field: str, where: str) -> str:
    """A field that must hold text that is not blank. Raises InputError."""
    return checked_text(value_at(row, field, where), field, where)


def checked_text(value: Any, field: str, where: str) -> str:
    """`value`, which must be text that is not blank and that can be written down. Raises InputError."""
    if not isinstance(value, str):
        raise InputError(f"{where}: field {field!r}: expected text, found {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{where}: field {field!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: field {field!r}: not valid Unicode (a lone surrogate)") from None
    return value
