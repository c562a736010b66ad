"""What an answer costs in time: latency, throughput and tokens per answer, under loads of several shapes.

Every load sends its warm-up first and a cool-down last; both are left out of what is counted over answers, and the
server is never half idle while a measured request runs. Prompts are distinct and never sent twice, because vLLM keeps
the prefixes it has seen and would answer a known prompt without prefilling it.

The result:

    model                       the name the server knows it by
    settings                    ProfileSettings as given, with think_start_id and think_end_id
    prompts                     {"sent", "distinct", "repeated": whether any was sent twice}
    found                       of a search (saturation.py), or null: {"saturation", "highest_rate": null without an
                                objective, "ended": why it found less than was asked for, or null}
    stopped                     why the server was gone before all loads were through; null
    client                      the most that the clients reach, on a server that costs nothing and answers as long as
                                those of the busiest level (load/ceiling.py); null when nothing was answered
    levels[]                    one per load, in the order in which they were put on it; those of a search last
      load                      {"name", "kind": closed (and concurrency), open (rate, burstiness), replay (speed)}
      concurrency               of a closed loop; null
      requests                  measured ones; each level sends its warm-up and cool-down beside
      completed, failed         answers and failures among them, failures not tried again
      errors                    {message: count}, the most frequent five
      truncated, truncated_share      answers cut off by max_tokens, and their share of `completed`
      tokens                    over completed answers, from token ids
        prompt, output, thinking, answer     totals; thinking + answer = output (see tokens.py)
        per_answer              {"output", "thinking", "answer"}: means
        unclosed_thinking       answers that ended inside a think block
      measured                  everything that depends on a clock, in seconds
        window_s                from the first measured request to the last request sent: the steady part (steady.py)
        output_tokens_per_s     {"value", "low", "high"} in that window; null when nothing came in it
        seconds_per_answer      mean output tokens over that rate: what an answer takes of the server
        answers_per_s           its inverse
        in_flight               requests in flight on the mean: answers_per_s times mean e2e_s (Little's law)
        ttft_s                  sent to first token
        ttfat_s                 sent to first token after the end of thinking; over answers that have one
        tpot_s                  (e2e - ttft) / (output tokens - 1), one value per answer of two tokens or more
        e2e_s                   sent to last token
        late_s                  of an open loop: how much later than planned the client sent
                                these five: {"mean", "p50", "p90", "p99", "count"}, null without values
        goodput                 {"share", "answers_per_s"} of answers that meet the objective; null without one
        client_share            output_tokens_per_s over the most that the clients reach
        server                  the server's own means and counters over the same run, null where it shows none:
                                {ttft,inter_token,e2e,queue,prefill,decode}_s_mean, prompt_tokens, output_tokens,
                                prefix_cache_queried_tokens, prefix_cache_hit_tokens, preemptions,
                                flops_per_gpu, memory_bytes_per_gpu (its estimates, with --enable-mfu-metrics), and
                                kv_cache_usage, running, waiting: {"mean", "max"} (watch.py)
        energy                  of the whole run, warm-up and cool-down included (energy.py); null where nobody asked

Time between two chunks is not reported from this side: the server may put several tokens in one chunk. TPOT from
totals does not depend on that, and the server's inter_token_s_mean stands beside it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field, model_validator
from rich.progress import Progress

from distill.console import progress
from distill.errors import InputError
from distill.serve.client import SamplingSettings
from distill.serve.endpoint import Endpoint
from distill.serve.energy import EnergyMeter
from distill.serve.load.ceiling import client_ceiling
from distill.serve.load.clients import Clients
from distill.serve.load.run import Run, requests_of, run_load
from distill.serve.load.shapes import ClosedLoop, Load
from distill.serve.objective import Objective
from distill.serve.saturation import highest_rate, saturate
from distill.serve.timing import Timing, timing
from distill.serve.tokens import split_thinking
from distill.settings import Settings

PERCENTILES = (50, 90, 99)
MOST_FREQUENT_ERRORS = 5


class ProfileSettings(Settings):
    """What load is put on the server."""

    loads: tuple[Load, ...] = (ClosedLoop(concurrency=1), ClosedLoop(concurrency=8))
    saturate: bool = False  # search for the load that is as much as the server can do, and with an objective the rate
    most_concurrency: int = Field(256, ge=1)  # of that search
    burstiness: float = Field(1.0, gt=0)  # of the arrivals in it
    requests: int = Field(64, gt=0)  # measured, under each load; a trace sends all that it has
    warmup_requests: int = Field(4, ge=0)  # sent before them and left out, under each load
    sampling: SamplingSettings
    objective: Objective | None = None
    processes: int = Field(1, ge=1)  # that send
    seed: int = Field(0, ge=0)  # of the arrivals of open loops
    timeout_s: float = Field(600.0, gt=0)  # the longest silence of the server before a request has failed
    allow_repeats: bool = False  # send prompts again when there are too few; the result says so

    @model_validator(mode="after")
    def _something_is_measured(self) -> "ProfileSettings":
        if not self.loads and not self.saturate:
            raise ValueError("expected a load, or saturate")
        for load in self.loads:
            if requests_of(load, self.requests, self.warmup_requests) <= self.warmup_requests:
                raise ValueError(f"{load.name}: expected more than the {self.warmup_requests} that warm up")
        return self

    @property
    def prompts_needed(self) -> int:
        """Of the loads; a search takes as many as there are."""
        return sum(requests_of(load, self.requests, self.warmup_requests) for load in self.loads)


def profile_endpoint(
    endpoint: Endpoint,
    prompts: Sequence[Sequence[int]],
    settings: ProfileSettings,
    *,
    think_start_id: int | None = None,
    think_end_id: int | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Measure the server with `prompts` (token ids); the result is described at the top of this file.

    Raises InputError when there are fewer distinct prompts than `settings.prompts_needed`, unless repeats are allowed.
    Failed requests are counted, not raised: a server that dies midway leaves a profile of what it did.
    """
    with Clients(settings.processes) as clients:
        profiled = put_under_load(
            clients, endpoint, prompts, settings, (think_start_id, think_end_id), show_progress=show_progress
        )
        compare_with_ceiling(clients, [profiled.result])
    return profiled.result


