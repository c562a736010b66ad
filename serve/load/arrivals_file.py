"""When requests arrived once, from a file: one arrival a line, in seconds or as ISO 8601 date-times.

    arrivals.txt      12.5                                      a number or a date-time
    arrivals.jsonl    {"timestamp": "2026-11-02T08:00:00.25Z", ...}
    arrivals.csv      a header line, and a column `timestamp`

Logs are not always in order: arrivals are sorted.
"""

import csv
import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.serve.load.shapes import Replay
from distill.settings import validate

FIELD = "timestamp"


def read_replay(path: Path, *, speed: float = 1.0) -> Replay:
    """The arrivals in a file. Raises InputError that names the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    kinds = {".jsonl": _of_jsonl, ".ndjson": _of_jsonl, ".csv": _of_csv}
    values = kinds.get(path.suffix.lower(), _of_lines)(path, text)
    times_s = sorted(_seconds(value, f"{path}:{line}") for line, value in values)
    if len(times_s) < 2:
        raise InputError(f"{path}: expected two arrivals or more, found {len(times_s)}")
    start_s = times_s[0]  # seconds since 1970 have few digits left for the milliseconds that count
    return validate(Replay, {"times_s": [t - start_s for t in times_s], "speed": speed}, source=str(path))


def _of_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _of_jsonl(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in _of_lines(path, text):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{path}:{number}: not valid JSON") from None
        if not isinstance(row, dict) or FIELD not in row:
            raise InputError(f"{path}:{number}: has no field {FIELD!r}")
        yield number, row[FIELD]


def _of_csv(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    rows = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        if FIELD not in (rows.fieldnames or ()):
            raise InputError(f"{path}:1: has no column {FIELD!r}")
        for row in rows:
            yield rows.line_num, row[FIELD]
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not valid CSV ({error})") from None


def _seconds(value: Any, where: str) -> float:
    try:
        seconds = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        seconds = _of_date_time(value)
    if not math.isfinite(seconds):
        raise InputError(f"{where}: expected seconds or an ISO date-time, found {str(value)[:40]!r}")
    return seconds


def _of_date_time(value: Any) -> float:
    """Seconds since 1970, nan for what is none. Without a time zone it is UTC."""
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return math.nan
