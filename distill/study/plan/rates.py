"""Rates measured here: some training steps and a short generation of each size, as the study itself does them.

    out/calibration.json      {"machine", "threads", "sizes": {name: {"training", "serving"}}}
    out/calibration/          what was trained for it, and logs; may be deleted

Training takes a time for every step, whatever is in it, and a time for every FLOP. Both are had from two short trainings,
of the arms with the most and the fewest tokens a step; of one arm alone only the second. An answer takes a time of its own
and one for each token, at each concurrency; both are had from loads of short and of long answers. A server's start is timed
the second time, since only the first of a study reads everything from disk. As many of these run at a time as stages of
the study do, so that what they take from each other is in it.
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill import artifact, console
from distill.artifact import read_json, write_json
from distill.errors import InputError
from distill.evaluation.subject import load_subject
from distill.packing.source import TraceSet
from distill.process import distill_command
from distill.serve import ClosedLoop, ProfileSettings, SamplingSettings, Server
from distill.serve.load.clients import Clients
from distill.serve.profile import put_under_load
from distill.study.cells import Cell
from distill.study.jobs import Job, Slots, run_jobs
from distill.study.plan.answers import EVALUATED_TOGETHER, Batch
from distill.study.plan.counts import Training
from distill.study.plan.seconds import Rates
from distill.study.plan.shapes import Shape
from distill.study.workplace import Workplace, local_gpus
from distill.training.settings import TrainSettings
from distill.training.sizes import SIZES

FILE, FOLDER = "calibration.json", "calibration"
STEPS = 150  # of a from-scratch student; of others
STEPS_OF_OTHERS = 30
TOKENS = (4, 36)  # of short and of long answers
ALIKE = 1.2  # arms whose steps differ less say nothing about a step of no tokens


@dataclass(frozen=True)
class Wanted:
    """A size to be measured: its arms with the fewest and the most tokens a step, which may be the same."""

    cell: Cell
    settings: TrainSettings
    training: Training

    @property
    def tokens_a_step(self) -> float:
        return self.training.tokens / self.training.steps

    @property
    def name(self) -> str:
        return f"{self.cell.id}"


def calibrate(
    wanted: dict[str, list[Wanted]],
    shapes: dict[str, Shape],
    batches: dict[str, list[Batch]],
    place: Workplace,
    traces_of: Callable[[Cell], TraceSet | None],
    threads: int,
) -> None:
    """Measure every size and keep the rates in the study's folder. Raises InputError when a measurement fails."""
    found: dict[str, dict[str, Any]] = {size: {"training": [], "serving": None} for size in wanted}
    jobs = []
    for size, cells in wanted.items():
        for one in cells:
            traces = traces_of(one.cell)
            if traces is not None:
                found[size]["training"].append({})
                jobs.append(Job(f"train {one.name}", _train(one, traces, found[size]["training"][-1], place, threads)))
    for size, cells in wanted.items():
        names = tuple(job.name for job in jobs if job.name in {f"train {one.name}" for one in cells})
        if names:
            action = _serve(size, cells[0], shapes[size], batches[size], found[size], place, threads)
            jobs.append(Job(f"serve {size}", action, names))
    if not jobs:
        raise InputError("--calibrate: there are no pairs yet to train on")
    slots = local_gpus() or [str(core) for core in range(len(os.sched_getaffinity(0)))]
    failures = run_jobs(jobs, slots, place.children, _say)
    if failures:
        name, reason = next(iter(failures.items()))
        raise InputError(f"--calibrate: {name}: {reason}")
    sizes = {size: {"training": _fit(one["training"]), "serving": one["serving"]} for size, one in found.items()}
    machine = {"processor": platform.machine(), "cores": len(os.sched_getaffinity(0)), "gpus": len(local_gpus())}
    known = read_json(place.out / FILE)["sizes"] if (place.out / FILE).is_file() else {}
    write_json(place.out / FILE, {"machine": machine, "threads": threads, "sizes": known | sizes})


def _say(name: str, state: str, reason: str) -> None:
    if state != "failed":
        console.note(f"calibration: {name}: {state}")


def _train(
    one: Wanted, traces: TraceSet, into: dict[str, Any], place: Workplace, threads: int
) -> Callable[[Slots], None]:
    """A training of some steps by `distill train`; its seconds, and those of its process besides."""
    steps = STEPS if one.settings.student in SIZES else STEPS_OF_OTHERS
    short = {"match": "samples", "tokens": max(1, round(steps * one.tokens_a_step)), "schedule": "constant"}
    short |= {"decay_steps": 0, "warmup_steps": 0, "validation": 0.0, "weights": "last", "validation_steps": None}
    short |= {"validation_epochs": 1, "learning_rate": one.settings.candidates[0].learning_rate, "one_schedule": False}
    settings = one.settings.model_copy(update=short)

    def action(_: Slots) -> None:
        folder = place.out / FOLDER / one.name
        _forget(folder)
        config = place.out / FOLDER / f"{one.name}.json"
        config.parent.mkdir(parents=True, exist_ok=True)
        write_json(config, settings.model_dump(mode="json"))
        paths = ["--config", str(config), "--traces", str(traces.path), "--out", str(folder)]
        command = distill_command(
            "train", *paths, "--documents", str(place.out / "documents"), "--threads", str(threads)
        )
        began = time.monotonic()
        place.children.run(command, config.with_suffix(".log"), threads)
        took = time.monotonic() - began
        summary = artifact.read(folder, "student", made_by="distill train").summary
        seconds = summary["measured"]["seconds"]
        into.update(steps=summary["steps"], flops=summary["flops"], seconds=seconds, start_seconds=took - seconds)

    return action


