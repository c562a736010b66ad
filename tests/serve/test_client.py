"""The client against servers that misbehave: every request ends in one result, and the result is right or says why."""

import asyncio
import importlib.util
import json
import random
import socket
import time
from pathlib import Path

import pytest

from distill.errors import InputError
from distill.serve import Endpoint, chat, check_endpoint, client, complete

_spec = importlib.util.spec_from_file_location("scripted_server", Path(__file__).with_name("scripted_server.py"))
scripted = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(scripted)
DONE, STREAM, ask, event = scripted.DONE, scripted.STREAM, scripted.ask, scripted.event
http, serving, whole = scripted.http, scripted.serving, scripted.whole
THINK_END = 5


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(client, "BACKOFF_S", 0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_results_keep_the_order_of_the_prompts_and_arrive_as_they_finish(stream):
    rng = random.Random()
    prompts = [[i, rng.randrange(1000)] for i in range(20)]
    seen = []

    def script(n, body):
        ids, pause = [*body["prompt"], 3], rng.random() / 20
        return [pause, STREAM + event(ids, "x", "stop") + DONE] if stream else [pause, whole(ids, "x")]

    results, fake = ask(script, prompts, stream=stream, concurrency=4, on_result=seen.append)
    assert [r.token_ids for r in results] == [[*prompt, 3] for prompt in prompts]
    assert [r.index for r in results] == list(range(20))
    assert sorted(r.index for r in seen) == list(range(20)) and [r.index for r in seen] != list(range(20))
    assert {r.finish_reason for r in results} == {"stop"} and {r.prompt_tokens for r in results} == {2}
    assert fake.most_open <= 4


def test_what_is_sent():
    _, fake = ask(lambda n, body: whole([3]), [[7], [8]], api_key="secret-key", seeds=[11, 12], concurrency=1)
    assert [body["prompt"] for body in fake.bodies] == [[7], [8]]
    assert [body["seed"] for body in fake.bodies] == [11, 12]
    body = fake.bodies[0]
    assert body["return_token_ids"] is True and body["skip_special_tokens"] is False
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.0, 1.0, 16)
    assert "authorization: bearer secret-key" in fake.headers[0].lower()


FAULTS = {
    "refused connection": b"",
    "429": http({"error": {"message": "busy"}}, "429 Too Many Requests"),
    "500": http(b"oops", "500 Internal Server Error"),
    "malformed": http(b"{not json"),
    "not an object": http(b"[1, 2]"),
    "no choices": http({"choices": []}),
    "ids that are no ids": http({"choices": [{"text": "", "finish_reason": "stop", "token_ids": ["a"]}]}),
    "half a body": whole([1, 2, 3])[:-5],
}
STREAM_FAULTS = {
    "half a stream": STREAM + event([1]) + event([2]),
    "cut in an event": STREAM + event([1]) + event([2])[:-9],
    "malformed event": STREAM + event([1]) + b"data: {]\n\n",
    "error event": STREAM + event([1]) + b'data: {"error": {"message": "engine died"}}\n\n',
}


@pytest.mark.parametrize("fault", [*FAULTS, *STREAM_FAULTS])
def test_a_passing_fault_is_tried_again_and_a_lasting_one_is_reported(fault):
    stream = fault in STREAM_FAULTS
    bad = STREAM_FAULTS[fault] if stream else FAULTS[fault]
    good = STREAM + event([9, 3], "ok", "stop") + DONE if stream else whole([9, 3], "ok")
    (result,), _ = ask(lambda n, body: bad if n < 2 else good, stream=stream)
    assert (result.token_ids, result.text, result.finish_reason, result.error) == ([9, 3], "ok", "stop", None)
    (result,), fake = ask(lambda n, body: bad, stream=stream, retries=2)
    assert len(fake.bodies) == 3
    assert result.finish_reason == "error" and result.error and result.token_ids == [] and "\n" not in result.error


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "404 Not Found"])
def test_a_refusal_is_not_tried_again(status):
    reply = http({"error": {"message": "key sk-secret\nis wrong"}}, status)
    (result,), fake = ask(lambda n, body: reply, api_key="sk-secret")
    assert len(fake.bodies) == 1
    assert result.error == f"HTTP {status[:3]}: key *** is wrong"


