"""Sends many prompts to an OpenAI-compatible server. Every request ends in one result; a failed one says why.

`complete` sends token ids and gets token ids back (vLLM's `return_token_ids`), so that what is counted and graded is
what the model read and wrote, without a tokenizer in between. `chat` sends messages to any OpenAI-compatible server.
Both collect their results. `chat_stream` keeps nothing: requests are drawn as there is room, results handed on.

What vLLM 0.32 does, streamed or not: `token_ids` hold every generated token, the final end-of-turn or stop token
included, with finish_reason "stop"; the text leaves that token out, and a token that yields no text of its own (a
part of a UTF-8 character) still comes with its id.
"""

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from typing import Any, TypeVar

import httpx
from pydantic import Field

from distill.console import progress
from distill.serve.endpoint import Endpoint
from distill.serve.patience import Patience
from distill.serve.replies import (
    FinishReason,
    RequestFailed,
    events,
    finish_reason_of,
    logprobs_of,
    malformed,
    only_choice,
    post,
    text_of,
    token_ids_of,
)
from distill.settings import Settings

BACKOFF_S, BACKOFF_LIMIT_S = 0.25, 30.0
RETRY_AFTER_LIMIT_S = 120.0  # what a server may ask us to wait
PROBE_LIMIT_S = 30.0  # for an easy question to be answered
BUSY_COST = 0.2  # of a try: a server that is only busy is asked more often
REASON_CHARACTERS = 300  # of a result's `error`
Item = TypeVar("Item")
Result = TypeVar("Result", "Completion", "ChatCompletion")


class SamplingSettings(Settings):
    """How tokens are drawn. Sent in full, so that no server's defaults take part."""

    max_tokens: int = Field(gt=0)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()  # beside the model's own end-of-turn token
    ignore_eos: bool = False  # decode exactly max_tokens: for measuring speed only


@dataclass(frozen=True)
class Completion:
    """One answer to a prompt of token ids. Times are seconds from sending the request (the last try of it)."""

    index: int  # of the prompt
    prompt_tokens: int
    token_ids: list[int] = field(default_factory=list)  # all generated, the end-of-turn token included
    text: str = ""  # as the server decoded it; tags kept, the end-of-turn token not
    finish_reason: FinishReason = "error"
    ttft_s: float | None = None  # to the first token; None when not streamed
    tfat_s: float | None = None  # to the first token after the end of thinking; None without thinking or streaming
    e2e_s: float | None = None  # to the end of the reply
    sent_s: float | None = None  # when it was sent, by time.perf_counter
    error: str | None = None
    tries: int = 1


@dataclass(frozen=True)
class ChatCompletion:
    """One reply of a chat model, as the server gave it: splitting tags in `content` is left to the caller."""

    content: str = ""
    reasoning: str | None = None  # the field `reasoning`, or `reasoning_content` as it was once called
    finish_reason: FinishReason = "error"  # "refused": the model or the service will not answer; `error` says how
    token_ids: list[int] | None = None  # where the server gives them (vLLM, with return_token_ids in `extra`)
    # Its entries as they are, one a token, where `extra` asks for them. They are large.
    logprobs: list[Any] | None = field(default=None, repr=False)
    usage: dict[str, Any] = field(default_factory=dict)
    e2e_s: float | None = None
    error: str | None = None
    tries: int = 1


