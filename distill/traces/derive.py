"""A trace set made from another one: pairs get labels, or are set aside. What is set aside leaves both modes.

    with deriving(source, out, {"step": "verify", ...}) as new:
        if new.finished:
            return new.finished
        ...                                            # look at new.pairs; a journal may stand in new.path
        return new.commit(lambda index, pair: ..., {"judged": n})

Rows that were set aside before stay so, order is kept, and a teacher's stored distributions follow their pairs.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distill import artifact
from distill.artifact import Artifact, Workspace, workspace
from distill.errors import InputError
from distill.traces.store import KIND, MADE_BY, Rejected, read_pairs, read_rejected, write_pairs
from distill.traces.top_k import read_top_k, top_k_file, write_top_k
from distill.traces.trace import MODES, Pair

VERSION = 1  # part of every key: raise it when the same source and step would give other rows


@dataclass
class Derivation:
    """A trace set being made. `finished` is the artifact when it was there already."""

    source: Artifact
    space: Workspace

    @property
    def finished(self) -> Artifact | None:
        return self.space.finished

    @property
    def path(self) -> Path:
        """The folder being made."""
        return self.space.path

    @cached_property
    def pairs(self) -> list[Pair]:
        """Those of the source."""
        return read_pairs(self.source.path)

    def commit(
        self,
        change: Callable[[int, Pair], Pair | Rejected],
        summary: dict[str, Any],
        *,
        remove: tuple[str, ...] = (),
    ) -> Artifact:
        """Write `change(index, pair)` in place of every pair of the source, and finish. Raises InputError when no pair
        is left. `remove` names entries of the folder, such as a journal, that are no part of the result."""
        changed = [change(index, pair) for index, pair in enumerate(self.pairs)]
        kept = [index for index, row in enumerate(changed) if isinstance(row, Pair)]
        if not kept:
            raise InputError(f"{self.source.path}: no pair would be left of {len(changed)}")
        counts = write_pairs(self.path, in_order([*changed, *read_rejected(self.source.path)]))
        files = read_top_k(self.source.path)
        for mode in MODES if files else ():
            file = files[mode]
            write_top_k(
                top_k_file(self.path, mode),
                [int(file.offsets[i + 1] - file.offsets[i]) for i in kept],
                (file.distributions(i) for i in kept),
                k=file.k,
                temperature=file.temperature,
                vocabulary=file.vocabulary,
            )
        carried = {"top_k": self.source.summary["top_k"]} if files else {}
        questions = {"questions": counts["pairs"] + sum(counts["rejected"].values())}
        return self.space.commit(counts | questions | carried | summary, remove=remove)


def in_order(rows: Iterable[Pair | Rejected]) -> list[Pair | Rejected]:
    """Rows as they were asked: by question, then by sample."""
    return sorted(rows, key=lambda row: (row.place, row.sample))


@contextmanager
def deriving(source: Path, out: Path, step: dict[str, Any]) -> Iterator[Derivation]:
    """Open `out` to make the trace set that `step` makes of the one at `source`, or to find it already made.

    The key depends on the source's key and files and on `step`. Raises InputError as artifact.read and workspace do.
    """
    made = artifact.read(source, KIND, made_by=MADE_BY)
    files = {name: file["sha256"] for name, file in made.files.items()}
    with workspace(out, KIND, {"version": VERSION, "source": made.key, "files": files, **step}) as space:
        yield Derivation(made, space)
