"""What several tests of the study share."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

SCHEMA = Path(__file__).parents[2] / "docs" / "results-schema.md"
_NAMED = {"tasks", "metrics", "output_tokens"}  # their keys are names: of tasks, of metrics, of modes


@pytest.fixture(scope="session")
def undocumented() -> Callable[[object], set[str]]:
    """undocumented(results): the keys anywhere in it that docs/results-schema.md does not name. Of `preset`, whose fields are
    those of a preset, only the name."""
    text = SCHEMA.read_text(encoding="utf-8")
    known = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", text))))

    def keys(value: object, *, names: bool = False) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keys, value))
        if not isinstance(value, dict):
            return set()
        below = (keys(v, names=k in _NAMED and isinstance(v, dict)) for k, v in value.items() if k != "preset")
        return (set() if names else set(value)).union(*below)

    return lambda results: keys(results) - known
