"""Which questions a run asks: every one has a place among all of them, and belongs to one shard.

The place of a task's question is its number in the draw, that of a question from a file its row. Both are the same
whatever the shard, so rows of several shards fit together. Which shard a question belongs to is decided by a hash of its
id alone.
"""

import hashlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

from distill.errors import InputError
from distill.tasks.problem import Problem
from distill.tasks.procedural import ProceduralTask
from distill.tasks.questions import OwnTask
from distill.tasks.registry import get_task
from distill.tasks.task import Task
from distill.traces.settings import GenerateSettings, Shard
from distill.traces.store import Rejected


@dataclass
class Asked:
    """Questions in the order of their places, and the rows of files that gave none."""

    problems: list[Problem] = field(default_factory=list)
    places: array = field(default_factory=lambda: array("q"))  # of each problem
    bad_rows: list[Rejected] = field(default_factory=list)


def open_tasks(settings: GenerateSettings) -> dict[str, Task | OwnTask]:
    """Tasks by their names, in order. Raises InputError for an unknown or repeated one, or a file that is wrong."""
    tasks: dict[str, Task | OwnTask] = {}
    for name, count in settings.tasks.items():
        task = get_task(name, settings.data.get(name), own=settings.data)
        if task.name in tasks:
            raise InputError(f"tasks: {task.name} is named twice; generate two trace sets instead")
        if count is None and isinstance(task, ProceduralTask):
            raise InputError(f"task {name}: how many problems? expected {name}=COUNT")
        if isinstance(task, OwnTask) and task.checker == "math":
            raise InputError(
                f"task {name}: checker math needs processes of its own; leave it out, and run `distill traces verify`"
            )
        tasks[task.name] = task
    return tasks


def asked_questions(settings: GenerateSettings, tasks: Mapping[str, Task | OwnTask]) -> Asked:
    """The questions of these settings' shard. Raises InputError when there are fewer than asked for."""
    asked, first = Asked(), 0
    for (name, count), task in zip(settings.tasks.items(), tasks.values(), strict=True):
        problems = task.problems(settings.split_of(name), count, settings.seed)
        if isinstance(task, OwnTask):
            rows = task.places()
            found = sorted((rows[problem.id], problem) for problem in problems)
            end = first + task.rows
            for row in task.bad_rows:
                if _in_shard(f"{task.name} row {row.place}", settings.shard):
                    rejected = Rejected(row.reason, None, row.detail, row.source, place=first + row.place)
                    asked.bad_rows.append(rejected)
        else:
            found, end = list(enumerate(problems)), first + len(problems)
        for place, problem in found:
            if _in_shard(problem.id, settings.shard):
                asked.problems.append(problem)
                asked.places.append(first + place)
        first = end
    return asked


def _in_shard(key: str, shard: Shard | None) -> bool:
    if shard is None:
        return True
    number, of = shard
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % of == number - 1
