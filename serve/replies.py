"""What a server sends back, read with suspicion: a reply is well formed and within bounds, or a RequestFailed."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Literal

import httpx

from distill.serve.events import EventDecoder

FinishReason = Literal["stop", "length", "refused", "error"]
_REFUSALS = ("content_filter", "content_policy_violation")  # error codes of a service that will not read a prompt
_DONE = b"[DONE]"
_READ_OUT_S = 1.0


class RequestFailed(Exception):
    """A request came to nothing.

    `again`: it may succeed on another try, after `wait_s` if the server said so. `busy`: the server is there and asks
    for patience. `paid`: the server may have done the work, and charge for it. `account`: it is about who asks or what
    model, not about what was asked. `refused`: the service will not answer this.

    The message is all that the server said: it is cut short once the API key is hidden in it, not before.
    """

    def __init__(
        self,
        message: str,
        *,
        again: bool,
        wait_s: float | None = None,
        busy: bool = False,
        paid: bool = True,
        account: bool = False,
        refused: bool = False,
    ):
        super().__init__(message)
        self.again, self.wait_s, self.busy, self.paid = again, wait_s, busy, paid
        self.account, self.refused = account, refused


async def post(client: httpx.AsyncClient, url: str, body: dict[str, Any], most_bytes: int) -> dict[str, Any]:
    """The JSON object that answers `body`, of at most so many bytes."""
    (reply,) = [reply async for reply in replies(client, url, body, most_bytes)]
    return reply


async def replies(
    client: httpx.AsyncClient,
    url: str,
    body: dict[str, Any],
    most_bytes: int,
    heard: Callable[[], None] = lambda: None,
) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects that answer `body`, of at most so many bytes together.

    It is one, or where `body` says "stream" those of an event stream up to [DONE], as they come; a server that cannot
    stream may then answer with one too. `heard` is called whenever bytes come.
    """
    content, received, decoder, given = bytearray(), 0, None, False
    try:
        async with client.stream("POST", url, json=body) as reply:
            chunks = reply.aiter_bytes()
            async for chunk in chunks:
                heard()
                received += len(chunk)
                if received > most_bytes:
                    raise RequestFailed(f"a reply of more than {most_bytes} bytes", again=False)
                if not content and body.get("stream") and reply.status_code == 200:
                    # No event begins with a brace. What a reply says of its type is not always true.
                    decoder = None if chunk.lstrip().startswith(b"{") else EventDecoder()
                if decoder is None or not content:
                    content += chunk
                for data in decoder.feed(chunk) if decoder else ():
                    if data == _DONE:
                        await _read_out(chunks)
                        return
                    yield parse(data)
                    given = True
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise disconnected(error) from None
    if decoder is None:
        require_ok(reply.status_code, reply.headers, bytes(content))
        yield parse(bytes(content))
    elif not given:
        raise malformed("server-sent events", content.decode(errors="replace"))


async def _read_out(chunks: AsyncIterator[bytes]) -> None:
    """Read what comes after the end, which is next to nothing: else the connection could not be used again."""
    with suppress(TimeoutError, httpx.HTTPError, httpx.StreamError):
        async with asyncio.timeout(_READ_OUT_S):
            async for _ in chunks:
                pass


def require_ok(status: int, headers: httpx.Headers, content: bytes) -> None:
    """Raise RequestFailed for any status but 200, with the reason that the body gives."""
    if status == 200:
        return
    try:
        error = json.loads(content)["error"]
        reason, code = error["message"], error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        reason, code = content.decode(errors="replace"), None
    asked = headers.get("retry-after", "")
    raise _failure(
        status,
        f"HTTP {status}: {shown(reason)}",
        code,
        wait_s=float(asked) if asked.isdecimal() and len(asked) < 9 else None,
        paid=status in (408, 500, 502, 504),
    )


def _failure(status: int, message: str, code: Any, *, paid: bool, wait_s: float | None = None) -> RequestFailed:
    return RequestFailed(
        message,
        again=status in (408, 409, 425, 429) or status >= 500,
        wait_s=wait_s,
        busy=status == 429,
        paid=paid,
        account=status in (401, 402, 403, 404),
        refused=status == 400 and code in _REFUSALS,
    )


def disconnected(error: Exception) -> RequestFailed:
    never_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    return RequestFailed(f"{type(error).__name__}: {error}".rstrip(": "), again=True, paid=not never_sent)


def malformed(expected: str, found: Any) -> RequestFailed:
    return RequestFailed(f"malformed reply: expected {expected}, found {shown(found, repr)}", again=True)


def shown(value: Any, how: Callable[[Any], str] = str) -> str:
    try:
        return how(value)
    except (RecursionError, ValueError):  # the latter: integers of thousands of digits
        return f"a {type(value).__name__} that cannot be shown"


def parse(content: bytes) -> dict[str, Any]:
    """The JSON object in `content`."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):  # the latter: brackets nested thousands deep
        raise malformed("JSON", content.decode(errors="replace")) from None
    if not isinstance(reply, dict):
        raise malformed("an object", reply)
    error = reply.get("error")
    if error is not None:  # how a stream that has begun reports a failure: vLLM does so of bad requests too
        reason, code = (error.get("message", error), error.get("code")) if isinstance(error, dict) else (error, None)
        status = code if type(code) is int and 400 <= code < 600 else 400 if code in _REFUSALS else 500
        raise _failure(status, f"the server failed: {shown(reason)}", code, paid=True)
    return reply


def choice_of(reply: dict[str, Any]) -> dict[str, Any] | None:
    """The only choice; None where there is none, as in the part of a stream that tells the usage."""
    return only_choice(reply) if reply.get("choices") else None


def only_choice(reply: dict[str, Any]) -> dict[str, Any]:
    choices = reply.get("choices")
    if not (isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict)):
        raise malformed("one choice", reply)
    if choices[0].get("index") not in (None, 0):  # one was asked for; parts of several are not to be mixed
        raise malformed("one choice, of index 0", reply)
    return choices[0]


def token_ids_of(choice: dict[str, Any]) -> list[int]:
    token_ids = choice.get("token_ids")
    if token_ids is None:
        raise RequestFailed("the server gives no token_ids; expected vLLM 0.10 or later", again=False)
    if not (isinstance(token_ids, list) and all(type(token) is int for token in token_ids)):
        raise malformed("a list of token ids", token_ids)
    return token_ids


def logprobs_of(choice: dict[str, Any]) -> list[Any] | None:
    found = choice.get("logprobs")
    entries = found.get("content") if isinstance(found, dict) else None
    return entries if isinstance(entries, list) else None


def text_of(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise malformed("text", value)
    return value


def finish_reason_of(reason: Any) -> FinishReason:
    """The finish reason that a reply, or the last part of it that has any, gives."""
    if reason is None:
        raise RequestFailed("the reply ended without a finish reason", again=True)
    if reason not in ("stop", "length"):
        raise RequestFailed(
            f"finish reason {shown(reason, repr)}; expected stop or length", again=reason in ("abort", "error")
        )
    return reason
