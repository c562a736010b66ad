"""`distill train`: traces and settings in, a student in Hugging Face layout out.

The plan of all steps is made first. A step sums token losses over its rows, divides by the step's count of supervised
tokens, clips and updates. A checkpoint is weights, moments and the number of finished steps; killed at any moment, the
same command goes on from the last one and ends in the same bytes.
"""

import importlib.metadata
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distill import artifact, console
from distill.artifact import Artifact
from distill.errors import InputError
from distill.flops import ModelShape
from distill.kernels import fuse_layers
from distill.packing.arms import Arm
from distill.packing.chat import LABELLING_VERSION
from distill.packing.pack import build_pack
from distill.packing.plan import Batch, Step, plan
from distill.packing.render import Rendered, render
from distill.packing.source import TraceSet, read_traces
from distill.training import checkpoint
from distill.training.padded import build_padded
from distill.training.peak import peak_flops
from distill.training.schedule import learning_rate
from distill.training.settings import RunOptions, TrainSettings
from distill.training.student import Origin, Student, load_origin, student_identity

# Every step has packs of new lengths, and on a CPU oneDNN and its torch binding keep a compiled kernel for each of the
# last 1024 shapes: 35 MB a step until they are full. Set before the first matrix product; a person's own setting wins.
for _cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "32")

KIND = "student"
TRAINER_VERSION = 2  # part of every key: raise it when the same settings give other weights
_LOG_EVERY = 10  # steps between reading losses back from the device