@dataclass(frozen=True)
class Profiled:
    """What is described at the top of this file, without `client`; and what every level of it was made from."""

    result: dict[str, Any]
    runs: list[Run]


def put_under_load(
    clients: Clients,
    endpoint: Endpoint,
    prompts: Sequence[Sequence[int]],
    settings: ProfileSettings,
    think_ids: tuple[int | None, int | None],
    *,
    opened: bool = False,
    check: Callable[[], None] | None = None,
    meter: EnergyMeter | None = None,
    label: str = "profile",
    show_progress: bool = False,
) -> Profiled:
    """`profile_endpoint` by clients that are there already, and without what they could reach: `compare_with_ceiling`
    adds that. `think_ids` are those of the opening and closing think tags, `opened`: prompts end inside a block. `check` raises InputError when the server is
    gone, and is called after failures: then nothing more is sent, and `stopped` of the result says why."""
    with progress() if show_progress else nullcontext() as bar:
        loads = _Loads(
            clients, endpoint, distinct_prompts(prompts, settings), settings, think_ids, opened, meter, label, bar
        )
        found = stopped = None
        try:
            for load in settings.loads:
                loads.put(load, settings.requests, check)
            if settings.saturate:
                found = _search(loads, settings, check)
        except InputError as error:
            stopped = str(error)
    start, end = think_ids
    result = {
        "model": endpoint.model,
        "settings": settings.model_dump(mode="json") | {"think_start_id": start, "think_end_id": end},
        "prompts": {
            "sent": loads.sent,
            "distinct": min(loads.sent, len(loads.prompts)),
            "repeated": loads.sent > len(loads.prompts),
        },
        "levels": loads.levels,
        "found": found,
        "stopped": stopped,
    }
    return Profiled(result, loads.runs)


