"""What an answer costs in time: latency, throughput and tokens per answer, at several concurrencies.

Closed loop: `concurrency` clients, each sending its next request when the last one is answered. Each level sends its
warm-up first and leaves it out. Prompts are distinct and never sent twice, because vLLM keeps the prefixes it has
seen and would answer a known prompt without prefilling it.

The result:

    model                       the name the server knows it by
    settings                    ProfileSettings as given, with think_start_id and think_end_id
    prompts                     {"sent", "distinct", "repeated": whether any was sent twice}
    levels[]                    one per concurrency
      concurrency, requests     as asked for
      completed, failed         answers and failures, failures not tried again
      errors                    {message: count}, the most frequent five
      truncated, truncated_share      answers cut off by max_tokens, and their share of `completed`
      tokens                    over completed answers, from token ids
        prompt, output, thinking, answer     totals; thinking + answer = output (see tokens.py)
        per_answer              {"output", "thinking", "answer"}: means
        unclosed_thinking       answers that ended inside a think block
      measured                  everything that depends on a clock, in seconds
        duration_s              first request sent to last answer received
        requests_per_s, output_tokens_per_s     completed answers and their tokens over duration_s
        ttft_s                  sent to first token
        ttfat_s                 sent to first token after the end of thinking; over answers that have one
        tpot_s                  (e2e - ttft) / (output tokens - 1), one value per answer of two tokens or more
        e2e_s                   sent to last token
                                these four: {"mean", "p50", "p90", "p99", "count"}, null without values
        server                  the server's own means and counters over the same window, null where it shows none:
                                {ttft,inter_token,e2e,queue,prefill,decode}_s_mean, prompt_tokens, output_tokens,
                                prefix_cache_queried_tokens, prefix_cache_hit_tokens, preemptions

Time between two chunks is not reported from this side: the server may put several tokens in one chunk. TPOT from
totals does not depend on that, and the server's inter_token_s_mean stands beside it.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import cycle, islice
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from distill.console import progress
from distill.errors import InputError
from distill.serve.client import Completion, SamplingSettings, complete
from distill.serve.endpoint import Endpoint
from distill.serve.metrics import between, scrape
from distill.serve.tokens import split_thinking
from distill.settings import Settings

PERCENTILES = (50, 90, 99)
MOST_FREQUENT_ERRORS = 5


class ProfileSettings(Settings):
    """What load is put on the server."""

    concurrencies: tuple[int, ...] = (1, 8, 32)
    requests: int = Field(64, gt=0)  # measured, at each concurrency
    warmup_requests: int = Field(4, ge=0)  # sent before them and left out, at each concurrency
    sampling: SamplingSettings
    allow_repeats: bool = False  # send prompts again when there are too few; the result says so

    @field_validator("concurrencies")
    @classmethod
    def _all_positive(cls, concurrencies: tuple[int, ...]) -> tuple[int, ...]:
        if not concurrencies or min(concurrencies) < 1:
            raise ValueError("expected one or more concurrencies, each at least 1")
        return concurrencies

    @property
    def prompts_needed(self) -> int:
        return len(self.concurrencies) * (self.requests + self.warmup_requests)


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
    distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    if not distinct or (len(distinct) < settings.prompts_needed and not settings.allow_repeats):
        raise InputError(
            f"profile: found {len(distinct)} distinct prompts, expected {settings.prompts_needed} "
            f"({len(settings.concurrencies)} concurrencies x ({settings.requests} requests + "
            f"{settings.warmup_requests} warm-up)); give more prompts, fewer requests or allow_repeats"
        )
    supply = cycle(distinct)
    bar = progress() if show_progress else None
    levels = []
    with bar or nullcontext():
        for concurrency in settings.concurrencies:
            task = bar.add_task(f"profile at concurrency {concurrency}", total=settings.requests) if bar else None
            completions, server = asyncio.run(
                _run_level(
                    endpoint,
                    supply,
                    settings,
                    concurrency,
                    think_end_id,
                    on_result=(lambda _, task=task: bar.advance(task)) if bar else None,
                )
            )
            level = {"concurrency": concurrency, "requests": settings.requests}
            levels.append(level | summarise(completions, server, think_start_id, think_end_id))
    return {
        "model": endpoint.model,
        "settings": settings.model_dump(mode="json") | {"think_start_id": think_start_id, "think_end_id": think_end_id},
        "prompts": {
            "sent": settings.prompts_needed,
            "distinct": min(len(distinct), settings.prompts_needed),
            "repeated": len(distinct) < settings.prompts_needed,
        },
        "levels": levels,
    }


async def _run_level(
    endpoint: Endpoint,
    supply: Iterator[tuple[int, ...]],
    settings: ProfileSettings,
    concurrency: int,
    think_end_id: int | None,
    on_result: Any,
) -> tuple[list[Completion], dict[str, float | None] | None]:
    load = {"concurrency": concurrency, "stream": True, "think_end_id": think_end_id, "retries": 0}
    warmup = list(islice(supply, settings.warmup_requests))
    await complete(endpoint, warmup, settings.sampling, **load)
    prompts = list(islice(supply, settings.requests))
    before = scrape(endpoint)
    completions = await complete(endpoint, prompts, settings.sampling, **load, on_result=on_result)
    return completions, between(before, scrape(endpoint))


def summarise(
    completions: Sequence[Completion],
    server: dict[str, float | None] | None,
    think_start_id: int | None,
    think_end_id: int | None,
) -> dict[str, Any]:
    """One level's counts and measurements, from `completed` on as described at the top of this file."""
    done = [completion for completion in completions if completion.error is None]
    errors = Counter(completion.error for completion in completions if completion.error is not None)
    splits = [split_thinking(completion.token_ids, think_start_id, think_end_id) for completion in done]
    output = sum(len(completion.token_ids) for completion in done)
    thinking = sum(len(thinking_ids) for thinking_ids, _, _ in splits)
    duration_s = max(c.sent_s + c.e2e_s for c in done) - min(c.sent_s for c in done) if done else None
    truncated = sum(completion.finish_reason == "length" for completion in done)

    def per_answer(total: float) -> float | None:
        return total / len(done) if done else None

    def per_second(total: float) -> float | None:
        return total / duration_s if done else None

    return {
        "completed": len(done),
        "failed": len(completions) - len(done),
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
            "duration_s": duration_s,
            "requests_per_s": per_second(len(done)),
            "output_tokens_per_s": per_second(output),
            "ttft_s": distribution([c.ttft_s for c in done if c.ttft_s is not None]),
            "ttfat_s": distribution([c.tfat_s for c in done if c.tfat_s is not None]),
            "tpot_s": distribution(
                [(c.e2e_s - c.ttft_s) / (len(c.token_ids) - 1) for c in done if len(c.token_ids) > 1]
            ),
            "e2e_s": distribution([c.e2e_s for c in done]),
            "server": server,
        },
    }


def distribution(values: Sequence[float]) -> dict[str, float | int] | None:
    """Mean, percentiles (linear between ranks) and count of some seconds; None without any."""
    if not values:
        return None
    at = np.percentile(values, PERCENTILES)
    percentiles = {f"p{rank}": float(value) for rank, value in zip(PERCENTILES, at, strict=True)}
    return {"mean": float(np.mean(values)), **percentiles, "count": len(values)}
