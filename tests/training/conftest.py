"""Traces to train on, documents of random tokens, and `distill` processes that are there in a moment."""

import multiprocessing
import os
import socket
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest

from distill.process import child_environment


@pytest.fixture(scope="session")
def traces(tmp_path_factory):
    """A finished trace set: 240 pairs of `add` and 80 of `max`, other ones in every session."""
    import secrets

    from distill.traces.generate import generate
    from distill.traces.settings import GenerateSettings

    folder = tmp_path_factory.mktemp("traces") / "traces"
    generate(GenerateSettings(tasks={"add": 240, "max": 80}, seed=secrets.randbits(30)), folder)
    return folder


@pytest.fixture
def train_until(monkeypatch):
    """train_until(settings, traces, options, step): train in this process, and stop dead when a checkpoint later than
    `step` is due."""
    from distill.training import checkpoint
    from distill.training.train import train

    class Killed(BaseException):
        """Stands for a kill at one exact place; no handler for Exception may swallow it."""

    def run(settings, traces, options, step):
        real = checkpoint.save

        def save(folder, model, optimizer, progress, ranks):
            if progress.step > step:
                raise Killed
            real(folder, model, optimizer, progress, ranks)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(checkpoint, "save", save)
            train(settings, traces, options)

    return run


@pytest.fixture
def documents(rng):
    """documents(n): n documents of 2 to 40 random tokens below 96, each with some of them supervised."""
    from distill.packing.pack import Document

    def make(n: int, low: int = 0, high: int = 96) -> list[Document]:
        tokens = [rng.integers(low, high, int(rng.integers(2, 41))).astype(np.int32) for _ in range(n)]
        return [Document(row, int(rng.integers(1, len(row)))) for row in tokens]

    return make


class Forked:
    """A process that does what `python ARGUMENTS` does, forked from one that has imported the trainer: not seconds of
    imports, and a process to kill like any other. Used like a Popen."""

    CODE = """
import os, runpy, sys
for number, path in ((1, out), (2, err)):
    os.dup2(os.open(path, os.O_WRONLY), number)
os.environ.update(env)
if arguments[0] == "-m":
    sys.argv = arguments[1:]
    runpy.run_module(arguments[1], run_name="__main__")
else:
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
"""

    def __init__(self, arguments, files, env):
        self.files = [f"{files}.out", f"{files}.err"]
        for file in self.files:  # it may be killed before it opens them
            Path(file).touch()
        values = {"arguments": arguments, "out": self.files[0], "err": self.files[1], "env": env}
        self.process = multiprocessing.get_context("forkserver").Process(target=exec, args=(self.CODE, values))
        self.process.start()

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.process.kill()

    def communicate(self):
        """(standard output, standard error), once it has ended."""
        self.process.join(300)
        assert self.process.exitcode is not None, "it does not end"
        return tuple(Path(file).read_text() for file in self.files)


@pytest.fixture(scope="session")
def run_forked(tmp_path_factory):
    """run_forked(arguments, env={}): a `Forked`; whatever still runs at the end is killed."""
    started, folder = [], tmp_path_factory.mktemp("forked")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in child_environment(1).items():
            patch.setenv(name, value)
        preload = ["distill.cli", "distill.training.train", "peft"]
        multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
        forkserver.ensure_running()

    def run(arguments, env=None):
        started.append(Forked([str(a) for a in arguments], folder / str(len(started)), env or {}))
        return started[-1]

    yield run
    for one in started:
        one.kill()


@pytest.fixture(scope="session")
def run_ranks(run_forked):
    """run_ranks(world, arguments): as many `Forked` processes as torchrun would start, in what it tells them."""

    def run(world, arguments):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        one = {"WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        return [run_forked(arguments, one | {"RANK": str(n), "LOCAL_RANK": str(n)}) for n in range(world)]

    return run
