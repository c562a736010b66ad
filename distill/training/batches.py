"""What a rank runs of a step: rows dealt out by what they cost, in as many batches as every other rank has.

Packed, a batch is a row. Padded, it is as many documents as fit into row_tokens once they are as long as the longest.
"""

import numpy as np

from distill.flops import ModelShape
from distill.packing.balance import balance
from distill.packing.pack import Document
from distill.training.settings import TrainSettings


def batches_of_rank(
    rows: list[list[Document]], settings: TrainSettings, shape: ModelShape, *, rank: int, world: int
) -> list[list[Document]]:
    """The batches of rank number `rank` of `world`, in the order they are run; an empty one where it has none left."""
    if settings.packed:
        if world == 1:
            return rows
        costs = [shape.training_flops([d.length for d in row], sum(d.supervised for d in row)) for row in rows]
        groups = balance(rows, np.array(costs), world, seed=settings.seed)
        return [group[rank] if rank < len(group) else [] for group in groups]
    documents = [row[0] for row in rows]
    if world == 1:
        return _cut(documents, settings.row_tokens)
    documents.sort(key=lambda d: -d.length)  # what is computed at the same time is about as long
    shares = [_cut(documents[first::world], settings.row_tokens) for first in range(world)]
    most = max(map(len, shares))
    return shares[rank] + [[]] * (most - len(shares[rank]))


def _cut(documents: list[Document], row_tokens: int) -> list[list[Document]]:
    """As many documents together as fit into `row_tokens` once padded."""
    batches, start = [], 0
    while start < len(documents):
        stop, longest = start, 0
        while stop < len(documents):
            longest = max(longest, documents[stop].length)
            if stop > start and longest * (stop - start + 1) > row_tokens:
                break
            stop += 1
        batches.append(documents[start:stop])
        start = stop
    return batches
