"""The rows of a study's YAML file: where pairs come from, who is trained on what, and what is compared."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from distill.evaluation.answers import Think
from distill.packing.arms import Answers, Arm
from distill.packing.budget import Match
from distill.settings import ServerUrl, Settings
from distill.tasks.messages import SystemMessages
from distill.tasks.questions import QuestionFile
from distill.traces.settings import Gold
from distill.traces.teachers.settings import TeacherSettings
from distill.traces.trace import Mode
from distill.training.settings import ActivationCheckpointing

TRACES = "all"  # the one set of pairs of a study that names none
Matched = Literal["samples", "questions", "steps", "tokens", "flops", "output tokens", "inference flops", "nothing"]
NAME = r"^[a-z0-9][a-z0-9._]*$"


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
Name = Annotated[str, Field(pattern=NAME, max_length=60)]  # it becomes a part of folders' names
Names = Annotated[list[str], Field(min_length=1)]
Rate = Annotated[float, Field(gt=0)]


class TaskShare(Settings):
    """A task: `add`, `gsm8k:PATH`, or with `data` questions of your own under a new name. How many of its questions are
    trained on, where the study has no `traces` of their own, and how many are asked; null asks all there are. `metric`:
    in which its verdict is read."""

    task: str
    data: QuestionFile | None = None
    train: int | None = Field(None, ge=1)
    test: int | None = Field(ge=1)
    metric: str = "accuracy"


class ImportRow(Settings):
    """Pairs that somebody has made; see `distill traces import --help`."""

    file: Path
    layout: str = "pairs"
    fields: dict[str, str] = Field({})
    ift_from: str | None = None
    system: SystemMessages = "refuse"
    skip_bad: bool = False
    splits: Literal["train", "all"] | None = None
    teacher: str = "imported"


class ExpectedTokens(Settings):
    """Mean tokens of a question and of an answer in either mode, for the plan of a study that has no traces yet."""

    prompt: float = Field(gt=0, lt=1e9)
    reasoning: float = Field(gt=0, lt=1e9)
    ift: float = Field(gt=0, lt=1e9)


class TraceRow(Settings):
    """One set of paired traces: asked of a teacher (`tasks`), imported (`import`), or finished before (`folder`).

    A study with several teachers or several corpora has one set for each, and arms say which is theirs.
    """

    name: Name
    tasks: dict[str, int | None] | None = Field(None, min_length=1, description="questions of each; null is all")
    data: dict[str, QuestionFile] = Field({})
    teacher: TeacherSettings = "solver"
    gold: Gold = "grade"
    samples: int = Field(1, ge=1, le=1024)
    imported: ImportRow | None = Field(None, alias="import")
    folder: Path | None = None
    expected_tokens: ExpectedTokens | None = None
    expected_pairs: int | None = Field(
        None, ge=1, lt=10**12, description="of an import that is not here yet, for the plan"
    )

    @model_validator(mode="after")
    def _from_one_place(self) -> "TraceRow":
        given = [name for name in ("tasks", "imported", "folder") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"traces {self.name}: expected one of tasks, import and folder")
        return self


class AfterRow(Settings):
    """A training of this study that another goes on from: that of an arm in another size, with the same seed."""

    student: str = Field(description="the size's name")
    arm: str


class StudentRow(Settings):
    """One size of student, its peak learning rate (per token of nothing but itself; one for both modes or one for each),
    and its training seeds. `training` is for fields of `distill train` in which it differs from the others."""

    name: Name
    student: str
    learning_rate: Rate | dict[Mode, Rate]
    seeds: Seeds
    devices: int = Field(1, ge=1, description="that train it together, and serve it by tensor parallelism")
    activation_checkpointing: ActivationCheckpointing = Field(
        "off", description="what is run again in the backward so that a training fits; changes no result"
    )
    after: AfterRow | None = Field(None, description="its arms start from what this training made, not from `student`")
    training: dict[str, Any] = Field({})

    @model_validator(mode="after")
    def _both_modes(self) -> "StudentRow":
        if isinstance(self.learning_rate, dict) and set(self.learning_rate) != {"ift", "reasoning"}:
            raise ValueError("learning_rate: expected a number, or one for each of ift and reasoning")
        return self


class ArmRow(Settings):
    """One arm: what its students are trained on, and how they are asked.

    `match: samples` shows every arm the same questions equally often, as both published studies do; `steps`, `tokens` and
    `flops` train it until it has as many as the arm `reasoning` has with the same answers. `training` is for other fields
    of `distill train`, a curriculum (`phases`, and then no `arm`) among them; such an arm needs a `name`.
    """

    arm: str | None = None
    name: str | None = Field(
        None, pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100, description="made of the other fields when left out"
    )
    answers: Answers = "teacher"
    match: Match = "samples"
    traces: str | None = Field(None, description="the set of pairs; the study's first when left out")
    training: dict[str, Any] = Field({})
    students: Names | None = Field(None, description="sizes that have this arm; all when left out")
    seeds: Seeds | None = Field(None, description="training seeds; the size's own when left out")
    think: Asking | None = Field(None, description="how its students are asked; as `evaluation` says when left out")
    mode: Mode | None = Field(None, description="what they are asked for, where they were trained with a mode signal")
    thinking_budget: int | None = Field(None, ge=0, description="most tokens of thinking")

    @model_validator(mode="after")
    def _can_be_named(self) -> "ArmRow":
        if (self.arm is None) == (self.training.get("phases") is None):
            raise ValueError("expected an arm, or phases under training")
        if self.arm is not None:
            Arm.parse(self.arm)
        if self.training and self.name is None:
            raise ValueError(f"arm {self.arm or 'phases'}: with training of its own it needs a name")
        return self

    @property
    def id(self) -> str:
        """What cells, contrasts and folders call it."""
        if self.name is not None:
            return self.name
        parts = [str(self.arm).replace(":", "")]
        parts += [self.answers] if self.answers != "teacher" else []
        parts += [f"{self.match}_matched"] if self.match != "samples" else []
        parts += [self.traces] if self.traces is not None else []
        parts += [f"think_{self.think}"] if self.think is not None else []
        parts += [f"mode_{self.mode}"] if self.mode is not None else []
        parts += [f"budget_{self.thinking_budget}"] if self.thinking_budget is not None else []
        return "-".join(parts)

    @property
    def trained(self) -> dict[str, Any]:
        """What decides its students, besides size and seed: arms that differ in no more than how they are asked share them."""
        return self.model_dump(mode="json", include={"arm", "answers", "match", "traces", "training"})

    def seeds_in(self, size: StudentRow) -> list[int]:
        """The training seeds of this arm in a size; none where the size does not have it."""
        if self.students is not None and size.name not in self.students:
            return []
        return self.seeds if self.seeds is not None else size.seeds


class TeacherRow(Settings):
    """The teacher, or any other model behind an endpoint, asked the same questions. `parameters`: the active ones, for
    the FLOPs of its answers, two a parameter and token."""

    url: ServerUrl
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
    students: Names | None = Field(None, description="sizes; all when left out")


class MajorityRow(Settings):
    """The commonest of k answers of each student of `arm`, where k answers cost as many output tokens as one of `matched`
    in the same size. k is measured; `votes` answers are drawn, and it can be no more."""

    arm: str = "ift"
    matched: str = "reasoning"
    votes: int = Field(16, ge=2, le=1024)
    temperature: float = Field(0.7, gt=0)
    students: Names | None = Field(None, description="sizes; all that have both arms when left out")
    tasks: Names | None = Field(None, description="all when left out")


class EqualCostRow(Settings):
    """The control of a contrast at equal inference cost: students of `arm`, in those of `sizes` around the treatment's FLOPs an
    answer."""

    arm: str = "ift"
    sizes: Annotated[Names, Field(min_length=2)] | None = Field(None, description="all that have the arm when left out")


class RouterRow(Settings):
    """A small classifier that decides question by question which of two arms answers: `thinks`, which reasons, or `direct`,
    which does not. Best of the same students asked in two ways. It never sees the question it decides on."""

    thinks: str
    direct: str
    students: Names | None = Field(None, description="sizes; all that have both arms when left out")


class Comparators(Settings):
    """What stands beside the arms, and may stand in contrasts by the name of its field."""

    teacher: TeacherRow | None = None
    base: BaseRow | None = None
    majority: MajorityRow | None = None
    equal_cost: EqualCostRow | None = None
    router: RouterRow | None = None

    @property
    def names(self) -> list[str]:
        return [name for name in type(self).model_fields if getattr(self, name) is not None]


class ContrastRow(Settings):
    """A comparison declared before the run: two arms or comparators by name, in every size that has both.

    The one marked `verdict` for a size decides what the report says first. `matched` is what both sides have equally much
    of (matching.py): another one is refused, and one that is left out is filled in.
    """

    treatment: str = "reasoning"
    control: str = "ift"
    matched: Matched | None = None
    verdict_size: str | None = None


class InteractionRow(Settings):
    """Whether a contrast is another one in one student than in the other: (treatment - control) of the first of `students`
    less that of the second."""

    treatment: str = "reasoning"
    control: str = "ift"
    students: Annotated[list[str], Field(min_length=2, max_length=2)]


def common_seeds(treatment: list[int] | None, control: list[int] | None) -> list[int]:
    """The seeds that both have, in the order of the first; None is any."""
    if treatment is None or control is None:
        return control or treatment or []
    return [seed for seed in treatment if seed in control]
