"""best_fit_decreasing against the textbook definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.packing.binning import best_fit_decreasing


def naive(lengths, capacity):
    """How full the bins are when each item, longest first, goes into the fullest bin that holds it."""
    loads = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, load in enumerate(loads) if load + length <= capacity]
        if fitting:
            loads[max(fitting, key=lambda i: loads[i])] += length
        else:
            loads.append(length)
    return sorted(loads)


@st.composite
def items(draw):
    capacity = draw(st.integers(1, 300))
    longest = draw(st.integers(1, capacity))
    return draw(st.lists(st.integers(1, longest), max_size=120)), capacity


@given(items())
@settings(max_examples=300, deadline=None)
def test_every_item_once_no_bin_over_full_and_as_full_as_the_textbook_says(case):
    lengths, capacity = case
    bins = best_fit_decreasing(lengths, capacity)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in members) for members in bins]
    assert all(0 < load <= capacity for load in loads)
    assert sorted(loads) == naive(lengths, capacity)
    assert bins == best_fit_decreasing(lengths, capacity)
    names = np.arange(len(lengths))[::-1] * 3
    assert best_fit_decreasing(lengths, capacity, names) == [[int(names[i]) for i in members] for members in bins]


def test_long_tailed_lengths_fill_the_rows(rng):
    """Documents as long as reasoning traces are (log-normal, median 5k, cut at 32k) leave under 0.1 % of the rows empty."""
    lengths = rng.lognormal(8.5, 0.8, 20_000).astype(int).clip(16, 32_768)
    bins = best_fit_decreasing(lengths, 32_768)
    assert lengths.sum() / (len(bins) * 32_768) > 0.999


@pytest.mark.parametrize("lengths", [[0], [5, -1], [11], [3, 11]])
def test_a_length_that_no_bin_can_hold_is_an_error(lengths):
    with pytest.raises(ValueError, match=r"1\.\.10"):
        best_fit_decreasing(lengths, 10)
