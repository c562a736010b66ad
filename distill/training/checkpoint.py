"""Checkpoints of a training in progress: safetensors with checksums, the last two kept.

checkpoints/step-00000120/
  model.safetensors       master weights
  optimizer.safetensors   AdamW's two moments and step count of every parameter
  state.json              step, seconds and validations so far, SHA-256 of both files; written last
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from distill import console
from distill.artifact import file_sha256, read_json, write_json
from distill.errors import InputError

KEEP = 2


@dataclass(frozen=True)
class Progress:
    """How far a training is: finished steps, the seconds they took over all its lives, and every validation so far."""

    step: int
    seconds: float
    validations: list[dict[str, Any]] = field(default_factory=list)


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write a checkpoint; it exists only once it is whole. Older ones beyond the last two are removed after."""
    name = f"step-{progress.step:08d}"
    part = folder / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with disk_errors(folder):
            save_file(master_weights(model), part / "model.safetensors")
            save_file(_moments(model, optimizer), part / "optimizer.safetensors")
        sums = {f: file_sha256(part / f) for f in ("model.safetensors", "optimizer.safetensors")}
        write_json(part / "state.json", {**asdict(progress), "sha256": sums})
        shutil.rmtree(folder / name, ignore_errors=True)
        part.rename(folder / name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """safetensors says that a disk is full in an error of its own; here it is the OSError that everything else raises."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from None


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Load the newest checkpoint that is whole into model and optimizer; Progress(0, 0.0) when there is none.

    A damaged checkpoint is said and the one before it used. Raises InputError when there are checkpoints and none is whole.
    """
    damaged = []
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        try:
            state = read_json(checkpoint / "state.json")
            for file, expected in state["sha256"].items():
                if file_sha256(checkpoint / file) != expected:
                    raise InputError(f"{checkpoint / file}: damaged")
            _load(
                model,
                optimizer,
                load_file(checkpoint / "model.safetensors"),
                load_file(checkpoint / "optimizer.safetensors"),
            )
            return Progress(int(state["step"]), float(state["seconds"]), list(state["validations"]))
        except (InputError, OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            damaged.append(checkpoint)
            console.note(f"checkpoint {checkpoint} is damaged and not used ({error})")
    if damaged:
        raise InputError(f"{folder}: every checkpoint is damaged; delete the folder to train from the start")
    return Progress(0, 0.0)


def master_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter once: named_parameters() leaves tied ones out."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters()}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": torch.as_tensor(value).contiguous()
        for name, p in model.named_parameters()
        for key, value in optimizer.state[p].items()
    }


def _load(model: nn.Module, optimizer: torch.optim.Optimizer, weights: dict, moments: dict) -> None:
    parameters = dict(model.named_parameters())
    if weights.keys() != parameters.keys():
        raise ValueError("other parameters than the model's")
    state = {
        name: {k: moments[f"{name}.{k}"].to(p.device) for k in ("step", "exp_avg", "exp_avg_sq")}
        for name, p in parameters.items()
    }
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(weights[name])
            optimizer.state[p] = state[name]
