"""Chat replies that come in parts: what they say is what a whole reply says, however they are cut and whatever fails."""

import asyncio
import importlib.util
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from distill.serve import ChatRequest, Endpoint, SamplingSettings, chat, chat_stream, client
from distill.serve.events import EventDecoder

_spec = importlib.util.spec_from_file_location("scripted_server", Path(__file__).with_name("scripted_server.py"))
scripted = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(scripted)
ask, http, serving = scripted.ask, scripted.http, scripted.serving
ASKED = [[{"role": "user", "content": "add 7523"}]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(client, "BACKOFF_S", 0.01)


def part(delta=None, reason=None, **more):
    """One event, as vLLM writes it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason} | more
    return data({"object": "chat.completion.chunk", "choices": [choice]})


def data(value):
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


def chunked(*pieces, end=True):
    """What a script sends: each piece of bytes is a chunk of HTTP, numbers are pauses."""
    framed = [b"%x\r\n%s\r\n" % (len(p), p) if isinstance(p, bytes) else p for p in pieces if p]
    return [HEAD, *framed, *([END] if end else [])]


def cut(rng, content, most=40):
    """`content` in pieces: anywhere, within characters and line ends too."""
    places = sorted(rng.sample(range(1, len(content)), min(rng.randrange(most), len(content) - 1)))
    return [content[a:b] for a, b in zip([0, *places], [*places, None], strict=True)]


def streamed(script, conversations=ASKED, **options):
    return ask(script, conversations, call=chat, **options)


ODD = [
    "a",
    "é",
    "東京",
    "🙂",
    "\u2028",
    "\x85",
    "\r",
    "\n\n",
    "data: [DONE]\n\n",
    '"',
    "\\",
    "</think>",
    "\x00",
    " ",
    "{",
]


def random_reply(rng):
    """(the whole reply, the parts that say the same), with everything that a server may give or leave out."""
    tokens = rng.randrange(1, 30)
    texts = ["".join(rng.choices(ODD, k=rng.randrange(3))) for _ in range(tokens)]
    thinking = rng.randrange(tokens + 1) if rng.random() < 0.5 else 0
    name = rng.choice(["reasoning", "reasoning_content"])
    has_ids, has_logprobs, has_usage = (rng.random() < 0.6 for _ in range(3))
    ids = [rng.randrange(10**5) for _ in texts]
    entries = [{"token": f"token_id:{i}", "logprob": -rng.random(), "top_logprobs": []} for i in ids]
    reason, usage = rng.choice(["stop", "length"]), {"prompt_tokens": 3, "completion_tokens": tokens}
    message = {"role": "assistant", "content": "".join(texts[thinking:]) or None}
    if "".join(texts[:thinking]):
        message[name] = "".join(texts[:thinking])
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}
    whole["choices"][0] |= {"token_ids": ids} if has_ids else {}
    whole["choices"][0] |= {"logprobs": {"content": entries}} if has_logprobs else {}
    whole |= {"usage": usage} if has_usage else {}

    parts = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": rng.choice(["", None])}}]}]
    if rng.random() < 0.3:
        parts.insert(0, {"choices": [], "prompt_filter_results": []})
    at = 0
    while at < tokens:  # several tokens a part, but none that is thought and said
        after = min(at + rng.randrange(1, 4), thinking if at < thinking else tokens)
        text = "".join(texts[at:after])
        delta = {name if at < thinking else "content": text} if text or rng.random() < 0.5 else rng.choice([{}, None])
        choice = {"index": 0, "delta": delta, "finish_reason": rng.choice([None, ""])}
        choice |= {"token_ids": ids[at:after]} if has_ids else {}
        choice["logprobs"] = {"content": entries[at:after]} if has_logprobs else None
        parts.append({"choices": [choice], "usage": None})
        at = after
    if rng.random() < 0.5:
        parts[-1]["choices"][0]["finish_reason"] = reason
    else:
        parts.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    if has_usage and rng.random() < 0.5:
        parts[-1]["usage"] = usage
    elif has_usage:
        parts.append({"choices": [], "usage": usage})
    return whole, parts


def as_stream(rng, parts):
    """Bytes of an event stream, in one of the many ways there are to write it."""
    line_end = rng.choice([b"\n", b"\r\n"])
    events = []
    for value in parts:
        indent = rng.choice([None, None, 1])
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=indent)
        lines = [b"data:" + rng.choice([b"", b" "]) + line.encode() for line in text.split("\n")]
        if rng.random() < 0.3:
            lines.insert(0, rng.choice([b": keep-alive", b":", b"event: message", b"id: 7", b"data"]))
        events.append(line_end.join([*lines, b"", b""]))
        if rng.random() < 0.2:
            events.append(rng.choice([b": OPENROUTER PROCESSING", b"", b"data:", b"retry: 10"]) + 2 * line_end)
    done = b"data: [DONE]" + rng.choice([line_end * 2, line_end, b""])
    junk = line_end * 2 + rng.choice([b"", data({"error": {"message": "late"}}), b"\xff{]", data("[DONE]")])
    return b"".join(events) + rng.choice([done, done.rstrip() + junk, b""])


@pytest.mark.parametrize("seed", random.sample(range(10**6), 3))
def test_parts_say_what_a_whole_reply_says(seed):
    """However the stream is written and cut into chunks."""
    rng = random.Random(seed)
    cases = [random_reply(rng) for _ in range(60)]
    conversations = [[{"role": "user", "content": str(n)}] for n in range(len(cases))]

    def script(how):
        return lambda n, body: how(*cases[int(body["messages"][0]["content"])])

    expected, _ = streamed(script(lambda whole, parts: http(whole)), conversations, retries=0)
    found, fake = streamed(
        script(lambda whole, parts: chunked(*cut(rng, as_stream(rng, parts)))), conversations, retries=0, concurrency=8
    )
    assert len(fake.bodies) == len(cases) and all(body["stream"] for body in fake.bodies)
    assert all(body["stream_options"] == {"include_usage": True} for body in fake.bodies)
    for (whole, _), one, other in zip(cases, expected, found, strict=True):
        assert one.error is None and one.content == (whole["choices"][0]["message"]["content"] or "")
        assert one.token_ids == whole["choices"][0].get("token_ids") and one.usage == whole.get("usage", {})
        assert replace(other, e2e_s=None) == replace(one, e2e_s=None)


def test_an_event_stream_is_the_same_wherever_it_is_cut():
    stream = (
        ': x\n\ndata:{"a":\ndata: "é\u2028🙂"}\r\n\r\nevent: e\r\ndata\r\ndata: [DONE]\n\n\ndata: rest'.encode()
    )  # the last event may be cut off
    expected = ['{"a":\n "é\u2028🙂"}'.encode(), b"[DONE]"]
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            decoder = EventDecoder()
            found = [d for c in (stream[:first], stream[first:second], stream[second:]) for d in decoder.feed(c)]
            assert found == expected


SAID = part({"role": "assistant", "content": ""}) + part({"content": "7"})
GOOD = SAID + part({"content": "5"}, "stop") + data("[DONE]")
FAULTS = {
    "half a stream": (chunked(SAID), "without a finish reason"),
    "half a stream that says it is done": (chunked(SAID, data("[DONE]")), "without a finish reason"),
    "cut in an event": (chunked(SAID, part({"content": "5"}, "stop")[:-9]), "without a finish reason"),
    "hung up": (chunked(SAID, end=False), "RemoteProtocolError"),
    "malformed event": (chunked(SAID, data("{]")), "malformed reply: expected JSON"),
    "not UTF-8": (chunked(SAID, b'data: {"choices": "\xff"}\n\n'), "malformed reply: expected JSON"),
    "no object": (chunked(SAID, data("7")), "expected an object"),
    "an error": (chunked(SAID, data({"error": {"message": "engine died"}})), "the server failed: engine died"),
    "an error with a code": (chunked(SAID, data({"error": {"message": "oops", "code": 502}})), "failed: oops"),
    "an error that is text": (chunked(data({"error": "oops"}), data("[DONE]")), "the server failed: oops"),
    "too many requests": (chunked(SAID, data({"error": {"message": "busy", "code": 429}})), "failed: busy"),
    "aborted": (chunked(SAID, part({}, "abort"), data("[DONE]")), "finish reason 'abort'"),
    "two choices": (chunked(data({"choices": [{"delta": {}}] * 2})), "expected one choice"),
    "another choice": (chunked(SAID, part({"content": "8"}, index=1)), "expected one choice, of index 0"),
    "a part that is no message": (chunked(SAID, part("8")), "expected a message"),
    "text that is none": (chunked(SAID, part({"content": [8]})), "expected text"),
    "ids that are none": (chunked(SAID, part({}, token_ids=["a"])), "expected a list of token ids"),
    "no choice at all": (chunked(data({"choices": [], "usage": {}}), data("[DONE]")), "expected one choice"),
    "nothing": (chunked(data("[DONE]")), "expected one choice"),
    "a web page": (http(b"<html>sign in</html>"), "expected server-sent events, found '<html>sign in"),
    "an empty reply": (http(b""), "malformed reply"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_tried_again_and_a_lasting_one_is_reported(fault):
    bad, message = FAULTS[fault]
    (result,), _ = streamed(lambda n, body: bad if n < 2 else chunked(GOOD))
    assert (result.content, result.finish_reason, result.error, result.tries) == ("75", "stop", None, 3)
    (result,), fake = streamed(lambda n, body: bad, retries=1)
    tries = 6 if fault == "too many requests" else 2  # who is only busy is asked more often
    assert (result.content, result.finish_reason, result.tries) == ("", "error", tries)
    assert message in result.error and "\n" not in result.error and len(fake.bodies) == tries


FINAL = {
    "a bad request": (data({"error": {"message": "too long", "code": 400}}), "error", "the server failed: too long"),
    "a refused prompt": (data({"error": {"message": "no", "code": "content_filter"}}), "refused", "failed: no"),
    "an answer that is filtered": (SAID + part({}, "content_filter"), "refused", "content_filter"),
    "a refusal": (part({"refusal": "I would "}) + part({"refusal": "not"}, "stop"), "refused", "I would not"),
    "a tool": (SAID + part({}, "tool_calls"), "error", "finish reason 'tool_calls'"),
}


@pytest.mark.parametrize("what", FINAL)
def test_what_another_try_would_say_again_is_not_tried_again(what):
    stream, reason, message = FINAL[what]
    (result,), fake = streamed(lambda n, body: chunked(stream, data("[DONE]")))
    assert len(fake.bodies) == 1 and result.finish_reason == reason and message in result.error


def test_a_half_answer_counts_as_paid():
    """A server that loses every answer on the way is not asked for ever: the bill has a limit of its own."""
    asked = [[{"role": "user", "content": str(n)}] for n in range(40)]
    fake_reply = lambda n, body: chunked(GOOD) if body["max_tokens"] == 1 else chunked(SAID)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.serve.patience.PAID_AGAIN", 20)
        results, fake = streamed(fake_reply, asked, retries=10)
    assert {result.finish_reason for result in results} == {"error"}
    assert sum(body["max_tokens"] > 1 for body in fake.bodies) <= 40 + 20


def test_a_server_that_cannot_stream_is_asked_for_whole_replies(capsys):
    """It is found out once, and said; a server that only ignores it is not asked twice."""
    asked = [[{"role": "user", "content": str(n)}] for n in range(6)]
    reply = http({"choices": [{"message": {"content": "75"}, "finish_reason": "stop"}]})
    refusal = http({"error": {"message": "stream_options: extra fields not permitted"}}, "422 Unprocessable Entity")
    results, fake = streamed(lambda n, body: refusal if "stream" in body else reply, asked, concurrency=1)
    assert [result.content for result in results] == ["75"] * 6 and {result.tries for result in results} == {1}
    assert ["stream" in body for body in fake.bodies] == [True] + [False] * 6
    assert capsys.readouterr().err.count("does not stream its answers") == 1
    results, fake = streamed(lambda n, body: reply, asked)
    assert [result.content for result in results] == ["75"] * 6 and len(fake.bodies) == 6
    for other in ("upstream says no", "no"):
        refusal = http({"error": {"message": other}}, "400 Bad Request")
        (result,), fake = streamed(lambda n, body: refusal)  # noqa: B023
        assert result.error == f"HTTP 400: {other}" and len(fake.bodies) == 1


async def impatient_gateway(upstream, ticks):
    """A gateway that closes a connection over which the server has said nothing for `ticks` of 50 ms, as it counts
    them: a machine that stands still for a while is not silence."""

    async def pump(reader, writer, patience):
        silent = 0
        while silent < patience:
            try:
                piece = await asyncio.wait_for(reader.read(2**16), 0.05)
            except TimeoutError:
                silent += 1
                continue
            if not piece:
                return
            silent = 0
            writer.write(piece)
            await writer.drain()

    async def handle(reader, writer):
        back, forth = await asyncio.open_connection("127.0.0.1", upstream)
        try:
            forward = asyncio.create_task(pump(reader, forth, 10**6))
            await pump(back, writer, ticks)
            forward.cancel()
        except ConnectionError:
            pass
        finally:
            writer.close()
            forth.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


def test_a_gateway_that_cuts_silent_connections_loses_no_streamed_answer():
    """One that takes longer than any silence the gateway stands; asked for whole it never arrives."""
    words = [f"{n} " for n in range(10)]

    def script(n, body):
        if not body.get("stream"):
            return [2.5, http({"choices": [{"message": {"content": "".join(words)}, "finish_reason": "stop"}]})]
        said = [piece for word in words for piece in (0.25, part({"content": word}))]
        return chunked(*said, part({}, "stop"), data("[DONE]"))

    async def run():
        async with serving(script) as fake:
            port = httpx.URL(fake.endpoint.base_url).port
            async with await impatient_gateway(port, 20) as gateway:
                through = Endpoint(f"http://127.0.0.1:{gateway.sockets[0].getsockname()[1]}/v1", "m")
                request, found = ChatRequest(through, ASKED[0], SamplingSettings(max_tokens=16)), {}
                await asyncio.gather(
                    *(
                        chat_stream(
                            [request], lambda _, r, s=s: found.__setitem__(s, r), concurrency=1, retries=1, stream=s
                        )
                        for s in (True, False)
                    )
                )
        return found

    found = asyncio.run(run())
    assert (found[True].content, found[True].tries) == ("".join(words), 1) and found[True].e2e_s >= 2.5
    assert (found[False].finish_reason, found[False].tries) == ("error", 2)


def test_silence_within_a_reply_ends_it_and_silence_before_it_or_a_sign_of_life_does_not(monkeypatch):
    monkeypatch.setattr(client, "SILENCE_S", 0.5)
    begun = chunked(SAID, 30.0, part({}, "stop"))
    (result,), fake = streamed(lambda n, body: begun, retries=1, timeout_s=20)
    assert "silent for 0.5 s within its reply" in result.error and len(fake.bodies) == 2
    (result,), _ = streamed(lambda n, body: [0.7, *chunked(GOOD)])
    assert result.content == "75"
    alive = chunked(SAID, *[0.05, b": still here\n\n"] * 15, part({"content": "5"}, "stop"))
    (result,), _ = streamed(lambda n, body: alive)
    assert result.content == "75" and result.e2e_s >= 0.7
    forever = chunked(SAID, *[0.05, b": still here\n\n"] * 400)
    (result,), _ = streamed(lambda n, body: forever, retries=0, timeout_s=0.7)
    assert "no whole answer within 0.7 s" in result.error


def test_a_stream_without_end_is_cut_off():
    endless = chunked(SAID, *[b": " + b"x" * 2**16] * 20)  # a line without an end, too
    (result,), fake = streamed(lambda n, body: endless)
    assert "a reply of more than" in result.error and len(fake.bodies) == 1


def test_a_server_that_does_not_hang_up_after_the_end_is_not_waited_for():
    start = time.monotonic()
    (result,), _ = streamed(lambda n, body: chunked(GOOD, 15.0, b"x"))
    assert (result.content, result.tries) == ("75", 1) and time.monotonic() - start < 10


async def both_ways(endpoint, sampling, extra, count):
    """[(whole, streamed)] replies of a real server, one request at a time."""
    found = {False: [], True: []}
    for n in range(count):
        asked = [{"role": "user", "content": f"max A{n} B9 C5 D{random.randrange(10)}"}]
        request = ChatRequest(endpoint, asked, sampling, None, extra)
        for stream in (False, True):
            await chat_stream([request], lambda _, r, s=stream: found[s].append(r), concurrency=1, stream=stream)
    return list(zip(found[False], found[True], strict=True))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_real_server_says_the_same_both_ways(vllm_server, temperature):
    """With random weights and a token a byte, so that characters come in pieces and many are no UTF-8 at all."""
    sampling = SamplingSettings(max_tokens=60, temperature=temperature, seed=random.randrange(2**31))
    extra = {"return_token_ids": True, "return_tokens_as_token_ids": True, "logprobs": True, "top_logprobs": 3}
    pairs = asyncio.run(both_ways(vllm_server.endpoint, sampling, extra, 6))
    for whole, parts in pairs:
        assert whole.error is parts.error is None and whole.tries == parts.tries == 1
        assert (parts.content, parts.reasoning) == (whole.content, whole.reasoning)
        assert (parts.token_ids, parts.finish_reason) == (whole.token_ids, whole.finish_reason)
        counts = [{k: reply.usage[k] for k in ("prompt_tokens", "completion_tokens")} for reply in (whole, parts)]
        assert counts[0] == counts[1] and counts[1]["completion_tokens"] == len(parts.token_ids)
        assert len(parts.logprobs) == len(whole.logprobs) == len(parts.token_ids)
        for one, other in zip(whole.logprobs, parts.logprobs, strict=True):
            assert one["token"] == other["token"] and abs(one["logprob"] - other["logprob"]) < 1e-3
    plain = asyncio.run(both_ways(vllm_server.endpoint, sampling, None, 2))
    assert all(whole.token_ids is parts.token_ids is None for whole, parts in plain)
    assert all(whole.content == parts.content for whole, parts in plain)


def test_a_real_server_that_begins_a_stream_with_an_error_is_not_asked_again(vllm_server):
    """vLLM finds some requests wrong only when it has said 200."""
    extra = {"logprobs": True, "top_logprobs": 50}
    ((whole, parts),) = asyncio.run(both_ways(vllm_server.endpoint, SamplingSettings(max_tokens=4), extra, 1))
    for reply in (whole, parts):
        assert reply.finish_reason == "error" and "greater than max allowed" in reply.error and reply.tries == 1
