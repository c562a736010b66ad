"""What a study declares before it runs, kept beside its results: nobody moves the margin once the answers are in.

What is compared may not change: contrasts, margin and matching, the questions, and what the compared arms are, teach and
are taught with. Sizes and training seeds may be added, but none be dropped; seeds that were added are told.
"""

from pathlib import Path
from typing import Any

from distill.artifact import changes, read_json, write_json
from distill.errors import InputError
from distill.study.rows import TraceRow
from distill.study.settings import StudySettings

DECLARED = "declared.json"
_GROWING = ("students", "seeds")

# A teacher is the same wherever it answers, and whatever it costs.
_ELSEWHERE = {"url", "api_key_env", "ift_url", "ift_api_key_env", "server", "ift_server", "concurrency", "timeout_s"}
_ELSEWHERE |= {"usd_per_million_input", "usd_per_million_output"}


def declare(settings: StudySettings, out: Path) -> None:
    """Write the declaration into the study's folder at its first start.

    At later starts raises InputError, listing what changed, unless it is still the same.
    """
    path, now = out / DECLARED, declaration(settings)
    if not path.exists():
        write_json(path, now)
        return
    kept = read_json(path)
    for name in _GROWING:
        now[name] = {key: _still(value, now[name].get(key)) for key, value in kept.get(name, {}).items()}
    differing = changes(kept, now)
    if differing:
        raise InputError(
            f"{out}: this study was declared otherwise before it ran ({'; '.join(differing)}); choose another --out"
        )


def seeds_declared(out: Path) -> dict[str, list[int]] | None:
    """The training seeds that the compared cells were begun with, by cell; None where nothing was declared."""
    path = out / DECLARED
    return read_json(path).get("seeds") if path.is_file() else None


def declaration(settings: StudySettings) -> dict[str, Any]:
    """declared.json: everything that decides what is compared, defaults filled in."""
    said = {"margin_points", "confidence", "data_seed", "contrasts"}
    values = settings.model_dump(mode="json", include=said | ({"interactions"} if settings.interactions else set()))
    values["tasks"] = {
        row.task: row.model_dump(mode="json", exclude={"task"}, exclude_none=True) for row in settings.tasks
    }
    if settings.comparators.names:
        away = {"teacher": {"url", "api_key_env"}}
        values["comparators"] = settings.comparators.model_dump(mode="json", exclude=away, exclude_none=True)
    if settings.comparators.equal_cost is not None:  # a size that is added later would be another control
        values["comparators"]["equal_cost"]["sizes"] = sorted(size.name for size in settings.ladder)
    rows = [*settings.contrasts, *settings.interactions]
    names = [arm for row in rows for name in (row.treatment, row.control) for arm in settings.arms_behind(name)]
    names += [size.after.arm for size in settings.students if size.after is not None]
    arms = [settings.arm_row(name) for name in dict.fromkeys(names)]
    values["arms"] = {
        arm.id: arm.model_dump(mode="json", exclude={"name", "students", "seeds"}, exclude_none=True) for arm in arms
    }
    values["traces"] = {row.name: _pairs(row) for row in map(settings.traces_of, arms)}
    values["students"] = {
        size.name: size.model_dump(mode="json", include={"student", "after"}, exclude_none=True)
        for size in settings.students
    }
    values["seeds"] = {
        f"{size.name}-{arm.id}": seeds for size in settings.students for arm in arms if (seeds := arm.seeds_in(size))
    }
    return values


def _pairs(row: TraceRow) -> dict[str, Any]:
    """A set of pairs but for where its teacher answers, and what the plan expects of it."""
    values = row.model_dump(mode="json", exclude={"name", "expected_tokens", "expected_pairs"}, exclude_none=True)
    if isinstance(values.get("teacher"), dict):
        values["teacher"] = {name: value for name, value in values["teacher"].items() if name not in _ELSEWHERE}
    return values


def _still(declared: Any, now: Any) -> Any:
    """What there still is of seeds to which more may have been added; anything else as it is now."""
    return [one if one in now else None for one in declared] if isinstance(declared, list) and now else now
