"""What is asked, in which order and how far: samples, gold answers, files of questions, budgets, teachers that misbehave."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from distill.cli import app
from distill.errors import InputError
from distill.journal import Journal
from distill.process import child_environment
from distill.settings import validate
from distill.tasks import get_task
from distill.tasks.problem import Problem
from distill.tasks.questions import QuestionFile
from distill.traces.asking import request_key
from distill.traces.faults import fault_of
from distill.traces.flags import from_flags
from distill.traces.generate import generate, generate_recipe
from distill.traces.merge import merge
from distill.traces.pairing import Answer
from distill.traces.settings import EndpointSettings, GenerateOptions, GenerateSettings
from distill.traces.store import read_pairs, read_rejected
from distill.traces.teachers.open_teacher import open_teacher
from distill.traces.teachers.teacher import Question
from distill.traces.trace import MODES, Trace


class Scripted:
    """A teacher in this process: answers are decided by `say(question)`, or by the question alone."""

    def __init__(self, say=None, batch=1):
        self.identity, self.prices, self.vocabulary = {"name": "scripted"}, {"usd": 1.0}, None
        self.asked, self.say, self.batch = [], say or self.answer_to, batch

    def render(self, question):
        return {"prompt": question.problem.prompt, "mode": question.mode, "seed": question.sample}

    def answer_to(self, question):
        text = hashlib.sha256(repr(question).encode()).hexdigest()
        thinking = question.mode == "reasoning"
        trace = Trace(question.mode, text if thinking else "", text[:4], "stop", "scripted", 10, 64 * thinking, 4)
        return Answer(trace, fault_of(trace), output_tokens=64 * thinking + 4)

    async def answer(self, questions, on_answer):
        waiting = []
        for question in questions:
            self.asked.append(question)
            waiting.append(question)
            if len(waiting) == self.batch:
                for each in reversed(waiting):  # answers come in any order
                    on_answer(each, self.say(each))
                waiting = []
        for each in waiting:
            on_answer(each, self.say(each))

    def cost_usd(self, answer):
        return None if answer.output_tokens is None else answer.output_tokens / 1000


@pytest.fixture
def scripted(monkeypatch):
    """scripted(say, batch): a Scripted teacher, which every run of the test gets from here on."""

    def use(say=None, batch=1):
        teacher = Scripted(say, batch)
        monkeypatch.setattr("distill.traces.generate.open_teacher", lambda *_: teacher)
        return teacher

    return use


def model(**changes):
    return EndpointSettings(url="http://h/v1", model="m", **changes)


def wanted(**changes):
    return GenerateSettings(**{"tasks": {"add": 12}, "teacher": model()} | changes)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_samples_are_pairs_of_their_own(tmp_path, scripted, rng):
    teacher, n = scripted(batch=int(rng.integers(1, 9))), int(rng.integers(2, 5))
    made = generate(wanted(samples=n), tmp_path / "t")
    pairs = read_pairs(tmp_path / "t")
    assert made.summary["pairs"] == 12 * n == len(pairs)
    assert [(pair.place, pair.sample) for pair in pairs] == [(i, j) for i in range(12) for j in range(n)]
    for pair in pairs:
        for mode in MODES:
            assert pair.trace(mode).answer == teacher.answer_to(Question(pair.problem, mode, pair.sample)).trace.answer
    assert len({pair.reasoning.reasoning for pair in pairs}) == 12 * n
    assert max(Counter(teacher.asked).values()) == 1 and len(teacher.asked) == 24 * n


def test_samples_of_a_server_have_seeds_of_their_own(tmp_path, teacher):
    settings = wanted(tasks={"add": 3}, samples=3, seed=7, teacher=EndpointSettings(url=teacher.url, model="fake"))
    generate(settings, tmp_path / "t")
    assert Counter(body["seed"] for body in teacher.bodies) == {7: 6, 8: 6, 9: 6}
    assert [pair.reasoning.seed for pair in read_pairs(tmp_path / "t")] == [7, 8, 9] * 3


def test_reasoning_first_and_the_longest_first(tmp_path, scripted):
    """After a trial of 20 questions in both modes. The worked solutions of `add` tell which answers are long; then the
    teacher's own reasoning does."""

    def say(question):
        digits = sum(map(int, filter(str.isdigit, question.problem.prompt)))
        trace = Trace(question.mode, "r" * (1 + digits % 7) * (question.mode == "reasoning"), "1", "stop", "scripted")
        return Answer(trace, output_tokens=1)

    teacher = scripted(say)
    generate(wanted(tasks={"add": 60}, samples=2), tmp_path / "t")
    trial, asked = teacher.asked[:40], teacher.asked[40:]
    assert len({question.problem for question in trial}) == 20 and {question.sample for question in trial} == {0}
    assert [question.mode for question in asked] == ["reasoning"] * 100 + ["ift"] * 100
    worked = [sum(map(len, get_task("add").solve(question.problem))) for question in asked[:40]]
    assert worked == sorted(worked, reverse=True) and len(set(worked)) > 1
    for stretch in (asked[40:100], asked[100:140]):  # what is known by then is the teacher's own reasoning
        own = [len(say(Question(question.problem, "reasoning")).trace.reasoning) for question in stretch]
        assert own == sorted(own, reverse=True) and len(set(own)) > 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("concurrency", [1, 7])
