"""Metrics against their definitions, and that a resample is what weights say it is."""

import json
import math
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from distill.errors import InputError
from distill.tasks import get_task
from distill.tasks.benchmark import BENCHMARKS, FOLDER, load_benchmark
from distill.tasks.benchmark_task import open_benchmark
from distill.tasks.checkers import Verdict, check
from distill.tasks.metrics import METRICS, mean_f1
from distill.tasks.problem import Problem
from distill.tasks.record import LABELS
from distill.tasks.task import ratio_of_sums

ROWS = Path(__file__).parent / "benchmark_rows"


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


def checked(problems, answers):
    return [check(get_task(p.task).checker, p.gold, answer) for p, answer in zip(problems, answers, strict=True)]


def table(metric, problems, answers):
    rows = [metric.rows(*one) for one in zip(problems, answers, checked(problems, answers), strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_values_match_their_definitions(graded):
    problems, answers = graded
    metrics = get_task("record").metrics
    assert list(metrics) == ["accuracy", "macro_f1", "rouge_l"]
    right = Fraction(sum(p.gold == a for p, a in zip(problems, answers, strict=True)), len(problems))
    assert metrics["accuracy"].score(problems, answers, checked(problems, answers)) == pytest.approx(
        float(right), abs=1e-12
    )

    found = [" ".join(a.split()[-2:]) for a in answers]
    found = [label if label in LABELS else "none" for label in found]
    expected = exact_macro_f1([" ".join(p.gold.split()[-2:]) for p in problems], found)
    assert metrics["macro_f1"].score(problems, answers, checked(problems, answers)) == pytest.approx(
        float(expected), abs=1e-12
    )

    rouge = [exact_rouge_l(p.gold, a) for p, a in zip(problems, answers, strict=True)]
    assert metrics["rouge_l"].score(problems, answers, checked(problems, answers)) == pytest.approx(
        float(sum(rouge) / len(rouge)), abs=1e-12
    )


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
    for answers, expected in (([p.gold for p in problems], 1), ([""] * 60, 0), (["tech"] * 60, 0)):
        assert metric.score(problems, answers, checked(problems, answers)) == expected


def test_no_rows_are_no_number():
    for name in ("add", "max", "record"):
        for metric in get_task(name).metrics.values():
            assert math.isnan(metric.score([], [], []))
            empty = {key: [] for key in metric.rows(get_task(name).problems("test", 1, 0)[0], "", Verdict(False))}
            assert math.isnan(metric.value(empty))


def random_text(rng, words=12):
    return " ".join(rng.choice(["red", "blue", "sea", "fox", "a", "the", "ran", "nine"], int(rng.integers(1, words))))


def test_squad_f1_is_that_of_the_library(rng):
    from transformers.data.metrics.squad_metrics import compute_f1

    for _ in range(200):
        accepted = [random_text(rng) + " end" for _ in range(int(rng.integers(1, 4)))]
        text = random_text(rng)
        problem = Problem("squad", "q", json.dumps(accepted), "open")
        (row,) = [METRICS["squad_f1"]([problem]).rows(problem, f"so \\boxed{{{text.title()}!}}", Verdict(False))]
        assert row["f1"] == pytest.approx(max(compute_f1(one, text) for one in accepted))


def test_macro_f1_of_label_sets(rng):
    """Against its definition, and that a resample counts as repetitions."""
    known = ["tech", "billing", "churn", "praise"][: int(rng.integers(1, 5))]
    draw = lambda extra=(): [w for w in [*known, *extra] if rng.random() < 0.5]  # noqa: E731
    golds = [list(known), *(draw() for _ in range(39))]
    found = [draw(["other"]) for _ in golds]
    problems = [Problem("labels", f"q{i}", json.dumps(gold), "labels") for i, gold in enumerate(golds)]
    metric = METRICS["macro_f1"](problems)
    answers = [f"\\boxed{{{', '.join(one) or 'none'}}}" for one in found]
    verdicts = [Verdict(False)] * len(answers)
    expected = []
    for label in known:
        hits = sum(label in g and label in f for g, f in zip(golds, found, strict=True))
        total = sum(label in g for g in golds) + sum(label in f for f in found)
        expected.append(2 * hits / total)
    assert metric.score(problems, answers, verdicts) == pytest.approx(np.mean(expected))
    assert metric.score(problems, [", ".join(g) or "none" for g in golds], verdicts) == 1
    rows = [metric.rows(*one) for one in zip(problems, answers, verdicts, strict=True)]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    weights = rng.integers(0, 4, len(rows))
    repeated = {name: np.repeat(column, weights) for name, column in columns.items()}
    assert metric.value(columns, weights) == pytest.approx(metric.value(repeated), abs=1e-12)
    assert math.isnan(metric.value({name: column[:0] for name, column in columns.items()}))


@pytest.mark.parametrize("kind", ["label sets", "empty label sets", "one label each", "absent labels"])
def test_macro_f1_of_many_draws_is_sklearns_of_each(rng, kind):
    """One draw is all zeros but a row, so that most labels are in no gold and no found set of it."""
    from sklearn.metrics import f1_score

    n, labels = int(rng.integers(2, 60)), int(rng.integers(1, 7))
    gold, found = rng.random((2, n, labels)) < rng.random((2, 1, labels))
    if kind == "empty label sets":
        empty = rng.random((2, n, 1)) < 0.5
        gold, found = gold & ~empty[0], found & ~empty[1]
    elif kind == "one label each":
        gold, found = (np.arange(labels) == rng.integers(0, labels, (2, n, 1))).astype(bool)
    elif kind == "absent labels":
        gold, found = gold & (np.arange(labels) > 0), found & (np.arange(labels) != 1)
    weights = np.vstack([rng.integers(0, 4, (20, n)), rng.random((3, n)), np.eye(n)[:1], np.ones((1, n))])
    weights[weights.sum(axis=1) == 0, 0] = 1
    columns = [np.column_stack([table, np.zeros(n)]).astype(int) for table in (gold, found)]
    expected = [
        f1_score(*columns, labels=range(labels), average="macro", zero_division=0, sample_weight=w) for w in weights
    ]
    scores = mean_f1(gold, found, weights)
    assert scores.shape == (len(weights),) and scores == pytest.approx(expected, abs=1e-12)
    assert mean_f1(gold, found) == pytest.approx(expected[-1], abs=1e-12)
    assert mean_f1(gold, found, weights[0]) == pytest.approx(expected[0], abs=1e-12)
    assert np.isnan(mean_f1(gold, found, np.zeros((2, n)))).all()


def test_every_metric_takes_many_draws_at_once(rng, graded):
    problems, answers = graded
    weights = np.vstack([rng.integers(0, 3, (7, len(problems))), np.zeros((1, len(problems)), int)])
    for metric in get_task("record").metrics.values():
        columns = table(metric, problems, answers)
        each = [metric.value(columns, w) for w in weights]
        assert metric.value(columns, weights) == pytest.approx(each, nan_ok=True) and math.isnan(each[-1])
    rules = json.dumps({"instruction_id_list": ["punctuation:no_comma"] * 3, "kwargs": [{}] * 3})
    problem = Problem("rules", "q", rules, "open")
    metric = METRICS["instruction_accuracy"]([problem])
    followed = rng.integers(0, 4, len(problems))
    rows = [metric.rows(problem, "", Verdict(False, scores={"followed": float(k)})) for k in followed]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    expected = [Fraction(int(w @ followed), int(3 * w.sum())) for w in weights[:-1]]
    assert metric.value(columns, weights[:-1]) == pytest.approx([float(share) for share in expected])
    none = METRICS["macro_f1"]([])
    assert math.isnan(none.value({})) and np.isnan(none.value({}, weights)).all() and len(none.value({}, weights)) == 8


def test_a_ratio_of_sums_is_numpys_average(rng):
    values, counts, weights = rng.normal(size=50), rng.random(50) + 0.1, rng.random((4, 50))
    expected = [np.average(values / counts, weights=w * counts) for w in weights]
    assert ratio_of_sums(values, counts, weights) == pytest.approx(expected)
    assert ratio_of_sums(values, counts, weights[0]) == pytest.approx(expected[0])
    assert ratio_of_sums(values, counts) == pytest.approx(values.sum() / counts.sum())
    assert math.isnan(ratio_of_sums([], [])) and math.isnan(ratio_of_sums([1.0], [0.0]))


def test_rouge_l_is_of_the_final_answer(rng):
    problem = Problem("extraction", "q", "nova corp tech risk", "extraction")
    metric = METRICS["rouge_l"]([problem])
    assert metric.rows(problem, "nova nova \\boxed{nova tech}", Verdict(False))["rouge_l"] == pytest.approx(2 / 3)
    assert metric.rows(problem, "", Verdict(False)) == {"rouge_l": 0}


def test_a_benchmark_file_names_only_metrics_that_there_are(tmp_path):
    for name in BENCHMARKS:
        benchmark = load_benchmark(name)
        assert set(benchmark.metrics) <= set(METRICS)
        assert list(open_benchmark(name, ROWS / f"{name}.jsonl").metrics) == list(benchmark.metrics)
    text = (FOLDER / "squad.yaml").read_text()
    for metric, message in (
        ("bleu", "unknown metric 'bleu'"),
        ("macro_f1", "macro_f1 needs a gold answer with `read: labels`"),
        ("instruction_accuracy", "instruction_accuracy needs the checker ifeval, found squad"),
    ):
        (tmp_path / "mine.yaml").write_text(text.replace("squad_f1", metric))
        with pytest.raises(InputError, match=message):
            load_benchmark(tmp_path / "mine.yaml")
