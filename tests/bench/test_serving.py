"""`distill bench serving`: both clients send the same and measure the same, and what comes of it is shown."""

import asyncio
import importlib.util
import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from distill.bench.report import render_report
from distill.bench.serving import (
    LONGEST,
    PAIRS,
    SHORTEST,
    ServingBenchSettings,
    _compared,
    bench_serving,
    made_prompts,
    measure_ceilings,
    measure_loads,
    serving_tables,
    serving_targets,
)
from distill.bench.serving_turns import Turn, VllmClient, Work, ours, requests_of_turn, take_turns
from distill.errors import InputError
from distill.serve.endpoint import Endpoint
from distill.serve.load.clients import Clients
from distill.serve.load.shapes import ClosedLoop, OpenLoop

OVERHEAD = ("tokens_per_s", "server_inter_token_s", "server_cpu_s_per_token")
MEASURED = {*OVERHEAD, "ttft_s", "tpot_s", "cpu_s_per_token"}


@pytest.fixture(scope="module")
def vllm_client(tmp_path_factory, vllm_server):
    with VllmClient(vllm_server.endpoint.api_key, tmp_path_factory.mktemp("client") / "client.log") as client:
        yield client


def test_prompts_are_the_same_however_many(rng):
    seed, ids = int(rng.integers(1000)), int(rng.integers(2, 300))
    few, many = (made_prompts(count, ids, seed) for count in (10, 200))
    assert many[:10] == few and made_prompts(10, ids, seed + 1) != few
    assert {len(prompt) for prompt in many} <= set(range(SHORTEST, LONGEST + 1))
    assert all(0 <= token < ids for prompt in many for token in prompt)


def turn_of(rate, **other):
    return Turn(
        **{"tokens_per_s": rate, "ttft_s": 1.0, "tpot_s": 1.0, "cpu_s_per_token": 1.0, "server_cpu_s_per_token": 1.0}
        | other,
        server_inter_token_s=1.0,
    )


def test_turns_are_taken_in_reversed_order_and_the_first_round_is_left_out(rng):
    calls, rounds = [], int(rng.integers(1, 6))
    contenders = {name: lambda number, name=name: calls.append((name, number)) or turn_of(number) for name in "abc"}
    turns = take_turns(contenders, lambda number: number, rounds, lambda: None)
    assert calls == [(name, r) for r in range(rounds + 1) for name in ("cba" if r % 2 == 0 else "abc")]
    assert all([turn.tokens_per_s for turn in turns[name]] == list(range(1, rounds + 1)) for name in "abc")


def test_a_turn_takes_about_as_long_as_it_should(rng):
    rate, seconds, tokens = float(rng.uniform(1, 2000)), float(rng.uniform(0.5, 5)), int(rng.integers(1, 99))
    work = lambda count: Work(None, [[1]] * count, None, tokens, 0)  # noqa: E731
    found = requests_of_turn(lambda work: turn_of(rate * work.tokens), work, 3, seconds)
    assert found == max(6, round(rate * seconds))


def test_ratios_are_ours_over_theirs(rng):
    rates, times = rng.uniform(50, 150, size=(3, 5)), rng.uniform(0.1, 1, size=(3, 5))
    names = ("distill", "vllm", "vllm_watched")
    turns = {
        name: [
            turn_of(rate, ttft_s=time, tpot_s=time**2, server_cpu_s_per_token=time**3)
            for rate, time in zip(*both, strict=True)
        ]
        for name, *both in zip(names, rates, times, strict=True)
    }
    found = _compared(turns, "distill", ("tokens_per_s", "ttft_s", "tpot_s"))
    overhead = _compared(turns, "vllm_watched", OVERHEAD)
    mean = lambda ratios: pytest.approx(np.exp(np.log(ratios).mean()))  # noqa: E731
    assert found["tokens_per_s"]["value"] == mean(rates[0] / rates[1])
    assert found["ttft_s"]["value"] == mean(times[0] / times[1])
    assert found["tpot_s"]["value"] == mean((times[0] / times[1]) ** 2)
    assert overhead["tokens_per_s"]["value"] == mean(rates[2] / rates[1])
    assert overhead["server_cpu_s_per_token"]["value"] == mean((times[2] / times[1]) ** 3)
    assert found["contenders"]["vllm"]["tokens_per_s"]["rounds"] == rates[1].tolist()


