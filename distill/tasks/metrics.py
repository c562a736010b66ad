"""Metrics by the names that benchmark files use. A metric is made for the questions of a task.

accuracy                      the share of answers that the checker takes
squad_f1                      the words that an answer shares with the nearest of the accepted answers
rouge_l                       the longest common subsequence of words with the gold answer, by rouge_score
macro_f1                      of sets of labels: the mean of F1 over the labels that occur, by scikit-learn; of resamples, by
                              sums over rows, which tests hold to it
instruction_accuracy          the share of rules that are followed, of the checker ifeval
accuracy_loose, instruction_accuracy_loose    the same two, by the loose reading of the rules
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from distill.tasks.answers import final_answer
from distill.tasks.checkers import accepted_answers, label_set, normalised_text
from distill.tasks.ifeval import rule_count
from distill.tasks.problem import Problem
from distill.tasks.task import ACCURACY, Columns, Metric, ratio_of_sums, weighted_mean
from distill.tasks.verdict import Verdict

_F1_CHARACTERS = 100_000
# A student may run on, and ROUGE-L takes length times length: so much of either text is compared.
_ROUGE_CHARACTERS, _ROUGE_WORDS = 10_000, 2_000


def squad_f1(problems: Sequence[Problem]) -> Metric:
    def rows(problem: Problem, answer: str, verdict: Verdict) -> dict[str, float]:
        text = final_answer(answer)[:_F1_CHARACTERS]
        return {"f1": max(word_f1(gold[:_F1_CHARACTERS], text) for gold in accepted_answers(problem.gold))}

    return Metric("squad_f1", rows, weighted_mean("f1"))


def word_f1(gold: str, text: str) -> float:
    """F1 of the words of two texts, in the form that the checker compares. Where one has none: whether both have."""
    wanted, found = normalised_text(gold).split(), normalised_text(text).split()
    if not wanted or not found:
        return float(wanted == found)
    shared = (Counter(wanted) & Counter(found)).total()
    return 2 * shared / (len(wanted) + len(found))


def rouge_l(problems: Sequence[Problem]) -> Metric:
    def rows(problem: Problem, answer: str, verdict: Verdict) -> dict[str, float]:
        return {"rouge_l": _rouge_scorer().score(problem.gold, final_answer(answer))["rougeL"].fmeasure}

    return Metric("rouge_l", rows, weighted_mean("rouge_l"))


def macro_f1(problems: Sequence[Problem]) -> Metric:
    """A label that occurs in no gold answer is no class of the mean; a resample has the classes of all questions."""
    labels = sorted({label for problem in problems for label in label_set(problem.gold) or ()})

    def rows(problem: Problem, answer: str, verdict: Verdict) -> dict[str, float]:
        wanted = label_set(problem.gold) or set()
        found = label_set(answer[-_F1_CHARACTERS:], wanted | set(labels)) or set()
        return {f"gold {label}": float(label in wanted) for label in labels} | {
            f"found {label}": float(label in found) for label in labels
        }

    def value(columns: Columns, sample_weight: Any = None) -> Any:
        import numpy as np

        if not labels:
            return math.nan if np.ndim(sample_weight) < 2 else np.full(len(sample_weight), math.nan)
        gold, found = (np.column_stack([columns[f"{of} {label}"] for label in labels]) for of in ("gold", "found"))
        return mean_f1(gold, found, sample_weight)

    return Metric("macro_f1", rows, value)


def mean_f1(gold: Any, found: Any, sample_weight: Any = None) -> Any:
    r"""The mean over L labels of F1, 0 for one that is neither in gold[n, L] nor in found[n, L], which are 0 and 1; NaN
    for no rows. For weights[draws, n] that of each draw.

    Of a label, F1 is 2 TP / (2 TP + FP + FN) = 2 sum(gold found) / sum(gold + found): both are sums over rows, so one
    product with the weights gives them for all draws and labels. scikit-learn, which computes what stands in a result,
    takes one draw at a time.
    """
    import numpy as np

    gold, found = np.asarray(gold, dtype=float), np.asarray(found, dtype=float)
    n, labels = gold.shape
    if sample_weight is not None:
        weights = np.asarray(sample_weight, dtype=float)
        hits, either = np.split(weights @ np.hstack([gold * found, gold + found]), 2, axis=-1)
        f1 = np.divide(2 * hits, either, out=np.zeros(hits.shape), where=either > 0).mean(axis=-1)
        f1 = np.where(weights.sum(axis=-1) > 0, f1, np.nan)
        return f1 if f1.ndim else float(f1)
    if not n:
        return math.nan
    from sklearn.metrics import f1_score

    # A column of zeros beside them: a single label would be taken for a class of its own and its absence another.
    gold, found = (np.column_stack([table, np.zeros(n)]).astype(int) for table in (gold, found))
    score: Any = f1_score(gold, found, labels=range(labels), average="macro", zero_division=0)
    return float(score)


def _rule_metric(name: str, score: str, *, whole: bool) -> Callable[[Sequence[Problem]], Metric]:
    """The share of rules, or of answers with all of their rules (`whole`), with this score of the checker ifeval."""

    def rows(problem: Problem, answer: str, verdict: Verdict) -> dict[str, float]:
        count, followed = float(rule_count(problem.gold)), verdict.scores.get(score, 0.0)
        return {"rules": 1.0, score: float(followed == count)} if whole else {"rules": count, score: followed}

    def value(columns: Columns, sample_weight: Any = None) -> Any:
        return ratio_of_sums(columns[score], columns["rules"], sample_weight)

    return lambda problems: Metric(name, rows, value)


METRICS: dict[str, Callable[[Sequence[Problem]], Metric]] = {
    "accuracy": lambda problems: ACCURACY,
    "squad_f1": squad_f1,
    "rouge_l": rouge_l,
    "macro_f1": macro_f1,
    "instruction_accuracy": _rule_metric("instruction_accuracy", "followed", whole=False),
    "accuracy_loose": _rule_metric("accuracy_loose", "followed_loosely", whole=True),
    "instruction_accuracy_loose": _rule_metric("instruction_accuracy_loose", "followed_loosely", whole=False),
}
OF_RULES = ("instruction_accuracy", "accuracy_loose", "instruction_accuracy_loose")  # only with the checker ifeval


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    class Beginning(DefaultTokenizer):
        def tokenize(self, text: str) -> list[str]:
            return super().tokenize(text[:_ROUGE_CHARACTERS])[:_ROUGE_WORDS]

    return RougeScorer(["rougeL"], tokenizer=Beginning())
