"""`distill bench serving`: our load and vLLM's benchmark client on one server, and what measuring costs the server.

*Agreement.* The same prompts (token ids), output lengths (ignore_eos) and sampling, in turns: `run_load`, as
`distill serve profile` calls it, and `vllm.benchmarks.serve` (serving_child.py). Closed loops, and one open loop whose
Poisson arrivals are drawn anew for every round and are the same for both. What each client says of its own turn is
compared: output tokens/s over the whole turn, as vLLM's client counts them, and mean TPOT; TTFT stands beside them.
The server counts the tokens, and both must have got all. It keeps no prefixes (--no-enable-prefix-caching): else
whoever comes second would find the prompts of the first.

*Overhead.* What our way of measuring adds to the server's work: token ids in every event, and its page of metrics
every second. vLLM's client takes turns with itself, in every other one of which it asks for the ids and we watch the
page; so the same client stands on both sides. Streaming is on both sides too, since without it there is no TTFT, and what
our client takes of a processor that it shares with the server is no part of it: that is in the agreement. Compared under
the busiest closed loop are the tokens that the server counts, a second, and the processor time of the server's processes a
token, which whoever else runs on the cores disturbs less. The limit is narrower than that of the agreement, so there are
more of these pairs (PAIRS), one right after the other. Their turns are as long: a shorter one would see no page.

*Ceiling.* The clients on a server that costs nothing (load/null_server.py): the most that they could measure, in
answers of the same length and in answers of one token.

The result:

    machine, settings        what it ran on, ServingBenchSettings as given
    models[]                 one entry a model
      model, parameters
      loads[]                one entry a load
        kind                 closed or open
        concurrency          of a closed loop; null
        measured
          requests           of a turn
          rate               of an open loop, requests/s; null
          contenders         {name: {"tokens_per_s", "ttft_s", "tpot_s", "cpu_s_per_token", "server_inter_token_s",
                             "server_cpu_s_per_token"}}, each {"median", "rounds"}; "cpu_s_per_token" is the client's,
                             the time between tokens by the server's own histogram. Names: distill and vllm
          tokens_per_s, ttft_s, tpot_s     distill over vllm, with a 95 % interval over rounds (spread.py)
          overhead           null, or of the pairs of turns for it:
            contenders       as above; names: vllm and vllm_watched
            tokens_per_s, server_inter_token_s, server_cpu_s_per_token     vllm_watched over vllm, the same way
    null_server[]            one entry a load
      concurrency, tokens    of every answer
      measured
        requests             of a turn
        tokens_per_s         {name: {"median", "rounds"}}; distill-P are P processes
"""

import random
import secrets
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from pydantic import Field

from distill import console
from distill.bench.offline import SHAPES, random_student
from distill.bench.serving_turns import (
    Contender,
    Turn,
    VllmClient,
    Work,
    ours,
    requests_of_turn,
    take_turns,
    with_server,
)
from distill.bench.spread import ratio, shown
from distill.serve.load.clients import Clients
from distill.serve.load.null_server import NullServer
from distill.serve.load.shapes import ClosedLoop, Load, OpenLoop
from distill.serve.server import Server, ServerSettings, require_vllm
from distill.settings import Settings

AGREEMENT = 0.05
OVERHEAD = 0.02
SHARE = 0.6  # of what the busiest closed loop reached: the rate of the open one
SHORTEST, LONGEST = 8, 48  # prompts, in tokens
PAIRS = 5  # of turns, watched and not, for every round
CEILINGS = (1, 16, 64)  # concurrencies on the server that costs nothing
PROCESSES = (1, 2)  # that send our load there
CEILING_ROUNDS, CEILING_SECONDS = 3, 0.4  # what a turn there takes, about
_AGREEMENT = ("tokens_per_s", "ttft_s", "tpot_s")
_OVERHEAD = ("tokens_per_s", "server_inter_token_s", "server_cpu_s_per_token")
_MEASURED = ("ttft_s", "tpot_s", "cpu_s_per_token", *_OVERHEAD)


