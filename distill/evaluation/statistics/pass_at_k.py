"""What several answers to one question are worth: pass@k and majority@k, question by question.

Both are expected values over which k of the n answers are looked at, computed and not drawn. `resampling.of_scores`
makes a sample of them, so that intervals and differences treat a question's answers as the one observation they are.
"""

from collections.abc import Hashable, Sequence
from fractions import Fraction
from functools import lru_cache
from math import comb

import numpy as np


def pass_at_k(right: np.ndarray, n: int, k: int) -> np.ndarray:
    """The chance that one of k answers is right, given right[questions] right ones of n: 1 - C(n-c, k) / C(n, k), the
    unbiased estimate of Chen et al. 2021 (arXiv:2107.03374). Raises ValueError unless 1 <= k <= n and 0 <= right <= n.
    """
    right = np.asarray(right)
    _check(n, k)
    if right.size and (right.min() < 0 or right.max() > n):
        raise ValueError(f"right answers from {right.min()} to {right.max()}, expected 0 to {n}")
    table = np.array([float(1 - Fraction(comb(n - c, k), comb(n, k))) for c in range(n + 1)])
    return table[right.astype(int)]


def majority_at_k(votes: Sequence[Sequence[Hashable]], right: Sequence[Sequence[bool]], k: int) -> np.ndarray:
    """The chance that the commonest of k answers is right; of answers equally common, any is as likely to be taken.

    votes[questions][n]: answers in a form in which those that agree are equal; None votes for nothing, as an
    unfinished answer does, and where nobody votes nothing is right. right[questions][n]: the grade of each. Should
    equal votes have been graded differently, they count by the share of them that is right.
    """
    found = np.empty(len(votes))
    for i, (of_question, grades) in enumerate(zip(votes, right, strict=True)):
        _check(len(of_question), k)
        tally: dict[Hashable, list[bool]] = {}
        for vote, grade in zip(of_question, grades, strict=True):
            if vote is not None:
                tally.setdefault(vote, []).append(bool(grade))
        counts = sorted((len(of_class), Fraction(sum(of_class), len(of_class))) for of_class in tally.values())
        found[i] = _majority(tuple(counts), len(of_question), k)
    return found


@lru_cache(maxsize=100_000)
def _majority(classes: tuple[tuple[int, Fraction], ...], n: int, k: int) -> float:
    """`classes`: how many of the n answers vote for each, fewest first, and what it is worth to choose it."""
    if k == n:  # there is nothing to choose, and many classes would take long
        most = [worth for count, worth in classes if count == classes[-1][0]]
        return float(sum(most) / len(most)) if most else 0.0
    silent = n - sum(count for count, _ in classes)
    total = Fraction(0)
    for r, (count, worth) in enumerate(classes):
        others = [c for i, (c, _) in enumerate(classes) if i != r]
        for top in range(1, min(count, k) + 1 if worth else 0):
            ways = _ways_below(others, silent, top, k - top)
            total += worth * comb(count, top) * sum(Fraction(w, ties + 1) for ties, w in enumerate(ways))
    return float(total / comb(n, k))


def _ways_below(others: list[int], silent: int, top: int, size: int) -> list[int]:
    """How many ways there are to take `size` answers of the others and the silent so that no class has more than `top`,
    by the number of classes that have just `top`."""
    ways = {(taken, 0): comb(silent, taken) for taken in range(min(silent, size) + 1)}
    for count in others:
        more: dict[tuple[int, int], int] = {}
        for (taken, ties), w in ways.items():
            for here in range(min(count, top, size - taken) + 1):
                place = taken + here, ties + (here == top)
                more[place] = more.get(place, 0) + w * comb(count, here)
        ways = more
    return [ways.get((size, ties), 0) for ties in range(len(others) + 1)]


def _check(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}, expected 1 to the {n} answers of a question")
