"""What a checkpoint is made of, and what is never read from one."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from distill.errors import InputError
from distill.training import checkpoint
from distill.training.ranks import Ranks

ALONE = Ranks()


def trained(rng, frozen=True):
    """A model with a scalar, a tied and a frozen parameter, and an optimizer that has made a step."""
    torch.manual_seed(int(rng.integers(2**31)))
    model = nn.Module()
    model.matrix = nn.Parameter(torch.randn(int(rng.integers(1, 9)), int(rng.integers(1, 9))))
    model.scalar = nn.Parameter(torch.randn(()))
    model.tied = model.matrix
    model.frozen = nn.Parameter(torch.randn(5), requires_grad=not frozen)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    sum(p.pow(2).sum() for p in model.parameters() if p.requires_grad).backward()
    optimizer.step()
    return model, optimizer


def untrained(model):
    """The same with other numbers and an optimizer without a state."""
    other = nn.Module()
    other.matrix = nn.Parameter(torch.zeros_like(model.matrix))
    other.scalar = nn.Parameter(torch.zeros_like(model.scalar))
    other.tied = other.matrix
    other.frozen = nn.Parameter(torch.zeros_like(model.frozen), requires_grad=model.frozen.requires_grad)
    return other, torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], fused=True)


def test_only_what_is_trained_is_kept_and_comes_back_to_the_bit(rng, tmp_path):
    model, optimizer = trained(rng)
    progress = checkpoint.Progress(7, 1.5, [{"step": 3, "loss": float(rng.random())}])
    checkpoint.save(tmp_path, model, optimizer, progress, ALONE)
    (folder,) = tmp_path.iterdir()
    names = {name for file in folder.glob("*.safetensors") for name in load_file(file)}
    kinds = ("weights", "step", "exp_avg", "exp_avg_sq")
    assert names == {f"{kind}.{name}" for kind in kinds for name in ("matrix", "scalar")}
    assert {f.suffix for f in folder.iterdir()} == {".safetensors", ".json"}
    again, again_optimizer = untrained(model)
    assert checkpoint.restore(tmp_path, again, again_optimizer, ALONE) == progress
    for name in ("matrix", "scalar"):
        ours, theirs = getattr(again, name), getattr(model, name)
        assert torch.equal(ours, theirs)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(again_optimizer.state[ours][key], optimizer.state[theirs][key])
    assert not again.frozen.any() and again.tied is again.matrix


def test_many_tensors_go_to_several_files(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_FILE_BYTES", 64)
    model, optimizer = trained(rng, frozen=False)
    checkpoint.save(tmp_path, model, optimizer, checkpoint.Progress(1, 0.0), ALONE)
    files = list((tmp_path / "step-00000001").glob("*.safetensors"))
    assert len(files) > 1
    again, again_optimizer = untrained(model)
    assert checkpoint.restore(tmp_path, again, again_optimizer, ALONE).step == 1
    assert torch.equal(again.frozen, model.frozen) and torch.equal(again.matrix, model.matrix)


class Malice:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_in_a_checkpoint_is_never_read(rng, tmp_path):
    """As torch's other storage names its metadata and data; even one that state.json vouches for."""
    model, optimizer = trained(rng)
    folder, target = tmp_path / "checkpoints" / "step-00000001", tmp_path / "executed"
    checkpoint.save(folder.parent, model, optimizer, checkpoint.Progress(1, 0.0), ALONE)
    for name in (".metadata", "__0_0.distcp", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Malice(target)))
    again, again_optimizer = untrained(model)
    assert checkpoint.restore(folder.parent, again, again_optimizer, ALONE).step == 1
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(pickle.dumps(Malice(target)))
    state = json.loads((folder / "state.json").read_text())
    state["sha256"] = {file.name: checkpoint.file_sha256(file)}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        checkpoint.restore(folder.parent, again, again_optimizer, ALONE)
    assert not target.exists()


@pytest.mark.parametrize("change", ["another shape", "one less", "one more"])
def test_other_tensors_than_the_models_are_refused(rng, tmp_path, change, capsys):
    """With checksums that are right: it is the content that is another."""
    model, optimizer = trained(rng)
    checkpoint.save(tmp_path, model, optimizer, checkpoint.Progress(1, 0.0), ALONE)
    folder = tmp_path / "step-00000001"
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    if change == "another shape":
        tensors["weights.matrix"] = torch.zeros(11, 3)
    elif change == "one less":
        del tensors["exp_avg.scalar"]
    else:
        tensors["weights.other"] = torch.zeros(2)
    save_file(tensors, file)
    state = json.loads((folder / "state.json").read_text())
    state["sha256"] = {file.name: checkpoint.file_sha256(file)}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        checkpoint.restore(tmp_path, *untrained(model), ALONE)
    assert "is damaged and not used" in capsys.readouterr().err


def test_a_file_that_is_not_the_checkpoints_own_is_damage(rng, tmp_path):
    model, optimizer = trained(rng)
    checkpoint.save(tmp_path, model, optimizer, checkpoint.Progress(1, 0.0), ALONE)
    save_file({"weights.matrix": torch.zeros(2, 2)}, tmp_path / "step-00000001" / "more.safetensors")
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        checkpoint.restore(tmp_path, *untrained(model), ALONE)
