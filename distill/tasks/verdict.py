"""What a checker says of one answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Verdict:
    """`failure`: the checker came to no end, so the answer does not count as correct."""

    correct: bool
    note: str = ""  # one line, printable
    failure: Literal["time", "memory", "crash"] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)  # what else was counted, as metrics need it


Checker = Callable[[str, str], Verdict]  # (gold, answer)
