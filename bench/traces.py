"""`distill bench traces`: tokens/s of generating traces through our teacher, beside vLLM's own offline generation.

The same model, prompts, sampling, seeds and lengths for both, and one set of vLLM arguments. Ours is what
`distill traces generate` does with a teacher `vllm:MODEL`: vLLM's server, our client, replies that are not streamed,
every answer read into a trace and written to a journal. Theirs is `LLM.chat` in a process of its own
(offline.py): no server, no HTTP. Both are up all the time and take turns, in reversed order from round to round;
who waits uses no processor. Every round has prompts of its own, so that no prefix is cached.

Lengths are fixed (ignore_eos): a reasoning answer has between a quarter and all of `tokens`, an IFT answer a
sixteenth. Both modes of every question are asked for, reasoning first.

The result:

    machine, settings      what it ran on, TracesBenchSettings as given
    models[]               one entry a model
      model, parameters, requests, output_tokens       of one round
      measured
        teacher, offline   output tokens/s: {"median", "rounds"}
        ratio              the first over the second, with a 95 % interval over rounds (spread.py)
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field

from distill import console
from distill.bench.offline import SHAPES, Offline, random_student
from distill.bench.spread import ratio, shown
from distill.errors import InputError
from distill.journal import Journal
from distill.serve.server import Server, ServerSettings, require_vllm
from distill.settings import Settings
from distill.tasks.problem import Problem
from distill.traces.pairing import Answer
from distill.traces.store import trace_to_row
from distill.traces.teachers.chat import ChatTeacher
from distill.traces.teachers.settings import ChatSettings
from distill.traces.teachers.teacher import Question

WANTED = 0.95
_POSITIONS = 256  # more than the prompts have


class TracesBenchSettings(Settings):
    """Defaults fit a CPU of two cores."""

    models: tuple[str, ...] = Field(("tiny", "large"), min_length=1, description="tiny, large, a folder or a Hub id")
    questions: int = Field(128, ge=1, description="of a round; each is answered in both modes")
    tokens: int = Field(256, ge=16, description="of the longest answer")
    sequences: int = Field(64, ge=1, description="that vLLM generates side by side")
    concurrency: int = Field(128, ge=1, description="requests of ours in flight")
    rounds: int = Field(7, ge=1)
    threads: int | None = Field(None, ge=1, description="of the model on a CPU; all cores but one if not given")
    kv_cache_gib: int = Field(2, ge=1, description="of each of the two")
    arguments: tuple[str, ...] = Field((), description="passed on to vLLM, for both")
    seed: int = 0


def bench_traces(settings: TracesBenchSettings) -> dict[str, Any]:
    """Run the benchmark; the result is described at the top of this file. Raises InputError."""
    from distill.bench.machine import machine

    require_vllm()
    about, models = machine(), []
    with console.progress("{task.fields[now]}") as bar:
        task = bar.add_task("traces", total=len(settings.models) * (settings.rounds + 1), now="starting")
        for name in settings.models:
            with tempfile.TemporaryDirectory(prefix="distill-bench-") as folder:
                models.append(_measure(settings, name, Path(folder), lambda now: bar.update(task, advance=1, now=now)))
    return {"machine": about, "settings": settings.model_dump(mode="json"), "models": models}


def show_traces(result: dict[str, Any]) -> None:
    """The result as a table on standard output."""
    columns, rows = traces_table(result)
    console.table("generating traces, output tokens/s", columns, rows)


def traces_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows), one row a model."""
    rows = []
    for entry in result["models"]:
        measured = entry["measured"]
        size = "" if entry["parameters"] is None else f" ({entry['parameters'] / 1e6:.2g}M parameters)"
        name = f"{entry['model']}{size}"
        rates = [f"{measured[who]['median']:,.0f}" for who in ("teacher", "offline")]
        rows.append([name, f"{entry['requests']:,}", f"{entry['output_tokens']:,}", *rates, shown(measured["ratio"])])
    columns = ["model", "requests", "output tokens", "through our teacher", "vLLM offline", "teacher over offline"]
    return columns, rows


