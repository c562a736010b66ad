"""Global best-fit-decreasing bin packing."""

from collections.abc import Sequence

import numpy as np


def best_fit_decreasing(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Put items into as few bins of `capacity` as best-fit-decreasing finds.

    Items go from longest to shortest, ties in input order, each into the fullest bin that still holds it. Bins come in
    the order they were opened, each a list of indices into `lengths`. O(n log n) for the sort; finding a bin looks at
    the gaps that exist, kept as one bit a gap size, so it costs one big-integer operation an item.

    Raises ValueError for a length below 1 or above `capacity`.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and (lengths.min() < 1 or lengths.max() > capacity):
        raise ValueError(f"lengths must lie in 1..{capacity}, found {lengths.min()}..{lengths.max()}")
    bins: list[list[int]] = []
    with_gap: list[list[int]] = [[] for _ in range(capacity + 1)]  # with_gap[g]: bins with g free, a stack
    gaps = 0  # bit g is set when with_gap[g] is not empty
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        candidates = gaps >> length
        if candidates:
            gap = length + (candidates & -candidates).bit_length() - 1  # the smallest gap that is large enough
            chosen = with_gap[gap].pop()
            if not with_gap[gap]:
                gaps &= ~(1 << gap)
        else:
            gap, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(item)
        rest = gap - length
        if rest:
            with_gap[rest].append(chosen)
            gaps |= 1 << rest
    return bins
