"""A student's raw outputs: token ids for every question, through vLLM, each durable once it is there."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from distill import console
from distill.errors import InputError
from distill.evaluation.answers import shared
from distill.evaluation.budgets import cut_thinking
from distill.evaluation.questions import Prompts
from distill.evaluation.requests import Request
from distill.evaluation.settings import EvaluateSettings
from distill.evaluation.subject import Subject
from distill.journal import Journal as JsonJournal
from distill.serve import Completion, Endpoint, SamplingSettings, complete

JOURNAL = "outputs.journal.jsonl"
CONCURRENCY = 256  # requests in flight: enough to keep vLLM's batch full
_TRANSFORMERS_BATCH = 64


@dataclass(frozen=True)
class Output:
    """What a student generated for one question."""

    token_ids: list[int]
    finish_reason: str  # "stop" or "length"
    seconds: float


class Journal(JsonJournal):
    """Finished outputs by request key."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.outputs: dict[str, Output] = {}
        for key in self:
            try:
                self._hold(key, Output(**self.get(key)))
            except TypeError:
                raise InputError(f"{path}: damaged at {key!r}; delete its line and run again") from None

    def add(self, key: str, output: Output) -> None:
        """Keep an output. Raises InputError when it cannot be written."""
        self.append(key, asdict(output))
        self._hold(key, output)

    def _hold(self, key: str, output: Output) -> None:
        self.outputs[key] = replace(output, token_ids=shared(output.token_ids))


class Sampling(SamplingSettings):
    """What an evaluation asks for besides."""

    stop: tuple[str, ...] = ()
    thinking_token_budget: int | None = None


class Generation:
    """Outputs of one student for many requests, all of them in flight together as far as there is room."""

    def __init__(
        self,
        endpoint: Endpoint,
        settings: EvaluateSettings,
        subject: Subject,
        prompts: Prompts,
        keep: Callable[[str, Output], None],
        *,
        vllm_limits: bool,
        kept: Mapping[str, Output] | None = None,
    ):
        """`vllm_limits`: whether the server limits thinking; else it is done here, by two requests, of which the first
        may be among those that were `kept` before."""
        self.endpoint, self.settings, self.subject, self.prompts = endpoint, settings, subject, prompts
        self.keep, self.vllm_limits, self.kept = keep, vllm_limits, kept or {}
        self.failures: list[str] = []

    async def run(self, requests: list[Request]) -> None:
        """Raises InputError when requests failed for good, once all others are kept."""
        groups: dict[tuple[int, int | None], list[Request]] = {}
        for request in requests:
            groups.setdefault((request.max_tokens, request.budget), []).append(request)
        with console.progress() as bar:
            task = bar.add_task("generating answers", total=len(requests))
            self.advance = lambda: bar.advance(task)
            await asyncio.gather(*(self._group(*group, together) for group, together in groups.items()))
        if self.failures:
            raise InputError(
                f"{len(self.failures)} of {len(requests)} questions got no answer ({self.failures[0]}); the others are "
                "kept, run again for these"
            )

    async def _group(self, max_tokens: int, budget: int | None, requests: list[Request]) -> None:
        """Those that are asked for in the same way."""
        if budget is None or self.vllm_limits:
            await self._complete(requests, [r.prompt for r in requests], max_tokens, self._finish, budget)
            return
        chat, waiting = self.subject.require_chat(), []

        def first(request: Request, output: Output) -> None:
            cut = cut_thinking(chat, output.token_ids, budget, opened=self.prompts.opened)
            if cut is None:
                self._finish(request, output)
            elif len(cut) >= max_tokens:
                self._finish(request, Output(cut[:max_tokens], "length", output.seconds))
            else:
                if _uncut(request) not in self.kept:
                    self.keep(_uncut(request), output)
                waiting.append((request, cut, output.seconds))

        missing = [request for request in requests if _uncut(request) not in self.kept]
        for request in requests:
            if _uncut(request) in self.kept:
                first(request, self.kept[_uncut(request)])
        await self._complete(missing, [r.prompt for r in missing], max_tokens, first)
        by_length: dict[int, list[tuple[Request, list[int], float]]] = {}
        for row in waiting:
            by_length.setdefault(len(row[1]), []).append(row)
        await asyncio.gather(*(self._answers(max_tokens - n, rows) for n, rows in by_length.items()))

    async def _answers(self, max_tokens: int, rows: list[tuple[Request, list[int], float]]) -> None:
        """What follows a think block that was cut and closed."""
        before = {request.key: (cut, seconds) for request, cut, seconds in rows}

        def second(request: Request, output: Output) -> None:
            cut, seconds = before[request.key]
            whole = Output([*cut, *output.token_ids], output.finish_reason, seconds + output.seconds)
            self._finish(request, whole)

        requests = [request for request, _, _ in rows]
        await self._complete(requests, [[*r.prompt, *before[r.key][0]] for r in requests], max_tokens, second)

    def _finish(self, request: Request, output: Output) -> None:
        self.keep(request.key, output)
        self.advance()

    async def _complete(
        self,
        requests: list[Request],
        prompts: list[list[int]],
        max_tokens: int,
        take: Callable[[Request, Output], None],
        budget: int | None = None,
    ) -> None:
        def on_result(completion: Completion) -> None:
            if completion.error is None:
                output = Output(completion.token_ids, completion.finish_reason, completion.e2e_s)
                take(requests[completion.index], output)
            else:
                self.failures.append(completion.error)

        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            stop_token_ids=end_ids(self.subject, self.prompts),
            stop=self.prompts.stop,
            thinking_token_budget=budget,
        )
        await complete(
            self.endpoint,
            prompts,
            sampling,
            concurrency=CONCURRENCY,
            seeds=[request.seed(self.settings.seed) for request in requests],
            on_result=on_result,
        )


