"""Global best-fit-decreasing bin packing."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def best_fit_decreasing(
    lengths: Sequence[int] | np.ndarray, capacity: int, names: np.ndarray | None = None
) -> list[list[int]]:
    """Put items into as few bins of `capacity` as best-fit-decreasing finds.

    Items go from longest to shortest, ties in input order, each into the fullest bin that still holds it. Bins come in
    the order they were opened, each a list of its items: indices into `lengths`, or what stands there in `names`.

    Items of one length are placed together: the bins with the smallest gap g that holds length n take floor(g / n) of them
    each, since after the first a bin is the fullest one itself. So the work is one step for each length and gap that meet, not
    one for each item.

    Raises ValueError for a length below 1 or above `capacity`.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) == 0:
        return []
    if lengths.min() < 1 or lengths.max() > capacity:
        raise ValueError(f"lengths must lie in 1..{capacity}, found {lengths.min()}..{lengths.max()}")
    order = np.argsort(-lengths, kind="stable")
    counts = np.bincount(lengths)
    placed: list[np.ndarray] = []  # the bins of the items of `order`, in runs
    gaps = _Gaps()
    opened = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        items = int(counts[length])
        while items:
            gap = gaps.smallest(length)
            if gap is None:
                each = capacity // length
                bins = np.arange(opened, opened + -(-items // each))
                opened += len(bins)
                gap = capacity
            else:
                each = gap // length
                bins = gaps.take(gap, -(-items // each))
            full = min(len(bins), items // each)
            if full:
                placed.append(np.repeat(bins[:full], each))
                gaps.give(gap - each * length, bins[:full])
                items -= full * each
            if full < len(bins):  # the last bin takes what is left
                placed.append(np.repeat(bins[full:], items))
                gaps.give(gap - items * length, bins[full:])
                items = 0
    bin_of = np.concatenate(placed)
    by_bin = np.argsort(bin_of, kind="stable")
    members = (order[by_bin] if names is None else np.asarray(names)[order[by_bin]]).tolist()
    ends = np.cumsum(np.bincount(bin_of)).tolist()
    return [members[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class _Gaps:
    """Open bins by how much is free in them."""

    def __init__(self) -> None:
        self.bins = defaultdict[int, list[np.ndarray]](list)
        self.there = 0  # bit g is set when a bin has g free

    def smallest(self, length: int) -> int | None:
        """The smallest gap of at least `length`."""
        candidates = self.there >> length
        return length + (candidates & -candidates).bit_length() - 1 if candidates else None

    def take(self, gap: int, most: int) -> np.ndarray:
        """At most `most` bins with that gap, first in first out."""
        stack = self.bins[gap]
        bins = stack[0] if len(stack) == 1 else np.concatenate(stack)
        self.bins[gap] = [bins[most:]] if len(bins) > most else []
        if not self.bins[gap]:
            self.there &= ~(1 << gap)
        return bins[:most]

    def give(self, gap: int, bins: np.ndarray) -> None:
        if gap:
            self.bins[gap].append(bins)
            self.there |= 1 << gap
