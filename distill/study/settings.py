"""A study as one YAML file: its rows (rows.py), and whether they fit each other."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator

from distill.errors import InputError, unknown_name
from distill.evaluation.settings import EvaluateSettings
from distill.flops import hardware
from distill.packing.arms import Arm
from distill.serve import ServerSettings
from distill.settings import Settings, validate
from distill.study.matching import Side, held_equal
from distill.study.rows import (
    TRACES,
    ArmRow,
    Comparators,
    ContrastRow,
    ExpectedTokens,
    InteractionRow,
    Matched,
    Seed,
    StudentRow,
    TaskShare,
    TraceRow,
    common_seeds,
)
from distill.tasks.registry import require_task
from distill.traces.settings import GenerateSettings
from distill.traces.teachers.settings import TeacherSettings
from distill.training.settings import TrainSettings
from distill.training.sizes import SIZES, check_student

_OF_A_ROW = {"student", "seed", "answers", "match", "arm"}  # fields of a training that rows say
_OF_THE_STUDY = {"questions", "mode", "think", "thinking_budgets", "few_shot", "engine"}
_OF_A_SERVER = {"kv_cache_gib", "startup_timeout_s", "arguments"}  # the others are those of what it serves
EQUAL_COST = "equal_cost"  # the control that is several students (equal_cost.py)
_BESIDE_ARMS = {"teacher", "base", "majority", EQUAL_COST, "router", "oracle"}  # what the results call them


class StudySettings(Settings):
    """Everything a study's results depend on.

    `training`, `evaluation` and `serving` are fields of `distill train`, `distill evaluate` and `distill serve profile`,
    the same for all students.
    """

    title: str
    question: str
    teacher: TeacherSettings | None = Field(
        None, description="who answers the questions trained on; solver if not given"
    )
    traces: list[TraceRow] | None = Field(None, min_length=1, description="of the tasks' `train` when left out")
    expected_tokens: ExpectedTokens | None = None
    data_seed: Seed = 0
    tasks: list[TaskShare] = Field(min_length=1)
    students: list[StudentRow] = Field(min_length=1)
    arms: list[ArmRow] = Field(min_length=1)
    training: dict[str, Any] = Field({})
    evaluation: dict[str, Any] = Field({})
    serving: dict[str, Any] = Field({})
    server: ServerSettings = ServerSettings()
    comparators: Comparators = Comparators()
    contrasts: list[ContrastRow] = Field(min_length=1)
    interactions: list[InteractionRow] = Field([])
    margin_points: float = Field(gt=0, description="the smallest gain, in points, that would be worth having")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    hardware: str
    published: Literal["when-does-reasoning-matter", "reason-or-not"] | None = Field(
        None, description="whose figures are drawn beside these"
    )

    # What the rows come to.

    @property
    def trace_rows(self) -> list[TraceRow]:
        if self.traces is not None:
            return self.traces
        trained = {row.task: row.train for row in self.tasks if row.train is not None}
        data = {row.task: row.data for row in self.tasks if row.data is not None and row.task in trained}
        values = {"tasks": trained, "data": data, "teacher": self.teacher or "solver"}
        return [TraceRow(name=TRACES, expected_tokens=self.expected_tokens, **values)]

    def generate_settings(self, row: TraceRow) -> GenerateSettings:
        """How the pairs of a row with `tasks` are asked for: of training questions only. Raises InputError."""
        values = row.model_dump(include={"tasks", "data", "gold", "samples"})
        values |= {"teacher": row.teacher, "seed": self.data_seed, "split": "train"}
        return validate(GenerateSettings, values, source=f"traces {row.name}")

    def size_row(self, name: str) -> StudentRow:
        return next(size for size in self.students if size.name == name)

    def arm_row(self, name: str) -> ArmRow:
        return next(arm for arm in self.arms if arm.id == name)

    def traces_of(self, arm: ArmRow) -> TraceRow:
        rows = self.trace_rows
        return rows[0] if arm.traces is None else next(row for row in rows if row.name == arm.traces)

    def train_settings(self, size: StudentRow, arm: ArmRow, seed: int) -> TrainSettings:
        """How one student is trained: what its arm says, else its size, else the study. Raises InputError."""
        values = {**self.training, **_rates(size, arm), **size.training, **arm.training}
        values |= {"student": size.student, "answers": arm.answers, "match": arm.match, "seed": seed}
        values |= {"arm": arm.arm} if arm.arm is not None else {}
        source = f"training of {size.name}-{arm.id}"
        for given in (self.training, size.training, arm.training):
            if misplaced := sorted(_OF_A_ROW & given.keys()):
                raise InputError(f"{source}: field {misplaced[0]}: is said by a student's or an arm's row")
        return validate(TrainSettings, values, source=source)

    def evaluate_settings(self, *, tasks: list[str] | None = None, **values: Any) -> EvaluateSettings:
        """How the study's questions, or those of some tasks, are asked; as the preset says but for `values`."""
        rows = [row for row in self.tasks if tasks is None or row.task in tasks]
        questions = [{"task": r.task, "data": r.data, "count": r.test, "seed": self.data_seed} for r in rows]
        if misplaced := sorted(_OF_THE_STUDY - {"think"} & self.evaluation.keys()):
            raise InputError(f"evaluation: field {misplaced[0]}: is said by an arm's row, or the same in every study")
        return validate(EvaluateSettings, {"questions": questions, **self.evaluation, **values}, source="evaluation")

    def asking(self, arm: ArmRow) -> dict[str, Any]:
        """Fields of an evaluation that an arm says itself."""
        values: dict[str, Any] = {"think": arm.think} if arm.think is not None else {}
        values |= {"mode": arm.mode} if arm.mode is not None else {}
        return values | ({"thinking_budgets": [arm.thinking_budget]} if arm.thinking_budget is not None else {})

    def seeds_of(self, name: str, size: StudentRow) -> list[int] | None:
        """Training seeds of an arm or comparator in a size; None for what was not trained, and pairs with any seed."""
        if name == "teacher":
            return None
        if name == "base":
            return None if size.name in (self.comparators.base.students or [size.name]) else []
        if name in ("majority", "router") and size.name not in (
            getattr(self.comparators, name).students or [size.name]
        ):
            return []
        seeds = [self.arm_row(arm).seeds_in(size) for arm in self.arms_behind(name)]
        return common_seeds(*seeds) if len(seeds) == 2 else seeds[0]

    @property
    def ladder(self) -> list[StudentRow]:
        """The sizes of `equal_cost`; none without it."""
        row = self.comparators.equal_cost
        if row is None:
            return []
        return [s for s in self.students if (s.name in row.sizes if row.sizes else self.arm_row(row.arm).seeds_in(s))]

    def seeds_compared(self, contrast: ContrastRow, size: StudentRow) -> list[list[int]]:
        """The training seeds in common of every two students that a contrast may compare in a size: one list, but for
        `equal_cost`, of which there is one for each of its sizes."""
        treatment = self.seeds_of(contrast.treatment, size)
        if contrast.control != EQUAL_COST:
            return [common_seeds(treatment, self.seeds_of(contrast.control, size))]
        arm = self.arm_row(self.comparators.equal_cost.arm)
        return [common_seeds(treatment, arm.seeds_in(rung)) for rung in self.ladder]

    def arms_behind(self, name: str) -> list[str]:
        """The arms whose students an arm or comparator is made of; none of what was not trained."""
        of = self.comparators
        pairs = {
            "teacher": [],
            "base": [],
            "majority": of.majority and [of.majority.arm, of.majority.matched],
            EQUAL_COST: of.equal_cost and [of.equal_cost.arm],
            "router": of.router and [of.router.thinks, of.router.direct],
        }
        return pairs.get(name, [name])

    def metrics(self, names: Iterable[str]) -> dict[str, str]:
        """The metric in which each task's verdict is read. `names`: of the tasks, in their order, as the results have them."""
        return dict(zip(names, (row.metric for row in self.tasks), strict=True))

    def matched_on(self, contrast: ContrastRow) -> Matched:
        """What both sides of a contrast have equally much of, in every size that has both. Raises InputError."""
        names, of = (contrast.treatment, contrast.control), self.comparators
        if of.majority is not None and {*names} == {"majority", of.majority.matched}:
            return "output tokens"
        if contrast.control == EQUAL_COST and contrast.treatment not in of.names:
            return "inference flops"
        if any(name in of.names for name in names):
            return "nothing"
        found = set()
        for size in self.students:
            arms = [self.arm_row(name) for name in names]
            if seeds := common_seeds(*(arm.seeds_in(size) for arm in arms)):
                found.add(
                    held_equal(*(Side(a, self.train_settings(size, a, seeds[0]), self.traces_of(a)) for a in arms))
                )
        return found.pop() if len(found) == 1 else "nothing"

    # Whether they fit each other.

    @model_validator(mode="after")
    def _names_agree(self) -> "StudySettings":
        sizes, arms = [s.name for s in self.students], [a.id for a in self.arms]
        named = {"students": sizes, "arms": arms, "tasks": [t.task for t in self.tasks]}
        for kind, names in (named | {"traces": [row.name for row in self.traces or []]}).items():
            if len(set(names)) < len(names):
                raise ValueError(f"{kind}: a name appears twice in {', '.join(names)}")
        own = [row.task for row in self.tasks if row.data is not None]
        for row in self.tasks:
            if row.data is None:
                require_task(row.task, own)
        for student in self.students:
            check_student(student.student)
        hardware(self.hardware)
        for name, field in ServerSettings.model_fields.items():
            if name not in _OF_A_SERVER and getattr(self.server, name) != field.default:
                raise ValueError(f"server.{name}: the study says it itself, for each student; leave it out")
        if taken := [arm for arm in arms if arm in _BESIDE_ARMS]:
            raise ValueError(f"arms: {taken[0]} is the name of a comparator; this arm needs another `name`")
        self._traces_agree()
        self._origins_agree(sizes, arms)
        for arm in self.arms:
            _require_known(arm.students, sizes, "student in arms")
            self.evaluate_settings(**self.asking(arm))
        for size in self.students:
            for arm in self.arms:
                for seed in arm.seeds_in(size):
                    self.train_settings(size, arm, seed)
        self._comparators_agree(sizes, arms)
        self._contrasts_agree(sizes, arms)
        return self.model_copy(update={"contrasts": [self._with_matching(contrast) for contrast in self.contrasts]})

    def _traces_agree(self) -> None:
        trained = [row.task for row in self.tasks if row.train is not None]
        if self.traces is None and not trained:
            raise ValueError("tasks: none says how many questions are trained on; give some a `train`, or `traces`")
        if self.traces is not None:
            extra = [f"train of task {trained[0]}"] if trained else []
            extra += [name for name in ("teacher", "expected_tokens") if getattr(self, name) is not None]
            if extra:
                raise ValueError(f"{extra[0]}: the rows of `traces` say what is trained on; leave it out")
        names = [row.name for row in self.trace_rows]
        for arm in self.arms:
            _require_known([arm.traces] if arm.traces is not None else None, names, "traces in arms")
        for row in self.trace_rows:
            if row.tasks is not None:
                self.generate_settings(row)

    def _origins_agree(self, sizes: list[str], arms: list[str]) -> None:
        for size in self.students:
            if size.after is None:
                continue
            _require_known([size.after.student], sizes, f"student in students.{size.name}.after")
            _require_known([size.after.arm], arms, f"arm in students.{size.name}.after")
            first = self.size_row(size.after.student)
            if first.after is not None or first.student != size.student:
                raise ValueError(
                    f"students.{size.name}.after: expected a size of student {size.student} that is trained after nothing, "
                    f"found {first.name}"
                )
            wanted = {seed for arm in self.arms for seed in arm.seeds_in(size)}
            if missing := wanted - set(self.arm_row(size.after.arm).seeds_in(first)):
                raise ValueError(
                    f"students.{size.name}.after: {first.name} has no {size.after.arm} with seed {min(missing)} to start from"
                )

    def _comparators_agree(self, sizes: list[str], arms: list[str]) -> None:
        of = self.comparators
        for kind in ("base", "majority", "router"):
            row = getattr(of, kind)
            _require_known(row and row.students, sizes, f"student in comparators.{kind}")
        if of.base is not None:
            for size in self.students:
                if size.student in SIZES and size.name in (of.base.students or sizes):
                    raise ValueError(
                        f"comparators.base: {size.name} starts from random weights, whose answers are noise; leave base "
                        "out or name pretrained students under `students`"
                    )
        if of.majority is not None:
            _require_known(of.majority.tasks, [row.task for row in self.tasks], "task in comparators.majority")
        if of.teacher is not None and self.evaluate_settings().score == "loglikelihood":
            raise ValueError(
                "comparators.teacher: gives no likelihoods, which evaluation.score asks for; leave one out"
            )
        if of.router is not None and of.router.thinks == of.router.direct:
            raise ValueError(f"comparators.router: thinks and direct are the same arm, {of.router.direct}")
        if (row := of.equal_cost) is not None:
            _require_known([row.arm], arms, "arm in comparators.equal_cost")
            _require_known(row.sizes, sizes, "size in comparators.equal_cost")
            if without := [s.name for s in self.ladder if not self.arm_row(row.arm).seeds_in(s)]:
                raise ValueError(f"comparators.equal_cost: there is no {row.arm} in {without[0]}")
            if len(self.ladder) < 2:
                raise ValueError(f"comparators.equal_cost: expected {row.arm} in two sizes or more")
        pairs = {
            "majority": of.majority and (of.majority.arm, of.majority.matched),
            "router": of.router and (of.router.thinks, of.router.direct),
        }
        for kind, pair in pairs.items():
            if pair is None:
                continue
            _require_known(list(pair), arms, f"arm in comparators.{kind}")
            row = getattr(of, kind)
            without = [s.name for s in self.students if not self.seeds_of(kind, s)]
            if without == sizes or set(without) & set(row.students or []):
                raise ValueError(
                    f"comparators.{kind}: {pair[0]} and {pair[1]} have no training seed in common in "
                    f"{', '.join(row.students or ['any size'])}"
                )

    def _contrasts_agree(self, sizes: list[str], arms: list[str]) -> None:
        pairs = [(contrast.treatment, contrast.control) for contrast in self.contrasts]
        for treatment, control in pairs:
            if treatment == control:
                raise ValueError(f"contrasts: {treatment} is compared with itself")
            if pairs.count((treatment, control)) > 1:
                raise ValueError(f"contrasts: {treatment} and {control} are compared twice")
        for contrast in self.contrasts:
            known = [*arms, *self.comparators.names]
            _require_known([contrast.treatment, contrast.control], known, "arm in contrasts")
            _require_known([contrast.verdict_size] if contrast.verdict_size else None, sizes, "verdict_size")
            self._require_pairs(contrast)
        if sum(c.verdict_size is not None for c in self.contrasts) != 1:
            raise ValueError("contrasts: exactly one must have a verdict_size, the size its verdict is read from")
        for row in self.interactions:
            _require_known([row.treatment, row.control], arms, "arm in interactions")
            _require_known(row.students, sizes, "student in interactions")
            if row.treatment == row.control or row.students[0] == row.students[1]:
                raise ValueError("interactions: expected two arms, and two sizes that differ")
            for size in (s for s in self.students if s.name in row.students):
                if not common_seeds(*(self.seeds_of(name, size) for name in (row.treatment, row.control))):
                    raise ValueError(
                        f"interactions: {row.treatment} and {row.control} have no training seed in common in {size.name}"
                    )

    def _require_pairs(self, contrast: ContrastRow) -> None:
        """A contrast needs a seed that both sides have: in the size of its verdict, or else in any."""
        names = (contrast.treatment, contrast.control)
        compared = [name for name in names if name in self.comparators.names]
        decides = contrast.verdict_size is not None
        if contrast.treatment == EQUAL_COST:
            raise ValueError("contrasts: equal_cost is what an arm is compared with; name it as the control")
        at_equal_cost = self.matched_on(contrast) in ("output tokens", "inference flops")
        if len(compared) == 2 or (compared and decides and not at_equal_cost):
            raise ValueError(
                f"contrasts: {compared[0]} is a comparator, which may stand beside an arm but decides no verdict, but for "
                "the majority against the arm that it is matched to, and equal_cost as a control"
            )
        if contrast.control == EQUAL_COST and contrast.treatment == self.comparators.equal_cost.arm:
            raise ValueError(f"contrasts: equal_cost is made of {contrast.treatment}, which is compared with itself")
        if "majority" in compared and decides:
            self._require_votes()
        paired = [s.name for s in self.students if all(self.seeds_compared(contrast, s))]
        where = contrast.verdict_size or "any size"
        if not paired or contrast.verdict_size not in (None, *paired):
            raise ValueError(
                f"contrasts: {contrast.treatment} and {contrast.control} have no training seed in common in {where}"
                + (f" and each of {', '.join(s.name for s in self.ladder)}" if contrast.control == EQUAL_COST else "")
            )

    def _require_votes(self) -> None:
        """A verdict that votes decide is of right answers: of nothing else can there be a majority."""
        for row in self.tasks:
            if row.metric != "accuracy" and row.task in (self.comparators.majority.tasks or [row.task]):
                raise ValueError(
                    f"contrasts: the majority decides the verdict, and has no {row.metric}, which task {row.task} is read "
                    "in; leave that out, or name other tasks under comparators.majority"
                )

    def _with_matching(self, contrast: ContrastRow) -> ContrastRow:
        """What it is matched on is not for the preset to choose: where said, it is checked."""
        found = self.matched_on(contrast)
        if contrast.matched not in (None, found):
            raise ValueError(
                f"contrasts: {contrast.treatment} against {contrast.control} is matched on {found}, found matched: "
                f"{contrast.matched}"
            )
        return contrast.model_copy(update={"matched": found})


def _rates(size: StudentRow, arm: ArmRow) -> dict[str, float]:
    """Peak learning rates. With one for each mode, `sequential` takes each in its phase, and what mixes both modes that of
    reasoning."""
    if not isinstance(size.learning_rate, dict):
        return {"learning_rate": size.learning_rate}
    ift, reasoning = size.learning_rate["ift"], size.learning_rate["reasoning"]
    shown = Arm.parse(arm.arm) if arm.arm is not None else None
    if shown is not None and shown.kind == "sequential" and shown.chooses:
        return {"learning_rate": ift, "reasoning_learning_rate": reasoning}
    return {"learning_rate": ift if shown is not None and shown.ratio == 0 else reasoning}


def _require_known(names: list[str] | None, known: list[str], kind: str) -> None:
    for name in names or []:
        if name not in known:
            raise unknown_name(kind, name, known)
