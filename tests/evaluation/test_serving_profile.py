"""A student under load: answers graded and priced as they were timed; searches; servers that fail in all the ways."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from distill import cli
from distill.artifact import read_json
from distill.errors import InputError
from distill.evaluation.answer_file import read_answers
from distill.evaluation.endpoint import ModelSettings
from distill.evaluation.evaluate import evaluate
from distill.evaluation.server import Serving
from distill.evaluation.serving import compare as compare_module
from distill.evaluation.serving import profile as profile_module
from distill.evaluation.serving.compare import CompareSettings, compare_students
from distill.evaluation.serving.flags import entrants
from distill.evaluation.serving.pricing import PriceSettings, paid_modes, price_of
from distill.evaluation.serving.profile import StudentProfileSettings, profile_student
from distill.evaluation.serving.table import show_profile
from distill.evaluation.settings import EvaluateSettings
from distill.evaluation.subject import load_subject
from distill.flops import hardware
from distill.process import distill_command
from distill.serve import server as server_module
from distill.serve.load.shapes import Replay
from distill.serve.objective import Objective
from distill.settings import validate
from distill.tasks import get_task

END = 3  # the token that ends a turn of the tiny student


def settings(**changes):
    load = {"tasks": ["max"], "concurrencies": (2,), "requests": 12, "warmup_requests": 2, "max_tokens": 48}
    return validate(StudentProfileSettings, load | changes, source="test")


def levels_of(made):
    return read_json(made.path / "profile.json")["tasks"]["max"]["levels"]


# ---------------------------------------------------------------------------------------------- the real server


def test_answers_are_graded_and_priced_as_they_were_timed(trained_server, trained_student, tmp_path, rng, capsys):
    seed = int(rng.integers(1000))
    replay = Replay(times_s=np.cumsum(rng.uniform(0, 0.1, 14)).tolist(), speed=2)
    price = {"hardware": "h200-sxm", "answers_per_month": 1e4, "months": 2, "fixed_usd": 100}
    load = settings(
        concurrencies=(1, 4), rates=(20,), replay=replay, seed=seed, price=price, objective=Objective(e2e_s=60)
    )
    made = profile_student(load, trained_student, tmp_path / "p", Serving(lambda: trained_server.endpoint, threads=1))
    # The same questions in the same order, answered and graded by `evaluate`.
    questions = [{"task": "max", "count": 200, "split": "validation", "seed": seed}]
    evaluated = evaluate(
        EvaluateSettings(questions=questions, max_tokens=48),
        trained_student,
        tmp_path / "e",
        Serving(lambda: trained_server.endpoint),
    )
    answers, place = read_answers(evaluated.path / "answers.parquet"), 0
    result = read_json(made.path / "profile.json")
    h200, shape = hardware("h200-sxm"), load_subject(trained_student).shape
    for level, sent in zip(levels_of(made), (2 + 12 + 1, 2 + 12 + 4, 2 + 12 + 40, 14), strict=True):
        theirs = answers[place + 2 : place + 14]
        place += sent
        assert (level["completed"], level["failed"]) == (12, 0)
        assert abs(level["correct"] - sum(a.correct for a in theirs)) <= 1  # up to near ties
        assert abs(level["tokens"]["output"] - sum(len(a.token_ids) for a in theirs)) <= 48
        measured, cost = level["measured"], level["measured"]["cost"]
        assert measured["goodput"]["share"] == 1.0
        assert measured["energy"] is None  # others run here, too
        if level["concurrency"] is None and cost is None:
            continue  # on a slow machine no token came before all were sent
        assert cost["answers"] == cost["questions"] == 12 and cost["correct_share"]["value"] * 12 == level["correct"]
        assert cost["per_answer"]["seconds"]["value"] == pytest.approx(measured["seconds_per_answer"])
        assert cost["per_answer"]["usd"]["value"] == pytest.approx(h200.usd(measured["seconds_per_answer"]))
        assert cost["amortised"]["fixed_usd_per_answer"] >= 100 / 2e4  # and the training
        # vLLM's estimate of its FLOPs is ours, but for the prompts' last tokens and a rounded-up vocabulary.
        server = measured["server"]
        flops = shape.generation_flops(server["prompt_tokens"] / sent, server["output_tokens"] / sent) * sent
        assert server["flops_per_gpu"] == pytest.approx(flops, rel=0.1)
        per_second = server["flops_per_gpu"] / server["output_tokens"] * measured["output_tokens_per_s"]["value"]
        assert measured["utilisation"]["mfu"] == pytest.approx(per_second / (h200.peak_bf16_tflops * 1e12))
    assert result["price"]["fixed_usd"]["given"] == 100 and result["price"]["fixed_usd"]["training"] > 0
    show_profile(made.path)
    said = capsys.readouterr()
    assert "concurrency 4" in said.out and "20 requests/s" in said.out and "with $100" in said.out
    assert max(map(len, said.out.partition("page:")[0].splitlines())) <= 100


def test_a_search_finds_most(trained_server, trained_student, tmp_path):
    load = settings(concurrencies=(), saturate=True, objective=Objective(e2e_s=60), requests=8)
    made = profile_student(load, trained_student, tmp_path / "p", Serving(lambda: trained_server.endpoint))
    result = read_json(made.path / "profile.json")["tasks"]["max"]
    found = result["found"]
    assert found["saturation"]["concurrency"] >= 1 and found["saturation"]["answers_per_s"] > 0
    # An objective that every answer meets is kept until the 504 questions of the split are used up.
    assert "no prompts were left" in found["ended"] and result["prompts"]["repeated"] is False
    assert found["highest_rate"]["rate"] is None or found["highest_rate"]["failed_at"] is None
    assert [level["concurrency"] for level in result["levels"]][:2] == [1, 2]


# ---------------------------------------------------------------------------------------------- servers that fail


class Fake:
    """As much of vLLM as a profile needs; `how(n)` says what becomes of the n-th request: "answer", "drop", "hang" or
    "quote", an error with the key in it."""

    def __init__(self, how):
        self.asked, self.lock, self.over = 0, threading.Lock(), threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def say(self, status, value):
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                models = self.path.endswith("/models")
                self.say(200 if models else 404, {"data": [{"id": "m"}]} if models else {})

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                with fake.lock:
                    number, fake.asked = fake.asked, fake.asked + 1
                what = how(number)
                if what == "quote":
                    self.say(500, {"error": {"message": f"you said {self.headers['Authorization']}"}})
                    return
                if what == "hang":
                    fake.over.wait(60)
                if what != "answer":
                    self.close_connection = True
                    return
                choice = {"index": 0, "text": "A", "token_ids": [9, END], "finish_reason": "stop"}
                event = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n".encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Content-Length", str(len(event)))
                self.end_headers()
                self.wfile.write(event)

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 512

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.remote = ModelSettings(url=f"http://127.0.0.1:{self.server.server_port}/v1", model="m")

    def close(self):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def fake():
    made = []

    def start(how):
        made.append(Fake(how))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def running(monkeypatch, tmp_path):
    """The processes that the test has started and that run; at its end there are none."""
    monkeypatch.setenv("DISTILL_TEST_MARK", str(tmp_path))
    # Python's tracker of shared memory stays with the process that first needed it.
    found = lambda: [one for one in _marked({"DISTILL_TEST_MARK": str(tmp_path)}) if "resource_tracker" not in one[1]]  # noqa: E731
    yield found
    assert found() == []


def test_an_endpoint_that_drops_connections_is_a_profile_with_failures(fake, tiny_student, tmp_path, capsys, running):
    server = fake(lambda number: "drop" if number % 10 == 5 else "answer")
    load = settings(requests=40, rates=(40,))
    made = profile_student(load, tiny_student, tmp_path / "p", remote=server.remote)
    for level in levels_of(made):
        assert 2 <= level["failed"] <= 6 and level["completed"] == 40 - level["failed"]
        assert sum(level["errors"].values()) == level["failed"]
        if level["measured"]["cost"] is not None:  # on a slow machine no token came before all were sent
            assert level["measured"]["cost"]["answers"] == level["completed"]
        assert "not started here" in level["measured"]["energy"]["reason"]
    show_profile(made.path)
    assert "of 40 requests failed" in capsys.readouterr().err
    again = profile_student(load, tiny_student, tmp_path / "p", remote=server.remote)
    assert again.key == made.key
    with pytest.raises(InputError, match=r"requests failed on max at concurrency 2 .*run again"):
        profile_student(load, tiny_student, tmp_path / "q", remote=server.remote, of_study=True)
    assert not (tmp_path / "q").exists()


def test_nothing_answered_is_an_error_and_nothing_is_kept(fake, tiny_student, tmp_path):
    """Else the same command, with another key or server, would find a profile that is finished."""
    broken = fake(lambda number: "drop")
    load = settings(rates=(500,))
    with pytest.raises(InputError, match=r"nothing was answered, and nothing is kept: 12 of 12 .*disconnected"):
        profile_student(load, tiny_student, tmp_path / "p", remote=broken.remote)
    assert list(tmp_path.iterdir()) == []
    once = fake(lambda number: "answer" if number == 3 else "drop")  # the second of those that count
    (level,) = levels_of(profile_student(settings(), tiny_student, tmp_path / "p", remote=once.remote))
    assert (level["completed"], level["failed"]) == (1, 11)


def test_a_hung_server_ends_a_load_within_its_silence_and_not_the_profile(fake, tiny_student, tmp_path, running):
    """It still answers what it is called, so it is not gone."""
    server = fake(lambda number: "answer" if number < 8 else "hang")
    load = settings(concurrencies=(2, 3), timeout_s=1.0)
    started = time.monotonic()
    made = profile_student(load, tiny_student, tmp_path / "p", remote=server.remote)
    assert time.monotonic() - started < 30
    first, second = levels_of(made)
    assert first["completed"] == 6 and first["failed"] == 6 and (second["completed"], second["failed"]) == (0, 12)
    assert second["measured"]["cost"] is None and "given up: the server was silent for 1 s" in second["errors"]


def test_a_server_that_goes_leaves_what_was_measured_beside(fake, tiny_student, tmp_path):
    def die(number):
        if number == 25:
            server.server.socket.close()  # no further connection, and those that are there are dropped
        return "answer" if number < 25 else "drop"

    server = fake(die)
    load = settings(concurrencies=(2, 3, 4))
    with pytest.raises(InputError, match=r"the server was gone .*p\.unfinished\.json\n.*cannot be reached"):
        profile_student(load, tiny_student, tmp_path / "p", remote=server.remote)
    assert not (tmp_path / "p").exists()
    kept = read_json(tmp_path / "p.unfinished.json")["tasks"]["max"]
    assert [level["concurrency"] for level in kept["levels"]] == [2, 3] and "cannot be reached" in kept["stopped"]
    assert kept["levels"][0]["completed"] == 12 and kept["levels"][0]["correct"] is not None
    well = fake(lambda number: "answer")
    made = profile_student(load, tiny_student, tmp_path / "p", remote=well.remote)
    assert len(levels_of(made)) == 3 and not (tmp_path / "p.unfinished.json").exists()


def test_a_slow_client_shows(fake, tiny_student, tmp_path, running):
    """Arrivals that one process cannot keep up with are late, and said to be."""
    server = fake(lambda number: "answer")
    made = profile_student(
        settings(concurrencies=(), rates=(20_000,), requests=200), tiny_student, tmp_path / "p", remote=server.remote
    )
    (level,) = levels_of(made)
    assert level["completed"] == 200 and level["measured"]["late_s"]["p50"] > 0.01


def holding(key, folder, *, but=()):
    """The files in a folder that hold the key."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in but]
    assert files
    return [file.name for file in files if key.encode() in file.read_bytes()]


