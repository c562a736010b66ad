"""A student behind vLLM, under load; imported as distill.serve.

    server.py     starts vLLM's OpenAI-compatible server and always takes it down again
    adapter.py    a student that is LoRA adapters only: its base, and how vLLM is told
    keeper.py     the small process between us and vLLM that does the taking down, whatever happens to us
    endpoint.py   where a server is and how to talk to it: ours, or one that was there already
    client.py     sends prompts as token ids, or chats with a teacher; every request ends in one result
    replies.py    what a server sends back, whole or streamed, read with suspicion
    events.py     server-sent events, from bytes that are cut anywhere
    patience.py   when a server that fails is gone, and when it only fails at some questions
    judge.py      models that say whether an answer is right, and how far they agree
    tokens.py     which output tokens are thinking and which are the answer
    metrics.py    the server's own histograms; watch.py reads them, and its gauges, while something happens
    load/         who sends what and when, by how many processes, and what of it counts
    timing.py     how long an answer took; objective.py which answers came in time
    profile.py    latency, throughput and tokens per answer under several loads
    saturation.py the load beyond which a server gains nothing, and the highest rate that keeps an objective
    energy.py     joules, where they can be measured
    start.py      a server that stays until it is interrupted

Importing this package imports neither torch nor vllm.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Server": "server",
    "ServerSettings": "server",
    "read_adapter": "adapter",
    "Endpoint": "endpoint",
    "check_endpoint": "endpoint",
    "Completion": "client",
    "ChatCompletion": "client",
    "SamplingSettings": "client",
    "complete": "client",
    "ChatRequest": "client",
    "chat": "client",
    "chat_stream": "client",
    "ServerGone": "patience",
    "JudgeSettings": "judge",
    "ask_judges": "judge",
    "split_thinking": "tokens",
    "ClosedLoop": "load.shapes",
    "OpenLoop": "load.shapes",
    "Replay": "load.shapes",
    "Objective": "objective",
    "EnergyMeter": "energy",
    "ProfileSettings": "profile",
    "profile_endpoint": "profile",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
