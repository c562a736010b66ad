"""Contenders that take turns in one process, round by round, on a CPU or a GPU.

On a GPU a call is timed by events around it, after writes that empty the cache and keep the device busy while the
call's first kernels are queued; on a CPU by the wall clock. Every contender is called three times before the first
round: to compile, for its memory, and to see how long it takes. Order is reversed from round to round.
"""

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np
import torch

Call = Callable[[], Any]
_FLUSH_BYTES = 256 << 20  # several times the L2 of any GPU
# One such write takes some 60 us. Python needs more until the first kernel of an attention of 1 ms is queued, and a
# device that waits for it would be measured.
_FLUSHES = 8


class DeviceLost(Exception):
    """A contender left the device unusable: nothing more can be measured in this process."""


class Clock:
    """Times calls on one device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.is_cuda = device.type == "cuda"
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device) if self.is_cuda else None

    def seconds(self, call: Call) -> float:
        if not self.is_cuda:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(_FLUSHES):
            self._flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def peak_bytes(self, call: Call) -> int | None:
        """Device memory that the call takes at its peak above what was there before, results included."""
        if not self.is_cuda:
            call()
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def clear(self) -> None:
        """Give back what earlier contenders held, so that the next find an empty device. Raises DeviceLost."""
        gc.collect()  # a patched model refers to itself
        self.recover()

    def recover(self) -> None:
        """After an error. Raises DeviceLost when the device does not answer any more."""
        if not self.is_cuda:
            return
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise DeviceLost(reason(error)) from None


def reason(error: BaseException) -> str:
    """An exception in one line of a result."""
    if isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error):
        return "out of memory"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def attempt(clock: Clock, action: Callable[[], Any]) -> tuple[Any, str | None]:
    """(result, None), or (None, why it failed). Raises DeviceLost."""
    try:
        return action(), None
    except Exception as error:
        failed = reason(error)
    clock.recover()  # outside the handler, whose exception holds the tensors of every frame it went through
    return None, failed


def _peak_of_second(clock: Clock, call: Call) -> int | None:
    call()  # compiles, tunes itself and makes workspaces that stay; its results are given back
    return clock.peak_bytes(call)


def take_turns(
    contenders: Mapping[str, Call],
    clock: Clock,
    *,
    rounds: tuple[int, int],
    seconds: float,
    announce: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[str, Any]]:
    """{contender: {"seconds": median, "low", "high": quartiles, "rounds": all of them, "peak_bytes"} or {"error"}}.

    As many rounds as take about `seconds`, within the limits `rounds`. `announce` is told who is called next,
    whenever that is somebody for the first time.
    """
    results: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {}
    spent = 0.0
    for name, call in contenders.items():
        announce(name)
        peak, failed = attempt(clock, lambda call=call: _peak_of_second(clock, call))
        once = None
        if failed is None:
            once, failed = attempt(clock, lambda call=call: clock.seconds(call))
        if failed is not None:
            results[name] = {"error": failed}
            continue
        results[name] = {"peak_bytes": peak}
        times[name] = []
        spent += once
    count = max(rounds[0], min(rounds[1], int(seconds / max(spent, 1e-9))))
    for number in range(count):
        for name in list(times) if number % 2 == 0 else list(reversed(times)):
            taken, failed = attempt(clock, lambda name=name: clock.seconds(contenders[name]))
            if failed is not None:
                results[name] = {"error": failed}
                del times[name]
            else:
                times[name].append(taken)
    for name, values in times.items():
        low, high = np.quantile(values, (0.25, 0.75))
        results[name] |= {"seconds": median(values), "low": float(low), "high": float(high), "rounds": values}
    return results