@dataclass
class _Loads:
    """One load after the other on one server, each with prompts that no other had."""

    clients: Clients
    endpoint: Endpoint
    prompts: list[tuple[int, ...]]
    settings: ProfileSettings
    think_ids: tuple[int | None, int | None]
    opened: bool
    meter: EnergyMeter | None
    label: str
    bar: Progress | None
    sent: int = 0
    runs: list[Run] = field(default_factory=list)
    levels: list[dict[str, Any]] = field(default_factory=list)

    def has(self, load: Load, requests: int) -> bool:
        """Whether there are prompts for it."""
        needed = requests_of(load, requests, self.settings.warmup_requests)
        return self.settings.allow_repeats or self.sent + needed <= len(self.prompts)

    def put(self, load: Load, requests: int, check: Callable[[], None] | None) -> dict[str, Any]:
        """The level. Raises InputError, with the level kept, when the server is gone."""
        settings = self.settings
        needed = requests_of(load, requests, settings.warmup_requests)
        prompts = [self.prompts[i % len(self.prompts)] for i in range(self.sent, self.sent + needed)]
        self.sent += needed
        task = self.bar.add_task(f"{self.label} at {load.name}", total=needed) if self.bar else None
        run = run_load(
            self.clients,
            self.endpoint,
            prompts,
            load,
            settings.sampling,
            warmup=settings.warmup_requests,
            seed=settings.seed,
            timeout_s=settings.timeout_s,
            meter=self.meter,
            on_result=partial(self.bar.advance, task) if self.bar else None,
        )
        level = summarise(run, *self.think_ids, settings.objective, opened=self.opened)
        self.runs.append(run)
        self.levels.append(level)
        if check is not None and any(c.error for c in run.completions):
            check()
        return level


def _search(loads: _Loads, settings: ProfileSettings, check: Callable[[], None] | None) -> dict[str, Any]:
    """`found`, described at the top of this file."""
    ended = None

    def measure(load: Load, requests: int) -> dict[str, Any] | None:
        nonlocal ended
        for run, level in zip(loads.runs, loads.levels, strict=True):
            if run.load == load and len(run.measured) >= requests:
                return level
        if not loads.has(load, requests):
            ended = f"the search ended before {load.name}: no prompts were left that the server has not seen"
            return None
        return loads.put(load, requests, check)

    saturation = saturate(measure, requests=settings.requests, most=settings.most_concurrency)
    rate = None
    if settings.objective is not None and saturation["answers_per_s"] is not None:
        rate = highest_rate(
            measure,
            requests=settings.requests,
            saturated=saturation["answers_per_s"],
            burstiness=settings.burstiness,
        )
    return {"saturation": saturation, "highest_rate": rate, "ended": ended}


def compare_with_ceiling(clients: Clients, results: list[dict[str, Any]]) -> None:
    """Put into the results `client`, measured once for the busiest level of all, and every level's `client_share`."""
    levels = [level for result in results for level in result["levels"]]
    answered = [level for level in levels if level["measured"]["output_tokens_per_s"]]
    client = None
    if answered:
        busiest = max(answered, key=lambda level: level["measured"]["output_tokens_per_s"]["value"])
        client = client_ceiling(
            clients,
            concurrency=max(1, round(busiest["measured"]["in_flight"])),
            tokens=max(1, round(busiest["tokens"]["per_answer"]["output"])),
        )
    for level in levels:
        rate, most = level["measured"]["output_tokens_per_s"], client and client["measured"]["tokens_per_s"]
        level["measured"]["client_share"] = rate["value"] / most if rate and most else None
    for result in results:
        result["client"] = client


