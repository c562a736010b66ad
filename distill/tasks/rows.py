"""Where rows come from: JSON lines, Parquet, a folder saved by `datasets`, or a data set on the Hub."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distill.artifact import file_sha256
from distill.errors import InputError
from distill.hub import asking_the_hub, looks_like_hub_id
from distill.tasks.jsonl import parse_object, printable, raw_lines

Row = dict[str, Any]
Rows = Iterator[tuple[str, Callable[[], Row]]]
_BATCH = 1024
# What a file begins with that is packed, so that its first line is not called bad JSON.
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
}
# pyarrow raises many kinds for damaged files, some of them Python's own.
_ARROW_ERRORS = (OSError, pa.ArrowException, ValueError, TypeError, KeyError, OverflowError, MemoryError)


class NotLoaded(InputError):
    """The `datasets` library could not load a data set: the Hub is out of reach, or has none of that name."""


@dataclass(frozen=True)
class Source:
    """Rows of one place. `identity` says which data it is, for the key; `prefix` is what of a row's place depends on
    where the data lies. `rows()` gives ("place:row", read it) for every row: reading one may fail without ending the
    others. `columns` are those of a table, None where every row has its own."""

    path: str
    identity: dict[str, str]
    prefix: str
    rows: Callable[[], Rows]
    columns: tuple[str, ...] | None = None

    def require(self, field: str) -> None:
        """Raises InputError when no row can have a field, which may be dotted."""
        if self.columns is not None and field not in self.columns and field.split(".")[0] not in self.columns:
            raise InputError(f"{self.path}: column {field!r} is missing (found {', '.join(self.columns)[:200]})")


def open_source(path: Path, fields: Sequence[str] | None = None) -> Source:
    """The rows at `path`; of tables only the columns of `fields`, which may be dotted.

    `path` is a file, a folder saved by `datasets` or with Parquet files as on the Hub, or a Hub id: `owner/name`,
    `owner/name:config` or `owner/name:config:split`, where the config may be empty. The split is train if not given.
    Raises InputError when there is nothing to read.
    """
    name = printable(path)
    try:
        if path.is_file():
            return _file(path, name, fields)
        exists = path.exists()
        saved = exists and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file())
        files = exists and any(any(folder.glob("*.parquet")) for folder in (path, path / "data"))
    except OSError as error:
        raise InputError(f"{name:.300}: cannot be read ({error.strerror})") from None
    if saved:
        return _data_set(name, f"{path.parent}/", "", fields, lambda datasets: datasets.load_from_disk(str(path)))
    if files:  # as they lie on the Hub
        return _data_set(name, f"{path.parent}/", "", fields, lambda datasets: datasets.load_dataset(str(path)))
    hub_id, *rest = str(path).split(":")
    if exists or len(rest) > 2 or not looks_like_hub_id(hub_id):
        missing = "no data in this folder" if exists else "no such file"
        raise InputError(
            f"{name:.300}: {missing}; expected JSON lines, Parquet, a folder saved by `datasets` or a Hub id "
            "(owner/name)"
        )
    config, split = (*rest, "", "")[:2]
    with asking_the_hub(name):
        return _data_set(name, "", split, fields, lambda datasets: datasets.load_dataset(hub_id, config or None))


def _file(path: Path, name: str, fields: Sequence[str] | None) -> Source:
    with open(path, "rb") as file:
        start = file.read(8)
    for magic, packer in _PACKED.items():
        if start.startswith(magic):
            raise InputError(f"{name}: packed by {packer}; expected JSON lines or Parquet")
    identity = {"source_sha256": file_sha256(path), "source_name": os.path.basename(name)}
    prefix = name.removesuffix(identity["source_name"])
    if path.suffix != ".parquet" and not start.startswith(b"PAR1"):
        return Source(name, identity, prefix, lambda: _json_lines(path, name))
    with _parquet(path, name) as parquet:
        columns = tuple(parquet.schema_arrow.names)
    return Source(name, identity, prefix, lambda: _parquet_rows(path, name, _needed(name, columns, fields)), columns)


def _data_set(name: str, prefix: str, split: str, fields: Sequence[str] | None, load: Callable[[Any], Any]) -> Source:
    import datasets

    wanted, digest = split or "train", hashlib.sha256()
    try:
        data = load(datasets)
        if isinstance(data, datasets.DatasetDict):
            if wanted not in data:
                raise InputError(f"{name}: expected a split named {wanted!r}, found {', '.join(data)}")
            data = data[wanted]
        for file in data.cache_files:
            digest.update(bytes.fromhex(file_sha256(Path(file["filename"]))))
    except InputError:
        raise
    except Exception as error:  # the library raises many kinds: connection, format, missing script
        raise NotLoaded(f"{name}: cannot be loaded with `datasets` ({_said(error)})") from None
    columns = tuple(data.column_names)
    needed = _needed(name, columns, fields)

    def rows() -> Rows:
        batches = data.select_columns(needed).with_format("arrow").iter(batch_size=_BATCH)
        return _table_rows(name, f"{name}:", data.num_rows, _validated(batches))

    content = digest.hexdigest() if data.cache_files else data._fingerprint
    return Source(name, {"source_sha256": content, "source_name": os.path.basename(name)}, prefix, rows, columns)


def _validated(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Arrow files are mapped into memory as they are: a damaged offset would read elsewhere."""
    for batch in batches:
        batch.validate(full=True)
        yield batch


