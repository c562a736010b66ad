"""JSON lines from files that others wrote: one clear line for whatever is wrong with one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import InputError


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of every line that is not blank. Raises InputError for an unreadable file."""
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """One line as a JSON object. `where` is "file:line". Raises InputError."""
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start} of the line)") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON (column {error.colno}: {error.msg})") from None
    except (ValueError, RecursionError):  # an integer of thousands of digits; brackets nested thousands deep
        raise InputError(f"{where}: not valid JSON (a number too long or nested too deep)") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def text_field(row: dict[str, Any], field: str, where: str) -> str:
    """A field that must hold text that is not blank. Raises InputError."""
    if field not in row:
        raise InputError(f"{where}: field {field!r} is missing (found {', '.join(map(repr, row)) or 'none'})"[:300])
    value = row[field]
    if not isinstance(value, str):
        raise InputError(f"{where}: field {field!r}: expected text, found {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{where}: field {field!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: field {field!r}: not valid Unicode (a lone surrogate)") from None
    return value
