"""Grades: right answers in any dress are right and near misses wrong, over every question that is here; and nothing a
model writes hangs the run."""

import json
import random
import re
import threading
import time
from dataclasses import replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from distill.errors import InputError
from distill.evaluation import gradable
from distill.evaluation.answer_file import read_answers, write_answers
from distill.evaluation.answers import Answer
from distill.evaluation.audit import SAMPLE, audit
from distill.evaluation.evaluate import all_grades
from distill.evaluation.generate import Output
from distill.evaluation.grading import grade, grading_recipe, metric_columns, summarise
from distill.evaluation.judging import JUDGEMENTS, Judges
from distill.evaluation.questions import Asked, Prompts, ask
from distill.evaluation.requests import requests
from distill.evaluation.responses import read_output
from distill.evaluation.settings import EvaluateSettings, Questions
from distill.evaluation.statistics.pass_at_k import majority_at_k
from distill.packing.chat import COMPACT, ChatFormat
from distill.packing.tokenizer import train_tokenizer
from distill.serve.judge import JudgeSettings
from distill.tasks import checkers, get_task, metrics
from distill.tasks.benchmark import BENCHMARKS, load_benchmark
from distill.tasks.benchmark_rows import model_answer
from distill.tasks.benchmark_task import open_benchmark
from distill.tasks.checkers import CHECKERS, QUICK
from distill.tasks.metrics import METRICS
from distill.tasks.problem import Problem
from distill.tasks.second_checkers import SECOND

ROWS = Path(__file__).parents[1] / "tasks" / "benchmark_rows"
DATA = Path(__file__).parents[3] / "shared" / "data"
LETTERS = "ABCDEFGHIJ"
BY_TEXT = [name for name in BENCHMARKS if load_benchmark(name).checker in CHECKERS and name != "ifeval"]


def answer_of(problem, text, *, thinking="", finished=True):
    return Answer(
        problem_id=problem.id,
        task=problem.task,
        prompt=problem.prompt,
        gold=problem.gold,
        token_ids=[1, 2],
        thinking=thinking,
        answer=text,
        prompt_tokens=3,
        thinking_tokens=1 if thinking else 0,
        answer_tokens=1,
        thought=bool(thinking),
        finished=finished,
        finish_reason="stop" if finished else "length",
        correct=False,
        seconds=0.5,
    )


def number_of(gold):
    return Decimal(gold.replace(",", "").replace("−", "-").removesuffix("^\\circ"))


def in_dress(checker, said):
    """An answer as models write it."""
    boxed = f"\\boxed{{{said}}}"
    forms = [boxed, f"Let us see. That is so.\n\n{boxed}", f"It is ${boxed}$.", f"\\boxed{{nothing yet}} no: {boxed}"]
    if checker not in ("exact", "normalised", "squad", "math"):
        forms += [f"The answer is {said}.", f"**Answer:** {said}", f"So this holds.\n\nFinal answer: **{said}**"]
    if checker not in ("exact", "math"):
        forms += [said, f"\\boxed{{\\text{{{said}}}}}"]
    if checker == "choice":
        forms += [f"({said})", f"{said}.", f"{said}) because", f"So it is ({said}).", f"the answer is {said.lower()}"]
        forms += [
            f"Not so.\n\n{said}",
            f"option {said}",
            f"**{said}**",
            f"\\boxed{{{said})}}",
            f"{said} is correct.",
            f"Therefore, {said}.",
            f"Answer: **{said}**\n\nA) is too small, B) too large.",
            f"The answer must be [{said}].",
            f"It is 6 - 2.\n\n**{said}) 600**",
            f"#### {said}",
            f"Answer: ({said.lower()})",
        ]
    if checker == "number":
        number = number_of(said)
        forms += [f"Answer: {number} + 12 - 12 = {number}.", f"**{number:,}**".replace("-", "−"), f"_{number}_"]
        forms += [
            f"\\boxed{{x = {number}}}",
            f"The answer is not {number + 1}. It is {number}.",
            f"Answer:\n\n${number}$",
        ]
        forms += [f"\\boxed{{{number:,}}}", f"That makes ${number} in all.", f"It is {number} apples", f"#### {number}"]
        forms += [
            f"\\boxed{{{number}\\text{{ m}}}}",
            f"\\boxed{{\\${number}}}",
            f"{number}%",
            f"\\boxed{{{number * 2}/2}}",
        ]
        forms += [f"\\boxed{{{number}e0}}", f"\\boxed{{\\frac{{{number * 4}}}{{4}}}}"] if number == int(number) else []
    return forms