def _forget(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _serve(
    size: str, one: Wanted, shape: Shape, batches: list[Batch], into: dict[str, Any], place: Workplace, threads: int
) -> Callable[[Slots], None]:
    """Its server under loads of answers of exactly so many tokens."""

    def action(_: Slots) -> None:
        folder = place.out / FOLDER / one.name
        subject = load_subject(folder)
        prompt = max(1, round(max((b.prompt_tokens for b in batches), default=16.0)))
        levels = sorted({min(b.concurrency, EVALUATED_TOGETHER) for b in batches} | {1})
        own = {"dtype": subject.dtype, "max_model_len": prompt + max(TOKENS), "threads": threads}
        settings = place.settings.server.model_copy(update=own)
        log = place.out / FOLDER / f"{size}.server.log"
        with place.children.serving(Server(str(folder), settings, log)):
            pass  # the first one reads from disk and compiles what all others of a study find there
        server = Server(str(folder), settings, log)
        began = time.monotonic()
        rng = np.random.default_rng(0)
        with place.children.serving(server):
            start = time.monotonic() - began
            with Clients(1) as clients:
                found = [_level(clients, server, level, prompt, shape.model.vocab, rng) for level in levels]
        into["serving"] = {"start_seconds": start, "levels": found}

    return action


def _level(
    clients: Clients, server: Server, concurrency: int, prompt: int, vocabulary: int, rng: np.random.Generator
) -> dict[str, Any]:
    """The line through what short and long answers take."""
    took = []
    for tokens in TOKENS:
        requests = max(16, 2 * concurrency)
        settings = ProfileSettings(
            loads=(ClosedLoop(concurrency=concurrency),),
            requests=requests,
            warmup_requests=min(concurrency, 8),
            sampling=SamplingSettings(max_tokens=tokens, ignore_eos=True),
        )
        prompts = rng.integers(0, vocabulary, (settings.prompts_needed, prompt)).tolist()
        level = put_under_load(clients, server.endpoint, prompts, settings, (None, None)).result["levels"][0]
        if level["failed"] or level["measured"]["seconds_per_answer"] is None:
            raise InputError(f"{concurrency} at a time: {next(iter(level['errors']), 'no answer came')}")
        took.append(level["measured"]["seconds_per_answer"])
    a_token = max(0.0, (took[1] - took[0]) / (TOKENS[1] - TOKENS[0]))
    return {
        "concurrency": concurrency,
        "seconds_per_token": a_token,
        "seconds_per_answer": max(0.0, took[0] - TOKENS[0] * a_token),
    }


def _fit(found: list[dict[str, Any]]) -> dict[str, float] | None:
    """Seconds a step and a FLOP."""
    if not found:
        return None
    per_step = [(one["flops"] / one["steps"], one["seconds"] / one["steps"]) for one in found]
    (few, short), (many, long) = min(per_step), max(per_step)
    start = float(np.mean([one["start_seconds"] for one in found]))
    if many < ALIKE * few or long <= short:
        rate = sum(one["seconds"] for one in found) / sum(one["flops"] for one in found)
        return {"seconds_per_step": 0.0, "seconds_per_flop": rate, "start_seconds": start}
    rate = (long - short) / (many - few)
    step = short - rate * few
    if step < 0:  # more than in proportion: a step of no tokens takes no time
        rate, step = long / many, 0.0
    return {"seconds_per_step": step, "seconds_per_flop": rate, "start_seconds": start}


@dataclass(frozen=True)
class Measured:
    """The rates of calibration.json; what is not in it is as `otherwise` says."""

    sizes: dict[str, dict[str, Any]]
    otherwise: Rates

    def training(self, size: str, shape: Shape, training: Training, devices: int) -> float | None:
        rates = self._of(size, "training", devices)
        if rates is None:
            return self.otherwise.training(size, shape, training, devices)
        return rates["seconds_per_step"] * training.steps + rates["seconds_per_flop"] * training.flops

    def start(self, size: str, devices: int) -> float:
        rates = self._of(size, "training", devices)
        return self.otherwise.start(size, devices) if rates is None else rates["start_seconds"]

    def serving(self, size: str, shape: Shape, batches: list[Batch], devices: int) -> float | None:
        rates = self._of(size, "serving", devices)
        if rates is None:
            return self.otherwise.serving(size, shape, batches, devices)
        seconds = rates["start_seconds"]
        for batch in batches:
            level = min(rates["levels"], key=lambda one: abs(np.log(one["concurrency"] / max(1, batch.concurrency))))
            an_answer = level["seconds_per_answer"] + level["seconds_per_token"] * batch.output_tokens
            seconds += batch.answers * an_answer
        return float(seconds)

    def _of(self, size: str, what: str, devices: int) -> dict[str, Any] | None:
        """Only one device was measured."""
        return self.sizes.get(size, {}).get(what) if devices == 1 else None

    def describe(self) -> dict[str, Any]:
        return {"kind": "calibrated", "sizes": self.sizes, "otherwise": self.otherwise.describe()}


def read_rates(out: Path, otherwise: Rates) -> Rates:
    """What was measured for the study in `out`, where anything was. Raises InputError for a damaged file."""
    if not (out / FILE).is_file():
        return otherwise
    sizes = read_json(out / FILE).get("sizes")
    if not isinstance(sizes, dict):
        raise InputError(f"{out / FILE}: no rates in it; delete it and calibrate again")
    return Measured(sizes, otherwise)
