"""The processes of one training: one a device, started by torchrun. Without it there is one, and nothing below happens.

The first rank speaks, writes logs and holds the artifact; what it decides reaches the others over a small group on the
CPU, so no GPU is waited for. An error on any rank ends all of them with that error, at the same place.
"""

import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from distill import console
from distill.errors import InputError
from distill.process import die_with_parent
from distill.training.device import require_gpu_to_offload

Result = TypeVar("Result")

# The others wait as long as the first rank takes: another process may hold the folder. A rank that dies is noticed at once,
# and one whose machine is gone, which says nothing, at the end of the step.
_CONTROL_TIMEOUT = timedelta(days=30)
# How gloo says that: a connection closed or reset by peer, one that was never made, or an answer that never came.
_LOST = re.compile("by peer|Broken pipe|Connection refused|[Tt]imed out|[Tt]imeout")
# A gloo thread needs the interpreter to let go of a tensor, and Python aborts a process in which one asks after its end.
_LET_GO = 0.3  # seconds
_LAST_WORDS = 10.0  # seconds in which the rank that has something to say says it, before torchrun ends all of them


class Stopped(Exception):
    """Training was asked to stop by `signal` (Ctrl-C, SIGTERM) and has saved a checkpoint."""

    def __init__(self, message: str, signal: int):
        super().__init__(message, signal)
        self.signal = signal

    def __str__(self) -> str:
        return self.args[0]


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of a training."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: DeviceMesh | None = None  # over which weights are sharded; None where they are not
    control: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def together(self, work: Callable[[], Result]) -> Result:
        """Every rank works and gets its own result. An error on any rank is raised on all."""
        result, error = None, None
        if self.world == 1:
            return work()
        try:
            result = work()
        except Exception as raised:
            error = raised
        for rank, found in enumerate(self.gather(_sendable(error))):
            if found is not None:
                self._raise(error if rank == self.rank else found)
        return result

    def gather(self, value: Result) -> list[Result]:
        """The values of all ranks, in their order."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value, group=self.control)
        return values

    def only_first(self, work: Callable[[], Result]) -> Result | None:
        """The first rank works, the others wait for it and get None. Its error is raised on all."""
        result = None
        if self.world == 1:
            return work()
        error = None
        if self.is_first:
            try:
                result = work()
            except Exception as raised:
                error = raised
        found = [_sendable(error)]
        dist.broadcast_object_list(found, src=0, group=self.control)
        if found[0] is not None:
            self._raise(error or found[0])
        return result

    def from_first(self, work: Callable[[], Result]) -> Result:
        """The first rank works, and all get what it found. Its error is raised on all."""
        result = [self.only_first(work)]
        if self.world > 1:
            dist.broadcast_object_list(result, src=0, group=self.control)
        return result[0]

    def most(self, *values: float) -> tuple[float, ...]:
        """The largest of each value over all ranks, which come to it together: one that is half an hour late is lost."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)  # on the CPU: not over NCCL
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tuple(tensor.tolist())

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place, wherever the tensor is; a GPU is not waited for."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def _raise(self, error: Exception) -> None:
        if isinstance(error, _Fault):  # an error of the program itself, whose traceback one rank shows
            time.sleep(_LAST_WORDS)
            raise SystemExit(1)
        raise error


class _Fault(Exception):
    """Stands, on the other ranks, for an error that is not to be shown by every one of them."""


def _sendable(error: Exception | None) -> Exception | None:
    if error is None or isinstance(error, InputError | OSError | Stopped):
        return error
    return _Fault()


@contextmanager
def start_ranks(*, cpu_offload: bool = False) -> Iterator[Ranks]:
    """This process's place among those that torchrun started, or the only one.

    Weights are sharded over several ranks, and with `cpu_offload` also on one, since sharding is what moves them. Raises
    InputError for CPU offload without a GPU, and for more processes than a machine has GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = (int(os.environ.get(name, "0")) if world > 1 else 0 for name in ("RANK", "LOCAL_RANK"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if _is_launched():
        die_with_parent()  # killed itself, torchrun stops nobody: they would train on, unseen
    if rank:
        _be_quiet()
    require_gpu_to_offload(cpu_offload)
    if gpus and local >= gpus:
        here = os.environ.get("LOCAL_WORLD_SIZE", world)
        raise InputError(f"torchrun started {here} processes on a machine with {gpus} GPUs; expected one for each")
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if world == 1 and not cpu_offload:
        yield Ranks(device=device)
        return
    alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if world == 1 else {}
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", **alone)
    control = dist.new_group(backend="gloo", timeout=_CONTROL_TIMEOUT)
    try:
        yield Ranks(rank, world, device, init_device_mesh(device.type, (world,)), control)
    except (InputError, OSError, Stopped):  # on all ranks, at the same place
        dist.destroy_process_group()
        raise
    except RuntimeError as error:
        if world == 1 or not _LOST.search(str(error)):
            raise
        console.note("another process of this training is gone; the same command goes on from the last checkpoint")
        raise SystemExit(1) from None
    else:
        dist.destroy_process_group()
    finally:
        time.sleep(_LET_GO)


def _is_launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _be_quiet() -> None:
    """Of a result, a progress bar or a warning, one rank's is enough."""
    from transformers.utils import logging as transformers_logging

    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    console.err.quiet = True
    transformers_logging.set_verbosity_error()
    warnings.simplefilter("ignore")


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or SIGTERM arrives; a second one is not held back.

    Under torchrun a Ctrl-C arrives twice, from the terminal and passed on, so all of them are held back there; it kills
    whoever has not ended after 30 seconds.
    """
    received: list[int] = []
    launched = _is_launched()

    def remember(number: int, _frame: Any) -> None:
        received.append(number)
        if not launched:
            signal.signal(number, previous[number])

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
