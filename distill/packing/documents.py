"""Rendered documents on disk: tokenized once, then mapped by every training that reads the same ones.

folder/
  tokens.npy             int32[all]
  bounds.npy             int64[2 * pairs + 1]
  prompt_lengths.npy     int32[2 * pairs]
  reasoning_lengths.npy  int32[2 * pairs]
  kept.npy               int32[pairs]
  pair_ids.json          in order

What they mean says `Rendered`. They are written as they are rendered, a chunk at a time, and mapped, not read: neither
takes memory for the tokens. The key holds everything that decides a token: arms, seeds, sizes and devices share them.
"""

import hashlib
import importlib.metadata
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from distill import artifact, console
from distill.artifact import Artifact
from distill.errors import InputError
from distill.packing.chat import LABELLING_VERSION, ChatFormat
from distill.packing.render import MODES, Rendered, Rendering, render, render_parts, rendered_modes, require_enough
from distill.packing.source import TraceSet

KIND = "documents"
MADE_BY = "distill train"
PAIR_IDS = "pair_ids.json"
DTYPES = {name: np.int32 for name in ("tokens", "prompt_lengths", "reasoning_lengths", "kept")} | {"bounds": np.int64}
FILES_VERSION = 2  # part of the key, of documents alone: raise it when the same ones would be other files


def rendered_documents(
    folder: Path | None,
    trace_set: TraceSet,
    chat: ChatFormat,
    how: Rendering,
    *,
    advance: Callable[[int], None] = lambda n: None,
) -> Rendered:
    """`make_documents`, opened; without a folder in memory, and nothing is written."""
    if folder is None:
        return render(trace_set.pairs, chat, how, advance=advance)
    return open_documents(make_documents(folder, trace_set, chat, how, advance=advance))


def make_documents(
    folder: Path,
    trace_set: TraceSet,
    chat: ChatFormat,
    how: Rendering,
    *,
    advance: Callable[[int], None] = lambda n: None,
) -> Path:
    """Render all pairs into a subfolder of `folder` that is named by their key, or find and verify it there.

    Of several processes that call this at once, on one machine or over a shared disk, one renders and the others wait
    for it. Raises InputError as `render` does, then leaving nothing behind, and for a damaged file.
    """
    recipe = documents_recipe(trace_set, chat, how)
    path = folder / artifact.content_key(KIND, recipe)[:16]
    with artifact.workspace(path, KIND, recipe, expendable=(*map(_file, DTYPES), PAIR_IDS)) as work:
        if work.finished:
            work.finished.verify()
            _require_vocabulary(work.finished, chat, how.vocab_size)
            console.note(f"{path}: already tokenized")
            advance(len(trace_set.pairs))
            return path
        parts = render_parts(trace_set.pairs, chat, how, advance=advance)
        try:
            summary = _write(path, parts)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
        require_enough(summary["dropped"], len(trace_set.pairs), how.max_length)
        work.commit(summary)
    return path


def open_documents(path: Path) -> Rendered:
    """The documents that `make_documents` made there, mapped. Raises InputError for files of another size or content."""
    made = artifact.read(path, KIND, made_by=MADE_BY)
    arrays = {}
    for name, dtype in DTYPES.items():
        file = path / _file(name)
        try:
            mapped = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: cannot be read ({error}); delete {path} and run again") from None
        if mapped.ndim != 1 or mapped.dtype != dtype:
            raise InputError(f"{file}: expected one row of {np.dtype(dtype)}; delete {path} and run again")
        arrays[name] = mapped.view(np.ndarray)  # a plain array over the mapped file: slices of it are cheap
    pair_ids = artifact.read_json(path / PAIR_IDS)
    documents, bounds = len(MODES) * len(pair_ids), arrays["bounds"]
    sizes = {len(bounds) - 1, len(arrays["prompt_lengths"]), len(arrays["reasoning_lengths"]), 2 * len(arrays["kept"])}
    if sizes != {documents} or bounds[0] != 0 or bounds[-1] != len(arrays["tokens"]):
        raise InputError(f"{path}: its files disagree on how many documents there are; delete it and run again")
    dropped = {name: made.summary[name] for name in ("dropped", "dropped_tokens")}
    return Rendered(**arrays, pair_ids=pair_ids, **dropped)


