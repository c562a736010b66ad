"""What the stages of a study do, and where each leaves what it made.

out/
  traces-<key>/             the pairs; of a set with a name, traces-<name>-<key>
  documents/<key>/          the pairs as a tokenizer's tokens
  students/<cell>-seed<n>-<key>/      trained students, ready for transformers and vLLM
  evaluations/..., profiles/...       their graded answers and their cost under load; what stands beside them
  stages/<stage>.json       which of these a stage left, and what it was asked for
  logs/                     what every child process printed

A stage that is asked for again finds what it left by its key, which the machine is a part of. A workplace that only looks
makes nothing, and goes by stages/: so it finds what another machine has made.
"""

import copy
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from distill import artifact
from distill.artifact import Artifact, content_key
from distill.errors import InputError, unknown_name
from distill.evaluation.answer_file import KIND as EVALUATION
from distill.evaluation.budgets import server_arguments, why_not_vllm
from distill.evaluation.endpoint import ModelSettings, evaluate_endpoint
from distill.evaluation.evaluate import evaluate, evaluation_recipe, render
from distill.evaluation.few_shot import examples
from distill.evaluation.grading import grading_recipe
from distill.evaluation.loglikelihood import with_options
from distill.evaluation.questions import Asked, Prompts, ask, positions_needed
from distill.evaluation.requests import answer_limit
from distill.evaluation.server import Serving
from distill.evaluation.serving.profile import KIND as PROFILE
from distill.evaluation.serving.profile import (
    StudentProfileSettings,
    profile_questions,
    profile_recipe,
    profile_student,
)
from distill.evaluation.settings import EvaluateSettings, Questions
from distill.evaluation.subject import Subject, load_subject
from distill.evaluation.thinking import think_prompts
from distill.process import distill_command
from distill.serve import Endpoint, Server
from distill.settings import validate
from distill.study.cells import Member
from distill.study.jobs import Children
from distill.study.outcomes import MemberOutcome
from distill.study.rows import TRACES, ArmRow, StudentRow, TraceRow
from distill.study.settings import StudySettings
from distill.study.storage import Storage
from distill.traces.generate import generate, generate_recipe
from distill.traces.layouts.import_traces import import_file
from distill.traces.store import KIND as PAIRS
from distill.training.train import KIND as STUDENT
from distill.training.train import recipe as train_recipe

TEACHER = "teacher"
_OF_AN_ARM = {"data", "mode", "think", "thinking_budget"}  # fields of a profile that rows say


class NotMade(InputError):
    """What a workplace that only looks did not find."""


@dataclass(frozen=True)
class StageNote:
    """stages/<stage>.json: what a stage left. `asked_for` is a key of its settings and inputs, without the machine."""

    out: Path
    stage: str
    asked_for: str
    storage: Storage | None = None

    @property
    def file(self) -> Path:
        return self.out / "stages" / f"{file_name(self.stage)}.json"

    def folders(self) -> dict[str, str]:
        """Of what was left, under `out`. Raises NotMade when the stage was not done, or for other settings."""
        said = self._said()
        if self.storage is not None and said.get("asked_for") != self.asked_for:
            said = self.storage.note(self.file, self.asked_for)
        if said.get("asked_for") != self.asked_for:
            raise NotMade(f"{self.out}: {self.stage} is not done yet")
        return said["left"]

    def read(self, name: str, kind: str, *, made_by: str = "distill study") -> Artifact:
        folder = self.out / str(self.folders().get(name))
        if self.storage is not None:
            folder = self.storage.outline(folder)
        if not (folder / artifact.MANIFEST).is_file():
            raise NotMade(f"{folder}: not there any more")
        return artifact.read(folder, kind, made_by=made_by)

    def write(self, **made: Artifact) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        left = {name: str(one.path.relative_to(self.out)) for name, one in made.items()}
        said = {"stage": self.stage, "asked_for": self.asked_for, "left": left}
        if self.storage is not None:
            for one in made.values():
                self.storage.keep(one.path)
            said = self.storage.keep_note(self.file, self.asked_for, said)
        if self._said() != said:
            artifact.write_json(self.file, said)

    def _said(self) -> dict[str, Any]:
        """Empty where nothing was, or what was is damaged: asked again, the stage finds what it left and says so anew."""
        try:
            said = artifact.read_json(self.file) if self.file.is_file() else {}
        except InputError:
            return {}
        return said if isinstance(said, dict) and isinstance(said.get("left"), dict) else {}


def file_name(stage: str) -> str:
    """A stage's name as a file has it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stage)


@dataclass(frozen=True)
class Asking:
    """What one student is asked, and the server that takes it: positions of a prompt and its answer, arguments of vLLM's."""

    prompts: Prompts
    positions: int
    arguments: tuple[str, ...]


