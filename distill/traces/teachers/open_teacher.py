"""Which teacher some settings name."""

from collections.abc import Mapping
from pathlib import Path

from distill.tasks.task import Task
from distill.traces.settings import GenerateSettings
from distill.traces.teachers.endpoint import EndpointTeacher
from distill.traces.teachers.settings import VllmSettings
from distill.traces.teachers.solver import SolverTeacher
from distill.traces.teachers.teacher import Teacher
from distill.traces.teachers.vllm import VllmTeacher


def open_teacher(settings: GenerateSettings, tasks: Mapping[str, Task], workdir: Path) -> Teacher:
    """The teacher of these settings; `tasks` by Problem.task. Nothing is asked or started yet.

    What it writes while it works lies beside `workdir`. Raises InputError for a model, key or tokenizer that is wrong.
    """
    if settings.teacher == "solver":
        return SolverTeacher(tasks)
    shown = settings.gold == "shown"
    if isinstance(settings.teacher, VllmSettings):
        return VllmTeacher(settings.teacher, settings.seed, workdir, gold_shown=shown)
    return EndpointTeacher(settings.teacher, settings.seed, gold_shown=shown)