def test_a_teacher_that_thinks_where_it_should_not_is_found_out_early(tmp_path, teacher, mode, concurrency):
    """And the run that is begun again pays for nothing more; one usable answer is enough to go on."""
    good, fault = (
        teacher.reply,
        {"reasoning": "no reasoning in", "ift": "reasoning in the answer that should have none"},
    )

    def reply(body):
        body = body | {"chat_template_kwargs": {"enable_thinking": mode == "ift"}}
        return good(body)

    teacher.reply = reply
    settings = wanted(
        tasks={"add": 300}, teacher=EndpointSettings(url=teacher.url, model="fake", concurrency=concurrency)
    )
    message = rf"none of the first \d\d answers in mode {mode} can be used \(\d\d of them: {fault[mode]}.*--thinking"
    with pytest.raises(InputError, match=message):
        generate(settings, tmp_path / "t")
    # Beside those in flight at the end: while the last answer of the trial is on its way, others come and more are asked.
    assert 40 - 2 <= teacher.requests <= 40 + (1 if concurrency == 1 else 3 * concurrency)
    before = teacher.requests
    with pytest.raises(InputError, match=message):
        generate(settings, tmp_path / "t")
    assert teacher.requests == before
    with Journal(tmp_path / "t" / "journal.jsonl") as journal:
        key = next(key for key in journal if journal.get(key)["fault"])
        value = journal.get(key)
        journal.append(key, value | {"fault": None})
    teacher.reply = good
    assert generate(settings, tmp_path / "t").summary["pairs"] >= 300 - 20 - 3 * concurrency


@pytest.fixture
def questions(tmp_path, rng):
    """A file of 20 questions with gold answers, one repeated row and two that are malformed."""
    rows = [{"q": f"What is {n} and {i}?", "a": n + i} for i, n in enumerate(rng.integers(1, 999, 20).tolist())]
    lines = [json.dumps(row) for row in rows]
    lines[7:7] = [lines[3], '{"q": ""}']
    lines.append("{")
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file, rows


def test_a_file_of_questions_accounts_for_every_row(tmp_path, scripted, questions):
    file, rows = questions
    teacher = scripted(lambda q: replace_answer(teacher.answer_to(q), q.problem.gold if q.mode == "ift" else "no"))
    data = QuestionFile(path=file, prompt="q", answer="a", checker="number", skip_bad=True)
    made = generate(GenerateSettings(data={"mine": data}, teacher=model()), tmp_path / "t")
    assert made.summary["rows"] == 23 and made.summary["pairs"] == 20
    assert made.summary["rejected"] == {"malformed": 2, "repeated": 1}
    pairs, rejected = read_pairs(tmp_path / "t"), read_rejected(tmp_path / "t")
    assert [(p.problem.prompt, p.problem.gold) for p in pairs] == [(row["q"], str(row["a"])) for row in rows]
    assert sorted(row.place for row in [*pairs, *rejected]) == list(range(23))
    assert {row.source: row.place for row in rejected} == {f"questions.jsonl:{n}": n - 1 for n in (8, 9, 23)}
    assert all((p.reasoning.verified, p.ift.verified) == (False, True) for p in pairs)
    assert all((p.reasoning.verdict, p.ift.verdict) == ("task mine: wrong", "task mine: right") for p in pairs)


def replace_answer(answer, text):
    return Answer(Trace(**{**vars(answer.trace), "answer": text}), None, output_tokens=answer.output_tokens)