def near_misses(checker, gold, said):
    """What is nearly right, to be put in the same dress."""
    if checker == "choice":
        return [letter for letter in LETTERS if letter != gold]
    if checker == "number":
        number = number_of(said)
        return [str(n) for n in {number + 1, number - 1, -number, number * 10, number + Decimal("0.5")} - {number}]
    if checker == "near_number":
        number = float(number_of(gold))
        return [str(number * 1.06), str(number * 0.94), str(-number), f"{gold}e1"]
    if checker == "labels":
        labels = json.loads(gold)
        return [", ".join([*labels, "other"]), ", ".join(["other", *labels[1:]]), ", ".join(labels[1:] or ["other"])]
    if checker == "math":
        return [f"{gold} + 1", f"-{gold}"] if gold[-1] not in "]})" else ["17"]
    return [f"{said} not", f"no {said}", f"{said} {said}", said[:-1] + ("x" if said[-1] != "x" else "y")]


def every_case(task, problem, said, misses, most=None):
    """(kind, answer, whether it is right) for one question; in all dresses, or in `most` drawn at random."""
    checker = task.checker

    def dressed(text):
        forms = in_dress(checker, text)
        return forms if most is None else random.sample(forms, most)

    for text in dressed(said):
        yield "right", answer_of(problem, text, thinking=f"\\boxed{{{misses[0]}}}"), True
    for miss in misses:
        for text in dressed(miss):
            yield "near miss", answer_of(problem, text), False
        yield "only in the thinking", answer_of(problem, f"\\boxed{{{miss}}}", thinking=f"\\boxed{{{said}}}"), False
        yield "another in the end", answer_of(problem, f"\\boxed{{{said}}} No: \\boxed{{{miss}}}"), False
        if checker in ("choice", "number"):
            yield "another in the end", answer_of(problem, f"The answer is {said}. No: the answer is {miss}."), False
    yield "no answer", answer_of(problem, "", thinking=f"\\boxed{{{said}}}"), False
    yield "unfinished", answer_of(problem, f"\\boxed{{{said}}}", finished=False), False


def disagreements(task, problems, said_of, misses_of, most=None):
    """Of all cases of all problems: those that are graded otherwise, and how many there are."""
    cases = []
    for problem in problems:
        said = said_of(problem)
        misses = misses_of(problem, said)
        cases += every_case(task, problem, said, misses, most)
    graded = grade([Asked(task, problems)], [answer for _, answer, _ in cases], processes=2)
    wrong = [
        f"{kind}: {answer.answer[:80]!r} for {answer.gold!r} ({answer.verdict})"
        for (kind, _, right), answer in zip(cases, graded, strict=True)
        if answer.correct != right
    ]
    return wrong, len(cases)


def test_gsm8k():
    if not (DATA / "gsm8k").is_dir():
        pytest.skip("the data set is not here")
    task = get_task("gsm8k", DATA / "gsm8k")
    problems = [p for split in ("train", "validation", "test") for p in task.problems(split, None, 0)]
    assert len(problems) > 8700
    wrong, cases = disagreements(
        task, problems, lambda p: p.gold, lambda p, _: near_misses("number", p.gold, p.gold), 3
    )
    assert cases > 200_000
    assert not wrong, "\n".join([f"{len(wrong)} disagreements", *wrong[:30]])


def test_aqua():
    if not (DATA / "aqua").is_dir():
        pytest.skip("the data set is not here")
    task = get_task("aqua", DATA / "aqua")
    problems = [p for split in ("train", "validation", "test") for p in task.problems(split, None, 0)]
    assert len(problems) > 250
    wrong, _ = disagreements(task, problems, lambda p: p.gold, lambda p, said: near_misses("choice", p.gold, said))
    assert not wrong, "\n".join([f"{len(wrong)} disagreements", *wrong[:30]])


class Student:
    """What reading an output needs of one."""

    def __init__(self):
        tokenizer = train_tokenizer(["The answer is 1,080 apples.", "So it is (B)."] * 3, 300)
        self.chat, self.tokenizer = ChatFormat(tokenizer, COMPACT, source="here"), tokenizer

    def require_chat(self):
        return self.chat


