"""What an answer costs, and what was spent once before there was any: training, and the teacher's answers trained on."""

from collections.abc import Mapping

from distill.artifact import Artifact
from distill.evaluation.questions import Asked
from distill.packing.arms import Arm
from distill.study.comparators import AskedOnce, Majority
from distill.study.found import Found, FoundCell
from distill.study.routing.choices import Choice
from distill.study.rows import ArmRow
from distill.study.settings import StudySettings


def usd_per_answer(found: Found, a: Asked, seed: int) -> float | None:
    """Of one student under the highest concurrency, of a vote of one, or of a choice between two; by the token of a
    teacher that has such prices."""
    if isinstance(found, FoundCell):
        return found.members[seed].usd_per_answer(a.task.name, found.device)
    if isinstance(found, Majority):
        usd = usd_per_answer(found.voters, a, seed)
        return None if usd is None else found.k(a) * usd
    if isinstance(found, Choice):
        sides = [usd_per_answer(cell, a, seed) for cell in (found.thinks, found.direct)]
        rate = found.rate(a, seed)
        return None if None in sides else rate * sides[0] + (1 - rate) * sides[1]
    return found.usd(a) if isinstance(found, AskedOnce) else None


def training_usd(found: Found, seed: int) -> float:
    """Of the students that answer, with one seed: their seconds at the price of the device."""
    return float(sum(cell.members[seed].training_usd(cell.device) for cell in _trained(found)))


def teacher_usd(settings: StudySettings, found: Found, traces: Mapping[str, Artifact]) -> float | None:
    """What the teacher's answers cost that these students learned from: of each pair the one that was shown. None where
    that is not known."""
    costs = [_teacher_usd(settings, cell, traces) for cell in _trained(found)]
    return None if None in costs else float(sum(costs))


def _trained(found: Found) -> list[FoundCell]:
    """The cells whose students answer; of two that are the same students asked in two ways, one."""
    if isinstance(found, Majority):
        return [found.voters]
    if isinstance(found, Choice):
        same = found.thinks.cell.arm.trained == found.direct.cell.arm.trained
        return [found.thinks] if same else [found.thinks, found.direct]
    return [found] if isinstance(found, FoundCell) else []


def _teacher_usd(settings: StudySettings, found: FoundCell, traces: Mapping[str, Artifact]) -> float | None:
    row = settings.traces_of(found.cell.arm)
    if row.teacher == "solver" and row.tasks is not None:
        return 0.0
    made = traces.get(row.name)
    bill = (made.summary.get("bill") or {}) if made is not None else {}
    total = 0.0
    for mode, share in _shares(found.cell.arm).items():
        if share:
            usd = bill.get(mode, {}).get("cost_usd")
            if usd is None:
                return None
            total += share * usd
    return total


def _shares(arm: ArmRow) -> dict[str, float]:
    """The share of pairs of which an arm needs the teacher's answer in either mode."""
    ratios = reasoning_ratios(arm)
    shares = {"reasoning": max(ratios), "ift": 1 - min(ratios)}
    if arm.answers == "stripped":  # the short answers are the long ones' own
        return {"reasoning": 1.0, "ift": 0.0}
    return shares | ({"ift": 0.0} if arm.answers == "gold" else {})


def reasoning_ratios(arm: ArmRow) -> list[float]:
    """The share of pairs shown with their reasoning, of each phase of a curriculum. One pair is always shown before
    another with its reasoning, so the largest share are those ever shown with it."""
    phases = arm.training.get("phases")
    return [Arm.parse(arm.arm).ratio] if phases is None else [phase["reasoning"] for phase in phases]
