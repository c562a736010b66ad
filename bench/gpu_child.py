"""The GPU suite's measuring process as its parent sees it: started, listened to, and ended whatever it does."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.process import child_environment, die_with_parent

SILENCE_SECONDS = 120.0  # without a word from the child it has hung
GRACE_SECONDS = 30.0  # for the piece that is being measured at the deadline
END_SECONDS = 30.0  # for a child that has said everything, or was killed, to be gone
COMMAND = (sys.executable, "-m", "distill.bench.gpu_worker")


class Child:
    """One process of gpu_worker.py, which describes `spec` and the messages. Its log goes to `log`."""

    def __init__(self, spec: dict[str, Any], log: Path):
        self.log = log
        self.has_hung = False
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=child_environment(None, {"HF_HUB_OFFLINE": "1"}),
                preexec_fn=die_with_parent,
                text=True,
            )
        self._deadline = spec["deadline"]
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._converse, args=(json.dumps(spec),), daemon=True).start()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the child says until it ends; `has_hung` is set when it has said nothing for too long instead."""
        while True:
            left = self._deadline + GRACE_SECONDS - time.monotonic()
            try:
                line = self._lines.get(timeout=max(0.0, min(SILENCE_SECONDS, left)))
            except queue.Empty:
                self.has_hung = True
                return
            if line is None:
                return
            yield json.loads(line)

    def end(self, *, kill: bool) -> int:
        """Its exit code; unless it is killed at once it gets a while to end by itself. Raises InputError."""
        process = self._process
        try:
            process.wait(timeout=0 if kill else END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        try:
            return process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            raise InputError(
                f"bench gpu: process {process.pid} cannot be ended, the GPU's driver holds it; what was measured is kept"
            ) from None

    def last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-3:])[-600:]

    def _converse(self, spec: str) -> None:
        """Both pipes, until the child has closed its own; one that dies while it is written to has said nothing."""
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(spec)
        with self._process.stdout as stdout:
            for line in stdout:
                if line.endswith("\n"):  # a line that is cut off was its last
                    self._lines.put(line)
        self._lines.put(None)