class ServingBenchSettings(Settings):
    """Defaults fit a CPU of two cores."""

    models: tuple[str, ...] = Field(
        ("tiny", "large"), min_length=1, description="tiny, large (random weights) or a folder"
    )
    concurrencies: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (1, 16), min_length=1, description="of the closed loops"
    )
    tokens: int = Field(64, ge=2, description="of every answer")
    seconds: float = Field(2.1, gt=0, description="that a turn takes, about")
    rounds: int = Field(9, ge=1)
    threads: int | None = Field(None, ge=1, description="of the model on a CPU; all cores but one if not given")
    seed: int = 0


def bench_serving(settings: ServingBenchSettings) -> dict[str, Any]:
    """Run the benchmark; the result is described at the top of this file. Raises InputError."""
    from distill.bench.machine import machine
    from distill.evaluation.subject import load_subject

    require_vllm()
    about, key, models = machine(), secrets.token_hex(24), []
    with tempfile.TemporaryDirectory(prefix="distill-bench-") as scratch:
        folder, longest = Path(scratch), LONGEST + settings.tokens
        students = []
        for name in settings.models:
            student, parameters = Path(name), None
            if name in SHAPES:
                student, parameters = random_student(name, folder, positions=longest, seed=settings.seed)
            students.append((load_subject(student), parameters))
        with (
            Clients(1) as clients,
            VllmClient(key, folder / "client.log") as vllm,
            console.progress("{task.fields[now]}") as bar,
        ):
            steps = len(students) * (len(settings.concurrencies) + 1) * (settings.rounds + 1)
            steps += len(students) * (PAIRS * settings.rounds + 1)
            steps += 2 * len(CEILINGS) * (CEILING_ROUNDS + 1)
            task = bar.add_task("serving", total=steps, now="the clients' ceiling")
            done = partial(bar.advance, task)
            null_server = measure_ceilings(vllm, settings.tokens, CEILINGS, CEILING_ROUNDS, CEILING_SECONDS, done)
            for subject, parameters in students:
                name = subject.folder.name
                bar.update(task, now=f"{name}: starting")
                served = ServerSettings(
                    dtype=subject.dtype,
                    threads=settings.threads,
                    max_model_len=longest,
                    arguments=("--no-enable-prefix-caching",),
                )
                with Server(subject.folder, served, folder / f"{name}.log", api_key=key) as server:
                    bar.update(task, now=name)
                    ids = len(subject.tokenizer)
                    loads = measure_loads(settings, server, clients, vllm, ids, done)
                models.append({"model": name, "parameters": parameters, "loads": loads})
    return {
        "machine": about,
        "settings": settings.model_dump(mode="json"),
        "models": models,
        "null_server": null_server,
    }


def made_prompts(count: int, ids: int, seed: int) -> list[list[int]]:
    """`count` prompts of random token ids below `ids`; the first ones are the same however many."""
    rng = random.Random(seed)
    return [[rng.randrange(ids) for _ in range(rng.randint(SHORTEST, LONGEST))] for _ in range(count)]


