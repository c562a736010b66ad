"""A teacher's distributions: at every token it generated, the K most likely ids and their log-probabilities.

Beside pairs.parquet lies one file a mode, reasoning.top_k.safetensors and ift.top_k.safetensors:

    offsets    int64[pairs + 1]   the tokens of pair i are rows offsets[i] to offsets[i + 1]
    token_ids  int32[n]           what the teacher generated: reasoning, its tags, answer, end of turn
    ids        int32[n, K]        the most likely first; -1 where the teacher lists fewer than K
    logprobs   float16[n, K]      natural logarithms; -inf where there is no id
    rest       float32[n]         the same of the mass that is not listed

with K, the temperature they were captured at and the teacher's vocabulary in the file's metadata. Rounded to float16,
probabilities add up to something else than they did, by more than the mass of the rest where a teacher is sure. So
that mass is kept apart, and what is read is scaled to leave it. The files are written a pair at a time and read
through a memory map, so that neither needs the memory of more than one pair.
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from distill import artifact
from distill.errors import InputError
from distill.traces.store import KIND, MADE_BY
from distill.traces.trace import MODES, Mode
from distill.traces.vocabulary import Vocabulary

_DTYPES = {"token_ids": "<i4", "ids": "<i4", "logprobs": "<f2", "rest": "<f4"}
_KINDS = {"<i4": "I32", "<f2": "F16", "<f4": "F32"}
_FLOOR = float(np.finfo(np.float32).eps)  # of the rest: a difference from 1 is not known below
_CLAMPED = -9999.0  # what vLLM sends in place of minus infinity, which JSON cannot hold


@dataclass(frozen=True)
class Distributions:
    """Of the n tokens of one answer: token_ids int32[n], ids int32[n, K], logprobs float16[n, K], rest float32[n]."""

    token_ids: np.ndarray
    ids: np.ndarray
    logprobs: np.ndarray
    rest: np.ndarray
    temperature: float  # the teacher's logits were divided by it

    @classmethod
    def of(cls, token_ids: Any, ids: Any, logprobs: np.ndarray, temperature: float) -> "Distributions":
        """From logprobs float64[n, K], the most likely first, -inf where there is no id."""
        rest = np.log(np.maximum(1 - np.exp(logprobs).sum(1), _FLOOR))
        arrays = {"token_ids": token_ids, "ids": ids, "logprobs": np.minimum(logprobs, 0.0), "rest": rest}
        return cls(**{name: np.asarray(a, _DTYPES[name]) for name, a in arrays.items()}, temperature=temperature)

    @classmethod
    def read(cls, entries: list[Any], token_ids: list[int], k: int, temperature: float = 1.0) -> "Distributions":
        """From the `logprobs.content` of a chat completion whose tokens are written `token_id:ID`.

        vLLM puts the sampled token first, whether or not it is among the most likely; so more than `k` must have been
        asked for to have the `k` most likely for certain. Raises ValueError for anything else than that.
        """
        try:
            named = [entry["token"] for entry in entries]
            tops = [entry["top_logprobs"] for entry in entries]
            counts = np.array([len(top) for top in tops], dtype=np.int64)
            flat = [one for top in tops for one in top]
            ids = np.array([_token_id(one["token"]) for one in flat], dtype=np.int64)
            values = np.array([one["logprob"] for one in flat], dtype=np.float64)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"a malformed log-probability entry ({type(error).__name__}: {error})") from None
        if np.isnan(values).any():
            raise ValueError("a log-probability that is not a number")
        if named != [f"token_id:{token}" for token in token_ids]:
            raise ValueError(f"{len(entries)} log-probability entries for {len(token_ids)} tokens, or of other tokens")
        wide_ids, wide = _in_rows(ids, counts, k, -1), _in_rows(values, counts, k, -np.inf)
        order = np.lexsort((wide_ids, -wide))[:, :k]
        ids, logprobs = np.take_along_axis(wide_ids, order, 1), np.take_along_axis(wide, order, 1)
        logprobs[logprobs <= _CLAMPED] = -np.inf
        ids[np.isneginf(logprobs)] = -1
        with np.errstate(over="ignore"):
            mass = np.exp(logprobs).sum(1)
        repeated = np.sort(ids, axis=1)
        repeated = ((repeated[:, 1:] == repeated[:, :-1]) & (repeated[:, 1:] >= 0)).any(1)
        for wrong, what in (
            (~(mass <= 1.02), "probabilities that add up to more than 1: logits?"),  # nan included
            (mass == 0, "no log-probabilities"),
            (repeated, "one id twice"),
        ):
            if wrong.any():
                raise ValueError(f"{what} (token {int(wrong.argmax()) + 1})")
        return cls.of(token_ids, ids, logprobs, temperature)

    def to_json(self) -> dict[str, Any]:
        """For a journal: the arrays' bytes as base64."""
        coded = {name: base64.b64encode(getattr(self, name).tobytes()).decode() for name in _DTYPES}
        return {"k": self.ids.shape[1], "temperature": self.temperature, **coded}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Distributions":
        arrays = {name: np.frombuffer(base64.b64decode(value[name]), dtype) for name, dtype in _DTYPES.items()}
        arrays |= {name: arrays[name].reshape(-1, value["k"]) for name in ("ids", "logprobs")}
        return cls(**arrays, temperature=value["temperature"])


