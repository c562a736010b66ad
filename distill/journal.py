"""Finished pieces of work, durable one by one, so that a killed run does only what is missing.

One JSON line a piece: {"key": ..., "value": ...}. A line is handed to the operating system as a whole as soon as it is
there, so that it survives the death of the process; it is forced to the disk with the lines around it, so that it
survives a power cut. A torn last line is what a kill leaves, and is cut off. Any other damaged line is named.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from distill.artifact import canonical_json
from distill.errors import InputError

_SYNC_LINES, _SYNC_SECONDS = 256, 1.0


class Journal:
    """JSON values by key, in a file that is made with the first of them. Use as a context manager."""

    def __init__(self, path: Path):
        """Raises InputError when the file cannot be read or a line of it is damaged."""
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}  # key -> (offset, bytes); the values themselves stay on disk
        self._end = 0
        self._file: BinaryIO | None = None
        self._unsynced, self._synced_at = 0, time.monotonic()
        if path.exists():
            self._load()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with self._file:
                os.fsync(self._file.fileno())
        if not self._places:
            self.path.unlink(missing_ok=True)  # nothing was finished: leave no trace of the attempt

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def append(self, key: str, value: Any) -> None:
        """Keep a value. Raises InputError when it cannot be written."""
        line = canonical_json({"key": key, "value": value}).encode() + b"\n"
        try:
            file = self._open()
            file.truncate(self._end)  # what a write that failed has left of its line
            written = file.write(line)
            while written < len(line):  # a nearly full disk takes part of a line, then refuses the rest
                written += file.write(line[written:])
            self._unsynced += 1
            if self._unsynced >= _SYNC_LINES or time.monotonic() - self._synced_at > _SYNC_SECONDS:
                os.fsync(file.fileno())
                self._unsynced, self._synced_at = 0, time.monotonic()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); finished answers are kept") from None
        self._places[key] = (self._end, len(line))
        self._end += len(line)

    def get(self, key: str) -> Any:
        """The value kept under `key`."""
        offset, size = self._places[key]
        return json.loads(os.pread(self._open().fileno(), size, offset))["value"]

    def _open(self) -> BinaryIO:
        if self._file is None:
            # For appending: opening it must not lose what is in it.
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - closed by __exit__
        return self._file

    def _load(self) -> None:
        try:
            with open(self.path, "rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.endswith(b"\n"):
                        break
                    self._places[self._key(line, number)] = (self._end, len(line))
                    self._end += len(line)
            if self._end < self.path.stat().st_size:
                self._open().truncate(self._end)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be opened ({error.strerror})") from None

    def _key(self, line: bytes, number: int) -> str:
        try:
            entry = json.loads(line)
            if isinstance(entry["key"], str) and "value" in entry:
                return entry["key"]
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise InputError(f"{self.path}:{number}: damaged; delete this line and run again")
