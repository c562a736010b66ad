"""Both pages of a study, section by section: a self-contained HTML file, and Markdown without figures and examples."""

from typing import Any

import yaml

from distill.errors import InputError
from distill.report import markdown
from distill.report.blocks import (
    Answer,
    Block,
    Cell,
    Checks,
    Code,
    Example,
    Facts,
    Group,
    KeyValues,
    Section,
    Table,
)
from distill.report.numbers import DASH, count, fixed, percent, usd
from distill.report.page import render_page
from distill.study.page.beside import beside
from distill.study.page.costs import costs
from distill.study.page.frontier import frontier
from distill.study.page.gains import gains
from distill.study.page.numbers import numbers
from distill.study.page.reading import FORMAT, colour
from distill.study.page.recommended import recommended
from distill.study.page.threats import checks
from distill.study.page.verdict import verdict

SCHEMA = "distill-results/1"
_MOST_EXAMPLES = 12
_NAMES = {
    "cpu": "CPU",
    "os": "OS",
    "vllm": "vLLM",
    "price_usd_per_hour": "price, $/hour",
    "power_watts": "power, W",
    "peak_bf16_tflops": "peak, bf16 TFLOP/s",
    "memory_gib": "memory, GiB",
    "memory_gb_per_s": "memory, GB/s",
}


def render(results: dict[str, Any]) -> str:
    """The page for results of schema distill-results/1 (docs/results-schema.md).

    Cells that failed, and anything else that is missing or null, appear as a dash or not at all. Raises InputError for
    another schema.
    """
    results = _checked(results)
    title, kicker = _title(results)
    return render_page(title, _sections(results), kicker=kicker)


def render_markdown(results: dict[str, Any]) -> str:
    """The same in Markdown, without figures and examples. Raises InputError for another schema."""
    results = _checked(results)
    title, kicker = _title(results)
    return markdown.render_markdown(title, _sections(results), kicker=kicker)


def _checked(results: dict) -> dict:
    if results.get("schema") != SCHEMA:
        raise InputError(f"results: field schema: expected {SCHEMA!r}, found {results.get('schema')!r}")
    return {**results, "cells": results.get("cells") or [], "tasks": results.get("tasks") or []}


def _title(results: dict) -> tuple[str, str]:
    title = results.get("title") or "A study of reasoning traces"
    return results.get("question") or title, f"distill study · {title}"


def _sections(results: dict) -> list[Section]:
    sections = [
        Section("Verdict", verdict(results)),
        Section("Frontier", frontier(results)),
        Section("What to serve", recommended(results)),
        Section("Where it gains", gains(results)),
        Section("As published", beside(results)),
        Section("What it costs", costs(results)),
        Section("Numbers", numbers(results)),
        Section(
            "Answers, side by side",
            _examples(results),
            lead="Held-out questions, chosen where the two students behind the verdict differ, if they do: they show how, not how often.",
        ),
        Section("How it was made", _method(results)),
        Section(
            "Threats to validity",
            [Checks(checks(results))],
            lead="What could make the verdict wrong, and what was measured about it.",
        ),
    ]
    return [section for section in sections if section.blocks]


def _examples(results: dict) -> list[Block]:
    cells = {cell["id"]: cell for cell in results["cells"]}
    blocks: list[Block] = []
    for example in (results.get("examples") or [])[:_MOST_EXAMPLES]:
        answers = []
        for answer in example.get("answers") or ():
            finished = answer.get("finished", True)
            answers.append(
                Answer(
                    label=str(answer.get("cell")),
                    thinking=answer.get("thinking") or "",
                    answer=answer.get("answer") or "",
                    judgement="unfinished" if not finished else "right" if answer.get("correct") else "wrong",
                    note=f"seed {answer.get('seed')} · {count(answer.get('thinking_tokens'))} thinking tokens, "
                    f"{count(answer.get('answer_tokens'))} answer tokens",
                    role=colour(cells.get(answer.get("cell"))),
                )
            )
        blocks.append(
            Example(example.get("task") or "", example.get("prompt") or "", example.get("gold") or "", answers)
        )
    return blocks


def _method(results: dict) -> list[Block]:
    blocks: list[Block] = []
    if results.get("command"):
        blocks.append(Code(results["command"], "To reproduce"))
    tasks = [
        [
            task["name"],
            FORMAT.get(task.get("answer_format"), task.get("answer_format") or DASH),
            count(task.get("questions")),
            count(task.get("distinct_prompts")),
            task.get("description") or DASH,
        ]
        for task in results["tasks"]
    ]
    if tasks:
        columns = ["Task", "Answer", Cell("Questions", "held out"), "Distinct prompts", "Description"]
        blocks.append(Table("Tasks", columns, [Group(tasks)], prose=frozenset({1, 4})))
    teacher = results.get("teacher") or {}
    cost = teacher.get("cost_usd")
    declared = [
        ("margin", f"{fixed(results.get('margin_points'))} points"),
        ("confidence", f"{percent(results.get('confidence'), 0)}\u00a0%"),
        ("teacher", teacher.get("name") or DASH),
        ("teacher's cost", "not known" if cost is None else usd(cost) if cost else "none"),
    ]
    lists = [Facts("Declared before the run", declared)]
    for title, values in (
        ("Hardware and price", results.get("hardware") or {}),
        ("Environment", {"distill": results.get("distill_version"), **(results.get("environment") or {})}),
    ):
        lists.append(
            Facts(title, [(_NAMES.get(name, name.replace("_", " ")), _value(value)) for name, value in values.items()])
        )
    blocks.append(KeyValues([facts for facts in lists if facts.items]))
    if results.get("preset"):
        settings = yaml.safe_dump(results["preset"], sort_keys=False, allow_unicode=True, width=100)
        blocks.append(Code(settings, "All settings, as run", folded=True))
    return blocks


def _value(value: Any) -> str:
    if value is None:
        return DASH
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
