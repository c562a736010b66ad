"""What a student is compared with: a model behind an endpoint, a base model asked as text, questions of one's own."""

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from distill.errors import InputError
from distill.evaluation.answer_file import read_answers
from distill.evaluation.endpoint import ModelSettings, evaluate_endpoint
from distill.evaluation.evaluate import evaluate, evaluation_recipe, render
from distill.evaluation.few_shot import examples
from distill.evaluation.flags import budgets_of, check_subject, check_via, counts_of, questions_of
from distill.evaluation.questions import ask
from distill.evaluation.server import Serving
from distill.evaluation.serving.profile import StudentProfileSettings, profile_student
from distill.evaluation.settings import EvaluateSettings
from distill.evaluation.subject import load_subject
from distill.serve import Endpoint
from distill.settings import validate
from distill.tasks import get_task
from distill.tasks.benchmark_task import open_benchmark
from distill.tasks.task import split_of


def settings(count=20, **changes):
    return EvaluateSettings(questions=[{"task": "max", "count": count, "seed": 8}], max_tokens=48, **changes)


class Fake:
    """An OpenAI-compatible server that says what it is told to: `reply(path, body)` is (status, JSON)."""

    def __init__(self, reply):
        self.bodies = []
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
                self.say(200, {"data": [{"id": "m"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self.path.endswith("/tokenize"):
                    fake.bodies.append(body)
                self.say(*reply(self.path, body))

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 512

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def fake():
    made = []

    def start(reply):
        made.append(Fake(reply))
        return made[-1]

    yield start
    for one in made:
        one.close()


# ---------------------------------------------------------------------------------------------- an endpoint


def test_a_student_behind_an_endpoint_gets_the_grades_it_gets_as_a_student(
    trained_server, trained_student, tmp_path, monkeypatch
):
    endpoint = trained_server.endpoint
    monkeypatch.setenv("THE_KEY", endpoint.api_key)
    model = ModelSettings(url=endpoint.base_url, model=endpoint.model, api_key_env="THE_KEY")
    theirs = evaluate_endpoint(settings(), model, tmp_path / "endpoint")
    mine = evaluate(settings(), trained_student, tmp_path / "student", Serving(lambda: endpoint))
    pairs = list(zip(*(read_answers(e.path / "answers.parquet") for e in (mine, theirs)), strict=True))
    same = [(a, b) for a, b in pairs if a.token_ids == b.token_ids]
    assert len(same) > 17  # up to near ties
    for a, b in same:
        names = ("problem_id", "thinking", "answer", "thinking_tokens", "answer_tokens", "prompt_tokens")
        assert [getattr(a, n) for n in names] == [getattr(b, n) for n in names]
        assert (a.thought, a.finished, a.correct) == (b.thought, b.finished, b.correct)
    assert theirs.summary["max"]["flops_per_answer"] is None
    assert endpoint.api_key not in (theirs.path / "recipe.json").read_text()


def chat_reply(content, *, reasoning=None, usage=None, finish="stop"):
    message = {"role": "assistant", "content": content, "reasoning_content": reasoning}
    return 200, {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


USED = {"prompt_tokens": 7, "completion_tokens": 100}
SAID = USED | {"completion_tokens_details": {"reasoning_tokens": 90}}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        # thinking, answer, thinking tokens, answer tokens, finished
        (chat_reply("B", reasoning="r" * 9, usage=SAID), ("r" * 9, "B", 90, 10, True)),
        (chat_reply("B", reasoning="r" * 9, usage=USED), ("r" * 9, "B", 90, 10, True)),
        (chat_reply("B", reasoning="<think>\n" + "r" * 9, usage=USED), ("r" * 9, "B", 90, 10, True)),
        (chat_reply("B", reasoning="<think>", usage=USED), ("", "B", 0, 100, True)),
        (chat_reply("<think>rrr</think>\n\nB", usage=USED), ("rrr", "B", 75, 25, True)),
        (chat_reply("<think>rrr B", usage=USED, finish="length"), ("rrr B", "", 100, 0, False)),
        (chat_reply("<think>rrr B", usage=USED), ("rrr B", "", 100, 0, False)),
        (chat_reply("B", usage=SAID | {"completion_tokens_details": None}), ("", "B", 0, 100, True)),
        (chat_reply("\ud800B", usage=USED), ("", "\ufffdB", 0, 100, True)),
        (chat_reply("I will not", usage=USED, finish="content_filter"), ("", "I will not", 0, 100, False)),
    ],
)
def test_what_a_server_says_becomes_an_answer(fake, tmp_path, reply, expected):
    server = fake(lambda path, body: (404, {}) if path.endswith("/tokenize") else reply)
    made = evaluate_endpoint(settings(count=3), ModelSettings(url=server.url, model="m"), tmp_path / "e")
    for a in read_answers(made.path / "answers.parquet"):
        assert (a.thinking, a.answer, a.thinking_tokens, a.answer_tokens, a.finished) == expected
        assert a.prompt_tokens == 7 and a.correct == (a.finished and a.gold == "B" and a.answer.endswith("B"))
    assert made.summary["max"]["think_rate"] == bool(expected[0])
    assert "return_token_ids" not in server.bodies[0]


def test_thinking_is_switched_by_the_template(fake, tmp_path):
    server = fake(lambda path, body: (404, {}) if path.endswith("/tokenize") else chat_reply("B", usage=USED))
    for think, kwargs in (("on", {"enable_thinking": True}), ("off", {"enable_thinking": False}), ("free", None)):
        server.bodies.clear()
        evaluate_endpoint(settings(3, think=think), ModelSettings(url=server.url, model="m"), tmp_path / think)
        assert [body.get("chat_template_kwargs") for body in server.bodies] == [kwargs] * 3


def test_an_endpoint_that_cannot_be_used_is_one_line(fake, tmp_path):
    silent = fake(lambda path, body: (404, {}) if path.endswith("/tokenize") else chat_reply("B"))
    model = ModelSettings(url=silent.url, model="m")
    with pytest.raises(InputError, match="does not say how many tokens"):
        evaluate_endpoint(settings(3), model, tmp_path / "a")
    with pytest.raises(InputError, match="other"):
        evaluate_endpoint(settings(3), ModelSettings(url=silent.url, model="other"), tmp_path / "b")
    refusing = fake(lambda path, body: (404, {}) if path.endswith("/tokenize") else (400, {"error": "too long"}))
    with pytest.raises(InputError, match=r"3 of 3 questions got no answer.*too long"):
        evaluate_endpoint(settings(3), ModelSettings(url=refusing.url, model="m"), tmp_path / "c")
    for changes in ({"few_shot": 1}, {"thinking_budgets": (4,)}, {"mode": "ift"}, {"engine": "transformers"}):
        with pytest.raises(InputError, match="not for a model behind an endpoint"):
            evaluate_endpoint(settings(3, **changes), model, tmp_path / "d")
    assert not any((tmp_path / name / "manifest.json").exists() for name in "abcd")


def test_an_endpoint_that_fails_halfway_is_asked_only_for_the_rest(fake, tmp_path):
    left = [None] * 4

    def reply(path, body):
        if path.endswith("/tokenize"):
            return 404, {}
        try:
            left.pop()
        except IndexError:
            return 400, {"error": "no more"}
        return chat_reply("B", usage=USED)

    server = fake(reply)
    model, out = ModelSettings(url=server.url, model="m"), tmp_path / "e"
    with pytest.raises(InputError, match="16 of 20 questions got no answer"):
        evaluate_endpoint(settings(), model, out)
    left += [None] * 100
    server.bodies.clear()
    assert len(read_answers(evaluate_endpoint(settings(), model, out).path / "answers.parquet")) == 20
    assert len(server.bodies) == 16


# ---------------------------------------------------------------------------------------------- few-shot


@pytest.fixture
def base(tiny_student, tmp_path):
    """A folder without a chat template."""
    folder = shutil.copytree(tiny_student, tmp_path / "base")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


def test_a_base_model_is_asked_as_text_and_stops_at_the_next_question(base, tmp_path, fake, capfd):
    subject = load_subject(base)
    said = "B\n\n\nmax A1 B2 C3 D4\n\nAnswer: D"
    ids = subject.tokenizer(said)["input_ids"]
    choice = {"token_ids": ids, "text": said, "finish_reason": "stop"}
    server = fake(lambda path, body: (200, {"choices": [choice], "usage": {}}))
    made = evaluate(settings(count=6), base, tmp_path / "e", Serving(lambda: Endpoint(server.url, "m")))
    assert "has no chat template; questions are put as text" in capfd.readouterr().err
    assert made.summary["max"]["few_shot"] == 5 and made.summary["max"]["think_rate"] == 0
    for a in read_answers(made.path / "answers.parquet"):
        assert (a.answer, a.answer_tokens, a.thinking_tokens) == ("B", len(ids), 0)
        assert a.finished and a.correct == (a.gold == "B")
    for body in server.bodies:
        assert body["stop"] == ["\n\n\n"]
        *shots, last = subject.tokenizer.decode(body["prompt"]).split("\n\n\n")
        assert re.fullmatch(r"max( [A-D]\d){4}\n\nAnswer:", last) and len(shots) == 5
        for shot in shots:
            prompt, _, answer = shot.partition("\n\nAnswer: ")
            assert get_task("max").solve_prompt(prompt)[1] == answer and split_of(prompt) == "train"


def test_few_shot_is_in_the_key_and_takes_as_many_as_are_said(tiny_student):
    subject = load_subject(tiny_student)
    keys, lengths = set(), []
    for count in (None, 0, 1, 3):
        asked_for = settings(count=4, few_shot=count)
        asked = ask(asked_for.questions)
        prompts = render(asked_for, subject, asked)
        keys.add(json.dumps(evaluation_recipe(asked_for, subject, asked, prompts), sort_keys=True))
        lengths.append(subject.tokenizer.decode(next(iter(prompts.ids.values()))).count("Answer:"))
    assert len(keys) == 4 and lengths == [0, 1, 2, 4]


def test_a_benchmarks_own_examples_are_shown(tmp_path, tiny_student):
    rows = [{"question": f"What is {i}+{i}?", "answer": f"Twice {i}.\n#### {2 * i}"} for i in range(12)]
    for split, part in (("test", rows[:5]), ("train", rows[5:])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    task = open_benchmark("gsm8k", tmp_path)
    assert len(examples(task, [], None)) == 5 and len(examples(task, [], 2)) == 2
    with pytest.raises(InputError, match="--few-shot 6: benchmark gsm8k has 5 examples"):
        examples(task, [], 6)


@pytest.mark.parametrize("split", ["all", "train"])
def test_no_example_is_a_question_that_is_asked(tmp_path, rng, split):
    """Of questions of one's own, where the same rows give both; drawn from the rest, or refused."""
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"What is {i}+1?", "answer": i + 1} for i in rng.choice(10**6, 60, replace=False).tolist()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = {"path": str(path), "answer": "answer", "checker": "number"}
    question = {"task": "mine", "data": file, "split": split, "seed": int(rng.integers(1000))}
    gold = {row["prompt"]: str(row["answer"]) for row in rows}
    train = sum(split_of(prompt) == "train" for prompt in gold)
    for count in (1, 20, train - 20):
        (a,) = ask(EvaluateSettings(questions=[question | {"count": count}]).questions)
        shown = examples(a.task, a.problems, 5)
        assert len(shown) == 5 and not {e.prompt for e in shown} & {p.prompt for p in a.problems}
        assert all(gold[e.prompt] == e.answer and split_of(e.prompt) == "train" for e in shown)
    (a,) = ask(EvaluateSettings(questions=[question | {"count": None}]).questions)
    with pytest.raises(InputError, match="mine: 5 examples needed and 0 training questions left that are not asked"):
        examples(a.task, a.problems, 5)
    assert examples(a.task, a.problems, 0) == []
    (a,) = ask(EvaluateSettings(questions=[{"task": "max", "split": "train", "count": 30}]).questions)
    assert not {e.prompt for e in examples(a.task, a.problems, None)} & {p.prompt for p in a.problems}


def test_a_base_model_has_no_modes_think_blocks_or_profile(base, tmp_path):
    for changes in ({"think": "on"}, {"thinking_budgets": (4,)}, {"mode": "ift"}):
        with pytest.raises(InputError, match="has no chat template"):
            evaluate(settings(count=3, **changes), base, tmp_path / "e")
    with pytest.raises(InputError, match="has no chat template"):
        profile_student(StudentProfileSettings(tasks=["max"], concurrencies=(1,), requests=1), base, tmp_path / "e")
    assert not (tmp_path / "e").exists()


# ---------------------------------------------------------------------------------------------- questions


def test_questions_of_your_own_are_all_asked(tmp_path, trained_server, trained_student, rng):
    problems = get_task("max").problems("train", 7, int(rng.integers(1000)))
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"q": p.prompt, "a": p.gold}) + "\n" for p in problems))
    own = {"prompt": "q", "answer": "a", "checker": "choice", "answer_format": "choice"}
    questions = questions_of({"max": "4"}, [f"mine={path}"], own, split=None, seed=0)
    asked_for = validate(EvaluateSettings, {"questions": questions, "max_tokens": 48}, source="command line")
    made = evaluate(asked_for, trained_student, tmp_path / "e", Serving(lambda: trained_server.endpoint))
    assert {name: grades["n_questions"] for name, grades in made.summary.items()} == {"max": 4, "mine": 7}
    answers = [a for a in read_answers(made.path / "answers.parquet") if a.task == "mine"]
    assert [(a.prompt, a.gold) for a in answers] == [(p.prompt, p.gold) for p in problems]


