"""`distill train`: traces and settings in, a student in Hugging Face layout out.

The plan of all steps is made first. A step sums token losses over its rows, divides by the step's count of supervised
tokens, clips and updates. A checkpoint is weights, moments and the number of finished steps, with the validations up to
there; killed at any moment, the same command goes on from the last one and ends in the same bytes.
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
from dataclasses import dataclass, replace
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
from distill.packing.pack import Document, Pack, build_pack
from distill.packing.plan import Batch, Step, plan
from distill.packing.render import Rendered, render
from distill.packing.source import TraceSet, read_traces
from distill.training import best, checkpoint
from distill.training.padded import PaddedBatch, build_padded
from distill.training.peak import peak_flops
from distill.training.schedule import learning_rate
from distill.training.settings import RunOptions, TrainSettings
from distill.training.student import Origin, Student, load_origin, student_identity
from distill.training.validation import Validation, is_held_out, split, when

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
        ready = make_ready(settings, trace_set)
        run = _Run(settings, options, ready)
        measured, validations = run.train(work.path)
        _save(ready.origin, work.path)
        summary = describe(settings, ready) | {"measured": measured}
        if ready.validation is not None:
            lowest = best.best_of(validations)
            kept = lowest if settings.keep == "best" else validations[-1]
            summary["validation"] |= {"times": len(validations), "lowest": lowest, "kept": kept}
        artifact.write_json(work.path / "metrics.json", summary)
        return work.commit(summary, remove=("checkpoints",))


@dataclass(frozen=True)
class Ready:
    """All there is before the first step."""

    origin: Origin
    rendered: Rendered
    steps: list[Step]
    validation: Validation | None
    validate_after: set[int]  # numbers of finished steps


def prepare(settings: TrainSettings, trace_set: TraceSet) -> tuple[Origin, Rendered, list[Step]]:
    """The student, its documents and its plan."""
    ready = make_ready(settings, trace_set)
    return ready.origin, ready.rendered, ready.steps


def make_ready(settings: TrainSettings, trace_set: TraceSet, *, weights: bool = True) -> Ready:
    """The student, its documents, its plan and what it is validated on. Without `weights` the student is a shape."""
    arm = settings.shown
    held_out = {p.problem.id for p in trace_set.pairs if is_held_out(p.problem.prompt, settings.validation)}
    origin = load_origin(
        settings.student,
        TraceSet(trace_set.key, [p for p in trace_set.pairs if p.problem.id not in held_out]).texts(),
        packed=settings.packed,
        vocab_size=settings.vocab_size,
        seed=settings.seed,
        think_tags=settings.think_tags,
        weights=weights,
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
    training, held = split(rendered, held_out, settings.validation)
    steps = _plan(settings, arm, rendered, training)
    validation = Validation.build(settings, rendered, held, arm.ratio) if held else None
    return Ready(origin, rendered, steps, validation, when(settings, steps, len(training)))


def _plan(settings: TrainSettings, arm: Arm, rendered: Rendered, training: list[int]) -> list[Step]:
    """The steps over the `training` pairs, in references to the rendered documents."""
    references = [2 * pair + mode for pair in training for mode in (0, 1)]
    lengths = np.array([rendered.documents[r].length for r in references])
    batch = Batch(settings.batch_unit, settings.batch, settings.row_tokens, settings.packed)
    steps = plan(arm, lengths, batch=batch, epochs=settings.epochs, seed=settings.seed, tokens=settings.tokens)
    if len(training) == rendered.n_pairs:
        return steps
    return [replace(step, rows=[[references[r] for r in row] for row in step.rows]) for step in steps]


def describe(settings: TrainSettings, ready: Ready) -> dict[str, Any]:
    """What will be trained on, counted from the plan: no clock is involved.

    Tokens are input tokens; by mode, the share of examples, tokens and loss (supervised tokens) is given. `validation`
    is what one validation reads and costs.
    """
    origin, rendered, steps = ready.origin, ready.rendered, ready.steps
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
        "pairs": rendered.n_pairs - (ready.validation.pairs if ready.validation else 0),
        "validation": ready.validation.describe(shape) if ready.validation else None,
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
        log = _Log(folder, done, tensorboard=self.options.tensorboard)
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


def checkpoint_activations(model: Any) -> None:
    """Every layer keeps its input only, and is run again in the backward. Raises InputError for a model that cannot."""
    if not model.supports_gradient_checkpointing:
        raise InputError(f"{type(model).__name__} has no activation checkpointing; take --activation-checkpointing off")
    # No random state to keep: training is without dropout, and asking a GPU for it every layer would wait for it.
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False}
    )


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.adam_betas, fused=True)


class _Log:
    """training_log.jsonl, one line a step with no clock in it, and the same in TensorBoard; validation_log.jsonl has a
    line a validation, and is not there without any."""

    def __init__(self, folder: Path, done: checkpoint.Progress, *, tensorboard: bool):
        self.path, self.validation_path = folder / "training_log.jsonl", folder / "validation_log.jsonl"
        first_step = done.step
        self.pending: list[tuple[int, torch.Tensor, torch.Tensor, float, dict[str, Any]]] = []
        self.last = float("nan")
        kept = self.path.read_text().splitlines(keepends=True)[:first_step] if self.path.exists() else []
        artifact.write_atomic(self.path, "".join(kept))  # steps after the checkpoint are run, and logged, again
        self.file = open(self.path, "a")  # noqa: SIM115 - closed by __exit__
        self.validation_path.unlink(missing_ok=True)
        for validation in done.validations:
            self._append_validation(validation)
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.writer:
            self.writer.close()

    def add(self, step: int, loss: torch.Tensor, norm: torch.Tensor, rate: float, counts: dict[str, Any]) -> None:
        self.pending.append((step, loss, norm, rate, counts))

    def add_validation(self, validation: dict[str, Any]) -> None:
        self._append_validation(validation)
        step, losses = validation["step"], {k: v for k, v in validation.items() if k != "step"}
        console.note(f"step {step}: validation {', '.join(f'{k} {v:.4f}' for k, v in losses.items())}")
        if self.writer:
            for name, value in losses.items():
                self.writer.add_scalar(f"validation/{name}", value, step)

    def _append_validation(self, validation: dict[str, Any]) -> None:
        with open(self.validation_path, "a") as file:
            file.write(json.dumps(validation, sort_keys=True) + "\n")  # the order a checkpoint keeps

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


def peak_rss_bytes() -> int:
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
