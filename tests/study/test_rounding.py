"""A variance of nothing, which rounding puts a hair under 0, is nothing: no warning, and an interval that is a number."""

import warnings

import numpy as np
import pytest

from distill.evaluation.statistics.seeds_and_questions import spread


@pytest.mark.parametrize("count_seeds", [False, True])
def test_seeds_whose_deviations_cancel_out_have_a_variance_of_0(rng, count_seeds):
    below = 0
    for _ in range(200):
        seeds, questions = rng.integers(3, 7), rng.integers(2, 12)
        deviations = rng.normal(size=(seeds, questions))
        deviations -= deviations.mean(axis=0)  # up to rounding, students that are right on each other's questions
        covariance = deviations @ deviations.T
        below += covariance.mean() < 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = spread(rng.random(seeds), covariance, count_seeds=count_seeds)
            assert found.students >= 0 and np.isfinite([found.half_width(0.95), found.p_value(0.1)]).all()
    assert below  # else nothing was tried
