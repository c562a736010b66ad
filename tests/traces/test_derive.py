"""A set made from another one: rows in order, and no more of them in memory than a batch."""

import tracemalloc
from dataclasses import replace

import pytest

from distill import artifact
from distill.errors import InputError
from distill.tasks.problem import Problem
from distill.traces.derive import deriving
from distill.traces.store import Rejected, iter_pairs, read_pairs, read_rejected, write_pairs
from distill.traces.trace import Pair, Trace


def pair(number, characters=10):
    problem = Problem("add", f"add {number}", "1", "open")
    reasoning = Trace("reasoning", f"{number:0{characters}d}", "1", "stop", "t")
    return Pair(problem, reasoning, Trace("ift", "", "1", "stop", "t"), number)


def write(folder, rows):
    with artifact.workspace(folder, "traces", {"made": "here"}) as space:
        return space.commit(write_pairs(folder, rows))


def test_a_large_set_is_not_read_into_memory(tmp_path):
    pairs, characters = 8 * 1024, 4000
    write(tmp_path / "t", (pair(i, characters) for i in range(pairs)))
    tracemalloc.start()
    try:
        with deriving(tmp_path / "t", tmp_path / "d", {"step": "toy"}) as new:
            assert sum(1 for _ in new.pairs()) == pairs
            new.commit(lambda _, pair: replace(pair, reasoning=replace(pair.reasoning, verified=True)), {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < pairs * characters / 2
    assert all(pair.reasoning.verified for pair in iter_pairs(tmp_path / "d"))


def test_rows_stay_as_they_were_asked(tmp_path, rng):
    rows = [pair(i) for i in range(60)]
    before = set(rng.choice(60, 20, replace=False).tolist())
    now = set(rng.choice(40, 15, replace=False).tolist())  # numbers of the pairs that are left

    def aside(reason, pair):
        return Rejected(reason, None, problem=pair.problem, reasoning=pair.reasoning, ift=pair.ift, place=pair.place)

    write(tmp_path / "t", [aside("truncated", row) if i in before else row for i, row in enumerate(rows)])
    left = [row for i, row in enumerate(rows) if i not in before]
    with deriving(tmp_path / "t", tmp_path / "d", {"step": "toy"}) as new:
        made = new.commit(lambda index, pair: aside("duplicate", pair) if index in now else pair, {})
    assert read_pairs(tmp_path / "d") == [row for i, row in enumerate(left) if i not in now]
    rejected = read_rejected(tmp_path / "d")
    assert [row.place for row in rejected] == sorted(before | {left[i].place for i in now})
    assert made.summary == {
        "questions": 60,
        "rows": 60,
        "pairs": 25,
        "rejected": {"duplicate": 15, "truncated": 20},
    }


def test_a_damaged_set_is_not_read(tmp_path, rng):
    """A byte of another value may still be read as Parquet; the key of the new set stands for the old bytes."""
    write(tmp_path / "t", [pair(i) for i in range(30)])
    file = tmp_path / "t" / "pairs.parquet"
    content = bytearray(file.read_bytes())
    content[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"pairs.parquet: damaged"), deriving(tmp_path / "t", tmp_path / "d", {}):
        pass
    assert not (tmp_path / "d").exists()


def test_nothing_left_is_said_and_leaves_nothing(tmp_path):
    write(tmp_path / "t", [pair(1)])
    with (
        pytest.raises(InputError, match="no pair would be left of 1"),
        deriving(tmp_path / "t", tmp_path / "d", {}) as new,
    ):
        new.commit(lambda _, pair: Rejected("duplicate", None, problem=pair.problem), {})
    assert not (tmp_path / "d").exists()
