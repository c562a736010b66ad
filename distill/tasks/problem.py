"""A question and its gold answer: what every other room passes around."""

import hashlib
from dataclasses import dataclass
from typing import Literal

AnswerFormat = Literal["open", "choice", "labels", "extraction"]
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Problem:
    """One question."""

    task: str
    prompt: str
    gold: str
    answer_format: AnswerFormat

    @property
    def id(self) -> str:
        """`task/` and a hash of the prompt: the same question has the same id wherever it comes from."""
        return f"{self.task}/{hashlib.sha256(self.prompt.encode()).hexdigest()[:16]}"
