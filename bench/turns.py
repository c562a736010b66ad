"""Children that train in turns, so that whatever else the machine does falls on all of them alike.

A child runs its first step on its own and reports; then it waits. `turn(n)` lets it do n more steps and returns what
they measured. A child that waits uses no processor time.
"""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill.artifact import write_json
from distill.bench.child import Child
from distill.process import child_environment, die_with_parent


class Contender:
    """One child process, `python -m distill.bench.contender SPEC`.

    `spec` is what contender.py's main describes. Raises InputError when the child dies, with the end of its log.
    """

    def __init__(self, name: str, spec: dict[str, Any], folder: Path, threads: int):
        self.name, self.finished = name, False
        path = folder / f"{name}.spec.json"
        write_json(path, spec)
        self._child = Child(
            name,
            [sys.executable, "-m", "distill.bench.contender", str(path)],
            folder / f"{name}.log",
            child_environment(threads, {"HF_HUB_OFFLINE": "1"}),
            preexec_fn=die_with_parent,
        )

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        process = self._child.process
        with suppress(BrokenPipeError):
            process.stdin.close()  # a waiting child ends by itself
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
        self._child.close()

    def first_step(self) -> dict[str, Any]:
        """Wait for the child's set-up and first step: {"steps": [one record], ...what the trainer says of its data}."""
        return self._finished(self._child.report())

    def turn(self, steps: int) -> list[dict[str, Any]]:
        """Let the child do up to `steps` steps; the records of those it did. Sets `finished` when it is done."""
        if self.finished:
            return []
        return self._finished(self._child.ask(str(steps)))["steps"]

    def _finished(self, report: dict[str, Any]) -> dict[str, Any]:
        self.finished = report["finished"]
        return report
