"""A teacher that vLLM serves on this machine, started when the first question comes and taken down after the last."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from distill.artifact import folder_identity
from distill.console import note
from distill.serve.adapter import read_adapter
from distill.serve.server import Server, ServerSettings, check_checkpoint
from distill.traces.pairing import Answer
from distill.traces.teachers.chat import ChatTeacher
from distill.traces.teachers.settings import VllmSettings
from distill.traces.teachers.teacher import Question
from distill.traces.trace import Mode

WATCH_S = 0.5
VLLM_MAX_LOGPROBS = 20  # unless it is told otherwise
# Arguments of vLLM that spread its work or size it: none changes what is answered.
SCALE_ARGUMENTS = (
    *("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size", "enable-expert-parallel"),
    *("tp", "pp", "dp"),
    *("gpu-memory-utilization", "max-num-seqs", "max-num-batched-tokens", "api-server-count", "max-logprobs"),
    *("enforce-eager", "swap-space", "cpu-offload-gb", "distributed-executor-backend", "disable-log-requests"),
)


class VllmTeacher(ChatTeacher):
    """A model's folder, a folder of adapters, or a Hub id, behind vLLM's server; or two of them."""

    def __init__(self, settings: VllmSettings, seed: int, workdir: Path, *, gold_shown: bool = False):
        """The servers' logs are written beside `workdir`. Raises InputError for a model that cannot be served."""
        adapter = read_adapter(settings.vllm)
        tokenizer = settings.tokenizer or (adapter.base if adapter else settings.vllm)
        super().__init__(settings, seed, gold_shown=gold_shown, tokenizer=tokenizer)
        self.workdir = workdir.resolve()
        self.identity |= _identity(settings.vllm, settings.server)
        if settings.ift_vllm is not None:
            self.identity["ift"] = _identity(settings.ift_vllm, settings.ift_server or settings.server)

    async def answer(self, questions: Iterable[Question], on_answer: Callable[[Question, Answer], None]) -> None:
        questions = iter(questions)
        first = next(questions, None)
        if first is None:
            return  # nothing is missing: no server is started
        settings = self.settings
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(
                _serving(settings.vllm, self._server(settings.server), self._log(""))
            )
            servers: dict[Mode, Server] = {"reasoning": server, "ift": server}
            if settings.ift_vllm is not None:
                how = settings.ift_server or settings.server
                servers["ift"] = await stack.enter_async_context(_serving(settings.ift_vllm, how, self._log("-ift")))
            asking = self.ask(
                {mode: server.endpoint for mode, server in servers.items()}, chain((first,), questions), on_answer
            )
            await _while_alive(asking, list(dict.fromkeys(servers.values())))

    def _server(self, settings: ServerSettings) -> ServerSettings:
        if self.settings.top_k is None or self.settings.top_k < VLLM_MAX_LOGPROBS:
            return settings
        more = ("--max-logprobs", str(self.settings.top_k + 1))
        return settings.model_copy(update={"arguments": (*more, *settings.arguments)})

    def _log(self, which: str) -> Path:
        return self.workdir.with_name(f"{self.workdir.name}.vllm{which}.log")


@asynccontextmanager
async def _serving(model: str, settings: ServerSettings, log: Path) -> AsyncIterator[Server]:
    """A server that is ready. Its log is kept when the block, or the start, ends in an exception."""
    note(f"starting vLLM with {model}")
    server = Server(model, settings, log)
    # In a thread, since it takes minutes: an interrupt is heard at once, and whatever was started is taken down.
    starting = asyncio.ensure_future(asyncio.to_thread(server.__enter__))
    try:
        await asyncio.shield(starting)
        yield server
    finally:
        server.stop()
        while not starting.done():
            await asyncio.sleep(0.05)
            server.stop()
        starting.exception()
    log.unlink(missing_ok=True)


async def _while_alive(asking: Coroutine[Any, Any, None], servers: list[Server]) -> None:
    """Run `asking` to its end. Raises InputError when a server ends before it."""

    async def watch() -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            for server in servers:
                server.check()

    task, watching = asyncio.ensure_future(asking), asyncio.ensure_future(watch())
    try:
        await asyncio.wait((task, watching), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            watching.result()
        await task
    finally:
        for one in (task, watching):
            one.cancel()
        await asyncio.gather(task, watching, return_exceptions=True)


def _identity(model: str, settings: ServerSettings) -> dict[str, Any]:
    """What the answers of a served model depend on: the weights themselves, so that others are never taken for them."""
    adapter = read_adapter(model)
    identity: dict[str, Any] = {"name": Path(model).resolve().name if Path(model).is_dir() else model}
    if adapter is not None or check_checkpoint(model):
        identity["files"] = folder_identity(Path(model))
    if adapter is not None:
        base = Path(adapter.base)
        identity["base"] = folder_identity(base) if check_checkpoint(adapter.base) else adapter.base
    how = settings.model_dump(include={"dtype", "max_model_len"})
    return identity | {"server": how | {"arguments": _answering(settings.arguments)}}


def _answering(arguments: tuple[str, ...]) -> list[str]:
    """The arguments that answers may depend on."""
    kept, skipping = [], False
    for argument in arguments:
        if argument.startswith("-"):
            skipping = argument.split("=")[0].lstrip("-").replace("_", "-") in SCALE_ARGUMENTS
        if not skipping:
            kept.append(argument)
    return kept