@dataclass
class Workplace:
    """`threads` of a CPU for each stage; `gpus`: which of them, where a stage gets some of several; `storage`: where
    finished folders lie that are not here, and go that are made."""

    settings: StudySettings
    out: Path
    threads: int
    children: Children = field(default_factory=Children)
    looks_only: bool = False
    gpus: tuple[str, ...] | None = None
    storage: Storage | None = None

    def __post_init__(self) -> None:
        # The settings of every stage and every question, before anything runs: what they refuse is said now.
        s = self.settings
        self.test: list[Asked] = ask(s.evaluate_settings().questions, s.evaluate_settings().judges)
        given: dict[str, str] = {}
        for row, a in zip(s.tasks, self.test, strict=True):
            if (other := given.setdefault(a.task.name, row.task)) != row.task:
                raise InputError(f"tasks: {other} and {row.task} are both called {a.task.name} in the results")
            if row.metric not in a.task.metrics:
                raise unknown_name(f"metric of task {row.task}", row.metric, a.task.metrics)
        for arm in s.arms:
            self.load_settings(arm)
        trained = [row for row in s.tasks if row.train is not None]
        ask([Questions(task=r.task, data=r.data, count=r.train, split="train", seed=s.data_seed) for r in trained])
        _ = self.validation
        for a in self.test if s.comparators.base is not None else []:
            examples(a.task, a.problems, s.comparators.base.few_shot)

    @cached_property
    def validation(self) -> list[Asked]:
        """The questions that students are put under load with."""
        return profile_questions(self.load_settings(self.settings.arms[0]))

    def on(self, gpus: tuple[str, ...] | None) -> "Workplace":
        """The same with some of several GPUs."""
        return self._but(gpus=gpus)

    # The stages.

    def traces(self, row: TraceRow) -> Artifact:
        """The pairs of a row: asked for, imported, or found."""
        if row.folder is not None:
            return artifact.read(row.folder, PAIRS, made_by="distill traces")
        asked_for = row.model_dump(mode="json", exclude={"expected_tokens", "expected_pairs"})
        note = self._note(f"traces {row.name}", asked_for | {"seed": self.settings.data_seed})
        if self.looks_only:
            return note.read("pairs", PAIRS, made_by="distill traces")
        named = "traces" if row.name == TRACES else f"traces-{row.name}"
        if row.tasks is not None:
            wanted = self.settings.generate_settings(row)
            made = generate(wanted, self.out / f"{named}-{content_key('traces', generate_recipe(wanted))[:12]}")
        else:
            about = row.imported.model_dump(mode="json")
            how = {name: value for name, value in about.items() if name not in ("file", "layout")}
            folder = self.out / f"{named}-{content_key('import', about)[:12]}"
            made = import_file(row.imported.file, row.imported.layout, folder, **how)
        note.write(pairs=made)
        return made

    def train(self, member: Member) -> Artifact:
        wanted = member.train_settings(self.settings)
        traces = self.looking().traces(self.settings.traces_of(member.cell.arm))
        asked_for = {"settings": wanted.model_dump(mode="json"), "traces": traces.key}
        first = member.origin(self.settings)
        origin = self.looking().train(first) if first is not None else None
        if origin is not None:
            asked_for |= {"after": origin.key}
        note = self._note(f"train {member.student}", asked_for)
        if self.looks_only:
            return note.read("student", STUDENT, made_by="distill train")
        if origin is not None:
            wanted = wanted.model_copy(update={"student": str(self._whole(origin.path))})
        key = content_key(STUDENT, train_recipe(wanted, traces.key))
        folder = self.out / "students" / f"{member.student}-{key[:12]}"
        if not (folder / artifact.MANIFEST).is_file():
            config = self.out / "logs" / f"{folder.name}.json"
            config.parent.mkdir(parents=True, exist_ok=True)
            artifact.write_json(config, wanted.model_dump(mode="json"))
            paths = ["--config", str(config), "--traces", str(self._whole(traces.path)), "--out", str(folder)]
            paths += ["--documents", str(self.out / "documents")]  # arms and seeds of a size read the same ones
            paths += ["--activation-checkpointing", member.cell.size.activation_checkpointing]
            command = distill_command("train", *paths, "--threads", str(self.threads))
            if member.cell.size.devices > 1:
                launcher = [
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    f"--nproc-per-node={member.cell.size.devices}",
                ]
                command[1:1] = launcher
            self.children.run(command, config.with_suffix(".log"), self.threads, self._environment)
        made = artifact.read(folder, STUDENT, made_by="distill train")
        note.write(student=made)
        return made

    def serve(self, member: Member) -> MemberOutcome:
        """Ask the student its questions and put it under load, with one server for everything."""
        student = self.looking().train(member)
        asked = self.settings.evaluate_settings(**self.settings.asking(member.cell.arm))
        load, votes = self.load_settings(member.cell.arm), self._vote_settings(member)
        asked_for = {
            "student": student.key,
            "asked": asked.model_dump(mode="json"),
            "load": load.model_dump(mode="json"),
        }
        asked_for |= {"tasks": {a.task.name: a.task.revision for a in self.test}} | self._of_the_server
        note = self._note(f"serve {member.id}", asked_for | {"votes": votes and votes.model_dump(mode="json")})
        subject = load_subject(student.path)
        if self.looks_only:
            found = [note.read("evaluation", EVALUATION), note.read("profile", PROFILE)]
            sampled = note.read("sampled", EVALUATION) if votes else None
            return MemberOutcome(student, *found, subject.shape, sampled)
        how = self.asking(member, subject)
        evaluation_key = self._key("evaluation", evaluation_recipe(asked, subject, self.test, how.prompts))
        profile_key = self._key("profile", profile_recipe(load, subject, self.validation, self.threads))
        with self._server_when_needed(member.id, subject, how.positions, how.arguments) as endpoint:
            serving = Serving(endpoint, threads=self.threads)
            folder = self.out / "evaluations" / f"{member.id}-{evaluation_key[:12]}"
            evaluation = evaluate(asked, student.path, folder, serving)
            folder = self.out / "profiles" / f"{member.id}-{profile_key[:12]}"
            profile = profile_student(load, student.path, folder, serving, of_study=True)
            sampled = self._sample_votes(member, subject, votes, serving) if votes else None
        note.write(evaluation=evaluation, profile=profile, **({"sampled": sampled} if sampled else {}))
        return MemberOutcome(student, evaluation, profile, subject.shape, sampled)

    def asking(self, member: Member, subject: Subject) -> Asking:
        """How this student is asked. Raises InputError where its tokenizer or its positions do not allow it."""
        asked = self.settings.evaluate_settings(**self.settings.asking(member.cell.arm))
        load = self.load_settings(member.cell.arm)
        prompts = render(asked, subject, self.test)
        if asked.score == "loglikelihood":
            with_options(subject, self.test, prompts)
        shown = think_prompts(subject, self.validation, load.mode, load.think)
        positions = [positions_needed(subject, prompts.ids, self._longest(asked))]
        positions.append(positions_needed(subject, shown.ids, load.max_tokens))
        return Asking(prompts, max(positions), _limiting(asked, subject, prompts, shown))

    def ask_base(self, size: StudentRow) -> Artifact:
        """Ask a pretrained student what it knows before it is trained."""
        name = f"{size.name}-base"
        settings = self.settings.evaluate_settings(few_shot=self.settings.comparators.base.few_shot, think="free")
        asked_for = {"student": size.student, "asked": settings.model_dump(mode="json")}
        note = self._note(f"ask {name}", asked_for | self._of_the_server)
        if self.looks_only:
            return note.read("evaluation", EVALUATION)
        subject = load_subject(_base_folder(size.student))
        prompts = render(settings, subject, self.test)
        positions = positions_needed(subject, prompts.ids, self._longest(settings))
        key = self._key("evaluation", evaluation_recipe(settings, subject, self.test, prompts))
        with self._server_when_needed(name, subject, positions) as endpoint:
            folder = self.out / "evaluations" / f"{name}-{key[:12]}"
            made = evaluate(settings, subject.folder, folder, Serving(endpoint, threads=self.threads))
        note.write(evaluation=made)
        return made

    def ask_teacher(self) -> Artifact:
        row = self.settings.comparators.teacher
        values = {"think": row.think} | ({} if row.max_tokens is None else {"max_tokens": row.max_tokens})
        settings = self.settings.evaluate_settings(**values)
        recipe = {
            "settings": settings.of_recipe(),
            "model": [row.url, row.model],
            "tasks": {a.task.name: a.task.revision for a in self.test},
            "grading": grading_recipe(self.test),
        }
        note = self._note(f"ask {TEACHER}", recipe)
        if self.looks_only:
            return note.read("evaluation", EVALUATION)
        folder = self.out / "evaluations" / f"{TEACHER}-{content_key(EVALUATION, recipe)[:12]}"
        model = ModelSettings(url=row.url, model=row.model, api_key_env=row.api_key_env)
        made = evaluate_endpoint(settings, model, folder)
        note.write(evaluation=made)
        return made

    # How they do it.

    def looking(self) -> "Workplace":
        """The same, which makes nothing: what is not finished raises NotMade."""
        return self if self.looks_only else self._but(looks_only=True)

    def _but(self, **values: Any) -> "Workplace":
        """A copy that has asked for the questions already."""
        other = copy.copy(self)
        vars(other).update(values)
        return other

    def _note(self, stage: str, asked_for: dict[str, Any]) -> StageNote:
        return StageNote(self.out, stage, content_key("stage", asked_for), self.storage)

    @property
    def _of_the_server(self) -> dict[str, Any]:
        """What vLLM was told may change its answers, and how fast they are."""
        return {"server": list(self.settings.server.arguments)} if self.settings.server.arguments else {}

    def _key(self, kind: str, recipe: dict[str, Any]) -> str:
        return content_key(kind, recipe | self._of_the_server)

    def _whole(self, folder: Path) -> Path:
        """The folder with everything in it, where it may be an outline of one in the storage."""
        return folder if self.storage is None else self.storage.whole(folder)

    @property
    def _environment(self) -> dict[str, str]:
        return {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}

    def load_settings(self, arm: ArmRow) -> StudentProfileSettings:
        s = self.settings
        if misplaced := sorted(_OF_AN_ARM & s.serving.keys()):
            raise InputError(f"serving: field {misplaced[0]}: is as an arm's or a task's row says; leave it out")
        for name in s.serving.get("tasks", []):
            if name not in (asked := [row.task for row in s.tasks]):
                raise unknown_name("task in serving", str(name), asked)
        asked = s.evaluate_settings(**s.asking(arm))
        values: dict[str, Any] = {"tasks": [row.task for row in s.tasks], "think": asked.think, "mode": asked.mode}
        values["data"] = {row.task: row.data for row in s.tasks if row.data is not None}
        values["temperature"] = asked.temperature
        values |= {} if asked.max_tokens is None else {"max_tokens": asked.max_tokens}
        values |= {} if arm.thinking_budget is None else {"thinking_budget": arm.thinking_budget}
        return validate(StudentProfileSettings, values | s.serving, source="serving")

    def _longest(self, asked: EvaluateSettings) -> int:
        """The generation limit, of several tasks the largest."""
        return max(answer_limit(asked, a) for a in self.test)

    def _vote_settings(self, member: Member) -> EvaluateSettings | None:
        """How this student's answers are drawn that a majority is taken of, asked as its arm is; None where none is."""
        row = self.settings.comparators.majority
        of_arm = row is not None and member.cell.arm.id == row.arm
        if not of_arm or member.seed not in (self.settings.seeds_of("majority", member.cell.size) or []):
            return None
        values = self.settings.asking(member.cell.arm) | {"samples": row.votes, "temperature": row.temperature}
        return self.settings.evaluate_settings(tasks=row.tasks, **values)

    def _sample_votes(self, member: Member, subject: Subject, settings: EvaluateSettings, serving: Serving) -> Artifact:
        asked = ask(settings.questions, settings.judges)
        key = self._key("evaluation", evaluation_recipe(settings, subject, asked, render(settings, subject, asked)))
        folder = self.out / "evaluations" / f"{member.cell.size.name}-majority-seed{member.seed}-{key[:12]}"
        return evaluate(settings, subject.folder, folder, serving)

    @contextmanager
    def _server_when_needed(
        self, name: str, subject: Subject, positions: int, arguments: tuple[str, ...] = ()
    ) -> Iterator[Callable[[], Endpoint]]:
        """A function that starts a server at its first call and gives the same one after; taken down at the end."""
        started: list[Server] = []
        devices = len(self.gpus) if self.gpus is not None else 1
        parallel = ("--tensor-parallel-size", str(devices)) if devices > 1 else ()
        own = {"dtype": subject.dtype, "max_model_len": positions, "threads": self.threads, "gpus": self.gpus}
        arguments = (*parallel, *arguments, *self.settings.server.arguments)
        settings = self.settings.server.model_copy(update={**own, "arguments": arguments})

        with ExitStack() as stack:

            def endpoint() -> Endpoint:
                if not started:
                    log = self.out / "logs" / f"{name}.server.log"
                    log.parent.mkdir(parents=True, exist_ok=True)
                    server = Server(str(self._whole(subject.folder)), settings, log)
                    started.append(stack.enter_context(self.children.serving(server)))
                return started[0].endpoint

            yield endpoint


def _limiting(asked: EvaluateSettings, subject: Subject, *prompts: Prompts) -> tuple[str, ...]:
    """What a server is started with that limits thinking. Raises InputError when vLLM cannot for this student."""
    if not asked.limits_thinking:
        return ()
    for one in prompts:
        if reason := why_not_vllm(subject.require_chat(), one):
            raise InputError(f"thinking_budget: vLLM cannot limit the thinking of {subject.folder} ({reason})")
    return server_arguments(subject.require_chat())


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


def local_gpus() -> list[str]:
    """The GPUs of this machine that this process may use, by the names that CUDA_VISIBLE_DEVICES knows them by."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(index) for index in range(count)]
