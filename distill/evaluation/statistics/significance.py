"""Exact tests of two arms on the same questions, and Holm's correction over several of them.

The null hypothesis is that on every question the arms could be swapped: all answers to a question, of every training
seed and sample, change sides together. So these p-values speak of these trained students, as an interval without
seeds does; for arms with three seeds or more `statistics.difference(...).p_value` counts the seeds.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse, stats

from distill.evaluation.statistics.resampling import batches, distinct_rows
from distill.tasks.task import Columns, Metric

DRAWS = 9999  # of sign flips or swaps, where they are too many to list
_LISTED = 4_000_000  # sums held at once


def sign_flip_test(differences: np.ndarray) -> float:
    """Two-sided p-value of differences[questions], treatment minus control: each is as likely to have the other sign.

    Differences of one size, as of single right or wrong answers, give the exact binomial test (McNemar's).
    Differences of few sizes, as of shares of right answers, have few different sums, which are all listed: exact too.
    Else the sums are drawn DRAWS times, with the data themselves as one draw more, so that no p-value is 0 (Phipson &
    Smyth 2010).
    """
    differences = np.round(np.asarray(differences, dtype=np.float64), 12)
    if not np.isfinite(differences).all():
        raise ValueError("differences: expected numbers, found NaN or infinity")
    differences = differences[differences != 0]
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    if not len(sizes):
        return 1.0
    if len(sizes) == 1:
        return float(stats.binomtest(int((differences > 0).sum()), len(differences)).pvalue)
    least = abs(differences.sum()) - 1e-9 * sizes.max()
    listed = _all_sums(sizes, counts)
    if listed is not None:
        sums, chance = listed
        return float(min(chance[np.abs(sums) >= least].sum(), 1.0))
    rng = np.random.default_rng(len(differences))
    batch = max(1, _LISTED // len(differences))
    as_far = 0
    for start in range(0, DRAWS, batch):
        flipped = rng.integers(2, size=(min(batch, DRAWS - start), len(differences)), dtype=np.int8)
        as_far += int((np.abs(differences.sum() - 2 * (flipped @ differences)) >= least).sum())
    return (as_far + 1) / (DRAWS + 1)


def _all_sums(sizes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Every sum that flips of signs can give, and its probability; None when there are too many."""
    sums, chance = np.zeros(1), np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        if len(sums) * (count + 1) > _LISTED:
            return None
        heads = np.arange(count + 1)
        reached = (sums[:, None] + size * (2 * heads - count)).ravel()
        weights = (chance[:, None] * stats.binom.pmf(heads, count, 0.5)).ravel()
        _, first, same = np.unique(np.round(reached / sizes[0], 6), return_index=True, return_inverse=True)
        sums, chance = reached[first], np.bincount(same.ravel(), weights=weights)
    return sums, chance


def swap_test(metric: Metric, treatment: Sequence[Columns], control: Sequence[Columns], *, samples: int = 1) -> float:
    """Two-sided p-value of the difference in a metric that is computed again after every swap, such as Macro F1.

    One table a training seed, the same questions in the same order in all of them, `samples` rows a question, those
    of one question together. All swaps are listed where there are at most DRAWS + 1, else so many are drawn.
    """
    seeds = [_Pair(metric, t, c, samples) for t, c in zip(treatment, control, strict=True)]
    differ = np.flatnonzero(np.any([pair.differ for pair in seeds], axis=0))
    mean = lambda swapped: np.mean([pair.differences(swapped, differ) for pair in seeds], axis=0)  # noqa: E731
    least = abs(mean(np.zeros((1, len(differ))))[0]) * (1 - 1e-9) - 1e-12
    exact = 2 ** len(differ) <= DRAWS + 1
    draws = 2 ** len(differ) if exact else DRAWS
    rng = np.random.default_rng(len(seeds[0].differ))
    as_far = 0
    for some in batches(draws, max(pair.width for pair in seeds)):
        numbers = np.arange(draws)[some]
        swapped = (
            numbers[:, None] >> np.arange(len(differ)) & 1 if exact else rng.random((len(numbers), len(differ))) < 0.5
        )
        as_far += int((np.abs(mean(swapped)) >= least).sum())
    return as_far / draws if exact else (as_far + 1) / (draws + 1)


class _Pair:
    """Two students' rows as distinct rows with weights, so that a swap moves weights and copies nothing."""

    def __init__(self, metric: Metric, treatment: Columns, control: Columns, samples: int) -> None:
        both = {name: np.concatenate([treatment[name], control[name]]) for name in treatment}
        self.metric = metric
        self.table, kind = distinct_rows(both)
        # counts[questions, kinds] of each student's rows
        kinds, place = kind.max() + 1, np.arange(len(kind)) // samples
        counts = sparse.csr_array((np.ones(len(kind)), (place, kind)), shape=(len(kind) // samples, kinds))
        self.treatment, self.control = counts[: counts.shape[0] // 2], counts[counts.shape[0] // 2 :]
        self.moved = self.control - self.treatment
        self.differ = np.asarray(abs(self.moved).sum(axis=1)) > 0  # [questions]
        self.width = max(counts.shape)

    def differences(self, swapped: np.ndarray, questions: np.ndarray) -> np.ndarray:
        """Treatment minus control, [draws], with those of the `questions` on the other side that are 1 in
        swapped[draws, questions]."""
        moved = np.asarray(swapped.astype(float) @ self.moved[questions])
        value = lambda weights: self.metric.value(self.table, sample_weight=weights)  # noqa: E731
        return value(self.treatment.sum(axis=0) + moved) - value(self.control.sum(axis=0) - moved)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) correction, in the order given: each below 5 % means that at most one in twenty such families
    holds a single false finding."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(list(p_values), method="holm")[1]] if len(p_values) else []