@pytest.mark.parametrize("name", ["gsm8k", "aqua"])
def test_gold_answers_as_a_student_generates_them(name, rng):
    """Token ids with their think block, taken apart and graded; of each question in every way that an output ends."""
    if not (DATA / name).is_dir():
        pytest.skip("the data set is not here")
    task, student = get_task(name, DATA / name), Student()
    pool = [p for split in ("train", "validation", "test") for p in task.problems(split, None, 0)]
    problems = [pool[i] for i in rng.choice(len(pool), 100, replace=False)]
    ways = [  # of `right` and `miss`: what is generated, why it ends, whether the answer counts
        ("<think>{miss}</think>{right}<|end|>", "stop", True),
        ("{right}<|end|>", "stop", True),
        ("<think>{right}</think>{miss}<|end|>", "stop", False),
        ("<think>{right}</think><|end|>", "stop", False),
        ("<think>{miss}</think>{right}", "length", False),
        ("<think>{miss} {right}<|end|>", "stop", False),
    ]
    settings = EvaluateSettings(questions=[{"task": name}], samples=len(ways), temperature=1)
    prompts, asked = Prompts({p.id: [1, 2, 3] for p in problems}), [Asked(task, problems)]
    answers = []
    for request in requests(settings, asked, prompts):
        gold, (form, reason, _) = request.problem.gold, ways[request.sample]
        miss = str(rng.choice(near_misses(task.checker, gold, gold)))
        right, miss = (str(rng.choice(in_dress(task.checker, said))) for said in (gold, miss))
        ids = student.tokenizer(form.format(right=right, miss=miss), add_special_tokens=False)["input_ids"]
        answers.append(read_output(student, prompts, request, Output(ids, reason, 0.1)))
        assert answers[-1].thinking_tokens + answers[-1].answer_tokens == len(ids)
    wrong = [
        f"{ways[a.sample][0]}: {a.answer[:80]!r} after {a.thinking[:80]!r} for {a.gold!r} ({a.verdict})"
        for a in grade(asked, answers)
        if a.correct != ways[a.sample][2]
    ]
    assert len(answers) == 600 and not wrong, "\n".join([f"{len(wrong)} disagreements", *wrong[:30]])


@pytest.mark.parametrize("name", BY_TEXT)
def test_benchmarks(name):
    benchmark = load_benchmark(name).model_copy(update={"few_shot": None})
    task = open_benchmark(benchmark, ROWS / f"{name}.jsonl")
    wrong, cases = disagreements(
        task,
        task.problems("test", None, 0),
        lambda problem: model_answer(benchmark, problem.gold),
        lambda problem, said: near_misses(benchmark.checker, problem.gold, said),
    )
    assert cases >= 80 and not wrong, "\n".join([f"{len(wrong)} disagreements", *wrong[:30]])


@pytest.mark.parametrize("name", ["add", "max", "record"])
def test_embedded_tasks(name, rng):
    task = get_task(name)
    problems = task.problems("test", 300, int(rng.integers(10**6)))

    def misses(problem, said):
        if name == "add":
            return [str(int(said) + 1), str(int(said) - 1), f"-{said}", f"{said}0"]
        if name == "max":
            return [letter for letter in LETTERS if letter != said]
        first, second, category, risk = said.split()
        other = "ok" if risk == "risk" else "risk"
        return [f"{first} {second} {risk} {category}", f"{first} {second} {category} {other}", f"x{said}", first]

    wrong, _ = disagreements(task, problems, lambda p: p.gold, misses)
    assert not wrong, "\n".join([f"{len(wrong)} disagreements", *wrong[:30]])


def test_every_accepted_answer_counts_and_f1_is_of_the_nearest(rng):
    task = open_benchmark("squad", ROWS / "squad.jsonl")
    problems = task.problems("test", None, 0)
    f1 = task.metrics["squad_f1"]
    for problem in problems:
        accepted = json.loads(problem.gold)
        answers = grade(
            [Asked(task, problems)], [answer_of(problem, f"\\boxed{{The {one.upper()}!}}") for one in accepted]
        )
        assert all(a.correct for a in answers)
        columns = metric_columns(f1, [problem] * len(answers), answers)
        assert f1.value(columns) == 1.0
    half = grade([Asked(task, problems)], [answer_of(problems[3], "\\boxed{forty days}")])
    assert not half[0].correct and f1.value(metric_columns(f1, [problems[3]], half)) == pytest.approx(0.5)


