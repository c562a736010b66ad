"""The tables of everything: scores and costs of each student, declared contrasts, training, serving."""

from distill.report.blocks import Block, Cell, Fold, Group, Table
from distill.report.numbers import DASH, compact, count, fixed, percent, signed, times, usd
from distill.study.page.reading import (
    MOST_PANELS,
    entries,
    factor,
    generated,
    metric_name,
    p_value,
    pick,
    rates,
    with_interval,
)

_MOST_ROWS = 24  # of a table that stands open


def numbers(results: dict) -> list[Block]:
    of_tasks = [_results_table(entries(results), task) for task in results["tasks"]]
    tables = [*of_tasks, _contrasts_table(results), _training_table(results), _serving_table(results)]
    many = len(results["tasks"]) > MOST_PANELS
    return [
        Fold(table.caption, [table]) if many or sum(len(group.rows) for group in table.groups) > _MOST_ROWS else table
        for table in tables
        if table.groups
    ]


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
                *(with_interval(pick(result, "metrics", metric)) for metric in metrics),
                percent(result.get("accuracy_finished")),
                percent(result.get("unfinished_rate")),
                percent(result.get("think_rate"), 0),
                Cell(fixed(generated(tokens)), thinking),
                _per_correct(compact, cost, "flops_per_answer", "flops_per_correct"),
                _per_correct(compact, pick(cost, "measured"), "seconds_per_answer", "seconds_per_correct"),
                _per_correct(usd, pick(cost, "measured"), "usd_per_1000_answers", "usd_per_1000_correct"),
            ]
        )
        rows += _by_thinking(cell["id"], pick(result, "by_thinking"), metrics)
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


def _by_thinking(name: str, parts: dict | None, metrics: list[str]) -> list[list[str | Cell]]:
    """Two rows of an arm that thinks before some of its answers only: right among these, and among the others."""
    rows = []
    for key, said in (("thought", "where it thought"), ("did_not", "where it did not")):
        part = pick(parts, key)
        if not pick(part, "n_answers"):
            continue
        right, unfinished = part.get("n_correct"), part.get("unfinished_rate")
        share = None if right is None else right / part["n_answers"]
        finished = None if None in (share, unfinished) or unfinished >= 1 else share / (1 - unfinished)
        tokens = part.get("tokens_per_answer")
        thinking = fixed(tokens["thinking"]) if pick(tokens, "thinking") else ""
        rows.append(
            [
                Cell(f"{name}, {said}", f"{count(part['n_answers'])} answers"),
                *(percent(share) if metric == "accuracy" else "" for metric in metrics),
                percent(finished),
                percent(unfinished),
                percent(float(key == "thought"), 0),
                Cell(fixed(generated(tokens)), thinking),
                *[""] * 3,
            ]
        )
    return rows


def _about(entry: dict, result: dict) -> str:
    """Under a name: what a comparator is, and what a student's several answers are worth as votes."""
    if not entry.get("kind"):
        n, vote = pick(result, "samples", "n"), pick(result, "samples", "majority")
        return f"majority of {n}: {percent(pick(vote, 'value'))}\u00a0%" if vote else ""
    if entry["kind"] in ("router", "oracle"):
        return f"of {entry.get('thinks') or DASH} and {entry.get('direct') or DASH}"
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
            with_interval(c.get("difference_points"), signed),
            ", ".join(signed(value) for value in c.get("per_seed") or ()) or DASH,
            Cell(p_value(c.get("p_value")), "" if c.get("p_holm") is None else p_value(c["p_holm"])),
            fixed(c.get("detectable_points")),
            c.get("matched_on") or DASH,
            factor(c, "token"),
            factor(c, "flops"),
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
        Cell("Detectable", "points, 80\u00a0% power"),
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
                " / ".join(map(compact, rates(cell))) or DASH,
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


def _per_correct(write, cost: dict | None, answer: str, correct: str) -> Cell:
    each = pick(cost, correct)
    return Cell(write(pick(cost, answer)), "" if each is None else write(each))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
