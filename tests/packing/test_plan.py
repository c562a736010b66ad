"""The plan of a training: what every step sees, decided before the first one."""

from collections import Counter

import numpy as np
import pytest

from distill.errors import InputError
from distill.flops import ModelShape
from distill.packing.arms import Arm, phases
from distill.packing.balance import balance, balance_share, document_costs, row_sums
from distill.packing.binning import best_fit_decreasing
from distill.packing.budget import Budget
from distill.packing.plan import Batch, budget, plan

SHAPE = ModelShape(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=300)
ARMS = ["ift", "reasoning", "mixed:0.4", "sequential:0.4", "phases"]
BATCHES = [
    Batch("examples", 16, 64),
    Batch("examples", 16, 64, packed=False),
    Batch("tokens", 256, 64),
    Batch("tokens", 256, 64, packed=False),
    Batch("tokens", 256, 64, ranks=4),
]
NAMES = ["examples", "examples padded", "tokens", "tokens padded", "tokens for ranks"]


def read(arm):
    return Arm.of_phases([(0.2, 2), (1.0, 1)]) if arm == "phases" else Arm.parse(arm)


@pytest.fixture
def lengths(rng):
    """Input tokens of both documents of 150 pairs, the one with reasoning longer."""
    ift = rng.integers(2, 30, 150)
    return np.stack([ift, ift + rng.integers(1, 34, 150)], axis=1).reshape(-1)