@dataclass(frozen=True)
class ChatRequest:
    """What is asked of a chat model, and where.

    Only fields of the OpenAI protocol are sent, but for `chat_template_kwargs` (how vLLM and SGLang switch thinking)
    and `extra`, which is merged last; a None in it takes a field out.
    """

    endpoint: Endpoint
    messages: Sequence[dict[str, Any]]
    sampling: SamplingSettings
    chat_template_kwargs: dict[str, Any] | None = None
    extra: dict[str, Any] | None = None
    about: Any = None  # for who asks: handed back with the result

    def body(self) -> dict[str, Any]:
        """The JSON that is sent."""
        sampling = self.sampling
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": list(self.messages),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "chat_template_kwargs": self.chat_template_kwargs,
            "stop_token_ids": list(sampling.stop_token_ids) or None,
            "ignore_eos": sampling.ignore_eos or None,
            **(self.extra or {}),
        }
        return {name: value for name, value in body.items() if value is not None}

    def easy(self) -> "ChatRequest":
        """One token about nothing, asked in the same way."""
        asked = {"role": "user", "content": "1+1?"}
        system = [message for message in self.messages if message.get("role") == "system"]
        sampling = self.sampling.model_copy(update={"max_tokens": 1})
        return replace(self, messages=[*system, asked], sampling=sampling, extra=None)


async def complete(
    endpoint: Endpoint,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingSettings,
    *,
    concurrency: int = 32,
    stream: bool = False,
    seeds: Sequence[int] | None = None,
    think_end_id: int | None = None,
    retries: int = 4,
    timeout_s: float = 600.0,
    on_result: Callable[[Completion], None] | None = None,
    label: str | None = None,
) -> list[Completion]:
    """Complete each prompt (token ids) at `endpoint`; results in the order of the prompts.

    At most `concurrency` requests are in flight, the next one sent when one ends. `on_result` gets each result as it
    comes, for a journal. `seeds` are one per prompt, in place of `sampling.seed`. Dropped connections, HTTP 429 and
    5xx are tried again up to `retries` times with growing, jittered pauses; other refusals are not. `timeout_s` is
    the longest silence of the server. `label` names a progress bar and shows it.
    """
    results: dict[int, Completion] = {}
    bar = progress() if label else None

    async def one(client: httpx.AsyncClient, index: int) -> Completion:
        body = {
            "model": endpoint.model,
            "prompt": list(prompts[index]),
            **sampling.model_dump(mode="json", exclude={"seed"}),
            "seed": seeds[index] if seeds is not None else sampling.seed,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "stream": stream,
        }

        async def attempt() -> Completion:
            ask = _stream_completion if stream else _whole_completion
            return await ask(client, f"{endpoint.base_url.rstrip('/')}/completions", body, index, think_end_id)

        return await _with_retries(attempt, retries, Completion(index, len(prompts[index])), endpoint)

    def keep(index: int, result: Completion) -> None:
        results[index] = result
        if on_result:
            on_result(result)
        if bar:
            bar.update(task, completed=len(results))

    with bar or nullcontext():
        task = bar.add_task(label, total=len(prompts)) if bar else None
        clients = _Clients(httpx.Timeout(timeout_s, connect=10.0))
        await _side_by_side(range(len(prompts)), lambda index: endpoint, one, clients, concurrency, keep)
    return [results[index] for index in range(len(prompts))]


async def chat(
    endpoint: Endpoint,
    conversations: Sequence[Sequence[dict[str, Any]]],
    sampling: SamplingSettings,
    *,
    chat_template_kwargs: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    concurrency: int = 32,
    retries: int = 4,
    timeout_s: float = 600.0,
) -> list[ChatCompletion]:
    """Ask a chat model for the next message of each conversation; results in their order. Otherwise as chat_stream."""
    results: dict[int, ChatCompletion] = {}
    requests = (
        ChatRequest(endpoint, messages, sampling, chat_template_kwargs, extra, about=index)
        for index, messages in enumerate(conversations)
    )
    await chat_stream(
        requests,
        lambda request, result: results.__setitem__(request.about, result),
        concurrency=concurrency,
        retries=retries,
        timeout_s=timeout_s,
    )
    return [results[index] for index in range(len(conversations))]


