"""Documents that a training keeps while it runs, or that several trainings share: the same weights, tokenized once."""

import json

import pytest

from distill.errors import InputError
from distill.packing import documents as kept
from distill.packing.render import Documents
from distill.packing.source import read_traces
from distill.training import student
from distill.training.describe import describe
from distill.training.dry_run import dry_run
from distill.training.prepare import make_ready
from distill.training.settings import RunOptions, TrainSettings
from distill.training.train import train

SETTINGS = {"student": "tiny", "row_tokens": 200, "batch": 80, "precision": "fp32"}


def options(out, **more):
    return RunOptions(out=out, threads=1, tensorboard=False, **more)


def test_arms_and_seeds_share_what_is_tokenized_once(traces, tmp_path, monkeypatch):
    calls, real = [], kept.render_parts
    monkeypatch.setattr(kept, "render_parts", lambda *a, **k: calls.append(1) or real(*a, **k))
    shared = tmp_path / "documents"
    one = TrainSettings(arm="mixed:0.5", **SETTINGS)
    made = [
        train(one, traces, options(tmp_path / "alone")),
        train(one, traces, options(tmp_path / "a", documents=shared)),
    ]
    assert len(calls) == 2
    for number, (arm, seed) in enumerate((("ift", 1), ("reasoning", 0))):
        settings = TrainSettings(arm=arm, seed=seed, **SETTINGS)
        dry_run(settings, traces, options(tmp_path / "none", documents=shared))
        train(settings, traces, options(tmp_path / f"other{number}", documents=shared))
    assert len(calls) == 2 and len(list(shared.iterdir())) == 1
    assert made[0].key == made[1].key and made[0].files["model.safetensors"] == made[1].files["model.safetensors"]
    for folder in ("alone", "a"):
        assert not (tmp_path / folder / "documents").exists()
    assert not (tmp_path / "none").exists()


def test_what_is_refused_after_tokenizing_leaves_no_folder(traces, tmp_path):
    settings = TrainSettings(arm="ift", validation=1e-9, **SETTINGS)
    with pytest.raises(InputError, match="validation"):
        train(settings, traces, options(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_a_row_may_be_longer_than_the_students_positions_but_no_document(traces, packed, monkeypatch):
    """Positions begin again in every document."""
    settings = TrainSettings(**SETTINGS | {"packed": packed})
    longest = make_ready(settings, read_traces(traces), weights=False).rendered.lengths.max()
    monkeypatch.setattr(student, "SCRATCH_POSITIONS", int(longest) - 1)
    assert settings.row_tokens >= longest
    ready = make_ready(settings, read_traces(traces), weights=False)
    assert ready.rendered.dropped > 0 and ready.rendered.lengths.max() < longest
    monkeypatch.setattr(student, "SCRATCH_POSITIONS", 12)
    with pytest.raises(InputError, match=r"longer than 12 tokens.* more positions"):
        make_ready(settings, read_traces(traces), weights=False)


def test_planning_makes_no_object_of_a_document(traces, tmp_path, monkeypatch):
    monkeypatch.setattr(Documents, "__getitem__", lambda *_: pytest.fail("a document was made"))
    for arm, unit in (("mixed:0.5", {"batch": 7}), ("reasoning", {"batch": 512, "batch_unit": "tokens"})):
        settings = TrainSettings(**SETTINGS | unit, arm=arm)
        ready = make_ready(settings, read_traces(traces), weights=False, documents=tmp_path)
        assert describe(settings, ready)["examples"] == 320
    dry_run(settings, traces, options(tmp_path / "none"))


def test_a_student_with_a_signal_says_so(traces, tmp_path):
    """In its folder, and in every question: the prompt is longer, and nothing else."""
    plain, told = (
        train(TrainSettings(arm="mixed:0.5", mode_signal=signal, **SETTINGS), traces, options(tmp_path / signal))
        for signal in ("none", "prompt")
    )
    assert plain.key != told.key
    assert plain.summary["supervised_tokens"] == told.summary["supervised_tokens"]
    assert plain.summary["tokens"] < told.summary["tokens"]
    said = {signal: json.loads((tmp_path / signal / "distill_chat.json").read_text()) for signal in ("none", "prompt")}
    assert said["prompt"] == said["none"] | {"mode_signal": "prompt"} and "mode_signal" not in said["none"]
