"""`distill traces export`: the pairs of a set in a layout that others read, as a file or as a folder for the Hub.

What is written is there whole or not at all, and equal sets give equal bytes. Nothing is ever overwritten: where the
result stands already nothing is done, and where anything else stands that is an error.
"""

import glob
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distill.artifact import file_sha256, require_file_place
from distill.console import progress
from distill.errors import InputError, unknown_name
from distill.tasks.rows import Row
from distill.traces.layouts.card import card
from distill.traces.layouts.write import LAYOUTS, Misfit, Style, Writing
from distill.traces.store import PAIRS, iter_columns, iter_pairs
from distill.traces.trace import MODES, Pair

Modes = Literal["reasoning", "ift", "both"]
Keep = Literal["verified", "all"]
Format = Literal["jsonl", "parquet"]

_BATCH = 1024
_SHARD = 20_000  # pairs in one file of a Hub folder: some hundred megabytes of long reasoning
# JSON allows these in a string, but many readers take them for the end of a line.
_LINE_ENDS = str.maketrans({c: f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"})


def export(
    traces: Path,
    layout: str,
    out: Path,
    *,
    mode: Modes = "both",
    keep: Keep = "all",
    file_format: Format | None = None,
    reasoning: Style = "tags",
) -> dict[str, Any]:
    """Write the pairs of the set in the folder `traces` to `out`: a file, or for layout "hub" a folder.

    `mode` says which traces are written where a row is one trace; `keep` "verified" takes only pairs of which both
    answers were verified; `reasoning` says whether a message has its reasoning between tags or in a field of its own.
    None for `file_format` is Parquet for "hub" and JSON lines for the others. Returns counts of pairs and rows.
    Raises InputError for an option that is none or does not fit the layout, a set that is not finished, a pair that the
    layout cannot hold, no pair at all, or a place where something else stands.
    """
    hub = layout == "hub"
    file_format = file_format or ("parquet" if hub else "jsonl")
    known = {"layout": tuple(LAYOUTS), "mode": get_args(Modes), "keep": get_args(Keep)}
    known |= {"format": get_args(Format), "reasoning": get_args(Style)}
    for name, value in zip(known, (layout, mode, keep, file_format, reasoning), strict=True):
        if value not in known[name]:
            raise unknown_name(name, value, known[name])
    how = LAYOUTS[layout]
    for name, value, fits, expected in (
        ("mode", mode, mode == "both" or how.by_trace, "both: a row of it is a whole pair"),
        ("reasoning", reasoning, reasoning == "tags" or how.messages, "tags: it has no messages with fields"),
        ("format", file_format, file_format == "parquet" or not hub, "parquet"),
    ):
        if not fits:
            raise InputError(f"layout {layout}: field {name}: found {value}, expected {expected}")
    writing = Writing(MODES if mode == "both" else (mode,), reasoning)
    kept = _kept(traces, keep)
    if not kept.any():
        only = " with both answers verified" if keep == "verified" else ""
        first = "; `distill traces verify` labels answers" if keep == "verified" else ""
        raise InputError(f"{traces}: no pair{only} of {len(kept)}; nothing to export{first}")
    rows = _Rows(traces, layout, writing, kept)
    if hub:
        with _new_folder(out) as folder:
            files = _write_shards(folder / "data", rows)
            text = card(traces, columns=how.columns(writing), pairs=int(kept.sum()), keep=keep, files=files)
            (folder / "README.md").write_text(text, encoding="utf-8")
    else:
        with _new_file(out) as file:
            (_write_json_lines if file_format == "jsonl" else _write_parquet)(file, rows)
    return {"path": str(out), "pairs": int(kept.sum()), "rows": rows.count, "left_out": int((~kept).sum())}


def _kept(traces: Path, keep: Keep) -> np.ndarray:
    """Which pairs are written: bool[pairs]."""
    found = []
    for batch in iter_columns(traces, PAIRS, [f"{mode}.verified" for mode in MODES]):
        verified = [pc.fill_null(pc.struct_field(batch.column(mode), "verified"), False) for mode in MODES]
        found.append(pc.and_(*verified).to_numpy(zero_copy_only=False))
    labels = np.concatenate(found) if found else np.zeros(0, dtype=bool)
    return labels if keep == "verified" else np.ones_like(labels)


class _Rows:
    """The rows to write, in the order of the pairs; `count` is how many were given so far."""

    def __init__(self, traces: Path, layout: str, writing: Writing, kept: np.ndarray):
        self.traces, self.layout, self.writing, self.kept, self.count = traces, layout, writing, kept, 0

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(list(LAYOUTS[self.layout].columns(self.writing).items()))

    def __iter__(self) -> Iterator[Row]:
        with progress() as bar:
            task = bar.add_task(f"writing {self.layout}", total=len(self.kept))
            for number, pair in enumerate(iter_pairs(self.traces)):
                if self.kept[number]:
                    yield from self._of(pair, number)
                bar.advance(task)

    def _of(self, pair: Pair, number: int) -> Iterator[Row]:
        try:
            for row in LAYOUTS[self.layout].rows(pair, self.writing):
                self.count += 1
                yield row
        except Misfit as error:
            where = f"{self.traces / PAIRS}: row {number + 1} ({pair.problem.id})"
            raise InputError(f"{where}: cannot be written in layout {self.layout}: {error}") from None


def _write_json_lines(file: Path, rows: _Rows) -> None:
    with open(file, "w", encoding="utf-8", newline="\n") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False).translate(_LINE_ENDS) + "\n")


