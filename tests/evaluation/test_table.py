"""The table of an evaluation in a terminal, the intervals in it, and questions as the command line writes them."""

import re
from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from distill import console
from distill.errors import InputError
from distill.evaluation.answers import Answer
from distill.evaluation.flags import questions_of
from distill.evaluation.grading import grade, summarise
from distill.evaluation.metric_intervals import metric_intervals
from distill.evaluation.questions import Asked
from distill.evaluation.samples_and_budgets import further_grades, headline
from distill.evaluation.settings import UP_TO, EvaluateSettings
from distill.evaluation.table import show_grades, show_lm_eval
from distill.settings import validate
from distill.tasks import get_task


def answered(rng, asked, *, samples=1, budgets=(None,)):
    """Graded answers: of each question the gold one, another question's, or an unfinished one."""
    made = []
    for problem in asked.problems:
        for budget in budgets:
            for sample in range(samples):
                kind = rng.integers(3)
                other = asked.problems[rng.integers(len(asked.problems))]
                thinking = int(rng.integers(3000))
                made.append(
                    Answer(
                        problem_id=problem.id,
                        task=problem.task,
                        prompt=problem.prompt,
                        gold=problem.gold,
                        token_ids=[],
                        thinking="",
                        answer=problem.gold if kind else other.gold,
                        prompt_tokens=5,
                        thinking_tokens=thinking,
                        answer_tokens=3,
                        thought=thinking > 1500,
                        finished=bool(kind < 2),
                        finish_reason="stop" if kind < 2 else "length",
                        correct=False,
                        seconds=0.1,
                        sample=sample,
                        budget=budget,
                    )
                )
    return grade([asked], made)


def asked_of(rng, task, count):
    found = get_task(task)
    return Asked(found, found.problems("test", count, int(rng.integers(1000))))


def test_the_interval_of_single_answers_is_wilsons(rng):
    asked = asked_of(rng, "record", int(rng.integers(20, 80)))
    answers = answered(rng, asked)
    found = metric_intervals(asked, [answers[i] for i in rng.permutation(len(answers))])
    low, high = proportion_confint(sum(a.correct for a in answers), len(answers), method="wilson")
    assert [found["accuracy"]["low"], found["accuracy"]["high"]] == pytest.approx([low, high], abs=1e-9)
    metrics = summarise([asked], answers, None)["record"]["metrics"]
    assert list(found) == list(metrics)
    for name, value in metrics.items():
        assert 0 <= found[name]["low"] < value < found[name]["high"] <= 1


def test_samples_of_one_question_are_one_observation(rng):
    asked = asked_of(rng, "add", 40)
    answers = answered(rng, asked, samples=4)
    found = metric_intervals(asked, answers)["accuracy"]
    assert found == pytest.approx(
        {name: further_grades(answers, "open")["samples"]["pass_at_1"][name] for name in ("low", "high")}
    )
    # Four copies of one answer say no more than the answer does.
    once = [a for a in answers if a.sample == 0]
    copies = [replace(a, sample=i) for a in once for i in range(4)]
    assert metric_intervals(asked, copies)["accuracy"] == pytest.approx(metric_intervals(asked, once)["accuracy"])


