"""Intervals of scores and differences, in the cases that have a known answer. Their coverage: test_coverage.py."""

from itertools import product
from time import process_time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from distill.evaluation.statistics import resampling
from distill.evaluation.statistics.intervals import difference, paired_difference, score
from distill.evaluation.statistics.resampling import distinct_rows, of_scores, resample
from distill.evaluation.statistics.seeds_and_questions import Spread, spread
from distill.evaluation.statistics.significance import swap_test
from distill.tasks.record import Record
from distill.tasks.task import ACCURACY, Metric, weighted_mean

LENGTH = Metric("length", rows=lambda problem, answer, verdict: {"tokens": len(answer)}, value=weighted_mean("tokens"))
MACRO_F1 = Record().metrics["macro_f1"]


def right(answers):
    return resample(ACCURACY, {"correct": np.asarray(answers, dtype=float)})


def test_all_right_is_not_certainty():
    """Wilson's interval of n right answers of n: from n / (n + z^2) to 1."""
    for n in (5, 40, 300):
        found = score([right(np.ones(n))])
        assert found.value == found.high == 1.0
        assert found.low == pytest.approx(n / (n + stats.norm.ppf(0.975) ** 2), rel=1e-9)
        none = score([right(np.zeros(n))])
        assert (none.low, none.value) == (0.0, 0.0) and none.high == pytest.approx(1 - found.low, rel=1e-9)


def test_arms_that_never_differ_are_not_known_to_be_equal():
    for n in (10, 300):
        same = right(np.arange(n) % 2)
        found = paired_difference([same], [same])
        assert found.value == 0.0 and found.low == pytest.approx(-found.high) and 1 / n < found.high < 6 / n
        three = paired_difference([same] * 3, [same] * 3)
        assert (three.low, three.high) == pytest.approx((found.low, found.high))


def test_pairing_by_question_matters(rng):
    """Two arms that miss the same hard questions differ by little for certain; shuffled, nobody could tell."""
    easy = rng.random(200) < 0.5
    # 12 hard questions more, which ones is chance: 6 points, with a standard error of 1.7 paired, 5 apart
    better = easy.copy()
    better[rng.choice(np.flatnonzero(~easy), 12, replace=False)] = True
    paired = paired_difference([right(better)], [right(easy)])
    apart = paired_difference([right(better)], [right(rng.permutation(easy))])
    assert paired.value == pytest.approx(apart.value)
    assert paired.low > 0 and apart.low < 0
    assert paired.high - paired.low < 0.6 * (apart.high - apart.low)


def test_seeds_count_from_three_on(rng):
    """Two lucky and unlucky students are these students; with a third they stand for their arm."""
    students = [right(rng.random(400) < p) for p in (0.5, 0.9, 0.7)]
    two, three = score(students[:2]), score(students)
    assert two.high - two.low < 0.12
    assert three.high - three.low > 0.5
    again = paired_difference(students, [right(np.zeros(400))] * 3)
    assert again.high - again.low > 0.5 and again.value == pytest.approx(three.value)


def test_unequal_numbers_of_seeds_are_no_pairs():
    with pytest.raises(ValueError, match="compared in pairs"):
        paired_difference([right([1, 0])] * 3, [right([1, 0])] * 2)


def test_a_mean_of_other_numbers_has_the_interval_of_a_mean(rng):
    values = rng.uniform(0.3, 0.6, 400)
    found = score([resample(LENGTH, {"tokens": values})])
    expected = stats.norm.interval(0.95, values.mean(), values.std() / np.sqrt(400))
    assert (found.low, found.high) == pytest.approx(expected, abs=2e-4)


def test_two_seeds_that_differ_are_still_these_students(rng):
    """The interval of the mean of two students' answers: scipy's bootstrap of questions, both answers together."""
    easy = rng.random(400)
    answers = np.stack([rng.random(400) < easy for _ in range(2)]).astype(float)
    found = score([right(a) for a in answers])
    expected = stats.bootstrap(
        (answers.mean(axis=0),), np.mean, n_resamples=4000, method="percentile", rng=rng, vectorized=True
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.008)


def test_samples_of_one_question_stay_together(rng):
    """Eight answers to each of 100 questions that are all right or all wrong are 100 observations, not 800."""
    known = rng.random(100) < 0.6
    many = resample(ACCURACY, {"correct": np.repeat(known, 8).astype(float)}, samples=8)
    assert score([many]) == score([right(known)])
    shuffled = resample(ACCURACY, {"correct": rng.permutation(np.repeat(known, 8)).astype(float)}, samples=8)
    assert score([shuffled]).high - score([shuffled]).low < 0.55 * (score([many]).high - score([many]).low)
    with pytest.raises(ValueError, match="800 rows are not 7"):
        resample(ACCURACY, {"correct": np.ones(800)}, samples=7)