def _write_parquet(file: Path, rows: _Rows) -> None:
    _write_table(file, iter(rows), rows.schema)


def _write_shards(folder: Path, rows: _Rows) -> int:
    """Write as many files as there are rows for. Returns how many."""
    folder.mkdir()
    files = -(-int(rows.kept.sum()) // _SHARD)
    source = iter(rows)
    for number in range(files):
        _write_table(folder / f"train-{number:05d}-of-{files:05d}.parquet", islice(source, _SHARD), rows.schema)
    return files


def _write_table(file: Path, rows: Iterator[Row], schema: pa.Schema) -> None:
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while batch := list(islice(rows, _BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


@contextmanager
def _new_file(out: Path) -> Iterator[Path]:
    """A file beside `out` to write, which takes its place in the end."""
    require_file_place(out)
    part = _part(out)
    try:
        with _disk_errors(out):
            yield part
        if out.exists():
            _require_same(out, file_sha256(out) == file_sha256(part), out.name)
            return
        _sync(part)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """The same for a folder."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; expected a folder to write")
    if not out.is_dir():
        require_file_place(out)
    part = _part(out)
    try:
        with _disk_errors(out):
            part.mkdir()
            yield part
        here, new = _hashes(out), _hashes(part)
        if here:
            differing = sorted(name for name in here.keys() | new.keys() if here.get(name) != new.get(name))
            _require_same(out, not differing, ", ".join(differing[:5]))
            return
        for name in new:
            _sync(part / name)
        os.replace(part, out)  # also in place of an empty folder
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part(out: Path) -> Path:
    """A name beside `out` for this process alone. What killed ones left there is removed."""
    out = out.resolve()
    mark = f".{out.name}.{platform.node()}."  # of processes of this machine
    for left in out.parent.glob(f"{glob.escape(mark)}*.part"):
        process = left.name.removeprefix(mark).removesuffix(".part")
        if process.isdecimal() and not _is_another(int(process)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return out.parent / f"{mark}{os.getpid()}.part"


def _is_another(process: int) -> bool:
    """Whether this is a living process, and not this one."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's; none that we have named
        return True
    return process != os.getpid()


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A disk that is full, or cannot be written, as an InputError that names the place."""
    try:
        yield
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"{out}: cannot be written ({what})") from None


def _hashes(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file_sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def _require_same(out: Path, same: bool, what: str) -> None:
    if not same:
        raise InputError(f"{out}: exists and holds something else than this export ({what}); choose another --out")


def _sync(file: Path) -> None:
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