def test_a_key_from_the_environment_is_in_nothing_that_is_written(fake, tiny_student, tmp_path, monkeypatch, capsys):
    """Not even when the server quotes it."""
    key = secrets.token_hex(16)
    monkeypatch.setenv("DISTILL_TEST_KEY", key)
    server = fake(lambda number: "quote" if number % 5 == 4 else "answer")
    remote = server.remote.model_copy(update={"api_key_env": "DISTILL_TEST_KEY"})
    made = profile_student(settings(), tiny_student, tmp_path / "p", remote=remote)
    (level,) = levels_of(made)
    assert level["failed"] and all("you said Bearer ***" in error for error in level["errors"])
    values = {"questions": [{"task": "max"}], "concurrencies": [2], "rounds": 2, "requests": 6, "max_tokens": 48}
    two = entrants(
        [f"{name}={tiny_student}" for name in "ab"],
        [f"{remote.url}#m"] * 2,
        remote.api_key_env,
        ours=Serving(),
        price=None,
    )
    compared = compare_students(validate(CompareSettings, values, source="test"), *two, tmp_path / "c")
    assert "you said Bearer ***" in (compared.path / "compare.json").read_text()
    show_profile(made.path)
    assert holding(key, tmp_path) == [] and key not in "".join(capsys.readouterr())


