"""The weights with the lowest validation loss so far, beside the checkpoints of a training in progress.

checkpoints/best-00000120/
  *.safetensors   what is trained, after step 120; each rank wrote its own part
  state.json      step and SHA-256 of every other file; written last

A new one is whole before the old one goes, so there is one at every moment. One may be ahead of the checkpoint that a
killed training goes on from: the steps up to it are run again, end in the same bits, and it is found there.
"""

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from distill import console
from distill.errors import InputError
from distill.training.checkpoint import read_state, read_whole, require_whole, trained_weights, write_whole
from distill.training.ranks import Ranks


def best_of(validations: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The validation with the lowest loss, the first of equals."""
    return min(validations, key=lambda v: v["loss"], default=None)


def keep(folder: Path, model: nn.Module, step: int, ranks: Ranks) -> None:
    """Keep the weights as they are after `step`, and no others."""
    target = folder / f"best-{step:08d}"
    if not ranks.from_first(target.exists):  # else a killed life of this training came as far: the same bits
        write_whole(target, trained_weights(model), {"step": step}, ranks)
    ranks.only_first(lambda: [shutil.rmtree(other) for other in folder.glob("best-*") if other != target])


def check(folder: Path, validations: list[dict[str, Any]], done: int, ranks: Ranks) -> None:
    """Before going on after step `done`: the best weights of `validations`, or better ones, are there and whole.

    Damaged ones from after `done` are removed, for they will be made again. Raises InputError for any others.
    """
    best, kept = best_of(validations), -1
    for path in ranks.from_first(lambda: sorted(folder.glob("best-*"))):
        step = int(path.name.removeprefix("best-"))
        if not _is_whole(path, ranks):
            console.note(f"{path} is damaged and not used")
            ranks.only_first(lambda: shutil.rmtree(path))  # noqa: B023 - run at once
            if step <= done:
                continue
        kept = max(kept, step)
    if best is not None and kept < best["step"]:
        raise InputError(
            f"{folder}: the best weights so far (step {best['step']}) are damaged or gone; delete the folder to train "
            "from the start"
        )


def load(folder: Path, model: nn.Module, step: int, ranks: Ranks) -> None:
    """Put the weights kept after `step` into the model. Raises InputError when they are damaged."""
    path = folder / f"best-{step:08d}"
    try:
        read_whole(path, read_state(path, ranks), trained_weights(model), ranks)
    except InputError:
        raise InputError(f"{path}: damaged or gone; delete {folder} to train from the start") from None


def _is_whole(path: Path, ranks: Ranks) -> bool:
    try:
        require_whole(path, read_state(path, ranks), ranks)
        return True
    except InputError:
        return False