def test_the_table_says_what_the_grades_say_in_100_columns(rng, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console.out, "width", 100)
    asked = asked_of(rng, "record", 30)
    answers = answered(rng, asked, samples=2, budgets=(64, 1024, None))
    main = headline(answers)
    grades = summarise([asked], main, None)
    grades["record"] |= further_grades(answers, "extraction") | {"intervals": metric_intervals(asked, main)}
    grades["record"]["grading"]["failures"] = {"time": 2, "memory": 1}
    one, two = ({name: rng.random() for name in ("value", "low", "high")} for _ in range(2))
    grades["record"]["loglikelihood"] = {"n_questions": 30, "sum": one, "per_byte": two}
    show_grades(tmp_path / "[red]x", {"mmlu-pro-physics": grades["record"], "add": grades["record"]})
    said = capsys.readouterr()
    assert "[red]x" in said.out and "2 time, 1 memory" in said.err
    lines = [line for line in said.out.splitlines() if "[red]x" not in line]
    assert max(len(line.rstrip()) for line in lines) <= 100 and "…" not in said.out
    row = next(line for line in lines if "accuracy" in line)
    found = grades["record"]
    shares = [found["metrics"]["accuracy"], *found["intervals"]["accuracy"].values()]
    means = found["tokens_per_answer"]
    wanted = [100 * s for s in shares] + [30, 2] + [100 * found["unfinished_rate"], 100 * found["think_rate"]]
    read = [float(n.replace(",", "")) for n in re.findall(r"\d[\d,.]*", row)]
    assert read == pytest.approx([*wanted, means["thinking"], means["answer"]], abs=0.51)
    assert read[:3] == pytest.approx(wanted[:3], abs=0.051)
    for name in (
        "macro_f1",
        "rouge_l",
        "majority@2",
        "budget 64",
        "budget 1,024",
        "no budget",
        "log-likelihood",
        "per byte",
    ):
        assert f" {name} " in said.out
    for name in ("if finished", "if it thought", "if it did not"):
        assert f" {name} " in said.out
    for kind in ("right", "wrong"):
        (row, other) = (re.findall(r"\d[\d,.]*", line) for line in lines if f" if {kind} " in line)
        means = [found["tokens_by_grade"][kind][part] for part in ("thinking", "answer")]
        assert row == other and [float(n.replace(",", "")) for n in row] == pytest.approx(means, abs=0.51)
    disagreed = found["audit"]["n_disagree"]
    assert ("a second checker" in said.err) == bool(disagreed)


def test_it_is_said_where_nobody_checked_the_grades(rng, tmp_path, capsys):
    asked = asked_of(rng, "add", 5)
    grades = summarise([asked], answered(rng, asked), None)["add"]
    nobody = grades | {"audit": None, "grading": grades["grading"] | {"not_audited": "a single judge"}}
    no_word = grades | {"audit": grades["audit"] | {"n_answers": 0, "second_checker": "plain rules"}}
    show_grades(tmp_path, {"one": nobody, "two": no_word})
    said = capsys.readouterr().err
    assert "one: no second checker looked at its grades (a single judge)" in said
    assert "two: the second checker (plain rules) has no word on any of its answers" in said


def test_what_lm_eval_says_is_shown_with_its_standard_errors(capsys, tmp_path):
    metrics = {"acc,none": 0.25, "acc_stderr,none": 0.0625, "f1,flexible": 0.5, "alias": 3}
    show_lm_eval(tmp_path, {"arc_[b]easy": {"metrics": metrics, "questions": {"original": 9, "effective": 4}}})
    said = capsys.readouterr().out
    assert re.search(r"arc_\[b\]easy +acc,none +0\.2500 +0\.0625 +4", said)
    assert re.search(r"f1,flexible +0\.5000 +– *\n", said) and "alias" not in said
    show_lm_eval(tmp_path, {"t": {"metrics": {}, "questions": None}})


def test_questions_of_the_command_line(rng):
    number = int(rng.integers(1, 10**6))
    counts = {"add": None, "aime": "all", "max": str(number)}
    own = {"prompt": "q", "answer": "a.b", "checker": "number"}
    values = questions_of(counts, ["mine=x.jsonl", "winogrande=rows/"], own, split=None, seed=3)
    found = {q.task: q for q in validate(EvaluateSettings, {"questions": values}, source="s").questions}
    assert {name: q.count for name, q in found.items()} == {
        "add": UP_TO,
        "aime": None,
        "max": number,
        "mine": None,
        "winogrande": UP_TO,
    }
    assert found["mine"].data.answer == "a.b" and found["mine"].split == "all" and found["max"].split == "test"
    assert str(found["winogrande"].data) == "rows" and found["add"].data is None
    for text in ("0", "-1", "ten", "1e3", "", "٣", "9" * 5000, "1.5"):
        with pytest.raises(InputError, match="expected how many questions, a whole number above 0, or all"):
            questions_of({"add": text}, [], {}, split=None, seed=0)
    assert np.all([q.seed == 3 for q in found.values()])
