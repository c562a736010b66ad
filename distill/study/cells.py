"""The grid of a study: which students are trained, and what each of them is called."""

from dataclasses import dataclass

from distill.study.settings import ArmRow, StudentRow, StudySettings
from distill.training.settings import TrainSettings


@dataclass(frozen=True)
class Cell:
    """One arm in one size; every seed of it is a student of its own."""

    size: StudentRow
    arm: ArmRow

    @property
    def id(self) -> str:
        return f"{self.size.name}-{self.arm.name}"

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
        return f"{self.cell.size.name}-{self.cell.arm.training_name}-seed{self.seed}"

    def train_settings(self, settings: StudySettings) -> TrainSettings:
        return settings.train_settings(self.cell.size, self.cell.arm, self.seed)


def cells(settings: StudySettings) -> list[Cell]:
    """Every cell of the grid, sizes first, arms in the preset's order."""
    return [Cell(size, arm) for size in settings.students for arm in settings.arms if arm.seeds_in(size)]
