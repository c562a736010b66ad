"""Sends many prompts to an OpenAI-compatible server. Every request ends in one result; a failed one says why.

`complete` sends token ids and gets token ids back (vLLM's `return_token_ids`), so that what is counted and graded is
what the model read and wrote, without a tokenizer in between. `chat` sends messages to any OpenAI-compatible server.
Both collect their results. `chat_stream` keeps nothing: requests are drawn as there is room, results handed on.

What vLLM 0.32 does, streamed or not: `token_ids` hold every generated token, the final end-of-turn or stop token
included, with finish_reason "stop"; the text leaves that token out, and a token that yields no text of its own (a
part of a UTF-8 character) still comes with its id. A streamed chat begins with a part that has a role and no token, and
ends with one that has the usage and no choice.

A reply is read in one way, whether it comes in parts or as one: what its parts say, put together.
"""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, TypeVar

import aiohttp
from pydantic import Field

from distill.console import note, progress
from distill.serve.endpoint import Endpoint
from distill.serve.patience import Patience
from distill.serve.replies import (
    FinishReason,
    RequestFailed,
    choice_of,
    finish_reason_of,
    logprobs_of,
    malformed,
    replies,
    text_of,
    time_limit,
    token_ids_of,
)
from distill.settings import Settings

BACKOFF_S, BACKOFF_LIMIT_S = 0.25, 30.0
RETRY_AFTER_LIMIT_S = 120.0  # what a server may ask us to wait
PROBE_LIMIT_S = 30.0  # for an easy question to be answered
SILENCE_S = 600.0  # within a reply, after which the server is taken to be dead
SLOWEST_TOKEN_S = 1.0  # of a reply that comes as a whole, and is silence until its end
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
    token_times_s: list[float] = field(default_factory=list, repr=False)  # of each token; empty when not streamed
    e2e_s: float | None = None  # to the end of the reply
    sent_s: float | None = None  # when it was sent, by time.perf_counter
    due_s: float | None = None  # when it was to be sent, where that was said
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
    arrivals_s: Sequence[float] | None = None,
    retries: int = 4,
    timeout_s: float | None = None,
    on_result: Callable[[Completion], None] | None = None,
    label: str | None = None,
) -> list[Completion]:
    """Complete each prompt (token ids) at `endpoint`; results in the order of the prompts.

    At most `concurrency` requests are in flight, the next one sent when one ends, and not before its time in
    `arrivals_s`, in seconds from now, if that is given. `on_result` gets each result as it comes, for a journal. `seeds`
    are one per prompt, in place of `sampling.seed`. Dropped connections, HTTP 429 and 5xx are tried again up to `retries`
    times with growing, jittered pauses; other refusals are not. `timeout_s` is the longest silence of the server: ten
    minutes where it is not given, and as many seconds more as a whole (not streamed) answer may have tokens. `label`
    names a progress bar and shows it.
    """
    if timeout_s is None:
        timeout_s = SILENCE_S + (0 if stream else sampling.max_tokens * SLOWEST_TOKEN_S)
    results: dict[int, Completion] = {}
    bar = progress() if label else None
    start_s = time.perf_counter()

    async def due(index: int) -> None:
        if arrivals_s is not None:
            await asyncio.sleep(start_s + arrivals_s[index] - time.perf_counter())

    async def one(session: aiohttp.ClientSession, index: int) -> Completion:
        due_s = None if arrivals_s is None else start_s + arrivals_s[index]
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
            done = await _complete(session, f"{endpoint.base_url.rstrip('/')}/completions", body, index, timeout_s)
            return done if due_s is None else replace(done, due_s=due_s)

        return await _with_retries(attempt, retries, Completion(index, len(prompts[index])), endpoint)

    def keep(index: int, result: Completion) -> None:
        results[index] = result
        if on_result:
            on_result(result)
        if bar:
            bar.update(task, completed=len(results))

    with bar or nullcontext():
        task = bar.add_task(label, total=len(prompts)) if bar else None
        workers = min(concurrency, len(prompts))
        await _side_by_side(range(len(prompts)), lambda index: endpoint, one, workers, keep, due)
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
    stream: bool = True,
) -> None:
    """Send each request, and hand its result to `on_result` as it comes. Nothing is kept.

    At most `concurrency` are in flight; the next one is drawn when one ends. Dropped connections, malformed or half
    replies, HTTP 429 and 5xx, answers that take longer than `timeout_s` and ones that have begun and fall silent are
    tried again up to `retries` times, with growing, jittered pauses or when the server says; other refusals are not. A
    request that came to nothing is a result with a reason, and does not stop the rest. Raises ServerGone when a server
    answers nothing any more.

    `stream` has replies come in parts, which changes no result. It keeps gateways from cutting a connection that is
    silent for minutes, at the price of some processor time a token, here and at the server. A server that refuses to
    is asked for whole replies.
    """
    servers: dict[Endpoint, Patience] = {}
    cannot_stream: set[Endpoint] = set()

    async def attempt(session: aiohttp.ClientSession, request: ChatRequest, limit_s: float) -> ChatCompletion:
        endpoint = request.endpoint
        streamed = stream and endpoint not in cannot_stream
        try:
            return await _chat(session, request, streamed, limit_s)
        except RequestFailed as failure:
            if not streamed or failure.again or not re.search(r"\bstream", str(failure)):
                raise
            reason = _line(str(failure), endpoint)
        result = await _chat(session, request, False, limit_s)
        if endpoint not in cannot_stream:
            cannot_stream.add(endpoint)
            note(f"endpoint {endpoint.base_url}: does not stream its answers ({reason}); asking for whole ones")
        return result

    async def one(session: aiohttp.ClientSession, request: ChatRequest) -> ChatCompletion:
        endpoint = request.endpoint
        if endpoint not in servers:
            servers[endpoint] = Patience(f"endpoint {endpoint.base_url}", endpoint.hide_key)

        async def probe() -> RequestFailed | None:
            try:
                # A connection of its own: what a spoilt reply left in an old one says nothing of the server.
                async with endpoint.session() as fresh:
                    await attempt(fresh, request.easy(), min(timeout_s, PROBE_LIMIT_S))
            except RequestFailed as failure:
                return failure
            return None

        return await _with_retries(
            lambda: attempt(session, request, timeout_s),
            retries,
            ChatCompletion(),
            endpoint,
            servers[endpoint],
            probe,
        )

    await _side_by_side(requests, lambda request: request.endpoint, one, concurrency, on_result)


