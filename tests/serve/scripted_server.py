"""A server that says what a test tells it to, byte for byte."""

import asyncio
import json
from contextlib import asynccontextmanager

from distill.serve import Endpoint, SamplingSettings, complete

SAMPLING = SamplingSettings(max_tokens=16)


def http(body, status="200 OK", extra=""):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{extra}\r\n".encode() + body


def whole(token_ids, text="", reason="stop"):
    return http({"choices": [{"index": 0, "text": text, "finish_reason": reason, "token_ids": token_ids}]})


def event(token_ids, text="", reason=None):
    choice = {"index": 0, "text": text, "finish_reason": reason, "token_ids": token_ids}
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n".encode()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"


class FakeServer:
    """Answers the n-th request with what `script(n, request body)` gives: bytes and pauses in seconds, then hangs up."""

    def __init__(self, script):
        self.script, self.bodies, self.headers, self.open, self.most_open = script, [], [], 0, 0

    async def handle(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                (int(x.split(":")[1]) for x in head.lower().split("\r\n") if x.startswith("content-length")), 0
            )
            body = json.loads(await reader.readexactly(length)) if length else None
            self.bodies.append(body)
            self.headers.append(head)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            reply = self.script(len(self.bodies) - 1, body)
            for part in [reply] if isinstance(reply, bytes) else reply:
                if isinstance(part, float):
                    await asyncio.sleep(part)
                else:
                    writer.write(part)
                    await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def serving(script, api_key=None):
    fake = FakeServer(script)
    server = await asyncio.start_server(fake.handle, "127.0.0.1", 0)
    async with server:
        fake.endpoint = Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", "m", api_key)
        yield fake


def ask(script, prompts=((7, 8),), *, api_key=None, call=complete, **options):
    """(results, the fake server) of one call; waits are cut short so that a hang fails."""

    async def run():
        async with serving(script, api_key) as fake:
            return await asyncio.wait_for(call(fake.endpoint, prompts, SAMPLING, **options), 20), fake

    return asyncio.run(run())
