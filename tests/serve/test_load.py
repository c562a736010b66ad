"""Load: arrivals of the distribution they are said to have, windows that count what came in them, processes that end."""

import json
import math
import os
import random
import signal
import socket
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import stats

from distill.errors import InputError
from distill.serve import Completion, Endpoint, SamplingSettings
from distill.serve.load.arrivals_file import read_replay
from distill.serve.load.ceiling import client_ceiling
from distill.serve.load.clients import Clients, batch
from distill.serve.load.null_server import NullServer
from distill.serve.load.shapes import ClosedLoop, OpenLoop, Replay
from distill.serve.load.steady import output_rate
from distill.serve.objective import Objective, read_objective
from distill.serve.saturation import highest_rate, saturate
from distill.serve.timing import Timing, timing

NOWHERE = Endpoint("http://127.0.0.1:9/v1", "m")


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 4.0])
def test_arrivals_have_their_distribution(rng, burstiness):
    rate = float(rng.uniform(0.5, 50))
    load = OpenLoop(rate=rate, burstiness=burstiness)
    arrivals_s = load.arrivals_s(4000, int(rng.integers(2**31)))
    gaps = np.diff(arrivals_s)
    assert arrivals_s[0] == 0 and (gaps >= 0).all()
    # False alarms once in 10,000 runs.
    assert stats.kstest(gaps, stats.gamma(burstiness, scale=1 / (rate * burstiness)).cdf).pvalue > 1e-4
    assert (load.arrivals_s(50, 3) == load.arrivals_s(50, 3)).all()


def test_a_trace_is_replayed_from_its_first_arrival():
    assert Replay(times_s=(5, 7, 11), speed=2).arrivals_s(3, 0).tolist() == [0, 1, 3]


def streamed(sent_s, times_s):
    return Completion(0, 1, [7] * len(times_s), "", "stop", times_s, times_s[-1], sent_s)


def test_the_rate_counts_what_came_in_the_window(rng):
    start_s, end_s = 10.0, 10.0 + float(rng.uniform(1, 5))
    completions = [
        streamed(float(rng.uniform(8, 16)), sorted(rng.uniform(0, 4, size=rng.integers(1, 60)).tolist()))
        for _ in range(200)
    ]
    found = output_rate([*completions, Completion(1, 1, error="x")], start_s, end_s)
    inside = sum(start_s <= c.sent_s + t <= end_s for c in completions for t in c.token_times_s)
    assert found.tokens == inside and found.value == pytest.approx(inside / (end_s - start_s))
    assert found.low < found.value < found.high
    assert output_rate(completions, end_s, start_s) is None
    assert output_rate([], start_s, end_s) is None


def test_the_interval_of_a_rate_has_its_coverage():
    """Tokens of a process with known rate that is correlated over far less than a block."""
    rng, inside, runs = np.random.default_rng(), 0, 400
    for _ in range(runs):
        speeds = np.repeat(rng.gamma(20, 5, size=100), 10)  # 100 tokens/s on the mean, in stretches of 0.1 s
        counts = rng.poisson(speeds * 0.01)
        times = np.repeat(np.arange(1000) * 0.01, counts) + 0.005
        rate = output_rate([streamed(0.0, times.tolist())], 0.0, 10.0)
        inside += rate.low <= 100 <= rate.high
    # 95 % of 400 within what chance allows once in 10,000 runs.
    assert stats.binomtest(inside, runs, 0.95).pvalue > 1e-4


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_send_everything_once_and_in_order(rng, processes):
    prompts = [[i] for i in range(int(rng.integers(20, 60)))]
    arrivals = OpenLoop(rate=400)
    done = []
    with NullServer() as server, Clients(processes) as clients:
        for load in (ClosedLoop(concurrency=5), arrivals):
            tokens = int(rng.integers(1, 40))
            sent = batch(server.endpoint, SamplingSettings(max_tokens=tokens), prompts, load, seed=1, timeout_s=20)
            results = clients.send(sent, lambda: done.append(1))
            assert [r.index for r in results] == list(range(len(prompts)))
            assert all(r.error is None and len(r.token_ids) == len(r.token_times_s) == tokens for r in results)
        due = np.array([r.due_s for r in results])
        assert np.allclose(due - due.min(), arrivals.arrivals_s(len(prompts), 1), atol=0.2 if processes > 1 else 1e-6)
        assert all(r.sent_s >= r.due_s for r in results)
    assert len(done) == 2 * len(prompts)


