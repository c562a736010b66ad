"""answers.parquet: every graded answer of an evaluation, one row a question, sample and thinking budget."""

from dataclasses import fields
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distill.errors import InputError
from distill.evaluation.answers import Answer, Think, shared

KIND = "evaluation"  # of artifact
_ROWS = 1_000  # that are taken out of a file at a time

_ARROW = {
    str: pa.string(),
    Think: pa.string(),
    int: pa.int64(),
    int | None: pa.int64(),
    bool: pa.bool_(),
    float: pa.float64(),
    str | None: pa.string(),
    list[int]: pa.list_(pa.int32()),
    dict[str, float]: pa.map_(pa.string(), pa.float64()),
}
_SCHEMA = pa.schema([(field.name, _ARROW[field.type]) for field in fields(Answer)])


def write_answers(path: Path, answers: list[Answer]) -> None:
    pq.write_table(pa.Table.from_pylist([vars(a) for a in answers], schema=_SCHEMA), path, compression="zstd")


def read_answers(path: Path) -> list[Answer]:
    """The graded answers of a finished evaluation. Raises InputError when the file is not one."""
    try:
        missing = set(_SCHEMA.names) - set(pq.read_schema(path).names)
        if missing:  # they would be read as null
            raise InputError(
                f"{path}: has no column {', '.join(sorted(missing))}; made by another version: evaluate again"
            )
        batches = pq.read_table(path, schema=_SCHEMA).to_batches(_ROWS)
        rows = chain.from_iterable(batch.to_pylist(maps_as_pydicts="strict") for batch in batches)
        return [Answer(**row | {"token_ids": shared(row["token_ids"])}) for row in rows]
    except (OSError, pa.ArrowInvalid, TypeError) as error:
        raise InputError(f"{path}: not a file of answers ({str(error).splitlines()[0]})") from None
