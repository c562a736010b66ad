"""An arm that thinks before some of its answers only is shown in two lines, counted over all its students."""

import random
import re
from types import SimpleNamespace

import pytest

from distill.evaluation.samples_and_budgets import further_grades
from distill.study.found import asked_and_graded
from distill.study.page.numbers import numbers


def answer(thought: bool) -> SimpleNamespace:
    return SimpleNamespace(
        problem_id=str(random.getrandbits(64)),
        answer="A",
        correct=random.random() < 0.5,
        finished=random.random() < 0.8,
        thought=thought,
        budget=None,
        sample=0,
        thinking_tokens=random.randint(1, 99) if thought else 0,
        answer_tokens=random.randint(1, 9),
    )


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def tokens_of(answers: list) -> dict[str, float]:
    found = {name: mean(getattr(a, f"{name}_tokens") for a in answers) for name in ("thinking", "answer")}
    return found | {"total": sum(found.values())}


def summary(answers: list) -> dict:
    return {
        "n_answers": len(answers),
        "n_correct": sum(a.correct for a in answers),
        "unfinished_rate": mean(not a.finished for a in answers),
        "think_rate": mean(a.thought for a in answers),
        "accuracy_finished": 0.5,
        "tokens_per_answer": {"prompt": 5.0, **tokens_of(answers)},
        **further_grades(answers, "choice"),
    }


def graded(seeds: list[list]) -> dict:
    metrics = {"accuracy": {"value": mean(a.correct for answers in seeds for a in answers)}}
    asked = SimpleNamespace(problems=[None] * len(seeds[0]))
    return asked_and_graded(asked, metrics, [summary(answers) for answers in seeds], flops=None, seconds=None, usd=None)


def test_both_parts_are_counted_over_all_seeds_and_shown(undocumented):
    # One seed always thinks, one never, and one does either.
    seeds = [[answer(thought) for thought in (True,) * n + (False,) * (12 - n)] for n in (12, 0, random.randint(1, 11))]
    result = graded(seeds)
    assert not undocumented({"by_thinking": result["by_thinking"]})
    for name, thought in (("thought", True), ("did_not", False)):
        mine, part = [a for answers in seeds for a in answers if a.thought == thought], result["by_thinking"][name]
        assert (part["n_answers"], part["n_correct"]) == (len(mine), sum(a.correct for a in mine))
        assert part["unfinished_rate"] == pytest.approx(mean(not a.finished for a in mine))
        assert part["tokens_per_answer"] == pytest.approx(tokens_of(mine))
    task = {"name": "max", "metrics": ["macro_f1", "accuracy"], "questions": 12}
    cell = {"id": "tiny-mixed0.5", "tasks": {"max": result}}
    (table,) = numbers({"tasks": [task], "cells": [cell]})
    (group,) = table.groups
    assert [row[0].text for row in group.rows] == [
        "tiny-mixed0.5",
        "tiny-mixed0.5, where it thought",
        "tiny-mixed0.5, where it did not",
    ]
    assert {len(row) for row in group.rows} == {len(table.columns)}
    for row, part in zip(group.rows[1:], result["by_thinking"].values(), strict=True):
        assert float(re.sub("[^0-9.]", "", row[2])) == pytest.approx(
            100 * part["n_correct"] / part["n_answers"], abs=0.06
        )


@pytest.mark.parametrize("thought", [True, False])
def test_an_arm_of_one_kind_has_one_line(thought):
    assert "by_thinking" not in graded([[answer(thought) for _ in range(5)] for _ in range(2)])


def test_a_mix_that_was_graded_before_there_were_parts_has_none():
    old = summary([answer(i % 2 == 0) for i in range(6)])
    del old["by_thinking"]
    asked = SimpleNamespace(problems=[None] * 6)
    found = asked_and_graded(asked, {"accuracy": {"value": 0.5}}, [old], flops=None, seconds=None, usd=None)
    assert "by_thinking" not in found
