"""One load on one server: warm-up, what is measured, and what keeps the server busy until that is answered."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from distill.serve.client import Completion, SamplingSettings
from distill.serve.endpoint import Endpoint
from distill.serve.energy import EnergyMeter
from distill.serve.load.clients import Clients, batch
from distill.serve.load.shapes import Load, Replay
from distill.serve.load.steady import Rate, output_rate
from distill.serve.watch import Watch


@dataclass(frozen=True)
class Run:
    """What came of one load. `completions` are in the order in which they were sent, warm-up and cool-down included."""

    load: Load
    completions: list[Completion]
    warmup: int
    cooldown: int
    server: dict[str, Any] | None  # its own measurements over the whole run; None when it shows none
    prompts: Sequence[Sequence[int]] = ()  # of the completions
    energy: dict[str, Any] | None = None  # of the whole run, as energy.py describes it; None when nobody asked

    @property
    def measured(self) -> list[Completion]:
        """What latencies, tokens and failures are counted over."""
        return self.completions[self.warmup : len(self.completions) - self.cooldown]

    @property
    def done(self) -> list[Completion]:
        """Those of them that were answered."""
        return [c for c in self.measured if c.error is None]

    @property
    def answered(self) -> list[tuple[Sequence[int], Completion]]:
        """The same with their prompts."""
        prompts = self.prompts[self.warmup : len(self.completions) - self.cooldown]
        return [(p, c) for p, c in zip(prompts, self.measured, strict=True) if c.error is None]

    @cached_property
    def rate(self) -> Rate | None:
        """Output tokens a second, from the first measured request sent to the last request sent at all."""
        sent = [c.sent_s for c in self.completions if c.sent_s is not None]
        first = [c.sent_s for c in self.measured if c.sent_s is not None]
        return output_rate(self.completions, min(first), max(sent)) if first else None


def requests_of(load: Load, requests: int, warmup: int) -> int:
    """How many prompts one run takes; of a trace, all that it has."""
    return len(load.times_s) if isinstance(load, Replay) else warmup + requests + load.cooldown_requests


def run_load(
    clients: Clients,
    endpoint: Endpoint,
    prompts: Sequence[Sequence[int]],
    load: Load,
    sampling: SamplingSettings,
    *,
    warmup: int,
    seed: int = 0,
    timeout_s: float = 600.0,
    meter: EnergyMeter | None = None,
    on_result: Callable[[], None] | None = None,
) -> Run:
    """Send `prompts` (token ids, as many as `requests_of` says). What fails is counted; nothing is sent twice.

    `seed` draws the arrivals of an open loop; `timeout_s` is the longest silence of the server; `meter` runs already.
    """
    with Watch(endpoint) as watch, meter.window() if meter else nullcontext() as window:
        sent = batch(endpoint, sampling, prompts, load, seed=seed, timeout_s=timeout_s)
        completions = clients.send(sent, on_result)
    energy = window.energy if window else None
    return Run(load, completions, warmup, load.cooldown_requests, watch.found, prompts, energy)