# ---------------------------------------------------------------------------------------------- servers started here

STAND_IN = r"""
import http.server, json, os, sys
key, last, asked = os.environ["VLLM_API_KEY"], int(sys.argv[2]), []
class Handler(http.server.BaseHTTPRequestHandler):
    def say(self, text, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        self.say(json.dumps({"data": [{"id": "student"}]}), "application/json")
    def do_POST(self):
        assert self.headers["Authorization"] == "Bearer " + key
        self.rfile.read(int(self.headers["Content-Length"]))
        asked.append(1)
        if len(asked) == last:
            print("ValueError: the key is " + key, flush=True)
            os._exit(3)
        choice = {"index": 0, "text": "A", "token_ids": [9, 3], "finish_reason": "stop"}
        self.say("data: " + json.dumps({"choices": [choice]}) + "\n\ndata: [DONE]\n\n", "text/event-stream")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a stand-in in vLLM's place, which dies at its n-th request. Returns the settings that it is started with,
    and the keys that are drawn."""
    started, keys, draw = [], [], secrets.token_hex

    def use(last=0):
        def command(model, name, port, settings):
            started.append(settings)
            return [sys.executable, "-c", STAND_IN, str(port), str(last)]

        monkeypatch.setattr(server_module, "vllm_command", command)
        monkeypatch.setattr(server_module, "require_vllm", lambda: None)
        monkeypatch.setattr(server_module.secrets, "token_hex", lambda n: keys.append(draw(n)) or keys[-1])
        for module in (profile_module, compare_module):  # zeus takes seconds to start
            monkeypatch.setattr(module, "EnergyMeter", nullcontext)
        return started, keys

    return use


