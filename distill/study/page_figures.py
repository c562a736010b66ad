"""The three figures of a study's page: verdicts against the margin, accuracy against cost, tokens per answer."""

from typing import Any

from distill.report.bars import Bar, bars
from distill.report.blocks import Figure, Key
from distill.report.forest import Interval, forest
from distill.report.numbers import compact, fixed, percent, signed
from distill.report.scatter import Point, scatter

_ARM_COLOUR = {"base": "grey", "ift": "blue", "reasoning": "orange", "mixed": "purple", "sequential": "green"}
_SIZE_MARK = ("disc", "square", "diamond", "triangle")
_BESIDE_MARK = "star"  # of what stands beside the arms
_BESIDE = {"teacher": "teacher", "base": "untrained, few-shot", "majority": "majority vote"}


def pick(value: Any, *keys: str) -> Any:
    """The nested entry of a mapping, or None where any part of the way is missing: a failed cell has no results."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def entries(results: dict) -> list[dict]:
    """Everything that was scored: the cells, and what stands beside them."""
    return [*results["cells"], *(results.get("comparators") or [])]


def colour(cell: dict | None) -> str:
    """The colour of a cell's arm; `mixed:0.25` and `mixed:0.5` share one. A majority has that of its voters."""
    if pick(cell, "kind") in ("teacher", "base"):
        return "gold" if cell["kind"] == "teacher" else "grey"
    return _ARM_COLOUR.get(str(pick(cell, "arm")).split(":")[0], "gold")


def judged_by(task: dict) -> str:
    """The metric that stands for a task in one picture: accuracy where it has one."""
    names = task.get("metrics") or ["accuracy"]
    return "accuracy" if "accuracy" in names else names[0]


def verdict_figure(results: dict) -> Figure | None:
    margin = results.get("margin_points") or 0.0
    panels, data = [], []
    for task in results["tasks"]:
        contrasts = [
            c
            for c in results.get("contrasts") or []
            if c["task"] == task["name"]
            and c.get("metric") in (None, judged_by(task))
            and pick(c, "difference_points", "value") is not None
        ]
        if not contrasts:
            continue
        contrasts.sort(key=lambda c: not c.get("primary"))
        intervals = [
            Interval(
                c["id"].removeprefix(f"{c['task']}/").replace(f"/{c.get('metric')}/", "/"),
                *_ends(c["difference_points"]),
                emphasis=bool(c.get("primary")),
            )
            for c in contrasts
        ]
        spoken = "; ".join(f"{i.label}: {signed(i.value)}, {signed(i.low)} to {signed(i.high)}" for i in intervals)
        panels.append(
            forest(
                intervals,
                margin=margin,
                title=task["name"],
                description=f"Differences on {task['name']} in points with their intervals. {spoken}.",
                x_label="difference in points",
            )
        )
        data += [
            {
                "task": c["task"],
                "contrast": c["id"],
                "treatment": c.get("treatment"),
                "control": c.get("control"),
                "matched_on": c.get("matched_on"),
                "metric": c.get("metric"),
                "difference_points": i.value,
                "low": i.low,
                "high": i.high,
                "margin_points": margin,
                "primary": i.emphasis,
                "verdict": c.get("verdict"),
            }
            for c, i in zip(contrasts, intervals, strict=True)
        ]
    if not panels:
        return None
    return Figure(
        title="Differences behind the verdicts",
        caption=(
            f"Each line is a difference between two students with its {_confidence(results)} interval. Shaded: gains "
            f"below the margin of {fixed(margin)} points declared before the run. An interval wholly beyond the shade means "
            "“pays”, wholly in it “does not pay”, across its edge “cannot tell”."
        ),
        panels=panels,
        data=data,
        file_name="contrasts.csv",
        legend=(
            Key("decides the verdict", "ink", "disc"),
            Key("also declared", "grey", "ring"),
            Key("gain below the margin", "muted", "band"),
        ),
    )


