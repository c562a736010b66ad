"""Answers checked in worker processes, each under a time and a memory limit that no answer can escape.

A worker that runs into a limit is killed and another takes its place. Answers go to the workers a few at a time, with
the time that one may take: when they do not all come back in it, or the worker dies, each of them is checked again on
its own, with all of its time. So an answer that hangs, or takes its worker down, costs no other its verdict.
"""

import os
import resource
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from distill.errors import InputError
from distill.process import child_environment, die_with_parent
from distill.tasks.checkers import QUICK, WARM_UP, checker_named
from distill.tasks.verdict import Checker, Verdict

LIMIT_S = 5.0
MEMORY_BYTES = 2 * 2**30
CHUNK = 16  # answers that go to a worker at a time; of these sizes the smallest whose overhead does not show
_IN_FLIGHT = 3  # chunks a worker, so that none waits
_RESTARTS = 3  # of the pool without a verdict in between
_START_S = 60.0  # longest that workers may take to start, beside their limit

OnVerdict = Callable[[int, Verdict], None]


def check_all(
    checker: str | Checker,
    pairs: Iterable[tuple[str, str]],
    on_verdict: OnVerdict,
    *,
    processes: int | None = None,
    limit_s: float = LIMIT_S,
    memory_bytes: int = MEMORY_BYTES,
) -> None:
    """Check every (gold, answer); `on_verdict(number of the pair, verdict)` gets each as it comes, in this thread.

    `checker` is a name in CHECKERS, or a function that worker processes can import. The quick ones are called here;
    others in `processes` workers (one a core), where an answer may take `limit_s` seconds and a worker `memory_bytes`
    beyond what it starts with. What comes to no end is not correct, with `failure` set. Pairs are drawn as there is
    room for them. Raises InputError for a name that is none, or when no workers can be started.
    """
    function = checker_named(checker) if isinstance(checker, str) else checker
    if checker in QUICK:
        for number, (gold, answer) in enumerate(pairs):
            on_verdict(number, function(gold, answer))
        return
    workers = processes or _cores()
    _Checking(function, pairs, on_verdict, workers, limit_s, memory_bytes).run()


@dataclass
class _Task:
    """Answers that went to a worker together."""

    numbered: list[tuple[int, str, str]]
    tries: int = 0  # how often its worker died


class _Checking:
    """One run over all pairs."""

    def __init__(
        self,
        function: Checker,
        pairs: Iterable[tuple[str, str]],
        on_verdict: OnVerdict,
        workers: int,
        limit_s: float,
        memory_bytes: int,
    ):
        self.function, self.on_verdict = function, on_verdict
        self.workers, self.limit_s, self.memory_bytes = workers, limit_s, memory_bytes
        self.chunks = _chunks(pairs)
        self.again: deque[_Task] = deque()  # what comes before the next chunk
        self.restarts = 0

    def run(self) -> None:
        while (task := self.next_task()) is not None:  # no process for nothing
            self.again.appendleft(task)
            self.run_pool()

    def next_task(self) -> _Task | None:
        if self.again:
            return self.again.popleft()
        return next(self.chunks, None)

    def run_pool(self) -> None:
        """Until there is nothing left, or the pool breaks: then what it had is left in `again`."""
        import multiprocessing

        from pebble import ProcessPool

        # Spawned, not forked: this process may have threads.
        pool = ProcessPool(
            max_workers=self.workers,
            initializer=_start_worker,
            initargs=(self.memory_bytes, self.function),
            context=multiprocessing.get_context("spawn"),
        )
        waiting: dict[Future, _Task] = {}
        try:
            while True:
                while len(waiting) < _IN_FLIGHT * self.workers and (task := self.next_task()):
                    future = pool.schedule(_check_chunk, (self.function, task.numbered), timeout=self.limit_s)
                    waiting[future] = task
                if not waiting:
                    return
                longest_s = _START_S + self.limit_s * _IN_FLIGHT
                done, _ = wait(waiting, timeout=longest_s, return_when=FIRST_COMPLETED)
                whole = [self.take(waiting.pop(future), future) for future in done]
                if not whole or not all(whole):
                    self.again.extendleft(reversed(waiting.values()))
                    self.count_restart()
                    return
        finally:
            pool.stop()
            pool.join()

    def take(self, task: _Task, future: Future) -> bool:
        """The verdicts of a task, or its answers one by one once more. False when the pool is broken."""
        from pebble import ProcessExpired

        try:
            verdicts = future.result()
        except TimeoutError:
            self.failed(task, Verdict(False, f"no verdict in {self.limit_s:g} s", "time"))
        except ProcessExpired as error:
            task.tries += 1
            self.failed(task, Verdict(False, f"the checking process died ({_cause(error.exitcode)})", "crash"))
        except (RuntimeError, OSError):  # BrokenProcessPool
            self.again.append(task)
            return False
        else:
            for (number, *_), verdict in zip(task.numbered, verdicts, strict=True):
                self.on_verdict(number, verdict)
        self.restarts = 0
        return True

    def failed(self, task: _Task, verdict: Verdict) -> None:
        if len(task.numbered) > 1:
            self.again.extend(_Task([one]) for one in task.numbered)
        elif verdict.failure == "crash" and task.tries < 2:  # it may have been killed for something else
            self.again.append(task)
        else:
            self.on_verdict(task.numbered[0][0], verdict)

    def count_restart(self) -> None:
        self.restarts += 1
        if self.restarts > _RESTARTS:
            raise InputError(
                f"processes that check answers cannot be started (tried {_RESTARTS} times); is there memory?"
            )


def _chunks(pairs: Iterable[tuple[str, str]]) -> Iterator[_Task]:
    chunk: list[tuple[int, str, str]] = []
    for number, (gold, answer) in enumerate(pairs):
        chunk.append((number, gold, answer))
        if len(chunk) == CHUNK:
            yield _Task(chunk)
            chunk = []
    if chunk:
        yield _Task(chunk)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cause(exitcode: int) -> str:
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"


# What runs in a worker.


def _start_worker(memory_bytes: int, function: Checker) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pebble's handler would wait for the end of a power tower
    die_with_parent()
    os.environ.update(child_environment(1))
    import sympy.core.random  # noqa: F401

    for gold, answer in WARM_UP.get(function, ()):
        function(gold, answer)
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory_bytes,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _check_chunk(function: Checker, numbered: list[tuple[int, str, str]]) -> list[Verdict]:
    return [_check_one(function, gold, answer) for _, gold, answer in numbered]


def _check_one(function: Checker, gold: str, answer: str) -> Verdict:
    from sympy.core.random import seed

    seed(0)  # comparing formulas tries random numbers: the same ones whatever was checked before
    try:
        return function(gold, answer)
    except MemoryError:
        return Verdict(False, "out of memory", "memory")
    except Exception as error:  # a checker is total; what it calls may not be
        return Verdict(False, f"the checker failed ({type(error).__name__})", "crash")
