"""The training itself: every step of a plan, with checkpoints, validations and a person who may stop it.

A step sums weighted token losses over its rows, divides by the sum of their weights, clips and updates. A
checkpoint is weights, moments and the number of finished steps, with the validations up to there; killed at any moment,
the same command goes on from the last one and ends in the same bytes.

Several ranks share the rows of a step, never its size: sums over rows become sums over ranks, and nothing else changes.
Every rank runs as many batches as the others, since weights are put together by all of them at once; one that has no row
left runs an idle one.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distill import console
from distill.kernels import fuse_layers
from distill.packing.loss_weights import total_weight
from distill.packing.pack import Document, Pack, build_pack
from distill.packing.plan import Step, busy_share
from distill.process import peak_rss_bytes
from distill.training import best, checkpoint
from distill.training.activations import checkpoint_activations
from distill.training.batches import batches_of_rank
from distill.training.compile import compile_layers, resolve_compile
from distill.training.device import resolve_precision
from distill.training.log import Diverged, TrainingLog
from distill.training.padded import PaddedBatch, build_padded
from distill.training.peak import peak_flops
from distill.training.prepare import Ready
from distill.training.ranks import Ranks, Stopped, stop_requests
from distill.training.schedule import learning_rate
from distill.training.settings import RunOptions, TrainSettings
from distill.training.sharding import shard, take_apart, whole
from distill.training.speed import Meter
from distill.training.student import Student

# Every step has packs of new lengths, and on a CPU oneDNN and its torch binding keep a compiled kernel for each of the
# last 1024 shapes: 35 MB a step until they are full. Set before the first matrix product; a person's own setting wins.
for _cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "32")

_LOG_EVERY, _LOG_SECONDS = 10, 5  # steps, or seconds, between reading losses back from the device
_BUSY = 0.75  # share of the devices' turns with a row, below which a person is told
# What a rank without a row runs: its loss times zero, so that it takes part in all that ranks do together.
_IDLE = Document(np.zeros(2, dtype=np.int32), prompt_length=1)


class Run:
    """One training on one device, or this rank's part of one on several."""

    def __init__(self, settings: TrainSettings, options: RunOptions, ready: Ready, ranks: Ranks):
        self.settings, self.options, self.ready, self.ranks = settings, options, ready, ranks
        origin = ready.origin
        self.documents, self.steps = ready.documents, ready.steps
        self.pair_ids = ready.rendered.pair_ids
        self.pad_id = origin.chat.tokenizer.pad_token_id or 0
        self.device = ranks.device
        self.dtype = resolve_precision(settings.precision, self.device, origin.model.config.hidden_size)
        self.shape = origin.shape
        if ranks.mesh is None:  # FSDP puts the parameters of a layer together in one dtype
            origin.hold_base(self.dtype)
        distillation = ready.teaching and ready.teaching.distillation
        self.student = Student(origin.model, z_loss=settings.z_loss, distillation=distillation).train()
        checkpoint_activations(origin.model, options.activation_checkpointing)
        is_mixed = self.dtype is torch.bfloat16
        # FSDP casts the weights it puts together, where they are sent; autocast where they are used.
        self.autocast = is_mixed and (ranks.mesh is None or self.device.type == "cpu")
        if ranks.mesh is None:
            self.student.to(self.device)
        else:
            shard(self.student, ranks, bf16=is_mixed and not self.autocast, cpu_offload=options.cpu_offload)
        fuse_layers(origin.model, self.device)  # on a GPU with liger-kernel; rounds as another kernel would
        if resolve_compile(settings.compile, self.device):
            compile_layers(origin.model)
        self.optimizer = build_optimizer(self.student, settings)

    def train(self, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Run every step that is not done yet. Returns what was measured, and every validation."""
        checkpoints, ranks = folder / "checkpoints", self.ranks
        done = checkpoint.restore(checkpoints, self.student, self.optimizer, ranks)
        validations = list(done.validations)
        if self.settings.weights == "best":
            best.check(checkpoints, validations, done.step, ranks)
        if done.step:
            console.note(f"{folder}: going on from step {done.step} of {len(self.steps)}")
        if (busy := busy_share(self.steps, ranks.world)) < _BUSY:
            console.note(
                f"devices have a row {busy:.0%} of the time; a larger --batch or fewer --row-tokens gives them more"
            )
        peak, peak_source = peak_flops(self.device, self.dtype)
        meter = Meter(self.device, peak * ranks.world)
        saved = looked = 0.0  # seconds after which the last checkpoint was written, and losses were read
        with ExitStack() as stack:
            log = ranks.only_first(
                lambda: stack.enter_context(
                    TrainingLog(folder, done, len(self.steps), tensorboard=self.options.tensorboard)
                )
            )
            flush = lambda: ranks.only_first(lambda: log.flush(self._name_documents))  # noqa: E731
            stop = stack.enter_context(stop_requests())
            bar, task = stack.enter_context(self._bar(done.step))
            for number in range(done.step, len(self.steps)):
                loss, gradient_norm, rate, counts = self.step(self.steps[number])
                meter.add(counts)
                if log is not None:
                    log.add(number, loss, gradient_norm, rate, counts)
                last = number + 1 == len(self.steps)
                validate = number + 1 in self.ready.validate_after
                due = (
                    (number + 1) % self.options.checkpoint_steps == 0
                    if self.options.checkpoint_steps
                    else ranks.is_first and meter.seconds - saved >= self.options.checkpoint_seconds
                )
                look = ranks.is_first and meter.seconds - looked >= _LOG_SECONDS
                # A request may have reached any of them.
                asked, due, look = ranks.most(stop[0] if stop else 0, due, look)
                if (number + 1) % _LOG_EVERY == 0 or look or last or asked or validate:
                    value, speed, looked = flush(), meter.speed(), meter.seconds
                    if log is not None:
                        bar.update(task, completed=number + 1, loss=f"{value:.3g}", speed=speed)
                        log.add_speed(number + 1, speed)
                if validate:
                    with meter.validating():
                        validations.append(self.validate(number + 1))
                        if log is not None:
                            log.add_validation(validations[-1])
                        if self.settings.weights == "best" and best.best_of(validations) is validations[-1]:
                            best.keep(checkpoints, self.student, number + 1, ranks)
                if (due or asked) and not last:
                    flush()
                    progress = checkpoint.Progress(number + 1, done.seconds + meter.seconds, validations)
                    checkpoint.save(checkpoints, self.student, self.optimizer, progress, ranks)
                    saved = meter.seconds
                if asked and not last:
                    raise Stopped(
                        f"stopped after step {number + 1} of {len(self.steps)}; run the same command to go on from there",
                        int(asked),
                    )
        measured = self._measured(done.seconds, meter, peak_source)
        if self.settings.weights == "best":
            best.load(checkpoints, self.student, best.best_of(validations)["step"], ranks)
        return measured, validations

    def _measured(self, seconds_before: float, meter: Meter, peak_source: str) -> dict[str, Any]:
        """All that depends on a clock or a machine; rates are of this process, since it started or went on."""
        speed, on_gpu = meter.speed(), self.device.type == "cuda"
        rss, device_bytes = self.ranks.most(peak_rss_bytes(), speed.memory_bytes)
        return {
            "seconds": seconds_before + meter.seconds,
            "validation_seconds": meter.validation_seconds,
            "tokens_per_second": speed.tokens_per_second,
            "supervised_tokens_per_second": speed.supervised_tokens_per_second,
            "mfu": speed.mfu,
            "peak_flops": meter.peak,
            "peak_flops_source": peak_source,
            "peak_rss_bytes": int(rss),
            "peak_device_bytes": int(device_bytes) if on_gpu else None,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "ranks": self.ranks.world,
            "threads": torch.get_num_threads(),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def validate(self, step: int) -> dict[str, Any]:
        """The losses on the held-out pairs after `step`. Raises Diverged when one is not finite."""
        self.student.eval()
        found = self.ready.validation.measure(self._sum_of_losses)
        take_apart(self.student)
        self.student.train()
        if not all(np.isfinite(value) for value in found.values()):
            raise Diverged(
                f"validation after step {step}: loss {found['loss']}; stopped; a checkpoint made before is kept"
            )
        return {"step": step, **found}

    @torch.no_grad()
    def _sum_of_losses(self, documents: list[list[Document]]) -> float:
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for batch, weight in self._batches(documents):
            with self._autocast():
                total += self.student(batch.to(self.device)) * weight
        return float(self.ranks.sum(total))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def step(self, step: Step) -> tuple[torch.Tensor, torch.Tensor, float, dict[str, Any]]:
        """One optimizer step: (weighted mean of the losses, gradient norm before clipping, learning rate, counts)."""
        rate = learning_rate(self.settings, step.index, step.of, step.phase)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        documents = [[self.documents[r] for r in row] for row in step.rows]
        lengths = np.array([d.length for row in documents for d in row])
        of_documents = [d.supervised for row in documents for d in row]
        supervised, divisor = sum(of_documents), total_weight(of_documents, self.settings.loss_weight)
        total = torch.zeros((), device=self.device)
        for batch, weight in self._batches(documents):
            with self._autocast():
                loss = self.student(batch.to(self.device)) * weight
            # The sum over the step divided by the step's sum of weights: a row counts by what its tokens weigh.
            (loss / divisor).backward()
            total += loss.detach()
        norm = whole(nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.gradient_clip))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        counts = {
            "tokens": int(lengths.sum()),
            "supervised_tokens": supervised,
            "flops": self.shape.training_flops(lengths, supervised),
        }
        return self.ranks.sum(total) / divisor, norm, rate, counts

    def _batches(self, rows: list[list[Document]]) -> Iterator[tuple[Pack | PaddedBatch, float]]:
        """This rank's batches of rows, as many as every rank has, each with the weight of its loss: 0 when it is idle."""
        weigh, ranks = self.settings.loss_weight, self.ranks
        for batch in batches_of_rank(rows, self.settings, self.shape, rank=ranks.rank, world=ranks.world):
            weight, batch = (1.0, batch) if batch else (0.0, [_IDLE])
            yield build_pack(batch, weigh) if self.settings.packed else build_padded(batch, self.pad_id, weigh), weight

    def _name_documents(self, number: int) -> str:
        references = [r for row in self.steps[number].rows for r in row]
        names = sorted({self.pair_ids[r // 2] for r in references})
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    @contextmanager
    def _bar(self, done: int) -> Iterator[Any]:
        with console.progress("loss {task.fields[loss]}", "{task.fields[speed]}") as bar:
            name = self.settings.arm.partition(":")[0]
            yield bar, bar.add_task(name, total=len(self.steps), completed=done, loss="-", speed="")


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.adam_betas, fused=True)
