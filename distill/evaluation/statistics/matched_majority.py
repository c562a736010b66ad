"""What short answers are worth at the price of long ones: majority of k answers without reasoning, where k of them cost as
many generated tokens as one answer with it."""

from dataclasses import dataclass

import numpy as np

from distill.errors import InputError
from distill.evaluation.answers import Answer
from distill.evaluation.samples_and_budgets import by_question, headline, vote
from distill.evaluation.statistics.pass_at_k import majority_at_k
from distill.tasks.problem import AnswerFormat


@dataclass(frozen=True)
class MatchedMajority:
    """Majority@k of one student at another's token cost."""

    k: int
    scores: np.ndarray  # float64[questions], in the order of `problem_ids`: the chance that the majority of k is right
    problem_ids: list[str]
    tokens: float  # generated for k answers, mean over questions and samples
    matched_tokens: float  # of one answer of the other student


def matched_majority(sampled: list[Answer], other: list[Answer], answer_format: AnswerFormat) -> MatchedMajority:
    """Of several sampled answers of one student to each question of one task, and the answers of another to the same.

    k is the ratio of the mean tokens of their answers, rounded, and at least 1. Raises InputError when the questions are
    not the same, or there are fewer than k samples.
    """
    mine, theirs = by_question(headline(sampled)), by_question(headline(other))
    ids = [samples[0].problem_id for samples in mine]
    if not ids or set(ids) != {samples[0].problem_id for samples in theirs}:
        raise InputError("majority at equal cost: the two evaluations are not of the same questions")
    n = min(len(samples) for samples in mine)
    one, matched = _tokens(mine), _tokens(theirs)
    k = affordable_votes(one, matched)
    if k > n:
        raise InputError(
            f"majority at equal cost: needs {k} samples of each question, found {n}; evaluate with --samples {k}"
        )
    return MatchedMajority(k, majority_scores(mine, answer_format, k), ids, k * one, matched)


def affordable_votes(one: float, other: float) -> int:
    """How many answers of `one` tokens each cost as much as one of `other` tokens: the nearest number, at least 1."""
    return max(1, round(other / one)) if one else 1


def majority_scores(questions: list[list[Answer]], answer_format: AnswerFormat, k: int) -> np.ndarray:
    """float64[questions]: the chance that the majority of k answers is right, given several to each question."""
    votes = [[vote(a, answer_format) for a in samples] for samples in questions]
    return majority_at_k(votes, [[a.correct for a in samples] for samples in questions], k)


def _tokens(questions: list[list[Answer]]) -> float:
    return float(np.mean([np.mean([a.thinking_tokens + a.answer_tokens for a in samples]) for samples in questions]))
