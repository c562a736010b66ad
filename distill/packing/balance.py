"""Rows for several ranks: those that are computed at the same time cost nearly the same.

Packing makes rows equally long, not equally dear: attention costs the sum of the squared lengths of a row's documents,
so a row that is one long document takes longer than a row of many short ones. Ranks wait for the slowest in every
forward, so what a group of rows costs is `ranks` times its dearest row.

Rows next to each other in the order of their costs are nearly equal: each `ranks` of them are a group, one row a rank.
Groups come in random order. A step is one group or several (accumulation); several keep long and short documents mixed
within a step, which one group of like rows is not.
"""

from collections.abc import Sequence
from itertools import chain
from typing import TypeVar

import numpy as np

from distill.flops import ModelShape

Row = TypeVar("Row")


def document_costs(lengths: np.ndarray, supervised: np.ndarray, shape: ModelShape) -> np.ndarray:
    """FLOPs of training on each document, float64[documents].

    `lengths`, `supervised`: int64[documents], input tokens and supervised tokens by document reference.
    """
    head = shape.training_flops([], head_rows=1)
    return shape.training_flops_by_document(lengths) + head * np.asarray(supervised)


def row_sums(rows: Sequence[Sequence[int]], of_documents: np.ndarray) -> np.ndarray:
    """The sum over each row's documents, float64[len(rows)], of a value by document reference. No row is empty."""
    if not len(rows):
        return np.zeros(0)
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    references = np.fromiter(chain.from_iterable(rows), np.int64, int(sizes.sum()))
    return np.add.reduceat(of_documents[references], np.cumsum(sizes) - sizes)


def balance(rows: Sequence[Row], costs: np.ndarray, ranks: int, seed: int | Sequence[int]) -> list[list[Row]]:
    """The same rows, in groups of `ranks`: group[r] is what rank r computes while the others compute theirs.

    Of an epoch's rows, it decides which rows meet in a step; of one step's rows, only which rank gets which and when,
    and the step stays what it was. Within a group the dearest row goes to the rank that has had least so far, so the
    ranks' sums stay close even where groups are uneven. Rows that fill no group are the cheapest and come last, as one
    short group: its ranks without a row have none to compute.

    An epoch's groups for 8 ranks are as even for 1, 2 or 4, which take a group's rows some after others: made for the
    largest number of ranks, one plan serves all of them, and every step is the same rows.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, got {ranks}")
    if len(costs) != len(rows):
        raise ValueError(f"costs must have one entry a row, got {len(costs)} for {len(rows)} rows")
    dearest_first = np.argsort(-np.asarray(costs, dtype=np.float64), kind="stable")
    whole = len(rows) // ranks
    shuffled = np.random.default_rng(seed).permutation(whole)
    groups = list(dearest_first[: whole * ranks].reshape(whole, ranks)[shuffled])
    spent = np.zeros(ranks)
    balanced = []
    for group in groups:
        placed = np.empty_like(group)
        placed[np.argsort(spent, kind="stable")] = group
        spent += costs[placed]
        balanced.append([rows[i] for i in placed])
    rest = dearest_first[whole * ranks :]
    return [*balanced, [rows[i] for i in rest]] if len(rest) else balanced


def balance_share(groups: Sequence[Sequence[float]], ranks: int) -> float:
    """What part of their time `ranks` ranks compute: cost of all rows over `ranks` times each group's dearest row.

    `groups`: the rows' costs by group.
    """
    return sum(map(sum, groups)) / (ranks * sum(map(max, groups)))
