"""The generating half of `distill bench evaluation`: the evaluation's own loop, its journal included."""

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill import console
from distill.bench.evaluation import EvaluationBenchSettings, spread_of
from distill.bench.offline import SHAPES, Offline, random_student
from distill.bench.spread import ratio
from distill.errors import InputError
from distill.evaluation.evaluate import render
from distill.evaluation.generate import Generation, Journal, Output, end_ids
from distill.evaluation.questions import Prompts, ask, positions_needed
from distill.evaluation.requests import Request, requests
from distill.evaluation.server import Serving
from distill.evaluation.settings import EvaluateSettings, Questions
from distill.evaluation.subject import Subject, load_subject
from distill.serve import Endpoint, ServerSettings
from distill.serve.metrics import between, scrape

TASKS = ("add", "record")  # their questions are made, and do not run out
_POSITIONS = 256  # more than their prompts have
_JOURNAL = "outputs.jsonl"
TURNS = ("evaluation", "offline", "interrupted")


def measure_generation(settings: EvaluationBenchSettings, name: str, folder: Path) -> dict[str, Any]:
    """An entry of "generation". Raises InputError for what is no student, and when it cannot be served."""
    student, parameters = Path(name), None
    if name in SHAPES:
        positions = settings.tokens + _POSITIONS
        student, parameters = random_student(name, folder, positions=positions, seed=settings.seed)
    work = _Work.of(settings, load_subject(student))
    longest = positions_needed(work.subject, work.prompts.ids, settings.tokens)
    served = ServerSettings(dtype=work.subject.dtype, max_model_len=longest, threads=settings.threads)
    serving = Serving(threads=settings.threads)
    rates: dict[str, list[float]] = {"evaluation": [], "offline": []}
    whole, interrupted, again = [], [], []
    with (
        serving.reachable(work.subject, folder / name.replace("/", "_"), positions=longest) as endpoint,
        Offline(work.subject.folder, served, folder) as llm,
    ):
        for number in range(-1, settings.rounds):  # the first is for warming up
            console.note(f"{name}, round {number + 1} of {settings.rounds}")
            batch, more = work.take(settings.questions), work.take(settings.questions)
            found = {}
            for who in TURNS if number % 2 == 0 else reversed(TURNS):
                if who == "offline":
                    found[who] = _Turn(*llm.turn([work.offline(request) for request in batch]))
                else:
                    stop = settings.questions // 2 if who == "interrupted" else None
                    found[who] = work.turn(endpoint, more if stop else batch, folder / _JOURNAL, stop)
            if number < 0:
                continue
            for who in rates:
                rates[who].append(found[who].tokens / found[who].seconds)
            one, other = found["evaluation"], found["interrupted"]
            whole.append(one.seconds / one.tokens)
            interrupted.append(other.seconds / other.tokens)
            again.append(other.made / other.tokens - 1)
    return {
        "model": name if name in SHAPES else student.name,
        "parameters": parameters,
        "requests": settings.questions,
        "kept": settings.questions // 2,
        "measured": {who: spread_of(values) for who, values in rates.items()}
        | {
            "ratio": ratio(rates["evaluation"], rates["offline"]),
            "interrupted": ratio(interrupted, whole),
            "again": spread_of(again),
        },
    }


def measure_journal(settings: EvaluationBenchSettings, folder: Path) -> dict[str, Any]:
    """What an evaluation that is gone on with takes to read what it has."""
    rng = random.Random(settings.seed)
    path = folder / "journal.jsonl"
    with Journal(path) as journal:
        for number in range(settings.answers):
            ids = [rng.randrange(50_000) for _ in range(settings.tokens)]
            journal.add(f"bench-{number}", Output(ids, "stop", 1.0))
    seconds = []
    for _ in range(settings.grading_rounds):
        start = time.perf_counter()
        with Journal(path) as journal:
            seconds.append(time.perf_counter() - start)
            if len(journal.outputs) != settings.answers:
                raise InputError(f"bench: {len(journal.outputs)} of {settings.answers} answers were kept")
    return {"answers": settings.answers, "tokens": settings.tokens, "measured": {"seconds": spread_of(seconds)}}


@dataclass
class _Turn:
    """`tokens` are those of the answers; `made` is what the server generated, answers that were never kept included."""

    seconds: float
    tokens: int
    made: float = 0.0


@dataclass
class _Work:
    """Questions of a student, each of which is asked in one turn."""

    settings: EvaluateSettings
    subject: Subject
    prompts: Prompts
    requests: list[Request]

    @classmethod
    def of(cls, bench: EvaluationBenchSettings, subject: Subject) -> "_Work":
        needed = 2 * bench.questions * (bench.rounds + 1)
        each = -(-needed // len(TASKS))
        questions = [Questions(task=task, count=each, split="train", seed=bench.seed) for task in TASKS]
        settings = EvaluateSettings(questions=questions, max_tokens=bench.tokens, seed=bench.seed)
        asked = ask(questions)
        prompts = render(settings, subject, asked)
        # A student with random weights does not end by itself: four limits, as of four tasks, end its answers.
        limits = [-(-bench.tokens * quarters // 4) for quarters in (1, 2, 3, 4)]
        wanted = [replace(r, max_tokens=limits[i % 4]) for i, r in enumerate(requests(settings, asked, prompts))]
        random.Random(bench.seed).shuffle(wanted)
        return cls(settings, subject, prompts, wanted)

    def take(self, count: int) -> list[Request]:
        """The next of them."""
        taken, self.requests = self.requests[:count], self.requests[count:]
        return taken

    def offline(self, request: Request) -> dict[str, Any]:
        """The request as vLLM's offline generation takes it."""
        return {
            "prompt_token_ids": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "seed": request.seed(self.settings.seed),
            "stop_token_ids": list(end_ids(self.subject, self.prompts)),
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }

    def turn(self, endpoint: Endpoint, wanted: list[Request], path: Path, stop: int | None) -> _Turn:
        """What `evaluate` does between starting its server and grading; interrupted once `stop` answers are kept."""
        before = scrape(endpoint)
        start = time.perf_counter()
        for most in (stop, None) if stop else (None,):
            with Journal(path) as journal:
                missing = [request for request in wanted if request.key not in journal.outputs]
                asyncio.run(self._generate(endpoint, missing, journal, most))
        seconds = time.perf_counter() - start
        server = between(before, scrape(endpoint)) or {}
        tokens = sum(len(journal.outputs[request.key].token_ids) for request in wanted)
        path.unlink()
        return _Turn(seconds, tokens, server.get("output_tokens") or float("nan"))

    async def _generate(self, endpoint: Endpoint, missing: list[Request], journal: Journal, most: int | None) -> None:
        """Until all are answered, or `most` answers are kept: then it ends as Ctrl-C ends it."""

        def keep(key: str, output: Output) -> None:
            journal.add(key, output)
            if most is not None and len(journal.outputs) >= most:
                running.cancel()

        generation = Generation(endpoint, self.settings, self.subject, self.prompts, keep, vllm_limits=False)
        running = asyncio.ensure_future(generation.run(missing))
        with suppress(asyncio.CancelledError):
            await running
