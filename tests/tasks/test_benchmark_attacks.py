"""Every benchmark, with one field of one row broken: one line that names the file, the row and the field."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.errors import InputError
from distill.tasks.benchmark import BENCHMARKS, Benchmark, load_benchmark, placeholders
from distill.tasks.benchmark_rows import is_wanted
from distill.tasks.benchmark_task import open_benchmark

ROWS = Path(__file__).parent / "benchmark_rows"
MISSING = object()
BROKEN = {
    "missing": MISSING,
    "null": None,
    "blank": " \n\t",
    "a truth value": True,
    "an object": {"a": 1},
    "lists in lists": [[["x"]]],
    "a list of null": [None, "a", "b"],
    "not a number": float("nan"),
    "half a surrogate pair": "\ud800",
}


def opened(name: str) -> tuple[Benchmark, list[dict]]:
    """A benchmark that holds no rows out, and those of its ten rows that its filter takes."""
    benchmark = load_benchmark(name)
    if benchmark.few_shot and benchmark.few_shot.held_out:
        benchmark = benchmark.model_copy(update={"few_shot": None})
    rows = [json.loads(line) for line in (ROWS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    return benchmark, [row for row in rows if is_wanted(benchmark, row, "row")]


def asked(benchmark: Benchmark) -> list[str]:
    """The fields that a question is made from, without those that something else may stand for."""
    names = [*placeholders(benchmark.prompt), *benchmark.option_names, *benchmark.gold.names]
    of = {**benchmark.fields, **benchmark.turns}
    return sorted({of[name] for name in names if name in of and name not in benchmark.when_blank})


def broken(row: dict, field: str, value: Any) -> dict:
    """A copy of a row in which a field, which may be dotted, has another value or is not there."""
    row = json.loads(json.dumps(row))
    *outer, last = field.split(".")
    inner = row
    for key in outer:
        inner = inner[key]
    inner[last] = value
    if value is MISSING:
        del inner[last]
    return row


def may_be(benchmark: Benchmark, field: str, value: Any) -> bool:
    """What is no mistake there: no labels at all."""
    return benchmark.gold.read == "labels" and field == "labels" and value == BROKEN["blank"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_broken_field_is_one_line(tmp_path, rng, name):
    benchmark, rows = opened(name)
    for field in asked(benchmark):
        for what, value in BROKEN.items():
            if may_be(benchmark, field, value):
                continue
            place = int(rng.integers(2, 5))
            lines = [*rows[1 : place + 1], broken(rows[0], field, value), *rows[place + 1 :]]
            file = tmp_path / "rows.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
            with pytest.raises(InputError) as error:
                open_benchmark(benchmark, file)
            said = str(error.value)
            assert said.startswith(f"{file}:{place + 1}: ") and field in said, (field, what)
            assert "\n" not in said and len(said) < len(str(file)) + 300, (field, what)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_broken_column_is_one_line(tmp_path, name):
    """In Parquet a field has one type in all rows; null, and text that is no text, may still stand in one of them."""
    benchmark, rows = opened(name)
    if name == "labels":
        rows = [row for row in rows if isinstance(row["labels"], list)]
    table, file = pa.Table.from_pylist(rows), tmp_path / "rows.parquet"
    for key in asked(benchmark):
        if key not in table.column_names or table.schema.field(key).type != pa.utf8():
            continue
        texts = [text.encode() for text in table[key].to_pylist()]
        no_text = pa.array([texts[0], b"\xff\xfe", *texts[2:]])
        for column, said in (
            (
                pa.array([texts[0], None, *texts[2:]]).cast(pa.utf8()),
                f"field '{key}': expected text or a number, found None",
            ),
            (pa.Array.from_buffers(pa.utf8(), len(rows), no_text.buffers()), "not UTF-8 text (byte 0 of a field)"),
        ):
            pq.write_table(table.set_column(table.column_names.index(key), key, column), file)
            with pytest.raises(InputError) as error:
                open_benchmark(benchmark, file)
            assert str(error.value) == f"{file}: row 2: {said}"


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if load_benchmark(name).format == "choice"])
def test_options_and_their_labels_are_bounded(tmp_path, name):
    benchmark, rows = opened(name)
    gold = benchmark.fields[benchmark.gold.names[0]]
    options = benchmark.fields[benchmark.option_names[0]]
    cases = [(gold, wrong) for wrong in ("Z", "AB", "-1", 99, -1, 0.5, "", "Ａ")]
    if isinstance(benchmark.options, str):
        marks = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 2 if benchmark.lettered else [""] * 30
        cases += [
            (options, [f"{mark}){i}" if mark else str(i) for i, mark in enumerate(marks)][:n]) for n in (0, 1, 30)
        ]
    for field, value in cases:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in (rows[1], broken(rows[0], field, value))))
        with pytest.raises(InputError, match=r"rows.jsonl:2: field '") as error:
            open_benchmark(benchmark, file)
        assert field in str(error.value) and len(str(error.value)) < len(str(file)) + 300


@pytest.mark.parametrize("name", BENCHMARKS)
def test_more_fields_and_large_ones_change_nothing(tmp_path, name):
    benchmark, rows = opened(name)
    file = tmp_path / "rows.jsonl"
    more = [
        row | {"more": [{"deep": [None, 1.5]}], "few_shot": "x", "": "x" * 10**5 * (i == 2)}
        for i, row in enumerate(rows)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in more))
    task = open_benchmark(benchmark, file)
    plain = open_benchmark(benchmark, ROWS / f"{name}.jsonl")
    assert task.problems("all", None, 0) == plain.problems("all", None, 0) and task.revision == plain.revision


def test_a_row_of_10_mb_is_a_question(tmp_path):
    benchmark, rows = opened("squad")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1] | {"context": "word " * 2_000_000}) + "\n")
    problems = open_benchmark(benchmark, file).problems("all", None, 0)
    assert len(problems) == 2 and len(problems[1].prompt) > 9_999_000


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "rows.jsonl: no row in it"),
        (b"\n \n", "rows.jsonl: no row in it"),
        (b'{"a": "\xff"}\n', "rows.jsonl:1: not UTF-8 text"),
        ('{"a": 1}\n'.encode("utf-16"), "rows.jsonl:1: not UTF-8 text"),
        (b"question,answer\n1,2\n", "rows.jsonl:1: not valid JSON"),
        (b'[{"question": "q"}]\n', r"rows.jsonl:1: expected a JSON object, found list"),
        (b"null\n", "rows.jsonl:1: expected a JSON object"),
        (b'{"question": "q", "answer": "#### 1"}\n{"question": "r", "ans', "rows.jsonl:2: not valid JSON"),
        (b"\x1f\x8b\x08", "rows.jsonl: packed by gzip"),
    ],
)
def test_files_that_are_no_rows(tmp_path, raw, said):
    (tmp_path / "rows.jsonl").write_bytes(raw)
    with pytest.raises(InputError, match=said) as error:
        open_benchmark("gsm8k", tmp_path / "rows.jsonl")
    assert "\n" not in str(error.value)
