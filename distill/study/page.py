"""The study's report: `results.json` in, one self-contained HTML page out, the verdict first."""

from typing import Any

import yaml

from distill.errors import InputError
from distill.report.blocks import (
    Answer,
    Block,
    Card,
    Cards,
    Cell,
    Checks,
    Code,
    Example,
    Facts,
    Group,
    KeyValues,
    Notice,
    Section,
    Table,
    Text,
)
from distill.report.numbers import DASH, compact, count, fixed, percent, signed, times, usd
from distill.report.page import render_page
from distill.study.page_figures import (
    colour,
    entries,
    frontier_figure,
    metric_name,
    pick,
    tokens_figure,
    verdict_figure,
)
from distill.study.page_threats import checks

SCHEMA = "distill-results/1"
_TONE = {"pays": "yes", "does not pay": "no"}
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
_FORMAT = {"open": "open-ended", "choice": "multiple choice", "labels": "labels", "extraction": "extraction"}


def render(results: dict[str, Any]) -> str:
    """The page for results of schema distill-results/1 (docs/results-schema.md).

    Cells that failed, and anything else that is missing or null, appear as a dash or not at all. Raises InputError for
    another schema.
    """
    if results.get("schema") != SCHEMA:
        raise InputError(f"results: field schema: expected {SCHEMA!r}, found {results.get('schema')!r}")
    results = {**results, "cells": results.get("cells") or [], "tasks": results.get("tasks") or []}
    sections = [
        Section("Verdict", _verdict(results)),
        Section("Frontier", [figure for figure in (frontier_figure(results), tokens_figure(results)) if figure]),
        Section("Numbers", _numbers(results)),
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
    title = results.get("title") or "A study of reasoning traces"
    return render_page(
        results.get("question") or title,
        [section for section in sections if section.blocks],
        kicker=f"distill study · {title}",
    )


def _verdict(results: dict) -> list[Block]:
    contrasts = {c["id"]: c for c in results.get("contrasts") or []}
    tasks = {task["name"]: task for task in results["tasks"]}
    cards = []
    for verdict in results.get("verdicts") or []:
        contrast = contrasts.get(verdict.get("contrast"), {})
        answer_format = pick(tasks.get(verdict["task"]), "answer_format")
        facts = [
            ("Difference", _points(contrast.get("difference_points"))),
            ("Tokens per answer", times(contrast.get("token_factor"))),
            ("FLOPs per answer", times(contrast.get("flops_factor"))),
            ("Matched on", contrast.get("matched_on") or DASH),
            ("Seeds, questions", f"{count(contrast.get('n_seeds'))}, {count(contrast.get('n_questions'))}"),
        ]
        cards.append(
            Card(
                label=" · ".join(part for part in (verdict["task"], _FORMAT.get(answer_format, answer_format)) if part),
                headline=str(verdict["verdict"]).capitalize(),
                sentence=verdict.get("sentence") or "",
                facts=facts if contrast else (),
                tone=_TONE.get(verdict["verdict"], "open"),
            )
        )
    blocks: list[Block] = [Cards(cards)] if cards else [Text("No verdict: no declared contrast could be computed.")]
    failures = results.get("failures") or []
    if failures:
        plural = "s" if len(failures) > 1 else ""
        blocks.append(
            Notice(
                f"{len(failures)} failure{plural}. What depends on a failed student is missing from this page.",
                [f"{f.get('cell')}, {f.get('stage')}: {f.get('reason')}" for f in failures],
            )
        )
    figure = verdict_figure(results)
    return [*blocks, figure] if figure else blocks


def _numbers(results: dict) -> list[Block]:
    tables = [_results_table(entries(results), task) for task in results["tasks"]]
    tables += [_contrasts_table(results), _training_table(results), _serving_table(results)]
    return [table for table in tables if table.groups]


def _results_table(cells: list[dict], task: dict) -> Table:
    metrics = task.get("metrics") or []
    rows = []
    for cell in cells:
        result = pick(cell, "tasks", task["name"])
        if not result:
            continue
        tokens, cost = result.get("tokens_per_answer"), result.get("inference")
        thinking = fixed(tokens["thinking"]) if pick(tokens, "thinking") else ""
        rows.append(
            [
                Cell(cell["id"], _about(cell, result)),
                *(_with_interval(pick(result, "metrics", metric)) for metric in metrics),
                percent(result.get("accuracy_finished")),
                percent(result.get("unfinished_rate")),
                percent(result.get("think_rate"), 0),
                Cell(fixed(_generated(tokens)), thinking),
                _per_correct(compact, cost, "flops_per_answer", "flops_per_correct"),
                _per_correct(compact, pick(cost, "measured"), "seconds_per_answer", "seconds_per_correct"),
                _per_correct(usd, pick(cost, "measured"), "usd_per_1000_answers", "usd_per_1000_correct"),
            ]
        )
    columns = [
        "Student",
        *(Cell(_capital(metric_name(metric)), "% [interval]") for metric in metrics),
        Cell("If finished", "%"),
        Cell("Unfinished", "%"),
        Cell("Thinks", "%"),
        Cell("Tokens/answer", "of them thinking"),
        Cell("FLOPs/answer", "per right answer"),
        Cell("Seconds/answer", "per right answer"),
        Cell("$/1,000 answers", "per 1,000 right"),
    ]
    return Table(f"{task['name']}, {count(task.get('questions'))} questions", columns, [Group(rows)] if rows else [])


def _about(entry: dict, result: dict) -> str:
    """Under a name: what a comparator is, and what a student's several answers are worth as votes."""
    if not entry.get("kind"):
        n, vote = pick(result, "samples", "n"), pick(result, "samples", "majority")
        return f"majority of {n}: {percent(pick(vote, 'value'))}\u00a0%" if vote else ""
    votes = result.get("votes")
    if not votes:
        shots = result.get("few_shot")
        return f"{entry.get('model') or DASH}" + (f", {shots}-shot" if shots is not None else "")
    cap = f", all drawn, of {votes.get('affordable')} that the tokens pay for" if votes.get("capped") else ""
    return f"majority of {votes.get('k')} of {entry.get('of')}{cap}"


def _contrasts_table(results: dict) -> Table:
    rows = [
        [
            Cell(c["id"], "decides the verdict" if c.get("primary") else ""),
            c.get("verdict") or DASH,
            _with_interval(c.get("difference_points"), lambda value: signed(value)),
            ", ".join(signed(value) for value in c.get("per_seed") or ()) or DASH,
            Cell(_p(c.get("p_value")), "" if c.get("p_holm") is None else _p(c["p_holm"])),
            fixed(c.get("detectable_points")),
            c.get("matched_on") or DASH,
            times(c.get("token_factor")),
            times(c.get("flops_factor")),
            times(c.get("training_tokens_factor")),
        ]
        for c in results.get("contrasts") or []
    ]
    columns = [
        "Contrast",
        "Verdict",
        Cell("Difference", "points [interval]"),
        Cell("By seed", "points"),
        Cell("p", "after Holm"),
        Cell("Could be seen", "points"),
        "Matched on",
        Cell("Tokens", "per answer"),
        Cell("FLOPs", "per answer"),
        Cell("Tokens", "in training"),
    ]
    return Table("Declared contrasts", columns, [Group(rows)] if rows else [], prose=frozenset({1, 6}))


def _training_table(results: dict) -> Table:
    rows = []
    for cell in results["cells"]:
        training = cell.get("training")
        if not training:
            continue
        seen = training.get("measured")
        supervised = training.get("supervised_tokens")
        rows.append(
            [
                Cell(cell["id"], f"{cell.get('arm')}, answers: {cell.get('answers') or DASH}"),
                count(cell.get("parameters")),
                ", ".join(str(seed) for seed in cell.get("seeds") or ()) or DASH,
                compact(cell.get("learning_rate")),
                Cell(count(training.get("examples")), f"{count(training.get('steps'))} steps"),
                Cell(compact(training.get("tokens")), f"{compact(supervised)} supervised" if supervised else ""),
                compact(training.get("flops")),
                fixed(pick(seen, "seconds"), 0),
                Cell(compact(pick(seen, "supervised_tokens_per_second")), f"{percent(pick(seen, 'mfu'))} % MFU"),
                compact(pick(seen, "peak_rss_bytes"), "B"),
                usd(pick(seen, "usd")),
            ]
        )
    columns = [
        "Student",
        "Parameters",
        "Seeds",
        Cell("Learning rate", "peak"),
        "Examples",
        "Tokens",
        "FLOPs",
        "Seconds",
        Cell("Supervised", "tokens/s"),
        Cell("Memory", "peak"),
        "Price",
    ]
    return Table("Training, mean over seeds", columns, [Group(rows)] if rows else [])


def _serving_table(results: dict) -> Table:
    groups = []
    for cell in results["cells"]:
        rows = []
        for load in cell.get("serving") or ():
            seen = load.get("measured")
            latencies = (pick(seen, name) for name in ("ttft_ms", "tpot_ms", "e2e_ms"))
            rows.append(
                [
                    " · ".join(
                        part for part in (load.get("task"), f"{count(load.get('concurrency'))} at once") if part
                    ),
                    Cell(count(load.get("n_requests")), f"{load['failed']} failed" if load.get("failed") else ""),
                    *(" / ".join(fixed(pick(latency, p)) for p in ("p50", "p90", "p99")) for latency in latencies),
                    count(pick(seen, "output_tokens_per_second")),
                ]
            )
        if rows:
            groups.append(Group(rows, title=cell["id"]))
    percentiles = "ms, p50 / p90 / p99"
    return Table(
        "Serving under load",
        [
            "Requests",
            "Total",
            *(Cell(n, percentiles) for n in ("TTFT", "TPOT", "End to end")),
            Cell("Output", "tokens/s"),
        ],
        groups,
    )


def _examples(results: dict) -> list[Block]:
    cells = {cell["id"]: cell for cell in results["cells"]}
    blocks: list[Block] = []
    for example in results.get("examples") or []:
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
            _FORMAT.get(task.get("answer_format"), task.get("answer_format") or DASH),
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
        ("teacher's note", teacher.get("note") or DASH),
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


def _points(value: dict | None) -> str:
    low, high = pick(value, "low"), pick(value, "high")
    interval = f" [{signed(low)}, {signed(high)}]" if low is not None and high is not None else ""
    return f"{signed(pick(value, 'value'))}{interval} points"


def _with_interval(value: dict | None, write=percent) -> Cell:
    low, high = pick(value, "low"), pick(value, "high")
    note = f"[{write(low)}, {write(high)}]" if low is not None and high is not None else ""
    return Cell(write(pick(value, "value")), note)


def _p(value: float | None) -> str:
    return "<0.001" if value is not None and value < 0.001 else fixed(value, 3)


def _per_correct(write, cost: dict | None, answer: str, correct: str) -> Cell:
    each = pick(cost, correct)
    return Cell(write(pick(cost, answer)), "" if each is None else write(each))


def _generated(tokens: dict | None) -> float | None:
    parts = [pick(tokens, "thinking"), pick(tokens, "answer")]
    return None if None in parts else sum(parts)


def _value(value: Any) -> str:
    if value is None:
        return DASH
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
