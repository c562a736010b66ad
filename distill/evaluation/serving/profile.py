"""`distill serve profile`: what a student's answers to a task's questions cost under load, task by task.

    folder/
      profile.json    {"threads": of the server, null on a GPU or elsewhere, "engine", "dtype", "machine", "endpoint":
                       what answered, null where it is not known; "arguments": of vLLM's, as given;
                       "price": pricing.py; null without hardware,
                       "measured": {"seconds": of all of it, questions and grades included, "server_start_s": of them until
                       the server that was started for it answered; null where none was},
                       "tasks": {name: the result of distill.serve.profile_endpoint, whose levels have besides
                         "correct", "unfinished": of the completed answers, graded; what is not finished is wrong
                         "measured": {"cost": cost.py; null without answers or a rate,
                                      "utilisation": {"mfu", "memory_bandwidth"}: shares of the device's peaks, from
                                      vLLM's own estimates; null where it gives none or the device has no known peak}}}
      profile.html    the same to look at

Where there are validation questions they are taken: the server has not seen their prefixes while the test questions
were answered. Within one profile no question is asked twice.

What a profile had measured when its server was gone is beside the folder, in FOLDER.unfinished.json; the folder is not
there then.
"""

import os
import platform
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator

from distill import artifact, console
from distill.artifact import Artifact
from distill.errors import InputError
from distill.evaluation.answers import Think
from distill.evaluation.budgets import server_arguments, why_not_vllm
from distill.evaluation.endpoint import ModelSettings
from distill.evaluation.generate import Sampling
from distill.evaluation.grading import grading_recipe
from distill.evaluation.questions import Asked
from distill.evaluation.server import Serving, engine_version
from distill.evaluation.serving.cost import Price, cost
from distill.evaluation.serving.measure import Respondent, draw_questions, reckoned, sending_processes, served
from distill.evaluation.serving.page import write_profile_page
from distill.evaluation.serving.pricing import PriceSettings, price_of, server_threads
from distill.evaluation.settings import Questions
from distill.evaluation.subject import Subject
from distill.flops import Hardware, hardware
from distill.serve import Endpoint, EnergyMeter, ProfileSettings, SamplingSettings
from distill.serve.load.clients import Clients
from distill.serve.load.shapes import ClosedLoop, Load, OpenLoop, Replay
from distill.serve.objective import Objective
from distill.serve.profile import Profiled, compare_with_ceiling, put_under_load
from distill.settings import Settings
from distill.tasks.questions import QuestionFile
from distill.tasks.registry import TASKS
from distill.traces.trace import Mode

KIND = "profile"
PAGE = "profile.html"
FORMAT = 3  # of profile.json
CONCURRENCIES = (1, 8, 32)  # where no load is named
QUESTIONS_TO_SEARCH = 16384  # more are not drawn for a search
NOT_OURS = "not measured: the server was not started here"


class StudentProfileSettings(Settings):
    """The questions and the load, the same for every task."""

    tasks: list[str] = Field(min_length=1)
    data: dict[str, Path | QuestionFile] = Field(
        default_factory=dict, description="the rows of a task, or questions of your own under a new name"
    )
    mode: Mode | None = Field(None, description="what a student with a mode signal is asked for")
    concurrencies: tuple[Annotated[int, Field(ge=1)], ...] = ()
    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()  # requests a second
    burstiness: float = Field(1.0, gt=0, description="of arrivals at a rate: 1 is a Poisson process, less is burstier")
    replay: Replay | None = None
    saturate: bool = Field(False, description="search for the load, and with an objective for the rate, that is most")
    objective: Objective | None = None
    requests: int = Field(64, ge=1, description="measured under each load")
    warmup_requests: int = Field(4, ge=0)
    max_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.0, ge=0)
    think: Think = "free"
    thinking_budget: int | None = Field(None, ge=0, description="most tokens of thinking, which vLLM ends there")
    seed: int = Field(0, ge=0, lt=2**31)
    processes: int | None = Field(None, ge=1, description="that send; one for every four cores if not given")
    timeout_s: float = Field(600.0, gt=0, description="the longest silence of the server")
    price: PriceSettings | None = None

    @model_validator(mode="after")
    def _loads_are_loads(self) -> "StudentProfileSettings":
        _ = self.load  # raises for what it cannot be
        return self

    @property
    def loads(self) -> tuple[Load, ...]:
        """In the order in which they are put on the server; three concurrencies where none is named."""
        loads: list[Load] = [ClosedLoop(concurrency=c) for c in self.concurrencies]
        loads += [OpenLoop(rate=rate, burstiness=self.burstiness) for rate in self.rates]
        loads += [self.replay] if self.replay else []
        if not loads and not self.saturate:
            loads = [ClosedLoop(concurrency=c) for c in CONCURRENCIES]
        return tuple(loads)

    @model_validator(mode="after")
    def _there_is_thinking(self) -> "StudentProfileSettings":
        if self.thinking_budget is not None and self.think == "off":
            raise ValueError("thinking_budget: with think off there is no thinking to limit")
        return self

    @property
    def load(self) -> ProfileSettings:
        return ProfileSettings(
            loads=self.loads,
            saturate=self.saturate,
            burstiness=self.burstiness,
            requests=self.requests,
            warmup_requests=self.warmup_requests,
            sampling=SamplingSettings(max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed),
            objective=self.objective,
            processes=self.processes or sending_processes(),
            seed=self.seed,
            timeout_s=self.timeout_s,
        )