HOSTILE = {
    "nested LaTeX": "\\frac{" * 50_000 + "1" + "}{2}" * 50_000,
    "nested boxes": "\\boxed{" * 100_000 + "5" + "}" * 100_000,
    "open boxes": "\\boxed{" * 100_000,
    "a megabyte of digits": "\\boxed{" + "7" * 2**20 + "}",
    "digits without a box": "1" * 2**20,
    "a power tower": "\\boxed{9^{9^{9^{9}}}}",
    "a tower of Python": "9**9**9**9",
    "a factorial": "\\boxed{99999999999!}",
    "a great power of ten": "\\boxed{1e9999} or 1e999999999",
    "regex bombs": "\\boxed{" + "(a+)+$" * 10_000 + "}" + "a" * 50_000 + "!",
    "answer is": "answer is " * 100_000,
    "white space": " \n\t" * 300_000,
    "open brackets": "[" * 200_000 + "{" * 200_000,
    "accents": "e" + "\u0301\u0316" * 100_000,
    "controls and surrogates": "\x00\ud800\u202e" * 10_000,
    "markup": "<script>alert(1)</script><|end|></think>" * 1000,
}


@pytest.mark.parametrize("checker", QUICK)
def test_hostile_answers_take_the_quick_checkers_little_time(checker):
    gold = {"choice": "B", "labels": '["a", "b"]', "squad": '["a river", "the sea"]'}.get(checker, "31")
    for name, text in HOSTILE.items():
        for whole in (text, text * 2):
            start = time.perf_counter()
            assert not CHECKERS[checker](gold, whole[-1_000_000:]).correct, name
            assert time.perf_counter() - start < 5, name


@pytest.mark.long
@pytest.mark.parametrize("name", ["squad", "labels", "record"])
def test_hostile_answers_take_all_that_is_said_of_them_little_time(name):
    """Metrics, intervals, the audit and votes, beside the checker."""
    task = get_task(name) if name == "record" else open_benchmark(name, ROWS / f"{name}.jsonl")
    problem = task.problems("test", 1, 0)[0]
    asked = [Asked(task, [problem])]
    for case, text in HOSTILE.items():
        start = time.perf_counter()
        answers = grade(asked, [replace(answer_of(problem, text), sample=i) for i in range(2)])
        found = all_grades(asked, answers, None)[name]
        assert time.perf_counter() - start < 2 * 5, case
        assert all(value < 0.5 for metric, value in found["metrics"].items()), case
        assert found["samples"]["majority_at_2"]["value"] == 0 and found["audit"]["n_answers"] == 2, case


@pytest.mark.long
@pytest.mark.parametrize("metric", ["squad_f1", "rouge_l", "macro_f1"])
def test_long_texts_take_metrics_little_time(metric):
    long = "a b " * 250_000
    problem = Problem("t", "p", '["a", "b"]' if metric == "macro_f1" else long, "open")
    start = time.perf_counter()
    values = METRICS[metric]([problem]).rows(problem, long, checkers.Verdict(False)).values()
    assert time.perf_counter() - start < 5 and set(values) == {1.0}


def test_rouge_is_of_the_beginning_of_both_texts(monkeypatch):
    monkeypatch.setattr(metrics, "_ROUGE_WORDS", 20)
    said = [" ".join(random.choices("abcdef", k=20)) for _ in range(2)]
    problems = [Problem("t", "p", said[0] + more, "open") for more in ("", " a b." * 500)]
    rows = [
        METRICS["rouge_l"]([p]).rows(p, said[1] + more, checkers.Verdict(False))
        for more in ("", " d.c")
        for p in problems
    ]
    assert all(row == rows[0] for row in rows)


def test_many_different_right_answers_take_a_majority_little_time(rng):
    votes, start = [list(range(1024))] * 3, time.perf_counter()
    right = [[True] * 1024, [False] * 1024, (rng.random(1024) < 0.5).tolist()]
    assert majority_at_k(votes, right, 1024) == pytest.approx([1, 0, np.mean(right[2])])
    assert time.perf_counter() - start < 5


