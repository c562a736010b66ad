"""Sends many prompts to an OpenAI-compatible server. Every request ends in one result; a failed one says why.

`complete` sends token ids and gets token ids back (vLLM's `return_token_ids`), so that what is counted and graded is
what the model read and wrote, without a tokenizer in between. `chat` sends messages to any OpenAI-compatible server.

What vLLM 0.32 does, streamed or not: `token_ids` hold every generated token, the final end-of-turn or stop token
included, with finish_reason "stop"; the text leaves that token out, and a token that yields no text of its own (a
part of a UTF-8 character) still comes with its id.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import httpx
from pydantic import Field

from distill.console import progress
from distill.serve.endpoint import Endpoint
from distill.settings import Settings

FinishReason = Literal["stop", "length", "error"]
BACKOFF_S, BACKOFF_LIMIT_S = 0.25, 30.0
REASON_CHARACTERS = 300  # of a result's `error`
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


@dataclass(frozen=True)
class ChatCompletion:
    """One reply of a chat model, as the server gave it: splitting tags in `content` is left to the caller."""

    index: int  # of the conversation
    content: str = ""
    reasoning: str | None = None  # the field `reasoning`, or `reasoning_content` as it was once called
    finish_reason: FinishReason = "error"
    token_ids: list[int] | None = None  # where the server gives them (vLLM, with return_token_ids in `extra`)
    # Its entries as they are, one a token, where `extra` asks for them. They are large: who has read them may clear them.
    logprobs: list[Any] | None = field(default=None, repr=False)
    usage: dict[str, Any] = field(default_factory=dict)
    e2e_s: float | None = None
    error: str | None = None


class RequestFailed(Exception):
    """A request came to nothing. `again`: it may succeed on another try, after `wait_s` if the server said so.

    The message is all that the server said: it is cut short once the API key is hidden in it, not before.
    """

    def __init__(self, message: str, *, again: bool, wait_s: float | None = None):
        super().__init__(message)
        self.again, self.wait_s = again, wait_s


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
            return await ask(client, body, index, think_end_id)

        return await _with_retries(attempt, retries, Completion(index, len(prompts[index])), endpoint)

    return await _run_all(endpoint, len(prompts), one, concurrency, timeout_s, on_result, label)


async def chat(
    endpoint: Endpoint,
    conversations: Sequence[Sequence[dict[str, Any]]],
    sampling: SamplingSettings,
    *,
    chat_template_kwargs: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    concurrency: int = 32,
    retries: int = 4,
    timeout_s: float = 600.0,
    on_result: Callable[[ChatCompletion], None] | None = None,
    label: str | None = None,
) -> list[ChatCompletion]:
    """Ask a chat model for the next message of each conversation; otherwise as `complete`.

    Only fields of the OpenAI protocol are sent, but for `chat_template_kwargs` (how vLLM and SGLang switch thinking)
    and `extra`, which is merged last; a None in it takes a field out.
    """

    async def one(client: httpx.AsyncClient, index: int) -> ChatCompletion:
        body: dict[str, Any] = {
            "model": endpoint.model,
            "messages": list(conversations[index]),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seeds[index] if seeds is not None else sampling.seed,
            "chat_template_kwargs": chat_template_kwargs,
            "stop_token_ids": list(sampling.stop_token_ids) or None,
            "ignore_eos": sampling.ignore_eos or None,
            **(extra or {}),
        }
        body = {name: value for name, value in body.items() if value is not None}
        return await _with_retries(lambda: _whole_chat(client, body, index), retries, ChatCompletion(index), endpoint)

    return await _run_all(endpoint, len(conversations), one, concurrency, timeout_s, on_result, label)


async def _run_all(
    endpoint: Endpoint,
    count: int,
    one: Callable[[httpx.AsyncClient, int], Awaitable[Result]],
    concurrency: int,
    timeout_s: float,
    on_result: Callable[[Result], None] | None,
    label: str | None,
) -> list[Result]:
    results: dict[int, Result] = {}
    waiting = iter(range(count))
    bar = progress() if label else None

    async def worker(client: httpx.AsyncClient) -> None:
        for index in waiting:
            results[index] = await one(client, index)
            if on_result:
                on_result(results[index])
            if bar:
                bar.update(task, completed=len(results))

    with bar or nullcontext():
        task = bar.add_task(label, total=count) if bar else None
        async with httpx.AsyncClient(
            base_url=endpoint.base_url,
            headers=endpoint.headers,
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            trust_env=endpoint.trust_env,
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(concurrency, count)):
                        group.create_task(worker(client))
            except BaseExceptionGroup as failures:
                # A journal that cannot be written, for instance: the caller knows that error, not a group of it.
                raise failures.exceptions[0] from None
    return [results[index] for index in range(count)]


async def _with_retries(
    attempt: Callable[[], Awaitable[Result]], retries: int, failed: Result, endpoint: Endpoint
) -> Result:
    pause_s = BACKOFF_S
    for tries_left in range(retries, -1, -1):
        try:
            return await attempt()
        except RequestFailed as failure:
            if not (failure.again and tries_left):
                return replace(failed, error=" ".join(endpoint.hide_key(str(failure)).split())[:REASON_CHARACTERS])
            # Half of the pause is drawn at random: clients that failed together must not come back together.
            wait_s = pause_s * random.uniform(0.5, 1.0) if failure.wait_s is None else failure.wait_s
            await asyncio.sleep(min(wait_s, BACKOFF_LIMIT_S))
            pause_s *= 2
    raise AssertionError("unreachable")


async def _whole_completion(
    client: httpx.AsyncClient, body: dict[str, Any], index: int, think_end_id: int | None
) -> Completion:
    start = time.perf_counter()
    choice = _choice(await _post(client, "/completions", body))
    e2e_s = time.perf_counter() - start
    return Completion(
        index=index,
        prompt_tokens=len(body["prompt"]),
        token_ids=_token_ids(choice),
        text=_text(choice.get("text")),
        finish_reason=_finish_reason(choice),
        e2e_s=e2e_s,
        sent_s=start,
    )


async def _stream_completion(
    client: httpx.AsyncClient, body: dict[str, Any], index: int, think_end_id: int | None
) -> Completion:
    token_ids: list[int] = []
    pieces: list[str] = []
    finish_reason: FinishReason | None = None
    ttft_s = tfat_s = None
    thought = False  # the end of thinking has been seen
    start = time.perf_counter()
    async for event in _events(client, "/completions", body):
        now_s = time.perf_counter() - start
        choice = _choice(event)
        for token in _token_ids(choice):
            if ttft_s is None:
                ttft_s = now_s
            if thought and tfat_s is None:
                tfat_s = now_s
            thought = thought or token == think_end_id
            token_ids.append(token)
        pieces.append(_text(choice.get("text")))
        if choice.get("finish_reason") is not None:
            finish_reason = _finish_reason(choice)
    e2e_s = time.perf_counter() - start
    if finish_reason is None:
        raise RequestFailed(f"the stream ended after {len(token_ids)} tokens without a finish reason", again=True)
    return Completion(
        index, len(body["prompt"]), token_ids, "".join(pieces), finish_reason, ttft_s, tfat_s, e2e_s, start
    )


async def _whole_chat(client: httpx.AsyncClient, body: dict[str, Any], index: int) -> ChatCompletion:
    start = time.perf_counter()
    reply = await _post(client, "/chat/completions", body)
    e2e_s = time.perf_counter() - start
    choice = _choice(reply)
    message, usage = choice.get("message"), reply.get("usage")
    if not isinstance(message, dict):
        raise _malformed("a message", message)
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    return ChatCompletion(
        index=index,
        content=_text(message.get("content")),
        reasoning=_text(reasoning) if reasoning is not None else None,
        finish_reason=_finish_reason(choice),
        token_ids=_token_ids(choice) if choice.get("token_ids") is not None else None,
        logprobs=_logprobs(choice),
        usage=usage if isinstance(usage, dict) else {},
        e2e_s=e2e_s,
    )


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        reply = await client.post(path, json=body)
    except httpx.HTTPError as error:
        raise _disconnected(error) from None
    _require_ok(reply.status_code, reply.headers, reply.content)
    return _parse(reply.content)


async def _events(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to [DONE].

    Lines end in \\n here and nowhere else: httpx's own line iterator also splits at U+2028 and the like, which a model
    may write and JSON leaves as they are.
    """
    buffer = b""
    try:
        async with client.stream("POST", path, json=body) as reply:
            if reply.status_code != 200:
                _require_ok(reply.status_code, reply.headers, await reply.aread())
            async for chunk in reply.aiter_bytes():
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    data = line.removeprefix(b"data:").strip()
                    if not line.startswith(b"data:") or data == b"[DONE]":
                        continue
                    yield _parse(data)
    except httpx.HTTPError as error:
        raise _disconnected(error) from None


