"""What a plan comes to: sums over what is missing and what is there, by stage and altogether."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from distill.flops import Hardware
from distill.study.plan.cell import PlannedCell
from distill.study.plan.problems import runs_here
from distill.study.plan.teaching import Pairs
from distill.study.workplace import local_gpus


def stages_of(
    found: Sequence[PlannedCell],
    beside: Sequence[dict[str, Any]],
    sets: Sequence[Pairs],
    usd: Callable[[float | None, int], float | None],
    *,
    asked: bool,
) -> list[dict[str, Any]]:
    """One entry a stage. `asked`: False where the questions are not here, so that nobody knows what is generated."""
    missing = [(one, one.trains - len(one.trained)) for one in found]
    train = _empty("train", sum(one.trains for one in found), sum(len(one.trained) for one in found))
    serve = _empty("serve", sum(len(one.cell.seeds) for one in found), sum(len(one.served) for one in found))
    for one, count in missing:
        training, seconds = one.training, one.seconds.get("train")
        _add(train, "tokens", training and training.tokens, one.trains)
        _add(train, "flops", training and training.flops, one.trains)
        _add(train, "device_seconds", seconds and seconds * one.devices, count)
        _add(train, "usd", usd(seconds, one.devices), count)
    for one in found:
        students = len(one.cell.seeds)
        count = students - len(one.served)
        votes = min(one.votes, count)
        _add(serve, "generated_tokens", one.generated if one.training and asked else None, students)
        _add(serve, "generated_tokens", one.voted, one.votes)
        for seconds, times in ((one.seconds.get("serve"), count), (one.seconds.get("votes", 0.0), votes)):
            _add(serve, "device_seconds", seconds and seconds * one.devices, times)
            _add(serve, "usd", usd(seconds, one.devices), times)
    traces = _empty("traces", len(sets), sum(one.done for one in sets))
    for pairs in sets:
        _add(traces, "generated_tokens", pairs.output_tokens, 1)
        _add(traces, "usd", 0.0 if pairs.done else pairs.usd, 1)
        _add(traces, "device_seconds", pairs.seconds, 1)
    stages = [traces, train, serve]
    if beside:
        ask = _empty("ask", len(beside), sum(one["done"] for one in beside))
        for one in beside:
            _add(ask, "generated_tokens", one["generated_tokens"], 1)
            _add(ask, "device_seconds", one["seconds"] and one["seconds"] * one["devices"], int(not one["done"]))
            _add(ask, "usd", one["usd"], int(not one["done"]))
        stages.append(ask)
    return stages


def total(stages: Sequence[dict[str, Any]], row: Hardware) -> dict[str, Any]:
    """Of all stages, in device seconds and money; on this machine in seconds of a clock, where it is of that row."""
    parts = [stage["device_seconds"] for stage in stages]
    seconds = None if None in parts else sum(parts)
    money = [stage["usd"] for stage in stages]
    together = None
    if runs_here(row) and seconds is not None:
        slots = len(local_gpus()) or len(os.sched_getaffinity(0))
        together = seconds / slots
    return {
        "device_seconds": seconds,
        "wall_seconds_here": together,
        "usd": None if None in money else sum(money),
        "training_flops": stages[1]["flops"],
    }


def _empty(name: str, jobs: int, done: int) -> dict[str, Any]:
    numbers = {"tokens": 0, "generated_tokens": 0, "flops": 0.0, "device_seconds": 0.0, "usd": 0.0}
    return {"stage": name, "jobs": jobs, "done": done, **numbers}


def _add(stage: dict[str, Any], name: str, value: float | None, times: int) -> None:
    """Nothing that is not known makes a sum known."""
    if times == 0 or stage[name] is None:
        return
    stage[name] = None if value is None else stage[name] + value * times
