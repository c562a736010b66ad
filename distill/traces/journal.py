"""Finished requests, durable one by one, so that a killed run asks only for what is missing.

One JSON line a request: {"key": hash of the rendered request, "answer": ...}. A line is handed to the operating system
as a whole as soon as its answer is there, so that it survives the death of the process; it is forced to the disk with
the lines around it, so that it survives a power cut. A torn last line is cut off.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from distill.artifact import canonical_json
from distill.errors import InputError

_SYNC_LINES, _SYNC_SECONDS = 256, 1.0


class Journal:
    """Answers by request key, in a file. Use as a context manager."""

    def __init__(self, path: Path):
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}  # key -> (offset, bytes); the answers themselves stay on disk
        self._unsynced, self._synced_at = 0, time.monotonic()
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by __exit__
            self._load()
        except OSError as error:
            raise InputError(f"{path}: cannot be opened ({error.strerror})") from None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            if self._places:
                os.fsync(self._file.fileno())
            else:
                self.path.unlink(missing_ok=True)  # nothing was answered: leave no trace of the attempt

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def append(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer. Raises InputError when it cannot be written."""
        line = canonical_json({"key": key, "answer": answer}).encode() + b"\n"
        try:
            written = self._file.write(line)
            while written < len(line):  # a nearly full disk takes part of a line, then refuses the rest
                written += self._file.write(line[written:])
            self._unsynced += 1
            if self._unsynced >= _SYNC_LINES or time.monotonic() - self._synced_at > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._unsynced, self._synced_at = 0, time.monotonic()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); finished answers are kept") from None
        self._places[key] = (self._end, len(line))
        self._end += len(line)

    def get(self, key: str) -> dict[str, Any]:
        """The answer kept under `key`."""
        offset, size = self._places[key]
        return json.loads(os.pread(self._file.fileno(), size, offset))["answer"]

    def _load(self) -> None:
        self._end = 0
        self._file.seek(0)
        with open(self.path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    key = json.loads(line)["key"]
                except (ValueError, KeyError, TypeError):
                    raise InputError(f"{self.path}:{number}: damaged; delete this line and run again") from None
                self._places[key] = (self._end, len(line))
                self._end += len(line)
        self._file.truncate(self._end)