async def chat_stream(
    requests: Iterable[ChatRequest],
    on_result: Callable[[ChatRequest, ChatCompletion], None],
    *,
    concurrency: int = 32,
    retries: int = 10,
    timeout_s: float = 3600.0,
) -> None:
    """Send each request, and hand its result to `on_result` as it comes. Nothing is kept.

    At most `concurrency` are in flight; the next one is drawn when one ends. Dropped connections, malformed or half
    replies, HTTP 429 and 5xx, and answers that take longer than `timeout_s`, are tried again up to `retries` times,
    with growing, jittered pauses or when the server says; other refusals are not. A request that came to nothing is a
    result with a reason, and does not stop the rest. Raises ServerGone when a server answers nothing any more.
    """
    servers: dict[Endpoint, Patience] = {}

    async def attempt(client: httpx.AsyncClient, request: ChatRequest, limit_s: float) -> ChatCompletion:
        try:
            async with asyncio.timeout(limit_s):
                return await _whole_chat(client, request)
        except TimeoutError:
            raise RequestFailed(f"no whole answer within {limit_s:g} s", again=True) from None

    async def one(client: httpx.AsyncClient, request: ChatRequest) -> ChatCompletion:
        endpoint = request.endpoint
        if endpoint not in servers:
            servers[endpoint] = Patience(f"endpoint {endpoint.base_url}", endpoint.hide_key)

        async def probe() -> RequestFailed | None:
            try:
                await attempt(client, request.easy(), min(timeout_s, PROBE_LIMIT_S))
            except RequestFailed as failure:
                return failure
            return None

        return await _with_retries(
            lambda: attempt(client, request, timeout_s),
            retries,
            ChatCompletion(),
            endpoint,
            servers[endpoint],
            probe,
        )

    clients = _Clients(httpx.Timeout(None, connect=10.0))
    await _side_by_side(requests, lambda request: request.endpoint, one, clients, concurrency, on_result)


class _Clients:
    """HTTP clients of one connection each. One client of many connections looks through all of them for every request:
    16 ms of it at 256, where 256 clients take 0.7 ms."""

    def __init__(self, timeout: httpx.Timeout):
        self._timeout, self._tls = timeout, _tls()

    def open(self, endpoint: Endpoint) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers=endpoint.headers,
            timeout=self._timeout,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            trust_env=endpoint.trust_env,
            verify=self._tls,
        )


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # reads all certificates: 20 ms


async def _side_by_side(
    items: Iterable[Item],
    endpoint_of: Callable[[Item], Endpoint],
    one: Callable[[httpx.AsyncClient, Item], Awaitable[Result]],
    clients: _Clients,
    concurrency: int,
    on_result: Callable[[Item, Result], None],
) -> None:
    waiting = iter(items)

    async def worker() -> None:
        async with AsyncExitStack() as stack:
            opened: dict[Endpoint, httpx.AsyncClient] = {}
            for item in waiting:
                endpoint = endpoint_of(item)
                if endpoint not in opened:
                    opened[endpoint] = await stack.enter_async_context(clients.open(endpoint))
                on_result(item, await one(opened[endpoint], item))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except BaseExceptionGroup as failures:
        # A journal that cannot be written, for instance: the caller knows that error, not a group of it.
        raise failures.exceptions[0] from None


async def _with_retries(
    attempt: Callable[[], Awaitable[Result]],
    retries: int,
    failed: Result,
    endpoint: Endpoint,
    patience: Patience | None = None,
    probe: Callable[[], Awaitable[RequestFailed | None]] | None = None,
) -> Result:
    pause_s, tries_left = BACKOFF_S, float(retries)
    for tries in count(1):
        try:
            result = await attempt()
            if patience is not None:
                patience.answered()
            return replace(result, tries=tries) if tries > 1 else result
        except RequestFailed as failure:
            nobody_answered = patience is not None and await patience.failed(failure, probe)
            again = failure.again
            if again and not nobody_answered:
                tries_left -= BUSY_COST if failure.busy and patience is not None else 1
                again = tries_left >= 0 and (patience is None or not failure.paid or patience.may_pay_again())
            if not again:
                how = "refused" if failure.refused else "error"
                return replace(failed, finish_reason=how, error=_line(str(failure), endpoint), tries=tries)
            # Half of the pause is drawn at random: clients that failed together must not come back together.
            wait_s = min(pause_s, BACKOFF_LIMIT_S) * random.uniform(0.5, 1.0)
            if failure.wait_s is not None:
                wait_s += min(failure.wait_s, RETRY_AFTER_LIMIT_S)
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, BACKOFF_LIMIT_S)
    raise AssertionError("unreachable")


