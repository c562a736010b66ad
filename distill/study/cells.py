"""The grid of a study: which students are trained, and what each of them is called."""

from dataclasses import dataclass

from distill.artifact import content_key
from distill.study.rows import ArmRow, StudentRow
from distill.study.settings import StudySettings
from distill.training.settings import TrainSettings


@dataclass(frozen=True)
class Cell:
    """One arm in one size; every seed of it is a student of its own."""

    size: StudentRow
    arm: ArmRow

    @property
    def id(self) -> str:
        return f"{self.size.name}-{self.arm.id}"

    @property
    def seeds(self) -> list[int]:
        return self.arm.seeds_in(self.size)

    def students(self) -> list["Member"]:
        return [Member(self, seed) for seed in self.seeds]


@dataclass(frozen=True)
class Member:
    """One student of a cell: the unit that is trained, asked and put under load."""

    cell: Cell
    seed: int

    @property
    def id(self) -> str:
        return f"{self.cell.id}-seed{self.seed}"

    @property
    def student(self) -> str:
        """Which student it is: arms that differ only in how they are asked share theirs."""
        return f"{self.cell.size.name}-{_trained_as(self.cell.arm)}-seed{self.seed}"

    def origin(self, settings: StudySettings) -> "Member | None":
        """The student that this one's training goes on from; None: from what the size names."""
        after = self.cell.size.after
        if after is None:
            return None
        return Member(Cell(settings.size_row(after.student), settings.arm_row(after.arm)), self.seed)

    def train_settings(self, settings: StudySettings) -> TrainSettings:
        return settings.train_settings(self.cell.size, self.cell.arm, self.seed)


def cells(settings: StudySettings) -> list[Cell]:
    """Every cell of the grid, sizes first, arms in the preset's order."""
    return [Cell(size, arm) for size in settings.students for arm in settings.arms if arm.seeds_in(size)]


def _trained_as(arm: ArmRow) -> str:
    """The arm's name but for how it is asked; with training of its own, the same for equal training."""
    plain = arm.model_copy(update={"name": None, "think": None, "mode": None, "thinking_budget": None})
    if not arm.training:
        return plain.id
    return f"{'phases' if arm.arm is None else plain.id}-{content_key('training', arm.trained)[:6]}"
