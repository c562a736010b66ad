"""What answers cost at the highest rate that keeps a latency objective: 1 / rate machine seconds each.

The search for that rate is repeated in rounds, all contenders' searches taking turns load by load, each later one from
where the one before ended. It ends with a rate that held and one, at most 10 % higher, that failed. With three rounds or
more the interval is that of the rounds, else it is the bracket.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from distill.evaluation.serving.cost import Answers, Part, Price, Student, over_rounds, product
from distill.serve.objective import Objective


def at_objective(
    objective: Objective,
    found: Sequence[dict[str, dict[str, Any]]],
    saturated: dict[str, float],
    answers: dict[str, list[Answers]],
    prices: dict[str, Price | None],
    reference: str,
) -> dict[str, Any]:
    """`objective` in compare.json. `found` is what every round's searches found, by contender; `saturated` are answers a
    second of the best closed loop; `answers` those of all closed loops, for tokens and correct ones."""
    rates = {name: [_rate(one[name], saturated[name]) for one in found] for name in prices}
    kept = {name: [] if None in rates[name] else rates[name] for name in prices}
    return {
        "objective": objective.model_dump(mode="json", exclude_none=True),
        "contenders": {
            name: {
                "measured": {
                    "rates": [one[name]["rate"] for one in found if one[name]["rate"] is not None],
                    "failed_at": [one[name]["failed_at"] for one in found],
                    "limited": all(one[name]["failed_at"] is not None for one in found),
                    "answers_per_s": over_rounds(kept[name]).as_dict() if kept[name] else None,
                    "cost": _cost(kept[name], answers[name], prices[name]) if kept[name] else None,
                }
            }
            for name in prices
        },
        "factors": {
            name: _factors(kept, answers, name, reference)
            for name in prices
            if name != reference and kept[name] and kept[reference]
        },
    }


def _rate(found: dict[str, Any], saturated: float) -> Part | None:
    """Answers a second. A search that met no rate that fails says nothing of what the server can go on doing."""
    held, failed = found["rate"], found["failed_at"]
    if held is None:
        return None
    return Part(min(held, saturated)) if failed is None else Part(held, 0.0, math.log(failed / held))


def _cost(rates: list[Part], answers: list[Answers], price: Price | None) -> dict[str, Any]:
    seconds, correct = product([], [over_rounds(rates)]), Student(answers).correct
    shown = lambda part: {  # noqa: E731
        "seconds": part.as_dict(),
        "usd": (part * price.usd_per_second).as_dict() if price else None,
    }
    return {
        "per_answer": shown(seconds),
        "per_correct": shown(product([seconds], [correct])) if correct is not None and correct.value else None,
    }


def _factors(
    rates: dict[str, list[Part]],
    answers: dict[str, list[Answers]],
    name: str,
    reference: str,
) -> dict[str, Any]:
    asked = [np.concatenate([a.questions for a in answers[who]]) for who in (name, reference)]
    one, other = (Student(answers[who], np.intersect1d(*asked)) for who in (name, reference))
    cost = over_rounds([product([b], [a]) for a, b in zip(rates[name], rates[reference], strict=True)])
    graded = all(s.correct is not None and s.correct.value > 0 for s in (one, other))
    return {
        "token_factor": product([one.tokens], [other.tokens]).as_dict(),
        "per_token_factor": product([cost, other.tokens], [one.tokens]).as_dict(),
        "cost_factor": cost.as_dict(),
        "cost_factor_per_correct": product([cost, other.correct], [one.correct]).as_dict() if graded else None,
    }
