"""What a Ray worker does of a study: one stage, by its command, in a process of its own.

A worker imports this and nothing that is heavy: it only waits.
"""

import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import artifact
from distill.process import child_environment, die_with_parent, distill_command

_POLL_S = 0.3


class Board:
    """An actor on which stages say that they have begun: Ray itself does not tell a task that runs from one that waits."""

    def __init__(self) -> None:
        self._begun: list[str] = []

    def begin(self, name: str) -> None:
        self._begun.append(name)

    def begun(self) -> list[str]:
        return self._begun


@dataclass(frozen=True)
class Task:
    """`arguments` follow `distill` in the stage's command; `directory` is where the launch was given; `failure` is the file
    in which the stage says why it failed; `shared` is one that all machines must see, None where none need be."""

    stage: str
    arguments: list[str]
    directory: str
    log: Path
    failure: Path
    shared: Path | None


def do_stage(board: Any, task: Task, after: list[str], *failures: str | None) -> str | None:
    """One stage. Returns why it failed, None when it is done; raises RuntimeError when it was killed. `failures` are what
    the stages `after` which it comes have returned."""
    broken = [other for other, failure in zip(after, failures, strict=True) if failure is not None]
    if broken:
        return f"{broken[0]} failed"
    board.begin.remote(task.stage)
    if task.shared is not None and not task.shared.is_file():
        folder, machine = task.shared.parent, socket.gethostname()
        return f"{folder}: not seen from {machine}; all machines must share --out, or be given a --storage"
    task.failure.unlink(missing_ok=True)  # of an earlier try
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "ab") as file:
        child = subprocess.Popen(
            distill_command(*task.arguments),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=task.directory if os.path.isdir(task.directory) else None,
            env=child_environment(),
            preexec_fn=die_with_parent,
        )
    try:
        while child.poll() is None:
            time.sleep(_POLL_S)  # a cancelled task is interrupted between two lines of Python
    except BaseException:
        child.terminate()
        child.wait()
        raise
    where = f"log: {task.log} on {socket.gethostname()}"
    if child.returncode < 0 or child.returncode > 128:
        raise RuntimeError(f"killed (exit code {child.returncode}; {where})")
    if child.returncode == 0:
        return None
    if task.failure.is_file():
        return artifact.read_json(task.failure)["reason"]
    lines = [line for line in task.log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else f'exit code {child.returncode}'} ({where})"