def test_requests_that_arrive_one_by_one_share_connections(monkeypatch):
    opened, session = [], Endpoint.session
    monkeypatch.setattr(Endpoint, "session", lambda endpoint: opened.append(1) or session(endpoint))
    prompts = [[i] for i in range(10)]
    load = OpenLoop(rate=20, burstiness=1000)  # half a second
    with NullServer() as server, Clients(1) as clients:
        sent = batch(server.endpoint, SamplingSettings(max_tokens=2), prompts, load, seed=0, timeout_s=20)
        assert all(result.error is None for result in clients.send(sent))
    assert 1 <= len(opened) < 10


def test_a_killed_process_costs_its_own_requests(rng):
    prompts = [[i] for i in range(60)]
    with NullServer() as server, Clients(2) as clients:
        victim = clients._children[1].pid
        load = OpenLoop(rate=20, burstiness=1000)  # three seconds
        sent = batch(server.endpoint, SamplingSettings(max_tokens=2), prompts, load, seed=0, timeout_s=20)
        seen = []

        def kill_in_the_middle():
            seen.append(1)
            if len(seen) == 20:
                os.kill(victim, signal.SIGKILL)

        results = clients.send(sent, kill_in_the_middle)
        lost = [r for r in results if r.error is not None]
        assert {r.error for r in lost} == {"the process that sent it has ended"}
        assert lost and all(r.index % 2 == 1 for r in lost) and len(lost) <= 30
        assert clients.send(
            batch(server.endpoint, SamplingSettings(max_tokens=2), [[1]] * 4, load, seed=0, timeout_s=20)
        )
        os.kill(clients._children[0].pid, signal.SIGKILL)
        time.sleep(0.3)
        with pytest.raises(InputError, match="every process that sends requests has ended"):
            clients.send(sent)
            clients.send(sent)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_load_on_a_server_without_hope_is_given_up(processes):
    """One that is not there, and one that takes requests and says nothing: neither is asked for hours."""
    prompts, sampling = [[i] for i in range(300)], SamplingSettings(max_tokens=2)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent, Clients(processes) as clients:
        hung = Endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", "m")
        for load in (ClosedLoop(concurrency=4), OpenLoop(rate=20, burstiness=1000)):
            started = time.monotonic()
            gone = clients.send(batch(NOWHERE, sampling, prompts, load, seed=0, timeout_s=20))
            lost = clients.send(batch(hung, sampling, prompts, load, seed=0, timeout_s=1.0))
            assert time.monotonic() - started < 50
            assert [r.index for r in gone] == [r.index for r in lost] == list(range(300))
            assert sum("given up: 3" in r.error for r in gone) > 100 and all(r.error for r in gone)
            assert sum(r.error == "given up: the server was silent for 1 s" for r in lost) > 250


def test_the_ceiling_of_the_clients():
    with Clients(1) as clients:
        found = client_ceiling(clients, concurrency=3, tokens=20)
    assert found["measured"]["tokens_per_s"] == pytest.approx(20 * found["measured"]["answers_per_s"]) and (
        found["measured"]["tokens_per_s"] > 100  # no machine that runs the rest is slower
    )


S, E = 4, 5


@pytest.mark.parametrize(
    ("token_ids", "place"),
    [
        ([S, 9, 9, E, 8], 4),
        ([9, 9, E, 8], 3),  # the prompt opened the block
        ([S, E, S, 9, E, 8, 8], 5),  # a second block at once
        ([S, 9, E, E, 8], 4),
        ([7, S, 9, E, 8], 4),
        ([S, 9, 9], None),
        ([S, 9, E], None),
        ([8, 8], None),
    ],
)
def test_time_to_the_first_answer_token(token_ids, place):
    times_s = sorted(random.random() for _ in token_ids)
    found = timing(Completion(0, 1, token_ids, "", "stop", times_s, 2.0, 0.0), S, E)
    assert found.ttfat_s == (None if place is None else times_s[place])
    assert found.ttft_s == times_s[0] and found.tpot_s == pytest.approx((2.0 - times_s[0]) / (len(token_ids) - 1))


