"""Which pairs are shown with their reasoning at a fixed share, by what is known of them before anything is trained."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from distill.errors import InputError
from distill.packing.arms import Arm, phases
from distill.packing.selection import selection, selection_recipe
from distill.packing.source import TraceSet
from distill.tasks.problem import Problem
from distill.traces.trace import Pair, Trace


def pair(number, characters, wrong=None, ift="4", reasoning="4", answer_format="open"):
    """`wrong`: what the label of the answer without reasoning says; None: there is none."""
    label = None if wrong is None else not wrong
    thought = Trace("reasoning", "x" * characters, reasoning, "stop", "t", verified=True)
    direct = Trace("ift", "", ift, "stop", "t", verified=label)
    return Pair(Problem("add", f"question {number}", "4", answer_format), thought, direct)


def with_reasoning(arm, n, seed, priority=None):
    return {
        int(r) // 2 for phase in phases(arm, n, 1, seed, priority) for epoch in phase.epochs for r in epoch if r % 2
    }


def seeded_ranking(n, seed):
    """The pairs in the order in which a growing share takes them."""
    taken = [with_reasoning(Arm("mixed", k / n), n, seed) for k in range(n + 1)]
    return [(larger - smaller).pop() for smaller, larger in pairwise(taken)]


def order_of(select, pairs):
    """The places of the pairs, in groups that have the same priority."""
    priority = selection(select, TraceSet("key", pairs, Path("traces"))).priority
    return [np.flatnonzero(priority == value).tolist() for value in np.unique(priority)]


def test_the_smallest_priorities_come_first_and_equal_ones_as_the_seed_ranks_them(rng):
    n, seed = int(rng.integers(20, 60)), int(rng.integers(1000))
    priority = rng.integers(-3, 4, n)
    ranking = seeded_ranking(n, seed)
    expected = sorted(range(n), key=lambda p: (priority[p], ranking.index(p)))
    for share in sorted(rng.random(5)):
        chosen = set(expected[: round(share * n)])
        assert with_reasoning(Arm("mixed", share), n, seed, priority) == chosen
        assert with_reasoning(Arm("sequential", share), n, seed, priority) == chosen
    shares = sorted(rng.random(3))
    found = phases(Arm.of_phases((share, 1) for share in shares), n, 1, seed, priority)
    assert [{r // 2 for r in phase.epochs[0] if r % 2} for phase in found] == [
        set(expected[: round(share * n)]) for share in shares
    ]


def test_what_is_chosen_changes_no_order(rng):
    n, seed, share = 80, int(rng.integers(1000)), float(rng.uniform(0.2, 0.8))
    for priority in (np.full(n, 7), rng.integers(0, 50, n)):
        for arm in (Arm("mixed", share), Arm.of_phases([(share, 2), (share / 2, 1)])):
            plain, chosen = phases(arm, n, 2, seed), phases(arm, n, 2, seed, priority)
            for one, other in zip(plain, chosen, strict=True):
                same = priority[0] == 7 and len(set(priority.tolist())) == 1
                for a, b in zip([*one.epochs, one.further(0)], [*other.epochs, other.further(0)], strict=True):
                    assert (a // 2 == b // 2).all() and (not same or (a == b).all())


def test_exactly_these_pairs():
    pairs = [
        pair(0, 30, wrong=False),
        pair(1, 10, wrong=True),
        pair(2, 50, wrong=False, ift="5"),
        pair(3, 20, wrong=True, ift="17"),
        pair(4, 40, wrong=None, ift="the answer is 4"),
        pair(5, 10, wrong=False, ift=r"\boxed{9}"),
    ]
    assert order_of("hard", pairs) == [[3], [1], [2], [4], [0], [5]]
    assert order_of("short", pairs) == [[1, 5], [3], [0], [4], [2]]
    assert order_of("disagree", pairs) == [[2, 3, 5], [0, 1, 4]]
    assert selection("random", TraceSet("key", pairs, Path("traces"))) is None
    found = selection("hard", TraceSet("key", pairs, Path("traces"))).at([3, 0])
    assert found.characters.tolist() == [20, 30]
    assert {name: flags.tolist() for name, flags in found.marked.items()} == {"wrong_without_reasoning": [True, False]}


def test_any_wrong_answer_comes_before_the_longest_reasoning(rng):
    pairs = [pair(i, int(rng.integers(0, 300)), wrong=bool(rng.random() < 0.4)) for i in range(50)]
    expected = sorted(range(50), key=lambda i: (pairs[i].ift.verified, -len(pairs[i].reasoning.reasoning)))
    found = [place for group in order_of("hard", pairs) for place in group]
    key = lambda i: (pairs[i].ift.verified, len(pairs[i].reasoning.reasoning))  # noqa: E731
    assert [key(i) for i in found] == [key(i) for i in expected]


def test_answers_are_read_as_their_format_says():
    formats = [
        ("choice", "(B)", "The answer is B", False),
        ("choice", "(B)", "The answer is C", True),
        ("open", "12.0", "so it is 12", False),
        ("extraction", "a  b", "a b", False),
        ("extraction", "a b", "b a", True),
    ]
    pairs = [
        pair(i, 5, ift=one, reasoning=other, answer_format=kind) for i, (kind, one, other, _) in enumerate(formats)
    ]
    found = selection("disagree", TraceSet("key", pairs, Path("traces"))).marked["answers_differ"]
    assert found.tolist() == [differ for *_, differ in formats]


def test_without_labels_nobody_knows_what_is_hard():
    pairs = [pair(i, 10 * i) for i in range(4)]
    trace_set = TraceSet("key", pairs, Path("out/traces"))
    with pytest.raises(InputError, match=r"^out/traces: .*--select hard.*`distill traces verify`") as refused:
        selection("hard", trace_set)
    assert "\n" not in str(refused.value)
    pairs[2] = replace(pairs[2], ift=replace(pairs[2].ift, verified=False))
    assert selection("hard", trace_set).marked["wrong_without_reasoning"].tolist() == [False, False, True, False]
    for select in ("disagree", "short"):
        assert len(selection(select, trace_set).priority) == 4


def test_arms_that_choose():
    arms = ["ift", "reasoning", "mixed:0", "mixed:1", "sequential:0", "sequential:1", "mixed:0.01", "sequential:0.99"]
    assert [Arm.parse(arm).chooses for arm in arms] == [False] * 6 + [True] * 2
    assert not Arm.of_phases([(0, 2), (1, 1)]).chooses and Arm.of_phases([(0, 2), (0.5, 1), (1, 1)]).chooses


def test_a_phase_keeps_its_number_where_the_other_one_is_empty():
    number = lambda arm, n: [phase.number for phase in phases(Arm.parse(arm), n, 1, 0)]  # noqa: E731
    assert number("sequential:0.5", 20) == [0, 1]
    assert number("sequential:0.01", 20) == [0] and number("sequential:0.99", 20) == [1]
    assert [phase.number for phase in phases(Arm.of_phases([(0, 1), (1, 1), (0.5, 2)]), 20, 1, 0)] == [0, 1, 2]


def test_keys_say_what_the_order_depends_on():
    assert selection_recipe("random") == {}
    assert selection_recipe("hard") == selection_recipe("short") == {"selection_version": 1}
    assert selection_recipe("disagree").keys() == {"selection_version", "agreement_version"}