def test_hostile_answers_are_wrong_and_cost_no_other_its_grade(rng, tmp_path):
    task = open_benchmark("math-500", ROWS / "math-500.jsonl")
    problem = task.problems("test", None, 0)[1]
    places = rng.permutation(len(HOSTILE) + 32)
    texts = [*HOSTILE.values(), *[f"\\boxed{{{problem.gold}}}"] * 32]
    answers = [answer_of(problem, texts[i]) for i in places]
    asked = [Asked(task, [problem])]
    start = time.perf_counter()
    graded = grade(asked, answers, processes=2)
    assert time.perf_counter() - start < 5 * len(HOSTILE)
    assert [a.correct for a in graded] == [i >= len(HOSTILE) for i in places]
    failed = [a for a in graded if a.failure]
    assert failed and all(a.verdict.startswith(("no verdict in 5 s", "out of memory", "the check")) for a in failed)
    assert {a.failure for a in failed} <= {"time", "memory", "crash"}
    write_answers(tmp_path / "a.parquet", [a for a in graded if "\ud800" not in a.answer])
    assert read_answers(tmp_path / "a.parquet") == [a for a in graded if "\ud800" not in a.answer]
    failures = summarise(asked, [a for a in graded if "\ud800" not in a.answer], None)["math-500"]["grading"][
        "failures"
    ]
    assert sum(failures.values()) == len(failed)


def test_ten_thousand_answers_take_a_minute_at_most():
    """Of each quick checker a share, with a thousand words before the answer."""
    before = "Let us think about the 12 numbers, 3.5 of them (A) and B) or so. " * 75
    asked, answers = [], []
    for name in ("gsm8k", "aqua-rat", "squad", "scibench", "labels", "consumer-qa"):
        benchmark = load_benchmark(name).model_copy(update={"few_shot": None})
        task = open_benchmark(benchmark, ROWS / f"{name}.jsonl")
        problems = task.problems("test", None, 0)
        asked.append(Asked(task, problems))
        texts = {p.id: f"{before}\n\\boxed{{{model_answer(benchmark, p.gold)}}}" for p in problems}
        answers += [answer_of(p, texts[p.id]) for i in range(167) for p in problems]
    assert len(answers) > 10_000
    start = time.process_time()
    graded = grade(asked, answers)
    assert time.process_time() - start < 60
    assert all(a.correct for a in graded)


# the audit


def test_a_sound_checker_agrees_with_the_second(rng):
    task = open_benchmark("gsm8k", ROWS / "gsm8k.jsonl")
    problems = task.problems("test", None, 0)
    right = {p.id: rng.random() < 0.5 for p in problems}
    answers = [answer_of(p, f"So \\boxed{{{p.gold if right[p.id] else 77777}}}") for p in problems]
    found = audit(Asked(task, problems), grade([Asked(task, problems)], answers))
    assert (found["second_checker"], found["n_answers"], found["n_disagree"]) == ("math-verify", 10, 0)
    assert found["disagreement"]["high"] == pytest.approx(1 - 0.025 ** (1 / 10))


def test_a_broken_checker_is_seen(monkeypatch, rng):
    """It takes any letter for the right one."""
    task = get_task("max")
    problems = task.problems("test", 400, int(rng.integers(10**6)))
    asked = Asked(task, problems)
    said = {p.id: str(rng.choice(list("ABCD"))) for p in problems}
    answers = [answer_of(p, f"({said[p.id]})", finished=i % 10 > 0) for i, p in enumerate(problems)]
    assert audit(asked, grade([asked], answers))["n_disagree"] == 0
    monkeypatch.setitem(checkers.CHECKERS, "choice", lambda gold, answer: checkers.Verdict(True))
    graded = grade([asked], answers)
    found = audit(asked, graded)
    assert found == audit(asked, graded) and found["n_answers"] == SAMPLE
    assert found["n_disagree"] == found["only_first_right"] > 0.5 * SAMPLE and found["only_second_right"] == 0
    n, k = SAMPLE, found["n_disagree"]
    assert found["disagreement"]["value"] == k / n
    assert found["disagreement"]["low"] == pytest.approx(stats.beta.ppf(0.025, k, n - k + 1))
    assert found["disagreement"]["high"] == pytest.approx(stats.beta.ppf(0.975, k + 1, n - k))
    golds = {p.id: p.gold for p in problems}
    assert 0 < len(found["examples"]) <= 20
    assert all(said[e["problem_id"]] != golds[e["problem_id"]] == e["gold"] for e in found["examples"])
    nothing = [answer_of(p, "B", finished=False) for p in problems]
    assert audit(asked, grade([asked], nothing)) is None
    assert summarise([asked], graded, None)["max"]["audit"] == found


