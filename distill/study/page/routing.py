"""Deciding question by question whether to think: what a router does, beside never, always and an oracle."""

from distill.report.blocks import Cell, Group, Table
from distill.report.numbers import compact, fixed, percent, signed
from distill.study.page.reading import MOST_PANELS, entries, generated, pick, primary, with_interval


def routed(results: dict) -> list[str]:
    """What the router does where verdicts are read, a sentence a task; nothing of many tasks."""
    routers = {e.get("size"): e for e in results.get("comparators") or [] if e.get("kind") == "router"}
    said = []
    for contrast in primary(results):
        router = routers.get(contrast.get("size"))
        result = pick(router, "tasks", contrast["task"])
        never, always = (pick(result, "routing", f"over_{name}_points") for name in ("never", "always"))
        if pick(never, "value") is None or pick(always, "value") is None:
            continue
        said.append(
            f"On {contrast['task']}, {router['id']} thinks about {percent(pick(result, 'routing', 'thinks_rate'), 0)}\u00a0% of the "
            f"questions and is right on {percent(pick(result, 'metrics', 'accuracy', 'value'))}\u00a0%: "
            f"{_points(never)} against never thinking, {_points(always)} against always."
        )
    return said if len(said) <= MOST_PANELS else []


def _points(value: dict) -> str:
    cell = with_interval(value, signed)
    return f"{cell.text} points {cell.note}".rstrip()


def routing(results: dict) -> list[Table]:
    """Never thinking, always thinking, what the router decides, and the oracle, by size and task."""
    known = {entry["id"]: entry for entry in entries(results)}
    groups = []
    for router in (e for e in results.get("comparators") or [] if e.get("kind") == "router"):
        oracle = next(
            (e for e in known.values() if e.get("kind") == "oracle" and e.get("size") == router.get("size")), None
        )
        sides = [("never", known.get(router.get("direct"))), ("always", known.get(router.get("thinks")))]
        sides += [("as the router says", router), ("as the oracle says", oracle)]
        for task in results["tasks"]:
            rows = []
            for name, entry in sides:
                result = pick(entry, "tasks", task["name"])
                if result is None:
                    continue
                routed = pick(result, "routing")
                rate = {"never": 0.0, "always": 1.0}.get(name, pick(routed, "thinks_rate"))
                rows.append(
                    [
                        Cell(name, entry["id"]),
                        with_interval(pick(result, "metrics", "accuracy")),
                        percent(rate, 0),
                        fixed(generated(pick(result, "tokens_per_answer"))),
                        compact(pick(result, "inference", "flops_per_answer")),
                        with_interval(pick(routed, "over_never_points"), signed),
                        with_interval(pick(routed, "over_always_points"), signed),
                        with_interval(pick(routed, "share_of_oracle_gain")),
                    ]
                )
            if rows:
                groups.append(Group(rows, f"{task['name']}, {router.get('size')}"))
    columns = [
        "Thinks",
        Cell("Accuracy", "% [interval]"),
        Cell("Of questions", "% thought about"),
        Cell("Tokens", "per answer"),
    ]
    columns += [Cell("FLOPs", "per answer"), Cell("Over never", "points"), Cell("Over always", "points")]
    columns += [Cell("Of the oracle's gain", "% over the better of both")]
    return [Table("Never, always, or as a router decides", columns, groups)] if groups else []