def _needed(name: str, columns: tuple[str, ...], fields: Sequence[str] | None) -> list[str]:
    """The columns that hold `fields`. A name that stands twice among them would hide one of the two."""
    wanted = columns if fields is None else {*fields, *(field.split(".")[0] for field in fields)}
    needed = [column for column in columns if column in wanted]
    for column in needed:
        if needed.count(column) > 1:
            raise InputError(f"{name}: column {column!r} stands twice")
    return needed


def _json_lines(path: Path, name: str) -> Rows:
    for line, raw in raw_lines(path):
        where = f"{name}:{line}"
        yield where, lambda raw=raw, where=where: parse_object(raw, where)


def _parquet(path: Path, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, pre_buffer=False)
    except _ARROW_ERRORS as error:
        raise InputError(f"{name}: cannot be read as Parquet ({_said(error)})") from None


def _parquet_rows(path: Path, name: str, columns: list[str]) -> Rows:
    with _parquet(path, name) as parquet:
        # Without columns the library gives no batches, but there are rows, and none of them has what is looked for.
        if not columns:
            yield from ((f"{name}: row {i + 1}", dict) for i in range(parquet.metadata.num_rows))
            return
        batches = parquet.iter_batches(batch_size=_BATCH, columns=columns)
        yield from _table_rows(name, f"{name}: row ", parquet.metadata.num_rows, batches)


def _table_rows(name: str, place: str, count: int, batches: Iterator[pa.RecordBatch | pa.Table]) -> Rows:
    """Rows of a table of `count` rows. Raises InputError when it ends before, or breaks off."""
    number = 0
    while True:
        try:
            batch = next(batches, None)
        except _ARROW_ERRORS as error:
            raise InputError(f"{name}: cannot be read after row {number} ({_said(error)})") from None
        if batch is None:
            break
        try:
            rows = batch.to_pylist()
        except _ARROW_ERRORS:  # in one of them: text that is not UTF-8, or a time that Python does not know
            rows = [batch.slice(i, 1) for i in range(batch.num_rows)]
        for row in rows:
            number += 1
            where = f"{place}{number}"
            yield (
                where,
                (lambda row=row: row) if isinstance(row, dict) else (lambda row=row, where=where: _one(row, where)),
            )
    if number != count:
        raise InputError(f"{name}: cut off after row {number}; {count} rows are announced")


def _one(batch: pa.RecordBatch | pa.Table, where: str) -> Row:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start} of a field)") from None
    except _ARROW_ERRORS as error:
        raise InputError(f"{where}: cannot be read ({_said(error)})") from None


def _said(error: Exception) -> str:
    """What a library said, on one line."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].encode(errors="replace").decode()[:120]


def parquet_rows(file: Path, schema: pa.Schema | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file: row n", row) of a Parquet file. Raises InputError when it is damaged or does not have `schema`."""
    name = str(file)
    with _parquet(file, name) as parquet:
        if schema is not None:
            _require_schema(file, parquet.schema_arrow, schema)
        columns = list(parquet.schema_arrow.names)
    for where, read in _parquet_rows(file, name, columns):
        yield where, read()


def _require_schema(file: Path, found: pa.Schema, expected: pa.Schema) -> None:
    for field in expected:
        if field.name not in found.names:
            raise InputError(f"{file}: column {field.name!r} is missing (found {', '.join(found.names)})")
        if not found.field(field.name).equals(field):
            raise InputError(
                f"{file}: column {field.name!r}: expected {field.type}, found {found.field(field.name).type}"
            )
