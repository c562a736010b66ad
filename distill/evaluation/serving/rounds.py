"""Rounds of one load on several contenders, put together: what each of them did, and how much dearer one is than another.

`keep` makes of a run what is kept of it, plain JSON, so that a killed comparison goes on with the rounds that it has.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from distill.evaluation.grading import metric_columns
from distill.evaluation.questions import Asked
from distill.evaluation.serving.cost import (
    Answers,
    Energy,
    Price,
    cost,
    factors,
    over_rounds,
    per_added_point,
    rate_part,
)
from distill.evaluation.serving.turns import Contender
from distill.evaluation.statistics.intervals import paired_difference
from distill.evaluation.statistics.resampling import Sample, resample
from distill.serve.load.run import Run
from distill.serve.load.shapes import ClosedLoop, Load
from distill.serve.load.steady import Rate
from distill.serve.profile import MOST_FREQUENT_ERRORS, distribution
from distill.serve.timing import timing
from distill.tasks.task import Metric

TIMES = ("ttft_s", "ttfat_s", "tpot_s", "e2e_s")
Kept = dict[str, Any]


def keep(contender: Contender, asked: Asked, run: Run) -> Kept:
    """Raises InputError when the answers cannot be graded."""
    (answers,) = contender.respondent.grade(asked, [run])
    timings = [timing(completion, *contender.respondent.think_ids) for completion in run.done]
    problems = {problem.id: problem for problem in asked.problems}
    theirs = [problems[answer.problem_id] for answer in answers]
    metrics = {}
    for name, metric in asked.task.metrics.items() if answers else ():
        columns = metric_columns(metric, theirs, answers)
        metrics[name] = {column: np.asarray(values, dtype=float).tolist() for column, values in columns.items()}
    return {
        "requests": len(run.measured),
        "errors": Counter(c.error for c in run.measured if c.error is not None),
        "rate": run.rate and asdict(run.rate),
        "energy": run.energy,
        "energy_tokens": sum(len(c.token_ids) for c in run.completions),
        "server": run.server,
        "answers": {
            "question": [a.problem_id for a in answers],
            "prompt": [a.prompt_tokens for a in answers],
            "output": [len(a.token_ids) for a in answers],
            "thinking": [a.thinking_tokens for a in answers],
            "correct": [int(a.correct) for a in answers],
            "unfinished": [not a.finished for a in answers],
            **{name: [getattr(t, name) for t in timings] for name in TIMES},
        },
        "metrics": metrics,
    }


def has_failed(kept: Kept) -> bool:
    return bool(kept["errors"])


def reckoned(kept: Kept) -> Answers | None:
    """As `cost` takes them; None where nothing was answered, or no rate measured."""
    answers, energy = kept["answers"], kept["energy"]
    if not answers["question"] or kept["rate"] is None:
        return None
    return Answers(
        questions=np.array(answers["question"]),
        output_tokens=np.array(answers["output"]),
        prompt_tokens=np.array(answers["prompt"]),
        correct=np.array(answers["correct"]),
        unfinished=np.array(answers["unfinished"]),
        rate=Rate(**kept["rate"]),
        energy=Energy(energy["joules"], kept["energy_tokens"]) if energy and "joules" in energy else None,
    )


def usable(rounds: Sequence[dict[str, Kept]]) -> list[dict[str, Kept]]:
    """The rounds in which every contender gave answers."""
    return [kept for kept in rounds if all(reckoned(one) is not None for one in kept.values())]


def level(
    load: Load,
    rounds: Sequence[dict[str, Kept]],
    prices: dict[str, Price | None],
    reference: str,
    metrics: dict[str, Metric],
) -> dict[str, Any]:
    """One of `levels` in compare.json, of the rounds of one load by contender. Needs a usable round."""
    good = usable(rounds)
    answers = {name: [reckoned(kept[name]) for kept in good] for name in prices}
    others = [name for name in prices if name != reference]
    return {
        "load": {"name": load.name, **load.model_dump(mode="json")},
        "concurrency": load.concurrency if isinstance(load, ClosedLoop) else None,
        "contenders": {
            name: _contender(
                [kept[name] for kept in rounds], [kept[name] for kept in good], answers[name], prices[name]
            )
            for name in prices
        },
        "factors": {
            name: _factors(answers, prices, name, reference)
            | {"metrics": _metrics(good, answers, prices, name, reference, metrics)}
            for name in others
        },
    }


def _contender(every: list[Kept], good: list[Kept], answers: list[Answers], price: Price | None) -> dict[str, Any]:
    column = lambda name: [value for kept in good for value in kept["answers"][name]]  # noqa: E731
    errors = Counter()
    for kept in every:
        errors.update(kept["errors"])
    per_answer = {name: float(np.mean(column(name))) for name in ("prompt", "output", "thinking")}
    per_answer["answer"] = per_answer["output"] - per_answer["thinking"]
    rate = over_rounds([rate_part(a.rate) for a in answers])
    answers_per_s = rate.value / per_answer["output"]
    times = {name: distribution([value for value in column(name) if value is not None]) for name in TIMES}
    return {
        "requests": sum(kept["requests"] for kept in every),
        "completed": len(column("question")),
        "failed": errors.total(),
        "errors": dict(errors.most_common(MOST_FREQUENT_ERRORS)),
        "rounds_left_out": len(every) - len(good),
        "unfinished": int(sum(column("unfinished"))),
        "tokens": {"per_answer": per_answer},
        "measured": {
            "rounds": [_round(a) for a in answers],
            "output_tokens_per_s": rate.as_dict(),
            "answers_per_s": answers_per_s,
            "seconds_per_answer": 1 / answers_per_s,
            "in_flight": answers_per_s * times["e2e_s"]["mean"],
            **times,
            "energy": _energy([kept["energy"] for kept in good]),
            "server": _server([kept["server"] for kept in good]),
            "cost": cost(answers, price),
        },
    }


_UNPRICED = Price(1.0)


def _factors(
    answers: dict[str, list[Answers]], prices: dict[str, Price | None], name: str, reference: str
) -> dict[str, Any]:
    priced = prices[name] is not None and prices[reference] is not None
    found = factors(answers[name], answers[reference], prices[name] or _UNPRICED, prices[reference] or _UNPRICED)
    return found if priced else found | {"usd": None}


def _round(answers: Answers) -> dict[str, Any]:
    rate = answers.rate
    return {
        "output_tokens_per_s": {"value": rate.value, "low": rate.low, "high": rate.high},
        "answers": len(answers.questions),
        "tokens": int(answers.output_tokens.sum()),
        "correct": int(answers.correct.sum()),
    }


def _energy(rounds: list[dict[str, Any] | None]) -> dict[str, Any]:
    reason = next((found["reason"] for found in rounds if found and "reason" in found), None)
    if reason is not None or None in rounds:
        return {"reason": reason or "not measured"}
    return {name: sum(found[name] for found in rounds) for name in ("joules", "seconds")}


def _server(rounds: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Counters summed, means of means, gauges of the rounds that were long enough to see one."""
    if None in rounds:
        return None
    found: dict[str, Any] = {}
    for name in rounds[0]:
        values = [one.get(name) for one in rounds]
        seen = [value for value in values if isinstance(value, dict)]
        if all(isinstance(value, int | float) for value in values):
            found[name] = float(np.mean(values)) if name.endswith("_mean") else sum(values)
        elif seen:
            found[name] = {
                "mean": float(np.mean([one["mean"] for one in seen])),
                "max": max(one["max"] for one in seen),
            }
    return found


