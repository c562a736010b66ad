"""What a server sends back, read with suspicion: a reply is well formed and within bounds, or a RequestFailed."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import httpx

FinishReason = Literal["stop", "length", "refused", "error"]
_REFUSALS = ("content_filter", "content_policy_violation")  # error codes of a service that will not read a prompt


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
    content = bytearray()
    try:
        async with client.stream("POST", url, json=body) as reply:
            async for chunk in reply.aiter_bytes():
                content += chunk
                if len(content) > most_bytes:
                    raise RequestFailed(f"a reply of more than {most_bytes} bytes", again=False)
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise disconnected(error) from None
    require_ok(reply.status_code, reply.headers, bytes(content))
    return parse(bytes(content))


async def events(
    client: httpx.AsyncClient, url: str, body: dict[str, Any], most_bytes: int
) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to [DONE].

    Lines end in \\n here and nowhere else: httpx's own line iterator also splits at U+2028 and the like, which a model
    may write and JSON leaves as they are.
    """
    buffer, received = b"", 0
    try:
        async with client.stream("POST", url, json=body) as reply:
            if reply.status_code != 200:
                require_ok(reply.status_code, reply.headers, await reply.aread())
            async for chunk in reply.aiter_bytes():
                received += len(chunk)
                if received > most_bytes:
                    raise RequestFailed(f"a reply of more than {most_bytes} bytes", again=False)
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    data = line.removeprefix(b"data:").strip()
                    if not line.startswith(b"data:") or data == b"[DONE]":
                        continue
                    yield parse(data)
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise disconnected(error) from None


def require_ok(status: int, headers: httpx.Headers, content: bytes) -> None:
    """Raise RequestFailed for any status but 200, with the reason that the body gives."""
    if status == 200:
        return
    code = None
    try:
        error = json.loads(content)["error"]
        reason, code = error["message"], error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        reason = content.decode(errors="replace")
    asked = headers.get("retry-after", "")
    raise RequestFailed(
        f"HTTP {status}: {shown(reason)}",
        again=status in (408, 409, 425, 429) or status >= 500,
        wait_s=float(asked) if asked.isdecimal() and len(asked) < 9 else None,
        busy=status == 429,
        paid=status in (408, 500, 502, 504),
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
    if "error" in reply and reply["error"] is not None:  # how a stream that has begun reports a failure
        raise RequestFailed(f"the server failed: {shown(reply['error'])}", again=True)
    return reply


def only_choice(reply: dict[str, Any]) -> dict[str, Any]:
    choices = reply.get("choices")
    if not (isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict)):
        raise malformed("one choice", reply)
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


def finish_reason_of(choice: dict[str, Any]) -> FinishReason:
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        raise RequestFailed(
            f"finish reason {shown(reason, repr)}; expected stop or length", again=reason in (None, "abort", "error")
        )
    return reason
