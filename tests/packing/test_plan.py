"""The plan of a training: what every step sees, decided before the first one."""

import numpy as np
import pytest

from distill.errors import InputError
from distill.packing.arms import Arm, phases
from distill.packing.plan import Batch, plan


@pytest.fixture
def lengths(rng):
    """Input tokens of both documents of 150 pairs, the one with reasoning longer."""
    ift = rng.integers(2, 30, 150)
    return np.stack([ift, ift + rng.integers(1, 34, 150)], axis=1).reshape(-1)


def references(steps):
    return [r for step in steps for row in step.rows for r in row]


def size(lengths, step):
    return sum(int(lengths[row].sum()) for row in step.rows)


@pytest.mark.parametrize("arm", ["ift", "reasoning", "mixed:0.4", "sequential:0.4"])
@pytest.mark.parametrize("batch", [Batch("examples", 16, 64), Batch("tokens", 256, 64)], ids=["examples", "tokens"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_each_epoch_shows_each_pair_once(lengths, arm, batch, packed, rng):
    arm, seed = Arm.parse(arm), int(rng.integers(1000))
    batch = Batch(batch.unit, batch.size, batch.row_tokens, packed)
    steps = plan(arm, lengths, batch=batch, epochs=3, seed=seed)
    expected = [epoch for phase in phases(arm, 150, 3, seed) for epoch in phase.epochs]
    assert sorted(references(steps)) == sorted(np.concatenate(expected).tolist())
    counts = {}
    for step in steps:  # nothing comes an (n + 1)th time before everything in its phase came an nth time
        for r in (r for row in step.rows for r in row):
            counts.setdefault(step.phase, {}).setdefault(r, 0)
            counts[step.phase][r] += 1
            behind = [e for p, ph in enumerate(phases(arm, 150, 3, seed)) if p == step.phase for e in ph.epochs[0]]
            if batch.unit == "tokens":  # rows do not cross epochs; example steps may, but only inside one step
                assert counts[step.phase][r] <= 1 + min(counts[step.phase].get(int(b), 0) for b in behind)
    for number in {step.phase for step in steps}:
        of_phase = [step for step in steps if step.phase == number]
        assert [step.index for step in of_phase] == list(range(len(of_phase)))
        assert {step.of for step in of_phase} == {len(of_phase)}
    for step in steps:
        assert step.rows and all(row and int(lengths[row].sum()) <= 64 for row in step.rows)
        if not packed:
            assert all(len(row) == 1 for row in step.rows)


def test_a_step_of_examples_is_that_many_in_the_order_of_the_arm(lengths, rng):
    arm, seed = Arm.parse("mixed:0.5"), int(rng.integers(1000))
    steps = plan(arm, lengths, batch=Batch("examples", 16, 64), epochs=2, seed=seed)
    stream = np.concatenate(phases(arm, 150, 2, seed)[0].epochs).tolist()
    for i, step in enumerate(steps):
        assert sorted(references([step])) == sorted(stream[16 * i : 16 * (i + 1)])


def test_a_step_of_tokens_is_that_many_rows(lengths):
    steps = plan(Arm.parse("reasoning"), lengths, batch=Batch("tokens", 256, 64), epochs=2, seed=0)
    assert all(len(step.rows) == 4 for step in steps[:-1]) and 1 <= len(steps[-1].rows) <= 4
    rows = [row for step in steps for row in step.rows]
    assert lengths[references(steps)].sum() / (64 * len(rows)) > 0.9
    padded = plan(Arm.parse("reasoning"), lengths, batch=Batch("tokens", 256, 64, packed=False), epochs=2, seed=0)
    for step in padded[:-1]:
        assert 256 <= size(lengths, step) < 256 + 64


@pytest.mark.parametrize("unit", ["examples", "tokens"])
def test_a_token_budget_is_reached_at_the_last_step_and_not_before(lengths, unit, rng):
    batch = Batch(unit, 16 if unit == "examples" else 256, 64)
    for _ in range(10):
        tokens = int(rng.integers(1, 20_000))
        steps = plan(Arm.parse("ift"), lengths, batch=batch, epochs=1, seed=0, tokens=tokens)
        seen = np.cumsum([size(lengths, step) for step in steps])
        assert seen[-1] >= tokens and (seen[:-1] < tokens).all()
        assert {step.of for step in steps} == {len(steps)}


def test_a_curriculum_has_no_token_budget(lengths):
    with pytest.raises(InputError, match=r"sequential:0\.5"):
        plan(Arm.parse("sequential:0.5"), lengths, batch=Batch("examples", 16, 64), epochs=1, seed=0, tokens=100)


def test_no_pairs_is_an_error():
    with pytest.raises(InputError, match="nothing to train on"):
        plan(Arm.parse("ift"), np.array([], dtype=int), batch=Batch("examples", 16, 64), epochs=1, seed=0)


def test_one_seed_one_plan(lengths):
    make = lambda seed: plan(Arm.parse("mixed:0.5"), lengths, batch=Batch("tokens", 256, 64), epochs=2, seed=seed)  # noqa: E731
    assert make(3) == make(3)
    assert make(3) != make(4)
