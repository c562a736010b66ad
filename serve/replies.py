"""What a server sends back, read with suspicion: a reply is well formed and within bounds, or a RequestFailed."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

import aiohttp
from aiohttp.http_exceptions import ContentLengthError, HttpProcessingError, TransferEncodingError

from distill.serve.events import EventDecoder

FinishReason = Literal["stop", "length", "refused", "error"]
_REFUSALS = ("content_filter", "content_policy_violation")  # error codes of a service that will not read a prompt
_DONE = b"[DONE]"
_READ_OUT_S = 1.0
_SILENCE_S = 600.0  # of a server that is asked for a whole reply
_LOST = (aiohttp.ClientError, HttpProcessingError, OSError)  # what reading from a connection may raise


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


@asynccontextmanager
async def time_limit(silence_s: float, whole_s: float | None = None) -> AsyncIterator[Callable[[], None]]:
    """Ends the block with RequestFailed when it takes longer than `whole_s`, or nothing is heard for `silence_s`.

    Gives a function to be called whenever something is heard. Before the first time, silence may last for `whole_s`
    where that is given.
    """
    clock = asyncio.get_running_loop().time
    start = clock()
    end = math.inf if whole_s is None else start + whole_s
    put_off_at = 0.0

    def heard() -> None:
        # Putting the end off costs as much as reading a token. It is put off by more than it has to be, and then not
        # again for a while; so silence is found after `silence_s` or a tenth more.
        nonlocal put_off_at
        now = clock()
        if now >= put_off_at:
            put_off_at = now + silence_s / 10
            limit.reschedule(min(end, put_off_at + silence_s))

    try:
        async with asyncio.timeout_at(start + silence_s if whole_s is None else end) as limit:
            yield heard
    except TimeoutError:
        within = " within its reply" if put_off_at else ""
        silent = f"ReadTimeout: silent for {silence_s:g} s{within}"
        reason = silent if limit.when() < end else f"no whole answer within {whole_s:g} s"
        raise RequestFailed(reason, again=True) from None


async def post(session: aiohttp.ClientSession, url: str, body: dict[str, Any], most_bytes: int) -> dict[str, Any]:
    """The JSON object that answers `body`, of at most so many bytes."""
    async with time_limit(_SILENCE_S) as heard:
        (reply,) = [reply async for reply in replies(session, url, body, most_bytes, heard)]
    return reply


async def replies(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], most_bytes: int, heard: Callable[[], None]
) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects that answer `body`, of at most so many bytes together.

    It is one, or where `body` says "stream" those of an event stream up to [DONE], as they come; a server that cannot
    stream may then answer with one too. `heard` is called whenever bytes come.
    """
    content, received, decoder, given = bytearray(), 0, None, False
    try:
        async with session.post(url, json=body, allow_redirects=False) as reply:
            chunks = reply.content.iter_any()
            async for chunk in chunks:
                heard()
                received += len(chunk)
                if received > most_bytes:
                    raise RequestFailed(f"a reply of more than {most_bytes} bytes", again=False)
                if not content and body.get("stream") and reply.status == 200:
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
    except _LOST as error:
        raise disconnected(error) from None
    if decoder is None:
        require_ok(reply.status, reply.headers, bytes(content))
        yield parse(bytes(content))
    elif not given:
        raise malformed("server-sent events", content.decode(errors="replace"))


async def _read_out(chunks: AsyncIterator[bytes]) -> None:
    """Read what comes after the end, which is next to nothing: else the connection could not be used again."""
    with suppress(*_LOST):
        async with asyncio.timeout(_READ_OUT_S):
            async for _ in chunks:
                pass


def require_ok(status: int, headers: Mapping[str, str], content: bytes) -> None:
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
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        what = "ConnectTimeout"
    elif isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError):
        what = "ConnectError"
    elif isinstance(error, OSError):
        what = "ReadError"
    else:  # it hung up too early, or what it said is no HTTP
        what = "RemoteProtocolError"
    said: Any = error
    if isinstance(error, aiohttp.ClientResponseError):
        said = error.message  # without what we asked, and whom
    elif isinstance(error.__cause__, ContentLengthError | TransferEncodingError):
        said = "peer closed the connection within its reply"
    return RequestFailed(f"{what}: {said}".rstrip(": "), again=True, paid=not what.startswith("Connect"))


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
    if not (isinstance(token_ids, list) and all(type(token) is int and 0 <= token < 2**31 for token in token_ids)):
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
