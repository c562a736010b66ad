"""The server's own measurements, read from vLLM's Prometheus page."""

import re
from collections import defaultdict

import httpx

from distill.serve.endpoint import Endpoint, tls_context

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
# vLLM's own estimates of what the model's steps took of each GPU, with --enable-mfu-metrics.
PER_GPU = {
    "flops_per_gpu": ("estimated_flops_per_gpu_total",),
    "memory_bytes_per_gpu": ("estimated_read_bytes_per_gpu_total", "estimated_write_bytes_per_gpu_total"),
}
ENGINES = "engines"  # a key of a page: how many its totals are sums over


def scrape(endpoint: Endpoint) -> dict[str, float] | None:
    """vLLM's sums and counters, added up over engines; None when the server has no such page."""
    try:
        reply = httpx.get(
            f"{endpoint.root_url}/metrics",
            headers=endpoint.headers,
            timeout=10,
            proxy=endpoint.proxy,
            trust_env=False,
            verify=tls_context(),
        )
    except httpx.HTTPError:
        return None
    totals: dict[str, float] = defaultdict(float)
    for name, value in _SAMPLE.findall(reply.text if reply.status_code == 200 else ""):
        if not name.endswith(("_bucket", "_created")):
            totals[name] += float(value)
            totals[ENGINES] += name == "num_requests_running"
    return dict(totals) or None


def between(before: dict[str, float] | None, after: dict[str, float] | None) -> dict[str, float | None] | None:
    """What the server measured between two scrapes: means of its histograms, differences of its counters, what its
    steps took of each GPU on the mean of its engines. None for what is not on its page, and altogether where a counter
    has fallen: then two pages are of two servers behind one address."""
    if before is None or after is None or any(after.get(c, 0.0) < before.get(c, 0.0) for c in COUNTERS.values()):
        return None

    def grown(*names: str) -> float | None:
        if any(name not in after for name in names):
            return None
        return sum(after[name] - before.get(name, 0.0) for name in names)

    means = {}
    for key, name in HISTOGRAMS.items():
        count = grown(f"{name}_count")
        means[f"{key}_mean"] = grown(f"{name}_sum") / count if count else None
    found = means | {key: grown(name) for key, name in COUNTERS.items()}
    for key, names in PER_GPU.items():
        total = grown(*names)
        found[key] = None if total is None else total / max(after.get(ENGINES, 1), 1)
    return found
