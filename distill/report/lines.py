"""Differences with their intervals over a logarithmic axis, joined to lines: how a gain grows with the student."""

from collections.abc import Sequence
from dataclasses import dataclass

from distill.report.blocks import Panel
from distill.report.drawing import PANEL_WIDTH, draw
from distill.report.numbers import compact
from distill.report.palette import STAND_IN
from distill.report.scatter import MARKER

HEIGHT = 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 12, 26, 42
_APART = 5  # CSS pixels between lines that share an x, so that their bars do not cover each other


@dataclass(frozen=True)
class Line:
    """Points (x, y, low, high) in ascending x, x above 0; low and high None where there is no interval."""

    points: Sequence[tuple[float, float, float | None, float | None]]
    role: str  # a colour of distill.report.palette
    mark: str = "disc"
    dashed: bool = False  # hollow marks and a dashed line: what others measured


def lines(
    series: Sequence[Line],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    ticks: Sequence[tuple[float, str]] = (),
    margin: float | None = None,
) -> Panel:
    """`ticks`: places on the x axis with their names, in the place of their numbers. Below `margin` is shaded."""
    drawn = [line for line in series if line.points]
    xs = [x for line in drawn for x, *_ in line.points] or [1.0]
    ys = [y for line in drawn for point in line.points for y in point[1:] if y is not None] + [0.0, margin or 0.0]
    pad = 0.08 * (max(ys) - min(ys) or 1.0)
    limits = min(ys) - pad, max(ys) + pad
    spread = max((max(xs) / min(xs)) ** 0.12, 1.25)

    def paint(figure) -> None:
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
        from matplotlib.transforms import ScaledTranslation

        width, height = 1 - (_LEFT + _RIGHT) / PANEL_WIDTH, 1 - (_TOP + _BOTTOM) / HEIGHT
        axes = figure.add_axes((_LEFT / PANEL_WIDTH, _BOTTOM / HEIGHT, width, height))
        axes.set_xscale("log")
        axes.set_xlim(min(xs) / spread, max(xs) * spread)
        axes.set_ylim(*limits)
        axes.grid(visible=False, axis="x")
        places = dict(ticks or ((x, compact(x)) for x in sorted(set(xs))))
        axes.xaxis.set_major_locator(FixedLocator(list(places)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: places.get(x, "")))
        axes.locator_params(axis="y", nbins=6)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:+g}".replace("-", "−") if y else "0"))
        axes.text(0, 1.05, y_label, transform=axes.transAxes, color=STAND_IN["muted"], clip_on=False)
        axes.set_xlabel(x_label, labelpad=5)
        if margin is not None:
            axes.axhspan(limits[0], margin, color=STAND_IN["shade"], linewidth=0, zorder=0)
            axes.axhline(margin, color=STAND_IN["muted"], linewidth=1, linestyle=(0, (2, 2)))
        axes.axhline(0, color=STAND_IN["muted"], linewidth=1)
        for place, line in enumerate(drawn):
            colour = STAND_IN[line.role]
            moved = axes.transData + ScaledTranslation(
                _APART * (place - (len(drawn) - 1) / 2) / 72, 0, figure.dpi_scale_trans
            )
            for x, _, low, high in line.points:
                if low is not None and high is not None:
                    axes.plot([x, x], [low, high], color=colour, linewidth=1.6, solid_capstyle="butt", transform=moved)
            axes.plot(
                [x for x, *_ in line.points],
                [y for _, y, *_ in line.points],
                color=colour,
                linewidth=1.6,
                linestyle=(0, (4, 2)) if line.dashed else "-",
                marker=MARKER[line.mark],
                markersize=7,
                markerfacecolor=STAND_IN["paper"] if line.dashed else colour,
                markeredgecolor=colour,
                markeredgewidth=1.5,
                transform=moved,
                clip_on=False,
            )

    return draw(paint, title=title, description=description, height=HEIGHT)
