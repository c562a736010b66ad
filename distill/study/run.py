"""`distill study run`: from a preset to results.json and report.html, doing only what is not done yet.

out/
  traces-<key>/             the teacher's pairs
  documents/<key>/          the pairs as a tokenizer's tokens
  students/<cell>-seed<n>-<key>/      trained students, ready for transformers and vLLM
  evaluations/..., profiles/...       their graded answers and their cost under load
  declared.json             the questions, contrasts and margin, written before anything was run
  logs/                     what every child process printed
  results.json, report.html
"""

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from distill import artifact, console
from distill.artifact import Artifact, content_key
from distill.errors import InputError
from distill.evaluation.evaluate import evaluate, evaluation_recipe
from distill.evaluation.profile import (
    StudentProfileSettings,
    profile_questions,
    profile_recipe,
    profile_student,
)
from distill.evaluation.questions import Asked, ask, positions_needed, prompt_ids
from distill.evaluation.settings import EvaluateSettings, Questions
from distill.evaluation.subject import Subject, load_subject
from distill.serve import Endpoint, Server, ServerSettings
from distill.settings import validate
from distill.study.cells import Member, cells
from distill.study.declared import declare
from distill.study.jobs import Children, Job, run_jobs
from distill.study.report import write_report
from distill.study.results import MemberOutcome, build_results
from distill.study.settings import StudySettings
from distill.traces.generate import generate, generate_recipe
from distill.traces.settings import GenerateSettings
from distill.training.run import Stopped
from distill.training.train import KIND as STUDENT
from distill.training.train import recipe as train_recipe


