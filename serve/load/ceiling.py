"""The most that the clients of a profile reach: the same load on a server that answers at once.

What they measure on a real server means something while it stays well below.
"""

from typing import Any

from distill.serve.client import SamplingSettings
from distill.serve.load.clients import Clients
from distill.serve.load.null_server import NullServer
from distill.serve.load.run import requests_of, run_load
from distill.serve.load.shapes import ClosedLoop

REQUESTS_A_CLIENT = 4


def client_ceiling(clients: Clients, *, concurrency: int, tokens: int) -> dict[str, Any]:
    """{"processes", "concurrency", "tokens": of an answer, "measured": {"tokens_per_s", "answers_per_s"}}."""
    load = ClosedLoop(concurrency=concurrency)
    requests = REQUESTS_A_CLIENT * concurrency
    prompts = [[i] for i in range(requests_of(load, requests, concurrency))]
    with NullServer() as server:
        run = run_load(clients, server.endpoint, prompts, load, SamplingSettings(max_tokens=tokens), warmup=concurrency)
    rate = None if run.rate is None else run.rate.value
    return {
        "processes": clients.processes,
        "concurrency": concurrency,
        "tokens": tokens,
        "measured": {"tokens_per_s": rate, "answers_per_s": None if rate is None else rate / tokens},
    }
