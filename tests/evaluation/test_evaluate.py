"""A trained student through the real vLLM server: same answers everywhere, nothing asked twice after a kill."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill import artifact
from distill.errors import InputError
from distill.evaluation.answer_file import read_answers
from distill.evaluation.evaluate import all_grades, evaluate, evaluation_recipe
from distill.evaluation.generate import JOURNAL
from distill.evaluation.questions import Asked, ask
from distill.evaluation.server import Serving
from distill.evaluation.settings import EvaluateSettings
from distill.evaluation.subject import load_subject
from distill.kernels import register_attention
from distill.process import child_environment
from distill.serve import Endpoint, Server, ServerSettings
from distill.tasks import get_task

NEAR_TIE = 1e-3  # in logits: float32 sums in another order differ by about 1e-5 here
QUESTIONS = 80


def settings(count=QUESTIONS, **changes):
    return EvaluateSettings(questions=[{"task": "max", "count": count, "seed": 5}], max_tokens=48, **changes)


@pytest.fixture(scope="module")
def evaluated(trained_server, trained_student, tmp_path_factory):
    """The finished evaluation of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("evaluated") / "e"
    return evaluate(settings(), trained_student, out, Serving(lambda: trained_server.endpoint))


@pytest.fixture(scope="module")
def answers(evaluated):
    return read_answers(evaluated.path / "answers.parquet")


