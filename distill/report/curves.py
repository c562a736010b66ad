"""Curves over two logarithmic axes, each point named where it stands: throughput against latency, load by load."""

from collections.abc import Sequence
from dataclasses import dataclass

from distill.report.blocks import Panel
from distill.report.drawing import PANEL_WIDTH, draw
from distill.report.palette import STAND_IN
from distill.report.scatter import decade_ticks
from distill.report.text import shorten

HEIGHT = 270
_MARKER = {"disc": "o", "square": "s", "diamond": "D", "triangle": "^"}
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 22, 30, 42
_MAX_LABEL = 8


@dataclass(frozen=True)
class Curve:
    """Points (x, y, label) in order, x and y above 0."""

    points: Sequence[tuple[float, float, str]]
    role: str  # a colour of distill.report.palette
    mark: str = "disc"
    dashed: bool = False


def curves(series: Sequence[Curve], *, title: str, description: str, x_label: str, y_label: str) -> Panel:
    drawn = [one for one in series if one.points]

    def paint(figure) -> None:
        width, height = 1 - (_LEFT + _RIGHT) / PANEL_WIDTH, 1 - (_TOP + _BOTTOM) / HEIGHT
        axes = figure.add_axes((_LEFT / PANEL_WIDTH, _BOTTOM / HEIGHT, width, height))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(*_padded([x for one in drawn for x, _, _ in one.points]))
        axes.set_ylim(*_padded([y for one in drawn for _, y, _ in one.points]))
        decade_ticks(axes)
        decade_ticks(axes, vertical=True)
        axes.text(0, 1.06, y_label, transform=axes.transAxes, color=STAND_IN["muted"], clip_on=False)
        axes.set_xlabel(x_label, labelpad=5)
        for one in drawn:
            colour = STAND_IN[one.role]
            xs, ys = [x for x, _, _ in one.points], [y for _, y, _ in one.points]
            axes.plot(xs, ys, color=colour, linewidth=1.6, linestyle=(0, (4, 2)) if one.dashed else "-")
            axes.plot(
                xs,
                ys,
                marker=_MARKER[one.mark],
                markersize=7,
                markerfacecolor=STAND_IN["paper"] if one.dashed else colour,
                markeredgecolor=colour,
                linestyle="none",
                clip_on=False,
            )
            for x, y, label in one.points:
                axes.annotate(
                    shorten(label, _MAX_LABEL),
                    (x, y),
                    xytext=(6, 6),
                    textcoords="offset points",
                    fontsize=10,
                    color=colour,
                    annotation_clip=False,
                )

    return draw(paint, title=title, description=description, height=HEIGHT)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=1.0), max(values, default=10.0)
    pad = max((high / low) ** 0.12, 1.3)
    return low / pad, high * pad
