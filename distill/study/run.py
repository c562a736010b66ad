"""`distill study run`: from a preset to results.json and report.html, doing only what is not done yet.

out/
  traces-<key>/             the teacher's pairs
  documents/<key>/          the pairs as a tokenizer's tokens
  students/<cell>-seed<n>-<key>/      trained students, ready for transformers and vLLM
  evaluations/..., profiles/...       their graded answers and their cost under load; what stands beside them
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from distill import artifact, console
from distill.artifact import Artifact, content_key
from distill.errors import InputError
from distill.evaluation.answer_file import KIND as EVALUATION
from distill.evaluation.answers import Think
from distill.evaluation.evaluate import evaluate, evaluation_recipe, render
from distill.evaluation.few_shot import examples
from distill.evaluation.grading import grading_recipe
from distill.evaluation.questions import Asked, ask, positions_needed
from distill.evaluation.server import Serving
from distill.evaluation.serving.profile import (
    StudentProfileSettings,
    profile_questions,
    profile_recipe,
    profile_student,
)
from distill.evaluation.settings import EvaluateSettings, Questions
from distill.evaluation.subject import Subject, load_subject
from distill.evaluation.thinking import think_prompts
from distill.serve import Endpoint, Server, ServerSettings
from distill.settings import validate
from distill.study.cells import Member, cells
from distill.study.comparators import TEACHER
from distill.study.declared import declare
from distill.study.jobs import Children, Job, run_jobs
from distill.study.outcomes import MemberOutcome
from distill.study.report import write_report
from distill.study.results import build_results
from distill.study.settings import StudentRow, StudySettings
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
    asked_once: dict[str, Artifact] = field(default_factory=dict)  # the teacher and untrained bases

    def __post_init__(self) -> None:
        # The settings of every stage and every question, before anything runs: what they refuse is said now.
        s, names = self.settings, [row.task for row in self.settings.tasks]
        values: dict[str, Any] = {"tasks": {row.task: row.train for row in s.tasks}, "teacher": s.teacher}
        self.wanted = validate(GenerateSettings, values | {"seed": s.data_seed}, source="traces")
        self.asked = {think: self._evaluation(think=think) for think in ("free", "on", "off")}
        values = {"tasks": names, **s.serving.model_dump(exclude={"kv_cache_gib"})}
        values |= s.evaluation.model_dump(include={"max_tokens", "temperature"})
        self.load = {
            think: validate(StudentProfileSettings, values | {"think": think}, source="serving") for think in self.asked
        }
        ask([Questions(task=row.task, count=row.train, split="train", seed=s.data_seed) for row in s.tasks])
        self.test: list[Asked] = ask(self.asked["free"].questions)
        self.validation: list[Asked] = profile_questions(self.load["free"])
        for a in self.test if s.comparators.base is not None else []:
            examples(a.task, a.problems, s.comparators.base.few_shot)

    def _evaluation(self, *, tasks: list[str] | None = None, **values: Any) -> EvaluateSettings:
        """How the study's questions, or those of some tasks, are asked; as the preset says but for `values`."""
        s = self.settings
        rows = [row for row in s.tasks if tasks is None or row.task in tasks]
        questions = [{"task": row.task, "count": row.test, "seed": s.data_seed} for row in rows]
        whole = {"questions": questions, **s.evaluation.model_dump(), **values}
        return validate(EvaluateSettings, whole, source="evaluation")

    def make_traces(self) -> None:
        key = content_key("traces", generate_recipe(self.wanted))
        self.traces = generate(self.wanted, self.out / f"traces-{key[:12]}")

    def train(self, member: Member) -> None:
        wanted = member.train_settings(self.settings)
        key = content_key(STUDENT, train_recipe(wanted, self.traces.key))
        folder = self.out / "students" / f"{member.student}-{key[:12]}"
        if not (folder / artifact.MANIFEST).is_file():
            config = self.out / "logs" / f"{folder.name}.json"
            config.parent.mkdir(parents=True, exist_ok=True)
            artifact.write_json(config, wanted.model_dump(mode="json"))
            paths = ["--config", str(config), "--traces", str(self.traces.path), "--out", str(folder)]
            paths += ["--documents", str(self.out / "documents")]  # arms and seeds of a size read the same ones
            self.children.run(
                ["train", *paths, "--threads", str(self.threads)], config.with_suffix(".log"), self.threads
            )
        self.students[member.student] = artifact.read(folder, STUDENT, made_by="distill train")

    def serve(self, member: Member) -> None:
        """Ask the student its questions and put it under load, with one server for everything."""
        student = self.students[member.student]
        subject = load_subject(student.path)
        think = member.cell.arm.think or self.settings.evaluation.think
        asked, load = self.asked[think], self.load[think]
        shown = think_prompts(subject, self.validation, load.mode, think).ids
        prompts = render(asked, subject, self.test)
        positions = max(positions_needed(subject, ids, asked.max_tokens) for ids in (prompts.ids, shown))
        evaluation_key = content_key("evaluation", evaluation_recipe(asked, subject, self.test, prompts))
        profile_key = content_key("profile", profile_recipe(load, subject, self.validation, self.threads))
        with self._server_when_needed(member.id, subject, positions) as endpoint:
            serving = Serving(endpoint, threads=self.threads)
            folder = self.out / "evaluations" / f"{member.id}-{evaluation_key[:12]}"
            evaluation = evaluate(asked, student.path, folder, serving)
            folder = self.out / "profiles" / f"{member.id}-{profile_key[:12]}"
            profile = profile_student(load, student.path, folder, serving, of_study=True)
            outcome = MemberOutcome(student, evaluation, profile, subject.shape)
            self.outcomes[member.id] = outcome
            if self._votes(member):
                sampled = self._sample_votes(member, subject, think, serving)
                self.outcomes[member.id] = replace(outcome, sampled=sampled)

    def _votes(self, member: Member) -> bool:
        """Whether a majority of this student's answers is asked for."""
        row = self.settings.comparators.majority
        of_arm = row is not None and member.cell.arm.name == row.arm
        return of_arm and member.seed in (self.settings.seeds_of("majority", member.cell.size) or [])

    def _sample_votes(self, member: Member, subject: Subject, think: Think, serving: Serving) -> Artifact:
        row = self.settings.comparators.majority
        values = {"samples": row.votes, "temperature": row.temperature, "think": think}
        settings = self._evaluation(tasks=row.tasks, **values)
        asked = ask(settings.questions)
        key = content_key("evaluation", evaluation_recipe(settings, subject, asked, render(settings, subject, asked)))
        folder = self.out / "evaluations" / f"{member.cell.size.name}-majority-seed{member.seed}-{key[:12]}"
        return evaluate(settings, subject.folder, folder, serving)

    def ask_base(self, size: StudentRow) -> None:
        """Ask a pretrained student what it knows before it is trained."""
        name = f"{size.name}-base"
        settings = self._evaluation(few_shot=self.settings.comparators.base.few_shot, think="free")
        subject = load_subject(_base_folder(size.student))
        prompts = render(settings, subject, self.test)
        positions = positions_needed(subject, prompts.ids, settings.max_tokens)
        key = content_key("evaluation", evaluation_recipe(settings, subject, self.test, prompts))
        with self._server_when_needed(name, subject, positions) as endpoint:
            folder = self.out / "evaluations" / f"{name}-{key[:12]}"
            serving = Serving(endpoint, threads=self.threads)
            self.asked_once[name] = evaluate(settings, subject.folder, folder, serving)

    def ask_teacher(self) -> None:
        """In a process of its own, which can be taken down while it waits for a server that is not ours."""
        row = self.settings.comparators.teacher
        limit = row.max_tokens or self.settings.evaluation.max_tokens
        settings = self._evaluation(max_tokens=limit, think=row.think)
        recipe = {
            "settings": settings.of_recipe(),
            "model": [row.url, row.model],
            "tasks": {a.task.name: a.task.revision for a in self.test},
            "grading": grading_recipe(self.test),
        }
        folder = self.out / "evaluations" / f"{TEACHER}-{content_key(EVALUATION, recipe)[:12]}"
        if not (folder / artifact.MANIFEST).is_file():
            flags: dict[str, Any] = {
                "tasks": ",".join(f"{task.task}={task.test}" for task in self.settings.tasks),
                "endpoint": row.url,
                "model": row.model,
                "api-key-env": row.api_key_env,
                "think": row.think,
                "samples": settings.samples,
                "temperature": settings.temperature,
                "max-tokens": limit,
                "seed": self.settings.data_seed,
                "out": folder,
            }
            log = self.out / "logs" / f"{folder.name}.log"
            self.children.run(["evaluate", *(f"--{name}={value}" for name, value in flags.items())], log, self.threads)
        self.asked_once[TEACHER] = artifact.read(folder, EVALUATION, made_by="distill evaluate")

    @contextmanager
    def _server_when_needed(self, name: str, subject: Subject, positions: int) -> Iterator[Callable[[], Endpoint]]:
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
                    log = self.out / "logs" / f"{name}.server.log"
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
    trained = {m.student: m for m in members}
    jobs = [Job(f"train {m.student}", functools.partial(study.train, m)) for m in _longest_first([*trained.values()])]
    jobs += [Job(f"serve {m.id}", functools.partial(study.serve, m), after=(f"train {m.student}",)) for m in members]
    jobs += [
        Job(f"ask {size.name}-base", functools.partial(study.ask_base, size))
        for size in settings.students
        if settings.comparators.base is not None and settings.seeds_of("base", size) is None
    ]
    if settings.comparators.teacher is not None:
        jobs.insert(0, Job(f"ask {TEACHER}", study.ask_teacher))  # it waits for others and takes no core
    failures = run_jobs(jobs, workers=study.workers, children=study.children)
    console.note("resampling for the intervals, writing results.json and report.html")
    results = build_results(settings, study.outcomes, failures, command=command, asked_once=study.asked_once)
    artifact.write_json(out / "results.json", results)
    write_report(out)
    return out


def _base_folder(student: str) -> Path:
    """Where a pretrained student lies; one of the Hub is fetched, or found where training put it."""
    if Path(student).is_dir():
        return Path(student)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(student, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"])
        )
    except (OSError, ValueError) as error:  # what it raises without a network, for a wrong name, or without access
        raise InputError(f"student {student}: {str(error).splitlines()[0]}") from None


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
