"""A server that costs next to nothing: what clients reach on it is the most that they could measure anywhere.

It speaks as much of vLLM's protocol as a streamed completion needs. Every request is answered at once with as many
token ids as it asks for, one event a token, as a vLLM server does that decodes one token a step.
"""

import asyncio
import json
import multiprocessing
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Self

from distill.serve.endpoint import Endpoint

HOST = "127.0.0.1"
TOKEN_ID = 7
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n"


class NullServer:
    """In a process of its own, on a free loopback port, as long as the block lasts."""

    endpoint: Endpoint

    def __enter__(self) -> Self:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._child: Any = spawn.Process(target=_serve, args=(theirs,), daemon=True)
        self._child.start()
        theirs.close()
        self.endpoint = Endpoint(f"http://{HOST}:{self._pipe.recv()}/v1", "null")
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.join()
        self._pipe.close()


def _serve(pipe: Connection) -> None:
    async def run() -> None:
        server = await asyncio.start_server(_answer, HOST, 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(_until_closed, pipe)

    asyncio.run(run())


def _until_closed(pipe: Connection) -> None:
    with suppress(EOFError, OSError):
        pipe.recv()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):  # it measures nothing of itself
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                continue
            length = next(
                int(line.partition(b":")[2])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            )
            tokens = json.loads(await reader.readexactly(length))["max_tokens"]
            writer.write(_HEAD)
            for i in range(tokens):
                writer.write(_event(finished=i == tokens - 1))
                if i % 64 == 0:
                    await writer.drain()
            writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            await writer.drain()
    writer.close()


def _event(*, finished: bool) -> bytes:
    choice = {"index": 0, "text": " x", "token_ids": [TOKEN_ID], "finish_reason": "length" if finished else None}
    return _chunk(b"data: " + json.dumps({"object": "text_completion", "choices": [choice]}).encode() + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"
