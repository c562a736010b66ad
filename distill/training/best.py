"""The weights with the lowest validation loss so far, beside the checkpoints of a training in progress.

checkpoints/best-00000120/
  model.safetensors       master weights after step 120
  state.json              step and SHA-256; written last

A new one is whole before the old one goes, so there is one at every moment. One may be ahead of the checkpoint that a
killed training goes on from: the steps up to it are run again, end in the same bits, and it is found there.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from distill import console
from distill.artifact import file_sha256, read_json, write_json
from distill.errors import InputError
from distill.training.checkpoint import disk_errors, master_weights

_WEIGHTS, _STATE = "model.safetensors", "state.json"


def best_of(validations: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The validation with the lowest loss, the first of equals."""
    return min(validations, key=lambda v: v["loss"], default=None)


def keep(folder: Path, model: nn.Module, step: int) -> None:
    """Keep the weights as they are after `step`, and no others."""
    target = folder / f"best-{step:08d}"
    if not target.exists():  # else a killed life of this training came as far: the same bits
        part = folder / f".{target.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            with disk_errors(folder):
                save_file(master_weights(model), part / _WEIGHTS)
            write_json(part / _STATE, {"step": step, "sha256": file_sha256(part / _WEIGHTS)})
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    for other in folder.glob("best-*"):
        if other != target:
            shutil.rmtree(other)


def check(folder: Path, validations: list[dict[str, Any]], done: int) -> None:
    """Before going on after step `done`: the best weights of `validations`, or better ones, are there and whole.

    Damaged ones from after `done` are removed, for they will be made again. Raises InputError for any others.
    """
    best, kept = best_of(validations), -1
    for path in folder.glob("best-*"):
        step = int(path.name.removeprefix("best-"))
        if not _is_whole(path):
            console.note(f"{path} is damaged and not used")
            shutil.rmtree(path)
            if step <= done:
                continue
        kept = max(kept, step)
    if best is not None and kept < best["step"]:
        raise InputError(
            f"{folder}: the best weights so far (step {best['step']}) are damaged or gone; delete the folder to train "
            "from the start"
        )


def load(folder: Path, model: nn.Module, step: int) -> None:
    """Put the weights kept after `step` into the model. Raises InputError when they are damaged."""
    path = folder / f"best-{step:08d}"
    if not _is_whole(path):
        raise InputError(f"{path}: damaged or gone; delete {folder} to train from the start")
    weights = load_file(path / _WEIGHTS)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])


def _is_whole(path: Path) -> bool:
    try:
        return read_json(path / _STATE)["sha256"] == file_sha256(path / _WEIGHTS)
    except (InputError, OSError, KeyError, TypeError):
        return False
