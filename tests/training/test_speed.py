"""What a person is told of a training's speed, and what is counted in it."""

import io
import re

import pytest
import torch
from rich.console import Console

from distill import console
from distill.training import speed as module
from distill.training.speed import Meter, Speed


def test_rates_are_over_the_seconds_that_were_not_validation(rng, monkeypatch):
    clock = iter(moments := [1000.0, 1010.0, 1014.0, 1030.0, 1031.0])  # made, validation begins and ends, twice asked
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(module, "peak_bytes", lambda device: 7)
    meter = Meter(torch.device("cpu"), peak=100.0)
    steps = rng.integers(1, 1000, (4, 3)).tolist()
    for tokens, supervised, flops in steps:
        meter.add({"tokens": tokens, "supervised_tokens": supervised, "flops": float(flops)})
    with meter.validating():
        pass
    elapsed = moments[3] - moments[0] - 4.0
    tokens, supervised, flops = (sum(column) for column in zip(*steps, strict=True))
    found = meter.speed()
    assert found == Speed(tokens / elapsed, supervised / elapsed, flops / elapsed / 100.0, 7)
    assert meter.seconds == 31.0 and meter.validation_seconds == 4.0


def test_the_bar_fits_a_terminal(monkeypatch):
    """At the longest of everything that is likely."""
    stream = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=stream, force_terminal=True, width=80, color_system=None))
    speed = Speed(999_400.0, 123_456.0, 0.405, 139 << 30)
    with console.progress("loss {task.fields[loss]:.3g}", "{task.fields[speed]}") as bar:
        task = bar.add_task("sequential", total=99_999, loss=12.345, speed=speed)
        bar.update(task, completed=12_345)
    last = [
        re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", line) for line in re.split("[\r\n]", stream.getvalue()) if "loss" in line
    ][-1]
    assert "12345/99999" in last and "loss 12.3 123k/999k tok/s MFU 40% 139G" in last
    assert len(last) <= 80 - 2  # an hour or more to go takes two more than a minute


@pytest.mark.parametrize(
    "rate, shown", [(0, "0"), (999.4, "999"), (999.6, "1.0k"), (9_940, "9.9k"), (9_960, "10k"), (999_600, "1.0M")]
)
def test_rates_in_four_characters(rate, shown):
    assert str(Speed(rate, 2.0, 0.0, 0)) == f"2/{shown} tok/s MFU 0% 0.0G"
