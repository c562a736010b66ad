"""`distill serve profile`: what a student's answers to a task's questions cost in time, task by task.

    folder/
      profile.json    {"tasks": {name: the result of distill.serve.profile_endpoint}}

The questions come from the validation split: the server has not seen their prefixes while the test questions were
answered. Within one profile no prompt is sent twice.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from distill import artifact, console
from distill.artifact import Artifact
from distill.evaluation.evaluate import (
    Subject,
    ask,
    engine_version,
    load_subject,
    positions_needed,
    prompt_ids,
    reachable_server,
)
from distill.evaluation.settings import Questions
from distill.serve import Endpoint, ProfileSettings, SamplingSettings, profile_endpoint
from distill.settings import Settings

KIND = "profile"


class StudentProfileSettings(Settings):
    """The load, the same for every task."""

    tasks: list[str] = Field(min_length=1)
    concurrencies: tuple[int, ...] = (1, 8, 32)
    requests: int = Field(64, ge=1, description="measured at each concurrency")
    warmup_requests: int = Field(4, ge=0)
    max_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.0, ge=0)
    seed: int = 0


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
    prompts = prompt_ids(subject, asked)
    longest = positions_needed(subject, prompts, settings.max_tokens)
    recipe = profile_recipe(settings, subject)
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
            endpoint, subject, work.path / "server.log", positions=longest, threads=threads, port=port
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
        artifact.write_json(work.path / "profile.json", {"tasks": tasks})
        return work.commit({"tasks": sorted(tasks)}, remove=("server.log",))


def profile_questions(settings: StudentProfileSettings) -> list[Questions]:
    """As many questions of every task as one profile sends."""
    needed = len(settings.concurrencies) * (settings.requests + settings.warmup_requests)
    return [Questions(task=t, count=needed, split="validation", seed=settings.seed) for t in settings.tasks]


def profile_recipe(settings: StudentProfileSettings, subject: Subject) -> dict[str, Any]:
    """Everything but the clock that a profile depends on."""
    return {
        "settings": settings.model_dump(mode="json"),
        "student": subject.identity,
        "engine": engine_version("vllm"),
        "dtype": subject.dtype,
    }