def test_retry_after_is_honoured():
    script = lambda n, body: whole([3]) if n else http(b"", "429 Too Many Requests", "Retry-After: 1\r\n")  # noqa: E731
    start = time.perf_counter()
    (result,), _ = ask(script)
    assert result.error is None and time.perf_counter() - start >= 1


def test_a_server_without_token_ids_is_named():
    (result,), fake = ask(lambda n, body: http({"choices": [{"text": "hi", "finish_reason": "stop"}]}))
    assert "token_ids" in result.error and len(fake.bodies) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_hung_server_does_not_hang_the_client(stream):
    (result,), _ = ask(lambda n, body: [STREAM, 5.0] if stream else [5.0], stream=stream, timeout_s=0.2, retries=1)
    assert result.finish_reason == "error" and "ReadTimeout" in result.error


@pytest.mark.parametrize("stream", [False, True])
def test_a_whole_answer_may_be_silent_for_as_long_as_its_tokens_take(stream, monkeypatch):
    """A long answer that does not come in parts is no hung server."""
    monkeypatch.setattr(client, "SILENCE_S", 0.3)
    (result,), _ = ask(lambda n, body: [STREAM, 0.9] if stream else [0.9, whole([3])], stream=stream, retries=0)
    assert (result.error is None) == (not stream)


def test_a_server_that_does_not_even_read_the_request_does_not_hang_the_client():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hung = Endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", "m")
        prompt = [100_000] * 2**20  # more than fits into the buffers of a connection
        (result,) = asyncio.run(complete(hung, [prompt], scripted.SAMPLING, retries=0, timeout_s=0.3, stream=True))
    assert result.error.startswith("ReadTimeout")


def test_tokens_that_come_slowly_are_not_silence():
    parts = [part for n in range(8) for part in (0.1, event([n]))]
    (result,), _ = ask(lambda n, body: [STREAM, *parts, event([3], "", "stop"), DONE], stream=True, timeout_s=0.5)
    assert result.tries == 1 and result.token_ids == [*range(8), 3] and result.e2e_s >= 0.8


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_hangs_up_after_every_reply_and_does_not_say_so(stream):
    """Its connections look as if they could be used again."""
    reply = STREAM.replace(b"Connection: close", b"Transfer-Encoding: chunked")
    reply += b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (event([9, 3], "ok", "stop"), DONE, b""))
    reply = reply if stream else whole([9, 3]).replace(b"Connection: close\r\n", b"")
    results, fake = ask(lambda n, body: reply, [[i] for i in range(60)], stream=stream, concurrency=6, retries=0)
    assert {r.error for r in results} == {None} and len(fake.bodies) == 60
    half = reply.removesuffix(b"0\r\n\r\n")  # all was said, but for the end of HTTP's own
    (result,), _ = ask(lambda n, body: half, stream=stream, retries=0)
    assert result.token_ids == [9, 3]


def test_a_redirect_is_not_followed():
    elsewhere = http(b"", "307 Temporary Redirect", "Location: http://127.0.0.1:9/v1/completions\r\n")
    (result,), fake = ask(lambda n, body: elsewhere)
    assert result.error.startswith("HTTP 307") and len(fake.bodies) == 1


