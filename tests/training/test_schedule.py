"""Learning-rate schedules against formulas written down independently, as piecewise functions of the step."""

import math

import pytest

from distill.training.schedule import learning_rate
from distill.training.settings import TrainSettings

PEAK = 3e-3


def settings(schedule, warmup, floor, decay=0):
    return TrainSettings(
        student="tiny",
        learning_rate=PEAK,
        schedule=schedule,
        warmup_steps=warmup,
        decay_steps=decay if schedule == "wsd" else 0,
        final_learning_rate_ratio=floor,
    )


def expected(schedule, warmup, floor, decay, step, of):
    """`step` counts from 1; the rate of warm-up reaches the peak at step `warmup`, the decay its floor at step `of`."""
    if step <= warmup:
        return PEAK * step / warmup
    if schedule == "wsd":
        decay = min(decay, of - warmup)
        share = max(0.0, (step - (of - decay)) / decay)
        return PEAK * (1 - share * (1 - floor))
    share = (step - warmup) / (of - warmup)
    return {
        "constant": PEAK,
        "linear": PEAK * (1 - share * (1 - floor)),
        "cosine": PEAK * (floor + (1 - floor) * math.cos(math.pi * share / 2) ** 2),
    }[schedule]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_every_step_of_every_schedule(schedule, rng):
    for _ in range(40):
        of = int(rng.integers(1, 80))
        warmup, floor, decay = int(rng.integers(0, of)), float(rng.random()), int(rng.integers(1, 80))
        chosen = settings(schedule, warmup, floor, decay)
        for step in range(1, of + 1):
            found = learning_rate(chosen, step - 1, of)
            assert found == pytest.approx(expected(schedule, warmup, floor, decay, step, of), rel=1e-12), (step, of)
            assert 0 <= found <= PEAK * (1 + 1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_a_training_shorter_than_its_warm_up_reaches_the_peak(schedule):
    rates = [learning_rate(settings(schedule, 50, 0.0, decay=10), i, 7) for i in range(7)]
    assert rates == pytest.approx([PEAK * (i + 1) / 7 for i in range(7)])
