"""Which student to serve, and the command that does: the cheapest whose accuracy is within the margin of the best."""

import shlex
from pathlib import Path

from distill.report.blocks import Block, Card, Cards, Cell, Code, Fold, Group, Table, Text
from distill.report.numbers import compact, fixed, percent
from distill.serve.adapter import VLLM_RANKS, Adapter
from distill.study.page.reading import ALL, MOST_PANELS, analysis, ends, judged_by, parameters, pick, with_interval


def recommended(results: dict) -> list[Block]:
    """Of each task; the card and the command are of a task whose verdict pays, else of all tasks together."""
    margin = (results.get("margin_points") or 0.0) / 100
    found = {task: best for task, students in _students(results).items() if (best := _cheapest(students, margin))}
    if not found:
        return []
    pays = [v["task"] for v in results.get("verdicts") or [] if v["verdict"] == "pays" and v["task"] in found]
    task = pays[0] if pays else ALL if ALL in found else next(iter(found))
    point = found[task]
    cell = next((c for c in results["cells"] if c["id"] == point["id"]), {})
    accuracy, low, high = ends(point["accuracy"])
    where = "over all tasks" if task == ALL else f"on {task}"
    why = ", whose verdict is “pays”" if pays else ""
    card = Card(
        label=f"the cheapest within the margin of the best, {where}",
        headline=str(point["id"]),
        sentence=(
            f"Right on {percent(accuracy)}\u00a0% {where}{why}, at {compact(point['cost']['value'])} FLOPs an answer: of the "
            f"students that no other beats on both, the cheapest that is at most {fixed(100 * margin)} points behind the best."
        ),
        facts=[
            ("Accuracy", f"{percent(accuracy)}\u00a0% [{percent(low)}, {percent(high)}]"),
            ("Parameters", parameters(cell.get("parameters"))),
            ("Trained as", f"{cell.get('arm')}, answers: {cell.get('answers') or 'as written'}"),
        ],
        tone="plain",
    )
    blocks: list[Block] = [Cards([card])]
    if command := _serve(results, cell):
        blocks.append(Code(command, "To serve it, in the folder of this report"))
    blocks.append(
        Text("Chosen by point estimates: where intervals overlap, another student may be as good.", muted=True)
    )
    if len(found) > 1:
        table = _table(found)
        blocks.append(Fold(table.caption, [table]) if len(found) > MOST_PANELS else table)
    return blocks


def _students(results: dict) -> dict[str, list[dict]]:
    """By task, those trained here that no other of them beats on both axes, by FLOPs an answer: id, cost, accuracy."""
    by_task = {
        str(entry.get("task")): [p for p in entry.get("points") or [] if p.get("kind") == "cell"]
        for entry in analysis(results, "frontier")
        if entry.get("cost") == "flops"
    }
    if not by_task:
        for task in results["tasks"]:
            by_task[task["name"]] = [
                {
                    "id": cell["id"],
                    "cost": {"value": pick(cell, "tasks", task["name"], "inference", "flops_per_answer")},
                    "accuracy": pick(cell, "tasks", task["name"], "metrics", judged_by(task)),
                }
                for cell in results["cells"]
            ]
    return {task: _undominated(points) for task, points in by_task.items()}


def _undominated(points: list[dict]) -> list[dict]:
    """Cheapest first, each more accurate than all before it."""
    kept: list[dict] = []
    known = [p for p in points if pick(p, "cost", "value") is not None and pick(p, "accuracy", "value") is not None]
    for p in sorted(known, key=lambda p: (p["cost"]["value"], -p["accuracy"]["value"])):
        if not kept or p["accuracy"]["value"] > kept[-1]["accuracy"]["value"]:
            kept.append(p)
    return kept


def _cheapest(students: list[dict], margin: float) -> dict | None:
    """None where nobody has a single question right."""
    best = max((p["accuracy"]["value"] for p in students), default=0.0)
    return next((p for p in students if p["accuracy"]["value"] >= best - margin - 1e-12 and best > 0), None)


def _serve(results: dict, cell: dict) -> str | None:
    """None where the results do not say which folder it is. Adapters are served over the model they were trained on."""
    folder, preset = cell.get("folder"), results.get("preset")
    if not isinstance(folder, str):
        return None
    row = next((row for row in pick(preset, "students") or [] if pick(row, "name") == cell.get("size")), {})
    training = {**(pick(preset, "training") or {}), **(row.get("training") or {})}
    rank, base, name = training.get("lora_rank"), row.get("student"), str(cell["id"])
    if rank is None or training.get("merge"):
        return shlex.join(["vllm", "serve", folder, "--served-model-name", name])
    if not isinstance(rank, int) or not 0 < rank <= VLLM_RANKS[-1] or not isinstance(base, str):
        return None
    return shlex.join(["vllm", "serve", base, *Adapter(Path(folder), base, rank, 0).server_arguments(name)])


def _table(found: dict[str, dict]) -> Table:
    rows = [
        [
            "all tasks, their mean" if task == ALL else task,
            str(p["id"]),
            with_interval(p["accuracy"]),
            compact(p["cost"]["value"]),
        ]
        for task, p in sorted(found.items(), key=lambda item: item[0] != ALL)
    ]
    columns = ["Task", "Student", Cell("Accuracy", "% [interval]"), Cell("FLOPs", "per answer")]
    return Table("The cheapest student within the margin of the best", columns, [Group(rows)], prose=frozenset({1}))
