"""`distill traces generate`: every question to the teacher in both modes, and the answers to a trace set.

A journal keeps each answer as it comes. The rows are written at the end in the order of the questions, so a run that
was killed and one that was not leave the same bytes for the same answers.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill.artifact import Artifact, canonical_json, workspace
from distill.console import progress
from distill.errors import InputError
from distill.journal import Journal
from distill.tasks.problem import Problem
from distill.tasks.registry import get_task
from distill.tasks.task import Task
from distill.traces.faults import FAULTS
from distill.traces.pairing import Answer, pair_or_rejected
from distill.traces.settings import GenerateSettings
from distill.traces.store import KIND, Rejected, trace_from_row, trace_to_row, write_pairs
from distill.traces.teachers import EndpointTeacher, Question, SolverTeacher, Teacher
from distill.traces.top_k import Distributions, top_k_file, write_top_k
from distill.traces.trace import MODES, Mode, Pair

VERSION = 1  # part of every key: raise it when the same answers would give other rows
_JOURNAL = "journal.jsonl"


def generate(settings: GenerateSettings, out: Path) -> Artifact:
    """Ask the teacher for both answers to every question; write the pairs to the folder `out`.

    Run again after it was killed, it asks only for what is missing. Raises InputError for an unknown task, more
    questions than there are, an endpoint that does not answer, or when no question gave a pair.
    """
    tasks, teacher = _open(settings)
    counts = dict(zip(tasks, settings.tasks.values(), strict=True))
    recipe = _recipe(settings, tasks, teacher)
    with workspace(out, KIND, recipe) as space:
        if space.finished:
            return space.finished
        problems = [
            problem
            for name, task in tasks.items()
            for problem in task.problems(settings.split, counts[name], settings.seed)
        ]
        with Journal(space.path / _JOURNAL) as journal:
            failed = _ask(teacher, problems, journal)
            captured = _Captured()
            rows = _rows(teacher, tasks, problems, journal, failed, captured)
            summary = write_pairs(space.path, rows)
            if teacher.vocabulary is not None and summary["pairs"]:
                summary |= _write_top_k(space.path, teacher, journal, captured)
        if not summary["pairs"]:
            reasons = ", ".join(f"{FAULTS[reason]}: {count}" for reason, count in summary["rejected"].items())
            detail = next((f"; {answer.detail}" for answer in failed.values()), "")
            raise InputError(f"{out}: none of {len(problems)} questions gave a pair ({reasons}{detail})")
        return space.commit(summary | {"questions": len(problems)}, remove=(_JOURNAL,))


def generate_recipe(settings: GenerateSettings) -> dict[str, Any]:
    """Everything the trace set of these settings depends on. Raises InputError for an unknown task or missing file."""
    return _recipe(settings, *_open(settings))


def _open(settings: GenerateSettings) -> tuple[dict[str, Task], Teacher]:
    tasks: dict[str, Task] = {}
    for name in settings.tasks:
        task = get_task(name)
        if task.name in tasks:
            raise InputError(f"tasks: {task.name} is named twice; generate two trace sets instead")
        tasks[task.name] = task
    if settings.teacher == "solver":
        return tasks, SolverTeacher(tasks)
    return tasks, EndpointTeacher(settings.teacher, settings.seed)


def _recipe(settings: GenerateSettings, tasks: dict[str, Task], teacher: Teacher) -> dict[str, Any]:
    counts = zip(tasks.values(), settings.tasks.values(), strict=True)
    return {
        "version": VERSION,
        "tasks": {task.name: {"revision": task.revision, "count": count} for task, count in counts},
        "order": list(tasks),  # of the rows; the keys of a recipe are sorted
        "split": settings.split,
        "seed": settings.seed,
        "teacher": teacher.identity | teacher.prices,
    }


def request_key(teacher: Teacher, problem: Problem, mode: Mode) -> str:
    """The hash of everything the answer depends on."""
    return hashlib.sha256(canonical_json([teacher.identity, mode, teacher.render(problem, mode)]).encode()).hexdigest()


def _ask(teacher: Teacher, problems: list[Problem], journal: Journal) -> dict[str, Answer]:
    """Get what the journal does not have. Returns the requests that failed, which it does not keep."""
    missing: dict[str, Question] = {}
    total = 2 * len(problems)
    for problem in problems:
        for mode in MODES:
            key = request_key(teacher, problem, mode)
            if key not in journal:
                missing[key] = (problem, mode)
    keys, failed = list(missing), {}
    with progress() as bar:
        task = bar.add_task("asking the teacher", total=total, completed=total - len(keys))

        def on_answer(index: int, answer: Answer) -> None:
            if answer.fault == "failed":
                failed[keys[index]] = answer
            else:
                journal.append(keys[index], _to_json(answer))
            bar.advance(task)

        if keys:
            asyncio.run(teacher.answer(list(missing.values()), on_answer))
    return failed


@dataclass
class _Captured:
    """Where in the journal the distributions of the pairs are, in the pairs' order, and how long they are."""

    keys: dict[Mode, list[str]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    lengths: dict[Mode, list[int]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    temperatures: set[float] = field(default_factory=set)

    def add(self, mode: Mode, key: str, found: Distributions) -> None:
        self.keys[mode].append(key)
        self.lengths[mode].append(len(found.token_ids))
        self.temperatures.add(found.temperature)


def _rows(
    teacher: Teacher,
    tasks: dict[str, Task],
    problems: list[Problem],
    journal: Journal,
    failed: dict[str, Answer],
    captured: _Captured,
) -> Iterator[Pair | Rejected]:
    for problem in problems:
        answers, keys = {}, {mode: request_key(teacher, problem, mode) for mode in MODES}
        for mode, key in keys.items():
            answer = failed.get(key) or _from_json(journal.get(key), mode)
            answers[mode] = replace(answer, trace=replace(answer.trace, cost_usd=teacher.cost_usd(answer)))
        row = pair_or_rejected(problem, answers["reasoning"], answers["ift"], tasks[problem.task].is_correct)
        if isinstance(row, Pair) and teacher.vocabulary is not None:
            for mode, answer in answers.items():
                captured.add(mode, keys[mode], answer.distributions)
        yield row


def _write_top_k(folder: Path, teacher: EndpointTeacher, journal: Journal, captured: _Captured) -> dict[str, Any]:
    """Both modes' files. Returns what the summary says of them."""
    if len(captured.temperatures) > 1:
        found = " and ".join(f"{t:g}" for t in sorted(captured.temperatures))
        raise InputError(
            f"{folder}: log-probabilities captured at temperatures {found}: the server's --logprobs-mode was changed "
            f"between two runs of this command; delete {folder / _JOURNAL} and run again"
        )
    k, temperature = teacher.settings.top_k, captured.temperatures.pop()
    for mode in MODES:
        answers = (Distributions.from_json(journal.get(key)["top_k"]) for key in captured.keys[mode])
        write_top_k(
            top_k_file(folder, mode),
            captured.lengths[mode],
            answers,
            k=k,
            temperature=temperature,
            vocabulary=teacher.vocabulary,
        )
    return {"top_k": {"k": k, "temperature": temperature, "tokens": sum(map(sum, captured.lengths.values()))}}


def _to_json(answer: Answer) -> dict[str, Any]:
    rest = {"fault": answer.fault, "detail": answer.detail, "output_tokens": answer.output_tokens}
    if answer.distributions is not None:
        rest["top_k"] = answer.distributions.to_json()
    return {"trace": trace_to_row(answer.trace)} | rest


def _from_json(value: dict[str, Any], mode: Mode) -> Answer:
    found = Distributions.from_json(value["top_k"]) if "top_k" in value else None
    return Answer(trace_from_row(value["trace"], mode), value["fault"], value["detail"], value["output_tokens"], found)