def prompt_of(tokenizer, answer):
    chat = [{"role": "user", "content": answer.prompt}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


def assert_greedy(answers, tokenizer, next_logits, near_tie=lambda row: NEAR_TIE):
    """`next_logits(ids)[n, V]` after each token of `ids`. Every generated token is the best one, or as good as."""
    compared = 0
    for answer in answers:
        prompt = prompt_of(tokenizer, answer)
        logits = next_logits(prompt + answer.token_ids)[len(prompt) - 1 : -1]
        for row, token in zip(logits, answer.token_ids, strict=True):
            best, second = row.topk(2).values.tolist()
            if token != int(row.argmax()):
                assert best - float(row[token]) < near_tie(row)
            if best - second < near_tie(row):
                break  # from here on two right runs may go two ways
            compared += 1
    assert compared > 0.9 * sum(len(answer.token_ids) for answer in answers)


def test_vllm_says_what_transformers_would(answers, trained_student):
    model = AutoModelForCausalLM.from_pretrained(trained_student, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained_student)
    with torch.inference_mode():
        assert_greedy(answers, tokenizer, lambda ids: model(torch.tensor([ids])).logits[0])


def test_vllm_says_what_the_trainers_own_model_would(answers, trained_student):
    """The model as it is trained: packed rows, per-document attention of distill.kernels."""
    register_attention()
    model = AutoModelForCausalLM.from_pretrained(
        trained_student, dtype=torch.float32, attn_implementation="distill"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained_student)
    neighbour = torch.randint(0, 200, (17,)).tolist()

    def next_logits(ids):
        n, m = len(neighbour), len(ids)
        bounds = torch.tensor([0, n, n + m], dtype=torch.int32)
        with torch.inference_mode():
            return model(
                input_ids=torch.tensor([neighbour + ids]),
                position_ids=torch.tensor([[*range(n), *range(m)]]),
                use_cache=False,
                cu_seq_lens_q=bounds,
                cu_seq_lens_k=bounds,
                max_length_q=max(n, m),
                max_length_k=max(n, m),
            ).logits[0, n:]

    assert_greedy(answers, tokenizer, next_logits)


@pytest.mark.long
def test_in_bf16_vllm_leaves_fp32_only_at_a_near_tie(answers, trained_student, tmp_path):
    """bf16 keeps 8 bits, and errors of several layers add up: within 2^-5 of the largest logit two tokens are a tie."""
    with Server(
        trained_student, ServerSettings(dtype="bfloat16", max_model_len=256, threads=1), tmp_path / "log"
    ) as server:
        evaluated = evaluate(settings(), trained_student, tmp_path / "e", Serving(lambda: server.endpoint))
    model = AutoModelForCausalLM.from_pretrained(trained_student, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained_student)
    with torch.inference_mode():
        assert_greedy(
            read_answers(evaluated.path / "answers.parquet"),
            tokenizer,
            lambda ids: model(torch.tensor([ids])).logits[0],
            near_tie=lambda row: float(row.abs().max()) * 2**-5,
        )


def test_the_transformers_engine_gives_the_same_answers(answers, trained_student, tmp_path):
    other = evaluate(settings(engine="transformers"), trained_student, tmp_path / "e")
    theirs = read_answers(other.path / "answers.parquet")
    assert [a.problem_id for a in theirs] == [a.problem_id for a in answers]
    model = AutoModelForCausalLM.from_pretrained(trained_student, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained_student)
    for mine, their in zip(answers, theirs, strict=True):
        if mine.token_ids == their.token_ids:
            assert (mine.correct, mine.finished, mine.thinking, mine.answer) == (
                their.correct,
                their.finished,
                their.thinking,
                their.answer,
            )
            continue
        at = next(i for i, (a, b) in enumerate(zip(mine.token_ids, their.token_ids, strict=False)) if a != b)
        with torch.inference_mode():
            logits = model(torch.tensor([prompt_of(tokenizer, mine) + mine.token_ids[:at]])).logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        assert best - second < NEAR_TIE


def test_the_student_learned_something_and_its_grades_follow_from_its_answers(evaluated, answers):
    """Chance is one in four. Every count of grades.json can be recomputed from answers.parquet."""
    grades = json.loads((evaluated.path / "grades.json").read_text())["max"]
    task = get_task("max")
    problems = {p.id: p for p in task.problems("test", QUESTIONS, 5)}
    assert {a.problem_id for a in answers} == set(problems)
    right = [a.finished and task.is_correct(problems[a.problem_id], a.answer) for a in answers]
    assert [a.correct for a in answers] == right and grades["n_correct"] == sum(right) > QUESTIONS / 2
    assert grades["metrics"]["accuracy"] == pytest.approx(sum(right) / QUESTIONS)
    assert grades["tokens_per_answer"]["total"] == pytest.approx(sum(len(a.token_ids) for a in answers) / QUESTIONS)
    assert all(a.thought and "<think>" not in a.thinking and "<|end|>" not in a.answer for a in answers)
    assert all(a.seconds > 0 for a in answers)


class Proxy:
    """Forwards to a server a few requests at a time, and counts which prompts were asked."""

    def __init__(self, endpoint: Endpoint, at_a_time: int = 4):
        self.asked: Counter[tuple[int, ...]] = Counter()
        self.life = 0  # of the client: what a client that was killed still waits for is not forwarded
        gate = threading.Semaphore(at_a_time)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def forward(self, method, body=None):
                life = proxy.life
                with gate:
                    if life != proxy.life:
                        self.close_connection = True
                        return
                    if body:
                        proxy.asked[tuple(json.loads(body)["prompt"])] += 1
                        time.sleep(0.02)
                    headers = {**endpoint.headers, "Content-Type": "application/json"}
                    reply = httpx.request(
                        method,
                        endpoint.root_url + self.path,
                        content=body,
                        headers=headers,
                        timeout=60,
                        trust_env=False,
                    )
                self.send_response(reply.status_code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply.content)))
                self.end_headers()
                self.wfile.write(reply.content)

            def do_GET(self):
                self.forward("GET")

            def do_POST(self):
                self.forward("POST", self.rfile.read(int(self.headers["Content-Length"])))

            def handle_one_request(self):
                try:
                    super().handle_one_request()
                except OSError:  # the client was killed
                    self.close_connection = True

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = Endpoint(f"http://127.0.0.1:{self.server.server_port}/v1", endpoint.model)


RUN = (
    "import sys; from pathlib import Path; from distill.evaluation.evaluate import evaluate; "
    "from distill.evaluation.server import Serving; from distill.evaluation.settings import EvaluateSettings; "
    "from distill.serve import Endpoint; "
    "evaluate(EvaluateSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), "
    "Serving(lambda: Endpoint(sys.argv[4], sys.argv[5])))"
)


def untimed(grades):
    return {task: {k: v for k, v in values.items() if k != "measured"} for task, values in grades.items()}


