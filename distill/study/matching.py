"""What two arms have equally much of: it follows from the settings, so it is known, and declared, before anything runs."""

from dataclasses import dataclass

from distill.study.rows import ArmRow, Matched, TraceRow
from distill.training.settings import TrainSettings

# What decides which pairs of a set are shown, beside how often; and how much work as many steps or FLOPs are.
_SHOWN = ("keep", "row_tokens", "validation")
_WORK = {"steps": ("batch", "batch_unit"), "tokens": (), "flops": ("lora_rank", "lora_targets")}


@dataclass(frozen=True)
class Side:
    """An arm in a size, as it is trained, and on what."""

    arm: ArmRow
    training: TrainSettings
    traces: TraceRow

    @property
    def epochs(self) -> int:
        return sum(own for _, own in self.training.shown.curriculum) or self.training.epochs


def held_equal(treatment: Side, control: Side) -> Matched:
    """`samples`: both saw the same pairs equally often. `questions`: the same of two sets, such as those of two teachers.
    `steps`, `tokens`, `flops`: both took as many as the arm `reasoning` with the same answers, or one is that arm; or both
    were given so many tokens. Else `nothing`."""
    sides = (treatment, control)
    if any(side.training.tokens for side in sides):
        return "tokens" if treatment.training.tokens == control.training.tokens else "nothing"
    if treatment.epochs != control.epochs or _differ(sides, _SHOWN):
        return "nothing"
    kinds = {side.arm.match for side in sides if side.arm.match != "samples"}
    if treatment.traces.name != control.traces.name:
        same = not kinds and _questions(treatment.traces) == _questions(control.traces)
        return "questions" if same else "nothing"
    if not kinds:
        return "samples"
    reached = all(side.arm.match in kinds or side.arm.arm == "reasoning" for side in sides)
    of_one = len({side.arm.answers == "gold" for side in sides}) == 1  # stripped answers follow the teacher's reasoning
    if not reached or not of_one or len(kinds) > 1:
        return "nothing"
    (kind,) = kinds
    return "nothing" if _differ(sides, _WORK[kind]) else kind


def _differ(sides: tuple[Side, Side], fields: tuple[str, ...]) -> bool:
    return any(len({getattr(side.training, field) for side in sides}) > 1 for field in fields)


def _questions(row: TraceRow) -> object:
    """What a set's teacher was asked, where it was: which questions a file or a folder holds is not known here."""
    return (row.tasks, row.data, row.samples) if row.tasks is not None else row.name
