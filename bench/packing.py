"""`distill bench packing`: the plan of a large training, its balance over ranks, and rendering beside the tokenizer.

Plans are of log-normal documents, median 5000 tokens and sigma 0.8 as reasoning traces are, drawn among those that fit
into a row. Balance is counted, not measured: FLOPs of training on each row, attention by document, for ranks that wait
for each other after every row. Rendering takes turns with the tokenizer alone, which is handed the finished texts in
one call, on the same cores.

The result:

    machine                what it ran on
    settings               PackingBenchSettings as given
    plans                  one entry a row size
      row_tokens, rows, fill      fill: tokens over rows x row_tokens
      balance              {model: {ranks: {"grouped", "random"}}}: the part of their time that ranks compute, with rows grouped
                           by cost, and drawn at random
      measured
        plan               seconds of one epoch's whole plan: {"median", "rounds"}
        balance            seconds of costs and groups for the first model and the most ranks: {"median", "rounds"}
    tokenizing
      pairs, tokens        tokens of the texts: each prompt once, both targets
      measured
        render             tokens/s of rendering pairs into documents: {"median", "rounds"}
        tokenizer          tokens/s of the tokenizer alone: {"median", "rounds"}
        ratio              the first over the second, with a 95 % interval over rounds (spread.py)
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pydantic import Field
from scipy import stats

from distill import console
from distill.bench.spread import ratio, shown
from distill.errors import InputError
from distill.flops import ModelShape
from distill.settings import Settings

MEDIAN, SIGMA, SHORTEST = 5000, 0.8, 16  # tokens of a document
SUPERVISED = 0.8  # of a document's tokens
ROWS = 8  # in a step
SHAPES = {
    "Qwen2.5-1.5B": ModelShape(28, 1536, 12, 2, 128, 8960, 151_936),
    "Qwen2.5-7B": ModelShape(28, 3584, 28, 4, 128, 18_944, 152_064),
}


class PackingBenchSettings(Settings):
    documents: int = Field(1_000_000, ge=1, description="in a plan")
    row_tokens: tuple[int, ...] = Field((8192, 32_768, 131_072), min_length=1, description="row sizes")
    ranks: tuple[int, ...] = Field((2, 4, 8), min_length=1)
    data: str = Field("synthetic", description="what is tokenized: synthetic, gsm8k:PATH, aqua:PATH or pairs:PATH")
    examples: int = Field(3000, ge=1, description="pairs of synthetic data")
    vocabulary: int = Field(8192, ge=262)
    rounds: int = Field(7, ge=1)
    seed: int = 0


def bench_packing(settings: PackingBenchSettings) -> dict[str, Any]:
    """Run the benchmark; the result is described at the top of this file. Raises InputError."""
    from distill.bench.machine import machine

    if min(settings.row_tokens) <= SHORTEST or min(settings.ranks) < 1:
        raise InputError(f"bench packing: row sizes must be above {SHORTEST} tokens, and ranks at least 1")
    about = machine()
    with console.progress("{task.fields[now]}") as bar:
        task = bar.add_task("packing", total=len(settings.row_tokens) + settings.rounds, now="preparing texts")
        with tempfile.TemporaryDirectory(prefix="distill-bench-") as folder:
            tokenizing = _Tokenizing(settings, Path(folder)).measure(lambda now: bar.update(task, advance=1, now=now))
        plans = []
        for row_tokens in settings.row_tokens:
            bar.update(task, now=f"plans of {row_tokens} tokens a row")
            plans.append(_plan(settings, row_tokens))
            bar.advance(task)
    layout, colon, path = settings.data.partition(":")
    given = settings.model_dump(mode="json") | {"data": layout + colon + Path(path).name}
    return {"machine": about, "settings": given, "plans": plans, "tokenizing": tokenizing}


def document_lengths(count: int, longest: int, seed: int) -> np.ndarray:
    """int64[count]: log-normal, given that they lie in SHORTEST..longest."""
    distribution = stats.lognorm(SIGMA, scale=MEDIAN)
    low, high = distribution.cdf((SHORTEST, longest))
    drawn = distribution.ppf(np.random.default_rng(seed).uniform(low, high, count))
    return drawn.astype(np.int64).clip(SHORTEST, longest)


def _plan(settings: PackingBenchSettings, row_tokens: int) -> dict[str, Any]:
    from distill.packing.arms import Arm
    from distill.packing.balance import balance, balance_share, document_costs, row_sums
    from distill.packing.plan import Batch, plan

    reasoning = document_lengths(settings.documents, row_tokens, settings.seed)
    lengths = np.stack([np.ones_like(reasoning), reasoning], axis=1).reshape(-1)  # by reference: IFT, reasoning
    supervised = (SUPERVISED * lengths).astype(np.int64)
    batch, arm = Batch("tokens", ROWS * row_tokens, row_tokens), Arm.parse("reasoning")
    planning, steps = _repeated(settings.rounds, lambda: plan(arm, lengths, batch=batch, epochs=1, seed=settings.seed))
    rows = [row for step in steps for row in step.rows]
    shares: dict[str, dict[str, dict[str, float]]] = {}
    for name, shape in SHAPES.items():
        costs = row_sums(rows, document_costs(lengths, supervised, shape))
        shares[name] = {}
        for ranks in settings.ranks:
            grouped = balance(costs.tolist(), costs, ranks, settings.seed)
            drawn = [costs[i : i + ranks].tolist() for i in range(0, len(costs), ranks)]  # the plan has shuffled them
            shares[name][str(ranks)] = {
                "grouped": balance_share(grouped, ranks),
                "random": balance_share(drawn, ranks),
            }
    first, most = next(iter(SHAPES.values())), max(settings.ranks)
    balancing, _ = _repeated(
        settings.rounds,
        lambda: balance(rows, row_sums(rows, document_costs(lengths, supervised, first)), most, settings.seed),
    )
    return {
        "row_tokens": row_tokens,
        "rows": len(rows),
        "fill": float(reasoning.sum() / (len(rows) * row_tokens)),
        "balance": shares,
        "measured": {"plan": _summary(planning), "balance": _summary(balancing)},
    }


class _Tokenizing:
    """One trace set, and the texts that rendering it hands to the tokenizer."""

    def __init__(self, settings: PackingBenchSettings, folder: Path):
        from transformers import AutoTokenizer

        from distill.bench.workload import build_workload
        from distill.packing.arms import content
        from distill.packing.chat import ChatFormat, ThinkFormat
        from distill.packing.render import MODES
        from distill.packing.source import read_traces

        self.settings = settings
        made = build_workload(settings.data, "tiny", settings.vocabulary, settings.examples, settings.seed, folder)
        self.pairs = read_traces(made.traces).pairs
        tokenizer = AutoTokenizer.from_pretrained(made.student)
        self.vocabulary = made.vocabulary
        self.chat = ChatFormat(tokenizer, ThinkFormat.load(made.student), source="the benchmark's student")
        self.alone = tokenizer.backend_tokenizer
        names = [pair.problem.id for pair in self.pairs]
        columns = [self.chat.prompt_texts([pair.problem.prompt for pair in self.pairs])]
        for mode in MODES:
            columns.append(self.chat.target_texts([content(pair, mode, "teacher") for pair in self.pairs], names))
        # Pair by pair, as rendering hands them over: the tokenizer is a tenth faster when a pair's words are together.
        self.texts = [text for row in zip(*columns, strict=True) for text in row]

    def _render(self) -> Any:
        from distill.packing.render import Rendering, render

        return render(self.pairs, self.chat, Rendering("teacher", max_length=1 << 40, vocab_size=self.vocabulary))

    def _tokenize(self) -> Any:
        return self.alone.encode_batch_fast(self.texts, add_special_tokens=False)

    def measure(self, advance: Callable[[str], None]) -> dict[str, Any]:
        calls = {"render": self._render, "tokenizer": self._tokenize}
        tokens = sum(map(len, self._tokenize()))
        self._render()  # both have filled the tokenizer's cache of words
        rates: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(self.settings.rounds):
            advance(f"tokenizing: round {number + 1} of {self.settings.rounds}")
            for name in calls if number % 2 == 0 else reversed(calls):
                (seconds,), _ = _repeated(1, calls[name])
                rates[name].append(tokens / seconds)
        return {
            "pairs": len(self.pairs),
            "tokens": tokens,
            "measured": {
                **{name: _summary(values) for name, values in rates.items()},
                "ratio": ratio(rates["render"], rates["tokenizer"]),
            },
        }


def _repeated(times: int, call: Callable[[], Any]) -> tuple[list[float], Any]:
    """(seconds of each call, the last call's result); what a call returns is let go outside the clock."""
    seconds, result = [], None
    for _ in range(times):
        result = None
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return seconds, result


def _summary(values: list[float]) -> dict[str, Any]:
    return {"median": median(values), "rounds": values}


def packing_tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows) of each table, for the terminal and for the page of `distill bench report`."""
    plans, ranks = result["plans"], [str(r) for r in result["settings"]["ranks"]]
    rows = [
        [
            f"{plan['row_tokens']:,}",
            f"{plan['rows']:,}",
            f"{plan['fill']:.3%}",
            f"{plan['measured']['plan']['median']:.2f}",
            f"{plan['measured']['balance']['median']:.2f}",
        ]
        for plan in plans
    ]
    shares = [
        [
            f"{name}, {plan['row_tokens']:,}",
            *(f"{by_ranks[r]['grouped']:.2%} ({by_ranks[r]['random']:.1%})" for r in ranks),
        ]
        for plan in plans
        for name, by_ranks in plan["balance"].items()
    ]
    tokenizing = result["tokenizing"]
    measured = tokenizing["measured"]
    rates = [
        ["rendering and tokenizing", f"{measured['render']['median']:,.0f}"],
        ["the tokenizer alone", f"{measured['tokenizer']['median']:,.0f}"],
        ["ratio", shown(measured["ratio"])],
    ]
    return [
        (
            f"{result['settings']['documents']:,} documents",
            ["tokens a row", "rows", "filled", "plan s", "costs and groups s"],
            rows,
        ),
        ("balance: rows grouped by cost (at random)", ["rows of", *(f"{r} ranks" for r in ranks)], shares),
        (f"rendering {tokenizing['pairs']:,} pairs, {tokenizing['tokens']:,} tokens", ["", "tokens/s"], rates),
    ]


def packing_targets(result: dict[str, Any]) -> list[list[str]]:
    """[target, wanted, measured, "met" or "missed"]; the first three are for a million documents and 8 ranks."""
    plans, value = result["plans"], result["tokenizing"]["measured"]["ratio"]
    rows = [["rendering over the tokenizer alone", "at least 0.9x", shown(value), value["value"] >= 0.9]]
    if result["settings"]["documents"] == 1_000_000:
        slowest = max(plan["measured"]["plan"]["median"] for plan in plans)
        rows.append(["planning, the slowest row size", "at most 2 s", f"{slowest:.2f} s", slowest <= 2])
        for plan in plans:
            name = f"filled, rows of {plan['row_tokens']:,}"
            rows.append([name, "at least 99.9%", f"{plan['fill']:.3%}", plan["fill"] >= 0.999])
        shares = [
            by[ranks]["grouped"] for plan in plans for by in plan["balance"].values() for ranks in by if ranks == "8"
        ]
        if shares:
            rows.append(["balance at 8 ranks, the least", "at least 97%", f"{min(shares):.2%}", min(shares) >= 0.97])
    return [[*row[:3], "met" if row[3] else "missed"] for row in rows]


def show_packing(result: dict[str, Any]) -> None:
    """The result as tables on standard output."""
    for title, columns, rows in packing_tables(result):
        console.table(title, columns, rows)
    console.table("targets", ["target", "wanted", "measured", ""], packing_targets(result))
