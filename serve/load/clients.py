"""The processes that send: one python process is soon busier than a small model's server.

Each process has its own share of the requests and of the concurrency, or its own share of the arrival times, and all
start at the same moment. With one process nothing is started: the load comes from this one.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from distill.errors import InputError
from distill.serve.client import Completion, SamplingSettings, complete
from distill.serve.endpoint import Endpoint
from distill.serve.load.shapes import ClosedLoop, Load, share

START_DELAY_S = 0.2  # from handing out the requests to the first one: every process has its share by then
MOST_IN_FLIGHT = 4096  # of an open loop, over all processes
MOST_FAILURES = 32  # in a row, besides those in flight, before a load is given up
_ENDED = "the process that sent it has ended"


@dataclass(frozen=True)
class Batch:
    """Requests of one run, and how they are sent."""

    endpoint: Endpoint
    sampling: SamplingSettings
    prompts: Sequence[Sequence[int]]
    arrivals_s: Sequence[float] | None  # of each prompt, in seconds after the start; None in a closed loop
    concurrency: int
    timeout_s: float  # the longest silence of the server

    def of_process(self, process: int, processes: int) -> "Batch":
        """This process's share; what does not divide goes to the first ones."""
        return replace(
            self,
            prompts=share(self.prompts, process, processes),
            arrivals_s=None if self.arrivals_s is None else share(self.arrivals_s, process, processes),
            concurrency=len(share(range(self.concurrency), process, processes)),
        )

    async def send(self, start_s: float, on_result: Callable[[Completion], None]) -> str | None:
        """Send all, from the moment `start_s` of time.perf_counter on. Returns why it was given up, if it was."""
        await asyncio.sleep(max(0.0, start_s - time.perf_counter()))
        in_a_row = MOST_FAILURES + (self.concurrency if self.arrivals_s is None else 0)
        hope, reason = _Hope(in_a_row, self.timeout_s), None

        def keep(completion: Completion) -> None:
            nonlocal reason
            on_result(completion)
            reason = reason or hope.lost(completion)
            if reason:
                sending.cancel()

        sending = asyncio.create_task(
            complete(
                self.endpoint,
                self.prompts,
                self.sampling,
                concurrency=self.concurrency,
                arrivals_s=self.arrivals_s,
                stream=True,
                retries=0,
                timeout_s=self.timeout_s,
                on_result=keep,
            )
        )
        try:
            await sending
        except asyncio.CancelledError:
            if reason is None:
                raise
        return reason


class _Hope:
    """Whether a server will answer again: without it a load on a dead or hung one would last for hours."""

    def __init__(self, in_a_row: int, timeout_s: float):
        self._in_a_row, self._timeout_s = in_a_row, timeout_s
        self._failures, self._answered_s = 0, time.perf_counter()

    def lost(self, completion: Completion) -> str | None:
        """Why no more is to be sent after this result; None to go on."""
        if completion.error is None:
            self._failures, self._answered_s = 0, time.perf_counter()
            return None
        self._failures += 1
        if "Timeout" in completion.error and time.perf_counter() - self._answered_s >= self._timeout_s:
            return f"given up: the server was silent for {self._timeout_s:g} s"
        if self._failures >= self._in_a_row:
            return f"given up: {self._failures} requests failed in a row ({completion.error})"
        return None


def batch(
    endpoint: Endpoint,
    sampling: SamplingSettings,
    prompts: Sequence[Sequence[int]],
    load: Load,
    *,
    seed: int,
    timeout_s: float,
) -> Batch:
    """The prompts (token ids) as a load of this shape sends them."""
    if isinstance(load, ClosedLoop):
        return Batch(endpoint, sampling, prompts, None, load.concurrency, timeout_s)
    arrivals_s = load.arrivals_s(len(prompts), seed).tolist()
    return Batch(endpoint, sampling, prompts, arrivals_s, MOST_IN_FLIGHT, timeout_s)


class Clients:
    """Processes that send batches, one batch after the other.

    with Clients(2) as clients:
        completions = clients.send(batch)
    """

    def __init__(self, processes: int):
        self.processes = processes
        self._children: list[Any] = []
        self._pipes: list[Connection] = []

    def __enter__(self) -> Self:
        if self.processes > 1:
            spawn = multiprocessing.get_context("spawn")
            for _ in range(self.processes):
                ours, theirs = spawn.Pipe()
                child = spawn.Process(target=_serve_batches, args=(theirs,), daemon=True)
                child.start()
                theirs.close()
                self._children.append(child)
                self._pipes.append(ours)
            for pipe in self._pipes:
                with suppress(EOFError):
                    pipe.recv()  # it has imported what it needs
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for child in self._children:
            child.join(timeout=5)
            if child.is_alive():
                child.kill()
                child.join()

    def send(self, batch: Batch, on_result: Callable[[], None] | None = None) -> list[Completion]:
        """Send a batch; results in the order of its prompts. `on_result` is called once for each as it comes.

        Requests of a process that has been killed are failures with that reason, and so are those that were still to be
        sent or answered when a server was given up. Raises InputError when all processes have been killed.
        """
        results: dict[int, Completion] = {}

        def keep(index: int, completion: Completion) -> None:
            results[index] = replace(completion, index=index)
            if on_result:
                on_result()

        if self.processes == 1:
            sending = batch.send(time.perf_counter(), lambda completion: keep(completion.index, completion))
            reasons = [asyncio.run(sending)]
        else:
            reasons = self._send_by_children(batch, keep)
        return [
            results.get(i) or Completion(i, len(prompt), error=reasons[i % len(reasons)] or _ENDED)
            for i, prompt in enumerate(batch.prompts)
        ]

    def _send_by_children(self, batch: Batch, keep: Callable[[int, Completion], None]) -> list[str | None]:
        """Returns of every process why it gave up, if it did and said so."""
        start_s = time.perf_counter() + START_DELAY_S
        processes = min(self.processes, batch.concurrency)  # each has at least one client
        reasons: list[str | None] = [None] * processes
        waiting: dict[Connection, int] = {}
        for process, pipe in enumerate(self._pipes[:processes]):
            with suppress(OSError):
                pipe.send((batch.of_process(process, processes), start_s))
                waiting[pipe] = process
        if not waiting:
            raise InputError("load: every process that sends requests has ended")
        while waiting:
            for pipe in wait(list(waiting)):
                try:
                    said = pipe.recv()
                except (EOFError, OSError):
                    said = None
                if isinstance(said, Completion):
                    keep(waiting[pipe] + said.index * processes, said)
                else:
                    reasons[waiting.pop(pipe)] = said
        return reasons


def _serve_batches(pipe: Connection) -> None:
    """A sending process: batches come, a completion goes back for every request, then why it gave up, or None."""
    pipe.send(None)
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            batch, start_s = pipe.recv()
            pipe.send(asyncio.run(batch.send(start_s, pipe.send)))