def test_a_file_and_a_task_by_flags_and_by_yaml(tmp_path, questions, teacher):
    file, _ = questions
    flags = f"--data {file} --prompt q --answer a --answer-format open --checker number --skip-bad --count 5 --seed 3"
    flags += f" --teacher {teacher.url} --model fake"
    run = CliRunner().invoke(
        app, ["traces", "generate", *flags.split(), "--tasks", "add=4", "--out", str(tmp_path / "a")]
    )
    assert run.exit_code == 0, run.output
    config = tmp_path / "g.yaml"
    config.write_text(
        f"data: {{own: {{path: {file}, prompt: q, answer: a, checker: number, skip_bad: true}}}}\n"
        f"tasks: {{add: 4, own: 5}}\nseed: 8\nteacher: {{url: '{teacher.url}', model: fake}}\n"
    )
    run = CliRunner().invoke(
        app, ["traces", "generate", "--config", str(config), "--seed", "3", "--out", str(tmp_path / "b")]
    )
    assert run.exit_code == 0, run.output
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    pairs = read_pairs(tmp_path / "a")
    assert [pair.problem.task for pair in pairs] == ["add"] * 4 + ["own"] * 5
    assert len(read_rejected(tmp_path / "a")) == 3


@pytest.mark.parametrize("gold", ["answer", "shown"])
def test_gold_answers_are_not_asked_for(tmp_path, teacher, gold, rng):
    settings = wanted(gold=gold, samples=2, teacher=EndpointSettings(url=teacher.url, model="fake"))
    wrong = {p.prompt for p in get_task("add").problems("train", 12, 0) if rng.random() < 0.5}
    good, golds = teacher.reply, {p.prompt: p.gold for p in get_task("add").problems("train", 12, 0)}

    def reply(body):
        text = body["messages"][-1]["content"]
        prompt = next(p for p in golds if text.split("\n")[0] == p)
        assert text.endswith(golds[prompt]) if gold == "shown" else text == prompt
        answer = good({**body, "messages": [{"role": "user", "content": prompt}]})
        if prompt in wrong:
            answer["message"]["content"] += "00"
        return answer

    teacher.reply = reply
    made = generate(settings, tmp_path / "t")
    assert teacher.requests == 24 and made.summary["pairs"] == 24 and made.summary["bill"]["ift"]["answers"] == 0
    for pair in read_pairs(tmp_path / "t"):
        assert (pair.ift.answer, pair.ift.teacher, pair.ift.cost_usd) == (pair.problem.gold, "gold", 0.0)
        assert pair.ift.verified and pair.reasoning.verified == (pair.problem.prompt not in wrong)


def test_no_gold_answer_is_no_pair_and_costs_nothing(tmp_path, scripted, questions):
    file, _ = questions
    teacher = scripted()
    data = QuestionFile(path=file, prompt="q", skip_bad=True)
    with pytest.raises(InputError, match=r"none of 23 questions gave a pair .*no answer: 20"):
        generate(GenerateSettings(data={"mine": data}, teacher=model(), gold="answer"), tmp_path / "t")
    settings = GenerateSettings(data={"mine": data}, tasks={"add": 2}, teacher=model(), gold="answer")
    generate(settings, tmp_path / "u")
    assert {question.problem.task for question in teacher.asked} == {"add"}
    assert {row.detail for row in read_rejected(tmp_path / "u") if row.reason == "no_answer"} == {"no gold answer"}


@pytest.mark.parametrize("limit", ["max_cost_usd", "max_total_tokens"])
def test_a_budget_stops_cleanly_and_goes_on(tmp_path, teacher, limit, rng):
    """Each run spends what it may, at most by what is in flight more; in the end every question was asked once."""
    prices = {"usd_per_million_input": 1.0, "usd_per_million_output": 1.0}  # so that USD are tokens
    who = EndpointSettings(url=teacher.url, model="fake", concurrency=3, **prices)
    settings, out = wanted(tasks={"add": 30}, teacher=who), tmp_path / "t"
    generate(settings, tmp_path / "whole")
    bill = json.loads((tmp_path / "whole" / "manifest.json").read_text())["summary"]["bill"]
    total = sum(sums["prompt_tokens"] + sums["output_tokens"] for sums in bill.values())
    before = teacher.requests
    spent = 0
    for share in sorted(rng.uniform(0.1, 0.9, 3)):
        tokens = int(share * total)
        options = GenerateOptions(**{limit: tokens / 1e6 if limit == "max_cost_usd" else tokens})
        with pytest.raises(InputError, match=r"stopped at --max-.* of 60 answers.* with a higher limit .* goes on"):
            generate(settings, out, options)
        with Journal(out / "journal.jsonl") as journal:
            answers = [journal.get(key) for key in journal]
        spent = sum(a["trace"]["prompt_tokens"] + a["output_tokens"] for a in answers)
        assert tokens <= spent <= tokens + 3 * 100 and not (out / "manifest.json").exists()
        assert teacher.requests - before == len(answers)
    made = generate(settings, out, GenerateOptions(max_total_tokens=total + 1))
    assert made.summary["pairs"] == 30 and teacher.requests - before == 60
    assert contents(out) == contents(tmp_path / "whole")


