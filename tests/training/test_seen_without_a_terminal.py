"""What a training says where there is no terminal, as in a batch job's log."""

import json
import re

import pytest

from distill import console
from distill.training import log, run
from distill.training.settings import RunOptions, TrainSettings
from distill.training.train import train

SETTINGS = TrainSettings(student="tiny", arm="mixed:0.5", batch=16, row_tokens=512, tokens=2000)


@pytest.mark.parametrize("seconds", [0, 1e9])
def test_lines_say_how_far_it_is_and_the_last_loss_is_kept(traces, tmp_path, monkeypatch, capsys, seconds):
    monkeypatch.setattr(log, "_SECONDS", seconds)
    monkeypatch.setattr(run, "_LOG_SECONDS", 0)  # every step
    found = train(SETTINGS, traces, RunOptions(out=tmp_path / "out", threads=1, tensorboard=False)).summary
    lines = [json.loads(line) for line in (tmp_path / "out" / "training_log.jsonl").read_text().splitlines()]
    assert len(lines) > 2 and found["final_loss"] == lines[-1]["loss"]
    said = re.findall(
        r"^step (\d+) of (\d+): loss ([\d.]+), \S+/\S+ tok/s MFU \d+% \S+G, eta \d+:\d\d:\d\d$",
        capsys.readouterr().err,
        re.MULTILINE,
    )
    if seconds:
        assert not said
    else:
        assert said == [(str(line["step"]), str(len(lines)), f"{line['loss']:.3g}") for line in lines]


def test_entries_of_a_list_are_facts_of_their_own(capsys):
    console.facts("grid", {"candidates": [{"learning_rate": 1e-3, "loss": 2.5}, {"learning_rate": 0.01, "loss": None}]})
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        "grid",
        "candidates 1",
        "learning_rate: 0.001",
        "loss: 2.5",
        "candidates 2",
        "learning_rate: 0.01",
        "loss: None",
    ]