def profile_student(
    settings: StudentProfileSettings,
    student: Path,
    out: Path,
    serving: Serving = Serving(),
    *,
    remote: ModelSettings | None = None,
    of_study: bool = False,
) -> Artifact:
    """Put a student under load, by a server of `serving` or one that is there, `remote`.

    Failed requests are counted. `of_study`: they are an error and nothing is kept, and no page is made. Raises
    InputError, also when nothing was answered; when the server was gone before the end, with what was measured beside
    `out`.
    """
    began_s = time.monotonic()
    asked = profile_questions(settings)
    values = settings.model_dump(include={"max_tokens", "temperature", "seed"})
    sampling = Sampling(**values, thinking_token_budget=settings.thinking_budget)
    respondent = Respondent.load(student, asked, sampling, mode=settings.mode, think=settings.think)
    chat, limits = respondent.subject.require_chat(), settings.thinking_budget is not None
    if limits and (reason := why_not_vllm(chat, respondent.prompts)):
        raise InputError(f"thinking budget: vLLM cannot limit the thinking of {student} ({reason})")
    _ = respondent.positions  # raises where the model has fewer
    if remote is not None:
        key = os.environ.get(remote.api_key_env)
        serving = Serving(lambda: Endpoint(remote.url, remote.model, key))
    recipe = profile_recipe(settings, respondent.subject, asked, serving.threads, remote) | serving.of_recipe
    threads = None if remote else server_threads(serving.threads)
    price, priced = price_of(settings.price, respondent.subject, threads) if settings.price else (None, None)
    with artifact.workspace(out, KIND, recipe) as work:
        if work.finished:
            console.note(f"{out}: already profiled, nothing to do")
            return work.finished
        arguments = server_arguments(chat) if limits else ()
        profiled, start_s, gone = _measure(settings.load, respondent, out, serving, arguments)
        device = hardware(settings.price.hardware) if settings.price else None
        tasks = {a.task.name: _task_result(respondent, a, p, price, device) for a, p in profiled}
        if remote is not None:
            for level in (level for result in tasks.values() for level in result["levels"]):
                level["measured"]["energy"] = {"reason": NOT_OURS}
        result = {"threads": threads, "arguments": recipe.get("arguments", []), "price": priced, "tasks": tasks}
        result |= {name: recipe.get(name) for name in ("engine", "machine", "endpoint")}
        result["dtype"] = None if remote else recipe["dtype"]
        result["measured"] = {"seconds": time.monotonic() - began_s, "server_start_s": start_s}
        unfinished = out.with_name(f"{out.name}.unfinished.json")
        if gone:
            artifact.write_json(unfinished, result)
            raise InputError(
                f"{student}: the server was gone before the end; what was measured is in {unfinished}\n{gone}"
            )
        failed = [line for name, found in tasks.items() for line in _failures(name, found)]
        if not any(level["completed"] for found in tasks.values() for level in found["levels"]):
            reason = next(iter(failed), "no request was sent")
            raise InputError(f"{student}: nothing was answered, and nothing is kept: {reason}")
        if failed and of_study:
            raise InputError(f"{student}: {failed[0]}; run again")
        artifact.write_json(work.path / "profile.json", result)
        if not of_study:
            kicker = f"distill serve profile · {work.key}"
            write_profile_page(work.path / PAGE, result, student=student.resolve().name, kicker=kicker)
        made = work.commit({"threads": threads, "tasks": sorted(tasks)})
        unfinished.unlink(missing_ok=True)  # of an earlier run
        return made


def profile_questions(settings: StudentProfileSettings) -> list[Asked]:
    """As many questions of every task as one profile sends; for a search as many as there are."""
    needed = settings.load.prompts_needed
    questions = [
        Questions(task=name, data=settings.data.get(name), split=_split(settings, name), seed=settings.seed)
        for name in settings.tasks
    ]
    least = max(needed, settings.requests + settings.warmup_requests + 1)
    return draw_questions(questions, least=least, most=least + QUESTIONS_TO_SEARCH * settings.saturate)


