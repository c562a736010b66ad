"""The steady part of a run, and how fast the server was in it.

A run begins with an idle server and ends with one: throughput over all of it depends on how long it was. Counted is
the window in which the load was what it is called: from the first measured request to the last one sent at all. In it
tokens are counted as they came, those of requests included that began before or ended after.

What an answer costs in seconds is its tokens over that rate. Both vary: tokens from answer to answer, the rate from
moment to moment. The variance of the rate comes from batch means: the window cut into blocks, each far longer than
a step of the model (Law and Kelton, Simulation Modeling and Analysis, chapter 9).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from distill.serve.client import Completion

BLOCKS = 10
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """Tokens a second in a window, with a 95 % interval; low and high are None where the window is too short for one."""

    value: float
    low: float | None
    high: float | None
    window_s: float
    tokens: int


def output_rate(completions: Sequence[Completion], start_s: float, end_s: float) -> Rate | None:
    """Output tokens a second that came between two moments of time.perf_counter; None when none did.

    `completions` are all of the run, warm-up and cool-down included.
    """
    arrived = [c.sent_s + np.asarray(c.token_times_s) for c in completions if c.error is None and c.token_ids]
    times = np.concatenate(arrived) if arrived else np.empty(0)
    times = times[(times >= start_s) & (times <= end_s)]
    window_s = end_s - start_s
    if window_s <= 0 or not len(times):
        return None
    counts, _ = np.histogram(times, bins=BLOCKS, range=(start_s, end_s))
    rates = counts / (window_s / BLOCKS)
    low = high = None
    if (counts > 0).all():
        half = stats.t.ppf(0.5 + CONFIDENCE / 2, BLOCKS - 1) * stats.sem(rates)
        low, high = max(0.0, float(rates.mean() - half)), float(rates.mean() + half)
    return Rate(float(len(times) / window_s), low, high, window_s, len(times))
