"""What a study declares before it runs, kept beside its results: nobody moves the margin once the answers are in."""

from pathlib import Path
from typing import Any

from distill.artifact import read_json, write_json
from distill.errors import InputError
from distill.study.settings import StudySettings

DECLARED = "declared.json"


def declare(settings: StudySettings, out: Path) -> None:
    """Write the declaration into the study's folder at its first start.

    At later starts raises InputError, listing what changed, unless it is still the same.
    """
    values = settings.model_dump(mode="json", include={"margin_points", "confidence", "data_seed", "contrasts"})
    values["tasks"] = {row.task: {"train": row.train, "test": row.test} for row in settings.tasks}
    path = out / DECLARED
    if not path.exists():
        write_json(path, values)
        return
    old, new = _leaves(read_json(path)), _leaves(values)
    changes = [
        f"{name} {old.get(name, '(none)')} -> {new.get(name, '(none)')}"
        for name in sorted(old.keys() | new.keys())
        if name not in old or name not in new or old[name] != new[name]
    ]
    if changes:
        raise InputError(
            f"{out}: this study was declared otherwise before it ran ({'; '.join(changes)}); choose another --out"
        )


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Every value that holds no others, by its path: {"contrasts.0.control": "ift"}."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if parts is None:
        return {name: value}
    return {k: v for key, part in parts for k, v in _leaves(part, f"{name}.{key}" if name else str(key)).items()}
