"""What a study declares before it runs, kept beside its results: nobody moves the margin once the answers are in."""

from pathlib import Path

from distill.artifact import changes, read_json, write_json
from distill.errors import InputError
from distill.study.settings import StudySettings

DECLARED = "declared.json"


def declare(settings: StudySettings, out: Path) -> None:
    """Write the declaration into the study's folder at its first start.

    At later starts raises InputError, listing what changed, unless it is still the same.
    """
    said = {"margin_points", "confidence", "data_seed", "contrasts"} | (
        {"interactions"} if settings.interactions else set()
    )
    values = settings.model_dump(mode="json", include=said)
    values["tasks"] = {row.task: {"train": row.train, "test": row.test} for row in settings.tasks}
    if settings.comparators.names:
        # A teacher is the same wherever it answers.
        elsewhere = {"teacher": {"url", "api_key_env"}}
        values["comparators"] = settings.comparators.model_dump(mode="json", exclude=elsewhere, exclude_none=True)
    path = out / DECLARED
    if not path.exists():
        write_json(path, values)
        return
    differing = changes(read_json(path), values)
    if differing:
        raise InputError(
            f"{out}: this study was declared otherwise before it ran ({'; '.join(differing)}); choose another --out"
        )
