"""Groups of rows for several ranks: the same rows, each group of nearly one cost, in random order."""

from itertools import pairwise

import numpy as np
import pytest

from distill.flops import ModelShape
from distill.packing.balance import balance, balance_share, document_costs, row_sums
from distill.packing.binning import best_fit_decreasing

SHAPE = ModelShape(layers=28, hidden=1536, heads=12, kv_heads=2, head_dim=128, intermediate=8960, vocab=151_936)
ROW_TOKENS = 32_768


@pytest.fixture(scope="module")
def packed():
    """(rows, costs) of 20,000 documents as long as reasoning traces are."""
    rng = np.random.default_rng()
    lengths = rng.lognormal(np.log(5000), 0.8, 20_000).astype(int).clip(16, ROW_TOKENS)
    rows = best_fit_decreasing(lengths, ROW_TOKENS)
    return rows, row_sums(rows, document_costs(lengths, (0.8 * lengths).astype(int), SHAPE))


def share(groups, ranks):
    """Mean over max of the ranks, by the definition: an absent row costs nothing and its rank waits."""
    padded = np.array([[*group, *[0.0] * (ranks - len(group))] for group in groups])
    return float(padded.mean(axis=1).sum() / padded.max(axis=1).sum())


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_wait_for_each_other_less_than_3_percent_of_the_time(packed, ranks):
    rows, costs = packed
    groups = balance(range(len(rows)), costs, ranks, seed=int(np.random.default_rng().integers(1000)))
    found = [[costs[i] for i in group] for group in groups]
    assert share(found, ranks) >= 0.97
    assert balance_share(found, ranks) == pytest.approx(share(found, ranks))
    order = np.random.default_rng().permutation(len(rows))
    drawn = [costs[order[i : i + ranks]].tolist() for i in range(0, len(rows), ranks)]
    assert share(drawn, ranks) < share(found, ranks) - 0.03  # it is not so by itself
    totals = np.array([group for group in found if len(group) == ranks]).sum(axis=0)
    assert totals.max() / totals.min() < 1.001


def test_every_row_once_whatever_the_ranks_and_the_rest_last(rng):
    for _ in range(30):
        n, ranks = int(rng.integers(0, 60)), int(rng.integers(1, 10))
        costs = rng.choice([1.0, 2.5, 4.0, 9.0], n)  # ties
        rows = [object() for _ in range(n)]
        groups = balance(rows, costs, ranks, seed=3)
        assert sorted(id(row) for group in groups for row in group) == sorted(map(id, rows))
        assert [len(group) for group in groups] == [ranks] * (n // ranks) + [n % ranks] * (n % ranks > 0)
        cost = dict(zip(map(id, rows), costs, strict=True))
        of_groups = [sorted(cost[id(row)] for row in group) for group in groups]
        if n % ranks:
            assert of_groups[-1] == sorted(costs)[: n % ranks]
        of_groups.sort()
        for below, above in pairwise(of_groups):
            assert below[-1] <= above[0]  # a group is a run of the order of costs


def test_a_seed_decides_the_order_of_the_groups(packed):
    rows, costs = packed
    assert balance(rows, costs, 8, seed=5) == balance(rows, costs, 8, seed=5)
    one, other = (balance(range(len(rows)), costs, 8, seed=[seed, 1]) for seed in (5, 6))
    assert one != other and {frozenset(g) for g in one} == {frozenset(g) for g in other}
    means = [costs[group].mean() for group in one[:-1]]
    # Dear groups are not together: of 600 random ranks the correlation is within 4.5 / sqrt(600).
    assert abs(np.corrcoef(np.argsort(np.argsort(means)), np.arange(len(means)))[0, 1]) < 4.5 / len(means) ** 0.5


def test_fewer_ranks_share_a_group_as_evenly(packed):
    """What one plan for 8 ranks costs 4 and 2 of them, a group taken 4 or 2 rows at a time."""
    rows, costs = packed
    groups = [[costs[i] for i in group] for group in balance(range(len(rows)), costs, 8, seed=0)]
    for ranks in (2, 4):
        taken = [group[i : i + ranks] for group in groups for i in range(0, len(group), ranks)]
        assert share(taken, ranks) >= 0.97


def test_a_row_costs_what_its_documents_cost_one_by_one(rng):
    shape = ModelShape(2, 64, 4, 2, 16, 96, 300)
    lengths, supervised = rng.integers(1, 500, 40), rng.integers(1, 50, 40)
    rows = [part.tolist() for part in np.split(rng.permutation(40), [1, 7, 20])]
    found = row_sums(rows, document_costs(lengths, supervised, shape))
    for row, cost in zip(rows, found, strict=True):
        linear = sum(6 * 2 * shape.layer_weights * int(lengths[d]) + 6 * 64 * 300 * int(supervised[d]) for d in row)
        pairs = sum(int(lengths[d]) * (int(lengths[d]) + 1) // 2 for d in row)
        assert cost == pytest.approx(linear + 3 * 4 * 2 * 4 * 16 * pairs, rel=1e-12)
        assert cost == pytest.approx(shape.training_flops(lengths[row], int(supervised[row].sum())), rel=1e-12)
    assert row_sums([], document_costs(lengths, supervised, shape)).shape == (0,)


def test_wrong_arguments_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"ranks.*at least 1, got 0"):
        balance([1, 2], np.ones(2), 0, seed=0)
    with pytest.raises(ValueError, match=r"costs.*got 3 for 2 rows"):
        balance([1, 2], np.ones(3), 2, seed=0)