def test_a_partial_set_is_of_whole_pairs_and_can_be_gone_on_with(tmp_path, scripted, rng):
    teacher, settings, out = scripted(), wanted(tasks={"add": 40}, samples=2), tmp_path / "t"
    generate(settings, tmp_path / "whole")
    calls, limit = len(teacher.asked), int(rng.integers(300, 4000))
    half = generate(settings, out, GenerateOptions(max_total_tokens=limit, partial=True))
    pairs, rejected = read_pairs(out), read_rejected(out)
    assert len(pairs) + len(rejected) == 80 and {row.reason for row in rejected} == {"not_asked"}
    assert sum(row.reasoning is not None for row in rejected) <= 1  # both answers of a question are asked together
    whole = {(pair.place, pair.sample): pair for pair in read_pairs(tmp_path / "whole")}
    assert all(whole[pair.place, pair.sample] == pair for pair in pairs)
    with_settings = generate(settings, tmp_path / "whole")
    assert half.key != with_settings.key
    assert generate(settings, out, GenerateOptions(max_total_tokens=limit, partial=True)).key == half.key
    with pytest.raises(InputError, match="stopped at --max-total-tokens"):
        generate(settings, out, GenerateOptions(max_total_tokens=limit + 100))
    more = generate(settings, out, GenerateOptions(max_total_tokens=limit + 200, partial=True))
    assert more.summary["pairs"] > half.summary["pairs"]
    assert generate(settings, out).key == with_settings.key and contents(out) == contents(tmp_path / "whole")
    assert len(teacher.asked) - calls == 160 and max(Counter(teacher.asked[calls:]).values()) == 1


def test_an_answer_that_was_not_asked_for_beside_one_that_failed_is_still_missing(tmp_path, scripted):
    teacher, settings = scripted(), wanted()
    generate(settings, tmp_path / "whole", GenerateOptions(partial=True))
    last = teacher.asked[-1].problem

    def say(question):
        if (question.problem, question.mode) != (last, "reasoning"):
            return teacher.answer_to(question)
        return Answer(Trace("reasoning", "", "", "error", "scripted", 10), "failed", "HTTP 500", output_tokens=5)

    teacher.say = say
    used = 11 * (10 + 68 + 10 + 4)
    made = generate(settings, tmp_path / "t", GenerateOptions(partial=True, max_total_tokens=used + 1))
    assert made.summary["rejected"] == {"failed": 1} and teacher.asked[-1].mode == "reasoning"
    teacher.say = teacher.answer_to
    made = generate(settings, tmp_path / "t")
    assert made.summary["pairs"] == 12  # it goes on
    failed = made.summary["bill"].pop("failed")
    assert (failed["answers"], failed["output_tokens"]) == (1, 5)
    there, whole = contents(tmp_path / "t"), contents(tmp_path / "whole")
    assert json.loads(whole.pop("manifest.json"))["summary"] == made.summary and there.pop("manifest.json")
    assert there == whole


def test_who_waits_for_a_partial_set_goes_on_from_it(tmp_path, scripted):
    """The second of two processes looks at the folder before the first has finished its part."""
    teacher, settings, out = scripted(), wanted(), tmp_path / "t"
    first = GenerateOptions(partial=True, max_total_tokens=300)
    started, go_on = threading.Event(), threading.Event()

    def say(question):
        started.set()
        assert go_on.wait(30)
        return teacher.answer_to(question)

    teacher.say = say
    with ThreadPoolExecutor() as pool:
        part = pool.submit(generate, settings, out, first)
        assert started.wait(30)
        whole = pool.submit(generate, settings, out)
        time.sleep(0.2)  # to come to the lock
        go_on.set()
        assert "partial" in part.result().recipe and whole.result().summary["pairs"] == 12
    assert len(teacher.asked) == len(set(teacher.asked)) == 24


