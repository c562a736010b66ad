"""`distill serve start`: a model behind vLLM until it is interrupted, for whoever wants to talk to it."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from distill.errors import InputError
from distill.serve.endpoint import Endpoint, clean_key
from distill.serve.server import Server, ServerSettings

WATCH_S = 1.0


def start(
    model: str,
    settings: ServerSettings,
    log: Path,
    key_file: Path,
    *,
    api_key_env: str | None = None,
    on_ready: Callable[[Endpoint], None],
) -> None:
    """Serve `model` until SIGINT or SIGTERM; `on_ready` is called once it answers.

    The API key is what the environment variable `api_key_env` holds. Without one it is drawn, and stands in `key_file`,
    which only its owner can read, for as long as the server runs. The log is kept. Raises InputError when the server
    cannot be started, or ends by itself.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Server(model, settings, log, api_key=_key(api_key_env)) as server:
            if api_key_env is None:
                _write_key(key_file, server.endpoint.api_key or "")
            try:
                on_ready(server.endpoint)
                with suppress(KeyboardInterrupt):
                    while True:
                        time.sleep(WATCH_S)
                        server.check()
            finally:
                if api_key_env is None:
                    key_file.unlink(missing_ok=True)
    finally:
        signal.signal(signal.SIGTERM, before)


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = clean_key(os.environ.get(variable), f"environment variable {variable}")
    if key is None:
        raise InputError(f"environment variable {variable}: expected the API key, found it empty or not set")
    return key


def _write_key(file: Path, key: str) -> None:
    try:
        file.unlink(missing_ok=True)  # of a server that was killed; its access rights may be others
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(key + "\n")
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror})") from None
