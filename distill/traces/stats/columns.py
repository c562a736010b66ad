"""A trace set as arrays of one entry a row, for counting: texts are looked at a batch at a time and never kept.

Some hundred bytes a row stay in memory, whatever the length of its texts.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.errors import InputError
from distill.tasks.answers import final_answer
from distill.tasks.checkers import VERSION as CHECKERS_VERSION
from distill.tasks.checkers import labels
from distill.tasks.final_number import final_number
from distill.tasks.letters import option_letter
from distill.traces.bill import GOLD
from distill.traces.store import PAIRS, REJECTED, iter_columns
from distill.traces.trace import MODES, Mode

AGREEMENT_VERSION = (1, CHECKERS_VERSION)  # of `agree`, for keys of what goes by it: raise it when it says otherwise
CountTokens = Callable[[list[str]], list[int]]
UNKNOWN = -1  # a number of tokens, or a verdict, that is not there
OTHER = "(other)"
_COUNTS = ("prompt_tokens", "reasoning_tokens", "answer_tokens")
_TRACE_FIELDS = ("reasoning", "answer", "finish_reason", "teacher", *_COUNTS, "cost_usd", "verified", "verdict")
_MOST_NAMES = 1000


@dataclass
class Names:
    """Texts that repeat, as codes. What comes after the first thousand different ones is OTHER."""

    texts: list[str] = field(default_factory=list)
    _code: dict[str, int] = field(default_factory=dict)

    def code(self, text: str) -> int:
        if text not in self._code:
            if len(self.texts) >= _MOST_NAMES and text != OTHER:
                return self.code(OTHER)
            self._code[text] = len(self.texts)
            self.texts.append(text)
        return self._code[text]

    def codes(self, column: pa.Array, name: Callable[[str], str] = str) -> np.ndarray:
        """int32[n]; UNKNOWN where the column has nothing."""
        found = pc.dictionary_encode(column)
        table = np.array([self.code(name(text)) for text in found.dictionary.to_pylist()] + [UNKNOWN], dtype=np.int32)
        return table[pc.fill_null(found.indices, len(table) - 1).to_numpy(zero_copy_only=False)]


@dataclass(frozen=True)
class Side:
    """The traces of one mode, n rows; a row of rejected.parquet may have none."""

    there: np.ndarray  # bool
    given: np.ndarray  # bool: the gold answer, for which nobody was asked
    stopped: np.ndarray  # bool: the teacher ended by itself
    cut_off: np.ndarray  # bool: by the token limit
    reasoning_characters: np.ndarray  # int64
    answer_characters: np.ndarray  # int64
    prompt_tokens: np.ndarray  # int64 or UNKNOWN, as the next two
    reasoning_tokens: np.ndarray
    answer_tokens: np.ndarray
    cost_usd: np.ndarray  # float64; nan where it is not known
    verified: np.ndarray  # int8: 1, 0 or UNKNOWN
    verdict: np.ndarray  # int32: code of a verdict's kind, or UNKNOWN

    @property
    def answered(self) -> np.ndarray:
        """bool[n]: the teacher gave an answer, whole or cut off."""
        return self.there & ~self.given & (self.stopped | self.cut_off)


@dataclass(frozen=True)
class Rows:
    """One file of a trace set. `names` are the texts behind codes."""

    place: np.ndarray  # int64: of the question
    sample: np.ndarray  # int32
    sides: dict[Mode, Side]
    # Of pairs: task, answer_format, agree, same_text. Of rejected rows: reason, mode, is_question.
    columns: dict[str, np.ndarray]
    names: dict[str, Names]
    ids: pa.ChunkedArray | None  # of pairs

    def __len__(self) -> int:
        return len(self.place)


def read_columns(path: Path, count: CountTokens | None) -> tuple[Rows, Rows]:
    """(pairs, rejected rows) of a finished trace set. Tokens of reasoning and answer are the teacher's, or what `count`
    says of their texts. Raises InputError for a set that is not finished or damaged."""
    names = {name: Names() for name in ("task", "answer_format", "reason", "mode", "teacher", "verdict")}
    return _read(path, PAIRS, names, count), _read(path, REJECTED, names, count)


def _read(path: Path, name: str, names: dict[str, Names], count: CountTokens | None) -> Rows:
    own = ("id", "task", "answer_format") if name == PAIRS else ("id", "reason", "mode")
    fields = [f"{mode}.{part}" for mode in MODES for part in _TRACE_FIELDS]
    parts: dict[str, list[np.ndarray]] = {}
    ids: list[pa.Array] = []
    try:
        for batch in iter_columns(path, name, [*own, "place", "sample", *fields]):
            for column, values in _batch(batch, own, names, count):
                parts.setdefault(column, []).append(values)
            if name == PAIRS:
                ids.append(batch.column("id"))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        what = str(error).partition("\n")[0][:120]
        raise InputError(f"{path / name}: cannot be read as Parquet ({what})") from None
    if not parts:
        empty = pa.RecordBatch.from_pylist([], schema=_no_rows(own, fields))
        parts = {column: [values] for column, values in _batch(empty, own, names, None)}
    whole = {column: np.concatenate(parts.pop(column)) for column in list(parts)}
    sides = {mode: Side(**{part: whole.pop(f"{mode}.{part}") for part in Side.__dataclass_fields__}) for mode in MODES}
    place, sample = whole.pop("place"), whole.pop("sample")
    return Rows(place, sample, sides, whole, names, pa.chunked_array(ids, pa.string()) if name == PAIRS else None)


def _no_rows(own: tuple[str, ...], fields: list[str]) -> pa.Schema:
    kinds = dict.fromkeys(_COUNTS, pa.int64()) | {"cost_usd": pa.float64(), "verified": pa.bool_()}
    parts = [pa.field(name, kinds.get(name, pa.large_string())) for name in _TRACE_FIELDS]
    texts = [pa.field(name, pa.large_string()) for name in own]
    numbers = [pa.field("place", pa.int64()), pa.field("sample", pa.int32())]
    return pa.schema([*texts, *numbers, *(pa.field(mode, pa.struct(parts)) for mode in MODES)])


def _batch(
    batch: pa.RecordBatch, own: tuple[str, ...], names: dict[str, Names], count: CountTokens | None
) -> Iterator[tuple[str, np.ndarray]]:
    """(column, its values) of some rows."""
    for name in ("place", "sample"):
        yield name, batch.column(name).to_numpy(zero_copy_only=False)
    for name in own:
        if name in names:
            yield name, names[name].codes(batch.column(name))
    for mode in MODES:
        for name, values in _side(batch.column(mode), names, count):
            yield f"{mode}.{name}", values
    if "reason" in own:
        yield "is_question", _filled(pc.is_valid(batch.column("id")), False)
    else:
        same, agree = _agreement(batch)
        yield "same_text", same
        yield "agree", agree


def _side(
    column: pa.StructArray, names: dict[str, Names], count: CountTokens | None
) -> Iterator[tuple[str, np.ndarray]]:
    part = {name: pc.struct_field(column, name) for name in _TRACE_FIELDS}
    yield "there", _filled(pc.is_valid(column), False)
    yield "given", _filled(pc.equal(part["teacher"], GOLD), False)
    yield "stopped", _filled(pc.equal(part["finish_reason"], "stop"), False)
    yield "cut_off", _filled(pc.equal(part["finish_reason"], "length"), False)
    for name in ("reasoning", "answer"):
        yield f"{name}_characters", _filled(pc.utf8_length(part[name]), 0).astype(np.int64)
    for name in _COUNTS:
        of_text = part.get(name.removesuffix("_tokens"))
        given = count is None or of_text is None
        yield name, np.maximum(_filled(part[name], UNKNOWN), UNKNOWN) if given else _counted(of_text, count)
    yield "cost_usd", _filled(part["cost_usd"], np.nan)
    yield "verified", _filled(pc.cast(part["verified"], pa.int8()), UNKNOWN)
    yield "verdict", names["verdict"].codes(part["verdict"], _kind_of_verdict)
    names["teacher"].codes(part["teacher"])


def _filled(column: pa.Array, value: Any) -> np.ndarray:
    return pc.fill_null(column, value).to_numpy(zero_copy_only=False)


def _counted(texts: pa.Array, count: CountTokens) -> np.ndarray:
    values = np.full(len(texts), UNKNOWN, dtype=np.int64)
    there = _filled(pc.is_valid(texts), False)
    values[there] = count(texts.drop_null().to_pylist())
    return values


def _kind_of_verdict(text: str) -> str:
    """Verdicts that differ only in their numbers are of one kind."""
    return re.sub(r"[0-9]+", "#", " ".join(text[:200].split()))[:80]


def agree(left: str, right: str, answer_format: str) -> bool:
    """Whether the answers of both modes say the same, as the statistics count it."""
    return final_answer(left) == final_answer(right) or _say_the_same(left, right, answer_format)


def _agreement(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """(whether both modes give the same text, whether they say the same), bool[n] each."""
    one, other = (pc.struct_field(batch.column(mode), "answer") for mode in MODES)
    same = _filled(pc.equal(one, other), False).copy()
    agree = same.copy()
    differ = np.flatnonzero(~same)
    texts = (column.take(pa.array(differ)).to_pylist() for column in (one, other, batch.column("answer_format")))
    for row, left, right, answer_format in zip(differ, *texts, strict=True):
        same[row] = final_answer(left) == final_answer(right)
        agree[row] = same[row] or _say_the_same(left, right, answer_format)
    return same, agree


def _say_the_same(left: str, right: str, answer_format: str) -> bool:
    if answer_format == "labels":  # a list that is written out tells how to read one that is not
        return labels(left, right).correct or labels(right, left).correct
    read = {"open": final_number, "choice": option_letter}.get(answer_format)
    found = read and read(left)
    return found is not None and found == read(right)
