"""Teachers behind servers that fail, and ones that are started for the purpose: every question gets one answer."""

import asyncio
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from distill.artifact import content_key
from distill.errors import InputError
from distill.journal import Journal
from distill.process import child_environment
from distill.serve import ChatCompletion, Endpoint, patience
from distill.settings import validate
from distill.tasks import get_task
from distill.tasks.problem import Problem
from distill.traces.asked import asked_questions, open_tasks
from distill.traces.asking import answer_from_json, request_key
from distill.traces.faults import FAULTS
from distill.traces.generate import generate, generate_recipe
from distill.traces.merge import merge
from distill.traces.settings import GenerateSettings
from distill.traces.store import Rejected, read_pairs, read_rejected
from distill.traces.teachers import chat as chat_teacher
from distill.traces.teachers import vllm as vllm_teacher
from distill.traces.teachers.endpoint import EndpointTeacher
from distill.traces.teachers.read_reply import read_reply
from distill.traces.teachers.settings import EndpointSettings, VllmSettings
from distill.traces.teachers.teacher import Question
from distill.traces.teachers.vllm import VllmTeacher

_spec = importlib.util.spec_from_file_location("faulty_proxy", Path(__file__).with_name("faulty_proxy.py"))
faults = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(faults)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("distill.serve.client.BACKOFF_S", 0.002)


@pytest.fixture
def proxy(teacher):
    """A faulty proxy in front of the loopback teacher, which answers at once."""
    with faults.faulty_proxy(teacher.url.removesuffix("/v1")) as proxy:
        yield proxy


def endpoint_teacher(url, seed=0, gold_shown=False, **changes):
    settings = EndpointSettings(**{"url": url, "model": "fake", "concurrency": 4} | changes)
    return EndpointTeacher(settings, seed, gold_shown=gold_shown)


def questions_of(task, count, modes=("reasoning", "ift")):
    problems = get_task(task).problems("train", count, random.randrange(1000))
    return [Question(problem, mode) for problem in problems for mode in modes]


def ask(teacher, questions, on_answer=None):
    """{question: answer}; every one of them exactly once."""
    answers = {}

    def keep(question, answer):
        assert question not in answers
        answers[question] = answer
        if on_answer:
            on_answer(question, answer)

    asyncio.run(asyncio.wait_for(teacher.answer(iter(questions), keep), 120))
    assert set(answers) == set(questions)
    return answers


def test_a_proxy_that_spoils_a_third_of_all_tries_costs_no_question(trained_server, trained_student, monkeypatch):
    """A real server behind it: each question is answered once, and its tokens are those that the server generated."""
    from transformers import AutoTokenizer

    endpoint = trained_server.endpoint
    monkeypatch.setenv("TEACHER_KEY", endpoint.api_key)
    questions = questions_of("max", 40)
    spoilt = Counter()
    abandoned = []  # what a reply leaves in its connection is read as the next one's, while that is still on its way

    def fault(n, body):
        text = json.dumps(body)
        if random.random() < 0.35 and spoilt[text] < 5:
            chosen = random.choice(faults.PASSING)
            abandoned.extend([n] if chosen is faults.too_short_a_length else [])
            spoilt[text] += chosen not in faults.HARMLESS_IN_A_STREAM
            return chosen
        return random.choice((faults.passed_on, faults.slowly_streamed))

    with faults.faulty_proxy(endpoint.root_url) as proxy:
        proxy.fault = fault
        teacher = endpoint_teacher(
            proxy.url, model=endpoint.model, api_key_env="TEACHER_KEY", concurrency=8, max_tokens=100
        )
        answers = ask(teacher, questions)
        assert proxy.most_in_flight <= 8 + len(abandoned)
    assert spoilt.total() > 5
    assert teacher.retries == len(proxy.requests) - 80 >= spoilt.total()
    assert not [answer.detail for answer in answers.values() if answer.fault == "failed"]
    tokenizer = AutoTokenizer.from_pretrained(trained_student)
    think_end = tokenizer.convert_tokens_to_ids("</think>")
    generated = {}
    for body, status, content in proxy.replies:
        assert status == 200
        assert body["stream"] and content.startswith(b"data: ")
        key = body["messages"][-1]["content"], body["chat_template_kwargs"]["enable_thinking"]
        generated.setdefault(key, []).append(faults.token_ids(content))
    counted = 0
    for question, answer in answers.items():
        trace, found = answer.trace, generated[question.problem.prompt, question.mode == "reasoning"]
        if answer.fault == "truncated":
            continue
        ids = next(ids for ids in found if len(ids) == answer.output_tokens)
        thinking = ids.index(think_end) + 1
        assert (trace.reasoning_tokens, trace.answer_tokens) == (thinking, len(ids) - thinking)
        assert len(tokenizer(trace.answer)["input_ids"]) + 1 == trace.answer_tokens  # and the end of turn
        assert tokenizer.decode(ids[:-1]) == f"<think>{trace.reasoning}</think>{trace.answer}"
        assert answer.fault == (None if question.mode == "reasoning" else "reasoning_in_ift")
        counted += 1
    assert counted