def test_a_server_started_here_gets_its_arguments_and_keeps_its_key(
    stand_in, tiny_student, tmp_path, running, monkeypatch, capsys
):
    started, keys = stand_in()
    put, seen = profile_module.put_under_load, []
    monkeypatch.setattr(profile_module, "put_under_load", lambda *a, **k: seen.extend(running()) or put(*a, **k))
    given = ("--max-num-seqs", str(random.randrange(2, 99)))
    made = profile_student(settings(), tiny_student, tmp_path / "p", Serving(arguments=given))
    result = read_json(made.path / "profile.json")
    assert started[0].arguments[-2:] == given and result["arguments"] == made.recipe["arguments"] == list(given)
    assert 0 < result["measured"]["server_start_s"] < result["measured"]["seconds"]
    assert " ".join(given) in (made.path / "profile.html").read_text()
    with pytest.raises(InputError, match=r"with other settings \(arguments\.0 --max-num-seqs -> \(none\)"):
        profile_student(settings(), tiny_student, tmp_path / "p")
    again = profile_student(settings(), tiny_student, tmp_path / "p", Serving(arguments=given))
    assert len(seen) >= 2  # the keeper and the server
    assert len(started) == 1 and again.key == made.key  # found, not measured again
    assert len(keys) == 1 and holding(keys[0], tmp_path) == [] and keys[0] not in "".join(capsys.readouterr())


def test_a_profile_has_the_key_it_had_before_there_were_arguments():
    assert Serving().of_recipe == {} == Serving(lambda: None, arguments=("--max-num-seqs", "4")).of_recipe


def test_a_server_that_says_its_key_when_it_dies_says_it_in_its_log_alone(stand_in, tiny_student, tmp_path, running):
    _, keys = stand_in(last=20)
    with pytest.raises(InputError, match="the server was gone") as caught:
        profile_student(settings(concurrencies=(2, 3)), tiny_student, tmp_path / "p")
    assert (tmp_path / "p.unfinished.json").exists() and keys[0] in (tmp_path / "p.server.log").read_text()
    assert keys[0] not in str(caught.value) and holding(keys[0], tmp_path, but=("p.server.log",)) == []


