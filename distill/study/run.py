"""`distill study run`: from a preset to results.json and its report, doing only what is not done yet.

out/ holds what workplace.py says, and

  preset.json, command      the preset as it was read, for stages in processes of their own, and how the study was begun
  declared.json             the questions, contrasts and margin, written before anything was run
  failures/<stage>.json     why a stage failed when it was last tried
  took.jsonl                how long each stage took, every time that it was begun and ended well
  results.json, report.html, report.md
  router-<size>.json        a router to use, where one was declared
"""

import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill import artifact, console
from distill.errors import InputError
from distill.process import distill_command
from distill.study.cells import cells
from distill.study.comparators import write_routers
from distill.study.contamination import contamination
from distill.study.declared import declare, seeds_declared
from distill.study.jobs import Children, Job, JobFailed, Slots, reason_of, run_jobs
from distill.study.live import Watched
from distill.study.report import write_report
from distill.study.results import build_results
from distill.study.settings import StudySettings
from distill.study.stages import Stage, stage, stages
from distill.study.storage import COMMAND, FAILURES, PRESET, Storage
from distill.study.workplace import TEACHER, NotMade, Workplace, file_name, local_gpus
from distill.training.run import Stopped

TOOK = "took.jsonl"


def run(settings: StudySettings, out: Path, *, command: str, workers: int | None = None) -> Path:
    """Run a study, or what is missing of it; returns the folder. Raises InputError when it cannot start, Stopped on Ctrl-C or SIGTERM.

    `command`: how to run it again, for the report. `workers`: stages at a time, a core each; on GPUs each has its own.
    """
    place, slots = begin(settings, out, command=command, workers=workers)
    with stop_requests():
        made: dict[str, Any] = {}
        failures = _run(place, slots, made)
    return write_results(place, made, failures, command=command)