def test_proxies_of_the_environment(monkeypatch):
    """The scripted server is the proxy: of another machine, but for those left out, and never of this one."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    async def heads(base_url, **environment):
        async with serving(lambda n, body: whole([3])) as fake:
            port = fake.endpoint.base_url.removeprefix("http://127.0.0.1:").removesuffix("/v1")
            with monkeypatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value.format(port=port))
                endpoint = Endpoint(base_url.format(port=port), "m", "sk-secret")
                await complete(endpoint, [[7]], scripted.SAMPLING, retries=0)
                with pytest.raises(InputError):  # the scripted server has no models
                    await asyncio.to_thread(check_endpoint, endpoint)
            return fake.headers

    teacher = "http://teacher.invalid/v1"
    for environment in ({"HTTP_PROXY": "http://me:word@127.0.0.1:{port}"}, {"ALL_PROXY": "127.0.0.1:{port}"}):
        asked, checked = asyncio.run(heads(teacher, **environment))
        assert asked.startswith(f"POST {teacher}/completions") and checked.startswith(f"GET {teacher}/models")
        assert ("Proxy-Authorization: Basic" in asked) == ("me:word" in str(environment))
    for here in ("127.0.0.1", "localhost"):
        asked, checked = asyncio.run(heads(f"http://{here}:{{port}}/v1", HTTP_PROXY="http://127.0.0.1:9"))
        assert asked.startswith("POST /v1") and checked.startswith("GET /v1")
    monkeypatch.setenv("ALL_PROXY", "socks5://me:word@127.0.0.1:9")
    with pytest.raises(InputError, match=r"expected an http or https proxy, the environment has socks5$"):
        check_endpoint(Endpoint(teacher, "m"))
    monkeypatch.setenv("NO_PROXY", "other.invalid,teacher.invalid")
    assert Endpoint(teacher, "m").proxy is None


def test_one_in_ten_connections_dropped_loses_nothing():
    rng = random.Random()
    prompts = [[i] for i in range(100)]
    script = lambda n, body: b"" if rng.random() < 0.1 else whole([*body["prompt"], 3])  # noqa: E731
    results, _ = ask(script, prompts, concurrency=8, retries=8)
    assert [r.token_ids for r in results] == [[i, 3] for i in range(100)]


def test_without_retries_failures_are_counted_by_the_caller():
    results, _ = ask(lambda n, body: b"" if n % 2 else whole([3]), [[i] for i in range(10)], concurrency=1, retries=0)
    assert [r.finish_reason for r in results] == ["stop", "error"] * 5


def test_an_aborted_answer_is_an_error():
    (result,), _ = ask(lambda n, body: whole([1], reason="content_filter"))
    assert result.finish_reason == "error" and "content_filter" in result.error


def test_a_failing_journal_stops_the_run_with_its_own_error():
    def full_disk(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        ask(lambda n, body: whole([3]), [[i] for i in range(50)], concurrency=4, on_result=full_disk)


def test_stream_times_and_separators_in_text():
    """Events split anywhere, several tokens an event, and characters that are line ends only to Python."""
    odd = "a\u2028b\u0085c\x1cd\u2029\r"
    parts = [event([4, 11], odd), event([12]), event([THINK_END]), event([13, 3], "z", "stop"), DONE]
    cuts = sorted(random.choices(range(1, len(parts[0])), k=3))
    pieces = [parts[0][a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    reply = [STREAM, 0.05, *pieces, 0.1, parts[1], parts[2], 0.1, parts[3], 0.05, parts[4]]
    (result,), _ = ask(lambda n, body: reply, stream=True)
    assert result.token_ids == [4, 11, 12, THINK_END, 13, 3] and result.text == odd + "z"
    first, second, third, end, fourth, fifth = result.token_times_s
    assert first >= 0.05 and first == second  # one event
    assert third >= 0.15 and fourth >= 0.25 and fourth == fifth and third <= end <= fourth
    assert result.e2e_s >= 0.3


def test_requests_are_not_sent_before_their_time():
    arrivals_s = [0.0, 0.0, 0.3, 0.35, 0.9]
    start_s = time.perf_counter()
    done, _ = ask(lambda n, body: whole([3]), [[i] for i in range(5)], concurrency=4, arrivals_s=arrivals_s)
    for completion, arrival_s in zip(done, arrivals_s, strict=True):
        assert completion.sent_s >= completion.due_s >= start_s + arrival_s


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_chat(name):
    message = {"role": "assistant", "content": "<b>17</b>", name: "7:7"}
    usage = {"prompt_tokens": 3, "completion_tokens": 9}
    reply = http({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})
    conversation = [{"role": "user", "content": "add 7523"}]
    options = {"chat_template_kwargs": {"enable_thinking": True}, "extra": {"top_k": 20, "max_tokens": None}}
    (result,), fake = ask(lambda n, body: reply, [conversation], call=chat, **options)
    assert (result.content, result.reasoning, result.finish_reason) == ("<b>17</b>", "7:7", "stop")
    assert result.usage == usage and result.token_ids is None and result.error is None
    assert fake.bodies == [
        {
            "model": "m",
            "messages": conversation,
            "temperature": 0.0,
            "top_p": 1.0,
            "chat_template_kwargs": {"enable_thinking": True},
            "top_k": 20,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_chat_failures_are_results_too():
    reply = http({"choices": [{"message": None, "finish_reason": "stop"}]})
    (result,), _ = ask(lambda n, body: reply, [[{"role": "user", "content": "x"}]], call=chat, retries=0)
    assert result.finish_reason == "error" and "message" in result.error


@pytest.mark.parametrize("call", [complete, chat])
def test_the_key_is_hidden_wherever_a_reason_is_cut(call):
    """A key that straddles the place where a reason is cut must not show its first half."""
    key, prompts = (
        "sk-0123456789abcdef0123456789abcdef",
        [[7]] if call is complete else [[{"role": "user", "content": ""}]],
    )
    forms = (
        lambda text: http({"error": {"message": text}}, "500 Oops"),
        lambda text: http(text.encode(), "400 Bad Request"),
        lambda text: http(text.encode()),
        lambda text: http({"error": text}),
        lambda text: http({"choices": text}),
        lambda text: http(
            {"choices": [{"finish_reason": text, "message": {"content": ""}, "text": "", "token_ids": []}]}
        ),
    )
    for form in forms:
        for before in [*random.sample(range(400), 6), 40, 50, 60, 70, 75, 265, 275, 285, 295]:
            reply = form("x" * before + key)
            (result,), _ = ask(lambda n, body: reply, prompts, call=call, api_key=key, retries=0)  # noqa: B023
            assert result.finish_reason == "error" and "sk-0" not in result.error and len(result.error) <= 300


@pytest.mark.parametrize("key", ['sk-"quoted"', "sk-back\\slash", "sk-it's"])
def test_a_key_is_hidden_in_quoted_text_too(key):
    for reply in (http(json.dumps({"said": f"{key}!"}).encode(), "400 Bad Request"), http({"choices": [key]})):
        (result,), _ = ask(lambda n, body: reply, api_key=key, retries=0)  # noqa: B023
        assert "***" in result.error and key[3:7] not in result.error


def test_nested_too_deep_is_a_malformed_reply():
    deep = b"[" * 10**5
    (result,), _ = ask(lambda n, body: http(deep), retries=0)
    assert "malformed reply: expected JSON" in result.error
    (result,), _ = ask(lambda n, body: STREAM + b"data: " + deep + b"\n\n", stream=True, retries=0)
    assert "malformed reply: expected JSON" in result.error
    (result,), _ = ask(lambda n, body: http(deep, "500 Oops"), retries=0)
    assert result.error.startswith("HTTP 500: [[[")
    for depth in range(900, 1000, 3):  # what can just be read may not be shown
        nested = b"[" * depth + b"]" * depth
        (result,), _ = ask(lambda n, body: http(b'{"choices":%s}' % nested), retries=0)  # noqa: B023
        assert result.finish_reason == "error" and "malformed" in result.error


def test_a_key_is_stripped_and_one_that_no_header_can_carry_is_refused():
    assert Endpoint("http://h/v1", "m", " sk-secret\r\n").headers == {"Authorization": "Bearer sk-secret"}
    assert Endpoint("http://h/v1", "m", " \n").headers == {}
    for key in ("sk-sec\nret", "sk-sec\x00ret", "sk-secrét", "sk-sec ret"):
        with pytest.raises(InputError, match="API key for http://h/v1: expected printable ASCII") as caught:
            Endpoint("http://h/v1", "m", key)
        assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (http({"data": [{"id": "m"}]}), None),
        (http(b"key sk-secret is wrong", "500 Oops"), r"HTTP 500 'key \*\*\* is wrong'"),
        (http(b"x" * 75 + b"sk-secret", "500 Oops"), r"x\*\*\*'"),
        (http({"data": [{"id": "sk-secret"}]}), r"Known: \*\*\*"),
        (http(b"[" * 10**5), "expected a list of models"),
        (http(b"", "404 Not Found"), None),
        (http({"data": [{"id": "mm"}]}), "did you mean 'mm'"),
        (http(b"no", "401 Unauthorized"), "refuses the API key"),
        (http(b"<html>"), "expected a list of models"),
        (b"", "cannot be reached"),
    ],
)
def test_check_endpoint(reply, expected):
    async def run():
        async with serving(lambda n, body: reply, "sk-secret") as fake:
            await asyncio.to_thread(check_endpoint, fake.endpoint)

    if expected is None:
        asyncio.run(run())
    else:
        with pytest.raises(InputError, match=expected) as caught:
            asyncio.run(run())
        assert "sk-s" not in str(caught.value)


def test_the_key_is_not_shown():
    assert "sk-secret" not in repr(Endpoint("http://127.0.0.1:1/v1", "m", "sk-secret"))
