"""All of a plan, as one dictionary: what `--json` prints and table.py shows.

    title, hardware, priced      the study, the row of hardware.yaml
    rates                        what seconds rest on: {"kind": "assumed" | "calibrated", ...}
    traces[]                     every set of pairs: pairs, tokens of the teacher, money, whether it is there
    cells[]                      every arm in every size, one student of it: training, generation, memory, seconds
    asked[]                      the teacher and untrained bases that are asked the same questions
    stages[]                     traces, train, serve and ask: sums over what is missing and what is there
    total                        device_seconds, wall_seconds_here (None where this machine is not of the row), usd, training_flops
    detectable[], assumed        the smallest difference that can be shown, and under which assumptions
    actual                       beside a run, if there is one in `out`
    errors[], notes[]            what is wrong; what is of this machine or not known

Seconds are those of one device, devices counted; what is finished in `out` is not among them.
"""

import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from distill import console
from distill.errors import InputError
from distill.evaluation.serving.profile import StudentProfileSettings
from distill.evaluation.settings import EvaluateSettings
from distill.evaluation.subject import Subject
from distill.flops import Hardware, hardware
from distill.packing.source import TraceSet, read_traces
from distill.settings import validate
from distill.study.cells import Cell, Member, cells
from distill.study.plan import detectable as power
from distill.study.plan.actual import beside, stage_seconds
from distill.study.plan.answers import Answering, Batch, graded, under_load
from distill.study.plan.cell import PlannedCell
from distill.study.plan.counts import Training, counted, expected
from distill.study.plan.fits import keep_needs, require_room, require_teacher_fits, tensor_parallel
from distill.study.plan.hub import from_the_cache_at_once
from distill.study.plan.memory import Device
from distill.study.plan.problems import Problems, engine, questions, runs_here, teachers
from distill.study.plan.rates import Wanted, calibrate, read_rates
from distill.study.plan.seconds import Assumed, Rates
from distill.study.plan.shapes import Shape, model_shape, student_shape
from distill.study.plan.sums import stages_of, total
from distill.study.plan.teaching import Pairs, pairs_of, solved
from distill.study.rows import TraceRow
from distill.study.settings import StudySettings
from distill.study.workplace import NotMade, Workplace, local_gpus
from distill.traces.teachers.settings import VllmSettings
from distill.training.peak import peak_flops
from distill.training.prepare import make_ready
from distill.training.save import save_student
from distill.training.settings import TrainSettings
from distill.training.sizes import SIZES

SCHEMA = "distill-plan/1"


def plan(
    settings: StudySettings, out: Path | None = None, *, row: str | None = None, measure: bool = False
) -> dict[str, Any]:
    """The plan of a study, or of what is missing of it in `out`; with `measure` students are trained and served for a
    moment, and how fast they were is kept in `out`. Raises InputError for an unknown hardware row."""
    if measure and out is None:
        raise InputError("--calibrate keeps what it measured in the study's folder: give --out")
    with ExitStack() as stack:
        stack.enter_context(from_the_cache_at_once())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distill-plan-")))
        return _Plan(settings, out, scratch, hardware(row or settings.hardware)).make(measure)


