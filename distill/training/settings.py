"""Settings of one student's training."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from distill.errors import InputError
from distill.packing.arms import Answers, Arm, Sampling
from distill.packing.budget import Match
from distill.packing.chat import ModeSignal
from distill.packing.loss_weights import LossWeight
from distill.packing.plan import BatchUnit
from distill.packing.selection import Select
from distill.settings import Settings
from distill.training.sizes import SIZES, default_learning_rate

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
Schedule = Literal["cosine", "wsd", "linear", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "on", "off"]
ActivationCheckpointing = Literal["off", "selective", "full"]
Name = Annotated[str, Field(min_length=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]

# At alpha 32 the best rate hardly depends on the rank and is about ten times that of training all weights
# (Schulman et al., "LoRA Without Regret", 2025).
LORA_ALPHA, LORA_RATE = 32.0, 10


class Lora(NamedTuple):
    """Adapters to train instead of the weights."""

    rank: int
    alpha: float
    targets: tuple[str, ...] | None  # names of linear layers; None: all of the blocks
    merge: bool


class PhaseSettings(Settings):
    """One phase of a curriculum: every pair is shown in each of its epochs, a share of them with reasoning."""

    reasoning: float = Field(ge=0, le=1, description="share of the pairs shown with reasoning: 0 is ift, 1 reasoning")
    epochs: int = Field(1, ge=1)
    learning_rate: float | None = Field(None, gt=0, description="peak of this phase; the student's own if not given")


class TrainSettings(Settings):
    """Everything the trained weights depend on, besides the traces. Lengths and budgets are in tokens.

    Lists may be given as a flag writes them, with commas.
    """

    student: str = Field(description="a from-scratch size (tiny, small), a Hugging Face folder, or a Hub id")
    arm: str = "reasoning"
    phases: tuple[PhaseSettings, ...] | None = Field(None, min_length=1, description="a curriculum instead of an arm")
    answers: Answers = "teacher"
    keep: Literal["all", "verified"] = Field("all", description="verified: pairs of which both answers are right")
    select: Select = Field("random", description="of arms with both modes, which pairs get reasoning first")
    sampling: Sampling = Field(
        "shuffled", description="stratified: every step of examples has the arm's share of each mode"
    )
    seed: int = Field(0, ge=0, lt=2**31)

    packed: bool = True
    row_tokens: int = Field(4096, ge=8, description="tokens of a packed row; the longest document that is kept")
    batch: int = Field(32, ge=1, description="size of an optimizer step")
    batch_unit: BatchUnit = "examples"
    epochs: int = Field(1, ge=1)
    tokens: int | None = Field(None, ge=1, description="train until this many input tokens instead of whole epochs")
    match: Match = Field("samples", description="until as many steps, tokens or flops as arm reasoning in these epochs")
    balance_ranks: int | None = Field(
        None, ge=1, description="with a batch of tokens: so many rows in a row of a step cost the same; the devices"
    )

    loss_weight: LossWeight = Field("token", description="what weighs the same; answer: reasoning and answer by half")
    z_loss: float = Field(0.0, ge=0, description="this times lse^2 is added to the loss of a token")
    distillation_weight: float = Field(
        0.0, ge=0, le=1, description="share of the divergence from the teacher's distributions; else cross-entropy"
    )
    divergence: Divergence = "forward_kl"

    learning_rate: float | tuple[float, ...] = Field(
        description="peak; 1e-5, or a from-scratch size's own, if not given; of several the best on validation"
    )
    reasoning_learning_rate: float | None = Field(
        None, gt=0, description="peak of the phase of sequential:R with reasoning; learning_rate if not given"
    )
    schedule: Schedule = "cosine"
    warmup_steps: int = Field(0, ge=0)
    decay_steps: int = Field(0, ge=0, description="length of the decay of schedule wsd")
    final_learning_rate_ratio: float = Field(
        0.1, ge=0, le=1, description="floor of the schedule, as a share of the peak"
    )
    one_schedule: bool = Field(False, description="one schedule over all phases of an arm, not one for each")
    weight_decay: float = Field(0.0, ge=0)
    adam_betas: tuple[Beta, Beta] = (0.9, 0.95)
    gradient_clip: float = Field(1.0, gt=0)

    validation: float = Field(0.0, ge=0, lt=1, description="share of the pairs that is held out, by a hash")
    validation_epochs: int = Field(1, ge=1, description="validate every so many epochs, and after the last step")
    validation_steps: int | None = Field(None, ge=1, description="validate every so many steps instead")
    weights: Literal["last", "best"] = Field("last", description="saved: the last, or those of lowest validation loss")

    lora_rank: int | None = Field(None, ge=1, description="train adapters of this rank instead of the weights")
    lora_alpha: float | None = Field(None, gt=0, description="adapters count alpha / rank; 32 if not given")
    lora_targets: tuple[Name, ...] | None = Field(
        None, min_length=1, description="all-linear, or layers: q_proj,v_proj"
    )
    merge: bool = Field(False, description="save the whole model with its adapters added in, and them beside it")

    precision: Precision = "auto"
    compile: Compile = Field("auto", description="torch.compile of each layer; auto: on GPUs")
    vocab_size: int = Field(512, ge=262, description="entries of a from-scratch student's tokenizer")
    think_tags: tuple[Name, Name] | None = Field(
        None, description="what marks reasoning, for tokenizers without <think>"
    )
    mode_signal: ModeSignal = Field("none", description="prompt: the question ends with the mode that is wanted")

    # What was given, as it is meant.

    @model_validator(mode="before")
    @classmethod
    def _phases_or_an_arm(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("phases") is None:
            arm = values.get("arm")
            return values | {"arm": str(Arm.parse(arm))} if isinstance(arm, str) else values
        if values.get("arm", "phases") != "phases":
            raise InputError(f"phases and arm {values['arm']!r} both say what the student is shown; give one of them")
        if values.get("epochs", 1) != 1:
            raise InputError("epochs: each of the phases says its own; leave this one out")
        return values | {"arm": "phases"}

    @model_validator(mode="before")
    @classmethod
    def _learning_rate_of_the_student(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("learning_rate") is None:
            rate = default_learning_rate(str(values.get("student")))
            return values | {"learning_rate": rate * (LORA_RATE if values.get("lora_rank") is not None else 1)}
        return values

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _one_learning_rate_or_several(cls, given: Any) -> Any:
        given = given.split(",") if isinstance(given, str) else given
        try:
            rates = tuple(float(part) for part in (given if isinstance(given, list | tuple) else [given]))
        except (TypeError, ValueError):
            rates = ()
        if not rates or not all(0 < rate < float("inf") for rate in rates):
            raise ValueError("expected a number above 0, or several of them to choose from")
        if len(set(rates)) < len(rates):
            raise ValueError("expected learning rates that differ from each other")
        return rates if len(rates) > 1 else rates[0]

    @field_validator("think_tags", mode="before")
    @classmethod
    def _tags_of_a_flag(cls, given: Any) -> Any:
        tags = given.split(",") if isinstance(given, str) else given
        if tags is not None and (not isinstance(tags, list | tuple) or len(tags) != 2):
            raise ValueError("expected two texts, an opening and a closing one, such as '<think>,</think>'")
        return tags

    @field_validator("lora_targets", mode="before")
    @classmethod
    def _targets_of_a_flag(cls, given: Any) -> Any:
        if given == "all-linear":
            return None
        return [name.strip() for name in given.split(",")] if isinstance(given, str) else given

    # What does not go together.

    @model_validator(mode="after")
    def _arm_fits(self) -> "TrainSettings":
        if self.select != "random" and not self.shown.chooses:
            raise InputError(
                f"select {self.select} says which pairs of a mix get reasoning, and arm {self.arm} mixes nothing; leave "
                "it out"
            )
        if self.sampling == "stratified":
            if self.shown.kind == "sequential" or not self.shown.chooses:
                raise InputError(
                    f"sampling stratified spreads the modes of a mix over its steps, and arm {self.arm} mixes nothing; "
                    "leave it out"
                )
            if self.batch_unit == "tokens":
                raise InputError("sampling stratified needs steps of examples: batch_unit examples, found tokens")
        if self.reasoning_learning_rate is not None and not (self.shown.kind == "sequential" and self.shown.chooses):
            raise InputError(
                "reasoning_learning_rate is that of the second phase of sequential:R, with R between 0 and 1, and arm "
                f"{self.arm} has none; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _batch_fits(self) -> "TrainSettings":
        if self.match != "samples" and self.tokens is not None:
            raise InputError(
                f"match {self.match} and tokens={self.tokens} both say when training ends; give one of them"
            )
        if self.batch_unit == "tokens" and self.packed and self.batch < self.row_tokens:
            raise InputError(f"a batch of {self.batch} tokens is smaller than a row of row_tokens={self.row_tokens}")
        return self

    @model_validator(mode="after")
    def _loss_fits(self) -> "TrainSettings":
        if self.distillation_weight == 0 and self.divergence != "forward_kl":
            raise InputError(f"divergence {self.divergence} needs a distillation_weight above 0")
        if self.distillation_weight > 0 and self.z_loss > 0:
            raise InputError("z_loss is a part of cross-entropy, which rows with a teacher have not; give one of them")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> "TrainSettings":
        if self.schedule == "wsd" and self.decay_steps == 0:
            raise InputError("schedule wsd needs decay_steps of at least 1")
        if self.schedule != "wsd" and self.decay_steps > 0:
            raise InputError(f"schedule {self.schedule} has no decay_steps, those are of wsd; leave them out")
        if self.one_schedule and self.shown.kind not in ("sequential", "phases"):
            raise InputError(
                f"one_schedule: arm {self.arm} has one phase, whose schedule is the only one; leave it out"
            )
        of_phases = [self.reasoning_learning_rate, *(phase.learning_rate for phase in self.phases or ())]
        has_own = any(rate is not None for rate in of_phases)
        if self.one_schedule and has_own:
            raise InputError("one_schedule: a phase has a learning rate of its own; give one of them")
        if isinstance(self.learning_rate, tuple):
            if self.validation == 0:
                raise InputError("learning_rate: choosing one of several needs a share of pairs in validation")
            if has_own:
                raise InputError("learning_rate: several to choose from, and a phase with its own; give one of them")
        return self

    @model_validator(mode="after")
    def _validation_fits(self) -> "TrainSettings":
        if self.validation == 0 and (self.weights == "best" or self.validation_steps or self.validation_epochs > 1):
            raise InputError("weights best, validation_steps and validation_epochs need a share of pairs in validation")
        return self

    @model_validator(mode="after")
    def _lora_fits(self) -> "TrainSettings":
        given = [n for n in ("lora_alpha", "lora_targets", "merge") if getattr(self, n) not in (None, False)]
        if self.lora_rank is None and given:
            raise InputError(f"{given[0]}: there are no adapters without lora_rank")
        if self.lora_rank is not None and self.student in SIZES:
            raise InputError(f"lora_rank: student {self.student} starts from scratch, so there is nothing to adapt")
        return self

    @model_validator(mode="after")
    def _think_tags_fit(self) -> "TrainSettings":
        if self.think_tags is not None and self.student in SIZES:
            raise InputError(f"think_tags: student {self.student} has its own, <think> and </think>; leave them out")
        return self

    # What follows from them.

    @property
    def shown(self) -> Arm:
        """What the student is shown, and in what order."""
        return Arm.of_phases((p.reasoning, p.epochs) for p in self.phases) if self.phases else Arm.parse(self.arm)

    @property
    def candidates(self) -> "tuple[TrainSettings, ...]":
        """The same settings with each of several learning rates, the smallest first; themselves with one."""
        if not isinstance(self.learning_rate, tuple):
            return (self,)
        return tuple(self.model_copy(update={"learning_rate": rate}) for rate in sorted(self.learning_rate))

    @property
    def lora(self) -> Lora | None:
        """The adapters to train; None: all weights are trained."""
        if self.lora_rank is None:
            return None
        return Lora(self.lora_rank, self.lora_alpha or LORA_ALPHA, self.lora_targets, self.merge)

    def peak_learning_rate(self, phase: int) -> float:
        """Of the phase of that number, from 0; of `sequential` number 1 is the one with reasoning."""
        own = self.phases[phase].learning_rate if self.phases else self.reasoning_learning_rate if phase == 1 else None
        return own or self.learning_rate

    def for_ranks(self, world: int) -> "TrainSettings":
        """With `balance_ranks` as the plan has it: `world` if it was not given; None where rows are cut inside a step's
        examples or are documents, so that there the number of devices does not name a student."""
        planned = self.batch_unit == "tokens" and self.packed
        return self.model_copy(update={"balance_ranks": (self.balance_ranks or world) if planned else None})


class RunOptions(Settings):
    """How a training runs on this machine: none of it changes the result."""

    out: Path
    documents: Path | None = Field(None, description="where tokenized documents are kept, for several trainings")
    threads: int | None = Field(None, ge=1)
    checkpoint_seconds: float = Field(60.0, ge=0, description="least time between two checkpoints")
    checkpoint_steps: int | None = Field(None, ge=1, description="checkpoint every so many steps instead")
    tensorboard: bool = True
    cpu_offload: bool = Field(False, description="keep weights and moments in the CPU's memory, on GPUs only")
    activation_checkpointing: ActivationCheckpointing = Field(
        "off",
        description="what is run again in the backward for less memory: selective, what is cheap; full, every layer",
    )