def documents_recipe(trace_set: TraceSet, chat: ChatFormat, how: Rendering) -> dict[str, Any]:
    """Everything that the documents depend on."""
    names = "\n".join(pair.problem.id for pair in trace_set.pairs)
    return {
        "traces": trace_set.key,
        "pairs": hashlib.sha256(names.encode()).hexdigest(),
        "answers": how.answers,
        "modes": list(rendered_modes(chat, how.modes)),
        "max_length": how.max_length,
        "template": chat.tokenizer.chat_template,
        "rendered": chat.rendered,
        "think": vars(chat.think),
        "end_of_turn": chat.end_of_turn,
        "tokenizer": tokenizer_identity(chat.tokenizer),
        "labelling_version": LABELLING_VERSION,
        "files_version": FILES_VERSION,
        "versions": {name: importlib.metadata.version(name) for name in ("tokenizers", "transformers")},
    }


def tokenizer_identity(tokenizer: Any) -> str:
    """SHA-256 of all that decides which ids a text becomes."""
    digest = hashlib.sha256()
    if tokenizer.is_fast:
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
        digest.update(b"special tokens split" if tokenizer.split_special_tokens else b"")
    else:  # no serialisation but its files
        with tempfile.TemporaryDirectory(prefix="distill-tokenizer-") as folder:
            tokenizer.save_pretrained(folder)
            for file in sorted(Path(folder).rglob("*")):
                digest.update(file.name.encode() + (file.read_bytes() if file.is_file() else b""))
    digest.update(artifact.canonical_json(tokenizer.special_tokens_map).encode())
    return digest.hexdigest()


def _file(name: str) -> str:
    return f"{name}.npy"


def _write(path: Path, parts: Iterable[Rendered]) -> dict[str, Any]:
    """Append part after part to the files. Returns the summary."""
    pair_ids: list[str] = []
    dropped = dropped_tokens = largest = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(_Array(path / _file(name), dtype)) for name, dtype in DTYPES.items()}
        files["bounds"].append(np.zeros(1, np.int64))
        for part in parts:
            files["bounds"].append(part.bounds[1:] + files["tokens"].length)
            for name in ("tokens", "prompt_lengths", "reasoning_lengths"):
                files[name].append(getattr(part, name))
            files["kept"].append(part.kept + (len(pair_ids) + dropped))
            pair_ids += part.pair_ids
            dropped, dropped_tokens = dropped + part.dropped, dropped_tokens + part.dropped_tokens
            largest = max(largest, int(part.tokens.max(initial=0)))
        tokens = files["tokens"].length
    artifact.write_json(path / PAIR_IDS, pair_ids)
    counts = {"pairs": len(pair_ids), "tokens": tokens, "largest_token": largest}
    return {**counts, "dropped": dropped, "dropped_tokens": dropped_tokens}


class _Array:
    """A one-dimensional .npy file whose length is known at its end."""

    def __init__(self, path: Path, dtype: type):
        self.path, self.dtype, self.length = path, np.dtype(dtype), 0

    def __enter__(self) -> "_Array":
        self.file = open(self.path, "wb")
        self._header()
        self.begin = self.file.tell()
        return self

    def __exit__(self, *_: object) -> None:
        with self.file:
            self.file.seek(0)
            self._header()
            if self.file.tell() != self.begin:  # numpy leaves room for any length
                raise RuntimeError(f"{self.path}: the header grew")

    def append(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values, self.dtype).data)
        self.length += len(values)

    def _header(self) -> None:
        np.lib.format.write_array_header_1_0(
            self.file, {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        )


def _require_vocabulary(made: Artifact, chat: ChatFormat, vocab_size: int) -> None:
    if made.summary["largest_token"] >= vocab_size:
        raise InputError(
            f"{chat.source}: tokenizer and model disagree: token id {made.summary['largest_token']} is in its documents, "
            f"but the model's vocabulary has {vocab_size} entries"
        )
