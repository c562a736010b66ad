"""Pairs on disk: a folder with pairs.parquet, rejected.parquet and a manifest.

Every question that was asked or imported is a row of one of the two files, once for each sample of it. Rows keep their
order, and equal rows give equal bytes.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from distill import artifact
from distill.artifact import canonical_json
from distill.errors import InputError
from distill.tasks.problem import AnswerFormat, Problem
from distill.tasks.rows import parquet_rows
from distill.traces.trace import MODES, Mode, Pair, Trace

KIND = "traces"
PAIRS, REJECTED = "pairs.parquet", "rejected.parquet"
MADE_BY = "distill traces generate"
_BATCH = 1024


@dataclass(frozen=True)
class Rejected:
    """A question that gave no pair, with whatever there is of it."""

    reason: str  # a name in faults.FAULTS
    mode: Mode | None  # the mode that had the fault, the first if both had; None when the row itself had it
    detail: str = ""
    source: str = ""  # "file:line" of an imported row
    problem: Problem | None = None
    reasoning: Trace | None = None
    ift: Trace | None = None
    place: int = 0
    sample: int = 0


def _field(name: str, kind: pa.DataType, *, optional: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=optional)


_TRACE = pa.struct(
    [
        _field("reasoning", pa.large_string()),
        _field("answer", pa.large_string()),
        _field("finish_reason", pa.string()),
        _field("teacher", pa.string()),
        _field("prompt_tokens", pa.int64(), optional=True),
        _field("reasoning_tokens", pa.int64(), optional=True),
        _field("answer_tokens", pa.int64(), optional=True),
        _field("sampling", pa.string(), optional=True),  # JSON
        _field("seed", pa.int64(), optional=True),
        _field("cost_usd", pa.float64(), optional=True),
        _field("verified", pa.bool_(), optional=True),
        _field("verdict", pa.large_string(), optional=True),
    ]
)


def _schema(*, optional: bool) -> list[pa.Field]:
    return [
        _field("id", pa.string(), optional=optional),
        _field("task", pa.string(), optional=optional),
        _field("prompt", pa.large_string(), optional=optional),
        _field("gold", pa.large_string(), optional=optional),
        _field("answer_format", pa.string(), optional=optional),
        _field("reasoning", _TRACE, optional=optional),
        _field("ift", _TRACE, optional=optional),
        _field("place", pa.int64()),
        _field("sample", pa.int32()),
    ]


_PAIR_SCHEMA = pa.schema(_schema(optional=False))
_REJECTED_SCHEMA = pa.schema(
    [
        _field("reason", pa.string()),
        _field("mode", pa.string(), optional=True),
        _field("detail", pa.large_string()),
        _field("source", pa.string()),
        *_schema(optional=True),
    ]
)


def write_pairs(folder: Path, rows: Iterable[Pair | Rejected]) -> dict[str, Any]:
    """Write both files from one stream of rows, those of a question after each other. Returns the summary: how many
    questions, rows, pairs, and rejected rows by reason; a row that could not be read is no question.

    When the rows end in an exception, or the disk is full, neither file is left.
    """
    rows_written = pairs = questions = 0
    reasons, place = Counter[str](), -1
    try:
        with ExitStack() as stack:
            kept = stack.enter_context(_BatchWriter(folder / PAIRS, _PAIR_SCHEMA))
            rejected = stack.enter_context(_BatchWriter(folder / REJECTED, _REJECTED_SCHEMA))
            for row in rows:
                rows_written += 1
                if row.problem is not None and row.place != place:
                    questions, place = questions + 1, row.place
                if isinstance(row, Pair):
                    kept.add(_common_row(row))
                    pairs += 1
                else:
                    about = {"reason": row.reason, "mode": row.mode, "detail": row.detail, "source": row.source}
                    rejected.add(about | _common_row(row))
                    reasons[row.reason] += 1
    except BaseException as error:
        for name in (PAIRS, REJECTED):
            (folder / name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from None
        raise
    counts = {"questions": questions, "rows": rows_written, "pairs": pairs}
    return counts | {"rejected": dict(sorted(reasons.items()))}


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a finished trace set. Raises InputError for anything malformed: file, row, field."""
    return list(iter_pairs(path))


def iter_pairs(path: Path) -> Iterator[Pair]:
    """The same, one at a time: of a set of any size a batch is in memory."""
    for where, row in _read(path, PAIRS, _PAIR_SCHEMA):
        yield _pair(row, where)