async def _whole_completion(
    client: httpx.AsyncClient, url: str, body: dict[str, Any], index: int, think_end_id: int | None
) -> Completion:
    start = time.perf_counter()
    choice = only_choice(await post(client, url, body, _most_bytes(body, len(body["prompt"]))))
    e2e_s = time.perf_counter() - start
    return Completion(
        index=index,
        prompt_tokens=len(body["prompt"]),
        token_ids=token_ids_of(choice),
        text=text_of(choice.get("text")),
        finish_reason=finish_reason_of(choice),
        e2e_s=e2e_s,
        sent_s=start,
    )


async def _stream_completion(
    client: httpx.AsyncClient, url: str, body: dict[str, Any], index: int, think_end_id: int | None
) -> Completion:
    token_ids: list[int] = []
    pieces: list[str] = []
    finish_reason: FinishReason | None = None
    ttft_s = tfat_s = None
    thought = False  # the end of thinking has been seen
    start = time.perf_counter()
    async for event in events(client, url, body, _most_bytes(body, len(body["prompt"]))):
        now_s = time.perf_counter() - start
        choice = only_choice(event)
        for token in token_ids_of(choice):
            if ttft_s is None:
                ttft_s = now_s
            if thought and tfat_s is None:
                tfat_s = now_s
            thought = thought or token == think_end_id
            token_ids.append(token)
        pieces.append(text_of(choice.get("text")))
        if choice.get("finish_reason") is not None:
            finish_reason = finish_reason_of(choice)
    e2e_s = time.perf_counter() - start
    if finish_reason is None:
        raise RequestFailed(f"the stream ended after {len(token_ids)} tokens without a finish reason", again=True)
    return Completion(
        index, len(body["prompt"]), token_ids, "".join(pieces), finish_reason, ttft_s, tfat_s, e2e_s, start
    )


async def _whole_chat(client: httpx.AsyncClient, request: ChatRequest) -> ChatCompletion:
    body = request.body()
    characters = sum(len(str(message.get("content"))) for message in request.messages)
    start = time.perf_counter()
    reply = await post(
        client, f"{request.endpoint.base_url.rstrip('/')}/chat/completions", body, _most_bytes(body, characters)
    )
    e2e_s = time.perf_counter() - start
    choice = only_choice(reply)
    message, usage = choice.get("message"), reply.get("usage")
    if not isinstance(message, dict):
        raise malformed("a message", message)
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    said = message.get("refusal")
    refused = choice.get("finish_reason") == "content_filter" or bool(said)
    return ChatCompletion(
        content=text_of(message.get("content")),
        reasoning=text_of(reasoning) if reasoning is not None else None,
        finish_reason="refused" if refused else finish_reason_of(choice),
        token_ids=token_ids_of(choice) if choice.get("token_ids") is not None else None,
        logprobs=logprobs_of(choice),
        usage=usage if isinstance(usage, dict) else {},
        e2e_s=e2e_s,
        error=_line(text_of(said) or "content_filter", request.endpoint) if refused else None,
    )


def _most_bytes(body: dict[str, Any], prompt_length: int) -> int:
    """More than any reply to `body` takes, whose prompt has so many tokens or characters: it may come back as ids."""
    per_token = 1024 + 512 * body.get("top_logprobs", 0)
    return 2**20 + 16 * prompt_length + body.get("max_tokens", 2**16) * per_token


def _line(reason: str, endpoint: Endpoint) -> str:
    return " ".join(endpoint.hide_key(reason).split())[:REASON_CHARACTERS]
