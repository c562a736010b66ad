"""A graph of jobs on a few slots: cores, or GPUs. A job that fails takes down only what depends on it."""

import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distill.errors import InputError
from distill.process import child_environment, die_with_parent
from distill.serve import Server

State = Literal["running", "done", "failed"]
Slots = tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """Something to do once everything in `after` is done, on as many slots as it `takes`: none, where it only waits for
    others. The action gets the slots' names. Jobs start in the order of the list when they can."""

    name: str
    action: Callable[[Slots], None]
    after: tuple[str, ...] = ()
    takes: int = 1


class JobFailed(Exception):
    """A job's reason for failing, in one line."""


def reason_of(error: Exception) -> str:
    """Why a job failed, in one line. What nobody expected, a damaged file mostly, is its type too; where a server says the end
    of its log, the log's name stands for it."""
    said = str(error) if isinstance(error, (InputError, JobFailed, OSError)) else f"{type(error).__name__}: {error}"
    first, *rest = said.splitlines() or [""]
    log = re.fullmatch("last lines of (.+):", rest[0]) if rest else None
    return f"{first} (log: {log[1]})" if log else " ".join(said.split())


@dataclass
class Children:
    """The processes and servers that jobs have started, so that an interrupted study takes them along."""

    running: set[subprocess.Popen] = field(default_factory=set)
    servers: list[Server] = field(default_factory=list)
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, command: list[str], log: Path, threads: int, extra: Mapping[str, str] | None = None) -> None:
        """Run a command to its end with its output in `log`. Raises JobFailed with the log's last line. `extra` is for
        its environment."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            with self.lock:
                self._require_going_on()
                child = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=child_environment(threads, extra),
                    preexec_fn=die_with_parent,
                )
                self.running.add(child)
            try:
                code = child.wait()
            except BaseException:  # this thread was told to stop: what it waits for ends first
                child.terminate()
                child.wait()
                raise
            finally:
                self.running.discard(child)
        if code != 0:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            ruled = lambda line: not line.strip("=- ")  # noqa: E731 - torchrun frames its summary, after the reason
            if lines and ruled(lines[-1]):
                lines = [line for line in lines if line.startswith("error: ")] or lines
            raise JobFailed(f"{lines[-1] if lines else f'exit code {code}'} (log: {log})")

    @contextmanager
    def serving(self, server: Server) -> Iterator[Server]:
        """The server, started, until the block ends or `terminate` is called."""
        with self.lock:
            self._require_going_on()
            self.servers.append(server)
        try:
            with server:
                with self.lock:
                    self._require_going_on()  # told to stop in the moment before there was a process to take down
                yield server
        finally:
            self.servers.remove(server)

    def terminate(self) -> None:
        """Take everything down, for good: what jobs start from now on fails with JobFailed.

        A request to a server that is gone fails at once, so a job that was asking ends without its answers.
        """
        with self.lock:
            self.stopped = True
            for child in list(self.running):
                child.terminate()
            servers = list(self.servers)
        for server in servers:
            server.stop()

    def _require_going_on(self) -> None:
        if self.stopped:
            raise JobFailed("the study was stopped")


def run_jobs(
    jobs: Sequence[Job],
    slots: Sequence[str],
    children: Children,
    watch: Callable[[str, State, str], None] = lambda name, state, reason: None,
) -> dict[str, str]:
    """Run every job that can be run. Returns {name: reason} of those that failed or depended on one that did. `watch` is
    told what becomes of each, with the reason where it fails.

    Raises ValueError when jobs wait for what is no job, or for each other, or take more slots than there are.
    """
    greedy = [job.name for job in jobs if job.takes > len(slots)]
    if greedy:
        raise ValueError(f"{greedy[0]} takes more than the {len(slots)} slots there are")
    failures: dict[str, str] = {}
    waiting, running = list(jobs), dict[Future, tuple[Job, Slots]]()
    free, done = list(slots), set[str]()

    def fail(job: Job, reason: str) -> None:
        failures[job.name] = reason
        watch(job.name, "failed", reason)

    with ThreadPoolExecutor(max(1, len(jobs))) as pool:
        try:
            while waiting or running:
                found = len(waiting)
                for job in list(waiting):
                    broken = [name for name in job.after if name in failures]
                    if broken:
                        fail(job, f"{broken[0]} failed")
                        waiting.remove(job)
                    elif job.takes <= len(free) and done.issuperset(job.after):
                        taken, free = tuple(free[: job.takes]), free[job.takes :]
                        watch(job.name, "running", "")
                        running[pool.submit(job.action, taken)] = job, taken
                        waiting.remove(job)
                if not running and waiting and len(waiting) == found:
                    wanted = sorted({name for job in waiting for name in job.after} - done)
                    raise ValueError(f"jobs wait for what nobody makes: {', '.join(wanted)}")
                if not running:
                    continue
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, taken = running.pop(future)
                    free.extend(taken)
                    error = future.exception()
                    if error is None:
                        done.add(job.name)
                        watch(job.name, "done", "")
                    elif isinstance(error, Exception):
                        fail(job, reason_of(error))
                    else:
                        raise error
        except BaseException:
            children.terminate()
            raise
    return failures
