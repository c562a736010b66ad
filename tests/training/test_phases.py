"""A curriculum written down as phases: what each shows, at which rate, and what cannot be one."""

import json

import numpy as np
import pytest

from distill.errors import InputError
from distill.packing.arms import Arm, phases
from distill.packing.source import read_traces
from distill.settings import load, validate
from distill.training.prepare import make_ready
from distill.training.schedule import learning_rate
from distill.training.settings import RunOptions, TrainSettings
from distill.training.train import train

YAML = """
student: tiny
row_tokens: 96
batch: 64
schedule: constant
phases:
  - {reasoning: 0, epochs: 2, learning_rate: 0.002}
  - {reasoning: 0.25}
  - {reasoning: 1, learning_rate: 0.0005}
"""


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "curriculum.yaml").write_text(YAML)
    return load(TrainSettings, tmp_path / "curriculum.yaml")


def test_every_phase_shows_every_pair_with_its_own_share(rng):
    n, seed = int(rng.integers(40, 200)), int(rng.integers(2**31))
    ratios = sorted(rng.uniform(0, 1, 3))
    found = phases(Arm.of_phases(zip(ratios, (2, 1, 1), strict=True)), n, 1, seed)
    assert [len(phase.epochs) for phase in found] == [2, 1, 1]
    epochs = [epoch for phase in found for epoch in phase.epochs]
    assert all(sorted(epoch // 2) == list(range(n)) for epoch in epochs)
    orders = {tuple(epoch // 2) for epoch in epochs}
    assert len(orders) == 4, "every epoch has an order of its own"
    reasoned = [{r // 2 for r in phase.epochs[0] if r % 2} for phase in found]
    assert [len(pairs) for pairs in reasoned] == [round(ratio * n) for ratio in ratios]
    assert reasoned[0] <= reasoned[1] <= reasoned[2]


def test_one_phase_is_the_mixed_arm(rng):
    n, seed, ratio = 50, int(rng.integers(2**31)), float(rng.uniform(0, 1))
    (mixed,) = phases(Arm("mixed", ratio), n, 3, seed)
    (phase,) = phases(Arm.of_phases([(ratio, 3)]), n, 1, seed)
    assert all(np.array_equal(a, b) for a, b in zip(mixed.epochs, phase.epochs, strict=True))


def test_a_training_follows_its_phases(traces, tmp_path, settings):
    assert settings.arm == "phases" and settings.shown.ratio == pytest.approx((0.25 + 1) / 4)
    assert TrainSettings.model_validate(settings.model_dump(mode="json")) == settings
    ready = make_ready(settings, read_traces(traces), weights=False)
    shown = [np.mean([r % 2 for s in ready.steps if s.phase == k for row in s.rows for r in row]) for k in (0, 1, 2)]
    assert shown == [0.0, 0.25, 1.0]
    made = train(settings, traces, RunOptions(out=tmp_path / "s", threads=1, tensorboard=False))
    rates = [
        json.loads(line)["learning_rate"]
        for line in (tmp_path / "s" / "training_log.jsonl").read_text().split("\n")[:-1]
    ]
    assert (
        rates == [0.002] * 10 + [0.003] * 5 + [0.0005] * 5
    )  # 320 pairs in steps of 64; the tiny student's own is 3e-3
    assert made.recipe["settings"]["phases"][2] == {"reasoning": 1.0, "epochs": 1, "learning_rate": 0.0005}
    assert made.summary["by_mode"]["reasoning"]["examples"] == 80 + 320


@pytest.mark.parametrize("shown", [{"arm": "sequential:0.3"}, {"phases": ({"reasoning": 0}, {"reasoning": 1})}])
def test_one_schedule_over_all_phases(traces, shown):
    given = {"student": "tiny", "batch": 40, "schedule": "linear", "final_learning_rate_ratio": 0.0, **shown}
    found = {}
    for one in (False, True):
        settings = TrainSettings(**given, one_schedule=one)
        steps = make_ready(settings, read_traces(traces), weights=False).steps
        found[one] = steps, [learning_rate(settings, s.index, s.of, s.phase) for s in steps]
    (each, own), (whole, one) = found[False], found[True]
    assert [s.rows for s in each] == [s.rows for s in whole] and [s.phase for s in each] == [s.phase for s in whole]
    expected = 0.003 * (1 - np.arange(1, len(whole) + 1) / len(whole))
    np.testing.assert_allclose(one, expected, atol=1e-12)
    assert sum(abs(rate) < 1e-12 for rate in own) == 2, "each phase falls to the floor"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"phases": None, "arm": "mixed:0.5", "one_schedule": True}, "arm mixed:0.5 has one phase"),
        ({"phases": [{"reasoning": 1, "learning_rate": 1}], "one_schedule": True}, "a learning rate of its own"),
        ({"arm": "mixed:0.5"}, "phases and arm 'mixed:0.5'"),
        ({"epochs": 2}, "each of the phases says its own"),
        ({"phases": []}, "field phases: Tuple should have at least 1 item"),
        ({"phases": [{"reasoning": 1.5}]}, "field phases.0.reasoning"),
        ({"phases": [{"mode": "ift"}]}, "field phases.0.mode: no such field"),
        ({"phases": [{}]}, "field phases.0.reasoning: needed, but not given"),
        ({"phases": None, "arm": "phases"}, "unknown arm 'phases'"),
    ],
)
def test_what_cannot_be_a_curriculum(changes, said):
    with pytest.raises(InputError, match=said) as refused:
        validate(TrainSettings, {"student": "tiny", "phases": [{"reasoning": 1}]} | changes, source="a file")
    assert "\n" not in str(refused.value)


def test_a_curriculum_too_long_for_its_tokens_is_refused(traces, settings):
    with pytest.raises(InputError, match="arm 'phases': 1000 tokens are so few that phase 2 of 3 has no step"):
        make_ready(settings.model_copy(update={"tokens": 1000}), read_traces(traces), weights=False)
