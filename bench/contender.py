"""The child process of a training benchmark: one trainer, run as its users run it, stopped after every turn.

Both trainers are timed by the same instrument, a hook that torch calls after every optimizer step. A record is
{"seconds": since the last step ended or the turn began, "rss_bytes", "peak_rss_bytes": of this process at that moment,
"peak_device_bytes": of tensors on the GPU so far, None without one} and, for TRL, what the step trained on (see peer.py). The first step's seconds include the set-up.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from distill.artifact import read_json
from distill.process import peak_rss_bytes


class OutOfTurns(BaseException):
    """The parent wants no more steps."""


class Turns:
    """Counts optimizer steps and waits for the parent between turns."""

    def __init__(self, channel: Any):
        self.channel = channel
        self.records: list[dict[str, Any]] = []
        self.left = 1
        self.about: dict[str, Any] = {}  # sent once, with the first report
        self.counts: Callable[[int], dict[str, Any]] = lambda step: {}
        self.done = 0
        self.process = psutil.Process()
        self.started = time.perf_counter()

    def after_step(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.started
        memory = {
            "rss_bytes": self.process.memory_info().rss,
            "peak_rss_bytes": peak_rss_bytes(),
            "peak_device_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        }
        self.records.append({"seconds": seconds, **memory, **self.counts(self.done)})
        self.done += 1
        self.left -= 1
        if self.left == 0:
            self.report(finished=False)
            line = sys.stdin.readline()
            if not line:
                raise OutOfTurns
            self.left = int(line)
        self.started = time.perf_counter()

    def report(self, *, finished: bool) -> None:
        print(json.dumps({"steps": self.records, "finished": finished, **self.about}), file=self.channel, flush=True)
        self.records, self.about = [], {}


def run_distill(spec: dict[str, Any]) -> None:
    """`distill train` with spec["settings"] on the traces spec["traces"], into spec["out"]."""
    from distill.training.settings import RunOptions, TrainSettings
    from distill.training.train import train

    options = RunOptions(out=Path(spec["out"]), checkpoint_seconds=1e9, tensorboard=False)
    train(TrainSettings(**spec["settings"]), Path(spec["traces"]), options)


def run_trl(spec: dict[str, Any], turns: Turns) -> None:
    """TRL's SFTTrainer with the PeerSettings spec["settings"] on the examples in the file spec["examples"]."""
    from distill.bench.peer import Peer, PeerSettings

    peer = Peer(PeerSettings(**spec["settings"]), Path(spec["examples"]), Path(spec["out"]))
    turns.counts, turns.about = peer.counts, peer.about
    peer.trainer.train()


def main() -> None:
    """The one argument is a JSON file: {"trainer": "distill" or "trl", ...what that one's function above reads}."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    spec = read_json(Path(sys.argv[1]))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    turns = Turns(channel)
    register_optimizer_step_post_hook(turns.after_step)
    try:
        run_distill(spec) if spec["trainer"] == "distill" else run_trl(spec, turns)
    except OutOfTurns:
        return
    turns.report(finished=True)


if __name__ == "__main__":
    main()
