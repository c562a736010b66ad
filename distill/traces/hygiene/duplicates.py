"""Questions that are asked more than once: word for word, or nearly.

Nearly: their sets of three words in a row have a Jaccard similarity of at least the threshold. MinHash signatures,
cut into bands, say which pairs are worth comparing; those are compared exactly, on the sets themselves. Pairs that are
alike become groups (of A ~ B ~ C all three), named by the first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distill.traces.hygiene.words import ngrams

SHINGLE = 3  # words in a row. One word changed in n is a similarity of (n - 5) / (n + 1): 0.81 of 30 words
SHORTEST = 8  # words. In fewer, one other word leaves little in common: shorter questions are compared word for word
PERMUTATIONS = 128
SEED = 1
_RECALL = 0.9999  # of pairs at the threshold, by the bands
_WINDOW = 50  # questions of a bucket that one is compared with: those before it
_SLACK = 4.0  # standard errors that a signature may lie below the threshold
_CHUNK = 4096


@dataclass(frozen=True)
class Near:
    """Groups of questions that are nearly the same."""

    first: np.ndarray  # int64[n]: the number of the first question of each one's group, its own where it is alone
    compared: int  # pairs whose similarity was computed
    crowded: int  # questions with more look-alikes than were compared with


def shingles(hashes: np.ndarray) -> np.ndarray:
    """uint64[m], sorted and distinct: what a question of these words is compared by."""
    return np.unique(ngrams(hashes, SHINGLE))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Of two sorted distinct arrays: shared over all. Two empty ones share nothing."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(len(one) + len(other) - shared, 1)


def near_duplicates(sets: Sequence[np.ndarray], threshold: float, tick: Callable[[], object] = lambda: None) -> Near:
    """Groups among n questions given by their shingles; an empty set is like no other. `tick` is called 2n times.

    The same sets give the same groups. Of pairs at the threshold less than one in 5,000 is missed, of those above it
    fewer, and pairs in a crowd may be: each question is compared with up to 50 before it in each of its buckets.
    """
    signatures = _signatures(sets, tick)
    order, place, before = _buckets(signatures, _rows_of_a_band(threshold), [len(s) > 0 for s in sets])
    # Of 128 places, two signatures share about as large a part as the sets do.
    least = threshold - _SLACK * (threshold * (1 - threshold) / PERMUTATIONS) ** 0.5
    first = list(range(len(sets)))
    compared = crowded = 0

    def root(i: int) -> int:
        while first[i] != i:
            first[i] = first[first[i]]
            i = first[i]
        return i

    for i in range(len(sets)):
        tick()
        bands = np.flatnonzero(before[:, i])
        if len(bands) == 0:
            continue
        crowded += bool((before[bands, i] > _WINDOW).any())
        found = [order[b, place[b, i] - min(before[b, i], _WINDOW) : place[b, i]] for b in bands]
        candidates = np.unique(np.concatenate(found))
        alike = (signatures[candidates] == signatures[i]).mean(1)
        for j in candidates[alike >= least].tolist():
            one, other = root(i), root(j)
            if one == other:
                continue
            compared += 1
            if jaccard(sets[i], sets[j]) >= threshold - 1e-12:
                first[max(one, other)] = min(one, other)
    return Near(np.array([root(i) for i in range(len(sets))], dtype=np.int64), compared, crowded)


def _signatures(sets: Sequence[np.ndarray], tick: Callable[[], object]) -> np.ndarray:
    """uint32[n, PERMUTATIONS]: what a sketch keeps has 32 bits, whatever it keeps them in."""
    from datasketch import MinHash

    # Shingles are hashes already; a sketch takes 32 bits of each.
    empty = MinHash(num_perm=PERMUTATIONS, seed=SEED, hashfunc=int)
    signatures = np.empty((len(sets), PERMUTATIONS), dtype=np.uint32)
    for i, one in enumerate(sets):
        sketch, values = empty.copy(), (one >> np.uint64(32)).tolist()
        for start in range(0, len(values), _CHUNK):  # all at once, a huge question would need its size x 128
            sketch.update_batch(values[start : start + _CHUNK])
        signatures[i] = sketch.hashvalues
        tick()
    return signatures


def _rows_of_a_band(threshold: float) -> int:
    """The most rows a band can have so that pairs at the threshold share one with probability _RECALL."""
    rows = range(1, PERMUTATIONS + 1)
    return max((r for r in rows if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= _RECALL), default=1)


def _buckets(signatures: np.ndarray, rows: int, used: list[bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every band, int32[bands, n] each: the questions ordered by bucket and number, the place of a question in
    that order, and how many stand before it in its bucket. Questions that are not `used` have a bucket of their own."""
    n, bands = len(signatures), PERMUTATIONS // rows
    order, place, before = (np.zeros((bands, n), dtype=np.int32) for _ in range(3))
    usable = np.flatnonzero(used)
    for b in range(bands if len(usable) else 0):
        part = np.ascontiguousarray(signatures[usable, b * rows : (b + 1) * rows])
        keys = part.view(np.dtype((np.void, part.dtype.itemsize * rows))).ravel()
        _, bucket = np.unique(keys, return_inverse=True)
        by_bucket = np.argsort(bucket, kind="stable")
        sizes = np.bincount(bucket)
        starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        order[b, : len(usable)] = usable[by_bucket]
        place[b, usable[by_bucket]] = np.arange(len(usable))
        before[b, usable[by_bucket]] = np.arange(len(usable)) - starts
    return order, place, before
