"""The page of `distill bench gap`: where the cost of reasoning comes from, and the numbers behind it."""

from typing import Any

from distill.bench.gap_tables import NONE, PER, gap_groups, gap_tables
from distill.report.blocks import Block, Facts, Figure, Group, KeyValues, Notice, Section, Table
from distill.report.factors import FACTOR_KEYS, factors
from distill.report.numbers import DASH
from distill.report.page import render_page


def gap_page(result: dict[str, Any]) -> str:
    """HTML of a result of `bench_gap`."""
    training, answering, phases, decomposition = (
        Table(title, columns, [Group([[_dash(cell) for cell in row] for row in rows])])
        for title, columns, rows in gap_tables(result)
    )
    sections = [
        Section("Where the cost comes from", [*_decomposition(result), decomposition]),
        Section("Training", [training], "Both arms train on the same problems, a few steps of one, then of the other."),
        Section(
            "Answering",
            [answering, phases],
            "Both students get the same questions in turns. Seconds and joules of an answer are the machine's, which "
            "answers many at once; those of prefill and decode are one request's, by vLLM's clock. MFU is of what the "
            "device could do in that time, by our count of FLOPs and, on a GPU, by vLLM's own.",
        ),
        Section("How it was measured", [_about(result)]),
    ]
    lead = (
        "The same student and the same problems: a cost factor is the token factor times the factor of what one token "
        "costs. Intervals are at 95 % over interleaved rounds and questions, of these two students."
    )
    return render_page("What reasoning costs beside IFT", sections, kicker="distill bench gap", lead=lead)


def _decomposition(result: dict[str, Any]) -> list[Block]:
    panels, data = [], []
    for title, groups in gap_groups(result):
        spoken = "; ".join(f"{g.title} {', '.join(f'{f.label} {_said(f.value)}' for f in g.factors)}" for g in groups)
        description = f"Factors per {title}, reasoning over IFT. {spoken}."
        panels.append(
            factors(groups, title=f"per {title}", description=description, x_label="reasoning over IFT, times")
        )
        data += [
            {
                "of": ", ".join(filter(None, (title, group.title))),
                "factor": f.label,
                "measured": f.value,
                "low": f.low,
                "high": f.high,
                "modelled": f.modelled,
            }
            for group in groups
            for f in group.factors
        ]
    missing = [f"per {per}" for per in PER if per not in dict(gap_groups(result))]
    caption = (
        "On this scale a product is a sum of lengths: tokens and seconds per token lead from 1 to the cost. The ring is "
        "what counting FLOPs predicts."
    )
    figure = Figure("Token factor x per-token factor = cost factor", caption, panels, data, "gap.csv", FACTOR_KEYS)
    return [figure, Notice("No factor, because a student gave no correct answer:", missing)] if missing else [figure]


def _about(result: dict[str, Any]) -> KeyValues:
    machine = {k: v for k, v in result["machine"].items() if k != "versions"} | result["machine"]["versions"]
    energy = {half: result[half]["no_energy"] or "measured" for half in ("training", "inference")}
    lists = (("Machine", machine), ("Settings", result["settings"]), ("Energy", energy))
    return KeyValues(
        [Facts(title, [(name, str(v)) for name, v in found.items() if v is not None]) for title, found in lists]
    )


def _dash(cell: str) -> str:
    return DASH if cell == NONE else cell


def _said(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