@pytest.mark.parametrize("name", BY_TEXT)
def test_every_benchmark_has_a_second_checker_that_takes_gold_answers(name):
    benchmark = load_benchmark(name).model_copy(update={"few_shot": None})
    task = open_benchmark(benchmark, ROWS / f"{name}.jsonl")
    problems = task.problems("test", None, 0)
    asked = Asked(task, problems)
    answers = [answer_of(p, f"Then\n\\boxed{{{model_answer(benchmark, p.gold)}}}") for p in problems]
    found = audit(asked, grade([asked], answers, processes=2))
    assert found["n_disagree"] == 0, found["examples"]


def test_every_checker_has_a_second_one():
    assert SECOND.keys() == CHECKERS.keys()


def test_rules_are_read_a_second_time(rng):
    """What nobody but the rule book knows is counted and not guessed."""
    task = open_benchmark("ifeval", ROWS / "ifeval.jsonl")
    problems = task.problems("test", None, 0)
    texts = ["No comma and no capital", "one, two", "* one\n* two\n* three", "The ladle and the steam.", "The bread."]
    answers = [answer_of(p, text) for p, text in zip(problems, [*texts, *["Well."] * 5], strict=True)]
    followed = [True, False, True, True, False, False, True, None, False, False]  # the eighth asks for a language
    graded = [replace(a, correct=follows is True) for a, follows in zip(answers, followed, strict=True)]
    found = audit(Asked(task, problems), graded)
    assert (found["second_checker"], found["n_answers"], found["n_skipped"]) == ("plain rules", 9, 1)
    assert found["n_disagree"] == 0, found["examples"]
    place = int(rng.choice([i for i, follows in enumerate(followed) if follows is not None]))
    graded[place] = replace(graded[place], correct=not followed[place])
    found = audit(Asked(task, problems), graded)
    assert [e["problem_id"] for e in found["examples"]] == [problems[place].id] and found["n_disagree"] == 1
    assert found["only_first_right"] == (not followed[place]) != found["only_second_right"]
    unknown = audit(Asked(task, problems), graded[7:8])
    assert (unknown["n_answers"], unknown["n_skipped"], unknown["disagreement"]) == (0, 1, None)


# judges


