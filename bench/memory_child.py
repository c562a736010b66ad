"""Memory is measured in a process of its own that runs nothing else: how it is started, and the peak it reached."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.process import child_environment, die_with_parent, peak_rss_bytes


def measure_in_child(
    module: str, spec: dict[str, Any], what: str, *, threads: int, environment: Mapping[str, str] | None = None
) -> Any:
    """What `python -m MODULE SPEC` prints last, read as JSON. Raises InputError that names `what` when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(spec)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=child_environment(threads, environment),
        preexec_fn=die_with_parent,
    )
    if done.returncode != 0:
        tail = " | ".join([line for line in done.stderr.splitlines() if line.strip()][-3:])
        raise InputError(f"bench: {what} ended with exit code {done.returncode} ({tail})")
    return json.loads(done.stdout.splitlines()[-1])


def reset_peak() -> None:
    """Let the peak be what is resident now, where the system can: then what making the inputs took does not hide
    what comes after."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def high_water() -> int:
    """Peak resident set in bytes since the last reset."""
    if sys.platform != "linux":
        return peak_rss_bytes()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024