@pytest.mark.parametrize("command", ["profile", "compare"])
def test_what_follows_two_dashes_is_vllms(command, monkeypatch, tmp_path):
    got = []
    monkeypatch.setattr(profile_module, "profile_student", lambda *given, **_: got.append(given[3].arguments))
    monkeypatch.setattr(
        compare_module, "compare_students", lambda _, *given: got.extend(who.serving.arguments for who in given[:2])
    )
    students = [str(tmp_path)] if command == "profile" else [f"a={tmp_path}", f"b={tmp_path}"]
    said = ["serve", command, *students, "--tasks", "max", "--out", str(tmp_path / "o")]

    def run(*more):
        with pytest.raises((InputError, cli.UsageError)) as caught:
            cli.app([*said, *more], standalone_mode=False)
        return str(getattr(caught.value, "message", caught.value))

    with pytest.raises((AttributeError, TypeError)):  # of a result that is none
        cli.app([*said, "--", "--tensor-parallel-size", "2"], standalone_mode=False)
    assert got and set(got) == {("--tensor-parallel-size", "2")}
    for wrong in ("--host=0.0.0.0", "--port", "--api-key", "--trust-remote-code"):
        assert f"{wrong.split('=')[0]} is set by distill or not allowed" in run("--", "--max-num-seqs", "4", wrong, "x")
    assert "No such option" in run("--requets", "4") and "unexpected extra argument (again)" in run("again")
    there = (
        ["--endpoint", "http://h/v1", "--model", "m"] if command == "profile" else ["--endpoint", "http://h/v1#m"] * 2
    )
    assert run(*there, "--", "--max-num-seqs", "4").startswith("-- --max-num-seqs 4: not with --endpoint")
    assert not (tmp_path / "o").exists()


@pytest.mark.long
def test_a_profile_adds_at_most_a_minute_to_the_servers_own_start(trained_student, tmp_path):
    """The whole command, with the loads that it takes by default."""
    command = distill_command("serve", "profile", str(trained_student), "--tasks", "max", "--out", str(tmp_path / "p"))
    began_s = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, "PYTHONSAFEPATH": "1"}, timeout=600)
    took_s = time.monotonic() - began_s
    measured = read_json(tmp_path / "p" / "profile.json")["measured"]
    print(f"{took_s:.1f} s, of them {measured['server_start_s']:.1f} s the server's start")
    assert measured["server_start_s"] < measured["seconds"] < took_s <= measured["server_start_s"] + 60


@pytest.mark.long
def test_two_real_servers_get_the_arguments(trained_student, tmp_path, monkeypatch, running):
    drawn, draw, seen = [], secrets.token_hex, []
    monkeypatch.setattr(server_module.secrets, "token_hex", lambda n: drawn.append(draw(n)) or drawn[-1])
    in_turns = compare_module.measure_in_turns

    def looking(*given):
        seen.extend(name for _, name in running() if "api_server" in name)
        yield from in_turns(*given)

    monkeypatch.setattr(compare_module, "measure_in_turns", looking)
    ours = Serving(threads=1, arguments=("--max-num-seqs", "4"))
    two = entrants([f"{name}={trained_student}" for name in "ab"], [], "KEY", ours=ours, price=None)
    values = {"questions": [{"task": "max"}], "concurrencies": [8], "rounds": 2, "requests": 8, "max_tokens": 48}
    made = compare_students(validate(CompareSettings, values, source="test"), *two, tmp_path / "c")
    assert len(seen) >= 4 and all("--max-num-seqs\x004\x00" in name for name in seen if "keeper" not in name)
    assert [c["arguments"] for c in read_json(made.path / "compare.json")["contenders"]] == [
        ["--max-num-seqs", "4"]
    ] * 2
    assert [student["arguments"] for student in made.recipe["students"]] == [["--max-num-seqs", "4"]] * 2
    assert len(drawn) == 2 and not any(holding(key, tmp_path) for key in drawn)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_real_server_killed_or_hung_in_mid_run(how, trained_student, tmp_path):
    """The command ends with exit code 2, says where the measurements are, and leaves no process behind."""
    mark = {"DISTILL_TEST_MARK": str(tmp_path)}
    flags = [
        "--tasks",
        "max",
        "--concurrency",
        "1,2",
        "--requests",
        "200",
        "--max-tokens",
        "48",
        "--timeout",
        "5",
        "--out",
    ]
    command = distill_command("serve", "profile", str(trained_student), *flags, str(tmp_path / "p"))
    child = subprocess.Popen(
        command, env={**os.environ, **mark, "PYTHONSAFEPATH": "1"}, stderr=subprocess.PIPE, text=True
    )
    try:
        log, deadline = tmp_path / "p.server.log", time.monotonic() + 120
        while not (log.exists() and "Application startup complete" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2)
        engines = [pid for pid, name in _marked(mark) if "EngineCore" in name]
        assert engines
        for pid in engines:
            os.kill(pid, how)
        said = child.communicate(timeout=120)[1]
        if how == signal.SIGKILL:
            assert child.returncode == 2 and "error: " in said and "p.unfinished.json" in said, said
            assert not (tmp_path / "p" / "manifest.json").exists()
            assert "Traceback" not in said.partition("last lines of")[0]
        else:  # the server still answers what it is called
            assert child.returncode == 0 and "requests failed" in said, said
        deadline = time.monotonic() + 20
        while _marked(mark) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert _marked(mark) == []
    finally:
        child.kill()
        for pid, _ in _marked(mark):
            os.kill(pid, signal.SIGKILL)


