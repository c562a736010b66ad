"""Who takes turns in `distill bench serving`: our load, vLLM's benchmark client, and that client while we watch.

All send the same prompts, ask for answers of the same length and start at the same moments: the requests of a closed
loop when there is room, those of an open loop at times that were drawn once for all of them.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from distill.bench.child import Child
from distill.errors import InputError
from distill.process import child_environment, die_with_parent
from distill.serve.client import SamplingSettings
from distill.serve.endpoint import Endpoint
from distill.serve.load.clients import Clients
from distill.serve.load.run import run_load
from distill.serve.load.shapes import ClosedLoop, Load
from distill.serve.metrics import between, scrape
from distill.serve.server import LOOPBACK, Server
from distill.serve.timing import timing
from distill.serve.watch import Watch

_FEWEST, _MOST = 2, 20_000  # requests of a turn: for each client, and at all


@dataclass(frozen=True)
class Work:
    """What is sent in one turn."""

    endpoint: Endpoint
    prompts: list[list[int]]
    load: Load
    tokens: int  # of every answer
    seed: int  # of the arrivals of an open loop


@dataclass(frozen=True)
class Turn:
    """What one client measured; tokens over the whole of its run, means over answers."""

    tokens_per_s: float
    ttft_s: float
    tpot_s: float | None  # None for answers of one token
    cpu_s_per_token: float  # of the client's process
    server_inter_token_s: float | None  # by the server's own histogram; None where it shows none
    server_cpu_s_per_token: float | None = None  # of the server's processes; None where they are not ours to ask


Contender = Callable[[Work], Turn]


def ours(clients: Clients) -> Contender:
    """`run_load`, as `distill serve profile` calls it."""

    def turn(work: Work) -> Turn:
        sampling = SamplingSettings(max_tokens=work.tokens, ignore_eos=True)
        cpu_s = time.process_time()
        run = run_load(clients, work.endpoint, work.prompts, work.load, sampling, warmup=0, seed=work.seed)
        cpu_s = time.process_time() - cpu_s
        failed = [c.error for c in run.completions if c.error is not None]
        if failed:
            raise InputError(f"bench: {len(failed)} of {len(run.completions)} requests failed ({failed[0]})")
        tokens = sum(len(c.token_ids) for c in run.completions)
        _require_same(tokens, work, run.server)
        seconds = max(c.sent_s + c.e2e_s for c in run.completions) - min(c.sent_s for c in run.completions)
        timings = [timing(c, None, None) for c in run.completions]
        return Turn(
            tokens / seconds,
            fmean(t.ttft_s for t in timings),
            fmean(t.tpot_s for t in timings) if work.tokens > 1 else None,
            cpu_s / tokens,
            run.server and run.server["inter_token_s_mean"],
        )

    return turn


def with_server(contender: Contender, server: Server) -> Contender:
    """The same, and what its turns take of the processor in `server`, which does nothing else meanwhile."""

    def turn(work: Work) -> Turn:
        before = server.cpu_s()
        found = contender(work)
        return replace(found, server_cpu_s_per_token=(server.cpu_s() - before) / (len(work.prompts) * work.tokens))

    return turn


class VllmClient:
    """vLLM's benchmark client in a child process (serving_child.py), which ends with the block.

    Entering waits until it has imported what it takes. Raises InputError when it ends before.
    """

    def __init__(self, api_key: str, log: Path):
        environment = {"OPENAI_API_KEY": api_key, "HF_HUB_OFFLINE": "1", "NO_PROXY": LOOPBACK, "no_proxy": LOOPBACK}
        self._child = Child(
            "vLLM's benchmark client",
            [sys.executable, "-m", "distill.bench.serving_child"],
            log,
            child_environment(1, environment),
            preexec_fn=die_with_parent,
        )

    def __enter__(self) -> "VllmClient":
        try:
            self._child.report()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._child.process.kill()  # it holds nothing that would have to be put away
        self._child.close()

    def turn(self, work: Work) -> Turn:
        """As `vllm bench serve` asks and measures."""
        before = scrape(work.endpoint)
        found = self._send(work, {})
        return _turn(found, work, between(before, scrape(work.endpoint)))

    def watched(self, work: Work) -> Turn:
        """The same with all that our way of measuring has the server do: token ids in every event, and its page of
        metrics every second."""
        with Watch(work.endpoint) as watch:
            found = self._send(work, {"return_token_ids": True})
        return _turn(found, work, watch.found)

    def _send(self, work: Work, extra: dict[str, Any]) -> dict[str, Any]:
        closed = isinstance(work.load, ClosedLoop)
        request = {
            "url": work.endpoint.root_url,
            "model": work.endpoint.model,
            "prompts": work.prompts,
            "tokens": work.tokens,
            "concurrency": work.load.concurrency if closed else None,
            "arrivals_s": None if closed else work.load.arrivals_s(len(work.prompts), work.seed).tolist(),
            "extra": extra,
        }
        report = self._child.ask(json.dumps(request))
        if "error" in report:
            raise InputError(f"bench: a request of vLLM's benchmark client failed ({report['error']})")
        return report


def _turn(found: dict[str, Any], work: Work, server: dict[str, Any] | None) -> Turn:
    _require_same(len(work.prompts) * work.tokens, work, server)
    inter_token_s = server and server["inter_token_s_mean"]
    return Turn(**found, server_inter_token_s=inter_token_s)


def _require_same(tokens: int, work: Work, server: dict[str, Any] | None) -> None:
    """The work was done: as many tokens as were asked for, by the server's own count where it shows one."""
    asked = len(work.prompts) * work.tokens
    counted = asked if server is None else round(server["output_tokens"])
    if not tokens == counted == asked:
        raise InputError(f"bench: {tokens} tokens came and the server counts {counted}, expected {asked}")


def requests_of_turn(contender: Contender, work: Callable[[int], Work], clients: int, seconds: float) -> int:
    """How many requests take about so many seconds. `work` makes a turn of so many; the second try is warm."""
    count = _FEWEST * clients
    for _ in range(2):
        tried = work(count)
        rate = contender(tried).tokens_per_s / tried.tokens
        count = max(_FEWEST * clients, min(_MOST, round(rate * seconds)))
    return count


def take_turns(
    contenders: Mapping[str, Contender], work: Callable[[int], Work], rounds: int, done: Callable[[], None]
) -> dict[str, list[Turn]]:
    """The turns of each contender, in reversed order from round to round; `work` is told the round. One round that
    warms up comes first and is left out."""
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    for number in range(-1, rounds):
        for name in contenders if number % 2 == 0 else reversed(contenders):
            turn = contenders[name](work(number + 1))
            if number >= 0:
                turns[name].append(turn)
        done()
    return turns