def _in_rows(values: np.ndarray, counts: np.ndarray, least: int, fill: float) -> np.ndarray:
    """[n, m] of values end to end, counts[i] of them in row i and then `fill`; m is at least `least`."""
    rows = np.full((len(counts), max(least, counts.max(initial=0))), fill, dtype=values.dtype)
    rows[np.arange(rows.shape[1]) < counts[:, None]] = values
    return rows


def _token_id(text: str) -> int:
    prefix, _, number = text.partition("token_id:")
    if prefix or not number.isdecimal() or int(number) >= 2**31:
        raise ValueError(f"a token written {text!r}, expected token_id:ID")
    return int(number)


def top_k_file(folder: Path, mode: Mode) -> Path:
    return folder / f"{mode}.top_k.safetensors"


def write_top_k(
    path: Path,
    lengths: list[int],
    answers: Iterable[Distributions],
    *,
    k: int,
    temperature: float,
    vocabulary: Vocabulary,
) -> None:
    """Write one mode's file from the answers of the pairs in order, of so many tokens each. The same answers give the
    same bytes. Raises InputError when it cannot be written."""
    offsets = np.zeros(len(lengths) + 1, dtype="<i8")
    np.cumsum(lengths, out=offsets[1:])
    n = int(offsets[-1])
    shapes = {"offsets": ("I64", [len(offsets)])}
    shapes |= {name: (_KINDS[dtype], _shape(name, n, k)) for name, dtype in _DTYPES.items()}
    about = {"k": k, "temperature": temperature, "vocabulary_size": vocabulary.size}
    about["vocabulary_sha256"] = vocabulary.sha256
    header: dict[str, Any] = {"__metadata__": {name: str(value) for name, value in about.items()}}
    end = 0
    for name, (kind, shape) in shapes.items():
        start, end = end, end + int(np.prod(shape)) * int(kind[1:]) // 8
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format's own padding: arrays start at a multiple of 8
    try:
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text + offsets.tobytes())
            places = {name: 8 + len(text) + header[name]["data_offsets"][0] for name in _DTYPES}
            for answer in answers:
                for name, place in places.items():
                    file.seek(place)
                    places[name] += file.write(getattr(answer, name).tobytes())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def _shape(name: str, n: int, k: int) -> list[int]:
    return [n, k] if name in ("ids", "logprobs") else [n]


class TopK:
    """One mode's file, memory-mapped; `pair` is the place of a pair among those of the trace set."""

    def __init__(self, path: Path):
        """Raises InputError when the file is damaged or of another layout."""
        try:
            self._file = safe_open(str(path), framework="numpy")
            about = self._file.metadata() or {}
            self.k, self.temperature = int(about["k"]), float(about["temperature"])
            self.vocabulary = Vocabulary(int(about["vocabulary_size"]), about["vocabulary_sha256"])
            self.offsets = self._file.get_tensor("offsets")  # int64[pairs + 1]
            self._arrays = {name: self._file.get_slice(name) for name in _DTYPES}
            found = {name: (array.get_dtype(), array.get_shape()) for name, array in self._arrays.items()}
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as a teacher's log-probabilities ({error})") from None
        n = int(self.offsets[-1])
        expected = {name: (_KINDS[dtype], _shape(name, n, self.k)) for name, dtype in _DTYPES.items()}
        if found != expected or self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise InputError(f"{path}: damaged: offsets, token ids and log-probabilities do not fit each other")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def _span(self, pair: int) -> tuple[int, int]:
        return int(self.offsets[pair]), int(self.offsets[pair + 1])

    def _rows(self, name: str, start: int, end: int) -> np.ndarray:
        """An empty slice at the very end, which safetensors refuses, is an empty array too."""
        array = self._arrays[name]
        return array[start:end] if start < end else np.empty((0, *array.get_shape()[1:]), _DTYPES[name])

    def token_ids(self, pair: int) -> np.ndarray:
        """int32[n]: what the teacher generated."""
        return self._rows("token_ids", *self._span(pair))

    def distributions(self, pair: int) -> Distributions:
        """All that is stored of a pair, as it is stored."""
        span = self._span(pair)
        return Distributions(**{name: self._rows(name, *span) for name in _DTYPES}, temperature=self.temperature)

    def rows(self, pair: int, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32[n, K], logprobs float32[n, K]) at the tokens of a pair, or at the first `count` of them."""
        start, end = self._span(pair)
        end = end if count is None else min(end, start + count)
        ids, logprobs, rest = (self._rows(name, start, end) for name in ("ids", "logprobs", "rest"))
        wide = logprobs.astype(np.float64)
        listed = np.exp(wide).sum(1)
        return ids, (wide + np.log((1 - np.exp(rest.astype(np.float64))) / listed)[:, None]).astype(np.float32)


def read_top_k(path: Path) -> dict[Mode, TopK] | None:
    """Both modes' files of a finished trace set; None where nothing was captured. Raises InputError as TopK does."""
    made = artifact.read(path, KIND, made_by=MADE_BY)
    files = {mode: top_k_file(path, mode) for mode in MODES}
    if not all(file.name in made.files for file in files.values()):
        return None
    return {mode: TopK(file) for mode, file in files.items()}
