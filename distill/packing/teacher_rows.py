"""What a teacher held likely at the supervised tokens of a batch, for those where it is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from distill.traces.top_k import TopK


@dataclass(frozen=True)
class TeacherTarget:
    """Where the distributions at the first `covered` supervised tokens of a document are; read when a batch is built."""

    file: TopK
    pair: int  # its place in the file
    covered: int
    vocabulary: int  # of the student, in entries

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32[covered, K], logprobs float32[covered, K]).

        The teacher's vocabulary may be padded beyond the student's: what it lists there counts as not listed.
        """
        ids, logprobs = self.file.rows(self.pair, self.covered)
        padding = ids >= self.vocabulary
        if padding.any():
            return np.where(padding, np.int32(-1), ids), np.where(padding, np.float32(-np.inf), logprobs)
        return ids, logprobs


class Taught(Protocol):
    """A document, as far as this file knows one."""

    supervised: int
    teacher: TeacherTarget | None


@dataclass(frozen=True)
class TeacherRows:
    """Of the R supervised rows of a batch, in their order: D with a teacher's distribution and R - D without.

    Shapes and dtypes: rows int64[D] and others int64[R - D] are places among the R; ids int32[D, K], -1 where the teacher
    lists fewer than K; logprobs float32[D, K], -inf there.
    """

    rows: torch.Tensor
    others: torch.Tensor
    ids: torch.Tensor
    logprobs: torch.Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TeacherRows":
        return TeacherRows(**{name: t.to(device, non_blocking=non_blocking) for name, t in vars(self).items()})


def teacher_rows(documents: Sequence[Taught]) -> TeacherRows | None:
    """Of documents laid end to end; None when no teacher's distribution is known at any of their tokens."""
    starts = np.cumsum([0, *(d.supervised for d in documents)])
    taught = [(start, d.teacher) for start, d in zip(starts, documents, strict=False) if d.teacher is not None]
    if not taught:
        return None
    is_taught = np.zeros(starts[-1], dtype=bool)
    for start, teacher in taught:
        is_taught[start : start + teacher.covered] = True
    ids, logprobs = zip(*(teacher.load() for _, teacher in taught), strict=True)
    return TeacherRows(
        rows=torch.from_numpy(np.flatnonzero(is_taught)),
        others=torch.from_numpy(np.flatnonzero(~is_taught)),
        ids=torch.from_numpy(np.concatenate(ids)),
        logprobs=torch.from_numpy(np.concatenate(logprobs)),
    )
