"""A graph of jobs on a few workers. A job that fails takes down only what depends on it."""

import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from distill import console
from distill.errors import InputError
from distill.process import child_environment, die_with_parent, distill_command


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
    """The processes that jobs have started, so that an interrupted study takes them along."""

    running: set[subprocess.Popen] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, arguments: list[str], log: Path, threads: int) -> None:
        """Run `distill ...` to its end with its output in `log`. Raises JobFailed with the log's last line."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            with self.lock:
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

    def terminate(self) -> None:
        with self.lock:
            for child in list(self.running):
                child.terminate()


def run_jobs(jobs: list[Job], *, workers: int, children: Children) -> dict[str, str]:
    """Run every job that can be run. Returns {name: reason} of those that failed or depended on one that did."""
    failures: dict[str, str] = {}
    waiting, running = list(jobs), dict[Future, Job]()
    done: set[str] = set()
    with ThreadPoolExecutor(workers) as pool, console.progress("{task.fields[now]}") as bar:
        task = bar.add_task("study", total=len(jobs), now="")
        try:
            while waiting or running:
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