def pair_at(path: Path, index: int) -> Pair:
    """One of them by its number, from 0; reads the batch it was written in. Raises IndexError where there is none."""
    next(_read(path, PAIRS, _PAIR_SCHEMA), None)
    with pq.ParquetFile(path / PAIRS) as parquet:
        rest = index
        for group in range(parquet.num_row_groups):
            n = parquet.metadata.row_group(group).num_rows
            if rest < n:
                (row,) = parquet.read_row_group(group).slice(rest, 1).to_pylist()
                return _pair(row, f"{path / PAIRS}: row {index + 1}")
            rest -= n
    raise IndexError(index)


def iter_columns(path: Path, name: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches of some columns of PAIRS or REJECTED, such as "task" or "reasoning.answer" (a struct of what is asked of
    it): to count in a large set without making a Pair of every row. Raises InputError as read_pairs does, but looks at
    no values."""
    file, schema = path / name, {PAIRS: _PAIR_SCHEMA, REJECTED: _REJECTED_SCHEMA}[name]
    next(_read(path, name, schema), None)  # an unfinished set, or a file of another layout, is said so here
    try:
        with pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches(batch_size=_BATCH, columns=columns)
    except (OSError, pa.ArrowException) as error:
        what = str(error).partition("\n")[0][:120]
        raise InputError(f"{file}: cannot be read as Parquet ({what})") from None


def read_rejected(path: Path) -> list[Rejected]:
    """The rows that gave no pair. Raises InputError as read_pairs does."""
    return list(iter_rejected(path))


def iter_rejected(path: Path) -> Iterator[Rejected]:
    """The same, one at a time."""
    for where, row in _read(path, REJECTED, _REJECTED_SCHEMA):
        yield Rejected(
            reason=row["reason"],
            mode=row["mode"],
            detail=row["detail"],
            source=row["source"],
            problem=None if row["prompt"] is None else _problem(row, where),
            reasoning=None if row["reasoning"] is None else _trace(row, "reasoning", where),
            ift=None if row["ift"] is None else _trace(row, "ift", where),
            place=row["place"],
            sample=row["sample"],
        )


def trace_to_row(trace: Trace) -> dict[str, Any]:
    """A trace as a flat row, without its mode."""
    row = dict(vars(trace))
    del row["mode"]
    row["sampling"] = None if trace.sampling is None else canonical_json(trace.sampling)
    return row


def trace_from_row(row: dict[str, Any], mode: Mode) -> Trace:
    """The trace that trace_to_row wrote. Raises ValueError or TypeError for another row."""
    sampling = None if row["sampling"] is None else json.loads(row["sampling"])
    if not isinstance(sampling, dict | None):
        raise TypeError("sampling is not a JSON object")
    return Trace(mode=mode, **{**row, "sampling": sampling})


class _BatchWriter:
    """Writes rows in batches, so that a set of any size needs the memory of one batch."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.schema = schema
        self.writer = pq.ParquetWriter(path, schema, compression="zstd")
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> "_BatchWriter":
        return self

    def __exit__(self, exception_type: type | None, *_: object) -> None:
        if exception_type is None:
            self._write()
        self.writer.close()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) == _BATCH:
            self._write()

    def _write(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
            self.rows = []


def _common_row(row: Pair | Rejected) -> dict[str, Any]:
    problem = row.problem
    return {
        "id": problem and problem.id,
        "task": problem and problem.task,
        "prompt": problem and problem.prompt,
        "gold": problem and problem.gold,
        "answer_format": problem and problem.answer_format,
        "reasoning": row.reasoning and trace_to_row(row.reasoning),
        "ift": row.ift and trace_to_row(row.ift),
        "place": row.place,
        "sample": row.sample,
    }


def _read(path: Path, name: str, schema: pa.Schema) -> Iterator[tuple[str, dict[str, Any]]]:
    artifact.read(path, KIND, made_by=MADE_BY)
    yield from parquet_rows(path / name, schema)


def _pair(row: dict[str, Any], where: str) -> Pair:
    traces = (_trace(row, mode, where) for mode in MODES)
    return Pair(_problem(row, where), *traces, row["place"], row["sample"])


def _problem(row: dict[str, Any], where: str) -> Problem:
    if row["answer_format"] not in get_args(AnswerFormat):
        raise InputError(
            f"{where}: field 'answer_format': expected one of {', '.join(get_args(AnswerFormat))}, "
            f"found {row['answer_format']!r}"
        )
    problem = Problem(row["task"], row["prompt"], row["gold"], row["answer_format"])
    if problem.id != row["id"]:
        raise InputError(f"{where}: field 'id': expected {problem.id!r}, the hash of the prompt, found {row['id']!r}")
    return problem


def _trace(row: dict[str, Any], mode: Mode, where: str) -> Trace:
    try:
        return trace_from_row(row[mode], mode)
    except (ValueError, TypeError):
        raise InputError(f"{where}: field '{mode}.sampling': expected a JSON object") from None