@contextmanager
def paced_server(first_s, each_s):
    """Answers every request with `max_tokens` events: the first after `first_s`, each further one `each_s` later."""
    bodies, loop, started = [], asyncio.new_event_loop(), threading.Event()

    async def answer(reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if head.startswith("get"):
                    writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                    continue
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                bodies.append(body)
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                for i in range(body["max_tokens"]):
                    await asyncio.sleep(each_s if i else first_s)
                    last = "length" if i == body["max_tokens"] - 1 else None
                    choice = {"index": 0, "text": "x", "token_ids": [7], "finish_reason": last}
                    event = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    async def serve():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        serve.port = server.sockets[0].getsockname()[1]
        started.set()

    def run():
        loop.create_task(serve())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield Endpoint(f"http://127.0.0.1:{serve.port}/v1", "m"), bodies
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def test_both_send_the_same_and_measure_what_the_server_does(vllm_client, rng):
    """Of a server whose times are known. It can be late and never early, and a client sees it later still."""
    tokens, first_s, each_s = int(rng.integers(4, 8)), float(rng.uniform(0.05, 0.1)), float(rng.uniform(0.01, 0.03))
    prompts = made_prompts(6, 300, int(rng.integers(1000)))
    for load in (ClosedLoop(concurrency=2), OpenLoop(rate=30)):
        sent = {}
        with Clients(1) as clients, paced_server(first_s, each_s) as (endpoint, bodies):
            work = Work(endpoint, prompts, load, tokens, int(rng.integers(1000)))
            for who, contender in (("ours", ours(clients)), ("vllm", vllm_client.turn), ("seen", vllm_client.watched)):
                found = contender(work)
                least_s = 0.999 * (first_s + (tokens - 1) * each_s)
                assert found.ttft_s >= 0.999 * first_s and found.ttft_s + (tokens - 1) * found.tpot_s >= least_s
                assert found.ttft_s < first_s + 2 and found.tpot_s < each_s + 1  # of a slow machine
                if isinstance(load, ClosedLoop):
                    assert found.tokens_per_s <= 6 * tokens / (3 * least_s)
                assert found.cpu_s_per_token > 0 and found.server_inter_token_s is None
                sent[who], bodies[:] = sorted(bodies, key=lambda body: body["prompt"]), []
        asked = ("prompt", "max_tokens", "temperature", "repetition_penalty", "ignore_eos", "stream", "model")
        same = [[{name: body[name] for name in asked} for body in bodies] for bodies in sent.values()]
        assert same[0] == same[1] == same[2] and [body["prompt"] for body in same[0]] == sorted(prompts)
        with_ids = {who: {body.get("return_token_ids", False) for body in bodies} for who, bodies in sent.items()}
        assert with_ids == {"ours": {True}, "vllm": {False}, "seen": {True}}


def test_on_a_real_server(vllm_server, vllm_client):
    settings = ServingBenchSettings(concurrencies=(4, 1), tokens=8, seconds=0.05, rounds=2)
    with Clients(1) as clients:
        loads = measure_loads(settings, vllm_server, clients, vllm_client, 262)
        wrong = Work(Endpoint(vllm_server.endpoint.base_url, "nobody", "wrong"), [[5]], ClosedLoop(concurrency=1), 2, 0)
        for contender in (ours(clients), vllm_client.turn):
            with pytest.raises(InputError, match="failed"):
                contender(wrong)
    assert [(load["kind"], load["concurrency"]) for load in loads] == [("closed", 1), ("closed", 4), ("open", None)]
    for load in loads:
        measured, overhead = load["measured"], load["measured"]["overhead"]
        every = [(measured["contenders"], {"distill", "vllm"}, 2)]
        if load["concurrency"] == 4:
            every.append((overhead["contenders"], {"vllm_watched", "vllm"}, 2 * PAIRS))
            assert all(len(overhead[what]["rounds"]) == 2 * PAIRS and overhead[what]["low"] > 0 for what in OVERHEAD)
        else:
            assert overhead is None
        for contenders, names, rounds in every:
            assert set(contenders) == names and all(set(by) == MEASURED for by in contenders.values())
            for by in contenders.values():
                # A busy client may get a whole answer at once, which then has no time between its tokens.
                assert all(min(v["rounds"]) > 0 for what, v in by.items() if what != "tpot_s")
                assert all(len(v["rounds"]) == rounds for v in by.values())
        assert measured["tokens_per_s"]["low"] > 0 and measured["ttft_s"]["low"] > 0
        assert (measured["rate"] is None) == (load["kind"] == "closed")


def test_the_ceilings(vllm_client, rng):
    tokens = int(rng.integers(2, 30))
    found = measure_ceilings(vllm_client, tokens, (1, 3), rounds=2, seconds=0.02)
    assert [(entry["concurrency"], entry["tokens"]) for entry in found] == [(1, tokens), (1, 1), (3, tokens), (3, 1)]
    for entry in found:
        rates = entry["measured"]["tokens_per_s"]
        assert set(rates) == {"distill-1", "distill-2", "vllm"} and all(min(r["rounds"]) > 0 for r in rates.values())


def test_a_client_that_ends_is_one_line(tmp_path, monkeypatch):
    ends = tmp_path / "python"
    ends.write_text("#!/bin/sh\necho a reason >&2\necho '{}'\n")
    ends.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(ends))
    nobody = Endpoint("http://127.0.0.1:9/v1", "m")
    with VllmClient("key", tmp_path / "client.log") as client:
        for _ in range(2):
            with pytest.raises(InputError, match=r"vLLM's benchmark client ended with exit code 0 \(a reason"):
                client.turn(Work(nobody, [[1]], ClosedLoop(concurrency=1), 2, 0))


