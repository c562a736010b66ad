"""Arms: how they are written, what they show, and in what order."""

import numpy as np
import pytest

from distill.errors import InputError
from distill.packing.arms import Arm, content, phases


@pytest.mark.parametrize("text", ["ift", "reasoning", "mixed:0", "mixed:0.25", "mixed:1", "sequential:0.5"])
def test_an_arm_is_written_as_it_is_read(text):
    assert str(Arm.parse(text)) == text
    assert Arm.parse(str(Arm.parse(text))) == Arm.parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mixed:1.2", "from 0 to 1, found '1.2'"),
        ("mixed:-0.1", "from 0 to 1, found '-0.1'"),
        ("mixed:nan", "from 0 to 1, found 'nan'"),
        ("sequential:inf", "from 0 to 1"),
        ("mixed", "from 0 to 1, found ''"),
        ("mixed:half", "found 'half'"),
        ("ift:0.5", "takes no ratio"),
        ("reasonin", "did you mean 'reasoning'"),
        ("mixd:0.5", "did you mean 'mixed:R'"),
        ("", "Known: ift, mixed:R, reasoning, sequential:R"),
    ],
)
def test_a_wrong_arm_says_what_was_expected(text, reason):
    with pytest.raises(InputError, match=reason):
        Arm.parse(text)


def shown(phase_list):
    return np.concatenate([epoch for phase in phase_list for epoch in phase.epochs])


def test_the_pairs_of_a_smaller_share_are_among_those_of_a_larger_one(rng):
    n, seed = int(rng.integers(50, 400)), int(rng.integers(1000))
    previous = set()
    for ratio in sorted(rng.random(6)):
        references = shown(phases(Arm("mixed", ratio), n, 1, seed))
        with_reasoning = {r // 2 for r in references if r % 2}
        assert len(with_reasoning) == round(ratio * n)
        assert previous <= with_reasoning
        assert with_reasoning == {r // 2 for r in shown(phases(Arm("sequential", ratio), n, 1, seed)) if r % 2}
        previous = with_reasoning


def test_arms_of_one_seed_see_the_same_pairs_in_the_same_order(rng):
    n, seed = 97, int(rng.integers(1000))
    order = {str(arm): shown(phases(arm, n, 3, seed)) // 2 for arm in map(Arm.parse, ["ift", "reasoning", "mixed:0.3"])}
    assert (order["ift"] == order["reasoning"]).all() and (order["ift"] == order["mixed:0.3"]).all()
    for epoch in np.split(order["ift"], 3):
        assert sorted(epoch) == list(range(n))
    assert (shown(phases(Arm.parse("ift"), n, 3, seed + 1)) // 2 != order["ift"]).any()


def test_sequential_shows_answers_first_then_reasoning(rng):
    n, seed = 80, int(rng.integers(1000))
    first, second = phases(Arm.parse("sequential:0.25"), n, 2, seed)
    assert all((epoch % 2 == 0).all() and len(epoch) == 60 for epoch in first.epochs)
    assert all((epoch % 2 == 1).all() and len(epoch) == 20 for epoch in second.epochs)
    assert sorted(set(np.concatenate([first.epochs[0], second.epochs[0]]) // 2)) == list(range(n))
    assert len(phases(Arm.parse("sequential:0"), n, 2, seed)) == len(phases(Arm.parse("sequential:1"), n, 2, seed)) == 1


def test_stratified_sampling_spreads_the_modes_evenly(rng):
    """Any first k documents have the share of each mode, to half a document and what ties add; the same documents."""
    n, seed = int(rng.integers(1, 400)), int(rng.integers(1000))
    for arm in (Arm("mixed", float(rng.random())), Arm.of_phases([(float(rng.random()), 2), (float(rng.random()), 1)])):
        shuffled, stratified = (phases(arm, n, 2, seed, sampling=how) for how in ("shuffled", "stratified"))
        for one, other in zip(shuffled, stratified, strict=True):
            for a, b in zip([*one.epochs, one.further(0)], [*other.epochs, other.further(0)], strict=True):
                for mode in (0, 1):
                    assert (a[a % 2 == mode] == b[b % 2 == mode]).all()
                share = (b % 2).mean()
                assert (np.abs(np.cumsum(b % 2) - share * np.arange(1, n + 1)) < 1).all()
    pure = [phases(Arm.parse("ift"), n, 1, seed, sampling=how) for how in ("shuffled", "stratified")]
    assert (shown(pure[0]) == shown(pure[1])).all()


def test_where_answers_come_from(make_pairs):
    (pair,) = make_pairs(1)
    r, i = pair.reasoning, pair.ift
    assert content(pair, "reasoning", "teacher") == (r.reasoning, r.answer)
    assert content(pair, "ift", "teacher") == ("", i.answer)
    assert content(pair, "ift", "stripped") == ("", r.answer)
    assert content(pair, "reasoning", "stripped") == (r.reasoning, r.answer)
    assert content(pair, "ift", "gold") == ("", pair.problem.gold)
    assert content(pair, "reasoning", "gold") == (r.reasoning, pair.problem.gold)
