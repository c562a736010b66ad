"""The training itself: every step of a plan, with checkpoints, validations and a person who may stop it.

A step sums token losses over its rows, divides by the step's count of supervised tokens, clips and updates. A
checkpoint is weights, moments and the number of finished steps, with the validations up to there; killed at any moment,
the same command goes on from the last one and ends in the same bytes.
"""

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

from distill import console
from distill.errors import InputError
from distill.flops import ModelShape
from distill.kernels import fuse_layers
from distill.packing.pack import Document, Pack, build_pack
from distill.packing.plan import Step
from distill.training import best, checkpoint
from distill.training.activations import checkpoint_activations
from distill.training.log import TrainingLog
from distill.training.padded import PaddedBatch, build_padded
from distill.training.peak import peak_flops
from distill.training.prepare import Ready, resolve_precision
from distill.training.schedule import learning_rate
from distill.training.settings import RunOptions, TrainSettings
from distill.training.student import Student

# Every step has packs of new lengths, and on a CPU oneDNN and its torch binding keep a compiled kernel for each of the
# last 1024 shapes: 35 MB a step until they are full. Set before the first matrix product; a person's own setting wins.
for _cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "32")

_LOG_EVERY = 10  # steps between reading losses back from the device


class Stopped(Exception):
    """Training was asked to stop by `signal` (Ctrl-C, SIGTERM) and has saved a checkpoint."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class Run:
    """One training on one device."""

    def __init__(self, settings: TrainSettings, options: RunOptions, ready: Ready):
        self.settings, self.options, self.ready = settings, options, ready
        origin = ready.origin
        self.documents, self.steps = ready.rendered.documents, ready.steps
        self.pair_ids = ready.rendered.pair_ids
        self.pad_id = origin.chat.tokenizer.pad_token_id or 0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = resolve_precision(settings.precision, self.device, origin.model.config.hidden_size)
        self.shape = ModelShape.from_config(origin.model.config)
        self.student = Student(origin.model).to(self.device).train()
        fuse_layers(origin.model)  # on a GPU with liger-kernel; changes speed, and rounding as another kernel would
        if options.activation_checkpointing == "full":
            checkpoint_activations(origin.model)
        self.optimizer = build_optimizer(self.student, settings)

    def train(self, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Run every step that is not done yet. Returns what was measured, and every validation."""
        checkpoints = folder / "checkpoints"
        done = checkpoint.restore(checkpoints, self.student, self.optimizer)
        validations = list(done.validations)
        if self.settings.keep == "best":
            best.check(checkpoints, validations, done.step)
        if done.step:
            console.note(f"{folder}: going on from step {done.step} of {len(self.steps)}")
        log = TrainingLog(folder, done, tensorboard=self.options.tensorboard)
        peak, peak_source = peak_flops(self.device, self.dtype)
        started = saved = time.monotonic()
        seconds = lambda: done.seconds + time.monotonic() - started  # noqa: E731
        tokens = supervised = 0
        flops = validating = 0.0
        with log, _stop_requests() as stop, self._bar(done.step) as (bar, task):
            for number in range(done.step, len(self.steps)):
                loss, gradient_norm, rate, counts = self.step(self.steps[number])
                tokens, supervised = tokens + counts["tokens"], supervised + counts["supervised_tokens"]
                flops += counts["flops"]
                log.add(number, loss, gradient_norm, rate, counts)
                last = number + 1 == len(self.steps)
                validate = number + 1 in self.ready.validate_after
                if (number + 1) % _LOG_EVERY == 0 or last or stop or validate:
                    value = log.flush(self._name_documents)
                    elapsed = time.monotonic() - started - validating
                    bar.update(
                        task, completed=number + 1, loss=value, rate=supervised / elapsed, mfu=flops / elapsed / peak
                    )
                if validate:
                    start = time.monotonic()
                    validations.append(self.validate(number + 1))
                    log.add_validation(validations[-1])
                    if self.settings.keep == "best" and best.best_of(validations) is validations[-1]:
                        best.keep(checkpoints, self.student, number + 1)
                    validating += time.monotonic() - start
                due = (
                    (number + 1) % self.options.checkpoint_steps == 0
                    if self.options.checkpoint_steps
                    else time.monotonic() - saved >= self.options.checkpoint_seconds
                )
                if (due or stop) and not last:
                    log.flush(self._name_documents)
                    progress = checkpoint.Progress(number + 1, seconds(), validations)
                    checkpoint.save(checkpoints, self.student, self.optimizer, progress)
                    saved = time.monotonic()
                if stop and not last:
                    raise Stopped(
                        f"stopped after step {number + 1} of {len(self.steps)}; run the same command to go on from there",
                        stop[0],
                    )
        total = seconds()
        elapsed = max(time.monotonic() - started - validating, 1e-9)
        if self.settings.keep == "best":
            best.load(checkpoints, self.student, best.best_of(validations)["step"])
        measured = {
            "seconds": total,
            "validation_seconds": validating,
            "tokens_per_second": tokens / elapsed,
            "supervised_tokens_per_second": supervised / elapsed,
            "mfu": flops / elapsed / peak,
            "peak_flops": peak,
            "peak_flops_source": peak_source,
            "peak_rss_bytes": peak_rss_bytes(),
            "peak_device_bytes": torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        return measured, validations

    def validate(self, step: int) -> dict[str, Any]:
        """The losses on the held-out pairs after `step`. Raises InputError when one is not finite."""
        self.student.eval()
        found = self.ready.validation.measure(self._sum_of_losses)
        self.student.train()
        if not all(np.isfinite(value) for value in found.values()):
            raise InputError(
                f"validation after step {step}: loss {found['loss']}; stopped, the last checkpoint is kept"
            )
        return {"step": step, **found}

    @torch.no_grad()
    def _sum_of_losses(self, documents: list[list[Document]]) -> float:
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for batch in self._batches(documents):
            with self._autocast():
                total += self.student(batch.to(self.device))
        return float(total)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype is torch.bfloat16)

    def step(self, step: Step) -> tuple[torch.Tensor, torch.Tensor, float, dict[str, Any]]:
        """One optimizer step: (mean loss, gradient norm before clipping, learning rate, counts)."""
        rate = learning_rate(self.settings, step.index, step.of, step.phase)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        documents = [[self.documents[r] for r in row] for row in step.rows]
        lengths = np.array([d.length for row in documents for d in row])
        supervised = sum(d.supervised for row in documents for d in row)
        total = torch.zeros((), device=self.device)
        for batch in self._batches(documents):
            with self._autocast():
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

    def _batches(self, documents: list[list[Document]]) -> Iterator[Pack | PaddedBatch]:
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


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
