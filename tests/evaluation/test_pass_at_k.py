"""pass@k and majority@k against every choice of k answers."""

from itertools import combinations
from time import process_time

import numpy as np
import pytest

from distill.evaluation.statistics.intervals import score
from distill.evaluation.statistics.pass_at_k import majority_at_k, pass_at_k
from distill.evaluation.statistics.resampling import of_scores, resample
from distill.tasks.task import ACCURACY


def brute_force_majority(votes, right, k):
    """The mean over all choices of k, and over the commonest answers of each."""
    worth = {v: np.mean([g for u, g in zip(votes, right, strict=True) if u == v]) for v in votes}
    found = []
    for chosen in combinations(range(len(votes)), k):
        said = [votes[i] for i in chosen if votes[i] is not None]
        most = max((said.count(v) for v in said), default=0)
        top = [v for v in set(said) if said.count(v) == most]
        found.append(np.mean([worth[v] for v in top]) if top else 0.0)
    return np.mean(found)


def test_pass_at_k_is_the_share_of_choices_that_hold_a_right_answer(rng):
    n = int(rng.integers(1, 9))
    for k in range(1, n + 1):
        for c in range(n + 1):
            answers = np.arange(n) < c
            expected = np.mean([any(chosen) for chosen in combinations(answers, k)])
            assert pass_at_k(np.array([c]), n, k)[0] == pytest.approx(expected)
    counts = rng.integers(0, 201, 50)
    assert pass_at_k(counts, 200, 1) == pytest.approx(counts / 200)


def test_majority_is_the_mean_over_choices_and_ties(rng):
    for _ in range(30):
        n = int(rng.integers(1, 9))
        votes = [None if v == 4 else "abcd"[v] for v in rng.integers(0, 5, n)]
        gold = "abcd"[rng.integers(0, 4)]
        right = [v == gold for v in votes]
        for k in range(1, n + 1):
            assert majority_at_k([votes], [right], k)[0] == pytest.approx(brute_force_majority(votes, right, k))


def test_two_right_forms_and_grades_that_disagree(rng):
    for _ in range(20):
        votes = ["abc"[v] for v in rng.integers(0, 3, 6)]
        right = list(rng.random(6) < 0.5)
        assert majority_at_k([votes], [right], 4)[0] == pytest.approx(brute_force_majority(votes, right, 4))


def test_known_cases():
    assert majority_at_k([["7", "7", "8"]], [[True, True, False]], 3)[0] == 1.0
    assert majority_at_k([["7", "8"]], [[True, False]], 2)[0] == 0.5
    assert majority_at_k([[None, None]], [[False, False]], 2)[0] == 0.0
    assert majority_at_k([[None, None, "7"]], [[False, False, True]], 3)[0] == 1.0
    assert majority_at_k([["7", "8", "8"]] * 2, [[True, False, False]] * 2, 1) == pytest.approx([1 / 3, 1 / 3])


def test_what_cannot_be_asked_for():
    for n, k in ((4, 5), (4, 0), (0, 1)):
        with pytest.raises(ValueError, match=f"k is {k}"):
            pass_at_k(np.array([0]), n, k)
        with pytest.raises(ValueError, match=f"k is {k}"):
            majority_at_k([["a"] * n], [[True] * n], k)
    with pytest.raises(ValueError, match="right answers from"):
        pass_at_k(np.array([2, 5]), 4, 2)


def test_pass_at_1_has_the_interval_of_accuracy_by_question(rng):
    right = rng.random((120, 4)) < rng.random((120, 1))
    columns = {"correct": right.ravel().astype(float)}
    rows = resample(ACCURACY, columns, samples=4)
    assert score([of_scores(pass_at_k(right.sum(axis=1), 4, 1))]) == score([rows])
    two = score([of_scores(pass_at_k(right.sum(axis=1), 4, 2))])
    assert two.value > rows.value and two.low < two.value < two.high


def test_ten_thousand_questions_of_sixteen_answers(rng):
    """A few seconds at most on an idle machine: questions with the same counts are computed once."""
    votes = rng.geometric(0.5, (10_000, 16))
    started = process_time()
    found = majority_at_k(votes.tolist(), (votes == 1).tolist(), 8)
    assert process_time() - started < 30
    assert found.mean() > (votes == 1).mean()
