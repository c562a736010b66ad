"""One training row: documents laid end to end, each a world of its own."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from distill.packing.loss_weights import LossWeight, loss_weights
from distill.packing.teacher_rows import TeacherRows, TeacherTarget, teacher_rows

IGNORE = -100


@dataclass(frozen=True)
class Document:
    """One rendered question and answer. Its last token is only ever predicted, so it is not an input."""

    tokens: np.ndarray  # int32[n]: prompt then target
    prompt_length: int
    reasoning_length: int = 0  # supervised tokens, from the first, that are reasoning with its tags
    teacher: TeacherTarget | None = None  # where a teacher's distributions at its supervised tokens are

    @property
    def length(self) -> int:
        """Input rows it takes in a pack: every token but the last."""
        return len(self.tokens) - 1

    @property
    def supervised(self) -> int:
        """Tokens the loss is taken over: the target, end of turn included."""
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True)
class Pack:
    """T tokens of B documents.

    Shapes and dtypes: input_ids, labels, position_ids int64[1, T]; loss_rows int64[R], the rows with a label, so that
    nothing has to ask the device for them; cu_seqlens int32[B + 1]; loss_weights float32[R], or None where all are 1;
    teacher, of those of the R with a teacher's distributions, or None where none has. `labels` are shifted already:
    labels[t] is the token after input_ids[t] in the same document, or -100.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    loss_rows: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    loss_weights: torch.Tensor | None = None
    teacher: TeacherRows | None = None

    @property
    def supervised(self) -> int:
        return len(self.loss_rows)

    def to(self, device: torch.device | str) -> "Pack":
        tensors = {name: t for name, t in vars(self).items() if isinstance(t, torch.Tensor | TeacherRows)}
        return replace(self, **{name: t.to(device, non_blocking=True) for name, t in tensors.items()})


def build_pack(documents: list[Document], loss_weight: LossWeight = "token") -> Pack:
    """Lay `documents` end to end."""
    lengths = [d.length for d in documents]
    cu_seqlens = np.zeros(len(documents) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    input_ids = np.concatenate([d.tokens[:-1] for d in documents]).astype(np.int64)
    labels = np.concatenate([d.tokens[1:] for d in documents]).astype(np.int64)
    position_ids = np.concatenate([np.arange(n) for n in lengths])
    prompt_rows = np.repeat([d.prompt_length - 1 for d in documents], lengths)  # rows whose next token is still prompt
    labels[position_ids < prompt_rows] = IGNORE
    weights = loss_weights([d.supervised for d in documents], [d.reasoning_length for d in documents], loss_weight)
    return Pack(
        input_ids=torch.from_numpy(input_ids)[None],
        labels=torch.from_numpy(labels)[None],
        loss_rows=torch.from_numpy(np.flatnonzero(labels != IGNORE)),
        position_ids=torch.from_numpy(position_ids)[None],
        cu_seqlens=torch.from_numpy(cu_seqlens),
        max_seqlen=max(lengths),
        loss_weights=None if weights is None else torch.from_numpy(weights),
        teacher=teacher_rows(documents),
    )