def _require_ok(status: int, headers: httpx.Headers, content: bytes) -> None:
    if status == 200:
        return
    try:
        reason = json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        reason = content.decode(errors="replace")
    again = status in (408, 409, 425, 429) or status >= 500
    asked = headers.get("retry-after", "")
    raise RequestFailed(
        f"HTTP {status}: {_shown(reason)}", again=again, wait_s=float(asked) if asked.isdecimal() else None
    )


def _disconnected(error: httpx.HTTPError) -> RequestFailed:
    return RequestFailed(f"{type(error).__name__}: {error}".rstrip(": "), again=True)


def _malformed(expected: str, found: Any) -> RequestFailed:
    return RequestFailed(f"malformed reply: expected {expected}, found {_shown(found, repr)}", again=True)


def _shown(value: Any, how: Callable[[Any], str] = str) -> str:
    try:
        return how(value)
    except RecursionError:
        return f"a {type(value).__name__} nested too deep"


def _parse(content: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):  # the latter: brackets nested thousands deep
        raise _malformed("JSON", content.decode(errors="replace")) from None
    if not isinstance(reply, dict):
        raise _malformed("an object", reply)
    if "error" in reply and reply["error"] is not None:  # how a stream that has begun reports a failure
        raise RequestFailed(f"the server failed: {_shown(reply['error'])}", again=True)
    return reply


def _choice(reply: dict[str, Any]) -> dict[str, Any]:
    choices = reply.get("choices")
    if not (isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict)):
        raise _malformed("one choice", reply)
    return choices[0]


def _token_ids(choice: dict[str, Any]) -> list[int]:
    token_ids = choice.get("token_ids")
    if token_ids is None:
        raise RequestFailed("the server gives no token_ids; expected vLLM 0.10 or later", again=False)
    if not (isinstance(token_ids, list) and all(type(token) is int for token in token_ids)):
        raise _malformed("a list of token ids", token_ids)
    return token_ids


def _logprobs(choice: dict[str, Any]) -> list[Any] | None:
    found = choice.get("logprobs")
    entries = found.get("content") if isinstance(found, dict) else None
    return entries if isinstance(entries, list) else None


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _malformed("text", value)
    return value


def _finish_reason(choice: dict[str, Any]) -> FinishReason:
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        raise RequestFailed(
            f"finish reason {reason!r}; expected stop or length", again=reason in (None, "abort", "error")
        )
    return reason
