"""A trace set made from another one: pairs get labels, or are set aside. What is set aside leaves both modes.

    with deriving(source, out, {"step": "verify", ...}) as new:
        if new.finished:
            return new.finished
        ...                                            # look at new.pairs(); a journal may stand in new.path
        return new.commit(lambda index, pair: ..., {"judged": n})

Rows that were set aside before stay so, order is kept, and a teacher's stored distributions follow their pairs. Rows go
from one set to the other one at a time: a set of any size needs the memory of a batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import merge as merge_sorted
from pathlib import Path
from typing import Any

from distill import artifact
from distill.artifact import Artifact, Workspace, workspace
from distill.errors import InputError
from distill.traces.store import KIND, MADE_BY, PAIRS, REJECTED, Rejected, iter_pairs, iter_rejected, write_pairs
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

    def pairs(self) -> Iterator[Pair]:
        """Those of the source, in order."""
        return iter_pairs(self.source.path)

    def commit(
        self,
        change: Callable[[int, Pair], Pair | Rejected],
        summary: dict[str, Any] | Callable[[], dict[str, Any]],
        *,
        remove: tuple[str, ...] = (),
    ) -> Artifact:
        """Write `change(index, pair)` in place of every pair of the source, and finish. Raises InputError when no pair
        is left. `summary` stands beside their counts, and may be a function to call when all are written; `remove` names
        entries of the folder, such as a journal, that are no part of the result."""
        kept: list[int] = []

        def changed() -> Iterator[Pair | Rejected]:
            for index, pair in enumerate(self.pairs()):
                row = change(index, pair)
                if isinstance(row, Pair):
                    kept.append(index)
                yield row

        # Both files of a set have their rows as they were asked: by question, then by sample.
        rows = merge_sorted(changed(), iter_rejected(self.source.path), key=lambda row: (row.place, row.sample))
        counts = write_pairs(self.path, rows)
        if not kept:
            raise InputError(f"{self.source.path}: no pair would be left of {self.source.summary['pairs']}")
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
        about = summary() if callable(summary) else summary
        return self.space.commit(counts | carried | about, remove=remove)


@contextmanager
def deriving(source: Path, out: Path, step: dict[str, Any]) -> Iterator[Derivation]:
    """Open `out` to make the trace set that `step` makes of the one at `source`, or to find it already made.

    The key depends on the source's key, recipe and files and on `step`; so a manifest says how a set was made from the
    start. Raises InputError as artifact.read and workspace do.
    """
    made = artifact.read(source, KIND, made_by=MADE_BY)
    if out.exists() and out.samefile(source):
        raise InputError(f"{out}: is the set that is read; a new one is made of it in another folder")
    files = {name: file["sha256"] for name, file in made.files.items()}
    origin = {"source": made.key, "source_recipe": made.recipe, "files": files}
    with workspace(out, KIND, {"version": VERSION, **origin, **step}, expendable=(PAIRS, REJECTED)) as space:
        if not space.finished:
            made.verify()
        yield Derivation(made, space)
