"""A process that answers every line it is sent with a line of JSON."""

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from distill.errors import InputError

_LOG_LINES = 5


class Child:
    """Starts `command`; what it says on standard error goes to `log`. `popen` is for subprocess.Popen.

    Ending it is left to who knows how it wants to be ended; `close` is what remains after that.
    """

    def __init__(self, name: str, command: list[str], log: Path, env: dict[str, str], **popen: Any):
        self.name, self.log = name, log
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=env, text=True, **popen
            )

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and wait for what comes back. Raises InputError, with the end of its log, when it has ended."""
        with suppress(BrokenPipeError):  # it has ended: so says the next line
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        return self.report()

    def report(self) -> dict[str, Any]:
        """The next line it says. Raises InputError when there is none."""
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            raise InputError(f"bench: {self.name} ended with exit code {code} ({' | '.join(lines[-_LOG_LINES:])})")
        return json.loads(line)

    def close(self) -> None:
        self.process.wait()
        with suppress(BrokenPipeError):  # what it has not read is lost, and does not matter
            self.process.stdin.close()
        self.process.stdout.close()
