"""Accuracy against cost: every student and what stands beside it, with the band of the best for at most a cost."""

import math
from dataclasses import dataclass

from distill.report.blocks import Block, Cell, Figure, Fold, Group, Key, Panel, Table
from distill.report.numbers import compact, fixed, percent
from distill.report.scatter import Band, Point, scatter
from distill.study.page.reading import (
    ALL,
    MOST_PANELS,
    analysis,
    arm_family,
    colour,
    confidence,
    decided_on,
    ends,
    entries,
    judged_by,
    marks,
    metric_name,
    pick,
    size_keys,
    with_interval,
)

_ALL_LOUD = 10  # points of one panel that may all have a label and bars; of more
_MOST_LOUD = 7  # have them, since more cover each other
_MARK = {"teacher": "star", "base": "star", "majority": "star", "router": "cross", "oracle": "star"}
_NAME = {
    "teacher": "teacher",
    "base": "untrained, few-shot",
    "majority": "majority vote",
    "router": "router",
    "oracle": "oracle, a bound that nobody can reach",
}
_TITLE = {"flops": "Accuracy against the cost of an answer", "tokens": "Accuracy against the tokens of an answer"}
_AXIS = {"flops": "inference FLOPs per answer", "tokens": "output tokens per answer"}
_AGAIN = "The same answers over the tokens that were generated, which count alike for students of every size."
_FILE = {"flops": "frontier.csv", "tokens": "frontier_tokens.csv"}


@dataclass(frozen=True)
class _View:
    """One task, or all, at one cost: points as results["analysis"]["frontier"] has them."""

    task: str
    metric: str
    points: list[dict]
    steps: dict | None


def frontier_figures(results: dict) -> list[Figure]:
    """Over FLOPs and over output tokens; without an analysis over FLOPs only, from the cells' own scores."""
    found = [figure for cost in ("flops", "tokens") if (figure := _figure(results, cost, _analysed(results, cost)))]
    if found:
        return found
    figure = _figure(results, "flops", _measured(results))
    return [figure] if figure else []


def frontier(results: dict) -> list[Block]:
    """The figures, and who is on the frontier: over all tasks, and folded of each."""
    tables = _members(results)
    blocks: list[Block] = [*frontier_figures(results), *tables[:1]]
    return [*blocks, Fold("Not beaten on both axes, task by task", tables[1:])] if tables[1:] else blocks


def _members(results: dict) -> list[Table]:
    columns = ["Who", Cell("FLOPs", "per answer [interval]"), Cell("Accuracy", "% [interval]")]
    columns += [Cell("On it in", "% of resamplings")]
    tables = []
    for view in _analysed(results, "flops"):
        members = sorted((p for p in view.points if p.get("on_frontier")), key=lambda p: p["cost"]["value"])
        rows = [
            [
                p["id"],
                with_interval(p["cost"], compact),
                with_interval(p["accuracy"]),
                percent(p.get("stability"), 0),
            ]
            for p in members
        ]
        if rows:
            where = "over all tasks" if view.task == ALL else f"on {view.task}"
            tables.append(Table(f"Not beaten on both axes, {where}", columns, [Group(rows)]))
    return tables


def _spoken(view: _View) -> str:
    return "all tasks, their mean" if view.task == ALL else view.task


def _analysed(results: dict, cost: str) -> list[_View]:
    views = []
    for entry in analysis(results, "frontier"):
        points = [p for p in entry.get("points") or [] if _drawable(p.get("cost"), p.get("accuracy"))]
        if entry.get("cost") == cost and points:
            steps = entry.get("frontier")
            steps = steps if all(pick(steps, name) for name in ("cost", "accuracy", "low", "high")) else None
            views.append(_View(str(entry.get("task")), "accuracy", points, steps))
    return sorted(views, key=lambda view: view.task != ALL)