@dataclass
class _Study:
    """One run: the settings, where it writes, and what is finished."""

    settings: StudySettings
    out: Path
    workers: int
    threads: int
    children: Children = field(default_factory=Children)
    traces: Artifact | None = None
    students: dict[str, Artifact] = field(default_factory=dict)
    outcomes: dict[str, MemberOutcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The settings of every stage and every question, before anything runs: what they refuse is said now.
        s, names = self.settings, [row.task for row in self.settings.tasks]
        values: dict[str, Any] = {"tasks": {row.task: row.train for row in s.tasks}, "teacher": s.teacher}
        self.wanted = validate(GenerateSettings, values | {"seed": s.data_seed}, source="traces")
        values = {"questions": [{"task": row.task, "count": row.test, "seed": s.data_seed} for row in s.tasks]}
        self.asked = validate(EvaluateSettings, values | s.evaluation.model_dump(), source="evaluation")
        values = {"tasks": names, **s.serving.model_dump(exclude={"kv_cache_gib"}), **s.evaluation.model_dump()}
        self.load = validate(StudentProfileSettings, values, source="serving")
        ask([Questions(task=row.task, count=row.train, split="train", seed=s.data_seed) for row in s.tasks])
        self.test: list[Asked] = ask(self.asked.questions)
        self.validation: list[Asked] = ask(profile_questions(self.load))

    def make_traces(self) -> None:
        key = content_key("traces", generate_recipe(self.wanted))
        self.traces = generate(self.wanted, self.out / f"traces-{key[:12]}")

    def train(self, member: Member) -> None:
        wanted = member.train_settings(self.settings)
        key = content_key(STUDENT, train_recipe(wanted, self.traces.key))
        folder = self.out / "students" / f"{member.id}-{key[:12]}"
        if not (folder / artifact.MANIFEST).is_file():
            config = self.out / "logs" / f"{folder.name}.json"
            config.parent.mkdir(parents=True, exist_ok=True)
            artifact.write_json(config, wanted.model_dump(mode="json"))
            paths = ["--config", str(config), "--traces", str(self.traces.path), "--out", str(folder)]
            paths += ["--documents", str(self.out / "documents")]  # arms and seeds of a size read the same ones
            self.children.run(
                ["train", *paths, "--threads", str(self.threads)], config.with_suffix(".log"), self.threads
            )
        self.students[member.id] = artifact.read(folder, STUDENT, made_by="distill train")

    def serve(self, member: Member) -> None:
        """Ask the student its questions and put it under load, with one server for both."""
        student = self.students[member.id]
        subject = load_subject(student.path)
        positions = max(
            positions_needed(subject, prompt_ids(subject, questions), self.settings.evaluation.max_tokens)
            for questions in (self.test, self.validation)
        )
        keys = (
            content_key("evaluation", evaluation_recipe(self.asked, subject, self.test)),
            content_key("profile", profile_recipe(self.load, subject, self.validation, self.threads)),
        )
        folders = [
            self.out / kind / f"{member.id}-{key[:12]}"
            for kind, key in zip(("evaluations", "profiles"), keys, strict=True)
        ]
        with self._server_when_needed(member, subject, positions) as endpoint:
            evaluation = evaluate(self.asked, student.path, folders[0], endpoint=endpoint)
            profile = profile_student(self.load, student.path, folders[1], endpoint=endpoint, threads=self.threads)
        self.outcomes[member.id] = MemberOutcome(student, evaluation, profile)

    @contextmanager
    def _server_when_needed(self, member: Member, subject: Subject, positions: int) -> Iterator[Callable[[], Endpoint]]:
        """A function that starts a server at its first call and gives the same one after; taken down at the end."""
        started: list[Server] = []
        settings = ServerSettings(
            dtype=subject.dtype,
            max_model_len=positions,
            threads=self.threads,
            kv_cache_gib=self.settings.serving.kv_cache_gib,
        )

        with ExitStack() as stack:

            def endpoint() -> Endpoint:
                if not started:
                    log = self.out / "logs" / f"{member.id}.server.log"
                    log.parent.mkdir(parents=True, exist_ok=True)
                    server = Server(str(subject.folder), settings, log)
                    started.append(stack.enter_context(self.children.serving(server)))
                return started[0].endpoint

            yield endpoint


def run(settings: StudySettings, out: Path, *, command: str, workers: int | None = None) -> Path:
    """Run a study, or what is missing of it; returns the folder. Raises InputError when it cannot start, Stopped on Ctrl-C or SIGTERM.

    `command`: how to run it again, for the report. `workers`: jobs at a time. On a CPU one a core, each single-threaded; on a GPU one.
    """
    gpu = torch.cuda.is_available()
    cores = len(os.sched_getaffinity(0))
    if workers is None:
        workers = 1 if gpu else cores
    if workers < 1:
        raise InputError(f"workers: expected at least 1, found {workers}")
    study = _Study(settings, out, workers, max(1, cores // workers))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
    declare(settings, out)
    with _stop_requests():
        return _run(study, command)


def _run(study: _Study, command: str) -> Path:
    settings, out = study.settings, study.out
    study.make_traces()
    members = [member for cell in cells(settings) for member in cell.students()]
    jobs = [Job(f"train {m.id}", functools.partial(study.train, m)) for m in _longest_first(members)]
    jobs += [Job(f"serve {m.id}", functools.partial(study.serve, m), after=(f"train {m.id}",)) for m in members]
    failures = run_jobs(jobs, workers=study.workers, children=study.children)
    console.note("resampling for the intervals, writing results.json and report.html")
    results = build_results(settings, study.outcomes, failures, command=command)
    artifact.write_json(out / "results.json", results)
    write_report(out)
    return out


@contextmanager
def _stop_requests() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise Stopped in the main thread, so that servers and children are taken down in order."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def stop(number: int, _frame: Any) -> None:
        raise Stopped("stopped; what was finished is kept, run the same command again", number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _longest_first(members: list[Member]) -> list[Member]:
    """Large students and long arms first, so that no core idles at the end."""
    sizes = list(dict.fromkeys(m.cell.size.name for m in members))
    short = lambda arm: (arm.arm, arm.match) == ("ift", "samples")  # noqa: E731
    return sorted(members, key=lambda m: (-sizes.index(m.cell.size.name), short(m.cell.arm)))
