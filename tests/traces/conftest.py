"""A loopback teacher that speaks the OpenAI protocol and counts what it is asked."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

THINK, END_THINK, END = 1, 2, 3  # token ids of the fake model; every character is a token of its own otherwise


def tokenize(text: str) -> list[int]:
    text = text.replace("<think>", chr(THINK)).replace("</think>", chr(END_THINK))
    return [ord(character) for character in text]


def default_reply(body: dict[str, Any]) -> dict[str, Any]:
    """A choice: right for `add` prompts, the reasoning between tags, decided by the request alone."""
    prompt = body["messages"][-1]["content"]
    total = str(sum(int(digit) for digit in prompt if digit.isdigit()))
    thinking = body.get("chat_template_kwargs", {}).get("enable_thinking", False)
    reasoning = f"<think>\nlet me see {hashlib.sha256(prompt.encode()).hexdigest()}\n</think>\n\n" if thinking else ""
    return {"message": {"content": reasoning + total}, "finish_reason": "stop"}


class FakeTeacher:
    """The server's state: what was asked, and how it replies."""

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], dict[str, Any] | int] = default_reply  # a choice, or an HTTP status
        self.tokens = True  # whether it is a server that tells token ids
        self.tokenizer: Any = None  # a Hugging Face one in place of a token a character; END is its end of turn too
        self.logprobs_mode = "raw_logprobs"
        self.max_logprobs = 20
        self.key: str | None = None
        self.delay_s = 0.0
        self.asked: Counter[str] = Counter()  # by request body
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.url = ""

    @property
    def requests(self) -> int:
        return sum(self.asked.values())

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if self.tokenizer else tokenize(text)

    def distribution(self, messages: list[dict[str, str]], thinking: bool, position: int) -> np.ndarray:
        """Log-probabilities of 262 ids before sampling, float64; decided by its arguments alone."""
        text = json.dumps([messages, thinking, position], sort_keys=True).encode()
        logits = 3 * np.random.default_rng(list(hashlib.sha256(text).digest())).standard_normal(262)
        return logits - np.log(np.exp(logits).sum())

    def logprobs(self, body: dict[str, Any], token_ids: list[int]) -> dict[str, Any]:
        """As vLLM writes them: the sampled token first, then the most likely, up to as many as were asked for."""
        content = []
        for position, token in enumerate(token_ids):
            thinking = body.get("chat_template_kwargs", {}).get("enable_thinking", False)
            values = self.distribution(body["messages"], thinking, position)
            if self.logprobs_mode == "raw_logits":
                values = values + 40
            if self.logprobs_mode == "processed_logprobs" and body["temperature"] > 0:
                values = values / body["temperature"]
                values -= np.log(np.exp(values).sum())
                order = np.argsort(-values)
                before = np.cumsum(np.exp(values[order])) - np.exp(values[order])
                values[order[before >= body["top_p"]]] = -np.inf
                values -= np.log(np.exp(values).sum())
            likely = [int(i) for i in np.argsort(-values) if i != token]
            listed = [token, *likely][: body["top_logprobs"]]
            top = [{"token": f"token_id:{i}", "logprob": max(float(values[i]), -9999.0)} for i in listed]
            content.append({"token": f"token_id:{token}", "logprob": top[0]["logprob"], "top_logprobs": top})
        return {"content": content}


def _handler(teacher: FakeTeacher) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def send(self, status: int, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def refused(self) -> bool:
            if teacher.key and self.headers.get("Authorization") != f"Bearer {teacher.key}":
                self.send(401, {"error": {"message": "bad key"}})
                return True
            return False

        def do_GET(self) -> None:
            if not self.refused():
                self.send(200, {"data": [{"id": "fake"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.refused():
                return
            if self.path == "/tokenize":
                known = {"tokens": teacher.tokenize(body["prompt"])}
                self.send(200 if teacher.tokens else 404, known if teacher.tokens else {})
                return
            with teacher.lock:
                teacher.asked[json.dumps(body, sort_keys=True)] += 1
                teacher.bodies.append(body)
                teacher.in_flight += 1
                teacher.most_in_flight = max(teacher.in_flight, teacher.most_in_flight)
            time.sleep(teacher.delay_s)
            choice = teacher.reply(body)
            with teacher.lock:
                teacher.in_flight -= 1
            if isinstance(choice, int):
                self.send(choice, {"error": {"message": f"status {choice}"}})
                return
            message = choice["message"]
            text = (message.get("reasoning") or message.get("reasoning_content") or "") + (message["content"] or "")
            usage = {"prompt_tokens": 10, "completion_tokens": len(tokenize(text)) + 1}
            if teacher.tokens and body.get("return_token_ids"):
                choice = {"token_ids": [*teacher.tokenize(text), END][: body["max_tokens"]]} | choice
            if body.get("top_logprobs", 0) > teacher.max_logprobs:
                self.send(400, {"error": {"message": f"greater than max allowed: {teacher.max_logprobs}"}})
                return
            if body.get("logprobs"):
                choice = {"logprobs": teacher.logprobs(body, choice["token_ids"])} | choice
            self.send(200, {"choices": [choice], "usage": usage | choice.pop("usage", {})})

    return Handler


class _Server(ThreadingHTTPServer):
    request_queue_size = 512  # with the library's 5, of many connections at once some are reset


@contextmanager
def serving() -> Iterator[FakeTeacher]:
    teacher = FakeTeacher()
    server = _Server(("127.0.0.1", 0), _handler(teacher))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    teacher.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield teacher
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def teacher() -> Iterator[FakeTeacher]:
    with serving() as fake:
        yield fake
