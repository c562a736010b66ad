"""Ratios of paired measurements."""

import numpy as np
import pytest
from scipy import stats

from distill.bench.spread import ratio, shown


def test_a_common_drift_cancels():
    rng = np.random.default_rng()
    drift = rng.uniform(0.2, 5.0, size=6)
    found = ratio(3.0 * drift, drift)
    assert found["value"] == pytest.approx(3.0)
    assert found["low"] == pytest.approx(3.0) and found["high"] == pytest.approx(3.0)


def test_the_interval_is_the_t_interval_of_the_logarithms():
    rng = np.random.default_rng()
    a, b = rng.lognormal(size=(2, 5))
    found = ratio(a, b)
    expected = stats.ttest_rel(np.log(a), np.log(b)).confidence_interval(0.95)
    assert found["low"] == pytest.approx(np.exp(expected.low)) and found["high"] == pytest.approx(np.exp(expected.high))
    assert found["rounds"] == pytest.approx((a / b).tolist())


def test_factors_multiply():
    rng = np.random.default_rng()
    tokens, seconds = rng.lognormal(size=(2, 2, 4))
    per_token = seconds / tokens
    product = ratio(*tokens)["value"] * ratio(*per_token)["value"]
    assert product == pytest.approx(ratio(*seconds)["value"])


def test_one_round_has_no_interval_and_an_infinite_cost_no_ratio():
    assert ratio([2.0], [1.0]) == {
        "value": pytest.approx(2.0),
        "low": None,
        "high": None,
        "rounds": [pytest.approx(2.0)],
    }
    assert ratio([1.0, float("nan")], [1.0, 1.0])["value"] is None
    assert ratio([1.0], [0.0])["value"] is None and shown(ratio([], [])) == "-"