def test_partial_from_a_dead_server_and_of_nothing(tmp_path, scripted):
    teacher = scripted()
    teacher.say = lambda q: dead() if len(teacher.asked) > 9 else teacher.answer_to(q)

    def dead():
        raise InputError("endpoint http://h/v1: gone")

    with pytest.raises(InputError, match="gone"):
        generate(wanted(), tmp_path / "t")
    teacher.asked.clear()
    made = generate(wanted(), tmp_path / "u", GenerateOptions(partial=True))
    assert made.summary["pairs"] == 4 and made.summary["rejected"] == {"not_asked": 8}
    teacher.say = lambda q: dead()
    with pytest.raises(InputError, match=r"no question has both answers yet .*gone"):
        generate(wanted(), tmp_path / "v", GenerateOptions(partial=True))
    assert not (tmp_path / "v").exists()


def test_ctrl_c_with_partial(tmp_path, teacher):
    teacher.delay_s = 0.02
    flags = f"--tasks add=300 --teacher {teacher.url} --model fake --concurrency 2 --partial --out {tmp_path / 't'}"
    child = subprocess.Popen(
        [sys.executable, "-m", "distill", "traces", "generate", *flags.split()],
        env=child_environment(1),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while teacher.requests < 20 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGINT)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 0 and "interrupted" in said and "Traceback" not in said
    pairs, rejected = read_pairs(tmp_path / "t"), read_rejected(tmp_path / "t")
    assert len(pairs) + len(rejected) == 300 and 5 <= len(pairs) < 150
    assert {row.reason for row in rejected} == {"not_asked"}


def test_what_failed_is_paid_for_too(tmp_path, scripted):
    """Failed answers of known cost count in this run and in the next, though they are asked again."""

    def say(question):
        return Answer(Trace(question.mode, "", "", "error", "scripted", 10), "failed", "half an answer", 990)

    teacher = scripted(say)
    options = GenerateOptions(max_total_tokens=5000, partial=True)
    for _ in range(2):
        with pytest.raises(InputError, match=r"no question has both answers yet .*stopped at --max-total-tokens 5000"):
            generate(wanted(), tmp_path / "t", options)
    assert len(teacher.asked) == 5
    teacher.say = teacher.answer_to
    with pytest.raises(InputError, match=r"--max-cost 4\.95 "):
        generate(wanted(), tmp_path / "t", GenerateOptions(max_cost_usd=4.95))
    made = generate(wanted(), tmp_path / "t")
    assert made.summary["pairs"] == 12 and len(teacher.asked) == 29
    failed = {"answers": 5, "prompt_tokens": 50, "output_tokens": 4950, "cost_usd": pytest.approx(4.95)}
    assert made.summary["bill"]["failed"] == failed and made.summary["bill"]["ift"]["answers"] == 12
    assert made.key == generate(wanted(), tmp_path / "whole").key  # what it took is no part of what it is
    assert "failed" not in json.loads((tmp_path / "whole" / "manifest.json").read_text())["summary"]["bill"]


def test_what_failed_in_shards_is_in_the_bill_of_all(tmp_path, scripted, rng):
    teacher, unlucky = scripted(), {p.prompt: int(rng.integers(1, 99)) for p in get_task("add").problems("train", 5, 0)}

    def say(question):
        if question.problem.prompt not in unlucky or question.mode == "ift":
            return teacher.answer_to(question)
        trace = Trace(question.mode, "", "", "error", "scripted", 10)
        return Answer(trace, "failed", "half an answer", unlucky[question.problem.prompt])

    teacher.say = say
    folders = [tmp_path / "1", tmp_path / "2"]
    for number, folder in enumerate(folders, start=1):
        generate(wanted(shard=(number, 2)), folder)
    bills = [merge(folders, tmp_path / "merged").summary["bill"], generate(wanted(), tmp_path / "t").summary["bill"]]
    tokens = sum(unlucky.values())
    sums = {"answers": 5, "prompt_tokens": 50, "output_tokens": tokens, "cost_usd": pytest.approx(tokens / 1000)}
    assert [bill["failed"] for bill in bills] == [sums, sums] and bills[0]["reasoning"]["answers"] == 7