def _marked(mark):
    """Running processes with this mark in their environment: (id, name)."""
    ((name, value),) = mark.items()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if status != "Z" and f"{name}={value}".encode() in (folder / "environ").read_bytes():
                found.append((int(folder.name), (folder / "comm").read_text() + (folder / "cmdline").read_text()))
        except OSError:
            continue
    return found


# ---------------------------------------------------------------------------------------------- what is asked


def test_too_few_questions_are_said_in_one_line(tiny_student, tmp_path):
    with pytest.raises(InputError, match=r"^task max: the loads need \d+ different questions, and there are \d+ valid"):
        profile_student(settings(requests=4000), tiny_student, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_questions_of_your_own(fake, tiny_student, tmp_path):
    problems = get_task("max").problems("train", 20, random.randrange(1000))
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": p.prompt, "gold": "A"}) + "\n" for p in problems))
    own = {"path": str(path), "answer": "gold", "checker": "exact"}
    server = fake(lambda number: "answer")
    load = settings(tasks=["mine"], data={"mine": own}, requests=10)
    made = profile_student(load, tiny_student, tmp_path / "p", remote=server.remote)
    (level,) = read_json(made.path / "profile.json")["tasks"]["mine"]["levels"]
    assert level["completed"] == 10


def test_settings_are_checked():
    for wrong in (
        {"concurrencies": (0,)},
        {"rates": (-1,)},
        {"price": {"hardware": "abacus"}},
        {"price": {"hardware": "l4", "fixed_usd": 3}},
        {"requests": 0},
        {"tasks": []},
    ):
        with pytest.raises(InputError):
            settings(**wrong)
    assert [load.name for load in settings(concurrencies=()).loads] == [f"concurrency {c}" for c in (1, 8, 32)]
    assert settings(concurrencies=(), saturate=True).loads == ()


# ---------------------------------------------------------------------------------------------- prices


def test_what_was_paid_before_the_first_answer(trained_student, tiny_student, tmp_path):
    subject, device = load_subject(trained_student), hardware("cpu-2core")
    paid = PriceSettings(
        hardware="cpu-2core", answers_per_month=50, months=2, fixed_usd=7, traces=trained_student.parent / "traces"
    )
    price, told = price_of(paid, subject, threads=1)
    took = read_json(trained_student / "manifest.json")["summary"]["measured"]
    training = device.usd(took["seconds"], took["threads"])
    assert told["fixed_usd"] == {"training": pytest.approx(training), "teacher": 0.0, "given": 7}  # the solver is free
    assert price.fixed_usd_per_answer == pytest.approx((7 + training) / 100)
    assert price.usd_per_second == pytest.approx(device.usd(1, 1)) == pytest.approx(0.04 / 3600)
    untrained, told = price_of(PriceSettings(hardware="l4", devices=3), load_subject(tiny_student), None)
    assert told["fixed_usd"]["training"] is None and untrained.fixed_usd_per_answer is None
    assert untrained.usd_per_second == pytest.approx(3 * 0.70 / 3600)
    with pytest.raises(InputError, match=r"not the trace set that .* was trained on"):
        price_of(paid, load_subject(tiny_student), 1)


@pytest.mark.parametrize(
    ("trained", "paid"),
    [
        ({"arm": "reasoning", "answers": "teacher"}, {"reasoning"}),
        ({"arm": "ift", "answers": "teacher"}, {"ift"}),
        ({"arm": "ift", "answers": "stripped"}, {"reasoning"}),
        ({"arm": "ift", "answers": "gold"}, set()),
        ({"arm": "mixed:0.25", "answers": "teacher"}, {"reasoning", "ift"}),
        ({"arm": "mixed:1", "answers": "teacher"}, {"reasoning"}),
        ({"arm": "phases", "phases": [{"reasoning": 0.5}], "answers": "gold"}, {"reasoning"}),
    ],
)
def test_an_arm_pays_for_the_answers_it_is_shown(trained, paid):
    assert paid_modes(trained) == paid
