"""Joules of what happens meanwhile, through zeus: NVML's counters of the GPUs, RAPL's of CPU packages and DRAM.

    with EnergyMeter() as meter:
        meter.measure_idle()
        with meter.window() as window:
            ...                     # seconds, not milliseconds: the counters move in steps of up to 0.1 s
        window.energy

`energy` is {"joules", "watts", "seconds", "sources": {"gpu 0": J, "cpu package 0": J, "dram 0": J}, "left_out": what of
this machine is not in it, or None, "idle_watts", "joules_above_idle": None without measure_idle}, or {"reason": why there
is no figure}. Counters are of whole devices: whatever else runs on them is in it, and the clients of a load run on the
CPU. GPUs are numbered as CUDA_VISIBLE_DEVICES leaves them.

zeus runs in a process of its own. It imports pandas and scikit-learn, libraries of drivers that it loads may print,
hang or crash, and for RAPL it starts processes of its own that outlive a killed parent. Here none of that reaches the
run: what goes wrong there is a reason here, and the process and all that it started go when the meter's block ends, or
when we are gone.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from distill.process import child_environment

START_S = 60.0  # the longest that zeus may take to start
ANSWER_S = 10.0  # and to read its counters
SHORTEST_S = 1.0  # of a window: the counters' steps are at most a tenth of it
MOST_WATTS = 5000.0  # of one device. RAPL's counters wrap around, which zeus can notice a second late
RAPL = Path("/sys/class/powercap/intel-rapl")
NVIDIA = Path("/dev/nvidiactl")
NOT_HERE = "not measurable here"


@dataclass
class Window:
    """One block; `energy` is there when it has ended."""

    energy: dict[str, Any] = field(default_factory=lambda: {"reason": "the window has not ended"})


class EnergyMeter:
    """Measures any number of windows, also nested or overlapping ones, also from several threads.

    `gpus`: indices of the GPUs in use; None is all of them, () none. `reason`: why nothing can be measured, or None.
    Nothing that goes wrong in measuring is raised.
    """

    def __init__(self, gpus: Sequence[int] | None = None):
        self.gpus = None if gpus is None else list(gpus)
        self.reason: str | None = "the meter is not running"
        self.sources: list[str] = []
        self.left_out: str | None = None
        self.idle_watts: float | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._windows = 0

    def __enter__(self) -> Self:
        self.reason = None
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "distill.serve.energy"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
                env=child_environment(threads=1),
            )
        except OSError as error:
            self.reason = f"{NOT_HERE}: {error}"
            return self
        found = self._ask({"gpus": self.gpus}, START_S)
        self.sources, self.left_out = found.get("sources", []), found.get("left_out")
        if "reason" in found:
            self._give_up(found["reason"])
        return self

    def __exit__(self, *_: object) -> None:
        self._give_up(self.reason or "the meter is not running")

    @contextmanager
    def window(self) -> Iterator[Window]:
        """The joules of a block. A block that raises has its energy too."""
        with self._lock:
            self._windows += 1
            key = str(self._windows)
        window = Window()
        begun = self._ask({"begin": key})
        try:
            yield window
        finally:
            window.energy = begun if "reason" in begun else self._energy(self._ask({"end": key}))

    def measure_idle(self, seconds: float = 5.0) -> float | None:
        """Watts while nothing happens, which windows are then also counted above. None, and no wait, without a meter."""
        if self.reason is None:
            with self.window() as window:
                time.sleep(seconds)
            self.idle_watts = window.energy.get("watts")
        return self.idle_watts

    def _energy(self, found: dict[str, Any]) -> dict[str, Any]:
        if "reason" in found:
            return found
        seconds, sources = found["seconds"], found["sources"]
        if seconds < SHORTEST_S:
            return {"reason": f"a window of {seconds:.2g} s: expected {SHORTEST_S:g} s or more"}
        for name, joules in sources.items():
            if not 0 < joules <= MOST_WATTS * seconds:
                return {"reason": f"{name}: its counter says {joules:.6g} J in {seconds:.3g} s, which cannot be"}
        joules = sum(sources.values())
        above = None if self.idle_watts is None else joules - self.idle_watts * seconds
        return {
            "joules": joules,
            "watts": joules / seconds,
            "seconds": seconds,
            "sources": sources,
            "left_out": self.left_out,
            "idle_watts": self.idle_watts,
            "joules_above_idle": above,
        }

    def _ask(self, request: dict[str, Any], longest_s: float = ANSWER_S) -> dict[str, Any]:
        """One request, one answer. A process that does not answer has been asked for the last time."""
        with self._lock:
            if self.reason is not None or self._child is None:
                return {"reason": self.reason}
            reason = "zeus has ended"
            try:
                self._child.stdin.write(json.dumps(request).encode() + b"\n")
                line = _line(self._child.stdout, longest_s)
                if line.endswith(b"\n"):
                    return json.loads(line)
            except TimeoutError:
                reason = f"zeus has not answered for {longest_s:g} s"
            except OSError:
                pass
            self._give_up(reason)
            return {"reason": reason}

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        child, self._child = self._child, None
        if child is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # there is nothing that it would have to put in order
        child.wait()
        child.stdin.close()
        child.stdout.close()


def energy_here() -> str:
    """What energy can be measured on this machine, in words."""
    with EnergyMeter() as meter:
        if meter.reason:
            return meter.reason
        return f"joules of {', '.join(meter.sources)}" + (f"; without {meter.left_out}" if meter.left_out else "")


def _line(pipe: Any, longest_s: float) -> bytes:
    """A line from an unbuffered pipe, cut short where the other side ended. Raises TimeoutError."""
    deadline, line = time.monotonic() + longest_s, b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            some = pipe.read(4096)
            if not some:
                break
            line += some
    return line


def rapl_reason(folder: Path = RAPL) -> str:
    """Why zeus finds no CPU."""
    if not folder.is_dir():
        return f"RAPL is not readable (needs {folder}, which virtual machines and containers mostly lack)"
    return f"RAPL is not readable (needs root, or permission to read {folder}/intel-rapl:*/energy_uj)"


# Below: the process that zeus runs in. A line of JSON in, a line of JSON out.


class _Zeus:
    def __init__(self, gpus: list[int] | None):
        """Raises _CannotError with what is missing when there is nothing to measure."""
        try:
            from zeus.device import get_cpus, get_gpus
            from zeus.monitor import ZeusMonitor
        except ImportError as error:
            if not NVIDIA.exists() and not RAPL.is_dir():
                raise _CannotError(f"no NVIDIA GPU, and {rapl_reason()}") from None
            raise _CannotError(f"zeus cannot be imported ({error}); pip install 'distill-stack[energy]'") from None
        cpus, no_gpu = [], "no GPU in use"
        with suppress(Exception):
            cpus = [i for i, cpu in enumerate(get_cpus().cpus) if _is_package(cpu)]
        if gpus is None:
            try:
                gpus, no_gpu = list(range(len(get_gpus()))), "no NVIDIA GPU"
            except Exception as error:
                gpus, no_gpu = [], f"no NVIDIA GPU that can be read ({_short(error)})"
            if not NVIDIA.exists():
                no_gpu = "no NVIDIA GPU"
        if not gpus and not cpus:
            raise _CannotError(f"{no_gpu}, and {rapl_reason()}")
        self.left_out = None
        if not cpus:
            self.left_out = f"CPU and DRAM: {rapl_reason()}"
        elif not gpus and "read" in no_gpu:
            self.left_out = f"GPUs: {no_gpu}"
        self.monitor = ZeusMonitor(gpu_indices=gpus, cpu_indices=cpus)
        self.started: dict[str, float] = {}
        self.begin("trial")
        self.sources = list(self.end("trial")["sources"])

    def begin(self, key: str) -> dict[str, Any]:
        # Nothing is synchronized: the work is another process's, and asking torch would make a CUDA context here.
        self.monitor.begin_window(key, sync_execution=False)
        self.started[key] = time.monotonic()
        return {}

    def end(self, key: str) -> dict[str, Any]:
        seconds = time.monotonic() - self.started.pop(key)
        found = self.monitor.end_window(key, sync_execution=False)
        parts = {"gpu": found.gpu_energy, "cpu package": found.cpu_energy, "dram": found.dram_energy}
        sources = {f"{kind} {i}": float(j) for kind, by_index in parts.items() for i, j in (by_index or {}).items()}
        return {"seconds": seconds, "sources": sources}


class _CannotError(Exception):
    pass


def _is_package(cpu: Any) -> bool:
    """RAPL's zone psys is the whole platform: packages and DRAM are in it, and would count twice."""
    return getattr(getattr(cpu, "rapl_file", None), "name", "package") != "psys"


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # whatever prints, prints there
    zeus = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "gpus" in request:
                zeus = _Zeus(request["gpus"])
                answer = {"sources": zeus.sources, "left_out": zeus.left_out}
            elif "begin" in request:
                answer = zeus.begin(request["begin"])
            else:
                answer = zeus.end(request["end"])
        except _CannotError as error:
            answer = {"reason": f"{NOT_HERE}: {error}"}
        except Exception as error:
            answer = {"reason": f"zeus failed: {_short(error)}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # with what zeus has started, whether it would have ended it or not


if __name__ == "__main__":
    _serve()