def test_two_shards_killed_before_a_faulty_proxy_pay_once(trained_server, tmp_path, monkeypatch, rng):
    """Two processes of the command, a real server behind the proxy, and SIGKILL for each while it has requests in flight.
    Run again and merged, every question is there; nothing is asked again but what was in flight or spoilt."""
    endpoint, n, samples, width = trained_server.endpoint, 40, 2, 4
    monkeypatch.setenv("OPENAI_API_KEY", endpoint.api_key)
    asked, spoilt, children = Counter(), Counter(), {}
    spoiling = [one for one in faults.PASSING if one not in faults.HARMLESS_IN_A_STREAM]
    seed = int(rng.integers(1000))

    def fault(n, body):
        text = json.dumps(body)
        asked[text] += 1
        number = shard_of[body["messages"][-1]["content"]]
        seen[number] += 1
        if seen[number] == kill_at[number]:
            os.kill(children[number].pid, signal.SIGKILL)
        if random.random() < 0.2 and spoilt[text] < 2:
            spoilt[text] += 1
            return random.choice(spoiling)
        return random.choice((faults.passed_on, faults.slowly_streamed))

    with faults.faulty_proxy(endpoint.root_url) as proxy:
        proxy.fault = fault
        who = EndpointSettings(url=proxy.url, model=endpoint.model, concurrency=width, max_tokens=100)
        settings = GenerateSettings(tasks={"max": n}, samples=samples, gold="answer", seed=seed, teacher=who)
        flags = f"--tasks max={n} --samples {samples} --gold answer --seed {seed} --teacher {proxy.url}"
        flags += f" --model {endpoint.model} --concurrency {width} --max-tokens 100"
        command = [sys.executable, "-m", "distill", "traces", "generate", *flags.split()]
        tasks = open_tasks(settings)
        parts = {i: asked_questions(settings.model_copy(update={"shard": (i, 2)}), tasks).problems for i in (1, 2)}
        shard_of = {problem.prompt: i for i, problems in parts.items() for problem in problems}
        seen, kill_at = Counter(), {i: int(rng.integers(2, samples * len(parts[i]) + 1)) for i in parts}

        def start(number):
            return subprocess.Popen(
                [*command, "--shard", f"{number}/2", "--out", str(tmp_path / str(number))],
                env=child_environment(1),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )

        children |= {i: start(i) for i in parts}
        kept = {}
        for i, child in children.items():
            child.communicate(timeout=60)
            assert child.returncode == -signal.SIGKILL
            with Journal(tmp_path / str(i) / "journal.jsonl") as journal:
                kept |= {key: journal.get(key) for key in journal}
        again = [start(i) for i in parts]
        said = [child.communicate(timeout=60)[1] for child in again]
        assert [child.returncode for child in again] == [0, 0], said
        made = merge([tmp_path / str(i) for i in parts], tmp_path / "t")
        teacher = EndpointTeacher(who, seed)
    assert made.key == content_key("traces", generate_recipe(settings))
    rows = {(row.place, row.sample): row for row in (*read_pairs(tmp_path / "t"), *read_rejected(tmp_path / "t"))}
    assert set(rows) == {(place, sample) for place in range(n) for sample in range(samples)}
    assert all(row.reason in FAULTS and row.detail for row in rows.values() if isinstance(row, Rejected))
    assert made.summary["pairs"] and len(asked) == n * samples
    assert sum(asked.values()) <= len(asked) + spoilt.total() + 2 * width
    assert max(asked[text] - spoilt[text] for text in asked) <= 2  # of a shard that was killed once
    for row in rows.values():
        key = request_key(teacher, Question(row.problem, "reasoning", row.sample))
        if key in kept:
            answer = answer_from_json(kept.pop(key), "reasoning").trace
            assert replace(row.reasoning, verified=None, verdict=None, cost_usd=None) == answer
    assert not kept


