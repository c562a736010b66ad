"""A student's raw outputs: token ids for every question, through vLLM, each durable once it is there."""

import asyncio
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from distill import console
from distill.errors import InputError
from distill.evaluation.settings import EvaluateSettings
from distill.journal import Journal as JsonJournal
from distill.packing.chat import ChatFormat
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
    """Finished outputs by question id."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.outputs: dict[str, Output] = {}
        for question in self:
            try:
                self.outputs[question] = Output(**self.get(question))
            except TypeError:
                raise InputError(f"{path}: damaged at {question!r}; delete its line and run again") from None

    def add(self, question: str, output: Output) -> None:
        """Keep an output. Raises InputError when it cannot be written."""
        self.append(question, asdict(output))
        self.outputs[question] = output


def generate_vllm(
    endpoint: Endpoint, prompts: dict[str, list[int]], settings: EvaluateSettings, chat: ChatFormat, journal: Journal
) -> None:
    """Ask the server for every question in `prompts`. Raises InputError when requests failed for good."""
    ids = list(prompts)
    failures: list[str] = []
    sampling = SamplingSettings(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        stop_token_ids=(chat.end_of_turn,),
    )

    def keep(completion: Completion) -> None:
        if completion.error is None:
            journal.add(ids[completion.index], Output(completion.token_ids, completion.finish_reason, completion.e2e_s))
        else:
            failures.append(completion.error)

    asyncio.run(
        complete(
            endpoint,
            list(prompts.values()),
            sampling,
            concurrency=CONCURRENCY,
            seeds=[_seed(settings.seed, question) for question in ids],
            on_result=keep,
            label="generating answers",
        )
    )
    if failures:
        raise InputError(
            f"{len(failures)} of {len(ids)} questions got no answer ({failures[0]}); the others are kept, run again for these"
        )


def _seed(seed: int, question: str) -> int:
    """A question's own sampling seed: the same whether it is asked first or after a restart."""
    return zlib.crc32(f"{seed} {question}".encode())


def generate_transformers(
    student: Path, prompts: dict[str, list[int]], settings: EvaluateSettings, chat: ChatFormat, journal: Journal
) -> None:
    """The same through `transformers`, in left-padded batches: slow, and only when asked for by name."""
    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(student, trust_remote_code=False, use_safetensors=True).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    pad = chat.tokenizer.pad_token_id if chat.tokenizer.pad_token_id is not None else chat.end_of_turn
    torch.manual_seed(settings.seed)
    sampling = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    ordered = sorted(prompts, key=lambda question: len(prompts[question]))
    with console.progress() as bar:
        task = bar.add_task("generating answers", total=len(ordered))
        for start in range(0, len(ordered), _TRANSFORMERS_BATCH):
            batch = ordered[start : start + _TRANSFORMERS_BATCH]
            _generate_batch(model, {q: prompts[q] for q in batch}, settings, chat, sampling, pad, journal.add)
            bar.advance(task, len(batch))


def _generate_batch(
    model: torch.nn.Module,
    prompts: dict[str, list[int]],
    settings: EvaluateSettings,
    chat: ChatFormat,
    sampling: dict,
    pad: int,
    keep: Callable[[str, Output], None],
) -> None:
    longest = max(len(ids) for ids in prompts.values())
    rows = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts.values()], device=model.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts.values()], device=model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=rows,
            attention_mask=mask,
            max_new_tokens=settings.max_tokens,
            eos_token_id=chat.end_of_turn,
            pad_token_id=pad,
            **sampling,
        )
    for question, row in zip(prompts, output[:, longest:].tolist(), strict=True):
        stopped = chat.end_of_turn in row
        ids = row[: row.index(chat.end_of_turn) + 1] if stopped else row
        keep(question, Output(ids, "stop" if stopped else "length", 0.0))