def test_killed_and_run_again_it_asks_only_for_what_is_missing(
    trained_server, trained_student, evaluated, answers, tmp_path, rng
):
    out, proxy = tmp_path / "e", Proxy(trained_server.endpoint)
    arguments = [
        settings().model_dump_json(),
        str(trained_student),
        str(out),
        proxy.endpoint.base_url,
        proxy.endpoint.model,
    ]
    process = subprocess.Popen([sys.executable, "-c", RUN, *arguments], env=child_environment(1))
    journal = out / JOURNAL
    enough, deadline = int(rng.integers(3, QUESTIONS // 2)), time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < enough:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    proxy.life += 1
    assert not (out / "manifest.json").exists()
    whole = [line for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    kept = {row["key"]: row["value"] for row in map(json.loads, whole)}
    assert enough <= len(kept) < QUESTIONS
    time.sleep(1.0)  # until the proxy is done with what was in flight

    first = proxy.asked.copy()
    again = evaluate(settings(), trained_student, out, Serving(lambda: proxy.endpoint))
    asked_again = proxy.asked - first
    assert sum(asked_again.values()) == QUESTIONS - len(kept) and set(asked_again.values()) == {1}
    tokenizer = AutoTokenizer.from_pretrained(trained_student)
    finished = read_answers(again.path / "answers.parquet")
    for answer in finished:
        if answer.problem_id in kept:
            assert tuple(prompt_of(tokenizer, answer)) not in asked_again
            row = kept[answer.problem_id]
            assert (answer.token_ids, answer.finish_reason, answer.seconds) == (
                row["token_ids"],
                row["finish_reason"],
                row["seconds"],
            )
    shape = load_subject(trained_student).shape
    (asked,) = ask(settings().questions)
    same = {a.problem_id for a, b in zip(finished, answers, strict=True) if a.token_ids == b.token_ids}
    assert len(same) >= QUESTIONS - 2  # but for near-ties, batch sizes change nothing
    part = Asked(asked.task, [p for p in asked.problems if p.id in same])
    of_same = ([a for a in some if a.problem_id in same] for some in (finished, answers))
    ours, theirs = (untimed(all_grades([part], some, shape)) for some in of_same)
    assert ours == theirs
    assert untimed(again.summary) == untimed(all_grades([asked], finished, shape))
    assert again.key == evaluated.key and not journal.exists()

    count = sum(proxy.asked.values())
    evaluate(settings(), trained_student, out, Serving(lambda: proxy.endpoint))
    assert sum(proxy.asked.values()) == count  # a finished evaluation asks nothing


def test_questions_that_fail_are_said_and_the_others_kept(trained_server, trained_student, evaluated, tmp_path):
    proxy = Proxy(trained_server.endpoint, at_a_time=64)
    wrong_name = Endpoint(proxy.endpoint.base_url, "no-such-model")
    with pytest.raises(InputError, match=f"{QUESTIONS} of {QUESTIONS} questions got no answer"):
        evaluate(settings(), trained_student, tmp_path / "e", Serving(lambda: wrong_name))
    assert not (tmp_path / "e" / "manifest.json").exists()
    made = evaluate(settings(), trained_student, tmp_path / "e", Serving(lambda: proxy.endpoint))
    assert made.key == evaluated.key


def test_what_a_grade_depends_on_is_in_the_key(trained_student, tmp_path, evaluated):
    keys = {evaluated.key}
    for changes in ({"count": 40}, {"engine": "transformers"}, {"temperature": 0.5}, {"seed": 1}):
        changed = settings(**changes)
        recipe = evaluation_recipe(changed, load_subject(trained_student), ask(changed.questions))
        keys.add(artifact.content_key("evaluation", recipe))
    assert len(keys) == 5


def test_a_student_that_cannot_be_asked(trained_student, tmp_path):
    never = lambda: pytest.fail("a server was asked for")  # noqa: E731
    for student, reason in ((tmp_path / "none", "has no config.json"), (tmp_path, "has no config.json")):
        with pytest.raises(InputError, match=reason):
            evaluate(settings(), student, tmp_path / "e", Serving(never))
    with pytest.raises(InputError, match=r"need \d+ positions, but the model has 4096"):
        too_long = EvaluateSettings(questions=[{"task": "max", "count": 3}], max_tokens=5000)
        evaluate(too_long, trained_student, tmp_path / "e", Serving(never))
    with pytest.raises(InputError, match="named twice"):
        twice = EvaluateSettings(questions=[{"task": "max", "count": 3}] * 2)
        evaluate(twice, trained_student, tmp_path / "e", Serving(never))
    assert not (tmp_path / "e").exists()