def _uncut(request: Request) -> str:
    """The journal's key of an output of which the thinking is too long, until its second half is there."""
    return f"{request.key} uncut"


def end_ids(subject: Subject, prompts: Prompts) -> tuple[int, ...]:
    """The tokens that end an answer."""
    end = subject.tokenizer.eos_token_id if prompts.as_text else subject.require_chat().end_of_turn
    return () if end is None else (end,)


def generate_transformers(
    student: Path, requests: list[Request], settings: EvaluateSettings, subject: Subject, journal: Journal
) -> None:
    """The same through `transformers`, in left-padded batches: slow, and only when asked for by name."""
    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(student, trust_remote_code=False, use_safetensors=True).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    chat = subject.require_chat()
    pad = chat.tokenizer.pad_token_id if chat.tokenizer.pad_token_id is not None else chat.end_of_turn
    torch.manual_seed(settings.seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    ordered = sorted(requests, key=lambda request: (request.max_tokens, len(request.prompt)))
    with console.progress() as bar:
        task = bar.add_task("generating answers", total=len(ordered))
        while ordered:
            batch = [r for r in ordered[:_TRANSFORMERS_BATCH] if r.max_tokens == ordered[0].max_tokens]
            ordered = ordered[len(batch) :]
            _generate_batch(model, batch, chat.end_of_turn, sampling, pad, journal.add)
            bar.advance(task, len(batch))


def _generate_batch(
    model: torch.nn.Module,
    requests: list[Request],
    end_of_turn: int,
    sampling: dict[str, Any],
    pad: int,
    keep: Callable[[str, Output], None],
) -> None:
    longest = max(len(r.prompt) for r in requests)
    rows = torch.tensor([[pad] * (longest - len(r.prompt)) + r.prompt for r in requests], device=model.device)
    mask = torch.tensor([[0] * (longest - len(r.prompt)) + [1] * len(r.prompt) for r in requests], device=model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=rows,
            attention_mask=mask,
            max_new_tokens=requests[0].max_tokens,
            eos_token_id=end_of_turn,
            pad_token_id=pad,
            **sampling,
        )
    for request, row in zip(requests, output[:, longest:].tolist(), strict=True):
        stopped = end_of_turn in row
        ids = row[: row.index(end_of_turn) + 1] if stopped else row
        keep(request.key, Output(ids, "stop" if stopped else "length", 0.0))
