"""Settings of one student's training."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.errors import InputError
from distill.packing.arms import Arm
from distill.settings import Settings
from distill.training.sizes import default_learning_rate

Tag = Annotated[str, Field(min_length=1)]


class PhaseSettings(Settings):
    """One phase of a curriculum: every pair is shown in each of its epochs, a share of them with reasoning."""

    reasoning: float = Field(ge=0, le=1, description="share of the pairs shown with reasoning: 0 is ift, 1 reasoning")
    epochs: int = Field(1, ge=1)
    learning_rate: float | None = Field(None, gt=0, description="peak of this phase; the student's own if not given")


class TrainSettings(Settings):
    """Everything the trained weights depend on, besides the traces. Lengths and budgets are in tokens."""

    student: str = Field(description="a from-scratch size (tiny, small), a Hugging Face folder, or a Hub id")
    arm: str = "reasoning"
    phases: tuple[PhaseSettings, ...] | None = Field(None, min_length=1, description="a curriculum instead of an arm")
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

    validation: float = Field(0.0, ge=0, lt=1, description="share of the pairs that is held out, by a hash")
    validation_epochs: int = Field(1, ge=1, description="validate every so many epochs, and after the last step")
    validation_steps: int | None = Field(None, ge=1, description="validate every so many steps instead")
    keep: Literal["last", "best"] = Field("last", description="the last weights, or those of lowest validation loss")

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    vocab_size: int = Field(512, ge=262, description="entries of a from-scratch student's tokenizer")
    think_tags: tuple[Tag, Tag] | None = Field(None, description="what marks reasoning, for tokenizers without <think>")

    @model_validator(mode="before")
    @classmethod
    def _learning_rate_of_the_student(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("learning_rate") is None:
            return values | {"learning_rate": default_learning_rate(str(values.get("student")))}
        return values

    @model_validator(mode="before")
    @classmethod
    def _phases_are_the_arm(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("phases") is None:
            return values
        if values.get("arm", "phases") != "phases":
            raise InputError(f"phases and arm {values['arm']!r} both say what the student is shown; give one of them")
        if values.get("epochs", 1) != 1:
            raise InputError("epochs: each of the phases says its own; leave this one out")
        return values | {"arm": "phases"}

    @model_validator(mode="before")
    @classmethod
    def _arm_reads(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("arm"), str) and values.get("phases") is None:
            return values | {"arm": str(Arm.parse(values["arm"]))}
        return values

    @property
    def shown(self) -> Arm:
        """What the student is shown, and in what order."""
        return Arm.of_phases((p.reasoning, p.epochs) for p in self.phases) if self.phases else Arm.parse(self.arm)

    def peak_learning_rate(self, phase: int) -> float:
        """Of the phase of that number, from 0."""
        return (self.phases and self.phases[phase].learning_rate) or self.learning_rate

    @model_validator(mode="after")
    def _schedule_fits(self) -> "TrainSettings":
        if self.schedule == "wsd" and self.decay_steps == 0:
            raise ValueError("schedule wsd needs decay_steps of at least 1")
        if self.batch_unit == "tokens" and self.packed and self.batch < self.row_tokens:
            raise ValueError(f"a batch of {self.batch} tokens is smaller than a row of row_tokens={self.row_tokens}")
        if self.validation == 0 and (self.keep == "best" or self.validation_steps or self.validation_epochs > 1):
            raise InputError("keep best, validation_steps and validation_epochs need a share of pairs in validation")
        return self


class RunOptions(Settings):
    """How a training runs on this machine: none of it changes the result."""

    out: Path
    threads: int | None = Field(None, ge=1)
    checkpoint_seconds: float = Field(60.0, ge=0, description="least time between two checkpoints")
    checkpoint_steps: int | None = Field(None, ge=1, description="checkpoint every so many steps instead")
    tensorboard: bool = True
    activation_checkpointing: Literal["off", "full"] = Field(
        "off",
        description="full: keep a layer's input only and run it again in the backward; less memory, a third more work",
    )