class Stopped(Exception):
    """Training was asked to stop by `signal` (Ctrl-C, SIGTERM) and has saved a checkpoint."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


def recipe(settings: TrainSettings, traces_key: str) -> dict[str, Any]:
    """Everything the weights depend on. Raises InputError for a student that cannot be read."""
    student = student_identity(settings.student, settings.think_tags)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_precision(settings.precision, device, student["hidden"])
    return {
        "settings": settings.model_dump(mode="json", exclude={"student", "precision"}),
        "student": student,
        "traces": traces_key,
        "computed": {"device": device.type, "dtype": str(dtype).removeprefix("torch.")},
        "labelling_version": LABELLING_VERSION,
        "trainer_version": TRAINER_VERSION,
        "versions": _versions(device),
    }


def _versions(device: torch.device) -> dict[str, str | None]:
    """Of what computes the weights."""
    names = ["torch", "transformers", "tokenizers"]
    if device.type == "cuda":
        names += ["triton", "liger-kernel", "flash-attn"]
    return {name: next(iter(d.version for d in importlib.metadata.distributions(name=name)), None) for name in names}


def train(settings: TrainSettings, traces: Path, options: RunOptions) -> Artifact:
    """Train one student. Raises InputError for bad input, Stopped when told to stop."""
    if options.threads:
        torch.set_num_threads(options.threads)
    trace_set = read_traces(traces)
    with artifact.workspace(options.out, KIND, recipe(settings, trace_set.key)) as work:
        if work.finished:
            console.note(f"{options.out}: already trained, nothing to do")
            return work.finished
        origin, rendered, steps = prepare(settings, trace_set)
        run = _Run(settings, options, origin, rendered, steps)
        measured = run.train(work.path)
        _save(origin, work.path)
        summary = {**describe(settings, origin, rendered, steps), "measured": measured}
        artifact.write_json(work.path / "metrics.json", summary)
        return work.commit(summary, remove=("checkpoints",))


def prepare(settings: TrainSettings, trace_set: TraceSet) -> tuple[Origin, Rendered, list[Step]]:
    """The student, its documents and its plan."""
    arm = Arm.parse(settings.arm)
    origin = load_origin(
        settings.student,
        trace_set.texts(),
        packed=settings.packed,
        vocab_size=settings.vocab_size,
        seed=settings.seed,
        think_tags=settings.think_tags,
    )
    positions = getattr(origin.model.config, "max_position_embeddings", None)
    if positions is not None and settings.row_tokens > positions and not settings.packed:
        raise InputError(f"row_tokens={settings.row_tokens} exceeds the model's {positions} positions")
    with console.progress() as bar:
        task = bar.add_task("tokenizing", total=len(trace_set.pairs))
        rendered = render(
            trace_set.pairs,
            origin.chat,
            answers=settings.answers,
            max_length=min(settings.row_tokens, positions or settings.row_tokens),
            vocab_size=origin.model.config.vocab_size,
            modes=arm.modes,
            advance=lambda n: bar.advance(task, n),
        )
    lengths = np.array([d.length for d in rendered.documents])
    batch = Batch(settings.batch_unit, settings.batch, settings.row_tokens, settings.packed)
    steps = plan(arm, lengths, batch=batch, epochs=settings.epochs, seed=settings.seed, tokens=settings.tokens)
    return origin, rendered, steps


def describe(settings: TrainSettings, origin: Origin, rendered: Rendered, steps: list[Step]) -> dict[str, Any]:
    """What will be trained on, counted from the plan: no clock is involved.

    Tokens are input tokens; by mode, the share of examples, tokens and loss (supervised tokens) is given.
    """
    shape = ModelShape.from_config(origin.model.config)
    lengths = np.array([d.length for d in rendered.documents])
    supervised = np.array([d.supervised for d in rendered.documents])
    seen = np.array([r for step in steps for row in step.rows for r in row])
    rows = [row for step in steps for row in step.rows]
    by_mode = {}
    for mode, name in enumerate(("ift", "reasoning")):
        of_mode = seen[seen % 2 == mode]
        by_mode[name] = {
            "examples": len(of_mode),
            "tokens": int(lengths[of_mode].sum()),
            "supervised_tokens": int(supervised[of_mode].sum()),
        }
    row_slots = len(rows) * settings.row_tokens if settings.packed else None
    return {
        "arm": settings.arm,
        "student": settings.student,
        "parameters": sum(p.numel() for p in origin.model.parameters()),
        "vocabulary": origin.model.config.vocab_size,
        "steps": len(steps),
        "rows": len(rows),
        "examples": len(seen),
        "tokens": int(lengths[seen].sum()),
        "supervised_tokens": int(supervised[seen].sum()),
        "by_mode": by_mode,
        "flops": shape.training_flops(lengths[seen], int(supervised[seen].sum())),
        "row_fill": float(lengths[seen].sum() / row_slots) if row_slots else None,
        "pairs": rendered.n_pairs,
        "dropped_pairs": rendered.dropped,
        "dropped_tokens": rendered.dropped_tokens,
    }


def resolve_precision(precision: str, device: torch.device, hidden: int) -> torch.dtype:
    """The dtype of matrix products. `auto` is bf16 on a GPU, and on CPUs that have it for students at least 256 wide:
    below, casts cost more than the products save."""
    if precision == "auto":
        pays = device.type == "cuda" or (torch.cpu._is_avx512_bf16_supported() and hidden >= 256)
        precision = "bf16" if pays else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


class _Run:
    """One training on one device."""

    def __init__(
        self, settings: TrainSettings, options: RunOptions, origin: Origin, rendered: Rendered, steps: list[Step]
    ):
        self.settings, self.options = settings, options
        self.documents, self.steps = rendered.documents, steps
        self.pair_ids = rendered.pair_ids
        self.pad_id = origin.chat.tokenizer.pad_token_id or 0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = resolve_precision(settings.precision, self.device, origin.model.config.hidden_size)
        self.shape = ModelShape.from_config(origin.model.config)
        self.student = Student(origin.model).to(self.device).train()
        fuse_layers(origin.model)  # on a GPU with liger-kernel; changes speed, and rounding as another kernel would
        self.optimizer = build_optimizer(self.student, settings)

    def train(self, folder: Path) -> dict[str, Any]:
        """Run every step that is not done yet. Returns what was measured."""
        checkpoints = folder / "checkpoints"
        done = checkpoint.restore(checkpoints, self.student, self.optimizer)
        if done.step:
            console.note(f"{folder}: going on from step {done.step} of {len(self.steps)}")
        log = _Log(folder, first_step=done.step, tensorboard=self.options.tensorboard)
        peak, peak_source = peak_flops(self.device, self.dtype)
        started = saved = time.monotonic()
        seconds = lambda: done.seconds + time.monotonic() - started  # noqa: E731
        tokens = supervised = 0
        flops = 0.0
        with log, _stop_requests() as stop, self._bar(done.step) as (bar, task):
            for number in range(done.step, len(self.steps)):
                loss, gradient_norm, rate, counts = self.step(self.steps[number])
                tokens, supervised = tokens + counts["tokens"], supervised + counts["supervised_tokens"]
                flops += counts["flops"]
                log.add(number, loss, gradient_norm, rate, counts)
                last = number + 1 == len(self.steps)
                if (number + 1) % _LOG_EVERY == 0 or last or stop:
                    value = log.flush(self._name_documents)
                    elapsed = time.monotonic() - started
                    bar.update(
                        task, completed=number + 1, loss=value, rate=supervised / elapsed, mfu=flops / elapsed / peak
                    )
                due = (
                    (number + 1) % self.options.checkpoint_steps == 0
                    if self.options.checkpoint_steps
                    else time.monotonic() - saved >= self.options.checkpoint_seconds
                )
                if (due or stop) and not last:
                    log.flush(self._name_documents)
                    checkpoint.save(
                        checkpoints, self.student, self.optimizer, checkpoint.Progress(number + 1, seconds())
                    )
                    saved = time.monotonic()
                if stop and not last:
                    raise Stopped(
                        f"stopped after step {number + 1} of {len(self.steps)}; run the same command to go on from there",
                        stop[0],
                    )
        elapsed = max(time.monotonic() - started, 1e-9)
        return {
            "seconds": done.seconds + elapsed,
            "tokens_per_second": tokens / elapsed,
            "supervised_tokens_per_second": supervised / elapsed,
            "mfu": flops / elapsed / peak,
            "peak_flops": peak,
            "peak_flops_source": peak_source,
            "peak_rss_bytes": _peak_rss_bytes(),
            "peak_device_bytes": torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def step(self, step: Step) -> tuple[torch.Tensor, torch.Tensor, float, dict[str, Any]]:
        """One optimizer step: (mean loss, gradient norm before clipping, learning rate, counts)."""
        rate = learning_rate(self.settings, step.index, step.of)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        documents = [[self.documents[r] for r in row] for row in step.rows]
        lengths = np.array([d.length for row in documents for d in row])
        supervised = sum(d.supervised for row in documents for d in row)
        total = torch.zeros((), device=self.device)
        for batch in self._batches(documents):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype is torch.bfloat16):
                loss = self.student(batch.to(self.device))
            # The sum over the step divided by the step's count: rows weigh by their supervised tokens.
            (loss / supervised).backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        counts = {
            "tokens": int(lengths.sum()),
            "supervised_tokens": supervised,
            "flops": self.shape.training_flops(lengths, supervised),
        }
        return total / supervised, norm, rate, counts

    def _batches(self, documents: list[list[Any]]) -> Iterator[Any]:
        if self.settings.packed:
            yield from (build_pack(row) for row in documents)
            return
        flat = [row[0] for row in documents]
        start = 0
        while start < len(flat):  # as many documents as fit into row_tokens once padded
            stop, longest = start, 0
            while stop < len(flat):
                longest = max(longest, flat[stop].length)
                if stop > start and longest * (stop - start + 1) > self.settings.row_tokens:
                    break
                stop += 1
            yield build_padded(flat[start:stop], self.pad_id)
            start = stop

    def _name_documents(self, number: int) -> str:
        references = [r for row in self.steps[number].rows for r in row]
        names = sorted({self.pair_ids[r // 2] for r in references})
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    @contextmanager
    def _bar(self, done: int) -> Iterator[Any]:
        columns = (
            "loss {task.fields[loss]:.3f}",
            "{task.fields[rate]:,.0f} sup. tok/s",
            "MFU {task.fields[mfu]:.0%}",
        )
        with console.progress(*columns) as bar:
            name = self.settings.arm
            yield bar, bar.add_task(name, total=len(self.steps), completed=done, loss=float("nan"), rate=0.0, mfu=0.0)


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.adam_betas, fused=True)


class _Log:
    """training_log.jsonl, one line a step with no clock in it, and the same in TensorBoard."""

    def __init__(self, folder: Path, *, first_step: int, tensorboard: bool):
        self.path = folder / "training_log.jsonl"
        self.pending: list[tuple[int, torch.Tensor, torch.Tensor, float, dict[str, Any]]] = []
        self.last = float("nan")
        kept = self.path.read_text().splitlines(keepends=True)[:first_step] if self.path.exists() else []
        artifact.write_atomic(self.path, "".join(kept))  # steps after the checkpoint are run, and logged, again
        self.file = open(self.path, "a")  # noqa: SIM115 - closed by __exit__
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.writer:
            self.writer.close()

    def add(self, step: int, loss: torch.Tensor, norm: torch.Tensor, rate: float, counts: dict[str, Any]) -> None:
        self.pending.append((step, loss, norm, rate, counts))

    def flush(self, name_documents: Any) -> float:
        """Write what is pending and return the last loss. Raises InputError when a loss is not finite."""
        for step, loss, norm, rate, counts in self.pending:
            value, norm_value = float(loss), float(norm)
            if not np.isfinite(value) or not np.isfinite(norm_value):
                raise InputError(
                    f"step {step + 1}: loss {value} with gradient norm {norm_value}; stopped, the last checkpoint is kept. "
                    f"Documents in the step: {name_documents(step)}"
                )
            line = {
                "step": step + 1,
                "loss": value,
                "gradient_norm": norm_value,
                "learning_rate": rate,
                "tokens": counts["tokens"],
                "supervised_tokens": counts["supervised_tokens"],
            }
            self.file.write(json.dumps(line) + "\n")
            if self.writer:
                for name in ("loss", "gradient_norm", "learning_rate"):
                    self.writer.add_scalar(f"train/{name}", line[name], step + 1)
            self.last = value
        self.pending.clear()
        self.file.flush()
        return self.last


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or SIGTERM arrives; a second one is not held back."""
    received: list[int] = []

    def remember(number: int, _frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _peak_rss_bytes() -> int:
    """Largest resident set of this process so far (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _save(origin: Origin, folder: Path) -> None:
    """The student in Hugging Face layout, as transformers and vLLM load it."""
    chat = origin.chat
    model = origin.model.to(origin.save_dtype)
    if model.generation_config is not None:
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends] if ends is not None else []
        model.generation_config.eos_token_id = sorted({*ends, chat.end_of_turn})
    with checkpoint.disk_errors(folder):
        model.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    chat.think.save(folder)
