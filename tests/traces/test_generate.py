"""Generation: what is written, what is asked again after a kill, what a broken teacher does."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distill.artifact import content_key
from distill.cli import app
from distill.errors import InputError
from distill.journal import Journal
from distill.process import child_environment
from distill.settings import validate
from distill.tasks import get_task
from distill.traces.generate import generate, generate_recipe
from distill.traces.settings import EndpointSettings, GenerateSettings
from distill.traces.store import read_pairs, read_rejected

RUN = (
    "import sys; from pathlib import Path; from distill.traces.generate import generate; "
    "from distill.traces.settings import GenerateSettings; "
    "generate(GenerateSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
)


def endpoint_settings(teacher, count=20, seed=0, **changes) -> GenerateSettings:
    changes = {"url": teacher.url, "model": "fake", "revision": "r1", "concurrency": 4} | changes
    return GenerateSettings(tasks={"add": count}, seed=seed, teacher=EndpointSettings(**changes))


def data_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_the_solver_writes_every_problem_twice(tmp_path):
    settings = GenerateSettings(tasks={"add": 30, "record": 20, "max": 10}, split="validation", seed=5)
    made = generate(settings, tmp_path / "t")
    assert made.key == content_key("traces", generate_recipe(settings))
    bill = {mode: {"answers": 60, "cost_usd": 0.0} for mode in ("reasoning", "ift")}
    assert made.summary == {"questions": 60, "rows": 60, "pairs": 60, "rejected": {}, "bill": bill}
    assert set(made.files) == {"pairs.parquet", "rejected.parquet"}
    pairs = read_pairs(tmp_path / "t")
    expected = [p for name, n in settings.tasks.items() for p in get_task(name).problems("validation", n, 5)]
    assert [pair.problem for pair in pairs] == expected and [pair.place for pair in pairs] == list(range(60))
    for pair in pairs:
        reasoning, answer = get_task(pair.problem.task).solve(pair.problem)
        assert (pair.reasoning.reasoning, pair.reasoning.answer) == (reasoning, answer)
        assert (pair.ift.reasoning, pair.ift.answer) == ("", answer)
        for trace in (pair.reasoning, pair.ift):
            assert (trace.teacher, trace.cost_usd, trace.verified, trace.finish_reason) == ("solver", 0.0, True, "stop")
    assert read_rejected(tmp_path / "t") == []


def test_same_settings_same_bytes_and_reuse(tmp_path):
    settings = GenerateSettings(tasks={"add": 1500, "record": 100})
    generate(settings, tmp_path / "a")
    generate(settings, tmp_path / "b")
    assert data_files(tmp_path / "a") == data_files(tmp_path / "b")
    before = (tmp_path / "a" / "pairs.parquet").stat().st_mtime_ns
    generate(settings, tmp_path / "a")
    assert (tmp_path / "a" / "pairs.parquet").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"other settings \(.*seed 0 -> 1"):
        generate(GenerateSettings(tasks=settings.tasks, seed=1), tmp_path / "a")


def test_worked_solutions_of_a_file_are_a_teacher(tmp_path):
    rows = [{"question": f"{i}?", "answer": f"It is <<{i}>>{i}. #### {i}"} for i in range(50)]
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        generate(GenerateSettings(tasks={f"gsm8k:{tmp_path}/{name}": 30}), tmp_path / name[:3])
    assert data_files(tmp_path / "one") == data_files(tmp_path / "two")  # the same content under another name
    pair = read_pairs(tmp_path / "one")[0]
    assert pair.reasoning.reasoning == f"It is {pair.problem.gold}." and pair.reasoning.verified


def test_an_endpoint_is_asked_once_in_each_mode(tmp_path, teacher):
    made = generate(endpoint_settings(teacher, usd_per_million_input=1, usd_per_million_output=2), tmp_path / "t")
    assert made.summary["pairs"] == 20 and teacher.requests == len(teacher.asked) == 40
    bill = made.summary["bill"]
    traces = [pair.trace(mode) for pair in read_pairs(tmp_path / "t") for mode in bill]
    for mode, sums in bill.items():
        tokens = sum(t.reasoning_tokens + t.answer_tokens for t in traces if t.mode == mode)
        assert sums == {
            "answers": 20,
            "prompt_tokens": 200,
            "output_tokens": tokens,
            "cost_usd": pytest.approx((200 + 2 * tokens) / 1e6),
        }
    assert teacher.most_in_flight <= 4
    for body in teacher.bodies:
        assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("fake", 0.6, 0.95, 4096)
        assert body["seed"] == 0 and body["messages"][0]["role"] == "user"
    for pair in read_pairs(tmp_path / "t"):
        for trace, thinking in ((pair.reasoning, True), (pair.ift, False)):
            assert trace.answer == pair.problem.gold and trace.verified is True
            assert bool(trace.reasoning) == thinking and "think>" not in trace.reasoning
            assert trace.answer_tokens + trace.reasoning_tokens == round((trace.cost_usd * 1e6 - 10) / 2)
            assert trace.sampling == {"temperature": 0.6, "top_p": 0.95, "max_tokens": 4096}
        assert pair.reasoning.reasoning_tokens == len(pair.reasoning.reasoning) + 4  # two tags, two line ends
        assert pair.reasoning.answer_tokens == len(pair.problem.gold) + 3  # two line ends, end of turn
        assert pair.ift.reasoning_tokens == 0


@pytest.mark.parametrize("fresh_answers", [False, True])
def test_killed_at_random_moments(tmp_path, teacher, fresh_answers):
    """SIGKILL, again and again: finished answers are kept verbatim, only what was in flight is asked twice."""
    settings = endpoint_settings(teacher, count=60, seed=random.randrange(1000))
    if fresh_answers:  # a teacher that never says the same twice
        answer = teacher.reply

        def reply(body):
            choice = answer(body)
            if "</think>" in choice["message"]["content"]:
                choice["message"]["content"] = f"<think>{random.random()}" + choice["message"]["content"][7:]
            return choice

        teacher.reply = reply
    teacher.delay_s = 0.01
    out, kept, kills = tmp_path / "t", {}, 2
    for _ in range(kills):
        wait_for = teacher.requests + random.randrange(1, 45)
        child = subprocess.Popen(
            [sys.executable, "-c", RUN, settings.model_dump_json(), str(out)], env=child_environment(1)
        )
        deadline = time.monotonic() + 60
        while teacher.requests < wait_for and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert child.poll() is None
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert not (out / "manifest.json").exists()
        with Journal(out / "journal.jsonl") as journal:
            found = {key: journal.get(key) for key in journal}
        assert all(found[key] == answer for key, answer in kept.items()) and len(found) >= len(kept)
        kept = found
    made = generate(settings, out)
    assert made.summary["pairs"] == 60 and not (out / "journal.jsonl").exists()
    assert len(teacher.asked) == 120 and teacher.requests <= 120 + kills * 4
    written = {trace.reasoning for pair in read_pairs(out) for trace in (pair.reasoning, pair.ift)}
    assert {answer["trace"]["reasoning"] for answer in kept.values()} <= written
    if not fresh_answers:
        generate(settings, tmp_path / "uninterrupted")
        assert data_files(tmp_path / "uninterrupted") == data_files(out)


def by_thinking(when_on, when_off=None):
    """A reply by mode."""

    def reply(body):
        on = body["chat_template_kwargs"]["enable_thinking"]
        value = when_on if on or when_off is None else when_off
        return json.loads(json.dumps(value)) if isinstance(value, dict) else value

    return reply


def choice(content, finish_reason="stop", **message):
    return {"message": {"content": content, **message}, "finish_reason": finish_reason}


@pytest.mark.parametrize(
    ("on", "off", "reason", "mode"),
    [
        (choice("<think>so"), choice("1"), "unclosed_think", "reasoning"),
        (choice("<think>so", "length"), choice("1"), "truncated", "reasoning"),
        (choice("<think>so</think>1", "length"), choice("1"), "truncated", "reasoning"),
        (choice(None, "length", reasoning="so"), choice("1"), "truncated", "reasoning"),
        (choice("<think>so</think> "), choice("1"), "no_answer", "reasoning"),
        (choice("1"), choice("1"), "no_reasoning", "reasoning"),
        (choice("<think>a</think>b</think>1"), choice("1"), "stray_tag", "reasoning"),
        (choice("<think>so</think>1"), choice("<think>so</think>1"), "reasoning_in_ift", "ift"),
        (choice("<think>so</think>1"), choice(""), "no_answer", "ift"),
        (choice("<think>so</think>1"), choice("1", "length"), "truncated", "ift"),
        (choice("<think>so</think>\ud800"), choice("1"), "bad_unicode", "reasoning"),
        (choice("<think>so</think>1"), choice("1", "content_filter"), "refused", "ift"),
        (choice("<think>so</think>1"), 400, "failed", "ift"),
    ],
)
def test_a_fault_in_one_mode_drops_both(tmp_path, teacher, on, off, reason, mode):
    good = by_thinking(choice("<think>so</think>1"), choice("1"))
    bad = by_thinking(on, off)
    settings = endpoint_settings(teacher, count=6)
    spoilt = {p.prompt for p in get_task("add").problems("train", 6, 0)[2:4]}
    teacher.reply = lambda body: (bad if body["messages"][-1]["content"] in spoilt else good)(body)
    made = generate(settings, tmp_path / "t")
    assert (made.summary["pairs"], made.summary["rejected"], made.summary["questions"]) == (4, {reason: 2}, 6)
    rejected = read_rejected(tmp_path / "t")
    assert {row.problem.prompt for row in rejected} == spoilt
    assert all((row.reason, row.mode) == (reason, mode) and row.detail for row in rejected)
    assert not spoilt & {pair.problem.prompt for pair in read_pairs(tmp_path / "t")}


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("tokens", [True, False])
def test_reasoning_in_a_field_of_its_own(tmp_path, teacher, field, tokens):
    teacher.tokens = tokens
    on = choice("1", **{field: "because"}) | {"usage": {"completion_tokens_details": {"reasoning_tokens": 5}}}
    on["token_ids"] = [1, 50, 51, 52, 2, 49, 3] if tokens else None
    teacher.reply = by_thinking(on, choice("1"))
    generate(endpoint_settings(teacher, count=3), tmp_path / "t")
    for pair in read_pairs(tmp_path / "t"):
        assert (pair.reasoning.reasoning, pair.reasoning.answer) == ("because", "1")
        assert (pair.reasoning.reasoning_tokens, pair.reasoning.answer_tokens) == ((5, 2) if tokens else (5, 4))
        assert (pair.ift.reasoning_tokens, pair.ift.answer_tokens) == (0, 2)
    assert all(body.get("return_token_ids", False) == tokens for body in teacher.bodies)


def test_thinking_switched_by_system_prompt(tmp_path, teacher):
    def reply(body):
        system = body["messages"][0]
        assert system["role"] == "system" and "chat_template_kwargs" not in body
        return choice("<think>so</think>1" if "step by step" in system["content"] else "1")

    teacher.reply = reply
    assert generate(endpoint_settings(teacher, count=5, thinking="system"), tmp_path / "t").summary["pairs"] == 5


def test_a_teacher_that_is_wrong_is_labelled_not_dropped(tmp_path, teacher):
    teacher.reply = by_thinking(choice("<think>so</think>1000"), choice("1000"))
    generate(endpoint_settings(teacher, count=5), tmp_path / "t")
    pairs = read_pairs(tmp_path / "t")
    assert len(pairs) == 5 and not any(t.verified for p in pairs for t in (p.reasoning, p.ift))


def test_no_pair_at_all_is_an_error(tmp_path, teacher):
    teacher.reply = by_thinking(choice("<think>so", "length"), choice("1"))
    with pytest.raises(InputError, match=r"none of 5 questions gave a pair \(.*cut off.*: 5\)"):
        generate(endpoint_settings(teacher, count=5), tmp_path / "t")
    assert not (tmp_path / "t" / "manifest.json").exists()


def test_a_server_that_fails_midway_keeps_what_was_answered(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr("distill.serve.client.BACKOFF_S", 0.001)
    monkeypatch.setattr("distill.serve.patience.GONE_S", 0.1)
    settings, good = endpoint_settings(teacher, count=40), teacher.reply
    teacher.reply = lambda body: good(body) if len(teacher.asked) <= 30 else 503
    with pytest.raises(InputError, match=r"requests in a row failed \(HTTP 503.*run the same command again"):
        generate(settings, tmp_path / "t")
    with Journal(tmp_path / "t" / "journal.jsonl") as journal:
        assert 20 <= len(journal) <= 30
    teacher.reply = good
    assert generate(settings, tmp_path / "t").summary["pairs"] == 40


def test_bad_endpoints_are_named_and_leave_nothing(tmp_path, teacher, monkeypatch):
    teacher.key = "secret"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match=r"wants an API key.*OPENAI_API_KEY"):
        generate(endpoint_settings(teacher), tmp_path / "t")
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with pytest.raises(InputError, match="refuses the API key"):
        generate(endpoint_settings(teacher), tmp_path / "t")
    monkeypatch.setenv("MY_KEY", "secret")
    with pytest.raises(InputError, match=r"unknown model at .*'fak'.*did you mean 'fake'"):
        generate(endpoint_settings(teacher, model="fak", api_key_env="MY_KEY"), tmp_path / "t")
    with pytest.raises(InputError, match="cannot be reached"):
        generate(endpoint_settings(teacher, url="http://127.0.0.1:9/v1"), tmp_path / "t")
    assert not (tmp_path / "t").exists() and teacher.requests == 0
    made = generate(endpoint_settings(teacher, count=3, api_key_env="MY_KEY"), tmp_path / "t")
    assert made.summary["pairs"] == 3
    assert all(b"secret" not in data for data in data_files(tmp_path / "t").values())


def test_what_is_not_part_of_the_answer_is_not_part_of_the_key(tmp_path, teacher):
    generate(endpoint_settings(teacher, count=4), tmp_path / "t")
    asked = teacher.requests
    generate(endpoint_settings(teacher, count=4, concurrency=9, timeout_s=5, url="http://elsewhere/v1"), tmp_path / "t")
    assert teacher.requests == asked
    for change in ({"temperature": 0.1}, {"revision": "r2"}, {"max_tokens": 9}, {"thinking": "system"}, {"top_p": 0.5}):
        with pytest.raises(InputError, match="other settings"):
            generate(endpoint_settings(teacher, count=4, **change), tmp_path / "t")


def test_the_command_line_takes_prices_and_revision(tmp_path, teacher):
    flags = f"--tasks add=3 --teacher {teacher.url} --model fake --revision r7 --out {tmp_path / 't'}"
    prices = "--usd-per-million-input 0.5 --usd-per-million-output 2"
    assert CliRunner().invoke(app, ["traces", "generate", *flags.split(), *prices.split()]).exit_code == 0
    told = EndpointSettings(
        url=teacher.url, model="fake", revision="r7", usd_per_million_input=0.5, usd_per_million_output=2
    )
    made = generate(GenerateSettings(tasks={"add": 3}, teacher=told), tmp_path / "t")
    assert made.recipe["teacher"]["revision"] == "r7" and made.recipe["teacher"]["usd_per_million_output"] == 2
    assert teacher.requests == 6 and all(pair.ift.cost_usd > 0 for pair in read_pairs(tmp_path / "t"))


def test_a_price_edit_buys_no_answer_again(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr("distill.serve.client.BACKOFF_S", 0.001)
    monkeypatch.setattr("distill.serve.patience.GONE_S", 0.1)
    prices, good = [random.randrange(1, 50) for _ in range(2)], teacher.reply
    teacher.reply = lambda body: good(body) if len(teacher.asked) <= 40 else 503
    old = endpoint_settings(teacher, count=30, usd_per_million_input=7, usd_per_million_output=7)
    with pytest.raises(InputError, match="finished answers are kept"):
        generate(old, tmp_path / "t")
    new = endpoint_settings(teacher, count=30, usd_per_million_input=prices[0], usd_per_million_output=prices[1])
    with pytest.raises(InputError, match=r"other settings \(.*usd_per_million"):
        generate(new, tmp_path / "t")
    with Journal(tmp_path / "t" / "journal.jsonl") as journal:
        kept = len(journal)
    before, teacher.reply = teacher.requests, good
    (tmp_path / "t" / "recipe.json").unlink()
    generate(new, tmp_path / "t")
    assert kept >= 20 and teacher.requests - before == 60 - kept
    for pair in read_pairs(tmp_path / "t"):
        for trace in (pair.reasoning, pair.ift):
            output = trace.reasoning_tokens + trace.answer_tokens
            assert trace.cost_usd == pytest.approx((prices[0] * 10 + prices[1] * output) / 1e6)


@pytest.mark.parametrize("bad", ["sk-sec\nret", "sk-secret\u200b", "sk-se cret"])
def test_a_key_that_cannot_be_sent_is_named_by_its_place(tmp_path, teacher, monkeypatch, bad):
    monkeypatch.setenv("MY_KEY", bad)
    with pytest.raises(InputError, match="environment variable MY_KEY: expected printable ASCII") as caught:
        generate(endpoint_settings(teacher, api_key_env="MY_KEY"), tmp_path / "t")
    assert "sk-" not in str(caught.value) and teacher.requests == 0
    teacher.key = "sk-secret"
    monkeypatch.setenv("MY_KEY", " sk-secret\n")
    assert generate(endpoint_settings(teacher, count=3, api_key_env="MY_KEY"), tmp_path / "t").summary["pairs"] == 3


def test_a_disk_that_fills_is_one_clear_line(tmp_path):
    """A limit on file sizes stands in for the full disk: it fails in the journal or in the Parquet file."""
    settings = GenerateSettings(tasks={"add": 3000})
    full = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, BYTES)); " + RUN
    )
    generate(settings, tmp_path / "whole")
    size = (tmp_path / "whole" / "pairs.parquet").stat().st_size
    for limit, writing in ((size // 2, "journal.jsonl: cannot be written"), (10**9, "")):
        child = subprocess.run(
            [sys.executable, "-c", full.replace("BYTES", str(limit)), settings.model_dump_json(), str(tmp_path / "t")],
            env=child_environment(1),
            capture_output=True,
            text=True,
        )
        assert (child.returncode == 0) == (not writing)
        if writing:
            message = child.stderr.strip().splitlines()[-1]
            assert message.startswith("distill.errors.InputError") and writing in message
    assert data_files(tmp_path / "t") == data_files(tmp_path / "whole")


def test_wrong_settings_name_the_field():
    for values, message in (
        ({"tasks": {}}, "no questions: give --tasks"),
        ({"tasks": {"add": 1}, "teacher": "solvr"}, r"field teacher: .* found 'solvr'"),
        ({"tasks": {"add": 1}, "teacher": {"url": "solvr", "model": "m"}}, r"field teacher\.url: "),
        ({"tasks": {"add": 1}, "teacher": {"url": "http://h/v1"}}, r"field teacher\.model: "),
    ):
        with pytest.raises(InputError, match=message):
            validate(GenerateSettings, values, source="here")


def test_unusable_requests(tmp_path):
    for tasks, message in (
        ({"ad": 3}, "unknown task 'ad'"),
        ({"max": 6000}, "only 5040"),
        ({"max": 5000}, "train problems asked for, but there are only 40"),
    ):
        with pytest.raises(InputError, match=message):
            generate(GenerateSettings(tasks=tasks), tmp_path / "t")
        assert not (tmp_path / "t").exists()