def _metrics(
    rounds: Sequence[dict[str, Kept]],
    answers: dict[str, list[Answers]],
    prices: dict[str, Price | None],
    name: str,
    reference: str,
    metrics: dict[str, Metric],
) -> dict[str, Any]:
    """Of the questions that both answered, in the same order."""
    ids = {who: [i for kept in rounds for i in kept[who]["answers"]["question"]] for who in (name, reference)}
    both = sorted(set(ids[name]) & set(ids[reference]))
    found = {}
    for metric in metrics.values():
        one, other = (_sample(rounds, who, metric, ids[who], both) for who in (name, reference))
        difference = paired_difference([one], [other])
        found[metric.name] = {
            "value": one.value,
            "reference": other.value,
            "difference": asdict(difference),
            "per_added_point": per_added_point(
                answers[name],
                answers[reference],
                one,
                other,
                prices[name] or _UNPRICED,
                prices[reference] or _UNPRICED,
            )
            | ({} if prices[name] is not None and prices[reference] is not None else {"usd": None}),
        }
    return found


def _sample(rounds: Sequence[dict[str, Kept]], who: str, metric: Metric, ids: list[str], wanted: list[str]) -> Sample:
    place = {question: i for i, question in enumerate(ids)}
    at = [place[question] for question in wanted]
    names = rounds[0][who]["metrics"][metric.name]
    columns = {c: np.array([v for kept in rounds for v in kept[who]["metrics"][metric.name][c]])[at] for c in names}
    return resample(metric, columns)
