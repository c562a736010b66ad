"""Metrics against their definitions, and that a resample is what weights say it is."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from distill.tasks import get_task
from distill.tasks.record import LABELS


def exact_macro_f1(gold: list[str], found: list[str]) -> Fraction:
    total = Fraction(0)
    for label in set(gold):
        hits = sum(g == f == label for g, f in zip(gold, found, strict=True))
        total += Fraction(2 * hits, gold.count(label) + found.count(label))
    return total / len(set(gold))


def exact_rouge_l(gold: str, found: str) -> Fraction:
    a, b = gold.split(), found.split()
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    common = table[-1][-1]
    return Fraction(2 * common, len(a) + len(b))


@pytest.fixture
def graded():
    """Problems, and answers of which some are wrong in some way."""
    rng = random.Random()
    problems = get_task("record").problems("test", 150, rng.randrange(1000))
    answers = []
    for problem in problems:
        words = problem.gold.split()
        kind = rng.randrange(6)
        if kind == 0:
            words[2:] = rng.choice(LABELS).split()
        elif kind == 1:
            words = words[: rng.randrange(1, 4)]
        elif kind == 2:
            words[rng.randrange(4)] = "nothing"
        elif kind == 3:
            rng.shuffle(words)
        answers.append(" ".join(words))
    return problems, answers


def table(metric, problems, answers):
    rows = [metric.rows(problem, answer) for problem, answer in zip(problems, answers, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_values_match_their_definitions(graded):
    problems, answers = graded
    metrics = get_task("record").metrics
    assert list(metrics) == ["accuracy", "macro_f1", "rouge_l"]
    right = Fraction(sum(p.gold == a for p, a in zip(problems, answers, strict=True)), len(problems))
    assert metrics["accuracy"].score(problems, answers) == pytest.approx(float(right), abs=1e-12)

    found = [" ".join(a.split()[-2:]) for a in answers]
    found = [label if label in LABELS else "none" for label in found]
    expected = exact_macro_f1([" ".join(p.gold.split()[-2:]) for p in problems], found)
    assert metrics["macro_f1"].score(problems, answers) == pytest.approx(float(expected), abs=1e-12)

    rouge = [exact_rouge_l(p.gold, a) for p, a in zip(problems, answers, strict=True)]
    assert metrics["rouge_l"].score(problems, answers) == pytest.approx(float(sum(rouge) / len(rouge)), abs=1e-12)


def test_weights_are_repetitions(graded):
    problems, answers = graded
    for metric in get_task("record").metrics.values():
        columns = table(metric, problems, answers)
        weights = np.random.default_rng().integers(0, 4, len(problems))
        labels = columns.get("gold_label")
        if labels is not None:  # every label is still there, so that the mean is over the same ones
            weights[[list(labels).index(label) for label in set(labels)]] += 1
        repeated = {name: np.repeat(column, weights) for name, column in columns.items()}
        assert metric.value(columns, weights) == pytest.approx(metric.value(repeated), abs=1e-12)
        assert metric.value(columns, np.ones(len(problems), int)) == pytest.approx(metric.value(columns), abs=1e-12)


def test_an_unknown_label_is_wrong_and_not_a_class_of_the_mean():
    metric = get_task("record").metrics["macro_f1"]
    problems = get_task("record").problems("test", 60, 0)
    assert metric.score(problems, [p.gold for p in problems]) == 1
    assert metric.score(problems, [""] * 60) == 0
    assert metric.score(problems, ["tech"] * 60) == 0


def test_no_rows_are_no_number():
    for name in ("add", "max", "record"):
        for metric in get_task(name).metrics.values():
            assert math.isnan(metric.score([], []))
            empty = {key: [] for key in metric.rows(get_task(name).problems("test", 1, 0)[0], "")}
            assert math.isnan(metric.value(empty))
