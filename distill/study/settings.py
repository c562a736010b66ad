"""A study as one YAML file."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from distill.errors import unknown_name
from distill.evaluation.answers import Think
from distill.flops import hardware
from distill.packing.arms import Answers, Arm
from distill.packing.budget import Match
from distill.settings import Settings, validate
from distill.tasks import get_task
from distill.training.settings import Precision, Schedule, TrainSettings
from distill.training.sizes import SIZES, check_student


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("a value appears twice")
    return values


def _on_or_off(value: Any) -> Any:
    """YAML takes a bare `on` or `off` for a truth value."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Asking = Annotated[Think, BeforeValidator(_on_or_off)]
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
    think: Asking | None = Field(None, description="how its students are asked; as `evaluation` says when left out")

    @property
    def name(self) -> str:
        return self.training_name + (f"-think_{self.think}" if self.think is not None else "")

    @property
    def training_name(self) -> str:
        """The same for arms that differ only in how they are asked: their students are the same."""
        parts = [str(Arm.parse(self.arm)).replace(":", "")]
        parts += [self.answers] if self.answers != "teacher" else []
        parts += [f"{self.match}_matched"] if self.match != "samples" else []
        return "-".join(parts)

    def seeds_in(self, size: StudentRow) -> list[int]:
        """The training seeds of this arm in a size; none where the size does not have it."""
        if self.students is not None and size.name not in self.students:
            return []
        return self.seeds if self.seeds is not None else size.seeds


class TeacherRow(Settings):
    """The teacher, or any other model behind an endpoint, asked the same questions. `parameters`: the active ones, for
    the FLOPs of its answers, two a parameter and token."""

    url: str = Field(pattern="^https?://")
    model: str = Field(min_length=1)
    api_key_env: str = "OPENAI_API_KEY"
    think: Asking = "free"
    max_tokens: int | None = Field(None, ge=1, description="as of the students when left out")
    parameters: float | None = Field(None, gt=0)
    usd_per_million_input: float | None = Field(None, ge=0)
    usd_per_million_output: float | None = Field(None, ge=0)


class BaseRow(Settings):
    """Pretrained students before they were trained here, asked as text after a few answered questions."""

    few_shot: int = Field(5, ge=0)
    students: list[str] | None = Field(None, min_length=1, description="sizes; all when left out")


class MajorityRow(Settings):
    """The commonest of k answers of each student of `arm`, where k answers cost as many output tokens as one of `matched`
    in the same size. k is measured; `votes` answers are drawn, and it can be no more."""

    arm: str = "ift"
    matched: str = "reasoning"
    votes: int = Field(16, ge=2, le=1024)
    temperature: float = Field(0.7, gt=0)
    students: list[str] | None = Field(None, min_length=1, description="sizes; all that have both arms when left out")
    tasks: list[str] | None = Field(None, min_length=1, description="all when left out")


class Comparators(Settings):
    """What stands beside the arms, and may stand in contrasts by the name of its field."""

    teacher: TeacherRow | None = None
    base: BaseRow | None = None
    majority: MajorityRow | None = None

    @property
    def names(self) -> list[str]:
        return [name for name in type(self).model_fields if getattr(self, name) is not None]


class ContrastRow(Settings):
    """A comparison declared before the run: two arms or comparators by name, in every size that has both.

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
    samples: int = Field(1, ge=1, le=1024, description="answers to each question; more than one need a temperature")
    think: Asking = "free"


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
    comparators: Comparators = Comparators()
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
        self._comparators_agree(sizes, arms)
        for contrast in self.contrasts:
            for name in (contrast.treatment, contrast.control):
                if name not in arms and name not in self.comparators.names:
                    raise unknown_name("arm in contrasts", name, [*arms, *self.comparators.names])
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

    def _comparators_agree(self, sizes: list[str], arms: list[str]) -> None:
        base, majority = self.comparators.base, self.comparators.majority
        for kind, row in (("base", base), ("majority", majority)):
            for size in (row.students or []) if row else []:
                if size not in sizes:
                    raise unknown_name(f"student in comparators.{kind}", size, sizes)
        if base is not None:
            for size in self.students:
                if size.student in SIZES and size.name in (base.students or sizes):
                    raise ValueError(
                        f"comparators.base: {size.name} starts from random weights, whose answers are noise; leave base "
                        "out or name pretrained students under `students`"
                    )
        if majority is not None:
            for name in (majority.arm, majority.matched):
                if name not in arms:
                    raise unknown_name("arm in comparators.majority", name, arms)
            tasks = [row.task for row in self.tasks]
            for name in majority.tasks or []:
                if name not in tasks:
                    raise unknown_name("task in comparators.majority", name, tasks)
            without = [s.name for s in self.students if not self.seeds_of("majority", s)]
            if without == sizes or set(without) & set(majority.students or []):
                raise ValueError(
                    f"comparators.majority: {majority.arm} and {majority.matched} have no training seed in common in "
                    f"{', '.join(majority.students or ['any size'])}"
                )

    def arm_row(self, name: str) -> ArmRow:
        return next(arm for arm in self.arms if arm.name == name)

    def seeds_of(self, name: str, size: StudentRow) -> list[int] | None:
        """Training seeds of an arm or comparator in a size; None for what was not trained, and pairs with any seed."""
        if name == "teacher":
            return None
        if name == "base":
            return None if size.name in (self.comparators.base.students or [size.name]) else []
        if name == "majority":
            row = self.comparators.majority
            if size.name not in (row.students or [size.name]):
                return []
            matched = self.arm_row(row.matched).seeds_in(size)
            return [seed for seed in self.arm_row(row.arm).seeds_in(size) if seed in matched]
        return self.arm_row(name).seeds_in(size)

    def _require_pairs(self, contrast: ContrastRow) -> None:
        """A contrast needs a seed that both sides have: in the size of its verdict, or else in any."""
        names = (contrast.treatment, contrast.control)
        compared = [name for name in names if name in self.comparators.names]
        if compared and (contrast.verdict_size is not None or len(compared) == 2):
            raise ValueError(
                f"contrasts: {compared[0]} is a comparator, which may stand beside an arm but decides no verdict"
            )
        paired = [s.name for s in self.students if common_seeds(*(self.seeds_of(name, s) for name in names))]
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


def common_seeds(treatment: list[int] | None, control: list[int] | None) -> list[int]:
    """The seeds that both have, in the order of the first; None is any."""
    if treatment is None or control is None:
        return control or treatment or []
    return [seed for seed in treatment if seed in control]