def flops_of(lengths):
    return document_costs(lengths, lengths // 2, SHAPE)


def references(steps):
    return [r for step in steps for row in step.rows for r in row]


def size(lengths, step):
    return sum(int(lengths[row].sum()) for row in step.rows)


def spent(kind, lengths, steps):
    """By each step, counted document by document."""
    if kind == "steps":
        return [1 for _ in steps]
    if kind == "tokens":
        return [size(lengths, step) for step in steps]
    of = lambda r: SHAPE.training_flops([int(lengths[r])], int(lengths[r]) // 2)  # noqa: E731
    return [sum(of(r) for row in step.rows for r in row) for step in steps]


def check_shape(steps, lengths, batch):
    """Steps are numbered, rows fit, and every step but the last of a phase is full."""
    for number in {step.phase for step in steps}:
        of_phase = [step for step in steps if step.phase == number]
        assert [step.index for step in of_phase] == list(range(len(of_phase)))
        assert {step.of for step in of_phase} == {len(of_phase)}
        for step in of_phase:
            assert step.rows and all(row and int(lengths[row].sum()) <= 64 for row in step.rows)
            assert batch.packed or all(len(row) == 1 for row in step.rows)
        for step in of_phase[:-1]:
            if batch.unit == "examples":
                assert len(references([step])) == batch.size
            elif batch.packed:
                assert len(step.rows) == batch.size // batch.row_tokens
            else:
                assert batch.size <= size(lengths, step) < batch.size + 64
    assert [step.phase for step in steps] == sorted(step.phase for step in steps)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("batch", BATCHES, ids=NAMES)
def test_each_epoch_shows_each_pair_once(lengths, arm, batch, rng):
    arm, seed = read(arm), int(rng.integers(1000))
    steps = plan(arm, lengths, batch=batch, epochs=3, seed=seed, flops=flops_of(lengths))
    found = phases(arm, 150, 3, seed)
    expected = [epoch for phase in found for epoch in phase.epochs]
    assert sorted(references(steps)) == sorted(np.concatenate(expected).tolist())
    check_shape(steps, lengths, batch)
    for number, phase in enumerate(found):
        # Nothing comes an (n + 1)th time, in a step, before everything in its phase came an nth time.
        counts = Counter({int(r): 0 for r in phase.epochs[0]})
        for step in (step for step in steps if step.phase == number):
            begun = min(counts.values())
            shown = references([step])
            counts.update(shown)
            assert all(counts[r] <= 1 + max(begun, min(counts.values())) for r in shown)


def test_a_step_of_examples_is_that_many_in_the_order_of_the_arm(lengths, rng):
    arm, seed = Arm.parse("mixed:0.5"), int(rng.integers(1000))
    steps = plan(arm, lengths, batch=Batch("examples", 16, 64), epochs=2, seed=seed)
    stream = np.concatenate(phases(arm, 150, 2, seed)[0].epochs).tolist()
    for i, step in enumerate(steps):
        assert sorted(references([step])) == sorted(stream[16 * i : 16 * (i + 1)])


def test_rows_of_a_step_of_tokens_are_packed_over_the_whole_epoch(lengths):
    steps = plan(Arm.parse("reasoning"), lengths, batch=Batch("tokens", 256, 64), epochs=2, seed=0)
    assert sum(len(step.rows) for step in steps) == 2 * len(best_fit_decreasing(lengths[1::2], 64))


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("batch", BATCHES, ids=NAMES)
@pytest.mark.parametrize("kind", ["steps", "tokens", "flops"])
def test_a_budget_is_reached_by_the_last_step_and_not_before(lengths, arm, batch, kind, rng):
    arm, flops, seed, epochs = read(arm), flops_of(lengths), int(rng.integers(1000)), int(rng.integers(1, 4))
    given = dict(batch=batch, seed=seed, flops=flops)
    until = budget(kind, lengths, epochs=epochs, **given)
    reference = plan(Arm.parse("reasoning"), lengths, epochs=epochs, **given)
    assert until.kind == kind and until.amount == pytest.approx(sum(spent(kind, lengths, reference)), rel=1e-12)
    steps = plan(arm, lengths, epochs=epochs, until=until, **given)
    reached = np.cumsum(spent(kind, lengths, steps))
    assert reached[-1] >= until.amount * (1 - 1e-8) and (reached[:-1] < until.amount * (1 - 1e-10)).all()
    check_shape(steps, lengths, batch)

    # Every phase is cut at the same multiple of itself, to a step.
    whole = plan(arm, lengths, epochs=epochs, **given)
    amounts = [
        np.array(
            [sum(s for s, step in zip(spent(kind, lengths, p), p, strict=True) if step.phase == n) for n in (0, 1)]
        )
        for p in (steps, whole)
    ]
    ends = np.cumsum(amounts[1] / amounts[1].sum()) * until.amount
    assert (np.cumsum(amounts[0]) >= ends * (1 - 1e-8)).all()
    assert (np.cumsum(amounts[0]) - ends <= max(spent(kind, lengths, steps)) * (1 + 1e-8)).all()

    # In a phase no document is shown twice more than another; its pairs are in the mode that the arm says.
    found = phases(arm, 150, epochs, seed)
    for number, phase in enumerate(found):
        counts = Counter({int(r): 0 for r in phase.epochs[0]})
        counts.update(references(step for step in steps if step.phase == number))
        assert set(counts) == {int(r) for r in phase.epochs[0]}
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("batch", BATCHES, ids=NAMES)
@pytest.mark.parametrize("kind", ["samples", "steps", "tokens", "flops"])
def test_the_arm_that_others_are_matched_to_is_what_it_was(lengths, batch, kind, rng):
    for epochs in (1, 3):
        given = dict(batch=batch, epochs=epochs, seed=int(rng.integers(1000)), flops=flops_of(lengths))
        until = budget(kind, lengths, **given)
        arm = Arm.parse("reasoning")
        assert plan(arm, lengths, until=until, **given) == plan(arm, lengths, **given)
        assert (until is None) == (kind == "samples")


@pytest.mark.parametrize("unit", ["examples", "tokens"])
def test_any_number_of_tokens_can_be_the_budget(lengths, unit, rng):
    batch = Batch(unit, 16 if unit == "examples" else 256, 64)
    for _ in range(10):
        tokens = int(rng.integers(1, 20_000))
        until = Budget("tokens", tokens, lengths)
        steps = plan(Arm.parse("ift"), lengths, batch=batch, epochs=1, seed=0, until=until)
        seen = np.cumsum([size(lengths, step) for step in steps])
        assert seen[-1] >= tokens and (seen[:-1] < tokens).all()
        one_epoch = int(lengths[::2].sum())
        full = plan(Arm.parse("ift"), lengths, batch=batch, epochs=-(-tokens // one_epoch), seed=0)
        assert [step.rows for step in steps] == [step.rows for step in full[: len(steps)]]


def test_repeated_epochs_of_phases_have_orders_of_their_own(rng):
    n, seed = int(rng.integers(40, 100)), int(rng.integers(1000))
    for arm in map(read, ARMS):
        found = phases(arm, n, 2, seed)
        for phase in found:
            orders = [*(epoch.tolist() for epoch in phase.epochs), *(phase.further(k).tolist() for k in range(3))]
            assert len({tuple(order) for order in orders}) == len(orders)
            assert len({frozenset(order) for order in orders}) == 1
        if arm.kind == "phases":
            orders = [tuple(phase.further(k) // 2) for phase in found for k in range(3)]
            assert len(set(orders)) == 6


def test_a_budget_that_leaves_a_phase_without_a_step_is_refused(lengths):
    given = dict(batch=Batch("examples", 16, 64), epochs=1, seed=0)
    with pytest.raises(InputError, match=r"sequential:0\.5.*5 tokens.*phase 2 of 2 has no step"):
        plan(Arm.parse("sequential:0.5"), lengths, until=Budget("tokens", 5, lengths), **given)
    assert len(plan(Arm.parse("mixed:0.5"), lengths, until=Budget("tokens", 5, lengths), **given)) == 1


def test_no_pairs_is_an_error():
    with pytest.raises(InputError, match="nothing to train on"):
        plan(Arm.parse("ift"), np.array([], dtype=int), batch=Batch("examples", 16, 64), epochs=1, seed=0)


@pytest.mark.parametrize("batch", BATCHES, ids=NAMES)
def test_one_seed_one_plan(lengths, batch):
    flops = flops_of(lengths)
    until = Budget("flops", 1.7 * flops.sum(), flops)
    make = lambda seed: plan(  # noqa: E731
        Arm.parse("mixed:0.5"), lengths, batch=batch, epochs=2, seed=seed, flops=flops, until=until
    )
    assert make(3) == make(3)
    assert make(3) != make(4)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("arm", ["ift", "reasoning", "mixed:0", "mixed:1", "sequential:0", "sequential:1", "mixed:0.5"])
@pytest.mark.parametrize("unit", ["examples", "tokens"])
def test_one_pair_and_steps_larger_than_the_data(n, arm, unit, rng):
    lengths = np.sort(rng.integers(2, 60, 2 * n))
    for ranks in (1, 4):
        batch = Batch(unit, 1000 if unit == "examples" else 64_000, 64, ranks=ranks)
        given = dict(batch=batch, seed=0, flops=flops_of(lengths))
        (step,) = plan(Arm.parse(arm), lengths, epochs=2, **given)
        assert sorted(r // 2 for r in references([step])) == sorted([*range(n), *range(n)])
        for kind in ("steps", "tokens", "flops"):
            steps = plan(Arm.parse(arm), lengths, epochs=3, until=budget(kind, lengths, epochs=3, **given), **given)
            assert len(steps) == 1 if kind == "steps" else sum(spent(kind, lengths, steps)) > 0


def test_a_plan_for_several_ranks_gives_them_equal_work_and_shows_the_same(rng):
    """Over epochs, though none of them is a whole number of steps, or of rows a rank."""
    shape = ModelShape(layers=28, hidden=1536, heads=12, kv_heads=2, head_dim=128, intermediate=8960, vocab=151_936)
    row_tokens, ranks = 32_768, 8
    reasoning = rng.lognormal(np.log(5000), 0.8, 4000 + int(rng.integers(50))).astype(int).clip(16, row_tokens)
    lengths = np.stack([reasoning // 4 + 1, reasoning], axis=1).reshape(-1)
    flops = document_costs(lengths, (0.8 * lengths).astype(int), shape)
    shares, shown, sizes = {}, {}, {}
    for planned in (1, ranks):
        batch = Batch("tokens", 2 * ranks * row_tokens, row_tokens, ranks=planned)
        steps = plan(Arm.parse("reasoning"), lengths, batch=batch, epochs=2, seed=int(rng.integers(100)), flops=flops)
        groups = []
        for step in steps:  # as the ranks of a step take them
            costs = row_sums(step.rows, flops)
            groups += balance(costs.tolist(), costs, ranks, seed=0)
        shares[planned] = balance_share(groups, ranks)
        shown[planned], sizes[planned] = Counter(references(steps)), [len(step.rows) for step in steps]
        tokens = np.array([size(lengths, step) for step in steps[:-1]])
        assert tokens.std() / tokens.mean() < 0.05  # like rows are together for a rank each, not for a whole step
    assert shares[ranks] >= 0.97 > shares[1] + 0.01
    assert shown[1] == shown[ranks] and set(shown[1].values()) == {2}
    assert set(sizes[1][:-1]) == set(sizes[ranks][:-1]) == {2 * ranks}