def test_rows_of_a_known_task_may_be_named_beside_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"What is {i}+{i}?", "answer": f"Twice {i}.\n#### {2 * i}"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = questions_of({"gsm8k": "2"}, [f"gsm8k={path}"], {}, split=None, seed=0)
    (beside,) = ask(validate(EvaluateSettings, {"questions": questions}, source="x").questions)
    (joined,) = ask(EvaluateSettings(questions=[{"task": f"gsm8k:{path}", "count": 2}]).questions)
    assert beside.problems == joined.problems


@pytest.mark.parametrize(
    ("tasks", "data", "own", "said"),
    [
        ({}, [], {}, "no questions"),
        ({}, ["mine"], {}, "expected NAME=PATH"),
        ({}, ["a=b", "a=c"], {}, "a is named twice"),
        ({"max": None}, [], {"answer_format": "open"}, "--answer-format: only for --data"),
    ],
)
def test_flags_for_questions_that_mean_nothing(tasks, data, own, said):
    with pytest.raises(InputError, match=said):
        questions_of(tasks, data, own, split=None, seed=0)


def test_questions_that_cannot_be_graded_or_counted(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "1+1?", "answer": "2"}\n')
    for question, said in (
        ({"task": "mine", "data": {"path": str(path)}, "count": None, "split": "all"}, "only be graded with a checker"),
        ({"task": "max", "count": None}, "say how many questions"),
        ({"task": "max", "split": "all"}, "say how many questions"),
    ):
        with pytest.raises(InputError, match=said):
            ask(EvaluateSettings(questions=[question]).questions)