def traces_targets(result: dict[str, Any]) -> list[list[str]]:
    """[target, wanted, measured, "met" or "missed"], one row a model."""
    rows = []
    for entry in result["models"]:
        found = entry["measured"]["ratio"]
        met = "met" if found["value"] is not None and found["value"] >= WANTED else "missed"
        rows.append([f"generation with {entry['model']} over vLLM's own", f"at least {WANTED:g}x", shown(found), met])
    return rows


def _measure(settings: TracesBenchSettings, name: str, folder: Path, done: Callable[[str], None]) -> dict[str, Any]:
    model, parameters, longest = name, None, None
    if name in SHAPES:
        longest = settings.tokens + _POSITIONS
        model, parameters = random_student(name, folder, positions=longest, seed=settings.seed)
    server_settings = ServerSettings(
        threads=settings.threads,
        kv_cache_gib=settings.kv_cache_gib,
        max_model_len=longest,
        arguments=("--max-num-seqs", str(settings.sequences), *settings.arguments),
    )
    rates: dict[str, list[float]] = {"teacher": [], "offline": []}
    with (
        Server(model, server_settings, folder / "server.log") as server,
        Offline(model, server_settings, folder) as llm,
    ):
        for number in range(-1, settings.rounds):  # the first is for warming up
            teacher = _FixedLengths(settings, number)
            questions = teacher.questions
            turns = {
                "teacher": lambda teacher=teacher: _through_teacher(teacher, server, folder / "journal.jsonl"),
                "offline": lambda teacher=teacher: llm.turn(teacher.offline()),
            }
            for who in turns if number % 2 == 0 else reversed(turns):
                seconds, tokens = turns[who]()
                if tokens != teacher.total_tokens:
                    raise InputError(f"bench: {who} made {tokens} tokens of {name}, expected {teacher.total_tokens}")
                if number >= 0:
                    rates[who].append(tokens / seconds)
            done(f"{name}, round {number + 1} of {settings.rounds}")
    return {
        "model": name if name in SHAPES else Path(name).name,
        "parameters": parameters,
        "requests": len(questions),
        "output_tokens": _FixedLengths(settings, 0).total_tokens,
        "measured": {who: {"median": median(values), "rounds": values} for who, values in rates.items()}
        | {"ratio": ratio(rates["teacher"], rates["offline"])},
    }


class _FixedLengths(ChatTeacher):
    """Our teacher, but each answer has a length that is known before. One round's questions."""

    def __init__(self, settings: TracesBenchSettings, number: int):
        chat = ChatSettings(max_tokens=settings.tokens, concurrency=settings.concurrency)
        super().__init__(chat, settings.seed, gold_shown=False, tokenizer="")
        rng = random.Random(f"{settings.seed} {number}")
        problems = []
        while len(problems) < settings.questions:
            digits = " ".join(str(rng.randrange(10)) for _ in range(rng.randrange(8, 40)))
            problems.append(Problem("bench", f"{len(problems)}: {digits}", "0", "open"))
        self.questions = [Question(problem, mode) for mode in ("reasoning", "ift") for problem in problems]
        self.lengths = {
            question: rng.randrange(settings.tokens // 4, settings.tokens + 1)
            if question.mode == "reasoning"
            else settings.tokens // 16
            for question in self.questions
        }
        self.total_tokens = sum(self.lengths.values())

    def _request(self, question: Question, *rest: Any) -> Any:
        request = super()._request(question, *rest)
        fixed = {"max_tokens": self.lengths[question], "ignore_eos": True}
        return replace(request, sampling=request.sampling.model_copy(update=fixed))

    def offline(self) -> list[dict[str, Any]]:
        """The same requests for the child."""
        return [
            self.render(question) | self.sampling | {"max_tokens": self.lengths[question], "ignore_eos": True}
            for question in self.questions
        ]


def _through_teacher(teacher: _FixedLengths, server: Server, path: Path) -> tuple[float, int]:
    tokens = 0
    with Journal(path) as journal:

        def on_answer(question: Question, answer: Answer) -> None:
            nonlocal tokens
            tokens += answer.output_tokens or 0
            journal.append(f"{question.problem.id} {question.mode}", trace_to_row(answer.trace))

        start = time.perf_counter()
        asyncio.run(teacher.ask({"reasoning": server.endpoint, "ift": server.endpoint}, teacher.questions, on_answer))
        seconds = time.perf_counter() - start
    path.unlink(missing_ok=True)
    return seconds, tokens