@dataclass
class _Plan:
    settings: StudySettings
    out: Path | None
    scratch: Path
    row: Hardware
    problems: Problems = field(default_factory=Problems)

    def make(self, measure: bool) -> dict[str, Any]:
        self.asked, self.unasked = questions(self.settings, self.problems)
        engine(self.row, self.problems)
        self.pairs: dict[str, Pairs] = {
            row.name: pairs_of(self.settings, row, self.place, self.problems) for row in self.settings.trace_rows
        }
        teachers(self.settings, [p.row for p in self.pairs.values() if not p.done], self.row, self.problems)
        for pairs in self.pairs.values():
            if pairs.source == "expected" and isinstance(pairs.row.teacher, VllmSettings):
                self._serve_teacher(pairs, pairs.row.teacher)
        found = [self._cell(cell) for cell in cells(self.settings)]
        require_room(found, self.settings.students, self.row, self.problems)
        self._count_students(found)
        rates = self._rates(found, measure)
        for one in found:
            self._time(one, rates)
        beside = self._asked(found, rates)
        stages = stages_of(found, beside, list(self.pairs.values()), self._usd, asked=not self.unasked)
        result = {
            "schema": SCHEMA,
            "title": self.settings.title,
            "out": None if self.out is None else str(self.out),
            "hardware": self.row.name,
            "priced": {"usd_per_hour": self.row.price_usd_per_hour, "illustrative": self.row.illustrative},
            "rates": rates.describe(),
            "traces": [one.to_json() for one in self.pairs.values()],
            "cells": [one.to_json(self._usd) for one in found],
            "asked": beside,
            "stages": stages,
            "total": total(stages, self.row),
            "detectable": power.detectable(self.settings, {a.task.name: len(a.problems) for a in self.asked}),
            "assumed": power.ASSUMED,
            "actual": self._actual(found),
        }
        return result | {"errors": self.problems.errors, "notes": self.problems.notes}

    # Where things are.

    @cached_property
    def threads(self) -> int:
        """Of each stage, as a run has them."""
        cores = len(os.sched_getaffinity(0))
        return max(1, cores // len(local_gpus() or range(cores)))

    @cached_property
    def place(self) -> Workplace | None:
        """Where the study is, or would be; None where its questions are not here."""
        try:
            return Workplace(self.settings, self.out or self.scratch, self.threads)
        except InputError as error:
            if not self.unasked:  # else that is said already
                self.problems.add(str(error))
            return None

    @cached_property
    def documents(self) -> Path:
        """Where tokenized pairs are kept: where training will look for them, if they are made from what it reads."""
        return (self.out or self.scratch) / "documents"

    def _trace_set(self, row: TraceRow) -> TraceSet | None:
        made = self.pairs[row.name].made
        if made is None:
            return None
        if row.name not in self._read:
            self._read[row.name] = read_traces(made.path)
        return self._read[row.name]

    @cached_property
    def _read(self) -> dict[str, TraceSet]:
        return {}

    @cached_property
    def _trainings(self) -> dict[str, Training | None]:
        return {}

    def _serve_teacher(self, pairs: Pairs, teacher: VllmSettings) -> None:
        """What a teacher takes that is served on devices of the row."""
        try:
            shape = model_shape(teacher.vllm, trained=False)
        except InputError as error:
            pairs.note = f"what the teacher takes is not known ({error})"
            return
        require_teacher_fits(pairs, teacher, shape, self.row, self.problems)
        devices = tensor_parallel(teacher.server.arguments)
        limit, mean = teacher.max_tokens, pairs.mean
        means = [mean.reasoning] + ([mean.ift] if pairs.row.gold == "grade" else [])
        batches = [
            Batch("pairs", "", pairs.count, teacher.concurrency, mean.prompt, min(m, limit), limit) for m in means
        ]
        seconds = Assumed(self.row, Device.of(self.row).kind, None).serving("teacher", shape, batches, devices)
        pairs.usd = self._usd(seconds, devices)
        pairs.seconds = 0.0 if seconds is None else seconds * devices
        if seconds is None:
            pairs.note = "how long its teacher takes is not known on this hardware"

    # A cell.

    def _cell(self, cell: Cell) -> PlannedCell:
        found = PlannedCell(cell)
        member, asked = cell.students()[0], self._asking(cell)
        settings = member.train_settings(self.settings)
        first, shape_of = member.origin(self.settings), settings
        if first is not None:
            trained = self._look("train", first)
            begun_from = self._untrained(first) if trained is None else trained.path
            if begun_from is not None:
                settings = settings.model_copy(update={"student": str(begun_from)})
            shape_of = settings if trained is not None else shape_of
        try:
            found.shape = student_shape(shape_of)
        except InputError as error:
            self.problems.add(str(error))
            return found
        if member.student not in self._trainings:
            self._trainings[member.student] = self._training(cell, settings, found.shape)
        found.training = self._trainings[member.student]
        if found.training is None:
            return found
        if found.training.source == "counted" and found.shape.source.startswith("size "):
            found.shape = student_shape(shape_of.model_copy(update={"vocab_size": found.training.vocabulary}))
        found.lengths = found.training.lengths
        self._require_askable(member, found.training)
        how = Answering.of_arm(settings, asked, found.lengths)
        load, arm = self._load(cell, asked), cell.arm
        names = [a.task.name for a in self.asked]
        found.batches = [*graded(asked, self.asked, how), *under_load(load, names, how, arm.thinking_budget)]
        majority = self.settings.comparators.majority
        if majority is not None and arm.id == majority.arm:
            found.votes = len(self.settings.seeds_of("majority", cell.size) or [])
            voting = asked.model_copy(update={"samples": majority.votes})
            rows = {row.task for row in self.settings.tasks if row.task in (majority.tasks or [row.task])}
            names = {task.partition(":")[0] for task in rows} | rows
            voted = [a for a in self.asked if a.task.name in names]
            found.vote_batches = graded(voting, voted, how, "votes") if found.votes else []
        keep_needs(found, settings, self.row, self.problems)
        return found

    def _untrained(self, member: Member) -> Path | None:
        """A student from scratch as it is before its training: one that goes on from it has its tokenizer. None where its
        pairs are not here, and for other students, whose own tokenizer stays theirs."""
        settings, row = member.train_settings(self.settings), self.settings.traces_of(member.cell.arm)
        if settings.student not in SIZES or settings.lora is not None:
            return None
        folder, trace_set = self.scratch / "untrained" / member.student, self._trace_set(row)
        if trace_set is None:
            self.problems.add(
                f"{member.cell.size.name}: the tokenizer of what goes on from it is made of pairs that are not here yet; "
                "their tokens are counted as if it were made of their own",
                note=True,
            )
            return None
        if not folder.exists():
            try:
                with console.hushed():
                    origin = make_ready(settings, trace_set, documents=self.documents).origin
            except InputError:  # said where its own training is planned
                return None
            weights = {name: w.detach() for name, w in origin.model.named_parameters()}
            folder.mkdir(parents=True)
            save_student(origin, weights, folder)
        return folder

    def _require_askable(self, member: Member, training: Training) -> None:
        """Ask every question of this student as it will be asked, short of a server."""
        origin = training.origin
        if origin is None or self.place is None:
            return
        config, chat = origin.model.config, origin.chat
        try:
            self.place.asking(member, Subject(Path(member.cell.id), chat.tokenizer, chat, config, {}, origin.shape))
        except InputError as error:
            said = str(error)
            self.problems.add(said if said.startswith(member.cell.id) else f"{member.cell.id}: {said}")

    def _asking(self, cell: Cell) -> EvaluateSettings:
        return self.settings.evaluate_settings(**self.settings.asking(cell.arm))

    def _load(self, cell: Cell, asked: EvaluateSettings) -> StudentProfileSettings:
        if self.place is not None:
            return self.place.load_settings(cell.arm)
        values = {"tasks": [row.task for row in self.settings.tasks], **self.settings.serving}
        values |= {} if asked.max_tokens is None else {"max_tokens": asked.max_tokens}
        return validate(StudentProfileSettings, values, source="serving")

    def _training(self, cell: Cell, settings: TrainSettings, shape: Shape) -> Training | None:
        """Of one student: counted where its pairs and its tokenizer are here."""
        row = self.settings.traces_of(cell.arm)
        pairs, trace_set = self.pairs[row.name], self._trace_set(row)
        if trace_set is not None:
            try:
                settings = settings.for_ranks(cell.size.devices)
                with console.hushed():
                    return counted(settings, trace_set, self.documents, solved(row, self.asked))
            except InputError as error:
                if pairs.mean is None:
                    self.problems.add(str(error))
                    return None
                self.problems.add(
                    f"{cell.size.name}: not counted ({error}); expected from `expected_tokens`", note=True
                )
        if pairs.mean is None or pairs.count is None:
            return None
        return expected(settings, shape, pairs.mean, pairs.count)

    def _count_students(self, found: list[PlannedCell]) -> None:
        """How many students each cell has trained for it, and what of it is there."""
        seen: set[str] = set()
        took = {} if self.out is None else stage_seconds(self.out)
        for one in found:
            for member in one.cell.students():
                if member.student not in seen:
                    seen.add(member.student)
                    one.trains += 1
                    if (student := self._look("train", member)) is not None:
                        one.trained.append(student)
                        one.took["train"].append(took.get(f"train {member.student}"))
                if (outcome := self._look("serve", member)) is not None:
                    one.served.append(outcome)
                    one.took["serve"].append(took.get(f"serve {member.id}"))

    def _look(self, stage: str, *of: Any) -> Any:
        """What a stage left in `out`; None where it has not been done."""
        if self.out is None or self.place is None:
            return None
        try:
            return getattr(self.place.looking(), stage)(*of)
        except NotMade:
            return None
        except InputError as error:
            self.problems.add(f"{stage}: {error}", note=True)
            return None

    # Seconds and money.

    def _rates(self, found: list[PlannedCell], measure: bool) -> Rates:
        if self.row.peak_bf16_tflops is not None:
            peak = 1e12 * self.row.peak_bf16_tflops
        else:
            peak = self._peak_here()
        assumed = Assumed(self.row, Device.of(self.row).kind, peak)
        if measure and not runs_here(self.row):
            raise InputError(f"--calibrate measures this machine, which is no {self.row.name}")
        if measure:
            self._measure(found)
        return read_rates(self.out, assumed) if self.out is not None and runs_here(self.row) else assumed

    def _measure(self, found: list[PlannedCell]) -> None:
        """Calibrate each size that one device trains, with the arms of the shortest and the longest steps."""
        wanted: dict[str, list[Wanted]] = {}
        for one in found:
            if one.training is not None and one.training.source == "counted" and one.devices == 1:
                settings = one.cell.students()[0].train_settings(self.settings)
                wanted.setdefault(one.cell.size.name, []).append(Wanted(one.cell, settings, one.training))
        for size, all_of in wanted.items():
            ends = [min(all_of, key=lambda c: c.tokens_a_step), max(all_of, key=lambda c: c.tokens_a_step)]
            wanted[size] = ends[: 1 + (ends[0].name != ends[1].name)]
        first = {one.cell.size.name: one for one in reversed(found) if one.training is not None}
        if self.place is None:
            raise InputError("--calibrate: the questions of this study are not here")
        calibrate(
            wanted,
            {size: one.shape for size, one in first.items()},
            {size: [*one.batches, *one.vote_batches] for size, one in first.items()},
            self.place,
            lambda cell: self._trace_set(self.settings.traces_of(cell.arm)),
            self.threads,
        )

    def _peak_here(self) -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return peak_flops(torch.device("cpu"), torch.float32)[0]
        finally:
            torch.set_num_threads(before)

    def _time(self, one: PlannedCell, rates: Rates) -> None:
        if one.training is None:
            return
        size = one.cell.size.name
        training = replace(one.training, flops=one.training.flops * self._run_again(one))
        one.steps_seconds = rates.training(size, one.shape, training, one.devices)
        start = rates.start(size, one.devices)
        one.seconds["train"] = None if one.steps_seconds is None else start + one.steps_seconds
        one.seconds["serve"] = None if self.unasked else rates.serving(size, one.shape, one.batches, one.devices)
        if one.vote_batches and not self.unasked:
            whole = rates.serving(size, one.shape, [*one.batches, *one.vote_batches], one.devices)
            alone = one.seconds["serve"]
            one.seconds["votes"] = None if whole is None else whole - alone

    def _run_again(self, one: PlannedCell) -> float:
        """What activation checkpointing makes of the FLOPs: a forward more, or with `selective` not all of it."""
        if one.cell.size.activation_checkpointing == "off":
            return 1.0
        return 1.0 + (1 / 2 if one.shape.model.adapter_weights else 1 / 3)

    def _usd(self, seconds: float | None, devices: int) -> float | None:
        threads = self.threads if self.row.cores is not None else None
        return None if seconds is None else devices * self.row.usd(seconds, threads)

    def _asked(self, found: list[PlannedCell], rates: Rates) -> list[dict[str, Any]]:
        """What stands beside the arms and is asked once."""
        beside = []
        of_size = {one.cell.size.name: one for one in reversed(found) if one.lengths is not None}
        comparators = self.settings.comparators
        for size in self.settings.students:
            one = of_size.get(size.name)
            if comparators.base is None or self.settings.seeds_of("base", size) is not None or one is None:
                continue
            asked = self.settings.evaluate_settings(few_shot=comparators.base.few_shot, think="free")
            shots = 1 + comparators.base.few_shot
            how = Answering(0.0, one.lengths)
            batches = [replace(b, prompt_tokens=shots * b.prompt_tokens) for b in graded(asked, self.asked, how)]
            seconds = None if self.unasked else rates.serving(size.name, one.shape, batches, size.devices)
            done = self._look("ask_base", size) is not None
            beside.append(self._asked_row(f"{size.name}-base", batches, seconds, size.devices, done, None))
        teacher = comparators.teacher
        if teacher is not None and of_size:
            lengths = next(iter(of_size.values())).lengths
            values: dict[str, Any] = {"think": teacher.think}
            values |= {} if teacher.max_tokens is None else {"max_tokens": teacher.max_tokens}
            asked = self.settings.evaluate_settings(**values)
            how = Answering(0.0 if teacher.think == "off" else 1.0, lengths)
            batches = graded(asked, self.asked, how)
            prices = (teacher.usd_per_million_input, teacher.usd_per_million_output)
            money = None
            if None not in prices and not self.unasked:
                money = sum(b.answers * b.prompt_tokens * prices[0] + b.generated * prices[1] for b in batches) / 1e6
            beside.append(self._asked_row("teacher", batches, 0.0, 0, self._look("ask_teacher") is not None, money))
        return beside

    def _asked_row(
        self, name: str, batches: list[Batch], seconds: float | None, devices: int, done: bool, usd: float | None
    ) -> dict[str, Any]:
        return {
            "id": name,
            "answers": sum(b.answers for b in batches),
            "prompt_tokens": sum(b.answers * b.prompt_tokens for b in batches),
            "generated_tokens": None if self.unasked else sum(b.generated for b in batches),
            "seconds": seconds,
            "devices": devices,
            "usd": usd if devices == 0 else self._usd(seconds, devices),
            "done": done,
        }

    def _actual(self, found: list[PlannedCell]) -> list[dict[str, Any]] | None:
        if not any(one.trained or one.served for one in found):
            return None
        return beside(found)
