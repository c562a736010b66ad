"""Where rows come from: JSON lines, Parquet, a folder saved by `datasets`, or a data set on the Hub."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distill.artifact import file_sha256
from distill.errors import InputError
from distill.hub import looks_like_hub_id
from distill.tasks.jsonl import parse_object, raw_lines

Row = dict[str, Any]
_BATCH = 1024


@dataclass(frozen=True)
class Source:
    """Rows of one place. `identity` says which data it is, for the key; `prefix` is what of a row's place depends on
    where the data lies. `rows()` gives ("place:row", read it) for every row: reading one may fail without ending the
    others."""

    identity: dict[str, str]
    prefix: str
    rows: Callable[[], Iterator[tuple[str, Callable[[], Row]]]]


def open_source(path: Path, layout: str) -> Source:
    """Raises InputError when there is nothing to read at `path`."""
    if path.is_file():
        identity = {"source_sha256": file_sha256(path), "source_name": path.name}
        read = _parquet if path.suffix == ".parquet" else _json_lines
        return Source(identity, f"{path.parent}/", lambda: read(path))
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _data_set(str(path), lambda datasets: datasets.load_from_disk(str(path)))
    if not looks_like_hub_id(str(path)):
        raise InputError(
            f"{path}: no such file; expected JSON lines, Parquet, a folder saved by `datasets` or a Hub id (owner/name), in layout {layout}"
        )
    return _data_set(str(path), lambda datasets: datasets.load_dataset(str(path)))


def _data_set(name: str, load: Callable[[Any], Any]) -> Source:
    import datasets

    try:
        data = load(datasets)
    except Exception as error:  # the library raises many kinds: connection, format, missing script
        raise InputError(f"{name}: cannot be loaded with `datasets` ({str(error).strip().splitlines()[0]})") from None
    if isinstance(data, datasets.DatasetDict):
        if "train" not in data:
            raise InputError(f"{name}: expected a split named 'train', found {', '.join(data)}")
        data = data["train"]

    def rows() -> Iterator[tuple[str, Callable[[], Row]]]:
        for number, row in enumerate(data):
            yield f"{name}:{number + 1}", lambda row=row: row

    return Source({"source_fingerprint": data._fingerprint}, "", rows)


def _parquet(path: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    for where, row in parquet_rows(path):
        yield where, lambda row=row: row


def _json_lines(path: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    for line, raw in raw_lines(path):
        where = f"{path}:{line}"
        yield where, lambda raw=raw, where=where: parse_object(raw, where)


def parquet_rows(file: Path, schema: pa.Schema | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file: row n", row) of a Parquet file. Raises InputError when it is damaged or does not have `schema`."""
    try:
        with pq.ParquetFile(file) as parquet:
            if schema is not None:
                _require_schema(file, parquet.schema_arrow, schema)
            number = 0
            for batch in parquet.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}: row {number}", row
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        what = (
            os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).split("\n")[0][:120]
        )
        raise InputError(f"{file}: cannot be read as Parquet ({what})") from None


def _require_schema(file: Path, found: pa.Schema, expected: pa.Schema) -> None:
    for field in expected:
        if field.name not in found.names:
            raise InputError(f"{file}: column {field.name!r} is missing (found {', '.join(found.names)})")
        if not found.field(field.name).equals(field):
            raise InputError(
                f"{file}: column {field.name!r}: expected {field.type}, found {found.field(field.name).type}"
            )