def test_macro_f1_is_resampled_by_question_and_computed_again(rng):
    """Its variance is that of sklearn's score over draws of questions; the same answer three times changes nothing."""
    gold = rng.integers(0, 4, 120)
    students = [np.where(rng.random(120) < p, gold, rng.integers(0, 4, 120)) for p in (0.7, 0.5)]
    samples = [resample(MACRO_F1, {"gold_label": gold, "label": label}) for label in students]
    for sample, label in zip(samples, students, strict=True):
        assert sample.value == pytest.approx(f1_score(gold, label, average="macro"))
    draws = []
    for _ in range(300):
        drawn = rng.integers(120, size=120)
        labels = np.unique(gold)
        draws.append(
            [f1_score(gold[drawn], s[drawn], labels=labels, average="macro", zero_division=0) for s in students]
        )
    found = [np.square(s.deviations).sum() for s in samples]
    assert found == pytest.approx(np.var(draws, axis=0), rel=0.5)  # five standard errors of 500 and 300 draws
    repeated = {"gold_label": np.repeat(gold, 3), "label": np.repeat(students[0], 3)}
    again = resample(MACRO_F1, repeated, samples=3)
    assert again.deviations == pytest.approx(samples[0].deviations)


def test_batches_of_draws_change_nothing(rng, monkeypatch):
    gold = rng.integers(0, 4, 60)
    rows = [{"gold_label": gold, "label": rng.integers(-1, 4, 60)} for _ in range(2)]
    whole = resample(MACRO_F1, rows[0], samples=2), swap_test(MACRO_F1, rows[:1], rows[1:], samples=2)
    monkeypatch.setattr(resampling, "_HELD", int(rng.integers(1, 2000)))
    parts = resample(MACRO_F1, rows[0], samples=2), swap_test(MACRO_F1, rows[:1], rows[1:], samples=2)
    assert parts[0].deviations == pytest.approx(whole[0].deviations, abs=1e-12) and parts[1] == whole[1]


def test_distinct_rows_are_the_rows(rng):
    columns = {"a": rng.integers(0, 3, 50), "b": rng.integers(-1, 2, 50)}
    table, kind = distinct_rows(columns)
    assert len(table["a"]) == len(set(zip(*columns.values(), strict=True)))
    for name, values in columns.items():
        assert (table[name][kind] == values).all()


def test_the_parts_of_a_variance_are_those_of_a_two_way_analysis_of_variance(rng):
    """Mean squares of seeds, questions and the rest, by the textbook (with the bootstrap's 1 / Q for 1 / (Q - 1))."""
    S, Q = 4, 60
    x = rng.normal(size=(S, 1)) + rng.normal(size=Q) + rng.normal(size=(S, Q))
    seeds, questions = x.mean(axis=1), x.mean(axis=0)
    rest = x - seeds[:, None] - questions + x.mean()
    of_seeds = Q * np.var(seeds, ddof=1)
    of_questions = S * np.var(questions, ddof=1)
    of_rest = np.square(rest).sum() / (S - 1) / (Q - 1)
    students = [of_scores(row) for row in x]
    table = np.stack([s.deviations for s in students])
    found = spread(np.array([s.value for s in students]), table @ table.T, count_seeds=True)
    assert found.seeds == pytest.approx(of_seeds / (S * Q))
    assert found.questions == pytest.approx((of_questions - of_rest) / (S * Q) * (Q - 1) / Q)
    assert found.students == pytest.approx(of_questions / (S * Q) * (Q - 1) / Q)
    assert found.freedom == S - 1


@pytest.mark.parametrize(("freedom", "confidence"), list(product((2, 3, 9), (0.8, 0.95, 0.99))))
def test_half_widths_at_the_ends_are_students_t_and_the_normal(rng, freedom, confidence):
    variance = rng.uniform(1e-6, 0.1)
    t, z = stats.t.ppf(0.5 + confidence / 2, freedom), stats.norm.ppf(0.5 + confidence / 2)
    error = np.sqrt(variance)
    assert Spread(variance, 0.0, variance / 9, freedom).half_width(confidence) == pytest.approx(t * error, rel=1e-6)
    for none in (0.0, 1e-11 * variance, 1e-14 * variance):
        found = Spread(none, variance, variance, freedom).half_width(confidence)
        assert found == pytest.approx(z * error, rel=1e-4)
    assert Spread(0.0, variance, variance, 0).half_width(confidence) == pytest.approx(z * error)
    assert Spread(0.0, 0.0, variance, freedom).half_width(confidence) == pytest.approx(z * error / 2)
    between = Spread(variance, variance, variance, freedom).half_width(confidence)
    assert z * np.sqrt(2) * error < between < np.hypot(t, z) * error


