"""Differences with their intervals, one under another, against a margin: the picture of a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass

from distill.report.blocks import Panel
from distill.report.drawing import PANEL_WIDTH, draw
from distill.report.numbers import signed
from distill.report.palette import STAND_IN
from distill.report.text import shorten

_ROW, _TOP, _BOTTOM = 40, 2, 40
_MAX_LINE = {"normal": 55, "bold": 48}  # characters of a label and its numbers on one line


@dataclass(frozen=True)
class Interval:
    label: str
    value: float
    low: float
    high: float
    emphasis: bool = False


def forest(intervals: Sequence[Interval], *, margin: float, title: str, description: str, x_label: str) -> Panel:
    """What is below `margin` is shaded: an interval wholly in the shade shows a gain too small to matter."""
    height = _TOP + _BOTTOM + _ROW * len(intervals)

    def paint(figure) -> None:
        axes = figure.add_axes((8 / PANEL_WIDTH, _BOTTOM / height, 1 - 16 / PANEL_WIDTH, 1 - (_TOP + _BOTTOM) / height))
        ends = [0.0, margin, -margin] + [end for i in intervals for end in (i.low, i.high)]
        pad = 0.06 * (max(ends) - min(ends))
        axes.set_xlim(min(ends) - pad, max(ends) + pad)
        axes.set_ylim(max(len(intervals), 1), 0)
        axes.set_yticks([])
        axes.set_xlabel(x_label, labelpad=5)
        axes.grid(False)
        axes.spines["bottom"].set_visible(False)
        for row, interval in enumerate(intervals):
            colour = STAND_IN["ink" if interval.emphasis else "grey"]
            weight = "bold" if interval.emphasis else "normal"
            # Shade and lines run in the row's own lane, so that none passes through its text.
            left, lane = min(ends) - pad, (row + 0.53, row + 0.95)
            axes.fill_betweenx(lane, left, margin, color=STAND_IN["shade"], linewidth=0)
            axes.plot([margin] * 2, lane, color=STAND_IN["muted"], linewidth=1, linestyle=(0, (2, 2)))
            axes.plot([0, 0], lane, color=STAND_IN["muted"], linewidth=1)
            axes.plot([left, max(ends) + pad], [row + 0.95] * 2, color=STAND_IN["rule"], linewidth=0.8)
            axes.plot(
                [interval.low, interval.high],
                [row + 0.74] * 2,
                color=colour,
                linewidth=3 if interval.emphasis else 1.8,
                solid_capstyle="butt",
            )
            axes.plot(
                [interval.value],
                [row + 0.74],
                marker="o",
                markersize=8 if interval.emphasis else 6.5,
                markerfacecolor=colour if interval.emphasis else STAND_IN["paper"],
                markeredgecolor=colour,
                markeredgewidth=1.5,
            )
            numbers = f"{signed(interval.value)} [{signed(interval.low)}, {signed(interval.high)}]"
            label = shorten(interval.label, _MAX_LINE[weight] - len(numbers))
            for x, text, side in ((0, label, "left"), (1, numbers, "right")):
                axes.text(
                    x,
                    row + 0.42,
                    text,
                    transform=axes.get_yaxis_transform(),
                    ha=side,
                    color=colour,
                    fontsize=10.5,
                    weight=weight,
                )

    return draw(paint, title=title, description=description, height=height)
