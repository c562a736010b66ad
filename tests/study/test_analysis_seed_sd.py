"""How far training seeds fall apart: by hand, and as often within the interval as it says."""

import numpy as np
import pytest

from distill.evaluation.statistics.resampling import of_scores
from distill.study.analysis.combination import factor
from distill.study.analysis.seed_sd import pooled, ratio, variance


def right(rng, seeds, questions, spread):
    """bool[S, Q]: students of which each is better or worse by as much on every question."""
    level = rng.uniform(0.2, 0.8, questions) + spread * rng.normal(size=(seeds, 1))
    return (rng.random((seeds, questions)) < level).astype(float)


def of(table):
    return [of_scores(row) for row in table]


def test_the_part_of_single_questions_is_that_of_an_analysis_of_variance(rng):
    S, Q = int(rng.integers(2, 6)), int(rng.integers(20, 60))
    table = right(rng, S, Q, 0.05)
    found = variance(of(table))
    left = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    assert found.value == pytest.approx(table.mean(axis=1).var(ddof=1)) and found.freedom == S - 1
    assert found.of_questions == pytest.approx((left**2).sum() / (S - 1) / Q**2)


def test_seeds_that_agree_are_not_known_to_be_all_alike():
    same = variance(of(np.ones((3, 50))))
    sd = same.sd(0.95)
    assert sd.value == sd.low == 0 < sd.high < 0.1
    found = ratio(same, same, confidence=0.95)
    assert found.low < 1 < found.high


def test_pooling_weighs_by_freedom(rng):
    few, many = variance(of(right(rng, 2, 100, 0.2))), variance(of(right(rng, 6, 100, 0.05)))
    both = pooled([few, many])
    assert both.freedom == 6 and both.value == pytest.approx((few.value + 5 * many.value) / 6)


def test_intervals_of_standard_deviations_hold_the_truth(rng):
    """Of normal seeds, exactly 95 % of the time: 600 studies are within four standard errors of it."""
    S, studies, held, in_ratio = int(rng.integers(3, 7)), 600, 0, 0
    for _ in range(studies):
        one, other = (of(np.tile(sd * rng.normal(size=(S, 1)), 1000)) for sd in (0.03, 0.01))
        sd, over = variance(one).sd(0.95), ratio(variance(one), variance(other), confidence=0.95)
        held += sd.low <= 0.03 <= sd.high
        in_ratio += over.low <= 3 <= over.high
    assert 0.914 < held / studies < 0.986 and 0.914 < in_ratio / studies < 0.986


def test_a_ratio_of_costs_has_the_bootstraps_interval(rng):
    Q = 400
    under = rng.uniform(5, 15, (1, Q))
    over = 3 * under + rng.uniform(0, 20, (1, Q))
    found = factor(over, under, confidence=0.95)
    assert found.value == pytest.approx(over.mean() / under.mean())
    w = rng.multinomial(Q, np.full(Q, 1 / Q), 4000)
    drawn = np.log((w @ over[0]) / (w @ under[0]))
    assert np.log(found.high / found.low) / (2 * 1.96) == pytest.approx(drawn.std(), rel=0.1)
    assert factor(over, np.zeros((1, Q)), confidence=0.95) is None
