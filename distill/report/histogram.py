"""Histograms over a logarithmic axis, one over the other: how long things are, when a few are very long."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distill.report.blocks import Panel
from distill.report.drawing import PANEL_WIDTH, draw
from distill.report.numbers import compact
from distill.report.palette import STAND_IN

HEIGHT = 220


@dataclass(frozen=True)
class Series:
    """counts[i] values are at least edges[i] and less than edges[i + 1]; drawn as shares of their total."""

    edges: Sequence[float]
    counts: Sequence[float]
    role: str  # a colour of distill.report.palette
    dashed: bool = False  # so that two series are told apart without colour


def histogram(series: Sequence[Series], *, title: str, description: str, x_label: str) -> Panel:
    """Outlines of the series. What is less than 1, which has no place on the axis, is drawn at its left end."""
    drawn = [one for one in series if sum(one.counts)]

    def paint(figure) -> None:
        axes = figure.add_axes((34 / PANEL_WIDTH, 40 / HEIGHT, 1 - 44 / PANEL_WIDTH, 1 - 66 / HEIGHT))
        low = min((one.edges[0] for one in drawn), default=1)
        left, right = max(low, 0.5), max((one.edges[-1] for one in drawn), default=10)
        axes.set_xscale("log")
        axes.set_xlim(left / 1.15, max(right, 2 * left) * 1.15)
        for one in drawn:
            shares = [100 * count / sum(one.counts) for count in one.counts]
            edges, colour = [max(edge, 0.5) for edge in one.edges], STAND_IN[one.role]
            axes.stairs(shares, edges, color=colour, fill=True, alpha=0.14, linewidth=0)
            axes.stairs(shares, edges, color=colour, linewidth=1.6, linestyle=(0, (4, 2)) if one.dashed else "-")
        axes.set_ylim(0, None)
        axes.locator_params(axis="y", nbins=4)
        axes.text(0, 1.06, "% of them", transform=axes.transAxes, color=STAND_IN["muted"], clip_on=False)
        axes.set_xlabel(x_label, labelpad=5)
        _ticks(axes)

    return draw(paint, title=title, description=description, height=HEIGHT)


def _ticks(axes) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    steps, stride = ((1, 2, 5), 1) if decades < 2 else ((1,), math.ceil(decades / 6))
    ticks = [
        step * 10.0**exponent
        for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1, stride)
        for step in steps
        if low <= step * 10.0**exponent <= high and step * 10.0**exponent >= 1
    ]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
