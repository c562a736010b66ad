"""What a dry run says of several devices."""

import pytest

from distill.errors import InputError
from distill.training import dry_run as dry
from distill.training.settings import RunOptions, TrainSettings

SETTINGS = TrainSettings(student="tiny", row_tokens=96, batch=32, precision="fp32")


def test_several_devices_share_weights_and_time_but_not_activations(traces, tmp_path, monkeypatch):
    monkeypatch.setattr(dry, "peak_flops", lambda *_: (1e9, "a test"))
    options = RunOptions(out=tmp_path / "s", threads=1)
    one, four = (dry.dry_run(SETTINGS, traces, options, ranks) for ranks in (1, 4))
    for name in ("weights", "gradients", "moments"):
        assert four["memory_gib"][name] == pytest.approx(one["memory_gib"][name] / 4, rel=1e-3)
    for name in ("activations", "head"):
        assert four["memory_gib"][name] == one["memory_gib"][name]
    assert 0 < four["memory_gib"]["put_together"] < 3 * one["memory_gib"]["weights"]
    assert "put_together" not in one["memory_gib"]
    assert four["measured"]["seconds"] == pytest.approx(one["measured"]["seconds"] / 4)
    assert four["flops"] == one["flops"] and four["steps"] == one["steps"] and four["ranks"] == 4


def test_numbers_of_devices_that_cannot_be(traces, tmp_path, monkeypatch):
    options = RunOptions(out=tmp_path / "s", threads=1)
    with pytest.raises(InputError, match="ranks: got 0"):
        dry.dry_run(SETTINGS, traces, options, 0)
    needs = dry.dry_run(SETTINGS, traces, options, 2)["measured"]["total_gib"] * 2**30
    monkeypatch.setattr(dry, "device_bytes", lambda device: int(needs * 1.5))  # both are in one CPU's memory
    with pytest.raises(InputError, match="GiB on each device"):
        dry.dry_run(SETTINGS, traces, options, 2)
    monkeypatch.setattr(dry.torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="there is no GPU here"):
        dry.dry_run(SETTINGS, traces, RunOptions(out=tmp_path / "s", cpu_offload=True))