@pytest.fixture
def bench():
    """A server with three models that judge: one by the letter, one that likes everything, one that says no word."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def send(self, value):
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            self.send({"data": [{"id": name} for name in ("strict", "kind", "vague")]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            shown = body["messages"][-1]["content"]
            _, gold, answer = re.findall(r"begin [^\]]*\]\n(.*?)\n\[", shown, re.DOTALL)
            server.asked.append(answer)
            strict = "correct" if gold.removeprefix("> ") in answer else "incorrect"
            said = {"strict": strict, "kind": "Correct.", "vague": "correct" if len(server.asked) == 1 else "Well"}
            self.send(
                {"choices": [{"message": {"content": said[body["model"]]}, "finish_reason": "stop"}], "usage": {}}
            )

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 512  # the library's 5 drop connections of a burst

    server = Server(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_judges_grade_by_majority_and_their_agreement_is_reported(bench, tmp_path):
    benchmark = load_benchmark("code-summarization-c").model_copy(update={"few_shot": None})
    task = open_benchmark(benchmark, ROWS / "code-summarization-c.jsonl")
    problems = task.problems("test", None, 0)
    asked = [Asked(task, problems)]
    url = f"http://127.0.0.1:{bench.server_port}/v1"
    names = ("strict", "kind")
    judges = Judges(tuple(JudgeSettings(url=url, model=m, api_key_env="NO_KEY") for m in names), tmp_path / JUDGEMENTS)
    answers = [
        answer_of(p, p.gold if i % 2 else "It prints cats.", thinking="x" + p.gold) for i, p in enumerate(problems)
    ]
    answers[1] = answer_of(problems[1], problems[1].gold, finished=False)
    graded = grade(asked, answers, judges)
    assert [a.correct for a in graded] == [i % 2 == 1 and i != 1 for i in range(10)]
    assert graded[2].verdict == "judges: incorrect, correct" and graded[2].scores == {"judge 1": 0.0, "judge 2": 1.0}
    grades = summarise(asked, graded, None, judges)["code-summarization-c"]
    assert grades["metrics"]["accuracy"] == 0.4 and 0 < grades["metrics"]["rouge_l"] < 1
    assert grades["audit"] is None and "how far the judges agree" in grades["grading"]["not_audited"]
    single = summarise(asked, graded, None, replace(judges, settings=judges.settings[:1]))["code-summarization-c"]
    assert single["grading"]["not_audited"] == "a single judge graded it; name two or three"
    agreement = grades["grading"]["agreement"]
    assert agreement["judged"] == 9 and agreement["unanimous"] == pytest.approx(4 / 9)
    assert agreement["by_judge"] == {
        f"{url}#strict": {"correct": pytest.approx(4 / 9), "no_word": 0},
        f"{url}#kind": {"correct": 1.0, "no_word": 0},
    }
    requests = len(bench.asked)
    assert requests == 18 and grade(asked, answers, judges) == graded and len(bench.asked) == requests
    write_answers(tmp_path / "answers.parquet", graded)
    assert read_answers(tmp_path / "answers.parquet") == graded


def test_judges_audit_what_a_checker_graded(bench, tmp_path, monkeypatch):
    task = get_task("max")
    problems = task.problems("test", 40, 0)
    asked = Asked(task, problems)
    judge = JudgeSettings(url=f"http://127.0.0.1:{bench.server_port}/v1", model="strict", api_key_env="NO_KEY")
    judges = Judges((judge,), tmp_path / JUDGEMENTS)
    graded = grade([asked], [answer_of(p, p.gold) for p in problems])
    found = audit(asked, graded, judges)
    assert (found["second_checker"], found["n_answers"], found["n_disagree"]) == ("judges", 40, 0)
    monkeypatch.setitem(checkers.CHECKERS, "choice", lambda gold, answer: checkers.Verdict(False))
    found = audit(asked, grade([asked], [answer_of(p, p.gold) for p in problems]), judges)
    assert found["n_disagree"] == found["only_second_right"] == 40


# what cannot be graded


def test_what_cannot_be_graded_is_refused_before_anything_is_generated(tmp_path, monkeypatch):
    rows = Questions(task="code-summarization-c", data=ROWS / "code-summarization-c.jsonl", count=3)
    with pytest.raises(InputError, match=r"models judge its answers; name one to three with --judge URL#MODEL"):
        ask([rows])
    judge = JudgeSettings.parse("http://127.0.0.1:9/v1#m")
    assert len(ask([rows], (judge,))[0].problems) == 3
    monkeypatch.setattr(gradable, "missing_packages", lambda: ["langdetect"])
    with pytest.raises(InputError, match=r"task ifeval: needs langdetect; install lm-eval\[ifeval\]"):
        ask([Questions(task="ifeval", data=ROWS / "ifeval.jsonl", count=3)])
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    own = Questions(task="mine", data={"path": str(tmp_path / "q.jsonl")}, split="all")
    with pytest.raises(InputError, match="task mine: answers can only be graded with a checker"):
        ask([own])
    asked = Asked(get_task("code-summarization-c", rows.data), [])
    problem = Problem("code-summarization-c", "p", "g", "open")
    with pytest.raises(InputError, match="no checker or judge"):
        grade([asked], [answer_of(problem, "x")])


def test_grades_depend_on_who_grades():
    number, judged = [Asked(get_task("add"), [])], [Asked(get_task("math-500", ROWS / "math-500.jsonl"), [])]
    judges = (JudgeSettings.parse("http://a/v1#m"),)
    recipes = [grading_recipe(number), grading_recipe(judged), grading_recipe(number, judges)]
    assert len({json.dumps(recipe, sort_keys=True) for recipe in recipes}) == 3
    assert {"math-verify", "sympy", "limit_s"} <= recipes[1].keys() and "OPENAI_API_KEY" not in json.dumps(recipes)
    settings = EvaluateSettings(questions=[{"task": "add"}], judges=["http://a/v1#m"])
    assert settings.judges == judges and "judges" not in settings.of_recipe()


def test_any_text_is_audited(rng):
    """The second checkers are total too."""
    rules = {"instruction_id_list": ["keywords:existence", "startend:quotation"], "kwargs": [{"keywords": ["a"]}, {}]}
    pieces = ["\\boxed{", "}", "1", "B", ",", "a", " ", "\n", "\\frac", "{", "\u0301", "\ud800", "e9", "[", "]", '"']
    for _ in range(30):
        text = "".join(random.choices(pieces, k=30))
        for checker, (_, second) in SECOND.items():
            gold = {"choice": "B", "labels": '["a"]', "squad": '["a"]', "ifeval": json.dumps(rules)}.get(checker, "31")
            if second is not None:
                second(gold, text), second(gold, text * 1000)
