"""A graph of jobs on a few workers. A job that fails takes down only what depends on it."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from distill import console
from distill.errors import InputError
from distill.process import child_environment, die_with_parent, distill_command
from distill.serve import Server


@dataclass(frozen=True)
class Job:
    """Something to do once everything in `after` is done. Jobs start in the order of the list when they can."""

    name: str
    action: Callable[[], None]
    after: tuple[str, ...] = ()


class JobFailed(Exception):
    """A job's reason for failing, in one line."""


@dataclass
class Children:
    """The processes and servers that jobs have started, so that an interrupted study takes them along."""

    running: set[subprocess.Popen] = field(default_factory=set)
    servers: list[Server] = field(default_factory=list)
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, arguments: list[str], log: Path, threads: int) -> None:
        """Run `distill ...` to its end with its output in `log`. Raises JobFailed with the log's last line."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            with self.lock:
                self._require_going_on()
                child = subprocess.Popen(
                    distill_command(*arguments),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=child_environment(threads),
                    preexec_fn=die_with_parent,
                )
                self.running.add(child)
            try:
                code = child.wait()
            finally:
                self.running.discard(child)
        if code != 0:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
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


def run_jobs(jobs: list[Job], *, workers: int, children: Children) -> dict[str, str]:
    """Run every job that can be run. Returns {name: reason} of those that failed or depended on one that did.

    Raises ValueError when jobs wait for what is no job, or for each other.
    """
    failures: dict[str, str] = {}
    waiting, running = list(jobs), dict[Future, Job]()
    done: set[str] = set()
    with ThreadPoolExecutor(workers) as pool, console.progress("{task.fields[now]}") as bar:
        task = bar.add_task("study", total=len(jobs), now="")
        try:
            while waiting or running:
                found = len(waiting)
                for job in list(waiting):
                    broken = [name for name in job.after if name in failures]
                    if broken:
                        failures[job.name] = f"{broken[0]} failed"
                        waiting.remove(job)
                        bar.advance(task)
                    elif len(running) < workers and done.issuperset(job.after):
                        running[pool.submit(job.action)] = job
                        waiting.remove(job)
                bar.update(task, now=", ".join(job.name for job in running.values()))
                if not running and waiting and len(waiting) == found:
                    wanted = sorted({name for job in waiting for name in job.after} - done)
                    raise ValueError(f"jobs wait for what nobody makes: {', '.join(wanted)}")
                if not running:
                    continue
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    error = future.exception()
                    if error is None:
                        done.add(job.name)
                    elif isinstance(error, (InputError, JobFailed, OSError)):
                        failures[job.name] = str(error)
                        console.note(f"{job.name}: {error}")
                    else:
                        raise error
                    bar.advance(task)
        except BaseException:
            children.terminate()
            raise
    return failures
