"""What a dry run says of several devices."""

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

from distill.errors import InputError
from distill.packing.source import read_traces
from distill.packing.tokenizer import train_tokenizer
from distill.training import dry_run as dry
from distill.training.prepare import make_ready
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
    turns = sum(-(-len(step.rows) // 4) for step in make_ready(SETTINGS, read_traces(traces)).steps)  # of all four
    assert one["busy_ranks"] == 1 and 1 > four["busy_ranks"] == pytest.approx(four["rows"] / (4 * turns))
    assert four["measured"]["seconds"] == pytest.approx(one["measured"]["seconds"] * turns / one["rows"])
    assert four["flops"] == one["flops"] and four["steps"] == one["steps"] and four["ranks"] == 4


def test_what_is_put_together_has_no_gradients_where_weights_are_frozen(traces, tmp_path):
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=320)
    model = Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=2))
    model.save_pretrained(tmp_path / "student")
    train_tokenizer(read_traces(traces).texts(), 320).save_pretrained(tmp_path / "student")
    settings = TrainSettings(student=str(tmp_path / "student"), row_tokens=96, precision="fp32")
    options = RunOptions(out=tmp_path / "s", threads=1)
    layer = sum(p.numel() for p in model.model.layers[0].parameters() if p.dim() == 2)
    outside = sum(p.numel() for p in model.parameters()) - 2 * layer
    adapters = 4 * (4 * (32 + 32) + 3 * (32 + 48))  # rank 4 beside the seven products of a layer
    for wanted, expected in (
        (settings, 2 * outside + 3 * layer),
        (settings.model_copy(update={"lora_rank": 4}), outside + 2 * layer + 3 * adapters),
    ):
        found = dry.dry_run(wanted, traces, options, 2)["memory_gib"]["put_together"]
        assert found * 2**30 == pytest.approx(4 * expected)


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
