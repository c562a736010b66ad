"""p-values of two arms on the same questions: against scipy, statsmodels and lists of every swap."""

from itertools import product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from distill.evaluation.statistics.resampling import of_scores
from distill.evaluation.statistics.significance import DRAWS, holm, sign_flip_test, swap_test
from distill.tasks.task import Columns, Metric, weighted_mean


def macro_f1(columns: Columns, sample_weight: np.ndarray | None = None) -> np.ndarray:
    """Of two labels."""
    gold, label = (np.asarray(columns[name]) for name in ("gold", "label"))
    weight = np.ones(len(gold)) if sample_weight is None else sample_weight
    f1 = [
        2 * weight @ ((gold == c) & (label == c)) / np.maximum(weight @ ((gold == c) * 1.0 + (label == c)), 1e-9)
        for c in (0, 1)
    ]
    return np.mean(f1, axis=0)


MACRO_F1 = Metric("macro_f1", rows=lambda problem, answer: {}, value=macro_f1)
MEAN = Metric("mean", rows=lambda problem, answer: {}, value=weighted_mean("x"))


def test_single_answers_are_mcnemars_exact_test(rng):
    for n in (8, 60, 1000):
        a, b = rng.random((2, n)) < [[0.6], [0.5]]
        table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        assert sign_flip_test(a.astype(float) - b) == pytest.approx(float(mcnemar(table, exact=True).pvalue))


def test_shares_are_tested_exactly(rng):
    """Against scipy's list of all 2^10 signs; and of many questions, against the normal limit."""
    shares = (rng.binomial(4, 0.6, 10) - rng.binomial(4, 0.4, 10)) / 12
    expected = stats.permutation_test(
        (shares,), lambda x: np.sum(np.round(x * 12)), permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert sign_flip_test(shares) == pytest.approx(expected.pvalue)
    many = np.mean(rng.binomial(1, 0.52, (3, 4000)) - rng.binomial(1, 0.5, (3, 4000)), axis=0)
    normal = 2 * stats.norm.sf(abs(many.sum()) / np.sqrt(np.square(many).sum()))
    assert sign_flip_test(many) == pytest.approx(normal, rel=0.1, abs=0.01)


def test_other_differences_are_listed_while_few_and_drawn_when_many(rng):
    few = rng.normal(0.4, 1, 9)
    sums = np.array(list(product((-1, 1), repeat=9))) @ few
    assert sign_flip_test(few) == pytest.approx((np.abs(sums) >= abs(few.sum()) - 1e-9).mean())
    many = rng.normal(0.1, 1, 300)
    found = sign_flip_test(many)
    normal = 2 * stats.norm.sf(abs(many.sum()) / np.sqrt(np.square(many).sum()))
    assert found == pytest.approx(normal, abs=0.03)  # six standard errors of 9,999 draws
    assert found == sign_flip_test(many) == pytest.approx(sign_flip_test(-many))
    assert sign_flip_test(np.abs(rng.normal(5, 1, 300))) == 1 / 10_000  # never 0


def test_what_is_no_number_has_no_p_value(rng):
    with pytest.raises(ValueError, match="NaN"):
        sign_flip_test(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="NaN"):
        of_scores(np.array([1.0, np.nan]))


def test_no_difference_has_p_1():
    assert sign_flip_test(np.zeros(50)) == 1.0
    assert sign_flip_test(np.array([0.1, 0.2, -0.30000000000000004, 0.0])) == 1.0
    rows = {"gold": np.array([0, 1, 1]), "label": np.array([0, 1, 0])}
    assert swap_test(MACRO_F1, [rows], [rows]) == 1.0


@pytest.mark.parametrize(("seeds", "samples"), [(1, 1), (3, 1), (2, 2)])
def test_a_metric_is_computed_again_for_every_swap(rng, seeds, samples):
    """Against a list of all swaps of six questions, whole questions in all seeds."""
    gold = np.repeat(rng.integers(0, 2, 6), samples)
    arms = [[{"gold": gold, "label": rng.integers(0, 2, len(gold))} for _ in range(seeds)] for _ in range(2)]

    def difference(swap):
        swap = np.repeat(swap, samples)
        found = 0.0
        for t, c in zip(*arms, strict=True):
            first = {"gold": gold, "label": np.where(swap, c["label"], t["label"])}
            second = {"gold": gold, "label": np.where(swap, t["label"], c["label"])}
            found += macro_f1(first) - macro_f1(second)
        return found / seeds

    all_swaps = np.array([difference(np.array(swap)) for swap in product((False, True), repeat=6)])
    expected = (np.abs(all_swaps) >= abs(all_swaps[0]) - 1e-12).mean()
    assert swap_test(MACRO_F1, *arms, samples=samples) == pytest.approx(expected)


def test_swaps_of_a_mean_are_flips_of_signs(rng):
    a, b = rng.normal(0.15, 1, 200), rng.normal(0, 1, 200)
    found = swap_test(MEAN, [{"x": a}], [{"x": b}])
    assert found == pytest.approx(sign_flip_test(a - b), abs=0.045)  # six standard errors of two times 9,999 draws
    assert swap_test(MEAN, [{"x": a + 3}], [{"x": b}]) == 1 / (DRAWS + 1)


def test_p_values_are_uniform_where_arms_do_not_differ(rng):
    """5 % of them at most are below 0.05: of 400, more than 45 once in a million runs."""
    low = 0
    for _ in range(400):
        easy = rng.random(80)
        a, b = (np.mean([rng.random(80) < easy for _ in range(3)], axis=0) for _ in range(2))
        low += sign_flip_test(a - b) <= 0.05
    assert low <= 45


def test_holm(rng):
    """By its definition: the sorted p-values times how many are left, never falling."""
    p = list(rng.random(9) ** 3)
    order = np.argsort(p)
    expected = np.empty(9)
    expected[order] = np.minimum(np.maximum.accumulate(np.array(p)[order] * np.arange(9, 0, -1)), 1)
    assert holm(p) == pytest.approx(expected)
    assert holm([]) == [] and holm([0.03]) == [0.03]
