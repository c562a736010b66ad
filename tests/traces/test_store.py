"""Trace sets on disk: what is written is what is read, and nothing else is read."""

import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill import artifact
from distill.errors import InputError
from distill.tasks.problem import Problem
from distill.traces.faults import FAULTS, fault_of, split_think
from distill.traces.store import Rejected, read_pairs, read_rejected, write_pairs
from distill.traces.trace import Pair, Trace

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
COUNT = st.none() | st.integers(0, 2**63 - 1)
PROBLEM = st.builds(Problem, TEXT, TEXT, TEXT, st.sampled_from(["open", "choice", "labels", "extraction"]))


def trace(mode):
    return st.builds(
        Trace,
        st.just(mode),
        TEXT,
        TEXT,
        st.sampled_from(["stop", "length"]),
        TEXT,
        COUNT,
        COUNT,
        COUNT,
        st.none() | st.dictionaries(TEXT, st.integers(-5, 5) | st.text("ab"), max_size=2),
        COUNT,
        st.none() | st.floats(0, 1e6),
        st.none() | st.booleans(),
    )


PAIR = st.builds(Pair, PROBLEM, trace("reasoning"), trace("ift"))
REJECTED = st.builds(
    Rejected,
    st.sampled_from(sorted(FAULTS)),
    st.sampled_from([None, "reasoning", "ift"]),
    TEXT,
    TEXT,
    st.none() | PROBLEM,
    st.none() | trace("reasoning"),
    st.none() | trace("ift"),
)


def write(folder, rows):
    with artifact.workspace(folder, "traces", {"rows": len(rows)}) as space:
        return space.commit(write_pairs(folder, rows))


def pair(prompt="add 12", answer="3", **changes):
    return Pair(
        Problem("add", prompt, "3", "open"),
        Trace("reasoning", "1:1,2:3", answer, "stop", "t", **changes),
        Trace("ift", "", "3", "stop", "t", **changes),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(PAIR | REJECTED, max_size=6))
def test_round_trip_and_same_bytes(tmp_path, rows):
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        made = write(folder, rows)
    assert read_pairs(folders[0]) == [row for row in rows if isinstance(row, Pair)]
    assert read_rejected(folders[0]) == [row for row in rows if isinstance(row, Rejected)]
    assert made.summary["pairs"] + sum(made.summary["rejected"].values()) == len(rows)
    for name in ("pairs.parquet", "rejected.parquet", "manifest.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_sets_larger_than_a_batch(tmp_path):
    rows = [pair(f"add {i}") for i in range(2500)]
    write(tmp_path / "t", rows)
    assert read_pairs(tmp_path / "t") == rows


def test_rows_that_end_in_an_error_leave_nothing(tmp_path):
    def rows():
        yield pair()
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"), artifact.workspace(tmp_path / "t", "traces", {}) as space:
        write_pairs(space.path, rows())
    assert not (tmp_path / "t").exists()


def test_a_disk_that_fills_leaves_nothing(tmp_path):
    run = """
import resource, signal, sys
from pathlib import Path
from distill.artifact import workspace
from distill.tasks.problem import Problem
from distill.traces.store import write_pairs
from distill.traces.trace import Pair, Trace
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
rows = (
    Pair(
        Problem("t", str(i), str(i), "open"),
        Trace("reasoning", str(i) * 9, "a", "stop", "t"),
        Trace("ift", "", "a", "stop", "t"),
    )
    for i in range(5000)
)
with workspace(Path(sys.argv[1]), "traces", {}) as space:
    write_pairs(space.path, rows)
"""
    child = subprocess.run([sys.executable, "-c", run, str(tmp_path / "t")], capture_output=True, text=True)
    assert child.returncode == 1
    assert "InputError" in child.stderr.splitlines()[-1] and "cannot be written" in child.stderr.splitlines()[-1]
    assert not (tmp_path / "t").exists()


def refile(folder, table):
    """Put another pairs.parquet into a finished set, with a manifest that fits it."""
    pq.write_table(table, folder / "pairs.parquet")
    manifest = artifact.read_json(folder / "manifest.json")
    manifest["files"]["pairs.parquet"]["bytes"] = (folder / "pairs.parquet").stat().st_size
    artifact.write_json(folder / "manifest.json", manifest)


def test_malformed_sets_are_named(tmp_path):
    folder = tmp_path / "t"
    with pytest.raises(InputError, match="no such folder; expected traces made by `distill traces generate`"):
        read_pairs(folder)
    write(folder, [pair(), pair("add 21")])
    table = pq.read_table(folder / "pairs.parquet")

    def changed(name, values, field=None):
        at = table.schema.get_field_index(name)
        field = field or table.schema.field(name)
        return table.set_column(at, field, pa.array(values, field.type))

    rows = table.column("reasoning").to_pylist()
    for other, message in (
        (table.drop_columns(["gold"]), r"pairs\.parquet: column 'gold' is missing"),
        (changed("gold", [1, 2], pa.field("gold", pa.int64())), r"column 'gold': expected large_string, found int64"),
        (changed("answer_format", ["open", "essay"]), r"row 2: field 'answer_format': expected one of .*'essay'"),
        (changed("prompt", ["add 12", "add 99"]), r"row 2: field 'id'"),
        (changed("reasoning", [rows[0], rows[1] | {"sampling": "[1]"}]), r"row 2: field 'reasoning.sampling'"),
        (changed("reasoning", [rows[0] | {"sampling": "{"}, rows[1]]), r"row 1: field 'reasoning.sampling'"),
    ):
        refile(folder, other)
        with pytest.raises(InputError, match=message) as error:
            read_pairs(folder)
        assert "\n" not in str(error.value)
    refile(folder, table)
    assert len(read_pairs(folder)) == 2

    data = (folder / "pairs.parquet").read_bytes()
    (folder / "pairs.parquet").write_bytes(data[:-1])
    with pytest.raises(InputError, match="missing or cut short"):
        read_pairs(folder)
    (folder / "pairs.parquet").write_bytes(b"\x00" * len(data))
    with pytest.raises(InputError, match=r"pairs\.parquet: cannot be read as Parquet"):
        read_pairs(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        read_pairs(folder)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_a_damaged_byte_is_an_error_or_harmless(tmp_path, place, byte):
    folder = tmp_path / "t"
    if not folder.exists():
        write(folder, [pair(), pair("add 21")])
        shutil.copy(folder / "pairs.parquet", tmp_path / "whole")
    data = bytearray((tmp_path / "whole").read_bytes())
    data[int(place * len(data))] = byte
    (folder / "pairs.parquet").write_bytes(data)
    try:
        read_pairs(folder)
    except InputError as error:
        assert str(folder) in str(error)


def test_split_think():
    for text, expected in {
        "<think>\na\n</think>\n\nb": ("a", "b", None),
        "a</think>b": ("a", "b", None),
        " b ": ("", "b", None),
        "<think></think>b": ("", "b", None),
        "<think>a": ("a", "", "unclosed_think"),
        "first <think>a</think>b": ("a", "b", "stray_tag"),
        "<think>a</think>b</think>c": ("a", "b</think>c", None),
    }.items():
        assert split_think(text) == expected
    assert fault_of(Trace("reasoning", "a", "b</think>c", "stop", "t")) == "stray_tag"
    assert fault_of(Trace("reasoning", "<think>", "b", "stop", "t")) == "stray_tag"
    assert fault_of(Trace("reasoning", "a", "b", "stop", "t")) is None
