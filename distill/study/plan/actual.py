"""A plan beside the run it was for: of every cell what was planned, what it came to, and their ratio.

Planned is what the plan reckons today for the students that are finished; a set of pairs that is there by now makes it
more exact than it was before. `seconds` of a training are those of its steps, which it measures itself; `stage_seconds`
are those of the whole stage, processes and servers started, by took.jsonl, which a run leaves.
"""

import json
from pathlib import Path
from typing import Any

from distill.artifact import read_json
from distill.study.outcomes import MemberOutcome
from distill.study.run import TOOK


def stage_seconds(out: Path) -> dict[str, float]:
    """How long each stage took, by its name; begun again and found finished it took less."""
    try:
        lines = (out / TOOK).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    took: dict[str, float] = {}
    for line in lines:
        try:
            found = json.loads(line)
            took[found["stage"]] = max(took.get(found["stage"], 0.0), float(found["seconds"]))
        except (ValueError, TypeError, KeyError):  # torn, when it was killed
            continue
    return took


def beside(cells: list[Any]) -> list[dict[str, Any]]:
    """One row a stage of a cell; `cells` are those of plan.py."""
    found = []
    for one in cells:
        if one.training is not None and one.trained:
            found.append(_trained(one))
        if one.training is not None and one.served:
            found.append(_served(one))
    return found


def _row(cell: str, stage: str, students: int, planned: dict[str, Any], actual: dict[str, Any]) -> dict[str, Any]:
    ratio = {
        name: actual[name] / planned[name] if planned[name] and actual[name] is not None else None for name in planned
    }
    return {"cell": cell, "stage": stage, "students": students, "planned": planned, "actual": actual, "ratio": ratio}


def _add_stage(
    planned: dict[str, Any],
    actual: dict[str, Any],
    seconds: float | None,
    took: list[float | None],
    votes: float | None,
    voted: int,
) -> None:
    """Seconds of whole stages, where both are known."""
    known = seconds is not None and (votes is not None or not voted)
    planned["stage_seconds"] = seconds * len(took) + (votes or 0.0) * voted if known else None
    actual["stage_seconds"] = None if None in took else sum(took)


def _trained(one: Any) -> dict[str, Any]:
    students = [student.summary for student in one.trained]
    names = ("examples", "tokens", "supervised_tokens", "steps", "flops")
    planned = {name: getattr(one.training, name) * len(students) for name in names}
    actual = {name: sum(summary[name] for summary in students) for name in names}
    planned["seconds"] = None if one.steps_seconds is None else one.steps_seconds * len(students)
    actual["seconds"] = sum(summary["measured"]["seconds"] for summary in students)
    _add_stage(planned, actual, one.seconds.get("train"), one.took["train"], 0.0, 0)
    return _row(one.id, "train", len(students), planned, actual)


def _served(one: Any) -> dict[str, Any]:
    voted = sum(outcome.sampled is not None for outcome in one.served)
    planned = {"generated_tokens": one.generated * len(one.served) + one.voted * voted}
    actual = {"generated_tokens": float(sum(map(_generated, one.served)))}
    _add_stage(planned, actual, one.seconds.get("serve"), one.took["serve"], one.seconds.get("votes"), voted)
    return _row(one.id, "serve", len(one.served), planned, actual)


def _generated(outcome: MemberOutcome) -> float:
    """Tokens of the graded answers, of the votes, and of all that was sent under load."""
    tokens = 0.0
    for evaluation in (outcome.evaluation, outcome.sampled):
        for summary in (evaluation.summary if evaluation is not None else {}).values():
            tokens += summary["n_answers"] * summary["tokens_per_answer"]["total"]
    profile = read_json(outcome.profile.path / "profile.json")
    settings = outcome.profile.recipe["settings"]
    for task in profile["tasks"].values():
        for level in task["levels"]:
            beside = settings["warmup_requests"] + (level["load"].get("concurrency") or 0)
            tokens += (level["requests"] + beside) * (level["tokens"]["per_answer"]["output"] or 0.0)
    return tokens
