"""A second, independent checker on a sample of the graded answers: how often the two disagree, and where.

With judges the second checker is their majority, else one from tasks/second_checkers.py. Only finished answers are in
the sample: the others are wrong by rule. What models judged is not audited: of two or more their agreement says more.
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


def why_not_audited(asked: Asked, answers: Sequence[Answer], judges: Judges | None = None) -> str | None:
    """Why nobody looks at a task's grades a second time; None where somebody does."""
    if asked.task.checker == "judge":
        several = judges is not None and len(judges.settings) > 1
        return "judged; see how far the judges agree" if several else "a single judge graded it; name two or three"
    return None if any(answer.finished for answer in answers) else "no answer is finished"


def audit(asked: Asked, answers: Sequence[Answer], judges: Judges | None = None) -> dict[str, Any] | None:
    """The share of sampled answers on which the second checker disagrees with the grade, with its 95 % interval
    (Clopper-Pearson, over answers), and examples; `n_skipped` more are such that it has no word on them. None where
    there is a reason `why_not_audited`."""
    if why_not_audited(asked, answers, judges) is not None:
        return None
    finished = [answer for answer in answers if answer.finished]
    rng = random.Random(f"audit {asked.task.name}")
    sample = rng.sample(finished, min(SAMPLE, len(finished)))
    if judges is not None:
        name = "judges"
        second: list[bool | None] = [verdict.correct for verdict in judges.judge(sample)]
    else:
        name = SECOND[asked.task.checker][0]
        second = second_verdicts(asked.task.checker, [(answer.gold, answer.answer) for answer in sample])
    seen = [(a, other) for a, other in zip(sample, second, strict=True) if other is not None]
    disagree = [(a, other) for a, other in seen if a.correct != other]
    return {
        "second_checker": name,
        "n_answers": len(seen),
        "n_skipped": len(sample) - len(seen),
        "n_disagree": len(disagree),
        "disagreement": _share(len(disagree), len(seen)) if seen else None,
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
