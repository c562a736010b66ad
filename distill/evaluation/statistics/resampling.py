"""How a student's score varies with the questions: a bootstrap whose draws are of questions, not of answers.

All answers to one question are drawn together, and students that were asked the same questions share every draw, so
what is paired stays paired. For a metric that is a mean over rows the bootstrap's variances and covariances have a
closed form, that of infinitely many draws (Efron & Tibshirani 1993, chapter 5), and no draw is made. Every other
metric, such as Macro F1, is computed again on each of RESAMPLES draws, which are weights of rows: many draws at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distill.tasks.task import Columns, Metric

RESAMPLES = 500  # they serve variances, which these give to 6 %: no percentile is read from them
_HELD = 4_000_000  # numbers held at once


@dataclass(frozen=True)
class Sample:
    """One student on one metric.

    The bootstrap covariance of two students' values is the dot product of their `deviations`; these are added and
    subtracted as the values are.
    """

    value: float
    questions: int
    deviations: np.ndarray  # float64[questions] of a mean, float64[RESAMPLES] of any other metric
    scores: np.ndarray | None  # float64[questions], whose mean is the value; None for any other metric


def resample(metric: Metric, columns: Columns, *, samples: int = 1) -> Sample:
    """How a metric varies with the questions. `columns` has `samples` rows a question, those of one question together.

    Raises ValueError for no rows, or a number of rows that is no multiple of `samples`.
    """
    columns = {name: np.asarray(values) for name, values in columns.items()}
    rows = len(next(iter(columns.values())))
    if not rows or rows % samples:
        raise ValueError(f"{rows} rows are not {samples} for each of one or more questions")
    questions = rows // samples
    scores = _row_scores(metric, columns, rows)
    if scores is not None:
        return of_scores(scores.reshape(questions, samples).mean(axis=1))
    table, kind = distinct_rows(columns)
    kinds, of_question = kind.max() + 1, kind.reshape(questions, samples)
    rng = np.random.default_rng(questions)  # the same draws for every student that was asked as many questions
    draws = np.empty(RESAMPLES)
    for some in batches(RESAMPLES, kinds):
        drawn = [of_question[rng.integers(questions, size=questions)].ravel() for _ in range(RESAMPLES)[some]]
        weights = np.stack([np.bincount(one, minlength=kinds) for one in drawn])
        draws[some] = metric.value(table, sample_weight=weights)
    return Sample(metric.value(columns), questions, (draws - draws.mean()) / np.sqrt(RESAMPLES), None)


def batches(draws: int, width: int) -> Iterator[slice]:
    """Slices of the draws, of so many that a table of them with rows of this width stays small."""
    step = max(1, _HELD // width)
    return (slice(start, min(start + step, draws)) for start in range(0, draws, step))


def of_scores(scores: np.ndarray) -> Sample:
    """The sample whose value is the mean of scores[questions], such as shares of right answers or pass@k."""
    scores = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("scores: expected numbers, found NaN or infinity")
    return Sample(float(scores.mean()), len(scores), (scores - scores.mean()) / len(scores), scores)


def distinct_rows(columns: Columns) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The rows of a table that differ, as columns, and for each row which of them it is.

    A metric of weighted rows is the same on these with the weights of equal rows added; labels have few that differ.
    """
    _, first, kind = np.unique(
        np.column_stack([np.asarray(v, dtype=np.float64) for v in columns.values()]),
        axis=0,
        return_index=True,
        return_inverse=True,
    )
    return {name: np.asarray(values)[first] for name, values in columns.items()}, kind.ravel()


def _row_scores(metric: Metric, columns: dict[str, np.ndarray], rows: int) -> np.ndarray | None:
    """The column whose weighted mean the metric is; None where it is another function of the rows."""
    if len(columns) > 1:
        return None
    (scores,) = (values.astype(np.float64) for values in columns.values())
    weights = np.random.default_rng(rows).random(rows)  # no other function gives the mean for weights drawn at random
    same = np.isclose(metric.value(columns, sample_weight=weights), np.average(scores, weights=weights), rtol=1e-9)
    return scores if same else None