def measure_loads(
    settings: ServingBenchSettings,
    server: Server,
    clients: Clients,
    vllm: VllmClient,
    ids: int,
    done: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """The "loads" of an entry of "models", on a server that keeps no prefixes and is idle. Prompts are of token ids below `ids`."""
    own = ours(clients)
    busiest = max(settings.concurrencies)
    measured: list[dict[str, Any]] = []

    def measure(load: Load, requests: int | None) -> dict[str, Any]:
        def work(count: int, number: int = 0) -> Work:
            return Work(server.endpoint, made_prompts(count, ids, settings.seed), load, settings.tokens, number)

        closed = isinstance(load, ClosedLoop)
        if requests is None:
            requests = requests_of_turn(own, work, load.concurrency, settings.seconds)

        def turns(rounds: int, **contenders: Contender) -> dict[str, list[Turn]]:
            timed = {name: with_server(contender, server) for name, contender in contenders.items()}
            return take_turns(timed, partial(work, requests), rounds, done)

        compared = _compared(turns(settings.rounds, distill=own, vllm=vllm.turn), "distill", _AGREEMENT)
        overhead = None
        if closed and load.concurrency == busiest:
            pairs = turns(PAIRS * settings.rounds, vllm=vllm.turn, vllm_watched=vllm.watched)
            overhead = _compared(pairs, "vllm_watched", _OVERHEAD)
        about = {"requests": requests, "rate": None if closed else load.rate}
        return {
            "kind": load.kind,
            "concurrency": load.concurrency if closed else None,
            "measured": about | compared | {"overhead": overhead},
        }

    for concurrency in sorted(settings.concurrencies):
        measured.append(measure(ClosedLoop(concurrency=concurrency), None))
    reached = measured[-1]["measured"]["contenders"]["vllm"]["tokens_per_s"]["median"] / settings.tokens
    rate = SHARE * reached
    measured.append(measure(OpenLoop(rate=rate), max(2, round(rate * settings.seconds))))
    return measured


def _compared(turns: dict[str, list[Turn]], name: str, wanted: Sequence[str]) -> dict[str, Any]:
    """Contenders, and what is `wanted` of the one of this name over vLLM's client, as at the top of this file."""
    values = {name: {what: [getattr(t, what) for t in some] for what in _MEASURED} for name, some in turns.items()}
    return {
        "contenders": {name: {what: _spread(rounds) for what, rounds in by.items()} for name, by in values.items()},
        **{what: ratio(values[name][what], values["vllm"][what]) for what in wanted},
    }


def measure_ceilings(
    vllm: VllmClient,
    tokens: int,
    concurrencies: Sequence[int],
    rounds: int,
    seconds: float,
    done: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """What the result has under "null_server", with answers of `tokens` and of one."""
    found = []
    with ExitStack() as stack:
        endpoint = stack.enter_context(NullServer()).endpoint
        contenders: dict[str, Contender] = {
            f"distill-{processes}": ours(stack.enter_context(Clients(processes))) for processes in PROCESSES
        }
        first = contenders["distill-1"]
        contenders["vllm"] = vllm.turn
        for concurrency, length in product(concurrencies, (tokens, 1)):
            load = ClosedLoop(concurrency=concurrency)

            def work(count: int, number: int = 0, load: Load = load, length: int = length) -> Work:
                return Work(endpoint, made_prompts(count, 1000, 0), load, length, number)

            requests = requests_of_turn(first, work, concurrency, seconds)
            turns = take_turns(contenders, partial(work, requests), rounds, done)
            rates = {name: _spread([turn.tokens_per_s for turn in some]) for name, some in turns.items()}
            measured = {"requests": requests, "tokens_per_s": rates}
            found.append({"concurrency": concurrency, "tokens": length, "measured": measured})
    return found


def _spread(rounds: list[float]) -> dict[str, Any]:
    return {"median": median(rounds), "rounds": rounds}


def show_serving(result: dict[str, Any]) -> None:
    """The result as tables on standard output."""
    for title, columns, rows in serving_tables(result):
        console.table(title, columns, rows)


def serving_tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows) of agreement, overhead and ceilings."""
    agreement, overhead = [], []
    for load, name in _loads(result):
        m = load["measured"]
        both = [m["contenders"][who] for who in ("distill", "vllm")]
        agreement.append(
            [
                name,
                " / ".join(f"{who['tokens_per_s']['median']:,.0f}" for who in both),
                shown(m["tokens_per_s"]),
                " / ".join(f"{who['tpot_s']['median'] * 1e3:.2f}" for who in both),
                shown(m["tpot_s"]),
                " / ".join(f"{who['ttft_s']['median'] * 1e3:.1f}" for who in both),
                shown(m["ttft_s"]),
                " / ".join(f"{who['cpu_s_per_token']['median'] * 1e6:.0f}" for who in both),
            ]
        )
        if m["overhead"]:
            pairs = m["overhead"]["contenders"]
            rates = [f"{pairs[who]['tokens_per_s']['median']:,.0f}" for who in ("vllm_watched", "vllm")]
            kinds = [shown(m["overhead"][what]) for what in _OVERHEAD]
            overhead.append([name, *rates, *kinds])
    real = {}
    for load, name in _loads(result):
        rate = load["measured"]["contenders"]["distill"]["tokens_per_s"]["median"]
        if load["concurrency"] is not None and rate > real.get(load["concurrency"], (0.0, ""))[0]:
            real[load["concurrency"]] = (rate, name)
    clients = sorted({name for entry in result["null_server"] for name in entry["measured"]["tokens_per_s"]})
    ceilings = []
    for entry in result["null_server"]:
        rates = entry["measured"]["tokens_per_s"]
        beside = real.get(entry["concurrency"]) if entry["tokens"] > 1 else None
        ceilings.append(
            [
                str(entry["concurrency"]),
                str(entry["tokens"]),
                *(f"{rates[name]['median']:,.0f} ({rates[name]['median'] / entry['tokens']:,.0f})" for name in clients),
                f"{beside[0]:,.0f}" if beside else "",
            ]
        )
    heads = {name: "vLLM's" if name == "vllm" else f"ours, {name.partition('-')[2]}" for name in clients}
    pair = "ours / vLLM's"
    return [
        (
            "our client beside vLLM's on the same server",
            [
                *("load", f"tokens/s, {pair}", "ratio", f"TPOT ms, {pair}", "ratio", f"TTFT ms, {pair}", "ratio"),
                f"client's processor µs a token, {pair}",
            ],
            agreement,
        ),
        (
            "what measuring costs the server",
            [
                *("load", "tokens/s, measured", "tokens/s, not", "ratio"),
                *("the server's time between tokens, ratio", "the server's processor time a token, ratio"),
            ],
            overhead,
        ),
        (
            "the most that so many sending processes reach on a server that costs nothing, tokens/s (answers/s)",
            ["concurrency", "tokens an answer", *(heads[name] for name in clients), "the fastest real server"],
            ceilings,
        ),
    ]


def serving_targets(result: dict[str, Any]) -> list[list[str]]:
    """[target, wanted, measured, "met" or "missed"]: the interval must lie inside, not the value alone."""
    rows = []

    def row(target: str, wanted: str, found: dict[str, Any], low: float, high: float) -> None:
        inside = found["low"] is not None and low <= found["low"] and found["high"] <= high
        rows.append([target, wanted, shown(found), "met" if inside else "missed"])

    for load, name in _loads(result):
        for what, word in (("tokens_per_s", "throughput"), ("tpot_s", "TPOT")):
            found = load["measured"][what]
            row(f"{word} beside vLLM's client, {name}", f"within {AGREEMENT:.0%}", found, 1 - AGREEMENT, 1 + AGREEMENT)
    for load, name in _loads(result):
        if load["measured"]["overhead"]:
            found, most = load["measured"]["overhead"], f"at most {OVERHEAD:.0%}"
            row(f"overhead on the server, tokens/s, {name}", most, found["tokens_per_s"], 1 - OVERHEAD, float("inf"))
            cpu = found["server_cpu_s_per_token"]
            row(f"overhead on the server, processor time, {name}", most, cpu, 0.0, 1 + OVERHEAD)
    return rows


def _loads(result: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """(load, what it is called) of all."""
    found = []
    for entry in result["models"]:
        size = "" if entry["parameters"] is None else f" ({entry['parameters'] / 1e6:.2g}M)"
        for load in entry["loads"]:
            closed = load["kind"] == "closed"
            name = f"concurrency {load['concurrency']}" if closed else f"{load['measured']['rate']:.3g} requests/s"
            found.append((load, f"{entry['model']}{size}, {name}"))
    return found
