"""Learning-rate schedules, each over one phase of a curriculum."""

import math

from distill.training.settings import TrainSettings


def learning_rate(settings: TrainSettings, index: int, of: int, phase: int = 0) -> float:
    """The rate of step `index` (from 0) of phase number `phase`, which has `of` steps.

    Linear warm-up over `warmup_steps`, then: cosine or linear to `final_learning_rate_ratio` of the peak at the last
    step; wsd stays at the peak and falls linearly over the last `decay_steps`; constant stays.
    """
    peak = settings.peak_learning_rate(phase)
    floor = peak * settings.final_learning_rate_ratio
    warmup = min(settings.warmup_steps, of)
    if index < warmup:
        return peak * (index + 1) / warmup
    if settings.schedule == "constant":
        return peak
    decay = min(settings.decay_steps, of - warmup) if settings.schedule == "wsd" else of - warmup
    done = index - (of - decay) + 1
    if done <= 0:
        return peak
    if settings.schedule == "cosine":
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * done / decay))
    return peak + (floor - peak) * done / decay
