"""A second, independent checker on a sample of the graded answers: how often the two disagree, and where.

With judges the second checker is their majority, else one from tasks/second_checkers.py. Only finished answers are in
the sample: the others are wrong by rule. Of answers that judges graded, their agreement says more.
"""

import random
from collections.abc import Sequence
from typing import Any

from distill.evaluation.answers import Answer
from distill.evaluation.judging import Judges
from distill.evaluation.questions import Asked
from distill.tasks.checkers import shown
from distill.tasks.second_checkers import SECOND, second_verdicts

SAMPLE = 200  # answers of a task
_EXAMPLES = 20
_CHARACTERS = 200  # of a text that an example shows


def audit(asked: Asked, answers: Sequence[Answer], judges: Judges | None = None) -> dict[str, Any] | None:
    """The share of sampled answers on which the second checker disagrees with the grade, with its 95 % interval
    (Clopper-Pearson, over answers), and examples. None where there is no second checker, or no finished answer."""
    checker = asked.task.checker
    finished = [answer for answer in answers if answer.finished]
    if not finished or checker == "judge" or (judges is None and checker not in SECOND):
        return None
    rng = random.Random(f"audit {asked.task.name}")
    sample = rng.sample(finished, min(SAMPLE, len(finished)))
    if judges is not None:
        name = "judges"
        second = [verdict.correct for verdict in judges.judge(sample)]
    else:
        name = SECOND[checker][0]
        second = second_verdicts(checker, [(answer.gold, answer.answer) for answer in sample])
    disagree = [(a, other) for a, other in zip(sample, second, strict=True) if a.correct != other]
    return {
        "second_checker": name,
        "n_answers": len(sample),
        "n_disagree": len(disagree),
        "disagreement": _share(len(disagree), len(sample)),
        "only_first_right": sum(a.correct for a, _ in disagree),
        "only_second_right": sum(other for _, other in disagree),
        "examples": [_example(a, other) for a, other in disagree[:_EXAMPLES]],
    }


def _share(count: int, n: int) -> dict[str, float]:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, n, alpha=0.05, method="beta")
    return {"value": count / n, "low": float(low), "high": float(high)}


def _example(answer: Answer, second: bool) -> dict[str, Any]:
    end = answer.answer[-_CHARACTERS:]
    return {
        "problem_id": answer.problem_id,
        "sample": answer.sample,
        "gold": shown(answer.gold, _CHARACTERS),
        "end_of_answer": shown(end, _CHARACTERS),
        "first": answer.correct,
        "second": second,
    }
