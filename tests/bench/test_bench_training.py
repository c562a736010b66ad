"""`distill bench training`, small: TRL really runs, on the same work, and the result has what its description says."""

import json
import random

import pytest

from distill.bench.training import TrainingBenchSettings, bench_training
from distill.bench.workload import synthetic_lines
from distill.errors import InputError


@pytest.fixture(scope="module")
def result():
    pytest.importorskip("trl")
    settings = TrainingBenchSettings(
        student="tiny",
        vocabulary=512,
        row_tokens=1024,
        steps=2,
        pairs=2,
        warmup_steps=1,
        threads=1,
        documents=120,
        contenders=("packed", "trl-packed", "trl-padded"),
        seed=random.randrange(1000),
    )
    return bench_training(settings)


def test_everyone_does_the_same_work(result):
    """fp32 sums of about a thousand losses near 7, in another order: rounding is some 1e-7 of the value."""
    agreement = result["agreement"]
    expected = agreement["padded"]
    assert agreement.keys() == {"packed", "padded", "trl-packed", "trl-padded"}
    for step in agreement.values():
        assert step["supervised_tokens"] == expected["supervised_tokens"] > 0
        assert step["loss"] == pytest.approx(expected["loss"], rel=3e-6)
        assert step["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4)
    assert agreement["packed"]["isolated"] is True and agreement["padded"]["isolated"] is None


def test_trl_supervises_the_same_tokens(result):
    """A document of exactly one token more than a row is whole for us and loses its last token in TRL."""
    ours = result["workload"]["supervised_tokens"]
    for name in ("trl-packed",):
        theirs = result["contenders"][name]["supervised_tokens_total"]
        assert ours - 2 <= theirs <= ours


def test_the_numbers_hang_together(result):
    assert json.loads(json.dumps(result)) == result
    for name, contender in result["contenders"].items():
        measured = contender["measured"]
        assert 0 < contender["supervised_tokens_per_step"] < contender["tokens_per_step"] <= 1024
        rate = contender["tokens_per_step"] / measured["seconds_per_step"]
        assert measured["tokens_per_second"] == pytest.approx(rate)
        assert min(measured["rounds"]) <= measured["supervised_tokens_per_second"] <= max(measured["rounds"])
        assert 0 < measured["mfu"] < 1 and len(measured["rounds"]) == 2
        rss = measured["rss_bytes"]
        # The two come from counters of the kernel that lag behind each other by some pages.
        assert rss["step_10"] is None and rss["end"] <= 1.02 * measured["peak_rss_bytes"], name
    packed = result["contenders"]["packed"]["measured"]
    for name, ratios in result["measured"]["ratios"].items():
        peak = packed["peak_rss_bytes"] / result["contenders"][name]["measured"]["peak_rss_bytes"]
        assert ratios["peak_rss_bytes"] == pytest.approx(peak)
        quotients = [
            a / b for a, b in zip(packed["rounds"], result["contenders"][name]["measured"]["rounds"], strict=True)
        ]
        assert ratios["supervised_tokens_per_second"]["rounds"] == pytest.approx(quotients)


def test_a_synthetic_document_works_out_every_sum_it_is_asked_for():
    for line in synthetic_lines(20, random.randrange(1000)):
        row = json.loads(line)
        sums = [sum(map(int, part.removeprefix("add "))) for part in row["prompt"].split(", ")]
        assert row["ift"].split() == [str(total) for total in sums]
        reasoning, _, answer = row["reasoning"].removeprefix("<think>").partition("</think>")
        assert answer == row["ift"] and len(reasoning.split("; ")) == len(sums)


def test_bad_input_is_one_line(tmp_path):
    for data in ("foo", f"gsm8k:{tmp_path}/no.jsonl"):
        with pytest.raises(InputError) as error:
            bench_training(TrainingBenchSettings(data=data, student="tiny", vocabulary=300))
        assert "\n" not in str(error.value)
