"""Checkpoints of a training in progress: safetensors with checksums, the last two kept.

checkpoints/step-00000120/
  *.safetensors   master weights, AdamW's two moments and step count of every trained parameter; each rank wrote its own
  state.json      step, seconds and validations so far, SHA-256 of every other file; written last

torch's distributed checkpoint writes and reads the tensors, through its Hugging Face storage: safetensors with the place
of each part in its header, so any number of ranks goes on from what any other number wrote. Its other storage keeps a
pickle, which is never read here.
"""

import errno
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from distill import console
from distill.artifact import file_sha256, read_json, write_json
from distill.errors import InputError
from distill.training.ranks import Ranks

KEEP = 2
# A file's tensors are in memory a second time while it is written.
_FILE_BYTES = 2**28


@dataclass(frozen=True)
class Progress:
    """How far a training is: finished steps, the seconds they took over all its lives, and every validation so far."""

    step: int
    seconds: float
    validations: list[dict[str, Any]] = field(default_factory=list)


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, ranks: Ranks) -> None:
    """Write a checkpoint; it exists only once it is whole. Older ones beyond the last two are removed after."""
    tensors = trained_weights(model) | _moments(model, optimizer)
    write_whole(folder / f"step-{progress.step:08d}", tensors, asdict(progress), ranks)
    ranks.only_first(lambda: [shutil.rmtree(old) for old in sorted(folder.glob("step-*"))[:-KEEP]])


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> Progress:
    """Load the newest checkpoint that is whole into model and optimizer; Progress(0, 0.0) when there is none.

    A damaged checkpoint is said and the one before it used. Raises InputError when there are checkpoints and none is whole.
    """
    found = ranks.from_first(lambda: sorted(folder.glob("step-*"), reverse=True))
    for checkpoint in found:
        try:
            state = read_state(checkpoint, ranks, step=int, seconds=(int, float), validations=list)
            tensors = trained_weights(model) | _moments(model, optimizer)
            read_whole(checkpoint, state, tensors, ranks)
            return Progress(state["step"], float(state["seconds"]), state["validations"])
        except InputError as error:
            console.note(f"checkpoint {checkpoint} is damaged and not used ({error})")
    if found:
        raise InputError(f"{folder}: every checkpoint is damaged; delete the folder to train from the start")
    return Progress(0, 0.0)


def trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter that is trained, once: named_parameters() leaves tied ones out."""
    return {f"weights.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state, as it is after its first step: made here when there has been none."""
    found = {}
    known = {p for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        if p.requires_grad:
            if p not in known:
                raise RuntimeError(f"{name} is not the optimizer's parameter")
            state = optimizer.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            found |= {f"{key}.{name}": state[key].detach() for key in ("step", "exp_avg", "exp_avg_sq")}
    return found


def write_whole(target: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any], ranks: Ranks) -> None:
    """Write `tensors` and state.json to a folder that is there whole or not at all. Every rank must call it."""
    part = target.with_name(f".{target.name}.part")

    def write() -> dict[str, str]:
        mine = f"shard-{ranks.rank + 1:05d}-"
        with disk_errors(target.parent), _distributed_checkpoint():
            writer = dcp.HuggingFaceStorageWriter(str(part), _file_of_each(tensors), save_distributed=True)
            dcp.save(tensors, storage_writer=writer, process_group=ranks.control, no_dist=ranks.world == 1)
        return {f.name: file_sha256(f) for f in sorted(part.iterdir()) if f.name.startswith(mine)}

    def start() -> None:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)

    def finish() -> None:
        write_json(part / "state.json", {**state, "sha256": sums})
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)

    try:
        ranks.only_first(start)
        sums = {name: digest for of_rank in ranks.gather(ranks.together(write)) for name, digest in of_rank.items()}
        ranks.only_first(finish)
    finally:
        if ranks.is_first:
            shutil.rmtree(part, ignore_errors=True)


def read_state(path: Path, ranks: Ranks, **fields: Any) -> dict[str, Any]:
    """The state.json of a folder, the same on all ranks. Raises InputError when a field is not of its type."""

    def read() -> dict[str, Any]:
        state = read_json(path / "state.json")
        for name, kind in {"sha256": dict, **fields}.items():
            if not isinstance(state, dict) or not isinstance(state.get(name), kind):
                raise InputError(f"{path / 'state.json'}: field {name!r} is missing or damaged")
        return state

    return ranks.from_first(read)


def read_whole(path: Path, state: dict[str, Any], tensors: dict[str, torch.Tensor], ranks: Ranks) -> None:
    """Fill `tensors` from a folder. Raises InputError, on every rank, unless all its files are there and whole."""
    require_whole(path, state, ranks)

    def read() -> None:
        reader = dcp.HuggingFaceStorageReader(str(path))
        try:
            if reader.read_metadata().state_dict_metadata.keys() != tensors.keys():
                raise InputError(f"{path}: holds other parameters than the model's")
            with _distributed_checkpoint():
                dcp.load(tensors, storage_reader=reader, process_group=ranks.control, no_dist=ranks.world == 1)
        except (OSError, KeyError, TypeError, ValueError, AssertionError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{path}: {' '.join(str(error).split())}") from None

    ranks.together(read)


def require_whole(path: Path, state: dict[str, Any], ranks: Ranks) -> None:
    """Raises InputError, on every rank, unless the files in the folder are those of its state, bit for bit."""
    sums = state["sha256"]

    def compare() -> None:
        if {f.name for f in path.glob("*.safetensors")} != sums.keys():
            raise InputError(f"{path}: files are missing, or are not its own")
        for name in sorted(sums)[ranks.rank :: ranks.world]:
            if file_sha256(path / name) != sums[name]:
                raise InputError(f"{path / name}: damaged")

    ranks.together(compare)


def _file_of_each(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    """The number of the file that each tensor goes to, from 1: as many in one as fit."""
    files, number, size = {}, 1, 0
    for name, tensor in tensors.items():
        size += tensor.numel() * tensor.element_size()
        if size > _FILE_BYTES and files:
            number, size = number + 1, tensor.numel() * tensor.element_size()
        files[name] = number
    return files


@contextmanager
def _distributed_checkpoint() -> Iterator[None]:
    """Its errors are those of any rank, wrapped; the first of them is raised. One process is what we mean, not a mistake."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full disk, which safetensors and tokenizers say in errors of their own, as the OSError that everything else raises."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(folder)) from None
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from None
