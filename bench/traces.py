"""`distill bench traces`: tokens/s of generating traces through our teacher, beside vLLM's own offline generation.

The same model, prompts, sampling, seeds and lengths for both, and one set of vLLM arguments. Ours is what
`distill traces generate` does with a teacher `vllm:MODEL`: vLLM's server, our client, every answer read into a trace
and written to a journal. Theirs is `LLM.chat` in a process of its own (traces_child.py): no server, no HTTP. Both are up
all the time and take turns, in reversed order from round to round; who waits uses no processor. Every round has prompts
of its own, so that no prefix is cached.

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
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field

from distill import console
from distill.bench.spread import ratio, shown
from distill.errors import InputError
from distill.journal import Journal
from distill.serve.server import Server, ServerSettings, require_vllm, server_environment, vllm_command
from distill.settings import Settings
from distill.tasks.problem import Problem
from distill.traces.pairing import Answer
from distill.traces.store import trace_to_row
from distill.traces.teachers.chat import ChatTeacher
from distill.traces.teachers.settings import ChatSettings
from distill.traces.teachers.teacher import Question

SHAPES = {  # random weights, Qwen2 layout; about 0.1M and 27M parameters
    "tiny": dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=172),
    "large": dict(num_hidden_layers=8, hidden_size=512, num_attention_heads=8, intermediate_size=1376),
}
VOCABULARY = 512
WANTED = 0.95
_LOG_LINES = 5


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
    model, parameters = _random_model(name, folder, settings) if name in SHAPES else (name, None)
    server_settings = ServerSettings(
        threads=settings.threads,
        kv_cache_gib=settings.kv_cache_gib,
        max_model_len=settings.tokens + 256 if name in SHAPES else None,
        arguments=("--max-num-seqs", str(settings.sequences), *settings.arguments),
    )
    rates: dict[str, list[float]] = {"teacher": [], "offline": []}
    with (
        Server(model, server_settings, folder / "server.log") as server,
        _Offline(model, server_settings, folder) as llm,
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
            self.render(question) | self.sampling | {"max_tokens": self.lengths[question]}
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


class _Offline:
    """vLLM's `LLM` in a child process, under the keeper that leaves nothing of it behind."""

    def __init__(self, model: str, settings: ServerSettings, folder: Path):
        self.log = folder / "offline.log"
        command = vllm_command(model, model, 0, settings)[3:]
        for name in ("--host", "--port", "--served-model-name"):
            at = command.index(name)
            del command[at : at + 2]
        command.remove("--disable-uvicorn-access-log")
        child = [sys.executable, "-m", "distill.bench.traces_child", *command]
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "distill.serve.keeper", str(os.getpid()), *child],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=server_environment(settings, "none", offline=Path(model).is_dir()),
                start_new_session=True,
                text=True,
            )

    def __enter__(self) -> "_Offline":
        try:
            self._report()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def turn(self, requests: list[dict[str, Any]]) -> tuple[float, int]:
        """(seconds, output tokens) of generating them all."""
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        report = self._report()
        return report["seconds"], report["tokens"]

    def _report(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            raise InputError(f"bench: vLLM's offline generation ended ({' | '.join(lines[-_LOG_LINES:])})")
        return json.loads(line)


def _random_model(name: str, folder: Path, settings: TracesBenchSettings) -> tuple[str, int]:
    """(folder, parameters) of a model with random weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from distill.packing.tokenizer import train_tokenizer

    tokenizer = train_tokenizer((f"{i}: {i * i}" for i in range(1000)), VOCABULARY)
    shape = SHAPES[name]
    config = Qwen2Config(
        **shape,
        num_key_value_heads=shape["num_attention_heads"],
        vocab_size=VOCABULARY,
        max_position_embeddings=settings.tokens + 256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    return str(folder / name), sum(parameter.numel() for parameter in model.parameters())
