"""answers.parquet: every graded answer of an evaluation, one row a question."""

from dataclasses import asdict, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distill.errors import InputError
from distill.evaluation.answers import Answer

_SCHEMA = pa.schema(
    [
        (field.name, {str: pa.string(), int: pa.int64(), bool: pa.bool_(), float: pa.float64()}.get(field.type))
        if field.name != "token_ids"
        else ("token_ids", pa.list_(pa.int32()))
        for field in fields(Answer)
    ]
)


def write_answers(path: Path, answers: list[Answer]) -> None:
    pq.write_table(pa.Table.from_pylist([asdict(a) for a in answers], schema=_SCHEMA), path, compression="zstd")


def read_answers(path: Path) -> list[Answer]:
    """The graded answers of a finished evaluation. Raises InputError when the file is not one."""
    try:
        return [Answer(**row) for row in pq.read_table(path, schema=_SCHEMA).to_pylist()]
    except (OSError, pa.ArrowInvalid, TypeError) as error:
        raise InputError(f"{path}: not a file of answers ({str(error).splitlines()[0]})") from None
