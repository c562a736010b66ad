"""The server's own measurements, read from vLLM's Prometheus page."""

import re
from collections import defaultdict

import httpx

from distill.serve.endpoint import Endpoint

# One sample of the text format: name{labels} value. vLLM puts nothing after the value.
_SAMPLE = re.compile(r"^vllm:(\w+)(?:\{.*\})? (\S+)$", re.MULTILINE)

HISTOGRAMS = {
    "ttft_s": "time_to_first_token_seconds",
    "inter_token_s": "inter_token_latency_seconds",
    "e2e_s": "e2e_request_latency_seconds",
    "queue_s": "request_queue_time_seconds",
    "prefill_s": "request_prefill_time_seconds",
    "decode_s": "request_decode_time_seconds",
}
COUNTERS = {
    "prompt_tokens": "prompt_tokens_total",
    "output_tokens": "generation_tokens_total",
    "prefix_cache_queried_tokens": "prefix_cache_queries_total",
    "prefix_cache_hit_tokens": "prefix_cache_hits_total",
    "preemptions": "num_preemptions_total",
}


def scrape(endpoint: Endpoint) -> dict[str, float] | None:
    """vLLM's sums and counters, added up over engines; None when the server has no such page."""
    try:
        reply = httpx.get(
            f"{endpoint.root_url}/metrics", headers=endpoint.headers, timeout=10, trust_env=endpoint.trust_env
        )
    except httpx.HTTPError:
        return None
    totals: dict[str, float] = defaultdict(float)
    for name, value in _SAMPLE.findall(reply.text if reply.status_code == 200 else ""):
        if not name.endswith(("_bucket", "_created")):
            totals[name] += float(value)
    return dict(totals) or None


def between(before: dict[str, float] | None, after: dict[str, float] | None) -> dict[str, float | None] | None:
    """What the server measured between two scrapes: means of its histograms, differences of its counters."""
    if before is None or after is None:
        return None

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    means = {}
    for key, name in HISTOGRAMS.items():
        count = grown(f"{name}_count")
        means[f"{key}_mean"] = grown(f"{name}_sum") / count if count else None
    return means | {key: grown(name) for key, name in COUNTERS.items()}