def test_where_no_count_is_given_it_is_up_to_300(tmp_path, tiny_student):
    """Fewer are all of them, asked as if their number had been said; a number that is too large stays an error."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"problem": f"What is {i}+{i}?", "answer": 2 * i}) + "\n" for i in range(30)))
    subject = load_subject(tiny_student)

    def asked_with(count, data=f"aime={path}", task="aime"):
        values = {"questions": questions_of({task: count}, [data] if data else [], {}, split=None, seed=3)}
        wanted = validate(EvaluateSettings, values, source="x")
        asked = ask(wanted.questions)
        return asked[0].problems, evaluation_recipe(wanted, subject, asked)

    problems, recipe = asked_with(None)
    assert len(problems) == 30 and recipe["settings"]["questions"][0]["count"] == 30
    assert (problems, recipe) == asked_with("30") and recipe != asked_with("29")[1]
    with pytest.raises(InputError, match="aime: 31 test problems asked for, but there are only 30"):
        asked_with("31")
    problems, recipe = asked_with(None, data=None, task="max")
    assert len(problems) == 300 and recipe == asked_with("300", data=None, task="max")[1]


def test_rows_that_are_not_asked_are_said_and_counted(tmp_path, trained_server, trained_student, capfd):
    problems = get_task("max").problems("train", 4, 0)
    rows = [json.dumps({"q": p.prompt, "a": p.gold}) for p in problems]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join([rows[0], rows[0], rows[1], "{", rows[2], rows[1], rows[3]]))
    own = {"path": str(path), "prompt": "q", "answer": "a", "checker": "choice", "answer_format": "choice"}
    questions = [{"task": "mine", "data": own | {"skip_bad": True}, "count": None, "split": "all"}]
    wanted = EvaluateSettings(questions=[*questions, {"task": "max", "count": 2}], max_tokens=48)
    made = evaluate(wanted, trained_student, tmp_path / "e", Serving(lambda: trained_server.endpoint))
    assert made.summary["mine"]["n_questions"] == 4 and made.summary["mine"]["rows_left_out"] == 3
    assert made.summary["max"]["rows_left_out"] == 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "rows left out" in line]
    said = "task mine: rows left out: 2 repeated, 1 malformed; the first is mine.jsonl:2 (the same question as row 1)"
    assert said in line


def test_who_answers_is_said_once(tmp_path):
    for given in (
        (None, None, None),
        (tmp_path, "http://a/v1", "m"),
        (tmp_path, None, "m"),
        (None, "http://a/v1", None),
    ):
        with pytest.raises(InputError):
            check_subject(*given)
    check_subject(tmp_path, None, None)
    check_subject(None, "http://a/v1", "m")
    assert budgets_of("64,none") == ("64", None) and budgets_of(None) == (None,)


def test_flags_that_lm_eval_decides_itself_are_refused(tmp_path):
    check_via("lm-eval", student=tmp_path, think="free", samples=1, temperature=0.0, data=None)
    for flags, said in (
        ({"student": None}, "needs STUDENT"),
        ({"samples": 4}, "--samples: not with --via lm-eval"),
        ({"thinking_budget": "64"}, "--thinking-budget: not with"),
    ):
        with pytest.raises(InputError, match=said):
            check_via("lm-eval", **flags)
    for via in ("other", None):
        with pytest.raises(InputError, match="--via"):
            check_via(via, student=tmp_path)
    assert counts_of({"a": None, "b": "all", "c": "7"}) == {"a": 300, "b": None, "c": 7}
