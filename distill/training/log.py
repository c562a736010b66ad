"""What a training writes down as it goes: training_log.jsonl, validation_log.jsonl, TensorBoard."""

import json
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill import artifact, console
from distill.errors import InputError
from distill.training import checkpoint
from distill.training.speed import Speed

TRAINING_LOG = "training_log.jsonl"
_SECONDS = 60  # between lines for a person, where there is no terminal for a bar


def last_loss(folder: Path) -> float:
    """Of the last step in the log of a training in `folder`."""
    return json.loads((folder / TRAINING_LOG).read_text(encoding="utf-8").splitlines()[-1])["loss"]


class Diverged(InputError):
    """A loss was not a number: this training cannot go on."""


class TrainingLog:
    """training_log.jsonl, one line a step with no clock in it, and the same in TensorBoard; validation_log.jsonl has a
    line a validation, and is not there without any."""

    def __init__(self, folder: Path, done: checkpoint.Progress, steps: int, *, tensorboard: bool):
        self.path, self.validation_path = folder / TRAINING_LOG, folder / "validation_log.jsonl"
        self.first_step, self.steps = done.step, steps
        self.started = self.told = time.monotonic()
        self.pending: list[tuple[int, torch.Tensor, torch.Tensor, float, dict[str, Any]]] = []
        self.last = float("nan")
        kept = self.path.read_text().splitlines(keepends=True)[: self.first_step] if self.path.exists() else []
        artifact.write_atomic(self.path, "".join(kept))  # steps after the checkpoint are run, and logged, again
        self.file = open(self.path, "a")  # noqa: SIM115 - closed by __exit__
        self.validation_path.unlink(missing_ok=True)
        for validation in done.validations:
            self._append_validation(validation)
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=self.first_step + 1)

    def __enter__(self) -> "TrainingLog":
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

    def add_speed(self, step: int, speed: Speed) -> None:
        """For TensorBoard, and a line now and then where there is no bar: clocks stay out of the log."""
        now = time.monotonic()
        if not console.err.is_terminal and now - self.told >= _SECONDS:
            self.told = now
            left = (self.steps - step) * (now - self.started) / (step - self.first_step)
            eta = str(timedelta(seconds=round(left)))
            console.note(f"step {step:,} of {self.steps:,}: loss {self.last:.3g}, {speed}, eta {eta}")
        if self.writer:
            for name, value in asdict(speed).items():
                self.writer.add_scalar(f"speed/{name}", value, step)

    def _append_validation(self, validation: dict[str, Any]) -> None:
        with open(self.validation_path, "a") as file:
            file.write(json.dumps(validation, sort_keys=True) + "\n")  # the order a checkpoint keeps

    def flush(self, name_documents: Any) -> float:
        """Write what is pending and return the last loss. Raises Diverged when a loss is not finite."""
        for step, loss, norm, rate, counts in self.pending:
            value, norm_value = float(loss), float(norm)
            if not np.isfinite(value) or not np.isfinite(norm_value):
                raise Diverged(
                    f"step {step + 1}: loss {value} with gradient norm {norm_value}; stopped; a checkpoint made before is kept. "
                    f"Documents in the step: {name_documents(step)}"
                )
            line = {
                "step": step + 1,
                "loss": value,
                "gradient_norm": norm_value,
                "learning_rate": rate,
                "tokens": counts["tokens"],
                "supervised_tokens": counts["supervised_tokens"],
                "flops": counts["flops"],
            }
            self.file.write(json.dumps(line) + "\n")
            if self.writer:
                for name in ("loss", "gradient_norm", "learning_rate"):
                    self.writer.add_scalar(f"train/{name}", line[name], step + 1)
            self.last = value
        self.pending.clear()
        self.file.flush()
        return self.last
