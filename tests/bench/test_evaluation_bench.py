"""`distill bench evaluation`: both sides are asked the same, made-up answers are graded as made, and what comes is shown."""

import json

import pytest

from distill.bench.evaluation import CHECKERS, EvaluationBenchSettings, bench_evaluation, evaluation_targets
from distill.bench.evaluation_generation import TURNS, _Work, measure_journal
from distill.bench.evaluation_grading import made_answers, measure_grading
from distill.bench.report import render_report
from distill.evaluation.subject import load_subject


def test_both_sides_get_the_same_requests_and_none_twice(tiny_student, rng):
    bench = EvaluationBenchSettings(
        questions=int(rng.integers(8, 30)), tokens=int(rng.integers(16, 99)), rounds=2, seed=int(rng.integers(99))
    )
    work, again = (_Work.of(bench, load_subject(tiny_student)) for _ in range(2))
    taken = [work.take(bench.questions) for _ in range(6)]  # of two rounds and the one before
    assert [len(batch) for batch in taken] == [bench.questions] * 6
    assert taken[0] == again.take(bench.questions)
    assert len({tuple(r.prompt) for batch in taken for r in batch}) == 6 * bench.questions
    for request in taken[0]:
        told = work.offline(request)
        assert told["prompt_token_ids"] == request.prompt and 1 <= request.max_tokens <= bench.tokens
        assert (told["max_tokens"], told["seed"]) == (request.max_tokens, request.seed(bench.seed))
        assert (told["temperature"], told["top_p"]) == (work.settings.temperature, work.settings.top_p)
        assert told["stop_token_ids"] == [3]


@pytest.mark.parametrize("checker", ["choice", "number"])
def test_every_other_answer_is_right(checker, rng):
    count = int(rng.integers(2, 300))
    found = measure_grading(EvaluationBenchSettings(answers=count, seed=int(rng.integers(99))), checker)
    assert (found["answers"], found["correct"], found["workers"]) == (count, -(-count // 2), 0)
    assert len(found["measured"]["seconds"]["rounds"]) == 3


def test_the_slow_checkers_grade_as_well(rng):
    settings = EvaluationBenchSettings(answers=24, grading_rounds=1, workers=1, seed=int(rng.integers(1000)))
    for checker in ("ifeval", "math"):
        if checker == "ifeval":
            pytest.importorskip("lm_eval")
        found = measure_grading(settings, checker)
        assert (found["answers"], found["correct"], found["workers"]) == (24, 12, 1)


def test_made_answers_are_the_same_for_the_same_seed():
    for checker in CHECKERS:
        assert made_answers(checker, 20, 1) == made_answers(checker, 20, 1) != made_answers(checker, 20, 2)


def result_of(value, seconds=2.0):
    ratio = {"value": value, "low": value / 1.1, "high": value * 1.1, "rounds": [value, value]}
    rates = {who: {"median": 900.0, "rounds": [900.0] * 2} for who in TURNS[:2]}
    measured = rates | {"ratio": ratio, "interrupted": ratio, "again": {"median": 0.05, "rounds": [0.05] * 2}}
    entry = {"model": "tiny", "parameters": 120_000, "requests": 8, "kept": 4, "measured": measured}
    times = {"median": seconds, "rounds": [seconds] * 2}
    graded = [
        {"checker": name, "answers": 10_000, "correct": 5000, "workers": workers, "measured": {"seconds": times}}
        for name, workers in (("number", 0), ("ifeval", 2), ("math", 2))
    ]
    return {
        "machine": {"processor": "p", "cores": 2, "load_before": 0.1, "python": "3", "versions": {}},
        "settings": EvaluationBenchSettings(rounds=2).model_dump(mode="json"),
        "generation": [entry],
        "journal": {"answers": 10_000, "tokens": 192, "measured": {"seconds": {"median": 0.5, "rounds": [0.5]}}},
        "grading": graded,
    }


@pytest.mark.parametrize(("value", "seconds", "words"), [(0.951, 2, ["met"] * 3), (0.94, 61, ["missed"] * 3)])
def test_the_page_says_whether_targets_are_met(tmp_path, value, seconds, words):
    """Of math nothing is wanted."""
    result = result_of(value, float(seconds))
    assert [row[-1] for row in evaluation_targets(result)] == words
    (tmp_path / "evaluation-cpu.json").write_text(json.dumps(result))
    page, _ = render_report(tmp_path)
    assert "distill bench evaluation --rounds 2`" in page and "| tiny (0.12M parameters) | 4 of 8 | 5.0% |" in page
    assert "reads 10,000 kept answers in 0.50 s" in page and page.count(f"| {words[0]} |") == 3
    few = result_of(value, float(seconds))
    few["grading"] = [entry | {"answers": 500} for entry in few["grading"]]
    assert len(evaluation_targets(few)) == 1  # starting processes is too much of it to be scaled


def test_a_kept_answer_is_read_back(tmp_path, rng):
    settings = EvaluationBenchSettings(answers=int(rng.integers(2, 50)), tokens=16, grading_rounds=2)
    found = measure_journal(settings, tmp_path)
    assert found["answers"] == settings.answers and len(found["measured"]["seconds"]["rounds"]) == 2


@pytest.mark.long
def test_it_runs(trained_student):
    settings = EvaluationBenchSettings(
        models=("tiny", str(trained_student)), questions=40, tokens=32, rounds=2, checkers=("number",), answers=20
    )
    result = bench_evaluation(settings)
    random_one, trained = result["generation"]
    assert random_one["parameters"] > 1e5 and trained["parameters"] is None
    for entry in (random_one, trained):
        measured = entry["measured"]
        assert entry["kept"] == 20 and measured["ratio"]["value"] > 0 and min(measured["again"]["rounds"]) >= 0
        assert all(len(measured[who]["rounds"]) == 2 for who in TURNS[:2])
