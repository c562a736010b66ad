"""How much a server can take: the load beyond which it gains nothing, and the highest rate that keeps an objective.

Both are searches that put one load after the other on the server. `measure` runs a load with so many measured requests
and returns the level that profile.py describes, or None when it has no prompts left, which ends a search; the levels it
returned are the caller's to show.
"""

import math
from collections.abc import Callable, Generator, Iterator
from typing import Any

from distill.serve.load.shapes import ClosedLoop, OpenLoop

Measure = Callable[[Any, int], dict[str, Any] | None]

GAIN = 0.05  # of throughput: less is none
KEPT = 0.95  # share of answers that must meet an objective for it to be kept
FIRST_SHARE = 0.5  # of the saturated rate, where the search for a rate begins
STEP = 1.5  # between the rates that bracket the answer
PRECISION = 1.1  # ratio of the lowest rate that failed to the highest that held, when the search ends
MOST_RUNS = 10
REQUESTS_A_CLIENT = 2  # of a closed loop: fewer are all sent before the first one is answered
SECONDS_AT_A_RATE = 5.0  # that a rate is held: a queue that grows without end must have the time to be seen
MOST_REQUESTS = 1024  # in that time


def saturate(measure: Measure, *, requests: int, most: int) -> dict[str, Any]:
    """Twice as many clients each time, until throughput grows by less than 5 % or there would be more than `most`. Each
    load has `requests` measured requests or more.

    {"concurrency": the fewest clients that reach 95 % of the best throughput seen, "answers_per_s" and
    "output_tokens_per_s" at it, "reached": whether throughput stopped growing}. None of it where nothing was answered.
    """
    levels: list[dict[str, Any]] = []
    reached = False
    for concurrency in _doubling(most):
        level = measure(ClosedLoop(concurrency=concurrency), max(requests, REQUESTS_A_CLIENT * concurrency))
        rate = level and _throughput(level)
        if rate is None:
            break
        reached = bool(levels) and rate < (1 + GAIN) * _throughput(levels[-1])
        levels.append(level)
        if reached:
            break
    if not levels:
        return {"concurrency": None, "answers_per_s": None, "output_tokens_per_s": None, "reached": False}
    best = max(_throughput(level) for level in levels)
    found = next(level for level in levels if _throughput(level) >= (1 - GAIN) * best)
    return {
        "concurrency": found["concurrency"],
        "answers_per_s": found["measured"]["answers_per_s"],
        "output_tokens_per_s": _throughput(found),
        "reached": reached,
    }


def highest_rate(measure: Measure, *, requests: int, saturated: float, burstiness: float = 1.0) -> dict[str, Any]:
    """The highest arrival rate at which 95 % of the answers meet the objective that `measure` judges by.

    `saturated` is what a closed loop reached, in answers a second; each rate is held for `requests` or more. Rates are raised or lowered by half until one holds
    and one fails, and then halved between, to within 10 %.

    {"rate": requests/s that held, None when none did, "goodput": answers/s within the objective at it, "failed_at": the
    lowest rate that failed, None when none did}.
    """
    search = rate_search(saturated=saturated, burstiness=burstiness)
    load = next(search)
    while True:
        try:
            load = search.send(measure(load, requests_at(load.rate, requests)))
        except StopIteration as end:
            return end.value


def requests_at(rate: float, least: int) -> int:
    """How many show whether a server keeps up with a rate, and not fewer than `least`."""
    return max(least, min(MOST_REQUESTS, math.ceil(SECONDS_AT_A_RATE * rate)))


def rate_search(
    *, saturated: float, burstiness: float = 1.0
) -> Generator[OpenLoop, dict[str, Any] | None, dict[str, Any]]:
    """`highest_rate` for who runs several searches in turns: gives a load, is sent its level, returns what was found."""
    holds: dict[str, Any] | None = None
    held, failed = None, None
    rate = FIRST_SHARE * saturated
    for _ in range(MOST_RUNS):
        level = yield OpenLoop(rate=rate, burstiness=burstiness)
        if level is None:
            break
        if level["completed"] and level["measured"]["goodput"]["share"] >= KEPT:
            holds, held = level, rate
        else:
            failed = rate
        if held is not None and failed is not None:
            if failed / held < PRECISION:
                break
            rate = math.sqrt(held * failed)
        else:
            rate = rate * STEP if failed is None else rate / STEP
    goodput = holds["measured"]["goodput"]["answers_per_s"] if holds else None
    return {"rate": held, "goodput": goodput, "failed_at": failed}


def _doubling(most: int) -> Iterator[int]:
    concurrency = 1
    while concurrency <= most:
        yield concurrency
        concurrency *= 2


def _throughput(level: dict[str, Any]) -> float | None:
    rate = level["measured"]["output_tokens_per_s"]
    return None if rate is None else rate["value"]
