"""Settings of one student's evaluation."""

from typing import Literal

from pydantic import Field

from distill.settings import Settings
from distill.traces.trace import Mode


class Questions(Settings):
    """Which questions of which task (`add`, `gsm8k:PATH`): `count` of a split, drawn with `seed`."""

    task: str
    count: int = Field(300, ge=1)
    split: Literal["train", "validation", "test"] = "test"
    seed: int = Field(0, ge=0, lt=2**31)


class EvaluateSettings(Settings):
    """Everything the grades depend on, besides the student."""

    questions: list[Questions] = Field(min_length=1)
    mode: Mode | None = Field(None, description="what a student with a mode signal is asked for")
    engine: Literal["vllm", "transformers"] = "vllm"
    max_tokens: int = Field(512, ge=1, description="generation limit; an answer that hits it is unfinished, and wrong")
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**31)