def test_budgets_that_cannot_be_kept(tmp_path, scripted):
    with pytest.raises(
        InputError, match="--max-cost: the teacher's prices are not known; give --usd-per-million-input"
    ):
        generate(wanted(), tmp_path / "t", GenerateOptions(max_cost_usd=1.0))
    assert not (tmp_path / "t").exists()

    def silent(question):
        return Answer(Trace(question.mode, "x" * (question.mode == "reasoning"), "1", "stop", "scripted"))

    for limit, flag in (({"max_cost_usd": 5}, "--max-cost"), ({"max_total_tokens": 5}, "--max-total-tokens")):
        teacher = scripted(silent)
        with pytest.raises(InputError, match=f"{flag}: cannot be kept, the teacher does not say how many tokens"):
            generate(wanted(), tmp_path / flag, GenerateOptions(**limit))
        assert len(teacher.asked) == 1


CHANGES = [
    {"tasks": {"add": 13}},
    {"tasks": {"add": 12, "max": 1}},
    {"split": "test"},
    {"seed": 1},
    {"samples": 2},
    {"gold": "answer"},
    {"gold": "shown"},
    {"shard": (1, 2)},
    {"shard": (2, 2)},
    {"teacher": "solver"},
    *(
        {"teacher": model(**change)}
        for change in (
            {"revision": "r"},
            {"thinking": "system"},
            {"thinking": "template:thinking"},
            {"template_kwargs": {"reasoning": {"a": 1}, "ift": {}}},
            {"thinking": "system", "system_prompts": {"reasoning": "Think.", "ift": "Do not."}},
            {"temperature": 0.7},
            {"top_p": 0.9},
            {"max_tokens": 4095},
            {"thinking": "models", "ift_model": "other"},
            {"thinking": "models", "ift_model": "other", "ift_revision": "r"},
            {"usd_per_million_input": 1.0},
            {"usd_per_million_output": 1.0},
        )
    ),
]


def test_every_setting_that_matters_is_in_the_key():
    recipes = [json.dumps(generate_recipe(wanted(**change)), sort_keys=True) for change in ({}, *CHANGES)]
    assert len(set(recipes)) == len(recipes)
    covered = {name for change in CHANGES for name in change}
    assert set(GenerateSettings.model_fields) - covered == {"data"}
    same = ({"concurrency": 9}, {"timeout_s": 5}, {"url": "http://elsewhere/v1"}, {"api_key_env": "OTHER_KEY"})
    for change in same:
        changed = model().model_copy(update=change)
        assert json.dumps(generate_recipe(wanted(teacher=changed)), sort_keys=True) == recipes[0]
    told = {name for change in CHANGES if "teacher" in change and change["teacher"] != "solver"
            for name in change["teacher"].model_fields_set}  # fmt: skip
    told |= {name for change in same for name in change}
    # Those that need a tokenizer, or are where another server is.
    assert set(EndpointSettings.model_fields) - told == {"top_k", "tokenizer", "ift_url", "ift_api_key_env"}


def test_every_setting_of_an_answer_is_in_the_request_key(rng):
    """Another answer is never taken for this one; what cannot change an answer keeps its key."""
    problem = Problem("add", f"add {rng.integers(1000, 9999)}", "1", "open")
    keys = Counter()
    for change in ({}, *CHANGES):
        settings = wanted(**change)
        teacher = open_teacher(settings, {"add": get_task("add")}, None)
        keys[request_key(teacher, Question(problem, "reasoning"))] += 1
    unchanged = {"tasks", "split", "samples", "shard"}  # which questions, not which answer; and gold that only replaces
    alike = 1 + sum(bool(unchanged & set(change)) or change == {"gold": "answer"} for change in CHANGES) + 2  # prices
    assert keys.most_common()[0][1] == alike and sorted(keys.values())[-2] == 1
    teacher = open_teacher(wanted(), {"add": get_task("add")}, None)
    other = Problem("add", problem.prompt + " ", "1", "open")
    asked = [Question(p, mode, sample) for p in (problem, other) for mode in MODES for sample in range(3)]
    assert len({request_key(teacher, question) for question in asked}) == len(asked)


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ({"answer": "\ud800"}, "surrogates not allowed"),
        ({"cost_usd": float("nan"), "answer": "1"}, "JSON"),
        ({"answer": b"bytes"}, "bytes"),
    ],
)
def test_an_answer_that_cannot_be_kept_is_a_failed_one(tmp_path, scripted, text, detail):
    teacher = scripted()

    def say(question):
        answer = teacher.answer_to(question)
        if question.problem.prompt != spoilt:
            return answer
        return Answer(Trace(**{**vars(answer.trace), **text}), None, output_tokens=answer.output_tokens)

    spoilt = get_task("add").problems("train", 12, 0)[5].prompt
    teacher.say = say
    made = generate(wanted(), tmp_path / "t")
    assert made.summary["rejected"] == {"failed": 1}
    (row,) = read_rejected(tmp_path / "t")
    assert row.problem.prompt == spoilt and detail in row.detail


