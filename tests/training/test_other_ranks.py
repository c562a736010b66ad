"""A training with a batch of tokens goes on with any number of ranks: its rows stay balanced for those it began with."""

import json

import pytest

from distill import artifact
from distill.training import checkpoint
from distill.training.settings import RunOptions, TrainSettings
from distill.training.train import train

SETTINGS = dict(
    student="tiny", arm="mixed:0.5", row_tokens=96, batch=192, batch_unit="tokens", learning_rate=3e-3, tokens=3000
)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("grid", [False, True], ids=["one rate", "several rates"])
def test_the_ranks_it_was_begun_for_need_not_be_said_again(traces, tmp_path, monkeypatch, capsys, grid):
    more = dict(learning_rate=(2e-3, 3e-3), validation=0.2) if grid else {}
    settings = SETTINGS | more
    options = {
        name: RunOptions(out=tmp_path / name, threads=1, checkpoint_steps=3, tensorboard=False)
        for name in ("whole", "killed", "other")
    }
    begun = TrainSettings(**settings, balance_ranks=3)
    train(begun, traces, options["whole"])

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "save", die)
        train(begun, traces, options["killed"])
    capsys.readouterr()
    for said in ("steps stay balanced for 3 ranks, as it was begun", "already trained, nothing to do"):
        train(TrainSettings(**settings), traces, options["killed"])
        assert capsys.readouterr().err.count(said) == 1
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    recipes = [artifact.recipe_of(tmp_path / name) for name in ("whole", "killed")]
    assert recipes[0] == recipes[1] and recipes[0]["settings"]["balance_ranks"] == 3


@pytest.mark.parametrize("damage", ["[]", '{"settings": {"balance_ranks": "3"}}', '{"settings": 1}'])
def test_a_recipe_that_is_not_ours_is_refused_as_ever(traces, tmp_path, damage):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps({"kind": "student", "key": "x", "recipe": json.loads(damage)}))
    with pytest.raises(artifact.InputError, match=r"was started as|damaged"):
        train(TrainSettings(**SETTINGS), traces, RunOptions(out=folder, threads=1, tensorboard=False))