def _split(settings: StudentProfileSettings, name: str) -> str:
    """Benchmarks and questions of one's own are for asking as a whole."""
    known = name.partition(":")[0] in TASKS
    return "validation" if known and not isinstance(settings.data.get(name), QuestionFile) else "all"


def profile_recipe(
    settings: StudentProfileSettings,
    subject: Subject,
    asked: list[Asked],
    threads: int | None,
    remote: ModelSettings | None = None,
) -> dict[str, Any]:
    """Everything but the clock that a profile depends on, the machine among it."""
    recipe: dict[str, Any] = {
        "format": FORMAT,
        "settings": settings.model_dump(mode="json", exclude_none=True),
        "student": subject.identity,
        "rendered": subject.chat.rendered if subject.chat else None,
        "tasks": {a.task.name: a.task.revision for a in asked},
        "grading": grading_recipe(asked),
        "dtype": subject.dtype,
    }
    cores = len(os.sched_getaffinity(0))
    if remote is not None:
        return recipe | {"endpoint": remote.model_dump(mode="json", exclude={"api_key_env"}), "client_cores": cores}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine = {"processor": platform.machine(), "cores": cores, "gpu": gpu}
    return recipe | {"engine": engine_version("vllm"), "threads": threads, "machine": machine}


def _measure(
    load: ProfileSettings, respondent: Respondent, out: Path, serving: Serving, arguments: tuple[str, ...]
) -> tuple[list[tuple[Asked, Profiled]], float | None, str | None]:
    """What every task came to, how long the server took to start, and why it was gone before the end, if it was."""
    load = load.model_copy(update={"sampling": respondent.sampling})
    # Only of a server that is alone here: a study runs several at once.
    metered = EnergyMeter() if serving.endpoint is None else nullcontext()
    found: list[tuple[Asked, Profiled]] = []
    start_s = gone = None
    with Clients(load.processes) as clients, metered as meter:
        try:
            with served(respondent, serving, out, arguments=arguments) as server:
                start_s = server.start_s
                if meter:
                    meter.measure_idle()
                for a in respondent.asked:
                    profiled = put_under_load(
                        clients,
                        server.endpoint,
                        respondent.prompts_of(a),
                        load,
                        respondent.think_ids,
                        opened=respondent.prompts.opened,
                        check=server.check,
                        meter=meter,
                        label=a.task.name,
                        show_progress=True,
                    )
                    found.append((a, profiled))
                    if profiled.result["stopped"]:
                        raise InputError(profiled.result["stopped"])  # within the block, so that the log is kept
        except InputError as error:
            if not found or not found[-1][1].result["stopped"]:
                raise
            gone = str(error)
        compare_with_ceiling(clients, [profiled.result for _, profiled in found])
    return found, start_s, gone


def _task_result(
    respondent: Respondent, asked: Asked, profiled: Profiled, price: Price | None, device: Hardware | None
) -> dict[str, Any]:
    """The result with what is graded and reckoned."""
    graded = respondent.grade(asked, profiled.runs)
    for level, run, answers in zip(profiled.result["levels"], profiled.runs, graded, strict=True):
        level["correct"] = sum(a.correct for a in answers)
        level["unfinished"] = sum(not a.finished for a in answers)
        rounds = reckoned(answers, run)
        level["measured"]["cost"] = cost([rounds], price) if rounds is not None else None
        level["measured"]["utilisation"] = _utilisation(level["measured"], device)
    return profiled.result


def _utilisation(measured: dict[str, Any], device: Hardware | None) -> dict[str, float | None]:
    """What the model's steps took of a device, for each of the server's tokens, at the rate of the steady window."""
    server, rate = measured["server"] or {}, measured["output_tokens_per_s"]
    peaks = {
        "mfu": ("flops_per_gpu", device and device.peak_bf16_tflops, 1e12),
        "memory_bandwidth": ("memory_bytes_per_gpu", device and device.memory_gb_per_s, 1e9),
    }
    return {
        name: server[key] / server["output_tokens"] * rate["value"] / (peak * unit)
        if peak and rate and server.get(key) and server.get("output_tokens")
        else None
        for name, (key, peak, unit) in peaks.items()
    }


def _failures(task: str, result: dict[str, Any]) -> list[str]:
    return [
        f"{level['failed']} of {level['requests']} requests failed on {task} at {level['load']['name']} "
        f"({next(iter(level['errors']))})"
        for level in result["levels"]
        if level["failed"]
    ]