def frontier_figure(results: dict) -> Figure | None:
    marks = _marks(results["cells"])
    scored = []
    for task in results["tasks"]:
        for cell in entries(results):
            result = pick(cell, "tasks", task["name"])
            value = pick(result, "metrics", judged_by(task))
            flops = pick(result, "inference", "flops_per_answer")
            if pick(value, "value") is not None and flops:
                scored.append((task, cell, value, flops))
    if not scored:
        return None
    # One scale for all tasks, so that panels compare by eye: from the ten below the lowest interval to 100.
    floor = min(0.9, *(_ends(value)[1] for _, _, value, _ in scored))
    y_range = (10 * int(max(floor, 0.0) * 10), 100)
    panels, data = [], []
    for task in results["tasks"]:
        points = []
        metric = judged_by(task)
        for cell, value, flops in (entry[1:] for entry in scored if entry[0] is task):
            centre, low, high = _ends(value)
            points.append(
                Point(
                    flops,
                    100 * centre,
                    100 * low,
                    100 * high,
                    cell["id"],
                    colour(cell),
                    _BESIDE_MARK if cell.get("kind") else marks[cell["size"]],
                    hollow=(cell.get("match") or "samples") != "samples",
                )
            )
            data.append(
                {
                    "task": task["name"],
                    "cell": cell["id"],
                    "arm": cell.get("arm"),
                    "size": cell.get("size"),
                    "comparator": cell.get("kind"),
                    "match": cell.get("match"),
                    "metric": metric,
                    "value": centre,
                    "low": low,
                    "high": high,
                    "flops_per_answer": flops,
                }
            )
        if points:
            spoken = "; ".join(f"{p.label} {fixed(p.y)}\u00a0% at {compact(p.x, 'FLOP')}" for p in points)
            panels.append(
                scatter(
                    points,
                    title=task["name"],
                    description=f"Accuracy on {task['name']} against inference cost per answer. {spoken}.",
                    x_label="inference FLOPs per answer",
                    y_label=f"{metric_name(metric)}, %",
                    y_range=y_range,
                )
            )
    beside = {cell["kind"]: cell for _, cell, *_ in scored if cell.get("kind")}
    arms = list(dict.fromkeys(str(cell["arm"]).split(":")[0] for _, cell, *_ in scored if not cell.get("kind")))
    legend = [Key(arm, colour({"arm": arm}), "disc") for arm in arms]
    legend += [Key(f"{size} students", "ink", mark) for size, mark in marks.items()]
    legend += [Key(_BESIDE.get(kind, kind), colour(cell), _BESIDE_MARK) for kind, cell in beside.items()]
    matched = sorted({cell.get("match") or "samples" for _, cell, *_ in scored} - {"samples"})
    if matched:
        legend.append(Key(f"hollow: matched on training {' or '.join(matched)}", "ink", "ring"))
    legend.append(Key("not beaten on both axes", "muted", "line"))
    return Figure(
        title="Accuracy against the cost of an answer",
        caption=(
            f"Up and to the left is better. Bars are {_confidence(results)} intervals over questions and, where a student "
            "was trained more than once, seeds. The dashed line joins the students that none beats on both axes, by their "
            "point estimates. Unfinished answers count as wrong and their tokens as spent." + _what_a_vote_costs(beside)
        ),
        panels=panels,
        data=data,
        file_name="frontier.csv",
        legend=legend,
    )


def tokens_figure(results: dict) -> Figure | None:
    panels, data = [], []
    for task in results["tasks"]:
        rows = []
        for cell in entries(results):
            tokens = pick(cell, "tasks", task["name"], "tokens_per_answer")
            if pick(tokens, "answer") is None:
                continue
            thinking, answer = tokens.get("thinking") or 0.0, tokens["answer"]
            rows.append(Bar(cell["id"], thinking, answer, colour(cell)))
            data.append({"task": task["name"], "cell": cell["id"], **{k: tokens.get(k) for k in _TOKENS}})
        if rows:
            spoken = "; ".join(f"{r.label} {fixed(r.first)} thinking and {fixed(r.second)} answer" for r in rows)
            panels.append(
                bars(
                    rows,
                    title=task["name"],
                    description=f"Tokens per answer on {task['name']}. {spoken}.",
                    x_label="generated tokens per answer",
                )
            )
    if not panels:
        return None
    return Figure(
        title="What an answer is made of",
        caption="Mean generated tokens per answer, counted from token ids; of a majority, those of all its answers.",
        panels=panels,
        data=data,
        file_name="tokens.csv",
        legend=(Key("thinking", "ink", "bar-light"), Key("answer", "ink", "bar")),
    )


def _what_a_vote_costs(beside: dict[str, dict]) -> str:
    return " A majority costs all its answers; they share the reading of the prompt." if "majority" in beside else ""


_TOKENS = ("prompt", "thinking", "answer", "total")


def metric_name(metric: str) -> str:
    return {"accuracy": "accuracy", "macro_f1": "Macro F1", "rouge_l": "ROUGE-L"}.get(metric, metric)


def _marks(cells: list[dict]) -> dict[str, str]:
    """A mark for each size, the smallest first."""
    sizes = dict.fromkeys(cell["size"] for cell in sorted(cells, key=lambda cell: cell.get("parameters") or 0))
    return {size: _SIZE_MARK[min(i, len(_SIZE_MARK) - 1)] for i, size in enumerate(sizes)}


def _ends(value: dict) -> tuple[float, float, float]:
    """Value, low, high; without an interval both ends are the value."""
    centre = value["value"]
    low, high = value.get("low"), value.get("high")
    return centre, centre if low is None else low, centre if high is None else high


def _confidence(results: dict) -> str:
    return f"{percent(results.get('confidence'), 0)}\u00a0%"