def test_a_teacher_that_does_what_it_was_not_asked(tmp_path, scripted):
    teacher = scripted()
    stranger = Question(Problem("add", "add 99999", "45", "open"), "ift")

    async def twice(questions, on_answer):
        for question in questions:
            on_answer(question, teacher.answer_to(question))
            on_answer(question, teacher.answer_to(question))

    async def another(questions, on_answer):
        next(iter(questions))
        on_answer(stranger, teacher.answer_to(stranger))

    async def other_mode(questions, on_answer):
        for question in questions:
            on_answer(question, teacher.answer_to(Question(question.problem, "ift", question.sample)))

    async def silent(questions, on_answer):
        for _ in questions:
            pass

    async def lazy(questions, on_answer):
        question = next(iter(questions))
        on_answer(question, teacher.answer_to(question))

    for answer, message in (
        (twice, "answered what it was not asked"),
        (another, "answered what it was not asked"),
        (other_mode, "answered what it was not asked"),
        (silent, "ended with 24 questions unanswered"),
        (lazy, "ended with some questions unanswered"),
    ):
        teacher.answer = answer
        with pytest.raises(InputError, match=message):
            generate(wanted(), tmp_path / answer.__name__)
        assert not (tmp_path / answer.__name__ / "manifest.json").exists()


def test_flags_that_need_another():
    for given, message in (
        ({"tasks": {"add": 1}, "temperature": 0.5}, "--temperature is about a teacher that is a model"),
        ({"tasks": {"add": 1}, "checker": "number"}, "--checker is about the questions of --data"),
        ({"tasks": {"add": 1}, "count": 3}, "--count is about the questions of --data"),
        ({"teacher": "http://h/v1", "vllm_arguments": "-x"}, "--vllm-arguments is for --teacher vllm:MODEL"),
        ({"teacher": "vllm:m", "vllm_arguments": "'"}, "--vllm-arguments: not as a shell"),
    ):
        with pytest.raises(InputError, match=message):
            from_flags({}, given)
    values, limits = from_flags(
        {"teacher": {"vllm": "m", "server": {"dtype": "float32"}}, "max_total_tokens": 5, "samples": 2},
        {"vllm_arguments": "--tensor-parallel-size 2", "temperature": 0.0, "max_cost": 1.0, "seed": 3},
    )
    server = {"dtype": "float32", "arguments": ["--tensor-parallel-size", "2"]}
    assert values == {"teacher": {"vllm": "m", "server": server, "temperature": 0.0}, "samples": 2, "seed": 3}
    assert limits == {"max_total_tokens": 5, "max_cost_usd": 1.0}


def test_wrong_settings_name_the_field():
    for values, message in (
        ({"tasks": {"add": 1}, "shard": "0/4"}, "field shard: expected I/N with I from 1 to N"),
        ({"tasks": {"add": 1}, "shard": "5/4"}, "field shard: expected I/N"),
        ({"tasks": {"add": 1}, "shard": "one"}, "field shard: "),
        ({"tasks": {"add": 1}, "samples": 0}, "field samples: "),
        ({"tasks": {"add": 1}, "gold": "given"}, "field gold: .*found 'given'"),
        ({"tasks": {"add": 1}, "split": "tset"}, "field split"),
        (
            {"data": {"mine": {"path": "x", "checker": "nmber", "answer": "a"}}},
            "unknown checker.*did you mean 'number'",
        ),
        (
            {"tasks": {"add": 1}, "gold": "answer", "teacher": {"url": "http://h/v1", "model": "m", "top_k": 5}},
            "top_k needs both answers from the teacher",
        ),
    ):
        with pytest.raises(InputError, match=message):
            validate(GenerateSettings, values, source="here")
    with pytest.raises(InputError, match="how many problems"):
        generate_recipe(GenerateSettings(tasks={"add": None}))