def _measured(results: dict) -> list[_View]:
    views = []
    for task in results["tasks"]:
        points = []
        for entry in entries(results):
            result = pick(entry, "tasks", task["name"])
            accuracy = pick(result, "metrics", judged_by(task))
            cost = {"value": pick(result, "inference", "flops_per_answer")}
            if _drawable(cost, accuracy):
                points.append({**entry, "kind": entry.get("kind") or "cell", "cost": cost, "accuracy": accuracy})
        if points:
            views.append(_View(task["name"], judged_by(task), points, None))
    return views


def _drawable(cost: dict | None, accuracy: dict | None) -> bool:
    spent = pick(cost, "value")
    return spent is not None and spent > 0 and math.isfinite(spent) and pick(accuracy, "value") is not None


def _figure(results: dict, cost: str, views: list[_View]) -> Figure | None:
    if not views:
        return None
    shown = views[:MOST_PANELS]
    # One scale for all tasks, so that panels compare by eye: from the ten below the lowest interval to 100.
    floor = min(0.9, *(ends(p["accuracy"])[1] for view in shown for p in view.points))
    y_range = (10 * int(max(floor, 0.0) * 10), 100)
    known = {entry["id"]: entry for entry in entries(results)}
    banded = all(view.steps for view in shown)
    quiet = any(len(view.points) > _ALL_LOUD for view in shown)
    return Figure(
        title=_TITLE[cost],
        caption=_caption(results, views, banded=banded, quiet=quiet) if cost == "flops" else _AGAIN,
        panels=[_panel(results, view, cost, known, y_range) for view in shown],
        data=[row for view in views for row in _rows(view, cost, known)],
        file_name=_FILE[cost],
        legend=_legend(results, shown, known, banded=banded, quiet=quiet),
    )


def _panel(results: dict, view: _View, cost: str, known: dict, y_range: tuple[int, int]) -> Panel:
    loud, mark = _loud(results, view), marks(results["cells"])
    points = []
    for p in view.points:
        entry = known.get(p["id"]) or p
        (x, x_low, x_high), (y, low, high) = ends(p["cost"]), ends(p["accuracy"])
        points.append(
            Point(
                x,
                100 * y,
                100 * low,
                100 * high,
                p["id"],
                colour(entry),
                _MARK.get(p.get("kind"), mark.get(p.get("size"), "disc")),
                hollow=(entry.get("match") or "samples") != "samples" or p.get("kind") == "oracle",
                x_low=x_low if x_low < x else None,
                x_high=x_high if x_high > x else None,
                quiet=p["id"] not in loud,
            )
        )
    title = _spoken(view)
    unit = "FLOP" if cost == "flops" else "tokens"
    spoken = "; ".join(f"{p.label} {fixed(p.y)}\u00a0% at {compact(p.x, unit)}" for p in points if not p.quiet)
    band = None
    if view.steps:
        share = ([100 * value for value in view.steps[name]] for name in ("accuracy", "low", "high"))
        band = Band(view.steps["cost"], *share)
    return scatter(
        points,
        title=title,
        description=f"{metric_name(view.metric)} on {title} against {_AXIS[cost]}. {spoken}.",
        x_label=_AXIS[cost],
        y_label=f"{metric_name(view.metric)}, %",
        y_range=y_range,
        band=band,
    )


def _loud(results: dict, view: _View) -> set[str]:
    """The points to name: all where they are few; else the frontier's surest and the sides of the verdict's contrast."""
    if len(view.points) <= _ALL_LOUD:
        return {p["id"] for p in view.points}
    sides = decided_on(results)
    order = sorted(
        view.points,
        key=lambda p: (
            not p.get("on_frontier"),
            p["id"] not in sides,
            p.get("kind") == "cell",
            -(p.get("stability") or 0),
        ),
    )
    return {p["id"] for p in order[:_MOST_LOUD]}


