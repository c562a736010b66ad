"""The order in which attention over packed documents is worked off: a table of tiles, heaviest first.

Documents are cut into tiles of `tile` tokens, a document's last one shorter. With causal attention a tile of queries
that starts at token p of a document of length L reads the keys before p + tile, so its work grows along the document; a
tile of keys that starts there is read by the L - p queries from p on, so its work falls along the document:

    work of queries p : p + tile   ~  min(p + tile, L)
    work of keys    p : p + tile   ~  L - p

A GPU hands programs to free multiprocessors in the order of their index. Sorted by falling work this is the
longest-processing-time rule: the tiles of one long document start first and the many light ones fill the gaps at the
end, so that no multiprocessor is left alone with a heavy tile. A sliding window cuts both works at a constant, which
keeps the order, so one table serves every layer, window and head.

Nothing here waits for the device: the number of tiles is bounded by T / tile + documents, and rows of the table beyond
the real count are empty (first and end are 0) and stand last.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

TILE_TOKENS = 128  # the block sizes of the kernels divide it


@dataclass(frozen=True)
class AttentionTiles:
    """The tiles of one pack, by the work of their queries and by that of their keys; both int32[3, tiles].

    Column i is one tile: its document's first token, its document's end and its own first token, as places in the pack.
    """

    cu_seqlens: Tensor  # what it was made from
    total_tokens: int
    max_seqlen: int  # what the documents' lengths were checked against
    tile: int
    by_queries: Tensor
    by_keys: Tensor


def most_tiles(total_tokens: int, documents: int, tile: int) -> int:
    """Columns that hold the tiles of any `documents` documents of `total_tokens` tokens in all."""
    return (total_tokens + documents * (tile - 1)) // tile


def attention_tiles(
    cu_seqlens: Tensor, total_tokens: int, max_seqlen: int, *, tile: int = TILE_TOKENS
) -> AttentionTiles:
    """The tiles of documents cu_seqlens[i]:cu_seqlens[i+1], made on its device; its values are taken as they are."""
    documents = cu_seqlens.shape[0] - 1
    lengths = cu_seqlens.diff().long()
    counts = (lengths + (tile - 1)) // tile
    tiles_until = counts.cumsum(0)
    index = torch.arange(most_tiles(total_tokens, documents, tile), device=cu_seqlens.device)
    document = torch.searchsorted(tiles_until, index, right=True).clamp(max=documents - 1)
    is_tile = index < tiles_until.select(0, -1)
    start = cu_seqlens.long().index_select(0, document)
    end = start + lengths.index_select(0, document)
    first = start + (index - (tiles_until - counts).index_select(0, document)) * tile
    table = torch.stack((start, end, first)).where(is_tile, 0).int()
    start, end, first = table.unbind()
    keys_read = (first + tile).minimum(end) - start  # 0 for an empty tile, as is the next
    queries_reading = end - first
    by_queries, by_keys = (
        table.index_select(1, work.argsort(descending=True, stable=True)) for work in (keys_read, queries_reading)
    )
    return AttentionTiles(cu_seqlens, total_tokens, max_seqlen, tile, by_queries, by_keys)
