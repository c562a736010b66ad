"""The shapes of load: so many clients that wait for their answers, or requests that arrive whatever becomes of others.

Closed loop: every client sends its next request when its last one is answered, so that the server is never asked for
more than it can do; what a batch job puts on a server. Open loop: requests arrive at a rate of their own, and wait when
the server falls behind; what people put on a server.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from distill.settings import Settings

MOST_COOLDOWN = 256  # requests of an open loop


class ClosedLoop(Settings):
    """So many requests in flight, always."""

    kind: Literal["closed"] = "closed"
    concurrency: int = Field(gt=0)

    @property
    def name(self) -> str:
        return f"concurrency {self.concurrency}"

    @property
    def cooldown_requests(self) -> int:
        """Requests sent after the measured ones, so that these never run on a server that is half idle."""
        return self.concurrency


class OpenLoop(Settings):
    """Requests arrive at `rate` a second, with gaps of a gamma distribution.

    `burstiness` is its shape, as in vLLM's benchmark: 1 is a Poisson process, less is burstier, more is more even.
    """

    kind: Literal["open"] = "open"
    rate: float = Field(gt=0, allow_inf_nan=False)
    burstiness: float = Field(1.0, gt=0, allow_inf_nan=False)

    @property
    def name(self) -> str:
        return f"{self.rate:.4g} requests/s"

    @property
    def cooldown_requests(self) -> int:
        """As many as arrive in two seconds, up to a limit: what was asked before is mostly answered while they come."""
        return max(1, min(MOST_COOLDOWN, int(np.ceil(2 * self.rate))))

    def arrivals_s(self, count: int, seed: int) -> np.ndarray:
        """When each of `count` requests is sent, in seconds from the start; the first at 0."""
        gaps = np.random.default_rng(seed).gamma(self.burstiness, 1 / (self.rate * self.burstiness), count - 1)
        return np.concatenate([[0.0], np.cumsum(gaps)])


class Replay(Settings):
    """Requests arrive as they did once: `times_s` in seconds, in order, from any start. `speed` 2 is twice as fast."""

    kind: Literal["replay"] = "replay"
    times_s: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(min_length=2)
    speed: float = Field(1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _in_order(self) -> "Replay":
        if any(late < early for early, late in zip(self.times_s, self.times_s[1:], strict=False)):
            raise ValueError("expected arrival times in order, found one before its predecessor")
        return self

    @property
    def name(self) -> str:
        return f"a trace of {len(self.times_s)} arrivals" + (f" at {self.speed:g}x" if self.speed != 1 else "")

    @property
    def cooldown_requests(self) -> int:
        return 0  # a trace is sent as it is

    def arrivals_s(self, count: int, seed: int) -> np.ndarray:
        """The first `count` arrivals, in seconds from the first one."""
        times = np.asarray(self.times_s[:count])
        return (times - times[0]) / self.speed


Load = Annotated[ClosedLoop | OpenLoop | Replay, Field(discriminator="kind")]


def share(items: Sequence, process: int, processes: int) -> Sequence:
    """What one of several sending processes takes of something that all of them share, in order."""
    return items[process::processes]
