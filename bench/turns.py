"""Children that train in turns, so that whatever else the machine does falls on all of them alike.

A child runs its first step on its own and reports; then it waits. `turn(n)` lets it do n more steps and returns what
they measured. A child that waits uses no processor time.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from distill.artifact import write_json
from distill.errors import InputError
from distill.process import child_environment, die_with_parent

_LOG_LINES = 5


class Contender:
    """One child process, `python -m distill.bench.contender SPEC`.

    `spec` is what contender.py's main describes. Raises InputError when the child dies, with the end of its log.
    """

    def __init__(self, name: str, spec: dict[str, Any], folder: Path, threads: int):
        self.name, self.finished = name, False
        self.log = folder / f"{name}.log"
        path = folder / f"{name}.spec.json"
        write_json(path, spec)
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "distill.bench.contender", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(threads, {"HF_HUB_OFFLINE": "1"}),
                preexec_fn=die_with_parent,
                text=True,
            )

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()  # a waiting child ends by itself
        if self._process.poll() is None:
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stdout.close()

    def first_step(self) -> dict[str, Any]:
        """Wait for the child's set-up and first step: {"steps": [one record], ...what the trainer says of its data}."""
        return self._report()

    def turn(self, steps: int) -> list[dict[str, Any]]:
        """Let the child do up to `steps` steps; the records of those it did. Sets `finished` when it is done."""
        if self.finished:
            return []
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._report()["steps"]

    def _report(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            tail = " | ".join(lines[-_LOG_LINES:])
            raise InputError(f"bench: {self.name} ended with exit code {code} ({tail})")
        report = json.loads(line)
        self.finished = report["finished"]
        return report
