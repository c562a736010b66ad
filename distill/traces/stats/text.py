"""The statistics of a trace set as a person reads them in a terminal."""

from typing import Any

from rich.markup import escape

from distill import console
from distill.report.numbers import DASH, count, percent, usd
from distill.report.text import shorten
from distill.traces.trace import MODES


def show_stats(found: dict[str, Any]) -> None:
    """Print what `stats` found; lengths as medians and 95th percentiles."""
    rejected = found["rejected"]
    facts = {
        "questions": found["questions"],
        **({"rows": found["rows"]} if found["rows"] != found["questions"] else {}),
        "pairs": found["pairs"],
        "rejected": rejected["total"],
        "teachers": ", ".join(shorten(name, 40) for name in found["teachers"]) or DASH,
        "agreement": share_text(found["agreement"]),
    }
    if any(found["right"].values()):
        facts["right"] = ", ".join(f"{name.replace('_', ' ')} {count(n)}" for name, n in found["right"].items())
    if found["cost_usd"]["total"] is not None:
        facts |= {"cost": cost_text(found["cost_usd"]), "cost per pair": usd(found["cost_usd"]["per_pair"])}
    repeated = found["questions"] - found["pairs_per_question"].get("0", 0) - found["distinct_prompts"]
    if repeated > 0:
        facts["questions that repeat another's prompt"] = repeated
    console.facts(f"traces {found['key']}", facts)
    modes = found["modes"]
    rows = [
        ["answers", *(count(modes[mode]["answers"]) for mode in MODES)],
        ["truncated", *(share_text(modes[mode]["truncated"]) for mode in MODES)],
        ["refused", *(count(modes[mode]["refused"]) for mode in MODES)],
        ["verified", *(share_text(modes[mode]["verified"]) for mode in MODES)],
    ]
    for unit in ("tokens", "characters"):
        for part in ("reasoning", "answer", "output"):
            rows.append([f"{unit}, {part}", *(length_text((modes[mode][unit] or {}).get(part)) for mode in MODES)])
    rows += [
        ["tokens, all", *(count(((modes[mode]["tokens"] or {}).get("all") or {}).get("output")) for mode in MODES)],
        ["cost", *(cost_text(modes[mode]["cost_usd"]) for mode in MODES)],
    ]
    rows = [row for row in rows if row[1:] != [DASH, DASH]]
    console.table("By mode (lengths: total, median, 95th percentile)", ["", *MODES], rows)
    if rejected["total"]:
        table = rejected["by_reason_and_mode"]
        columns = [mode for mode in (*MODES, "row") if any(mode in by_mode for by_mode in table.values())]
        listed = [
            [escape(shorten(reason, 40)), *(count(by_mode.get(mode, 0)) for mode in columns)]
            for reason, by_mode in table.items()
        ]
        console.table("Rejected", ["reason", *columns], listed)
    if found["projection"]:
        projection = found["projection"]
        amounts = {name: range_text(projection[name], name) for name in AMOUNTS}
        console.facts(f"{count(projection['questions'])} further questions", amounts)
        console.out.print(f"  assuming {projection['assumption']}", markup=False, soft_wrap=True)


AMOUNTS = ("pairs", "prompt_tokens", "output_tokens", "cost_usd")


def share_text(share: dict[str, Any]) -> str:
    """`85.3 % [80.1, 89.2] of 120`"""
    if not share["of"]:
        return DASH
    return f"{percent(share['value'])} % [{percent(share['low'])}, {percent(share['high'])}] of {count(share['of'])}"


def length_text(lengths: dict[str, Any] | None) -> str:
    """`12,300; 95; 410`: total, median, 95th percentile."""
    if lengths is None:
        return DASH
    return "; ".join(count(value) for value in (lengths["total"], *(lengths["percentiles"][p] for p in ("p50", "p95"))))


def cost_text(cost: dict[str, Any]) -> str:
    """`$1.20`, with how many answers are not in it."""
    if cost["total"] is None:
        return DASH
    return usd(cost["total"]) + (f" and {count(cost['unknown'])} of unknown price" if cost["unknown"] else "")


def range_text(value: dict[str, Any] | None, name: str) -> str:
    """`1,200 [1,100, 1,300]`, in dollars where the name says so."""
    write = usd if name == "cost_usd" else count
    if value is None:
        return DASH
    if value["low"] is None:  # one question has no variance
        return write(value["value"])
    return f"{write(value['value'])} [{write(value['low'])}, {write(value['high'])}]"
