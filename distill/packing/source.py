"""A trace set as training sees it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill import artifact
from distill.traces.store import read_pairs
from distill.traces.trace import Pair


@dataclass(frozen=True)
class TraceSet:
    """The pairs of a finished trace set and the key that names them."""

    key: str
    pairs: list[Pair]
    path: Path

    def texts(self) -> Iterator[str]:
        """Every text a student will see, for training a tokenizer."""
        for pair in self.pairs:
            yield from (pair.problem.prompt, pair.problem.gold)
            yield from (pair.reasoning.reasoning, pair.reasoning.answer, pair.ift.answer)


def read_traces(path: Path) -> TraceSet:
    """Raises InputError when `path` is not a finished trace set or a row of it is malformed."""
    return TraceSet(artifact.read(path, "traces", made_by="distill traces generate").key, read_pairs(path), path)
