"""`distill bench training --memory`: what is held grows with the row, not with the row times the vocabulary."""

import json

import numpy as np
import pytest

from distill.bench import training_memory
from distill.bench.report import render_report
from distill.bench.training_memory import (
    TrainingMemorySettings,
    bench_training_memory,
    growth_text,
    memory_rows,
    row_lengths,
    show_training_memory,
)


def test_rows_are_full_of_mixed_documents(rng):
    settings = TrainingMemorySettings(longest=500, median=80, seed=int(rng.integers(2**31)))
    tokens = int(rng.integers(10_000, 40_000))
    lengths = row_lengths(settings, tokens)
    assert lengths.sum() == tokens and lengths.max() <= 500 and lengths.min() >= 1
    assert len(np.unique(lengths)) > 20


def test_no_logits_of_a_whole_row():
    """In a process of its own, small enough for a test: the row takes a fraction of what its logits would."""
    settings = TrainingMemorySettings(median=100, longest=512, threads=1)
    size = training_memory._in_child(settings, 32768, 3072)
    assert size["logits_bytes"] == 4 * 3072 * 32768 and 0 < size["supervised_tokens"] < 3072
    assert 0 < size["measured"]["peak_bytes"] < size["logits_bytes"] / 2


def test_growth_is_per_token_of_each_vocabulary(rng, monkeypatch, tmp_path, capsys):
    base, growth = rng.integers(1000, 10**9, 2), {2048: 5120.0, 4096: 7168.0}
    rows = sorted(rng.choice(10**5, 3, replace=False) + 1)

    def child(_settings, vocabulary, tokens):
        peak = int(base[vocabulary // 4096] + growth[vocabulary] * tokens)
        return {"estimated_bytes": 1, "logits_bytes": 2, "measured": {"peak_bytes": peak, "seconds": 1.0}}

    monkeypatch.setattr(training_memory, "_in_child", child)
    settings = TrainingMemorySettings(vocabularies=tuple(growth), row_tokens=[int(n) for n in rng.permutation(rows)])
    result = bench_training_memory(settings)
    assert [(s["vocabulary"], s["tokens"]) for s in result["sizes"]] == [(v, n) for v in growth for n in rows]
    assert result["measured"]["bytes_per_token"] == {"2048": 5120.0, "4096": 7168.0}
    assert "by 5.0 KiB at a vocabulary of 2,048 and by 7.0 KiB at a vocabulary of 4,096" in growth_text(result)
    show_training_memory(result)
    assert "2,048" in capsys.readouterr().out
    (tmp_path / "training-memory-cpu.json").write_text(json.dumps(result))
    page, _ = render_report(tmp_path)
    assert growth_text(result) in page and all(" | ".join(row) in page for row in memory_rows(result)[1])


@pytest.mark.parametrize("given", [dict(vocabularies=[]), dict(row_tokens=[4096]), dict(threads=0)])
def test_bad_settings(given):
    with pytest.raises(ValueError):
        TrainingMemorySettings(**given)
