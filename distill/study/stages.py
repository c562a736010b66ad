"""The stages of a study as a graph: what each is called, what it waits for, and what it takes.

traces NAME          the pairs of one set; `all` where the study has one
train STUDENT        one student
serve MEMBER         its answers, and its cost under load; of arms that differ in how they are asked, one each
ask teacher          the comparators that are models of their own
ask SIZE-base
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from distill.errors import unknown_name
from distill.study.cells import Member, cells
from distill.study.settings import StudySettings
from distill.study.workplace import TEACHER, Workplace


@dataclass(frozen=True)
class Stage:
    """`act` does it, in a workplace, and returns what it made; done before, it only returns that. `own_process`: it is
    done by a process of its own, which can be taken down while it waits for a server that is not ours; it takes no device."""

    name: str
    act: Callable[[Workplace], Any]
    after: tuple[str, ...] = ()
    devices: int = 1
    cell: str | None = None
    own_process: bool = False


def stages(settings: StudySettings) -> list[Stage]:
    """All of them, in the order in which they are best begun; each comes after those that it waits for."""
    members = [member for cell in cells(settings) for member in cell.students()]
    used = {settings.traces_of(member.cell.arm).name for member in members}
    found = [
        Stage(f"traces {row.name}", methodcaller("traces", row), devices=0, own_process=True)
        for row in settings.trace_rows
        if row.name in used
    ]
    if settings.comparators.teacher is not None:
        found.append(Stage(f"ask {TEACHER}", methodcaller("ask_teacher"), devices=0, own_process=True))
    trained = {member.student: member for member in members}
    for member in _longest_first([*trained.values()]):
        pairs = settings.traces_of(member.cell.arm).name
        act = methodcaller("train", member)
        origin = member.origin(settings)
        after = (f"traces {pairs}", *([f"train {origin.student}"] if origin else []))
        found.append(Stage(f"train {member.student}", act, after, *_of(member)))
    for member in members:
        act = methodcaller("serve", member)
        found.append(Stage(f"serve {member.id}", act, (f"train {member.student}",), *_of(member)))
    for size in settings.students:
        if settings.comparators.base is not None and settings.seeds_of("base", size) is None:
            act = methodcaller("ask_base", size)
            found.append(Stage(f"ask {size.name}-base", act, devices=size.devices))
    return found


def stage(settings: StudySettings, name: str) -> Stage:
    """One of them. Raises InputError with the nearest names."""
    named = {one.name: one for one in stages(settings)}
    if name not in named:
        raise unknown_name("stage", name, named)
    return named[name]


def _of(member: Member) -> tuple[int, str]:
    return member.cell.size.devices, member.cell.id


def _longest_first(members: list[Member]) -> list[Member]:
    """What others go on from, then large students and long arms, so that no core idles at the end."""
    begun_from = {m.cell.size.after.student for m in members if m.cell.size.after is not None}
    sizes = list(dict.fromkeys(m.cell.size.name for m in members))
    short = lambda arm: (arm.arm, arm.match) == ("ift", "samples")  # noqa: E731
    order = lambda size: (size not in begun_from, -sizes.index(size))  # noqa: E731
    return sorted(members, key=lambda m: (*order(m.cell.size.name), short(m.cell.arm)))
