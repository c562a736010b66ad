"""A study as one YAML file."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from distill.errors import unknown_name
from distill.flops import hardware
from distill.packing.arms import Answers, Arm
from distill.packing.budget import Match
from distill.settings import Settings, validate
from distill.tasks import get_task
from distill.training.settings import Precision, Schedule, TrainSettings
from distill.training.sizes import check_student


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("a value appears twice")
    return values


Seed = Annotated[int, Field(ge=0, lt=2**31)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]


class TaskShare(Settings):
    """How many questions of a task are trained on and how many are asked."""

    task: str
    train: int = Field(ge=1)
    test: int = Field(ge=1)


class StudentRow(Settings):
    """One size of student, its peak learning rate (per token of nothing but itself), and its training seeds."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._]*$")
    student: str
    learning_rate: float = Field(gt=0)
    seeds: Seeds


class ArmRow(Settings):
    """One arm. `match: samples` shows every arm the same questions equally often, as both published studies do; `steps`,
    `tokens` and `flops` train it until it has as many as the arm `reasoning` has with the same answers."""

    arm: str
    answers: Answers = "teacher"
    match: Match = "samples"
    students: list[str] | None = Field(None, min_length=1, description="sizes that have this arm; all when left out")
    seeds: Seeds | None = Field(None, description="training seeds; the size's own when left out")

    @property
    def name(self) -> str:
        parts = [str(Arm.parse(self.arm)).replace(":", "")]
        parts += [self.answers] if self.answers != "teacher" else []
        parts += [f"{self.match}_matched"] if self.match != "samples" else []
        return "-".join(parts)

    def seeds_in(self, size: StudentRow) -> list[int]:
        """The training seeds of this arm in a size; none where the size does not have it."""
        if self.students is not None and size.name not in self.students:
            return []
        return self.seeds if self.seeds is not None else size.seeds


class ContrastRow(Settings):
    """A comparison declared before the run: two arms by name, in every size that has both.

    The one marked `verdict` for a size decides what the report says first.
    """

    treatment: str = "reasoning"
    control: str = "ift"
    verdict_size: str | None = None


class TrainingShape(Settings):
    """How every student is trained; see `distill train --help` for each field."""

    row_tokens: int = 4096
    batch: int = 32
    epochs: int = 1
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    decay_steps: int = 0
    final_learning_rate_ratio: float = 0.1
    weight_decay: float = 0.0
    precision: Precision = "auto"
    vocab_size: int = 512


class EvaluationShape(Settings):
    """How every student is asked."""

    max_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.0, ge=0)


class ServingShape(Settings):
    """How every student is put under load. The highest concurrency prices an answer."""

    concurrencies: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 8, 32), min_length=1)
    requests: int = Field(64, ge=1)
    warmup_requests: int = Field(4, ge=0)
    kv_cache_gib: int | None = Field(None, ge=1, description="of each server; vLLM's own choice when left out")


class StudySettings(Settings):
    """Everything a study's results depend on."""

    title: str
    question: str
    teacher: Literal["solver"] = "solver"
    data_seed: Seed = 0
    tasks: list[TaskShare] = Field(min_length=1)
    students: list[StudentRow] = Field(min_length=1)
    arms: list[ArmRow] = Field(min_length=1)
    training: TrainingShape = TrainingShape()
    evaluation: EvaluationShape = EvaluationShape()
    serving: ServingShape = ServingShape()
    contrasts: list[ContrastRow] = Field(min_length=1)
    margin_points: float = Field(gt=0, description="the smallest gain, in points, that would be worth having")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    hardware: str

    @model_validator(mode="after")
    def _names_agree(self) -> "StudySettings":
        for row in self.tasks:
            get_task(row.task)
        for row in self.students:
            check_student(row.student)
        hardware(self.hardware)
        sizes, arms = [s.name for s in self.students], [a.name for a in self.arms]
        for kind, names in (("students", sizes), ("arms", arms), ("tasks", [t.task for t in self.tasks])):
            if len(set(names)) < len(names):
                raise ValueError(f"{kind}: a name appears twice in {', '.join(names)}")
        for arm in self.arms:
            for size in arm.students or []:
                if size not in sizes:
                    raise unknown_name("student in arms", size, sizes)
        for contrast in self.contrasts:
            for name in (contrast.treatment, contrast.control):
                if name not in arms:
                    raise unknown_name("arm in contrasts", name, arms)
            if contrast.verdict_size is not None and contrast.verdict_size not in sizes:
                raise unknown_name("verdict_size", contrast.verdict_size, sizes)
            self._require_pairs(contrast)
        if sum(c.verdict_size is not None for c in self.contrasts) != 1:
            raise ValueError("contrasts: exactly one must have a verdict_size, the size its verdict is read from")
        for size in self.students:
            for arm in self.arms:
                for seed in arm.seeds_in(size):
                    self.train_settings(size, arm, seed)
        return self

    def _require_pairs(self, contrast: ContrastRow) -> None:
        """A contrast needs a seed that both arms have: in the size of its verdict, or else in any."""
        treatment, control = (
            next(arm for arm in self.arms if arm.name == name) for name in (contrast.treatment, contrast.control)
        )
        paired = [s.name for s in self.students if set(treatment.seeds_in(s)) & set(control.seeds_in(s))]
        where = contrast.verdict_size or "any size"
        if not paired or contrast.verdict_size not in (None, *paired):
            raise ValueError(
                f"contrasts: {contrast.treatment} and {contrast.control} have no training seed in common in {where}"
            )

    def train_settings(self, size: StudentRow, arm: ArmRow, seed: int) -> TrainSettings:
        """How one student is trained. Raises InputError."""
        values = {"student": size.student, "arm": arm.arm, "answers": arm.answers, "match": arm.match, "seed": seed}
        values |= {"learning_rate": size.learning_rate, **self.training.model_dump()}
        return validate(TrainSettings, values, source=f"training of {size.name}-{arm.name}")