class _Sessions:
    """Sessions of one connection each, the last one used first: its connection is still open. One session for all would
    hand a connection on before it has seen that the server hung up after the last reply."""

    def __init__(self) -> None:
        self._idle: dict[Endpoint, list[aiohttp.ClientSession]] = {}
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> "_Sessions":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    @asynccontextmanager
    async def borrow(self, endpoint: Endpoint) -> AsyncIterator[aiohttp.ClientSession]:
        idle = self._idle.setdefault(endpoint, [])
        session = idle.pop() if idle else await self._opened.enter_async_context(endpoint.session())
        for _ in range(2):  # rounds of the event loop, in which it sees that
            await asyncio.sleep(0)
        try:
            yield session
        finally:
            idle.append(session)


async def _side_by_side(
    items: Iterable[Item],
    endpoint_of: Callable[[Item], Endpoint],
    one: Callable[[aiohttp.ClientSession, Item], Awaitable[Result]],
    concurrency: int,
    on_result: Callable[[Item, Result], None],
    due: Callable[[Item], Awaitable[None]] | None = None,
) -> None:
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            if due is not None:
                await due(item)
            async with sessions.borrow(endpoint_of(item)) as session:
                on_result(item, await one(session, item))

    try:
        async with _Sessions() as sessions, asyncio.TaskGroup() as group:
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


async def _complete(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], index: int, silence_s: float
) -> Completion:
    token_ids: list[int] = []
    times_s: list[float] = []
    pieces: list[str] = []
    finish_reason = None
    start = time.perf_counter()
    most_bytes = _most_bytes(body, len(body["prompt"]))
    async with time_limit(silence_s) as heard, aclosing(replies(session, url, body, most_bytes, heard)) as parts:
        async for part in parts:
            choice = choice_of(part)
            if choice is None:
                continue
            now_s = time.perf_counter() - start
            came = token_ids_of(choice)
            token_ids += came
            times_s += [now_s] * len(came)
            pieces.append(text_of(choice.get("text")))
            finish_reason = choice.get("finish_reason") or finish_reason
    return Completion(
        index=index,
        prompt_tokens=len(body["prompt"]),
        token_ids=token_ids,
        text="".join(pieces),
        finish_reason=finish_reason_of(finish_reason),
        token_times_s=times_s if body["stream"] else [],
        e2e_s=time.perf_counter() - start,
        sent_s=start,
    )


async def _chat(session: aiohttp.ClientSession, request: ChatRequest, stream: bool, limit_s: float) -> ChatCompletion:
    url = f"{request.endpoint.base_url.rstrip('/')}/chat/completions"
    body = request.body() | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})
    characters = sum(len(str(message.get("content"))) for message in request.messages)
    content: list[str] = []
    reasoning: list[str] = []
    refusal: list[str] = []
    token_ids: list[int] | None = None
    logprobs: list[Any] | None = None
    usage: dict[str, Any] = {}
    part = said = finish_reason = None
    start = time.perf_counter()
    most_bytes = _most_bytes(body, characters)
    async with (
        time_limit(SILENCE_S, limit_s) as heard,
        aclosing(replies(session, url, body, most_bytes, heard)) as parts,
    ):
        async for part in parts:
            if isinstance(part.get("usage"), dict):
                usage = part["usage"]
            choice = choice_of(part)
            if choice is None:
                continue
            said = (choice["delta"] or {}) if "delta" in choice else choice.get("message")
            if not isinstance(said, dict):
                raise malformed("a message", said)
            content.append(text_of(said.get("content")))
            reasoning.append(text_of(said.get("reasoning") or said.get("reasoning_content")))
            refusal.append(text_of(said.get("refusal")))
            if choice.get("token_ids") is not None:
                token_ids = token_ids or []
                token_ids += token_ids_of(choice)
            if (entries := logprobs_of(choice)) is not None:
                logprobs = logprobs or []
                logprobs += entries
            finish_reason = choice.get("finish_reason") or finish_reason
    e2e_s = time.perf_counter() - start
    if said is None:
        raise malformed("one choice, with a message", part)
    refused = finish_reason == "content_filter" or any(refusal)
    return ChatCompletion(
        content="".join(content),
        reasoning="".join(reasoning) or None,
        finish_reason="refused" if refused else finish_reason_of(finish_reason),
        token_ids=token_ids,
        logprobs=logprobs,
        usage=usage,
        e2e_s=e2e_s,
        error=_line("".join(refusal) or "content_filter", request.endpoint) if refused else None,
    )


def _most_bytes(body: dict[str, Any], prompt_length: int) -> int:
    """More than any reply to `body` takes, whose prompt has so many tokens or characters: it may come back as ids."""
    per_token = (4096 if body.get("stream") else 1024) + 512 * body.get("top_logprobs", 0)
    return 2**20 + 16 * prompt_length + body.get("max_tokens", 2**16) * per_token


def _line(reason: str, endpoint: Endpoint) -> str:
    return " ".join(endpoint.hide_key(reason).split())[:REASON_CHARACTERS]
