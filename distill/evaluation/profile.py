"""`distill serve profile`: what a student's answers to a task's questions cost in time, task by task.

    folder/
      profile.json    {"threads": of the server, "tasks": {name: the result of distill.serve.profile_endpoint}}

The questions come from the validation split: the server has not seen their prefixes while the test questions were
answered. Within one profile no prompt is sent twice.
"""

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from distill import artifact, console
from distill.artifact import Artifact
from distill.errors import InputError
from distill.evaluation.questions import Asked, ask, positions_needed, prompt_ids
from distill.evaluation.server import engine_version, reachable_server, server_log
from distill.evaluation.settings import Questions
from distill.evaluation.subject import Subject, load_subject
from distill.serve import Endpoint, ProfileSettings, SamplingSettings, profile_endpoint
from distill.settings import Settings
from distill.traces.trace import Mode

KIND = "profile"


class StudentProfileSettings(Settings):
    """The load, the same for every task."""

    tasks: list[str] = Field(min_length=1)
    mode: Mode | None = Field(None, description="what a student with a mode signal is asked for")
    concurrencies: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 8, 32), min_length=1)
    requests: int = Field(64, ge=1, description="measured at each concurrency")
    warmup_requests: int = Field(4, ge=0)
    max_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.0, ge=0)
    seed: int = Field(0, ge=0, lt=2**31)


def profile_student(
    settings: StudentProfileSettings,
    student: Path,
    out: Path,
    *,
    endpoint: Callable[[], Endpoint] | None = None,
    threads: int | None = None,
    port: int | None = None,
) -> Artifact:
    """Put a student under load. `endpoint` as in `evaluate`. Raises InputError."""
    subject = load_subject(student)
    asked = ask(profile_questions(settings))
    prompts = prompt_ids(subject, asked, settings.mode)
    longest = positions_needed(subject, prompts, settings.max_tokens)
    recipe = profile_recipe(settings, subject, asked, threads)
    load = ProfileSettings(
        concurrencies=settings.concurrencies,
        requests=settings.requests,
        warmup_requests=settings.warmup_requests,
        sampling=SamplingSettings(
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            seed=settings.seed,
            stop_token_ids=(subject.chat.end_of_turn,),
        ),
    )
    with artifact.workspace(out, KIND, recipe) as work:
        if work.finished:
            console.note(f"{out}: already profiled, nothing to do")
            return work.finished
        with reachable_server(
            endpoint, subject, server_log(out), positions=longest, threads=threads, port=port
        ) as reachable:
            tasks = {
                a.task.name: profile_endpoint(
                    reachable,
                    [prompts[problem.id] for problem in a.problems],
                    load,
                    think_start_id=subject.chat.think_open_id,
                    think_end_id=subject.chat.think_close_id,
                    show_progress=True,
                )
                for a in asked
            }
        for name, result in tasks.items():
            for level in result["levels"]:
                if level["failed"]:
                    raise InputError(
                        f"{student}: {level['failed']} of {level['requests']} requests failed on {name} at concurrency "
                        f"{level['concurrency']} ({next(iter(level['errors']))}); run again"
                    )
        artifact.write_json(work.path / "profile.json", {"threads": threads, "tasks": tasks})
        return work.commit({"threads": threads, "tasks": sorted(tasks)})


def profile_questions(settings: StudentProfileSettings) -> list[Questions]:
    """As many questions of every task as one profile sends."""
    needed = len(settings.concurrencies) * (settings.requests + settings.warmup_requests)
    return [Questions(task=t, count=needed, split="validation", seed=settings.seed) for t in settings.tasks]


def profile_recipe(
    settings: StudentProfileSettings, subject: Subject, asked: list[Asked], threads: int | None
) -> dict[str, Any]:
    """Everything but the clock that a profile depends on, the machine among it."""
    return {
        "settings": settings.model_dump(mode="json", exclude_none=True),
        "student": subject.identity,
        "rendered": subject.chat.rendered,
        "tasks": {a.task.name: a.task.revision for a in asked},
        "engine": engine_version("vllm"),
        "dtype": subject.dtype,
        "threads": threads,
        "machine": {
            "processor": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }
