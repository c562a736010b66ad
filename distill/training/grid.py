"""A learning rate chosen from several: one training each, and the one with the lowest validation loss is the student.

    out/candidates/0.0003/    a training of its own, which goes on from its checkpoints
        diverged.json         why, where a loss was not a number; it is not run again

Candidates that are finished are found again, so a grid that was killed goes on where it was. At the end the chosen one's
files become those of `out` and the candidates are removed: what is left of them is in metrics.json.
"""

import gc
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill import artifact, console
from distill.artifact import Artifact, Workspace
from distill.errors import InputError
from distill.training.log import TRAINING_LOG, Diverged
from distill.training.ranks import Ranks
from distill.training.settings import RunOptions, TrainSettings

CANDIDATES = "candidates"
_DIVERGED = "diverged.json"

Train = Callable[[TrainSettings, RunOptions], Artifact]


def train_grid(
    work: Workspace, settings: TrainSettings, options: RunOptions, ranks: Ranks, train: Train
) -> tuple[Artifact, dict[str, Any]]:
    """Train every candidate. Returns the best, and its summary with the learning rate and what the grid cost.

    A tie takes the smaller rate. Raises InputError when all candidates diverged.
    """
    finished: dict[float, Artifact] = {}
    diverged: dict[float, dict[str, Any]] = {}
    for number, candidate in enumerate(settings.candidates, start=1):
        rate = candidate.learning_rate
        console.note(f"learning rate {rate:g}, {number} of {len(settings.candidates)}")
        found = _train(candidate, options, work.path / CANDIDATES / repr(rate), ranks, train)
        if isinstance(found, Artifact):
            finished[rate] = found
        else:
            diverged[rate] = found
            console.note(f"learning rate {rate:g} diverged: {found['reason']}")
    if not finished:
        rates = ", ".join(f"{rate:g}" for rate in diverged)
        raise InputError(f"every learning rate diverged ({rates}); take smaller ones, and another --out")
    best = min(finished, key=lambda rate: (_kept(finished[rate])["loss"], rate))
    console.note(f"learning rate {best:g}: lowest validation loss, {_kept(finished[best])['loss']:.4f}")
    grid = [_record(candidate.learning_rate, finished, diverged) for candidate in settings.candidates]
    cost = {
        "flops": sum(entry["flops"] for entry in grid),
        "measured": {"seconds": sum(entry["measured"]["seconds"] for entry in grid)},
    }
    return finished[best], finished[best].summary | {"learning_rate": best, "grid": {"candidates": grid, **cost}}


def take_files(chosen: Artifact, folder: Path) -> None:
    """Make the files of the chosen candidate those of `folder`, without copying them where the disk can."""
    for name in chosen.files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(chosen.path / name, target)
        except OSError:
            shutil.copyfile(chosen.path / name, target)


def _train(
    settings: TrainSettings, options: RunOptions, folder: Path, ranks: Ranks, train: Train
) -> Artifact | dict[str, Any]:
    """A finished training, or what is known of one that diverged."""
    mark = folder / _DIVERGED
    known = ranks.from_first(lambda: artifact.read_json(mark) if mark.is_file() else None)
    if known is not None:
        return known
    gc.collect()  # sharded weights of the candidate before, on a GPU too, are in circles that only this finds
    started = time.monotonic()
    try:
        return train(settings, options.model_copy(update={"out": folder}))
    except Diverged as error:
        reason = str(error)
    measured = {"seconds": time.monotonic() - started}

    def remember() -> dict[str, Any]:
        lines = map(json.loads, (folder / TRAINING_LOG).read_text().splitlines())
        found = {"reason": reason, "flops": sum(line["flops"] for line in lines), "measured": measured}
        artifact.write_json(mark, found)
        return found

    return ranks.from_first(remember)


def _record(rate: float, finished: dict[float, Artifact], diverged: dict[float, dict[str, Any]]) -> dict[str, Any]:
    """What metrics.json says of a candidate; FLOPs with those of its validations."""
    if rate in diverged:
        return {"learning_rate": rate, "loss": None, "step": None, "diverged": True, **diverged[rate]}
    summary, kept = finished[rate].summary, _kept(finished[rate])
    validation = summary["validation"]
    return {
        "learning_rate": rate,
        "loss": kept["loss"],
        "step": kept["step"],
        "diverged": False,
        "flops": summary["flops"] + validation["times"] * validation["flops"],
        "measured": {"seconds": summary["measured"]["seconds"]},
    }


def _kept(trained: Artifact) -> dict[str, Any]:
    """The validation of the weights that were saved."""
    return trained.summary["validation"]["kept"]
