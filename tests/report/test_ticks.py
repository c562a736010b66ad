"""Ticks of logarithmic axes: always two or more to read a value by, never a crowd."""

import numpy as np

from distill.report.scatter import decade_ticks


def test_two_ticks_or_more(rng):
    from matplotlib.figure import Figure

    for ratio in (1.7, 2.9, 9.0, 99.0, 101.0, 1e7, float(np.exp(rng.uniform(0.55, 15)))):
        low = float(10 ** rng.uniform(-7, 7))
        axes = Figure().add_axes((0, 0, 1, 1))
        axes.set_yscale("log")
        axes.set_ylim(low, low * ratio)
        decade_ticks(axes, vertical=True)
        ticks = axes.yaxis.get_major_locator().tick_values(low, low * ratio)
        assert 2 <= len(ticks) <= 12 and all(low <= tick <= low * ratio for tick in ticks), (low, ratio, ticks)
