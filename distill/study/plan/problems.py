"""What is wrong with a preset, found before anything is spent: questions, teachers, the engine, and what does not fit."""

import os
from dataclasses import dataclass, field

import torch

from distill.errors import InputError
from distill.evaluation.questions import Asked, ask
from distill.evaluation.settings import Questions
from distill.flops import Hardware
from distill.serve import Endpoint, check_endpoint
from distill.serve.server import require_vllm
from distill.study.plan.hub import hub_answers
from distill.study.rows import TraceRow
from distill.study.settings import StudySettings
from distill.tasks.benchmark import BENCHMARKS
from distill.traces.teachers.settings import EndpointSettings, VllmSettings


@dataclass
class Problems:
    """`errors` are wrong wherever the study runs; `notes` are of this machine, or what could not be counted here."""

    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, text: str, *, note: bool = False) -> None:
        to = self.notes if note else self.errors
        if text not in to:
            to.append(text)


def runs_here(row: Hardware) -> bool:
    """Whether a machine of this row is what we are on: a CPU's study runs where it is planned, a GPU's where there is one."""
    return row.cores is not None or torch.cuda.is_available()


def questions(settings: StudySettings, problems: Problems) -> tuple[list[Asked], list[str]]:
    """The questions of every task that can be asked, and the tasks whose questions are not here."""
    found, missing = [], []
    wanted = settings.evaluate_settings()
    for one in wanted.questions:
        try:
            found += ask([one], wanted.judges)
        except InputError as error:
            missing.append(one.task)
            if one.data is not None or not is_out_of_reach(one.task):
                problems.add(str(error))
    if away := [name for name in missing if is_out_of_reach(name)]:
        problems.add(
            f"the Hub cannot be reached, and the questions of {', '.join(away)} are not here: what answering takes is not "
            "known",
            note=True,
        )
    for row in settings.tasks:
        if row.train is not None:
            one = Questions(task=row.task, data=row.data, count=row.train, split="train", seed=settings.data_seed)
            try:
                ask([one])
            except InputError as error:
                problems.add(str(error), note=row.data is None and is_out_of_reach(row.task))
    return found, missing


def is_out_of_reach(task: str) -> bool:
    """A benchmark whose rows are on the Hub, where that cannot be reached from here."""
    return task.removesuffix(".yaml") in BENCHMARKS and not hub_answers()


def teachers(settings: StudySettings, waiting: list[TraceRow], row: Hardware, problems: Problems) -> None:
    """One quick look at every endpoint that is still to be asked; `waiting`: the sets of pairs that are not there."""
    for traces in waiting:
        teacher = traces.teacher
        if traces.tasks is None or teacher == "solver":
            continue
        if isinstance(teacher, VllmSettings):
            _engine(row, problems)
            continue
        _endpoint(f"traces {traces.name}", teacher, problems)
    asked = settings.comparators.teacher
    if asked is not None:
        _look("comparators.teacher", asked.url, asked.model, asked.api_key_env, problems)
    for judge in settings.evaluate_settings().judges:
        _look("judges", judge.url, judge.model, getattr(judge, "api_key_env", "OPENAI_API_KEY"), problems)


def _endpoint(where: str, teacher: EndpointSettings, problems: Problems) -> None:
    _look(where, teacher.url, teacher.model, teacher.api_key_env, problems)
    if teacher.ift_model is not None or teacher.ift_url is not None:
        key = teacher.ift_api_key_env or ("" if teacher.ift_url is not None else teacher.api_key_env)
        _look(where, teacher.ift_url or teacher.url, teacher.ift_model or teacher.model, key, problems)


def _look(where: str, url: str, model: str, key: str, problems: Problems) -> None:
    try:
        check_endpoint(Endpoint(url, model, os.environ.get(key) if key else None))
    except InputError as error:
        said = str(error).replace("(OPENAI_API_KEY if no other is named)", f"({key})") if key else str(error)
        problems.add(f"{where}: {said}")


def _engine(row: Hardware, problems: Problems) -> None:
    try:
        require_vllm()
    except InputError as error:
        problems.add(str(error), note=not runs_here(row))


def engine(row: Hardware, problems: Problems) -> None:
    """Students are always served by vLLM."""
    _engine(row, problems)
    if not runs_here(row):
        problems.add(f"hardware {row.name}: there is none here; times are reckoned, not measured", note=True)