def result_of(value, spread=1.01):
    ratio = {"value": value, "low": value / spread, "high": value * spread, "rounds": [value, value]}
    spread_of = lambda value: {"median": value, "rounds": [value] * 2}  # noqa: E731
    by = {name: spread_of(0.002) for name in MEASURED} | {"tokens_per_s": spread_of(900.0)}
    closed = {
        "requests": 8,
        "rate": None,
        "contenders": {name: by for name in ("distill", "vllm")},
        **{what: ratio for what in ("tokens_per_s", "ttft_s", "tpot_s")},
        "overhead": {"contenders": {name: by for name in ("vllm", "vllm_watched")}, **dict.fromkeys(OVERHEAD, ratio)},
    }
    opened = closed | {"rate": 12.3456, "overhead": None}
    loads = [
        {"kind": "closed", "concurrency": 16, "measured": closed},
        {"kind": "open", "concurrency": None, "measured": opened},
    ]
    ceilings = {name: spread_of(6400.0) for name in ("distill-1", "distill-2", "vllm")}
    return {
        "machine": {"processor": "p", "cores": 2, "load_before": 0.1, "python": "3", "versions": {}},
        "settings": ServingBenchSettings(rounds=2, concurrencies=(16,)).model_dump(mode="json"),
        "models": [{"model": "tiny", "parameters": 130_000, "loads": loads}],
        "null_server": [{"concurrency": 16, "tokens": 64, "measured": {"requests": 9, "tokens_per_s": ceilings}}],
    }


@pytest.mark.parametrize(
    ("value", "spread", "words"),
    [
        (1.0, 1.01, ["met"] * 6),
        (0.97, 1.01, ["met"] * 4 + ["missed", "met"]),
        (0.96, 1.02, ["missed"] * 5 + ["met"]),  # of four the values lie inside, their intervals do not
        (1.06, 1.005, ["missed"] * 4 + ["met", "missed"]),
    ],
)
def test_the_page_says_whether_targets_are_met(tmp_path, value, spread, words):
    result = result_of(value, spread)
    assert [row[-1] for row in serving_targets(result)] == words
    (tmp_path / "serving-cpu.json").write_text(json.dumps(result))
    page, _ = render_report(tmp_path)
    assert "`distill bench serving --concurrency 16 --rounds 2`" in page
    assert page.count("| met |") == words.count("met") and page.count("| missed |") == words.count("missed")
    for text in ("tiny (0.13M), concurrency 16", "tiny (0.13M), 12.3 requests/s", "6,400 (100)", "| 900 |"):
        assert text in page


def test_one_round_meets_nothing():
    result = result_of(1.0)
    for load in result["models"][0]["loads"]:
        load["measured"]["tokens_per_s"] = {"value": 1.0, "low": None, "high": None, "rounds": [1.0]}
    assert [row[-1] for row in serving_targets(result)].count("missed") == 2
    assert len(serving_tables(result)) == 3


def test_what_is_no_student_is_one_line(tmp_path):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    with pytest.raises(InputError, match=r"config\.json"):
        bench_serving(ServingBenchSettings(models=(str(tmp_path),)))


@pytest.mark.long
def test_it_runs(tiny_student):
    settings = ServingBenchSettings(models=("tiny", str(tiny_student)), tokens=16, seconds=0.1, rounds=2, threads=1)
    result = bench_serving(settings)
    assert [entry["model"] for entry in result["models"]] == ["tiny", "student"]
    assert result["models"][0]["parameters"] > 1e5 and len(result["null_server"]) == 6
    assert len(serving_targets(result)) == 14