def test_an_opening_tag_in_the_field_of_the_reasoning_is_no_part_of_it():
    """vLLM's deepseek_r1 parser streams it when it comes with the token after it, and never otherwise."""
    reply = ChatCompletion("17", "\nlet me <b>see</b>\n", "stop", token_ids=[1, 9, 9, 2, 9, 3])
    about = {"teacher": "m", "sampling": {}, "seed": 0}
    plain = read_reply(reply, "reasoning", (1, 2), about)
    assert plain.fault is None and plain.trace.reasoning == "let me <b>see</b>"
    assert read_reply(replace(reply, reasoning="<think>" + reply.reasoning), "reasoning", (1, 2), about) == plain
    for odd in ("so <think> so", "<think><think>so", "so</think>"):
        assert read_reply(replace(reply, reasoning=odd), "reasoning", (1, 2), about).fault == "stray_tag"


def test_a_streamed_reply_changes_no_byte(tmp_path, proxy, teacher):
    """The same replies, whole, streamed and in pieces: the same set, of the same key; and no setting says which."""
    good = teacher.reply

    def reply(body):  # reasoning in a field of its own, too, and answers that are cut off
        choice = good(body)
        kind = int.from_bytes(body["messages"][-1]["content"].encode()) % 5
        if kind == 0:
            reasoning, _, answer = choice["message"]["content"].rpartition("</think>")
            field = {"reasoning": reasoning.removeprefix("<think>") or None}
            choice["message"] = field | {"content": answer + " é\u2028🙂"}
        return choice | ({"finish_reason": "length"} if kind == 1 else {})

    teacher.reply = reply
    sets = []
    for fault in (faults.passed_on, faults.streamed, faults.slowly_streamed):
        proxy.fault = lambda n, body: fault  # noqa: B023
        settings = GenerateSettings(tasks={"add": 30}, teacher=EndpointSettings(url=proxy.url, model="fake"))
        out = tmp_path / fault.__name__
        generate(settings, out)
        sets.append({path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"})
    assert sets[0] == sets[1] == sets[2] and {"pairs.parquet", "rejected.parquet"} <= set(sets[0])
    assert all(body["stream"] for body in proxy.requests) and len(proxy.requests) == 3 * 60


def test_lasting_faults_are_labelled_and_stop_nothing(proxy, monkeypatch):
    monkeypatch.setattr(chat_teacher, "chat_stream", partial(chat_teacher.chat_stream, retries=2))
    monkeypatch.setattr("distill.serve.client.RETRY_AFTER_LIMIT_S", 0.05)
    monkeypatch.setattr("distill.serve.client.SILENCE_S", 0.7)
    lasting = {
        faults.dropped: ("failed", "disconnected"),
        faults.half: ("failed", "peer closed"),
        faults.too_long_a_length: ("failed", "peer closed"),
        faults.too_short_a_length: ("failed", "malformed reply: expected JSON|RemoteProtocolError"),
        faults.malformed: ("failed", "malformed reply: expected JSON"),
        faults.not_utf8: ("failed", "malformed reply: expected JSON"),
        faults.no_choices: ("failed", "expected one choice"),
        faults.busy: ("failed", "HTTP 429: too many"),
        faults.busy_for_a_second: ("failed", "HTTP 429: too many"),
        faults.overloaded: ("failed", "HTTP 503: <html>"),
        faults.broken: ("failed", "HTTP 500: oops"),
        faults.dripping: ("failed", "no whole answer within 1.5 s"),
        faults.endless: ("failed", "a reply of more than"),
        faults.half_a_stream: ("failed", "without a finish reason"),
        faults.an_error_in_the_stream: ("failed", "the server failed: worker lost"),
        faults.silent_in_the_stream: ("failed", "silent for 0.7 s within its reply"),
        faults.streamed: (None, ""),
        faults.bad_request: ("failed", "HTTP 400: too long"),
        faults.refused: ("refused", "I would rather not"),
        faults.filtered: ("refused", "content_filter"),
        faults.not_read: ("refused", "HTTP 400: filtered"),
        faults.passed_on: (None, ""),
    }
    problems = get_task("add").problems("train", 2 * len(lasting), random.randrange(1000))
    fate = {problem.prompt: fault for problem, fault in zip(problems, [*lasting] * 2, strict=True)}
    proxy.fault = lambda n, body: fate.get(body["messages"][-1]["content"], faults.passed_on)
    questions = [Question(problem, mode) for problem in problems for mode in ("reasoning", "ift")]
    random.shuffle(questions)
    answers = ask(endpoint_teacher(proxy.url, concurrency=16, timeout_s=1.5, max_tokens=512), questions)
    for question, answer in answers.items():
        label, detail = lasting[fate[question.problem.prompt]]
        assert answer.fault == label, (fate[question.problem.prompt], answer)
        assert any(part in answer.detail for part in detail.split("|")), (fate[question.problem.prompt], answer.detail)
        assert len(answer.detail) <= 300 and "\n" not in answer.detail
    asked = Counter(body["messages"][-1]["content"] for body in proxy.requests)
    for prompt, fault in fate.items():
        if fault in (faults.bad_request, faults.refused, faults.filtered, faults.not_read, faults.endless):
            # Once in each mode: another try would say the same. But the rest of too long a reply may stand before it.
            assert asked[prompt] < 2 * 3


def test_questions_that_nobody_can_answer_do_not_end_the_run(proxy, monkeypatch):
    """Nothing else is left to ask, as when a run is repeated for what failed before. An easy question shows who is to
    blame."""
    monkeypatch.setattr(patience, "GONE_S", 0.05)
    questions = questions_of("add", 25)
    hard = {question.problem.prompt for question in questions}
    proxy.fault = lambda n, body: faults.broken if body["messages"][-1]["content"] in hard else faults.passed_on
    monkeypatch.setattr(chat_teacher, "chat_stream", partial(chat_teacher.chat_stream, retries=3))
    answers = ask(endpoint_teacher(proxy.url), questions)
    assert {(answer.fault, answer.detail) for answer in answers.values()} == {("failed", "HTTP 500: oops")}
    easy = [body for body in proxy.requests if body["messages"][-1]["content"] not in hard]
    assert easy and len(easy) < len(questions) and all(body["max_tokens"] == 1 for body in easy)


@pytest.mark.parametrize("fault", [faults.overloaded, faults.dropped, faults.busy])
def test_a_server_that_comes_back_costs_no_question_and_one_that_does_not_ends_the_run(proxy, monkeypatch, fault):
    monkeypatch.setattr(patience, "PROBE_S", 0.05)
    back = time.monotonic() + 1.5
    proxy.fault = lambda n, body: fault if n > 20 and time.monotonic() < back else faults.passed_on
    teacher = endpoint_teacher(proxy.url, concurrency=12)
    answers = ask(teacher, questions_of("add", 40))
    assert not [answer for answer in answers.values() if answer.fault] and teacher.retries > 20
    monkeypatch.setattr(patience, "GONE_S", 0.3)
    proxy.fault, proxy.requests = lambda n, body: fault if n > 20 else faults.passed_on, []
    answered = []
    with pytest.raises(InputError, match=r"requests in a row failed \(.+\); finished answers are kept"):
        ask(endpoint_teacher(proxy.url), questions_of("add", 40), lambda *one: answered.append(one))
    assert answered and not [answer for _, answer in answered if answer.fault]


def test_a_key_that_is_revoked_ends_the_run_and_is_not_shown(teacher, monkeypatch):
    teacher.key = "sk-0123456789abcdef"
    monkeypatch.setenv("MY_KEY", teacher.key)

    def revoke(question, answer):
        if len(teacher.bodies) > 10:
            teacher.key = "another"

    asked = endpoint_teacher(teacher.url, api_key_env="MY_KEY")
    with pytest.raises(InputError, match=r"requests in a row failed \(HTTP 401: bad key\)") as caught:
        ask(asked, questions_of("add", 60), revoke)
    assert "sk-" not in str(caught.value) + repr(asked.identity) + repr(asked.endpoints)


def test_a_server_says_how_long_to_wait(proxy):
    proxy.fault = lambda n, body: faults.busy_for_a_second if n == 0 else faults.passed_on
    start = time.monotonic()
    assert [answer.fault for answer in ask(endpoint_teacher(proxy.url), questions_of("add", 1)).values()] == [None] * 2
    assert time.monotonic() - start >= 1


def test_what_may_have_been_paid_for_is_not_asked_for_ever(proxy, monkeypatch):
    """A gateway that hangs up on every answer: each is generated and paid for, and comes to nothing."""
    monkeypatch.setattr(patience, "PAID_AGAIN", 30)
    monkeypatch.setattr(chat_teacher, "chat_stream", partial(chat_teacher.chat_stream, retries=4))
    proxy.fault = lambda n, body: faults.passed_on if body["max_tokens"] == 1 else faults.dropped_when_done
    answers = ask(endpoint_teacher(proxy.url), questions_of("add", 50))
    assert {answer.fault for answer in answers.values()} == {"failed"}
    easy = sum(body["max_tokens"] == 1 for body in proxy.requests)
    assert len(proxy.requests) - easy <= 100 + 30 and 0 < easy < 10


def test_questions_are_drawn_as_there_is_room_and_modes_share_it(teacher):
    teacher.delay_s = 0.02
    drawn, answered, most, together = 0, 0, 0, set()
    width = random.randrange(2, 7)

    def questions():
        nonlocal drawn, most
        for question in sorted(questions_of("add", 25), key=lambda question: question.mode, reverse=True)[:45]:
            drawn += 1
            most = max(most, drawn - answered)
            yield question

    def on_answer(question, answer):
        nonlocal answered
        answered += 1
        together.add((question.mode, teacher.in_flight))

    asyncio.run(endpoint_teacher(teacher.url, concurrency=width).answer(questions(), on_answer))
    assert answered == drawn == 45 and most == width == teacher.most_in_flight
    thinking = [body["chat_template_kwargs"]["enable_thinking"] for body in teacher.bodies]
    change = thinking.index(False)
    assert change and 25 - width < change <= 25 + width and True in thinking[:change]


def test_who_gives_the_questions_can_fail(teacher):
    def questions():
        yield from questions_of("add", 3)
        raise InputError("no more")

    with pytest.raises(InputError, match=r"^no more$"):
        asyncio.run(endpoint_teacher(teacher.url).answer(questions(), lambda *_: None))
    asyncio.run(endpoint_teacher("http://127.0.0.1:9/v1").ask({}, iter(()), lambda *_: None))  # nothing to ask


SWITCHES = [
    ({}, {"enable_thinking": True}, {"enable_thinking": False}, None),
    ({"thinking": "template:thinking"}, {"thinking": True}, {"thinking": False}, None),
    (
        {"template_kwargs": {"reasoning": {"effort": "high"}, "ift": {"effort": "low", "budget": 0}}},
        *({"effort": "high"}, {"effort": "low", "budget": 0}, None),
    ),
    ({"thinking": "system"}, None, None, chat_teacher.SYSTEM_PROMPTS),
    (
        {"thinking": "system", "system_prompts": {"reasoning": "Think {x}.", "ift": "Don't."}},
        *(None, None, {"reasoning": "Think {x}.", "ift": "Don't."}),
    ),
]


@pytest.mark.parametrize(("changes", "on", "off", "system"), SWITCHES)
def test_thinking_is_switched_as_the_teacher_needs_it(teacher, changes, on, off, system):
    asked = endpoint_teacher(teacher.url, seed=7, **changes)
    problem = get_task("add").problems("train", 1, random.randrange(1000))[0]
    questions = [Question(problem, mode, sample) for mode in ("reasoning", "ift") for sample in range(3)]
    ask(asked, questions)
    seen = {}
    for question in questions:
        rendered = asked.render(question)
        assert rendered["chat_template_kwargs"] == (on if question.mode == "reasoning" else off)
        expected = [{"role": "system", "content": system[question.mode]}] if system else []
        assert rendered["messages"] == [*expected, {"role": "user", "content": problem.prompt}]
        assert rendered["seed"] == 7 + question.sample
        (body,) = [body for body in teacher.bodies if all(body.get(name) == value for name, value in rendered.items())]
        seen[json.dumps(rendered)] = {k: v for k, v in body.items() if k not in rendered}
    assert len(seen) == 6 and len({json.dumps(rest) for rest in seen.values()}) == 1  # all else is the same


def test_two_models_share_a_stream_and_no_key(teacher, proxy, monkeypatch):
    """One reasons, one answers directly, at two servers; the second is not told the key of the first."""
    teacher.reply = lambda body: {
        "message": {"content": "<think>so</think>1" if body["model"] == "fake" else "<think>\n\n</think>\n\n1"},
        "finish_reason": "stop",
    }
    monkeypatch.setenv("FIRST_KEY", "sk-first")
    keys = {}
    proxy_fault = proxy.fault

    def fault(n, body):
        keys.setdefault(body["model"], n)
        return proxy_fault(n, body)

    proxy.fault = fault
    monkeypatch.setattr(chat_teacher, "think_ids", lambda endpoint: (1, 2))
    changes = {"thinking": "models", "ift_model": "small", "ift_url": proxy.url, "api_key_env": "FIRST_KEY"}
    asked = endpoint_teacher(teacher.url, **changes)
    assert asked.endpoints["reasoning"].api_key == "sk-first" and asked.endpoints["ift"].api_key is None
    monkeypatch.setattr("distill.traces.teachers.endpoint.check_endpoint", lambda endpoint: None)
    answers = ask(asked, questions_of("add", 12))
    assert set(keys) == {"small"} and {body["model"] for body in teacher.bodies} == {"fake", "small"}
    for question, answer in answers.items():
        assert answer.fault is None and answer.trace.answer == "1"
        assert answer.trace.teacher == ("fake" if question.mode == "reasoning" else "small")
        assert answer.trace.reasoning == ("so" if question.mode == "reasoning" else "")
    assert asked.identity["ift"]["name"] == "small" and "sk-" not in json.dumps(asked.identity)
    other = endpoint_teacher(teacher.url, **changes | {"ift_revision": "2"})
    assert other.identity != asked.identity
    same_server = endpoint_teacher(teacher.url, thinking="models", ift_model="small", api_key_env="FIRST_KEY")
    assert same_server.endpoints["ift"] == Endpoint(teacher.url, "small", "sk-first")


def test_gold_is_shown_to_who_reasons():
    problem = Problem("own", "{prompt} {0} %s", "17 {gold}", "open")
    shown, plain = endpoint_teacher("http://h/v1", gold_shown=True), endpoint_teacher("http://h/v1")
    texts = {
        (name, mode): one.render(Question(problem, mode))["messages"][-1]["content"]
        for name, one in (("shown", shown), ("plain", plain))
        for mode in ("reasoning", "ift")
    }
    text = texts.pop(("shown", "reasoning"))
    assert text.startswith(problem.prompt) and text.endswith(problem.gold) and chat_teacher.GOLD_SHOWN in text
    assert set(texts.values()) == {problem.prompt}
    assert shown.identity != plain.identity and chat_teacher.GOLD_SHOWN in shown.identity.values()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"url": "http://h/v1", "model": "m", "thinking": "models"}, "ift_model or ift_url are given together"),
        ({"url": "http://h/v1", "model": "m", "ift_model": "n"}, "ift_model or ift_url are given together"),
        ({"url": "http://h/v1", "model": "m", "ift_revision": "n"}, "ift_revision needs ift_model or ift_url"),
        ({"url": "http://h/v1", "model": "m", "thinking": "template:a b"}, "pattern"),
        ({"url": "http://h/v1", "model": "m", "thinking": "template:a", "template_kwargs": {}}, "expected one entry"),
        ({"url": "http://h/v1", "model": "m", "system_prompts": {"ift": "x"}}, "for each of reasoning and ift"),
        ({"url": "http://h/v1", "model": "m", "vllm": "m"}, "url"),
        ({"vllm": "m", "thinking": "models"}, "ift_vllm are given together"),
        ({"vllm": "m", "ift_server": {}}, "ift_server says how"),
        ({"vllm": "m", "thinking": "models", "ift_vllm": "n", "top_k": 3}, "cannot be distilled into one"),
        ({"vllm": "m", "server": {"arguments": ["--trust-remote-code"]}}, "not allowed"),
        ("vllm:", "at least 1 character"),
        ("vlm:x", "found 'vlm:x'"),
    ],
)
def test_wrong_settings_are_one_line(values, message):
    with pytest.raises(InputError, match=message) as caught:
        validate(GenerateSettings, {"tasks": {"add": 1}, "teacher": values}, source="here")
    assert "\n" not in str(caught.value)


