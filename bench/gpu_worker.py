"""The child process of the GPU suite: it holds the device, measures piece after piece, and tells its parent.

One JSON message a line:

    {"environment", "session"}       first
    {"start": key}                   a piece begins
    {"contender": name}              who is called next, so that the parent knows who took the process down
    {"done": key, "value": {...}}
    {"lost": reason}                 the device answers no more; the process ends

A kernel that has never run can kill its process, or leave a device that only fails from there on. That is why the suite
is two processes: the parent notes who did it and starts another child for the rest.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from distill.bench.gpu_environment import environment, session
from distill.bench.gpu_pieces import Context, GpuSuiteSettings, all_pieces
from distill.bench.rounds import Clock, DeviceLost


def work(
    settings: GpuSuiteSettings,
    send: Callable[[dict[str, Any]], None],
    *,
    done: list[str],
    crashed: dict[str, dict[str, str]],
    deadline: float,
    commit: str | None = None,
) -> None:
    """Measure every piece that is not in `done`. `crashed`: {key: {contender: how}}. None is started after `deadline`,
    on the monotonic clock, which processes share."""
    device = torch.device(settings.device)
    send({"environment": environment(device), "session": session(device, commit)})
    context = Context(settings, Clock(device), lambda name: send({"contender": name}))
    for piece in all_pieces(settings):
        if piece.key in done:
            continue
        if time.monotonic() > deadline:
            return
        send({"start": piece.key})
        try:
            if not piece.is_check:
                context.clock.clear()
            value = piece.run(replace(context, crashed=crashed.get(piece.key, {})))
        except DeviceLost as error:
            send({"lost": str(error)})
            return
        send({"done": piece.key, "value": value})


def main() -> None:
    """Standard input is JSON: {"settings", "done", "crashed", "deadline", "commit"}."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    spec = json.load(sys.stdin)
    settings = GpuSuiteSettings(**spec.pop("settings"))
    work(settings, lambda message: print(json.dumps(message), file=channel, flush=True), **spec)


if __name__ == "__main__":
    main()
