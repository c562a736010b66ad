"""One cell of a plan: an arm in a size, and what is known of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from distill.artifact import Artifact
from distill.study.cells import Cell
from distill.study.outcomes import MemberOutcome
from distill.study.plan.answers import Batch
from distill.study.plan.counts import Lengths, Training
from distill.study.plan.memory import Need
from distill.study.plan.shapes import Shape


@dataclass
class PlannedCell:
    """Filled in as it becomes known; `seconds` last."""

    cell: Cell
    shape: Shape | None = None
    training: Training | None = None
    batches: list[Batch] = field(default_factory=list)
    lengths: Lengths | None = None
    trains: int = 0  # students that are trained for it, those of an arm asked otherwise not counted twice
    trained: list[Artifact] = field(default_factory=list)
    served: list[MemberOutcome] = field(default_factory=list)
    seconds: dict[str, float | None] = field(default_factory=dict)  # of a stage of one student
    took: dict[str, list[float | None]] = field(default_factory=lambda: {"train": [], "serve": []})  # of what is there
    steps_seconds: float | None = None  # of its training, without the process's start
    needs: dict[str, Need] = field(default_factory=dict)
    votes: int = 0  # of its students, how many vote
    vote_batches: list[Batch] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.cell.id

    @property
    def devices(self) -> int:
        return self.cell.size.devices

    @property
    def generated(self) -> float:
        """Tokens of one student, without votes."""
        return sum(batch.generated for batch in self.batches)

    @property
    def voted(self) -> float:
        return sum(batch.generated for batch in self.vote_batches)

    def to_json(self, usd: Callable[[float | None, int], float | None]) -> dict[str, Any]:
        """`usd`: what so many seconds of so many devices cost."""
        return {
            "id": self.id,
            "size": self.cell.size.name,
            "arm": self.cell.arm.id,
            "student": self.cell.size.student,
            "seeds": self.cell.seeds,
            "devices": self.devices,
            "parameters": self.shape and self.shape.parameters,
            "trainable_parameters": self.shape and self.shape.trainable,
            "shape_from": self.shape and self.shape.source,
            "training": self.training and self.training.to_json(),
            "trainings": self.trains,
            "generation": [batch.to_json() for batch in self.batches],
            "votes": [batch.to_json() for batch in self.vote_batches],
            "voting_seeds": self.votes,
            "seconds": self.seconds,
            "usd": {stage: usd(seconds, self.devices) for stage, seconds in self.seconds.items()},
            "memory": {name: need.to_json() for name, need in self.needs.items()},
            "done": {"train": len(self.trained), "serve": len(self.served)},
        }