def test_objectives():
    objective = read_objective("ttft:500ms, e2e:2s")
    assert objective == Objective(ttft_s=0.5, e2e_s=2.0)
    assert objective.met_by(Timing(0.5, None, 9.0, 2.0)) and not objective.met_by(Timing(0.6, None, None, 1.0))
    thinking = Objective(ttfat_s=1.0)
    assert thinking.met_by(Timing(0.9, None, None, 5)) and not thinking.met_by(Timing(0.9, 1.1, None, 5))
    for wrong in ("ttft", "ttft:fast", "speed:3ms", "e2e:-1s", "e2e:nan"):
        with pytest.raises(InputError):
            read_objective(wrong)


class Machine:
    """A server by its laws: so many tokens a second at most, and answers that take as long as queueing makes them."""

    def __init__(self, most, knee):
        self.most, self.knee, self.loads = most, knee, []

    def __call__(self, load, requests):
        assert requests >= 8
        self.loads.append(load)
        if isinstance(load, ClosedLoop):
            rate = self.most * min(1.0, load.concurrency / self.knee)
            return self.level(load.concurrency, rate, 1.0)
        return self.level(None, min(load.rate, self.most), 1.0 if load.rate < self.most else 0.0)

    def level(self, concurrency, rate, share):
        goodput = {"share": share, "answers_per_s": rate * share}
        measured = {"output_tokens_per_s": {"value": rate}, "answers_per_s": rate, "goodput": goodput}
        return {"concurrency": concurrency, "completed": 9, "measured": measured}


def test_saturation_is_found_where_it_is(rng):
    knee = int(rng.integers(1, 60))
    machine = Machine(float(rng.uniform(1, 1000)), knee)
    found = saturate(machine, requests=8, most=256)
    assert found["reached"] and found["output_tokens_per_s"] >= 0.95 * machine.most
    assert found["concurrency"] == 2 ** math.ceil(math.log2(knee)) or found["concurrency"] >= 0.95 * knee
    assert not saturate(Machine(100, 1000), requests=8, most=64)["reached"]


def test_the_highest_rate_that_holds_is_found(rng):
    machine = Machine(float(rng.uniform(0.1, 1000)), 1)
    found = highest_rate(machine, requests=8, saturated=machine.most * float(rng.uniform(0.3, 3)))
    assert found["rate"] < machine.most <= found["failed_at"] < 1.1 * found["rate"]
    assert found["goodput"] == found["rate"] and len(machine.loads) <= 10


def test_no_rate_holds():
    machine = lambda load, requests: {"completed": 0, "measured": {"goodput": None}}  # noqa: E731
    found = highest_rate(machine, requests=8, saturated=5.0)
    assert found["rate"] is None and found["goodput"] is None and found["failed_at"] > 0


def test_arrivals_are_read_from_logs_of_several_kinds(tmp_path, rng):
    start = datetime(2026, 11, 2, 8, tzinfo=UTC)
    seconds = np.sort(rng.uniform(0, 1000, 7)).round(3)
    stamps = [(start + timedelta(seconds=float(s))).isoformat() for s in seconds]
    shuffled = rng.permutation(7)
    files = {
        "a.txt": "\n".join(str(s) for s in seconds),
        "b.log": "\n".join(stamps),
        "c.jsonl": "\n".join(json.dumps({"timestamp": stamps[i], "id": int(i)}) for i in shuffled),
        "d.csv": "id,timestamp\n" + "\n".join(f'"{i}, of many",{seconds[i]}' for i in shuffled),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        replay = read_replay(tmp_path / name, speed=2)
        assert np.allclose(replay.arrivals_s(7, 0), (seconds - seconds[0]) / 2, atol=1e-3), name


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "1\nsoon\n", r"a.txt:2: expected seconds or an ISO date-time, found 'soon'"),
        ("a.txt", "1\n", "expected two arrivals or more, found 1"),
        ("a.txt", "1\nnan", "a.txt:2: expected seconds"),
        ("a.jsonl", '{"timestamp": 1}\n{"time": 2}', "a.jsonl:2: has no field 'timestamp'"),
        ("a.jsonl", '{"timestamp": true}\n{"timestamp": 2}', "a.jsonl:1: expected seconds"),
        ("a.jsonl", "nothing", "a.jsonl:1: not valid JSON"),
        ("a.csv", "1\n2\n", "a.csv:1: has no column 'timestamp'"),
        ("none.txt", None, "none.txt: cannot be read"),
    ],
)
def test_what_is_no_log_of_arrivals_is_said(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        read_replay(tmp_path / name)
