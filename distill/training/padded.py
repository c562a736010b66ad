"""The baseline that packing is compared with: one document a row, padded to the longest."""

from dataclasses import dataclass

import numpy as np
import torch

from distill.packing.pack import IGNORE, Document


@dataclass(frozen=True)
class PaddedBatch:
    """B documents padded on the right to L tokens: input_ids, labels, attention_mask int64[B, L]; loss_rows int64[R]
    are indices into the flattened rows. Labels are shifted already, as in a pack."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    loss_rows: torch.Tensor
    attention_mask: torch.Tensor

    def to(self, device: torch.device | str) -> "PaddedBatch":
        return PaddedBatch(*(t.to(device) for t in (self.input_ids, self.labels, self.loss_rows, self.attention_mask)))


def build_padded(documents: list[Document], pad_id: int) -> PaddedBatch:
    longest = max(d.length for d in documents)
    shape = (len(documents), longest)
    input_ids, labels = np.full(shape, pad_id, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for row, document in enumerate(documents):
        n, first = document.length, document.prompt_length - 1
        input_ids[row, :n] = document.tokens[:-1]
        labels[row, first:n] = document.tokens[first + 1 :]
        mask[row, :n] = 1
    return PaddedBatch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        loss_rows=torch.from_numpy(np.flatnonzero(labels != IGNORE)),
        attention_mask=torch.from_numpy(mask),
    )
