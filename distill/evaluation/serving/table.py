"""What `distill serve profile` says in a terminal: a table for every task, and what must be minded of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from distill import artifact, console
from distill.evaluation.table import token_count
from distill.report.numbers import DASH, compact, fixed, percent, usd
from distill.report.text import visible

BUSY_CLIENT = 0.5  # of what the clients could do at most: beyond it they may be what was measured
LATE_S = 0.02  # of half of the requests of an open loop: a busy machine's clock is off by a few milliseconds
THOUSAND = 1000
_COLUMNS = ("thinking", "answer", "TTFT ms", "TTFAT ms", "TPOT ms", "tokens/s", "s/answer", "right %")
_USD = ("$/1000", "$/1000 right")


def show_profile(folder: Path) -> None:
    """profile.json on standard output; what to mind of it on standard error."""
    profile = artifact.read_json(folder / "profile.json")
    priced = profile["price"]
    for task, result in profile["tasks"].items():
        _print(f"{task}: tokens, p50 of latency, cost", [*_COLUMNS, *(_USD if priced else ())], _rows(result, priced))
        if priced and priced["answers_per_month"]:
            paid = sum(filter(None, priced["fixed_usd"].values()))
            over = f"over {priced['answers_per_month'] * priced['months']:,.0f} answers"
            _print(f"{task}: with {usd(paid)} paid once, {over}", _USD, _amortised_rows(result))
        for line in [*_found(result), *_joules(result)]:
            console.out.print(visible(f"{task}: {line}"), markup=False, soft_wrap=True)
        for line in _minded(result):
            console.note(visible(f"{task}: {line}"))
    for reason in sorted({reason for result in profile["tasks"].values() for reason in _no_energy(result)}):
        console.out.print(visible(f"energy: {reason}"), markup=False, soft_wrap=True)
    if priced and priced["illustrative"]:
        console.note(f"$: {priced['hardware']}'s price is illustrative; put what you pay into hardware.yaml")
    console.out.print(visible(f"page: {folder / 'profile.html'}"), markup=False, soft_wrap=True)


def _print(title: str, columns: Any, rows: Iterator[list[str]]) -> None:
    console.out.print(visible(title), markup=False, soft_wrap=True)
    view = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    view.add_column("load", overflow="fold", max_width=16)
    for column in columns:
        view.add_column(column.replace(" ", "\n", 1), justify="right", overflow="fold", no_wrap=True)
    for row in rows:
        view.add_row(*(escape(visible(cell)) for cell in row))
    console.out.print(view)


def _rows(result: dict[str, Any], priced: dict[str, Any] | None) -> Iterator[list[str]]:
    for level in result["levels"]:
        measured, tokens = level["measured"], level["tokens"]["per_answer"]
        cost, rate = measured["cost"] or {}, measured["output_tokens_per_s"] or {}
        yield [
            level["load"]["name"],
            *(DASH if tokens[part] is None else token_count(tokens[part]) for part in ("thinking", "answer")),
            *(_milliseconds(measured[name]) for name in ("ttft_s", "ttfat_s", "tpot_s")),
            compact(rate.get("value")),
            compact(measured["seconds_per_answer"]),
            percent(level["correct"] / level["completed"] if level["completed"] else None),
            *((_thousand(cost.get(per)) for per in ("per_answer", "per_correct")) if priced else ()),
        ]


def _amortised_rows(result: dict[str, Any]) -> Iterator[list[str]]:
    for level in result["levels"]:
        found = (level["measured"]["cost"] or {}).get("amortised") or {}
        yield [level["load"]["name"], *(_thousand(found.get(per)) for per in ("per_answer", "per_correct"))]


def _thousand(by_unit: dict[str, Any] | None) -> str:
    part = (by_unit or {}).get("usd") or {}
    return DASH if part.get("value") is None else usd(THOUSAND * part["value"])


def _milliseconds(found: dict[str, float] | None) -> str:
    return DASH if found is None else fixed(THOUSAND * found["p50"], 1 if found["p50"] < 0.1 else 0)


def _found(result: dict[str, Any]) -> Iterator[str]:
    """What a search found."""
    found = result["found"]
    if found is None:
        return
    most = found["saturation"]
    if most["concurrency"] is not None:
        at = f"{compact(most['output_tokens_per_s'])} tokens/s at concurrency {most['concurrency']}"
        yield f"saturated by {at}" if most["reached"] else f"not saturated by {at}"
    if (rate := found["highest_rate"]) and (rate["rate"] or rate["failed_at"]):
        kept = f"kept up to {compact(rate['rate'])} requests/s" if rate["rate"] else "kept at no rate that was tried"
        missed = f", missed at {compact(rate['failed_at'])}" if rate["failed_at"] else ""
        yield f"the objective is {kept}{missed}"
    if found["ended"]:
        yield found["ended"]


def _joules(result: dict[str, Any]) -> Iterator[str]:
    joules = [
        f"{compact(cost['per_answer']['joules']['value'])} at {level['load']['name']}"
        for level in result["levels"]
        if (cost := level["measured"]["cost"]) and cost["per_answer"]["joules"]
    ]
    if joules:
        yield f"J/answer: {', '.join(joules)}"


def _no_energy(result: dict[str, Any]) -> set[str]:
    """Why there are no joules."""
    energies = [level["measured"]["energy"] for level in result["levels"]]
    return {energy["reason"] for energy in energies if energy and "reason" in energy}


def _minded(result: dict[str, Any]) -> Iterator[str]:
    for level in result["levels"]:
        name = level["load"]["name"]
        if level["failed"]:
            most = next(iter(level["errors"]))
            yield f"{name}: {level['failed']} of {level['requests']} requests failed ({most})"
        if level["unfinished"]:
            yield f"{name}: {level['unfinished']} of {level['completed']} answers are unfinished, paid for and wrong"
        if (level["measured"]["client_share"] or 0) > BUSY_CLIENT:
            share = percent(level["measured"]["client_share"], 0)
            yield f"{name}: the clients were at {share} % of what they can do; give more --processes, or cores"
        if late := lateness(level):
            yield f"{name}: {late}; give more --processes, or cores"


def lateness(level: dict[str, Any]) -> str | None:
    """What to mind of an open loop whose clients did not keep up with the arrivals."""
    late = level["measured"].get("late_s")
    if late is None or late["p50"] <= LATE_S:
        return None
    return f"half of the requests were sent {_milliseconds(late)} ms late or more: the clients did not keep up"