def weights(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    return folder


def test_other_weights_are_another_teacher_and_more_devices_are_not(tmp_path):
    def identity(folder, arguments=(), **server):
        settings = VllmSettings(vllm=str(folder), server={"arguments": arguments, **server})
        return VllmTeacher(settings, 0, tmp_path / "t").identity

    (tmp_path / "elsewhere").mkdir()
    one = identity(weights(tmp_path / "m", b"one"))
    assert identity(weights(tmp_path / "elsewhere" / "m", b"one")) == one
    assert identity(weights(tmp_path / "other", b"two")) != one
    folder = tmp_path / "m"
    assert identity(folder, ("--tensor-parallel-size", "2", "--data_parallel_size=4"), threads=3, port=9) == one
    for changes in ({"arguments": ("--quantization", "fp8")}, {"dtype": "float32"}, {"max_model_len": 9}):
        assert identity(folder, **changes) != one
    for wrong, message in ((tmp_path / "elsewhere", "has no config.json"), (tmp_path / "no" / "a" / "b", "neither")):
        with pytest.raises(InputError, match=message):
            identity(wrong)


class StubServer:
    """Stands in for serve.Server: no process, but it can die."""

    started, stopped, dead, fail = [], [], False, None

    def __init__(self, model, settings, log):
        self.model, self.settings, self.log = model, settings, log

    def __enter__(self):
        self.log.write_text("log\n")
        StubServer.started.append(self.model)
        time.sleep(0.05)
        if StubServer.fail:
            raise StubServer.fail
        self.endpoint = Endpoint(StubServer.url, "fake")
        return self

    def check(self):
        if StubServer.dead:
            raise InputError("vLLM ended with exit code 1")

    def stop(self):
        StubServer.stopped.append(self.model)


@pytest.fixture
def stub(teacher, monkeypatch):
    monkeypatch.setattr(vllm_teacher, "Server", StubServer)
    monkeypatch.setattr(vllm_teacher, "WATCH_S", 0.01)
    for name, value in (("started", []), ("stopped", []), ("dead", False), ("fail", None), ("url", teacher.url)):
        monkeypatch.setattr(StubServer, name, value, raising=False)
    return StubServer


def test_a_server_is_started_once_it_is_needed_and_always_stopped(tmp_path, teacher, stub):
    one, two = weights(tmp_path / "one", b"1"), weights(tmp_path / "two", b"2")
    logs = [tmp_path / "t.vllm.log", tmp_path / "t.vllm-ift.log"]
    settings = VllmSettings(vllm=str(one), thinking="models", ift_vllm=str(two), max_tokens=50)
    asked = VllmTeacher(settings, 0, tmp_path / "t")
    asyncio.run(asked.answer(iter(()), lambda *_: None))
    assert not stub.started
    ask(asked, questions_of("add", 3))
    assert stub.started == [str(one), str(two)] and set(stub.stopped) == {str(one), str(two)}
    assert not any("stream" in body for body in teacher.bodies)  # nothing stands between, and it costs throughput
    assert not any(log.exists() for log in logs)
    stub.stopped.clear()
    stub.fail = InputError("out of memory")
    with pytest.raises(InputError, match="out of memory"):
        ask(asked, questions_of("add", 3))
    assert set(stub.stopped) == {str(one)} and logs[0].exists()


def test_a_server_that_dies_ends_the_run_at_once(tmp_path, teacher, stub):
    teacher.delay_s = 0.01
    asked = VllmTeacher(VllmSettings(vllm=str(weights(tmp_path / "m", b"")), concurrency=2), 0, tmp_path / "t")
    answered = []

    def die(question, answer):
        answered.append(question)
        teacher.reply, stub.dead = (lambda body: 503), True

    start = time.monotonic()
    with pytest.raises(InputError, match="vLLM ended with exit code 1"):
        ask(asked, questions_of("add", 200), die)
    assert answered and time.monotonic() - start < 20 and stub.stopped and (tmp_path / "t.vllm.log").exists()


def test_an_interrupt_while_it_starts_stops_it(tmp_path, stub):
    asked = VllmTeacher(VllmSettings(vllm=str(weights(tmp_path / "m", b""))), 0, tmp_path / "t")
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    stub.fail = None

    class Slow(StubServer):
        def __enter__(self):
            StubServer.started.append(self.model)
            while not StubServer.stopped:
                time.sleep(0.01)
            raise InputError("was stopped")

    vllm_teacher.Server, before = Slow, vllm_teacher.Server
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(asked.answer(iter(questions_of("add", 1)), lambda *_: None))
    finally:
        vllm_teacher.Server = before
    assert stub.started and stub.stopped


RUN = (
    "import sys; from pathlib import Path; from distill.traces.generate import generate; "
    "from distill.traces.settings import GenerateSettings; "
    "generate(GenerateSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
)


def serving_processes(folder: Path) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in file.read_bytes() and b"api_server" in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:
            pass
    return found


def test_a_real_vllm_is_started_for_the_purpose_and_leaves_nothing(tmp_path, trained_student, monkeypatch):
    """It has a reasoning parser: reasoning comes in a field of its own, streamed or not, and is read as between tags."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    from transformers import AutoTokenizer

    replies, send = [], chat_teacher.chat_stream

    async def also_streamed(requests, on_result, **how):
        def on_reply(request, reply):
            replies.append((request.about, reply))

        requests = list(requests)
        await send(requests, on_reply, **how | {"stream": True})
        await send(requests, lambda request, reply: (on_reply(request, reply), on_result(request, reply)), **how)

    monkeypatch.setattr(chat_teacher, "chat_stream", also_streamed)
    folder = tmp_path / "model"  # a path of its own: other tests serve the student too
    folder.symlink_to(trained_student)
    server = {"dtype": "float32", "max_model_len": 256, "kv_cache_gib": 1, "threads": 1}
    server |= {"arguments": ["--reasoning-parser", "deepseek_r1"]}
    how = {"vllm": str(folder), "server": server, "max_tokens": 100, "temperature": 0.0}
    settings = GenerateSettings(tasks={"max": 30}, split="validation", gold="answer", teacher=how)
    out = tmp_path / "t"
    child = subprocess.Popen(
        [sys.executable, "-c", RUN, settings.model_dump_json(), str(out)], env=child_environment(1)
    )
    deadline = time.monotonic() + 60
    while not serving_processes(folder) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert serving_processes(folder) and child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    while serving_processes(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not serving_processes(folder)
    made = generate(settings, out)
    assert not serving_processes(folder) and not (tmp_path / "t.vllm.log").exists()
    pairs = read_pairs(out)
    assert len(pairs) == made.summary["pairs"] > 0
    for pair in pairs:
        assert pair.reasoning.teacher == trained_student.name and pair.reasoning.reasoning
        assert pair.reasoning.reasoning_tokens > 2 and pair.reasoning.answer_tokens >= 2
    assert generate(settings, out).key == made.key  # and nothing is started for a set that is there
    tokenizer = AutoTokenizer.from_pretrained(trained_student)
    tags = tuple(tokenizer.convert_tokens_to_ids(["<think>", "</think>"]))
    ended = [(question, reply) for question, reply in replies if reply.finish_reason == "stop"]
    assert len(replies) == 60 and len(ended) >= 2 * len(pairs)
    for question, reply in ended:
        answer = read_reply(reply, "reasoning", tags, {"teacher": "m", "sampling": {}, "seed": 0})
        ids, thinking = reply.token_ids, reply.token_ids.index(tags[1]) + 1
        assert reply.reasoning and "think>" not in reply.content and answer.fault is None, question
        assert f"<think>{answer.trace.reasoning}</think>{answer.trace.answer}" == tokenizer.decode(ids[:-1])
        assert (answer.trace.reasoning_tokens, answer.trace.answer_tokens) == (thinking, len(ids) - thinking)