def distinct_prompts(prompts: Sequence[Sequence[int]], settings: ProfileSettings) -> list[tuple[int, ...]]:
    """Each prompt once. Raises InputError when there are too few and none may be repeated."""
    distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    if not distinct or (len(distinct) < settings.prompts_needed and not settings.allow_repeats):
        raise InputError(
            f"profile: found {len(distinct)} distinct prompts, expected {settings.prompts_needed} ({settings.requests} "
            f"requests, {settings.warmup_requests} to warm up and some to end with, for each of "
            f"{len(settings.loads)} loads); give more prompts, fewer requests or allow_repeats"
        )
    return distinct


def summarise(
    run: Run,
    think_start_id: int | None,
    think_end_id: int | None,
    objective: Objective | None = None,
    *,
    opened: bool = False,
) -> dict[str, Any]:
    """One level, as described at the top of this file, but for client_share."""
    done = run.done
    errors = Counter(completion.error for completion in run.measured if completion.error is not None)
    splits = [split_thinking(completion.token_ids, think_start_id, think_end_id, opened=opened) for completion in done]
    timings = [timing(completion, think_start_id, think_end_id) for completion in done]
    output = sum(len(completion.token_ids) for completion in done)
    thinking = sum(len(thinking_ids) for thinking_ids, _, _ in splits)
    truncated = sum(completion.finish_reason == "length" for completion in done)
    rate = run.rate
    # What is measured of rates is in tokens: answers that the window cuts in two count by the part inside it.
    answers_per_s = rate.value * len(done) / output if rate is not None and output else None

    def per_answer(total: float) -> float | None:
        return total / len(done) if done else None

    return {
        "load": {"name": run.load.name, **run.load.model_dump(mode="json", exclude={"times_s"})},
        "concurrency": run.load.concurrency if isinstance(run.load, ClosedLoop) else None,
        "requests": len(run.measured),
        "completed": len(done),
        "failed": len(run.measured) - len(done),
        "errors": dict(errors.most_common(MOST_FREQUENT_ERRORS)),
        "truncated": truncated,
        "truncated_share": per_answer(truncated),
        "tokens": {
            "prompt": sum(completion.prompt_tokens for completion in done),
            "output": output,
            "thinking": thinking,
            "answer": output - thinking,
            "per_answer": {
                "output": per_answer(output),
                "thinking": per_answer(thinking),
                "answer": per_answer(output - thinking),
            },
            "unclosed_thinking": sum(closed is False for _, _, closed in splits),
        },
        "measured": {
            "window_s": rate.window_s if rate else None,
            "output_tokens_per_s": {"value": rate.value, "low": rate.low, "high": rate.high} if rate else None,
            "answers_per_s": answers_per_s,
            "seconds_per_answer": 1 / answers_per_s if answers_per_s else None,
            "in_flight": answers_per_s * float(np.mean([t.e2e_s for t in timings])) if answers_per_s else None,
            **{
                name: distribution([value for t in timings if (value := getattr(t, name)) is not None])
                for name in ("ttft_s", "ttfat_s", "tpot_s", "e2e_s")
            },
            "late_s": distribution([c.sent_s - c.due_s for c in done if c.due_s is not None]),
            "goodput": _goodput(objective, timings, len(run.measured), answers_per_s),
            "server": run.server,
            "energy": run.energy,
        },
    }


def _goodput(
    objective: Objective | None, timings: list[Timing], requests: int, answers_per_s: float | None
) -> dict[str, Any] | None:
    """Failures are requests that did not meet the objective."""
    if objective is None:
        return None
    met = sum(objective.met_by(t) for t in timings)
    share = met / requests if requests else 0.0
    rate = answers_per_s * met / len(timings) if answers_per_s and timings else 0.0
    return {"objective": objective.model_dump(mode="json", exclude_none=True), "share": share, "answers_per_s": rate}


def distribution(values: Sequence[float]) -> dict[str, float | int] | None:
    """Mean, percentiles (linear between ranks) and count of some seconds; None without any."""
    if not values:
        return None
    at = np.percentile(values, PERCENTILES)
    percentiles = {f"p{rank}": float(value) for rank, value in zip(PERCENTILES, at, strict=True)}
    return {"mean": float(np.mean(values)), **percentiles, "count": len(values)}
