"""What `distill traces generate` is told."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from distill.errors import InputError
from distill.settings import Settings
from distill.tasks.problem import Split
from distill.tasks.questions import QuestionFile
from distill.traces.teachers.settings import EndpointSettings, TeacherSettings, VllmSettings

__all__ = ["EndpointSettings", "GenerateOptions", "GenerateSettings", "VllmSettings"]

Gold = Literal["grade", "answer", "shown"]
Shard = tuple[int, int]


class GenerateSettings(Settings):
    """Which questions are asked, and whom: all that the trace set depends on.

    `gold` says what a question's gold answer is for: `grade` checks both answers with it; `answer` makes it the IFT
    answer, which is then not asked for; `shown` does that too and shows it to the teacher that is to reason.
    """

    # How many problems of each, in this order, None for all there are; "gsm8k:PATH" for files, or a name in `data`.
    tasks: dict[str, int | None] = Field(min_length=1)
    data: dict[str, QuestionFile] = Field({})  # files of questions by name; not named in `tasks`, all of them are asked
    split: Split | Literal["all"] | None = None  # None: train of a task, all of a file of questions
    seed: int = Field(0, ge=0, lt=2**31)  # of the choice of problems and of the teacher's sampling
    samples: int = Field(1, ge=1, le=1024)  # pairs of each question
    gold: Gold = "grade"
    teacher: TeacherSettings = "solver"
    shard: Shard | None = None  # (2, 8): the second of eight parts of the questions

    @model_validator(mode="before")
    @classmethod
    def _files_are_asked(cls, values: Any) -> Any:
        misspelt = isinstance(values, dict) and values.keys() - cls.model_fields.keys()  # one may be meant to be these
        if isinstance(values, dict) and not (values.get("tasks") or values.get("data") or misspelt):
            raise InputError("no questions: give --tasks, such as add=1000, or --data FILE")
        if (
            isinstance(values, dict)
            and isinstance(values.get("data"), dict)
            and isinstance(values.get("tasks", {}), dict)
        ):
            tasks = values.get("tasks", {})
            values = values | {"tasks": tasks | {name: None for name in values["data"] if name not in tasks}}
        return values

    @field_validator("shard", mode="before")
    @classmethod
    def _parse_shard(cls, value: Any) -> Any:
        part, slash, parts = value.partition("/") if isinstance(value, str) else ("", "", "")
        if isinstance(value, str) and not slash:
            raise ValueError("expected I/N with I from 1 to N")
        return (part, parts) if slash else value

    @field_validator("shard")
    @classmethod
    def _one_of_them(cls, value: Shard | None) -> Shard | None:
        if value is not None and not 1 <= value[0] <= value[1]:
            raise ValueError("expected I/N with I from 1 to N")
        return value

    @model_validator(mode="after")
    def _both_modes_captured(self) -> "GenerateSettings":
        if self.gold != "grade" and self.teacher != "solver" and self.teacher.top_k is not None:
            raise ValueError("top_k needs both answers from the teacher; expected gold to be 'grade'")
        return self

    def split_of(self, name: str) -> Split | Literal["all"]:
        """Which part of a task, or of a file of questions, is asked."""
        return self.split or ("all" if name in self.data else "train")


class GenerateOptions(Settings):
    """How far a run goes. No part of the key: where it stops, the same command with more goes on."""

    max_cost_usd: float | None = Field(None, ge=0)  # no more is asked once this is spent
    max_total_tokens: int | None = Field(None, ge=0)  # the same of tokens, prompts included
    partial: bool = False  # a run that ends early writes the trace set of what there is
