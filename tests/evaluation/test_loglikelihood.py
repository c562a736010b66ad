"""Options of multiple choice by log-likelihood, against transformers; and majority at another student's token cost."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from distill.errors import InputError
from distill.evaluation.answers import Answer
from distill.evaluation.evaluate import evaluate
from distill.evaluation.loglikelihood import loglikelihood_grades, options_of
from distill.evaluation.questions import Asked, ask, prompt_ids
from distill.evaluation.server import Serving
from distill.evaluation.settings import EvaluateSettings
from distill.evaluation.statistics.matched_majority import matched_majority
from distill.evaluation.subject import load_subject
from distill.tasks.problem import Problem


@pytest.fixture
def rows(tmp_path, rng):
    path = tmp_path / "rows.jsonl"
    with open(path, "w") as file:
        for i in range(8):
            options = ["word " * int(n) for n in rng.integers(1, 6, 4)]
            question = f"Number {i}?\n\nA) none\nB) none\n\nWhich?\n\n" + "\n".join(
                f"{letter}) {option.strip()} {i}" for letter, option in zip("ABCD", options, strict=True)
            )
            file.write(json.dumps({"prompt": question, "gold": "ABCD"[int(rng.integers(4))]}) + "\n")
    return path


def settings(path, **changes):
    data = {"path": path, "answer": "gold", "checker": "choice", "answer_format": "choice"}
    questions = [{"task": "mine", "data": data, "count": None, "split": "all"}]
    return EvaluateSettings(questions=questions, max_tokens=4, **changes)


@pytest.mark.parametrize("think", ["free", "off"])
def test_the_likeliest_option_is_what_transformers_finds(trained_server, trained_student, rows, tmp_path, think):
    wanted = settings(rows, score="loglikelihood", think=think)
    made = evaluate(wanted, trained_student, tmp_path / "e", Serving(lambda: trained_server.endpoint))
    section = made.summary["mine"]["loglikelihood"]
    subject, asked = load_subject(trained_student), ask(wanted.questions)
    model = AutoModelForCausalLM.from_pretrained(trained_student, dtype=torch.float32).eval()
    ids, closed = prompt_ids(subject, asked), [subject.chat.think_open_id, subject.chat.think_close_id]
    right, near = {"sum": 0, "per_byte": 0}, 0
    for problem in asked[0].problems:
        scores = {}
        for letter, text in options_of(problem).items():
            prompt = ids[problem.id] + (closed if think == "off" else [])
            option = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logprobs = model(torch.tensor([prompt + option])).logits[0].double().log_softmax(-1)
            total = sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(option))
            scores[letter] = (total, total / len(text.encode()))
        for place, name in enumerate(right):
            best, second, *_ = sorted(((v[place], k) for k, v in scores.items()), reverse=True)
            near += best[0] - second[0] < 1e-3
            right[name] += best[1] == problem.gold
    for name, count in right.items():
        assert abs(section[name]["value"] * 8 - count) <= near
        assert section[name]["low"] < section[name]["value"] + 1e-9 < section[name]["high"] + 2e-9
    assert made.summary["mine"]["metrics"].keys() == {"accuracy"}
    assert sorted(f.name for f in made.path.glob("*.journal.jsonl")) == []


def test_sum_and_per_byte_choose_by_their_own_measure():
    prompt = "Which?\n\nA) 5\nB) a much longer option\nC) 7"
    problem = Problem("t", prompt, "B", "choice")
    logprobs = {"A": -4.0, "B": -6.0, "C": -5.0}
    found = loglikelihood_grades(Asked(None, [problem]), lambda key: logprobs[key[-1]])
    assert (found["sum"]["value"], found["per_byte"]["value"], found["n_questions"]) == (0.0, 1.0, 1)


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("Q\n\nA) 1\nB) 2", {"A": "A) 1", "B": "B) 2"}),
        ("Q\n\nA)1\nB)2\nC) x", {"A": "A)1", "B": "B)2", "C": "C) x"}),
        ("A) old\nB) old\nC) old\n\nA) 1\nB) 2\n\nPut the letter.", {"A": "A) 1", "B": "B) 2"}),
        ("Q\nA) 1\nC) 3\nB) 2", {"A": "A) 1", "B": "B) 2"}),
    ],
)
def test_options_are_those_that_the_question_lists_last(prompt, options):
    assert options_of(Problem("t", prompt, "B", "choice")) == options


def test_what_has_no_options_is_refused(trained_student, tmp_path):
    for prompt, gold in (("max A3 B9", "B"), ("Q\nA) 1\nB) 2", "C"), ("", "A")):
        with pytest.raises(InputError, match="cannot be scored by log-likelihood"):
            options_of(Problem("max", prompt, gold, "choice"))
    never = lambda: pytest.fail("a server was asked for")  # noqa: E731
    for task, said in (("add", "is not multiple choice"), ("max", "no options")):
        wanted = EvaluateSettings(questions=[{"task": task, "count": 3}], score="loglikelihood")
        with pytest.raises(InputError, match=said):
            evaluate(wanted, trained_student, tmp_path / "e", Serving(never))
    wanted = EvaluateSettings(questions=[{"task": "max", "count": 3}], score="loglikelihood", think="on")
    with pytest.raises(InputError, match="use --think off"):
        evaluate(wanted, trained_student, tmp_path / "e", Serving(never))


def test_tasks_without_options_are_left_out_and_said(trained_server, trained_student, rows, tmp_path, capfd):
    mine = settings(rows).questions[0].model_dump()
    others = [{"task": "add", "count": 2}, {"task": "max", "count": 2}]
    wanted = EvaluateSettings(questions=[others[0], mine, others[1]], max_tokens=4, score="loglikelihood")
    made = evaluate(wanted, trained_student, tmp_path / "e", Serving(lambda: trained_server.endpoint))
    assert [name for name, grades in made.summary.items() if "loglikelihood" in grades] == ["mine"]
    assert made.summary["mine"]["loglikelihood"]["n_questions"] == 8
    said = [line for line in capfd.readouterr().err.splitlines() if "leaves out" in line]
    assert "task add: is not multiple choice" in said[0] and "task max: cannot be scored" in said[1] and len(said) == 2


# ---------------------------------------------------------------------------------------------- majority


def made(question, sample, answer, correct, tokens):
    return Answer(
        problem_id=question, task="t", prompt="", gold="", token_ids=[], thinking="", answer=answer, prompt_tokens=1,
        thinking_tokens=0, answer_tokens=tokens, thought=False, finished=True, finish_reason="stop",
        correct=correct, seconds=0.0, sample=sample,
    )  # fmt: skip


def test_majority_at_the_cost_of_reasoning(rng):
    """k from the tokens; the majority of every k of the n samples, by trying them all."""
    from itertools import combinations

    questions = [f"q{i}" for i in range(6)]
    draws = rng.integers(0, 3, (6, 5))
    sampled = [made(q, s, "ABC"[draws[i, s]], draws[i, s] == 0, 2) for i, q in enumerate(questions) for s in range(5)]
    other = [made(q, 0, "A", True, 6) for q in reversed(questions)]
    found = matched_majority(sampled, other, "choice")
    assert (found.k, found.tokens, found.matched_tokens, found.problem_ids) == (3, 6.0, 6.0, questions)
    for i, score in enumerate(found.scores):
        chances = []
        for chosen in combinations(range(5), 3):
            counts = np.bincount(draws[i, list(chosen)], minlength=3)
            chances.append((counts[0] == counts.max()) / (counts == counts.max()).sum())
        assert score == pytest.approx(np.mean(chances))


def test_majority_at_a_cost_that_cannot_be_met():
    sampled = [made("q", s, "A", True, 2) for s in range(3)]
    with pytest.raises(InputError, match="needs 8 samples of each question, found 3; evaluate with --samples 8"):
        matched_majority(sampled, [made("q", 0, "A", True, 16)], "choice")
    with pytest.raises(InputError, match="not of the same questions"):
        matched_majority(sampled, [made("p", 0, "A", True, 4)], "choice")
    assert matched_majority(sampled, [made("q", 0, "A", True, 1)], "choice").k == 1
    assert math.isclose(matched_majority(sampled, [made("q", 0, "A", True, 6)], "choice").scores[0], 1.0)