def begin(
    settings: StudySettings, out: Path, *, command: str, workers: int | None = None
) -> tuple[Workplace, list[str]]:
    """The workplace and its slots, with everything checked that can be. Raises InputError when the study cannot start."""
    gpus, cores = local_gpus(), len(os.sched_getaffinity(0))
    slots = gpus or [str(core) for core in range(cores if workers is None else workers)]
    if workers is not None and workers < 1:
        raise InputError(f"workers: expected at least 1, found {workers}")
    widest = max(settings.students, key=lambda row: row.devices)
    if gpus and widest.devices > len(gpus):
        raise InputError(f"student {widest.name}: wants {widest.devices} devices, this machine has {len(gpus)}")
    place = Workplace(settings, out, max(1, cores // len(slots)), gpus=tuple(gpus) or None)
    write_beginning(settings, out, command)
    return place, slots


def write_beginning(settings: StudySettings, out: Path, command: str) -> None:
    """What a study's folder begins with. Raises InputError where it cannot be written, or was declared otherwise."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None
    declare(settings, out)
    artifact.write_json(out / PRESET, settings.model_dump(mode="json", by_alias=True))
    (out / COMMAND).write_text(f"{command}\n")


def run_stage(
    settings: StudySettings, out: Path, name: str, *, threads: int | None = None, storage: Storage | None = None
) -> None:
    """One stage, by this process, on as many of the devices that it may use as it takes; a teacher of its own gets all of
    them. Raises InputError when it fails, and keeps the reason.

    `threads`: all cores that it may use if not given. With a storage, what it needs is fetched from there, and what it
    made is put there.
    """
    wanted = stage(settings, name)
    threads = threads or len(os.sched_getaffinity(0))
    gpus = local_gpus()
    place = Workplace(settings, out, threads, gpus=tuple(gpus[: wanted.devices or None]) or None, storage=storage)
    with stop_requests():
        try:
            with _kept_failure(out, name):
                if storage is not None:
                    storage.tell(failure_file(out, name))
                if gpus and wanted.devices > len(gpus):
                    raise InputError(f"{name}: takes {wanted.devices} devices, this machine has {len(gpus)}")
                if storage is None or not is_made(wanted, place):
                    wanted.act(place)
        except JobFailed as error:
            raise InputError(str(error)) from None
        finally:
            if storage is not None:
                storage.tell(failure_file(out, name))


def is_made(one: Stage, place: Workplace) -> bool:
    """Whether the stage is done, here or in the workplace's storage."""
    try:
        one.act(place.looking())
    except NotMade:
        return False
    return True


def collect(settings: StudySettings, out: Path, storage: Storage | None = None) -> Path:
    """The results of what is finished, without doing more: after a launch, or of a study that still runs."""
    if storage is not None:
        storage.hear()
    place = Workplace(settings, out, len(os.sched_getaffinity(0)), looks_only=True, storage=storage)
    made, failures = {}, {}
    for one in stages(settings):
        try:
            made[one.name] = one.act(place)
        except NotMade:
            kept = failure_file(out, one.name)
            broken = [name for name in one.after if name in failures]
            why = f"{broken[0]} failed" if broken else "not run"
            failures[one.name] = artifact.read_json(kept)["reason"] if kept.is_file() else why
    return write_results(place, made, failures, command=(out / COMMAND).read_text().strip())


def write_results(place: Workplace, made: dict[str, Any], failures: dict[str, str], *, command: str) -> Path:
    """results.json and the report of what the stages made, by their names. Raises InputError when that is nothing."""
    settings, out = place.settings, place.out
    if failures and not made.keys() - {f"traces {row.name}" for row in settings.trace_rows}:
        name, reason = next(iter(failures.items()))
        raise InputError(f"{out}: nothing was trained or asked; {name}: {reason}")
    console.note("resampling for the intervals, writing results.json, report.html and report.md")
    members = [member for cell in cells(settings) for member in cell.students()]
    outcomes = {m.id: made[f"serve {m.id}"] for m in members if f"serve {m.id}" in made}
    beside = [TEACHER, *(f"{size.name}-base" for size in settings.students)]
    asked_once = {name: made[f"ask {name}"] for name in beside if f"ask {name}" in made}
    traces = {row.name: made[f"traces {row.name}"] for row in settings.trace_rows if f"traces {row.name}" in made}
    results = build_results(
        settings,
        outcomes,
        failures,
        command=command,
        asked_once=asked_once,
        traces=traces,
        seeds_declared=seeds_declared(out),
    )
    whole = place.storage.whole if place.storage is not None else lambda folder: folder
    results["contamination"] = contamination(settings, traces, whole)
    artifact.write_json(out / "results.json", results)
    write_routers(settings, outcomes, out)
    write_report(out)
    return out


def _run(place: Workplace, slots: list[str], made: dict[str, Any]) -> dict[str, str]:
    """Every stage that can be done, here. What they made goes into `made`; returns why the others were not."""

    def job(one: Stage) -> Job:
        def action(taken: Slots) -> None:
            on = place.on(taken) if place.gpus is not None and taken else place
            with _kept_failure(place.out, one.name, place.children):
                if one.own_process:
                    _by_a_process(place, one)
                made[one.name] = one.act(on)

        on_cpu = 1 if one.devices else 0
        return Job(one.name, action, one.after, one.devices if place.gpus is not None else on_cpu)

    found = stages(place.settings)
    with Watched(found) as watched:
        return run_jobs([job(one) for one in found], slots, place.children, watched.tell)


def _by_a_process(place: Workplace, one: Stage) -> None:
    try:
        one.act(place.looking())
    except NotMade:
        log = place.out / "logs" / f"{file_name(one.name)}.log"
        command = distill_command("study", "stage", str(place.out / PRESET), one.name, "--out", str(place.out))
        place.children.run(command, log, place.threads)


@contextmanager
def _kept_failure(out: Path, name: str, children: Children | None = None) -> Iterator[None]:
    """Why the stage failed is kept for who collects the results later, until it is tried again, and of one that is killed that
    it was begun; and how long it took, for who compares that with the plan."""
    began = time.monotonic()
    keep_failure(out, name, "begun and not ended: it was killed, or still runs")
    try:
        yield
    except Exception as error:
        stopped = children is not None and children.stopped
        keep_failure(out, name, "stopped before it ended" if stopped else reason_of(error))
        if not isinstance(error, (InputError, JobFailed, OSError, Stopped)):
            log = out / "logs" / f"{file_name(name)}.traceback.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc())
        raise
    failure_file(out, name).unlink(missing_ok=True)
    with open(out / TOOK, "a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": name, "seconds": time.monotonic() - began}) + "\n")


def keep_failure(out: Path, name: str, reason: str) -> None:
    kept = failure_file(out, name)
    kept.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_json(kept, {"stage": name, "reason": reason})


def failure_file(out: Path, name: str) -> Path:
    return out / FAILURES / f"{file_name(name)}.json"


@contextmanager
def stop_requests() -> Iterator[None]:
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