def test_a_p_value_is_the_confidence_at_which_the_interval_touches_nought(rng):
    for freedom in (0, 2, 7):
        found = Spread(rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0, 8), freedom)
        distance = found.half_width(rng.uniform(0.1, 0.999))  # farther out 1 - p has too few digits to come back from
        assert found.half_width(1 - found.p_value(distance)) == pytest.approx(distance, rel=1e-6)
    assert Spread(0.1, 0.1, 0.1, 2).p_value(0.0) == 1.0
    three = [right(rng.random(300) < p) for p in (0.6, 0.7, 0.65)], [right(rng.random(300) < 0.5) for _ in range(3)]
    assert (difference(*three).p_value < 0.05) == (paired_difference(*three).low > 0)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_intervals_have_width_and_stay_in_their_range(rng, seeds):
    """Whatever the answers are: all the same, one apart, opposite."""
    Q = int(rng.integers(2, 40))
    one_apart = [np.arange(Q) != s for s in range(seeds)]
    flipped = [(np.arange(Q) + s) % 2 for s in range(seeds)]
    kinds = [[np.ones(Q)] * seeds, [np.zeros(Q)] * seeds, one_apart, flipped, list(rng.random((seeds, Q)) < 0.5)]
    kinds = [[right(a) for a in kind] for kind in kinds]
    for first, second in product(kinds, kinds):
        one, both = score(first), paired_difference(first, second)
        assert 0 <= one.low <= one.value <= one.high <= 1 and one.high - one.low > 1e-3
        assert -1 <= both.low <= both.value <= both.high <= 1 and both.high - both.low > 1e-3


def test_one_arm_of_one_student_has_wilsons_interval_and_two_have_agresti_and_mins(rng):
    a, b = rng.random((2, 150)) < [[0.8], [0.7]]
    found = score([right(a)])
    expected = stats.binomtest(int(a.sum()), 150).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    more, fewer = (a & ~b).sum() + 0.5, (b & ~a).sum() + 0.5
    centre, z = (more - fewer) / 152, stats.norm.ppf(0.975)
    half = z * np.sqrt((more + fewer) / 152 - centre**2) / np.sqrt(152)
    low, high = centre - half, centre + half
    if (
        stats.binomtest(int((a & ~b).sum()), int((a != b).sum())).pvalue > 0.05
    ):  # nor does the interval leave nought out then
        low, high = min(low, 0), max(high, 0)
    both = paired_difference([right(a)], [right(b)])
    assert (both.low, both.high) == pytest.approx((low, high))


def test_ten_thousand_questions_take_no_time(rng):
    """18 tasks x 3 seeds of two arms, in far less than a second on an idle machine."""
    started = process_time()
    for _ in range(18):
        arms = [[right(rng.random(10_000) < 0.7) for _ in range(3)] for _ in range(2)]
        score(arms[0]), paired_difference(*arms)
    assert process_time() - started < 10


def test_confidence_is_what_was_asked_for(rng):
    sample = [right(rng.random(300) < 0.6)]
    widths = [(i := score(sample, confidence=c)).high - i.low for c in (0.5, 0.8, 0.95, 0.99)]
    assert widths == sorted(widths) and widths[-1] > 2 * widths[0]


def test_the_same_answers_give_the_same_interval(rng):
    answers = rng.random(100) < 0.7
    assert score([right(answers)]) == score([right(answers)])


def test_an_interval_leaves_0_out_where_the_exact_test_finds_a_difference(rng):
    """Of one or two students, and of shares; for single answers just there. Five questions that differ, all one way,
    have p = 0.06, though Agresti and Min's interval leaves 0 out."""
    five = of_scores(np.r_[np.ones(5), np.zeros(95)])
    found = difference([five], [of_scores(np.zeros(100))])
    assert found.p_value == pytest.approx(0.0625) and found.interval().low == 0.0 < found.interval().value
    assert found.interval(0.9).low > 0 and found.centre - found.spread.half_width(0.95) > 0
    outside = 0
    for _ in range(120):
        n, S, k = int(rng.integers(3, 100)), int(rng.integers(1, 3)), int(rng.integers(1, 3))
        chances = rng.uniform(0.1, 0.9, 2)
        arms = [[of_scores(rng.binomial(k, p, n) / k) for _ in range(S)] for p in chances]
        found = difference(*arms)
        between = found.interval()
        left_out = between.low > 0 or between.high < 0
        outside += left_out
        assert found.p_value <= 0.05 or not left_out
        assert left_out or found.p_value > 0.05 or S * k > 1
    assert 0 < outside < 120
