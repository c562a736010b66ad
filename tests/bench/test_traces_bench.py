"""`distill bench traces`: both sides are asked the same, and what comes of it is shown."""

import json

import pytest

from distill.bench.report import render_report
from distill.bench.traces import TracesBenchSettings, _FixedLengths, bench_traces, traces_table, traces_targets


def test_both_sides_get_the_same_requests(rng):
    settings = TracesBenchSettings(
        questions=int(rng.integers(1, 20)), tokens=int(rng.integers(16, 99)), seed=int(rng.integers(99))
    )
    one, again, other = (_FixedLengths(settings, number) for number in (0, 0, 1))
    assert one.offline() == again.offline() and one.lengths == again.lengths
    assert not {str(r["messages"]) for r in one.offline()} & {str(r["messages"]) for r in other.offline()}
    for question, told in zip(one.questions, one.offline(), strict=True):
        body = one._request(question, None, {}).sampling
        assert body.ignore_eos and body.max_tokens == told["max_tokens"] == one.lengths[question] >= 1
        assert (body.seed, body.temperature, body.top_p) == tuple(told[k] for k in ("seed", "temperature", "top_p"))
    assert one.total_tokens == sum(told["max_tokens"] for told in one.offline())
    assert len(one.questions) == 2 * settings.questions


def result_of(value):
    ratio = {"value": value, "low": value / 1.1, "high": value * 1.1, "rounds": [value, value]}
    rates = {"teacher": {"median": 950.0, "rounds": [950.0] * 2}, "offline": {"median": 1000.0, "rounds": [1000.0] * 2}}
    entry = {
        "model": "tiny",
        "parameters": 120_000,
        "requests": 8,
        "output_tokens": 99,
        "measured": rates | {"ratio": ratio},
    }
    machine = {"processor": "p", "cores": 2, "load_before": 0.1, "python": "3", "versions": {}}
    return {"machine": machine, "settings": TracesBenchSettings(rounds=2).model_dump(mode="json"), "models": [entry]}


@pytest.mark.parametrize(("value", "word"), [(0.951, "met"), (0.94, "missed")])
def test_the_page_says_whether_the_target_is_met(tmp_path, value, word):
    result = result_of(value)
    assert [row[-1] for row in traces_targets(result)] == [word]
    assert traces_table(result)[1][0][:3] == ["tiny (0.12M parameters)", "8", "99"]
    (tmp_path / "traces-cpu.json").write_text(json.dumps(result))
    page, _ = render_report(tmp_path)
    assert "distill bench traces --rounds 2" in page and f"| {word} |" in page


@pytest.mark.long
def test_it_runs():
    result = bench_traces(TracesBenchSettings(models=("tiny",), questions=4, tokens=32, rounds=2, kv_cache_gib=1))
    (entry,) = result["models"]
    assert entry["requests"] == 8 and entry["measured"]["ratio"]["value"] > 0
    assert all(len(entry["measured"][who]["rounds"]) == 2 for who in ("teacher", "offline"))
