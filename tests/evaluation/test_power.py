"""The smallest difference a study could have seen is seen in the stated share of simulated studies."""

import numpy as np
import pytest
from scipy import stats

from distill.evaluation.statistics.intervals import difference
from distill.evaluation.statistics.power import expected_spread, minimum_detectable_difference
from distill.evaluation.statistics.resampling import of_scores
from distill.evaluation.statistics.seeds_and_questions import Spread


def test_without_seeds_it_is_the_normal_tests():
    """By hand: 400 questions of which a tenth differ, (1.960 + 0.842) sqrt(0.1 / 400)."""
    found = minimum_detectable_difference(expected_spread(400, 0.1))
    assert found == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * np.sqrt(0.1 / 400))
    assert minimum_detectable_difference(expected_spread(1, 1.0)) == 1.0


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_with_seeds_alone_it_is_the_t_tests(seeds):
    found = minimum_detectable_difference(Spread(1e-4, 0.0, 0.0, seeds - 1), power=0.9)
    beyond = stats.t.ppf(0.975, seeds - 1)
    assert stats.nct.sf(beyond, seeds - 1, found / 1e-2) == pytest.approx(0.9, abs=0.005)


def test_more_seeds_questions_and_agreement_show_smaller_differences():
    worst = minimum_detectable_difference(expected_spread(200, 0.3, seeds=3, seed_spread=0.03))
    for better in (
        expected_spread(400, 0.3, seeds=3, seed_spread=0.03),
        expected_spread(200, 0.2, seeds=3, seed_spread=0.03),
        expected_spread(200, 0.3, seeds=4, seed_spread=0.03),
        expected_spread(200, 0.3, seeds=3, seed_spread=0.02),
    ):
        assert minimum_detectable_difference(better) < worst
    assert minimum_detectable_difference(expected_spread(200, 0.3, seeds=3)) == pytest.approx(
        minimum_detectable_difference(expected_spread(200, 0.3))
    )


@pytest.mark.parametrize(("seeds", "seed_spread"), [(1, 0.0), (3, 0.03), (5, 0.02)])
def test_the_difference_is_seen_as_often_as_stated(rng, seeds, seed_spread):
    """Of 300 studies planned for 80 %, 64 to 94 % show it: what is approximate, and five standard errors."""
    questions, discordance = 500, 0.2
    aim = minimum_detectable_difference(expected_spread(questions, discordance, seeds=seeds, seed_spread=seed_spread))
    seen, after = 0, []
    for _ in range(300):
        kind = rng.random(questions)  # of a question, the same for all seeds
        students = []
        for effect in rng.normal(aim, seed_spread, seeds):
            d = np.where(
                kind < (discordance + effect) / 2, 1.0, np.where(kind > 1 - (discordance - effect) / 2, -1.0, 0)
            )
            students.append((of_scores(np.maximum(d, 0)), of_scores(np.maximum(-d, 0))))
        found = difference([t for t, _ in students], [c for _, c in students])
        seen += found.interval().low > 0
        if len(after) < 51:
            after.append(minimum_detectable_difference(found.spread))
    assert 0.64 <= seen / 300 <= 0.94
    assert np.median(after) == pytest.approx(aim, rel=0.35)
