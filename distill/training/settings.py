"""Settings of one student's training."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distill.packing.arms import Arm
from distill.settings import Settings
from distill.training.sizes import default_learning_rate

Tag = Annotated[str, Field(min_length=1)]


class TrainSettings(Settings):
    """Everything the trained weights depend on, besides the traces. Lengths and budgets are in tokens."""

    student: str = Field(description="a from-scratch size (tiny, small), a Hugging Face folder, or a Hub id")
    arm: str = "reasoning"
    answers: Literal["teacher", "stripped", "gold"] = "teacher"
    seed: int = Field(0, ge=0, lt=2**31)

    packed: bool = True
    row_tokens: int = Field(4096, ge=8, description="tokens of a packed row; the longest document that is kept")
    batch: int = Field(32, ge=1, description="size of an optimizer step")
    batch_unit: Literal["examples", "tokens"] = "examples"
    epochs: int = Field(1, ge=1)
    tokens: int | None = Field(None, ge=1, description="train until this many input tokens instead of whole epochs")

    learning_rate: float = Field(gt=0, description="peak; 1e-5, or a from-scratch size's own, if not given")
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    decay_steps: int = Field(0, ge=0, description="length of the decay of schedule wsd")
    final_learning_rate_ratio: float = Field(
        0.1, ge=0, le=1, description="floor of the schedule, as a share of the peak"
    )
    weight_decay: float = Field(0.0, ge=0)
    adam_betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float = Field(1.0, gt=0)

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    vocab_size: int = Field(512, ge=262, description="entries of a from-scratch student's tokenizer")
    think_tags: tuple[Tag, Tag] | None = Field(None, description="what marks reasoning, for tokenizers without <think>")

    @model_validator(mode="before")
    @classmethod
    def _learning_rate_of_the_student(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("learning_rate") is None:
            return values | {"learning_rate": default_learning_rate(str(values.get("student")))}
        return values

    @field_validator("arm")
    @classmethod
    def _arm_reads(cls, value: str) -> str:
        return str(Arm.parse(value))

    @model_validator(mode="after")
    def _schedule_fits(self) -> "TrainSettings":
        if self.schedule == "wsd" and self.decay_steps == 0:
            raise ValueError("schedule wsd needs decay_steps of at least 1")
        if self.batch_unit == "tokens" and self.packed and self.batch < self.row_tokens:
            raise ValueError(f"a batch of {self.batch} tokens is smaller than a row of row_tokens={self.row_tokens}")
        return self


class RunOptions(Settings):
    """How a training runs on this machine: none of it changes the result."""

    out: Path
    threads: int | None = Field(None, ge=1)
    checkpoint_seconds: float = Field(60.0, ge=0, description="least time between two checkpoints")
    checkpoint_steps: int | None = Field(None, ge=1, description="checkpoint every so many steps instead")
    tensorboard: bool = True