def _legend(results: dict, views: list[_View], known: dict, *, banded: bool, quiet: bool) -> list[Key]:
    points = [p for view in views for p in view.points]
    of = [(p.get("kind"), known.get(p["id"]) or p) for p in points]
    families = dict.fromkeys(arm_family(entry) for kind, entry in of if kind == "cell")
    legend = [Key(arm, colour({"arm": arm}), "disc") for arm in families]
    legend += size_keys(results["cells"])
    beside = {kind: entry for kind, entry in of if kind != "cell"}
    for kind, entry in beside.items():
        mark = "hollow-star" if kind == "oracle" else _MARK.get(kind, "disc")
        legend.append(Key(_NAME.get(kind, str(kind)), colour(entry), mark))
    matched = sorted({str(entry.get("match") or "samples") for kind, entry in of if kind == "cell"} - {"samples"})
    if matched:
        legend.append(Key(f"hollow: matched on training {' or '.join(matched)}", "ink", "ring"))
    if quiet:
        legend.append(Key("small and pale: the others", "muted", "disc"))
    if banded:
        return [*legend, Key("the best for at most this cost, cross-fitted", "muted", "band")]
    return [*legend, Key("not beaten on both axes", "muted", "line")]


def _caption(results: dict, views: list[_View], *, banded: bool, quiet: bool) -> str:
    said = [
        f"Up and to the left is better. Bars are {confidence(results)} intervals over questions and, where a student"
    ]
    said.append("was trained more than once, seeds.")
    if banded:
        said.append(
            "The dashed line is the best accuracy for at most a cost and the shade its interval. Who is the best was decided on "
            "one half of the questions and what it is worth estimated on the other, so that it is not the luckiest: the "
            "line can run under a point."
        )
    else:
        said.append("The dashed line joins the students that none beats on both axes, by their point estimates.")
    said.append("Unfinished answers count as wrong and their tokens as spent.")
    if any(p.get("kind") == "majority" for view in views for p in view.points):
        said.append("A majority costs all its answers; they share the reading of the prompt.")
    if quiet:
        said.append(f"Named are at most {_MOST_LOUD} a panel: the frontier first.")
    of = [entry for entry in analysis(results, "frontier") if entry.get("cost") == "flops"]
    unpriced = dict.fromkeys(str(name) for entry in of for name in entry.get("left_out") or [])
    if unpriced:
        said.append(f"Not drawn, since what its answers cost in FLOPs is not known: {', '.join(unpriced)}.")
    if len(views) > MOST_PANELS:
        said.append(f"The data have all {len(views)} panels.")
    return " ".join(said)


def _rows(view: _View, cost: str, known: dict) -> list[dict]:
    """Points, and where there is a band its steps, as rows with the same keys."""
    rows = []
    for p in view.points:
        entry = known.get(p["id"]) or p
        (spent, spent_low, spent_high), (value, low, high) = ends(p["cost"]), ends(p["accuracy"])
        rows.append(
            {
                "task": view.task,
                "row": "point",
                "cell": p["id"],
                "arm": entry.get("arm"),
                "size": p.get("size"),
                "comparator": None if p.get("kind") == "cell" else p.get("kind"),
                "match": entry.get("match"),
                "think": p.get("think"),
                "mode": p.get("mode"),
                "thinking_budget": p.get("thinking_budget"),
                "metric": view.metric,
                "value": value,
                "low": low,
                "high": high,
                f"{cost}_per_answer": spent,
                f"{cost}_low": spent_low,
                f"{cost}_high": spent_high,
                "on_frontier": p.get("on_frontier"),
                "stability": p.get("stability"),
            }
        )
    if view.steps:
        names = view.steps.get("id") or [None] * len(view.steps["cost"])
        blank = dict.fromkeys(rows[0])
        for name, at, value, low, high in zip(
            names, *(view.steps[key] for key in ("cost", "accuracy", "low", "high")), strict=True
        ):
            step = {"task": view.task, "row": "best for at most", "cell": name, "metric": view.metric}
            rows.append(blank | step | {"value": value, "low": low, "high": high, f"{cost}_per_answer": at})
    return rows
