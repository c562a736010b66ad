"""The baseline that packing is compared with: one document a row, padded to the longest."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from distill.packing.loss_weights import LossWeight, loss_weights
from distill.packing.pack import IGNORE, Document
from distill.packing.teacher_rows import TeacherRows, teacher_rows


@dataclass(frozen=True)
class PaddedBatch:
    """B documents padded on the right to L tokens: input_ids, labels, attention_mask int64[B, L]; loss_rows int64[R]
    are indices into the flattened rows. Labels are shifted already; loss_weights and teacher are as in a pack."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    loss_rows: torch.Tensor
    attention_mask: torch.Tensor
    loss_weights: torch.Tensor | None = None
    teacher: TeacherRows | None = None

    def to(self, device: torch.device | str) -> "PaddedBatch":
        moved = {name: t.to(device) for name, t in vars(self).items() if isinstance(t, torch.Tensor | TeacherRows)}
        return replace(self, **moved)


def build_padded(documents: list[Document], pad_id: int, loss_weight: LossWeight = "token") -> PaddedBatch:
    longest = max(d.length for d in documents)
    shape = (len(documents), longest)
    input_ids, labels = np.full(shape, pad_id, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for row, document in enumerate(documents):
        n, first = document.length, document.prompt_length - 1
        input_ids[row, :n] = document.tokens[:-1]
        labels[row, first:n] = document.tokens[first + 1 :]
        mask[row, :n] = 1
    weights = loss_weights([d.supervised for d in documents], [d.reasoning_length for d in documents], loss_weight)
    return PaddedBatch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        loss_rows=torch.from_numpy(np.flatnonzero(labels != IGNORE)),
        attention_mask=torch.from_numpy(mask),
        loss_weights=None if weights is None else torch.from_numpy(weights),
        teacher=teacher_rows(documents),
    )
