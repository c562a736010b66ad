"""Settings of one student's evaluation."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distill.evaluation.answers import Think
from distill.serve.judge import MOST_JUDGES, JudgeSettings
from distill.settings import Settings
from distill.tasks.questions import QuestionFile
from distill.traces.trace import Mode

MAX_TOKENS = 512  # of an answer, where neither the user nor the benchmark says otherwise
COUNT = 300  # questions of a task, or as many as there are, where nothing is said
UP_TO: Literal["up to 300"] = "up to 300"
Budget = Annotated[int, Field(ge=0)] | None


class Questions(Settings):
    """Which questions of which task (`add`, `gsm8k:PATH`): `count` of a split, drawn with `seed`."""

    task: str
    data: Path | QuestionFile | None = None  # the task's rows, or questions of your own under a new name
    count: Annotated[int, Field(ge=1)] | Literal["up to 300"] | None = UP_TO  # None: all there are
    split: Literal["train", "validation", "test", "all"] = "test"
    seed: int = Field(0, ge=0, lt=2**31)


class EvaluateSettings(Settings):
    """Everything the grades depend on, besides the student."""

    questions: list[Questions] = Field(min_length=1)
    mode: Mode | None = Field(None, description="what a student with a mode signal is asked for")
    engine: Literal["vllm", "transformers"] = "vllm"
    max_tokens: int | None = Field(
        None, ge=1, description="generation limit, the benchmark's or 512 if None; an answer that hits it is wrong"
    )
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**31)
    samples: int = Field(1, ge=1, le=1024, description="answers to each question")
    think: Think = Field("free", description="whether a think block is opened, or closed, for the student")
    thinking_budgets: tuple[Budget, ...] = Field(
        (None,), min_length=1, description="of thinking tokens; None: no limit"
    )
    few_shot: int | None = Field(None, ge=0, description="ask as text, after so many examples")
    score: Literal["generated", "loglikelihood"] = Field(
        "generated",
        description="loglikelihood: that of the options of multiple choice as well, in a section of its own",
    )

    judges: tuple[JudgeSettings, ...] = Field((), max_length=MOST_JUDGES, description="who judges what needs a judge")

    @field_validator("judges", mode="before")
    @classmethod
    def _judges_of_flags(cls, given: Any) -> Any:
        return [JudgeSettings.parse(one) if isinstance(one, str) else one for one in given]

    @model_validator(mode="after")
    def _fits(self) -> "EvaluateSettings":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples: {self.samples} greedy answers would all be the same; give a temperature above 0"
            )
        if len(set(self.thinking_budgets)) < len(self.thinking_budgets):
            raise ValueError("thinking_budgets: one is named twice")
        if self.limits_thinking and self.think == "off":
            raise ValueError("thinking_budgets: with think off there is no thinking to limit")
        if self.few_shot is not None:
            for name, used in {
                "think": self.think != "free",
                "thinking_budgets": self.limits_thinking,
                "mode": self.mode is not None,
            }.items():
                if used:
                    raise ValueError(f"{name}: few-shot questions are plain text, which has no think blocks or modes")
        more = self.samples > 1 or self.limits_thinking or self.few_shot is not None or self.score == "loglikelihood"
        if self.engine == "transformers" and more:
            raise ValueError("engine transformers gives one answer a question and nothing more; use vllm")
        return self

    @property
    def limits_thinking(self) -> bool:
        return self.thinking_budgets != (None,)

    def of_recipe(self) -> dict[str, Any]:
        """The settings for a key; those that came later only where they are used, and judges as part of the grading."""
        values = self.model_dump(mode="json", exclude_none=True, exclude={"judges"})
        for name in ("samples", "think", "thinking_budgets", "score"):
            if getattr(self, name) == type(self).model_fields[name].default:
                del values[name]
        return values
