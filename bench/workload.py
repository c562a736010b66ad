"""What the training benchmark trains on: one trace set and one initial student, the same files for every contender.

folder/
  traces/            a trace set, made from a file or from the embedded solver
  student/           initial weights and tokenizer
  NAME.jsonl         examples in the order and layout in which a peer reads them
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch

from distill.errors import unknown_name
from distill.packing.chat import ThinkFormat
from distill.packing.source import read_traces
from distill.tasks.registry import get_task
from distill.traces.layouts.import_traces import LAYOUTS, import_file
from distill.traces.trace import Pair
from distill.training.student import load_origin

SYNTHETIC = "synthetic"
SUMS = range(5, 21)  # sums in one synthetic document: about 150 to 600 tokens


@dataclass(frozen=True)
class Workload:
    """`traces` and `student` are folders."""

    traces: Path
    student: Path
    parameters: int
    vocabulary: int


def build_workload(data: str, size: str, vocabulary: int, documents: int, seed: int, folder: Path) -> Workload:
    """Pairs from `data` (gsm8k:PATH, aqua:PATH, pairs:PATH; or "synthetic", `documents` of them) and a student of a
    from-scratch size with `vocabulary` entries, however few of them its tokenizer fills. Raises InputError."""
    layout, _, path = data.partition(":")
    if layout == SYNTHETIC:
        layout, file = "pairs", folder / "synthetic.jsonl"
        file.write_text("".join(synthetic_lines(documents, seed)), encoding="utf-8")
    elif layout in LAYOUTS:
        file = Path(path) / "train.jsonl" if Path(path).is_dir() else Path(path)
    else:
        raise unknown_name("data", data, [SYNTHETIC, *(f"{name}:PATH" for name in LAYOUTS)])
    traces = import_file(file, layout, folder / "traces", splits="all").path
    origin = load_origin(size, read_traces(traces).texts(), packed=False, vocab_size=vocabulary, seed=seed)
    if origin.model.config.vocab_size < vocabulary:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            origin.model.resize_token_embeddings(vocabulary, mean_resizing=False)
    student = folder / "student"
    origin.model.save_pretrained(student)
    origin.chat.tokenizer.save_pretrained(student)
    origin.chat.think.save(student)
    parameters = sum(p.numel() for p in origin.model.parameters())
    return Workload(traces, student, parameters, origin.model.config.vocab_size)


def synthetic_lines(documents: int, seed: int) -> list[str]:
    """Long reasoning from the solver of `add`, in layout "pairs": several sums in a row, each worked out in full."""
    rng = random.Random(seed)
    task = get_task("add")
    problems = task.problems("train", documents, seed)
    lines = []
    for first in problems:
        chained = [first, *rng.choices(problems, k=rng.choice(SUMS) - 1)]
        solved = [task.solve(problem) for problem in chained]
        steps = [f"{p.prompt}: {reasoning} = {answer}" for p, (reasoning, answer) in zip(chained, solved, strict=True)]
        answers = " ".join(answer for _, answer in solved)
        row = {"prompt": ", ".join(p.prompt for p in chained), "ift": answers}
        lines.append(json.dumps({**row, "reasoning": f"<think>{'; '.join(steps)}</think>{answers}"}) + "\n")
    return lines


def write_examples(pairs: list[Pair], think: ThinkFormat, file: Path) -> None:
    """The reasoning of each pair as a conversational prompt-completion example, one JSON object a line."""
    with open(file, "w", encoding="utf-8") as out:
        for pair in pairs:
            answer = think.wrap(pair.reasoning.reasoning, pair.reasoning.answer)
            example = {
                "prompt": [{"role": "user", "content": pair.problem.prompt}],
                "completion": [{"role": "assistant", "content": answer}],
            }
            out.write(json.dumps(example, ensure_ascii=False) + "\n")
