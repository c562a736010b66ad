"""A proxy before a real server that spoils what it passes on. Faults are functions of (handler, upstream reply)."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

ENDLESS_BYTES = 64 * 2**20


class Upstream:
    """The reply to one request, fetched when a fault (or none) wants it."""

    def __init__(self, proxy: "FaultyProxy", path: str, content: bytes, headers: dict[str, str]):
        self._get = lambda: proxy.client.post(path, content=content, headers=headers)
        self._proxy, self._content = proxy, content

    def fetch(self) -> bytes:
        # Counted here and not until all is sent: who sees an error in a reply does not wait for the rest of it.
        with self._proxy.lock:
            self._proxy.in_flight += 1
            self._proxy.most_in_flight = max(self._proxy.most_in_flight, self._proxy.in_flight)
        try:
            reply = self._get()
        finally:
            with self._proxy.lock:
                self._proxy.in_flight -= 1
        body = json.loads(self._content)
        with self._proxy.lock:
            self._proxy.replies.append((body, reply.status_code, reply.content))
        self.status = reply.status_code
        return reply.content


def send(handler: BaseHTTPRequestHandler, status: int, content: bytes, length: int | None = None, **headers) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def events(content: bytes) -> list[bytes]:
    """The events of an event stream; a whole reply becomes one, with a character in every part."""
    if not content.startswith(b"{"):
        return [event + b"\n\n" for event in content.split(b"\n\n") if event]
    reply = json.loads(content)
    choice, usage = reply["choices"][0], reply.get("usage")
    message, ids = choice["message"], choice.get("token_ids", [])
    deltas = [{name: c} for name in ("reasoning", "content") for c in message.get(name) or ""]
    parts = [{"delta": delta, "token_ids": ids[n : n + 1]} for n, delta in enumerate(deltas)]
    parts.append({"delta": {}, "token_ids": ids[len(deltas) :], "finish_reason": choice["finish_reason"]})
    if "token_ids" not in choice:
        parts = [{name: value for name, value in part.items() if name != "token_ids"} for part in parts]
    values = [*({"choices": [part]} for part in parts), {"choices": [], "usage": usage}]
    return [f"data: {json.dumps(value)}\n\n".encode() for value in values] + [b"data: [DONE]\n\n"]


def token_ids(content: bytes) -> list[int]:
    """All ids in what a real server replied, whole or streamed."""
    values = [json.loads(line[6:]) for line in content.split(b"\n") if line.startswith(b"data: {")]
    choices = [choice for value in values or [json.loads(content)] for choice in value["choices"]]
    return [token for choice in choices for token in choice.get("token_ids", [])]


def send_stream(handler: BaseHTTPRequestHandler, pieces: Iterable[bytes], pause_s: float = 0.0) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for piece in pieces:
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        time.sleep(pause_s)
    handler.wfile.write(b"0\r\n\r\n")


def streamed(handler, upstream):
    send_stream(handler, events(upstream.fetch()))


def slowly_streamed(handler, upstream):
    """In pieces that end anywhere."""
    content = b"".join(events(upstream.fetch()))
    step = len(content) // 20 + 1
    send_stream(handler, (content[at : at + step] for at in range(0, len(content), step)), 0.01)


def begun(content: bytes) -> list[bytes]:
    """Half of the events of an answer, none of which ends it: a short answer may come in one with its end."""
    parts = events(content)
    end = next(i for i, part in enumerate(parts) if re.search(rb'"finish_reason": ?"', part))
    return parts[: min(len(parts) // 2, end)]


def half_a_stream(handler, upstream):
    send_stream(handler, begun(upstream.fetch()))


def an_error_in_the_stream(handler, upstream):
    send_stream(handler, [*begun(upstream.fetch()), b'data: {"error": {"message": "worker lost", "code": 500}}\n\n'])


def silent_in_the_stream(handler, upstream):
    """What has come so far is passed on, and then nothing."""
    parts = begun(upstream.fetch())

    def pieces():
        yield from parts
        time.sleep(10)

    send_stream(handler, pieces())


def passed_on(handler, upstream):
    content = upstream.fetch()
    send(handler, upstream.status, content)


def dropped(handler, upstream):
    handler.close_connection = True


def dropped_when_done(handler, upstream):
    upstream.fetch()
    handler.close_connection = True


def half(handler, upstream):
    content = upstream.fetch()
    send(handler, 200, content[: len(content) // 2], len(content))
    handler.close_connection = True


def too_short_a_length(handler, upstream):
    content = upstream.fetch()
    send(handler, 200, content, len(content) - 7)  # the rest stays in the connection, before the next reply


def too_long_a_length(handler, upstream):
    content = upstream.fetch()
    send(handler, 200, content, len(content) + 7)
    handler.close_connection = True


def malformed(handler, upstream):
    send(handler, 200, re.sub(rb'"choices"', b'"choices"]', upstream.fetch(), count=1))


def not_utf8(handler, upstream):
    send(handler, 200, re.sub(rb'("content": ?")', lambda m: m[0] + b"\xff\xc3", upstream.fetch(), count=1))


def no_choices(handler, upstream):
    upstream.fetch()
    send(handler, 200, b'{"choices": []}')


def busy(handler, upstream):
    send(handler, 429, b'{"error": {"message": "too many"}}')


def busy_for_a_second(handler, upstream):
    send(handler, 429, b'{"error": {"message": "too many"}}', Retry_After="1")


def overloaded(handler, upstream):
    send(handler, 503, b"<html>no</html>")


def broken(handler, upstream):
    send(handler, 500, b'{"error": {"message": "oops"}}')


def dripping(handler, upstream):
    """A byte now and then, never an end."""
    send(handler, 200, b'{"choices": "', 10**6)
    for _ in range(200):
        handler.wfile.write(b"x")
        time.sleep(0.05)
    handler.close_connection = True


def endless(handler, upstream):
    send(handler, 200, b'{"choices": "', ENDLESS_BYTES)
    for _ in range(ENDLESS_BYTES // 2**16):
        handler.wfile.write(b"x" * 2**16)
    handler.close_connection = True


def refused(handler, upstream):
    reply = json.loads(upstream.fetch())
    reply["choices"][0]["message"] |= {"content": None, "refusal": "I would rather not"}
    send(handler, 200, json.dumps(reply).encode())


def filtered(handler, upstream):
    reply = json.loads(upstream.fetch())
    reply["choices"][0]["finish_reason"] = "content_filter"
    send(handler, 200, json.dumps(reply).encode())


def not_read(handler, upstream):
    send(handler, 400, b'{"error": {"message": "filtered", "code": "content_filter"}}')


def bad_request(handler, upstream):
    send(handler, 400, b'{"error": {"message": "too long", "code": 400}}')


HARMLESS_IN_A_STREAM = (too_short_a_length, too_long_a_length)  # which says itself where it ends
PASSING = (
    *(*HARMLESS_IN_A_STREAM, dropped, dropped_when_done, half, malformed, not_utf8, no_choices),
    *(half_a_stream, an_error_in_the_stream, busy, overloaded, broken),
)

Fault = Callable[[BaseHTTPRequestHandler, Upstream], None]


class FaultyProxy:
    """What was asked and answered; `fault(n, body)` is what becomes of the n-th chat request."""

    def __init__(self, root_url: str):
        self.client = httpx.Client(base_url=root_url, timeout=60, trust_env=False)
        self.fault: Callable[[int, dict[str, Any]], Fault] = lambda n, body: passed_on
        self.requests: list[dict[str, Any]] = []
        self.replies: list[tuple[dict[str, Any], int, bytes]] = []  # (body, status, content) of the real server
        self.in_flight = self.most_in_flight = 0  # at the real server
        self.lock = threading.Lock()
        self.url = ""


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            reply = proxy.client.get(self.path, headers=self._key())
            send(self, reply.status_code, reply.content)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            headers = self._key() | {"Content-Type": "application/json"}
            upstream = Upstream(proxy, self.path, content, headers)
            if not self.path.endswith("/chat/completions"):
                reply = proxy.client.post(self.path, content=content, headers=headers)
                send(self, reply.status_code, reply.content)
                return
            body = json.loads(content)
            with proxy.lock:
                fault = proxy.fault(len(proxy.requests), body)
                proxy.requests.append(body)
            try:
                fault(self, upstream)
            except (ConnectionError, TimeoutError):
                self.close_connection = True

        def _key(self) -> dict[str, str]:
            return {"Authorization": self.headers.get("Authorization", "")}

    return Handler


class _Server(ThreadingHTTPServer):
    request_queue_size = 512  # with the library's 5 there are faults that nobody asked for


@contextmanager
def faulty_proxy(root_url: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(root_url)
    server = _Server(("127.0.0.1", 0), _handler(proxy))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    proxy.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        proxy.client.close()
