"""Runs one command and leaves nothing of it behind. `python -m distill.serve.keeper PARENT_PID COMMAND...`

vLLM's server starts an engine process, which starts workers. When the server is killed they stay for good: they
are re-parented and hold their memory. So this process stands between us and vLLM. It ends the whole tree when its
parent is gone (however it went: it polls the parent's pid, because no signal or handler survives SIGKILL), when it
is told to by SIGTERM, or when the command itself ends. As a child subreaper (Linux) it inherits every orphan of
the tree, also those that left the process group, and ends only when none is left.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from distill.process import die_with_parent

POLL_S = 0.05
GRACE_S = 5.0  # between SIGTERM, on which vLLM goes in order (in half a second), and SIGKILL


def keep(command: list[str], parent_pid: int) -> int:
    """Run `command` until it ends, SIGTERM comes or the parent is gone.

    Returns the exit status of `command`, 128 + N when signal N ended it.
    """
    asked_to_stop = False

    def ask_to_stop(*_: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask_to_stop)
    _become_subreaper()
    if os.getppid() != parent_pid:
        return 1
    # die_with_parent covers the last case, that this process itself is killed.
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)
    statuses: dict[int, int] = {}
    while not asked_to_stop and os.getppid() == parent_pid and child.pid not in statuses:
        time.sleep(POLL_S)
        _reap(statuses)
    _end_tree(child.pid, statuses)
    child.returncode = os.waitstatus_to_exitcode(statuses[child.pid])
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end_tree(group: int, statuses: dict[int, int]) -> None:
    _signal_group(group, signal.SIGTERM)
    told: set[int] = set()  # orphans that left the group and became ours when their parent went
    deadline = time.monotonic() + GRACE_S
    while _reap(statuses):
        if time.monotonic() > deadline:
            _signal_group(group, signal.SIGKILL)
            told.clear()
        for pid in _children():
            with suppress(ProcessLookupError):
                if pid not in told and os.getpgid(pid) != group:
                    os.kill(pid, signal.SIGKILL if time.monotonic() > deadline else signal.SIGTERM)
                    told.add(pid)
        time.sleep(POLL_S)


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _children() -> list[int]:
    """Our direct children, orphans of the tree among them (empty where there is no /proc)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # "pid (name) state ppid ...", and the name may hold anything
            if int(stat.read_text(errors="replace").rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found


def _reap(statuses: dict[int, int]) -> bool:
    """Collect every child that has ended; False when there is none left to wait for."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        statuses[pid] = status


def _become_subreaper() -> None:
    PR_SET_CHILD_SUBREAPER = 36
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


if __name__ == "__main__":
    sys.exit(keep(sys.argv[2:], int(sys.argv[1])))
