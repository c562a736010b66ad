"""Points with error bars over a logarithmic axis, each labelled where it stands, with a band: the frontier plot."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from distill.report.blocks import Panel
from distill.report.drawing import PANEL_WIDTH, draw
from distill.report.numbers import compact
from distill.report.palette import STAND_IN
from distill.report.text import shorten

HEIGHT = 310
MARKER = {"disc": "o", "square": "s", "diamond": "D", "triangle": "^", "wedge": "v", "star": "*", "cross": "X"}
_SIZE = {"star": 11.0, "cross": 8.5}
_LABEL_SIZE = 10.0
_MAX_LABEL = 26


@dataclass(frozen=True)
class Point:
    x: float  # > 0
    y: float
    low: float
    high: float
    label: str
    role: str  # a colour of distill.report.palette
    mark: str = "disc"
    hollow: bool = False
    x_low: float | None = None
    x_high: float | None = None
    quiet: bool = False  # small and pale, without bars and label: what is only there to be seen


@dataclass(frozen=True)
class Band:
    """The best that at most x buys, a step function with its interval: from each x on to the next, y[i]."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float],
    band: Band | None = None,
) -> Panel:
    """With `band` its steps are drawn, shaded; without one a dashed line joins the points that no other point beats on
    both axes (cheaper is left, better is up)."""

    def paint(figure) -> None:
        axes = figure.add_axes((34 / PANEL_WIDTH, 40 / HEIGHT, 1 - 44 / PANEL_WIDTH, 1 - 66 / HEIGHT))
        axes.set_xscale("log")
        axes.set_xlim(*_padded(points))
        margin = 0.03 * (y_range[1] - y_range[0])
        axes.set_ylim(y_range[0] - margin, y_range[1] + margin)
        axes.text(0, 1.045, y_label, transform=axes.transAxes, color=STAND_IN["muted"], clip_on=False)
        axes.set_xlabel(x_label, labelpad=5)
        decade_ticks(axes)
        steps = _steps(band, axes.get_xlim()[1]) if band else [(p.x, p.y) for p in _frontier(points)]
        if band:
            xs, low, high = [*band.x, axes.get_xlim()[1]], [*band.low, band.low[-1]], [*band.high, band.high[-1]]
            axes.fill_between(xs, low, high, step="post", color=STAND_IN["shade"], linewidth=0)
        axes.plot(
            [x for x, _ in steps],
            [y for _, y in steps],
            color=STAND_IN["muted"],
            linewidth=1.2,
            linestyle=(0, (4, 3)),
            drawstyle="steps-post",
        )
        for point in sorted(points, key=lambda p: not p.quiet):
            colour = STAND_IN[point.role]
            if point.quiet:
                axes.plot([point.x], [point.y], marker=MARKER[point.mark], markersize=4.5, color=colour, alpha=0.45)
                continue
            axes.plot([point.x] * 2, [point.low, point.high], color=colour, linewidth=1.6, solid_capstyle="butt")
            if point.x_low and point.x_high:
                axes.plot(
                    [point.x_low, point.x_high], [point.y] * 2, color=colour, linewidth=1.6, solid_capstyle="butt"
                )
            axes.plot(
                [point.x],
                [point.y],
                marker=MARKER[point.mark],
                markersize=_SIZE.get(point.mark, 7.5),
                markerfacecolor=STAND_IN["paper"] if point.hollow else colour,
                markeredgecolor=colour if point.hollow else STAND_IN["paper"],
                markeredgewidth=1.8 if point.hollow else 0.6 if point.mark == "star" else 1.0,
                linestyle="none",
                clip_on=False,
            )
        _label(axes, points, steps)

    return draw(paint, title=title, description=description, height=HEIGHT)


def _steps(band: Band, end: float) -> list[tuple[float, float]]:
    return [*zip(band.x, band.y, strict=True), (end, band.y[-1])]


def _padded(points: Sequence[Point]) -> tuple[float, float]:
    logs = [math.log10(p.x) for p in points] or [0.0, 1.0]
    pad = 0.12 * max(max(logs) - min(logs), 0.5)
    return 10 ** (min(logs) - pad), 10 ** (max(logs) + pad)


def _ticks(low: float, high: float) -> list[float]:
    """Enough to read a value by: decades, 1-2-5 within two of them, and finer where that leaves less than two."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
        ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 2 and (high / low >= 100 or len(steps) > 1):
            break
    return ticks


def decade_ticks(axes, *, vertical: bool = False) -> None:
    """Ticks of a logarithmic axis whose limits are set."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = axes.yaxis if vertical else axes.xaxis
    low, high = axis.get_view_interval()
    axis.set_major_locator(FixedLocator(_ticks(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def _frontier(points: Sequence[Point]) -> list[Point]:
    frontier: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not frontier or point.y > frontier[-1].y:
            frontier.append(point)
    return frontier


@dataclass(frozen=True)
class _Box:
    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "_Box") -> float:
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0) * max(height, 0)

    def distance(self, x: float, y: float) -> float:
        """From a point to the nearest place of this box."""
        return math.hypot(max(self.left - x, x - self.right, 0), max(self.bottom - y, y - self.top, 0))

    def outside(self, other: "_Box") -> float:
        """The part of this box that is not in `other`, as an area."""
        return (self.right - self.left) * (self.top - self.bottom) - self.overlap(other)


def _label(axes, points: Sequence[Point], steps: Sequence[tuple[float, float]]) -> None:
    """Write each label at the nearest place that covers nothing; a thin line leads to one that had to move away."""
    frame_px = axes.get_window_extent()
    # Labels may stand over the right and upper margins, not over the tick labels.
    frame = _Box(frame_px.x0 + 1, frame_px.y0 + 1, frame_px.x1 + 9, frame_px.y1 + 8)
    at = {p: tuple(axes.transData.transform((p.x, p.y))) for p in points}
    taken = [_Box(x - 5, y - 5, x + 5, y + 5) for x, y in at.values()]
    loud = [point for point in points if not point.quiet]
    for point in loud:
        x, y = at[point]
        if point.x_low and point.x_high:
            left, right = (axes.transData.transform((end, point.y))[0] for end in (point.x_low, point.x_high))
            taken.append(_Box(left, y - 2, right, y + 2))
        low, high = (axes.transData.transform((point.x, y))[1] for y in (point.low, point.high))
        taken.append(_Box(x - 2, low, x + 2, high))
    for (x, y), (next_x, next_y) in pairwise(tuple(axes.transData.transform(step)) for step in steps):
        bottom, top = sorted((y, next_y))
        taken += [_Box(x, y - 2, next_x, y + 2), _Box(next_x - 2, bottom, next_x + 2, top)]
    for point in sorted(loud, key=lambda p: (-p.y, p.x, p.label)):
        text = shorten(point.label, _MAX_LABEL)
        width, height = 0.57 * _LABEL_SIZE * len(text), _LABEL_SIZE + 2
        x, y = at[point]
        best, best_cost = None, math.inf
        for distance, box in _places(x, y, width, height):
            cost = 3 * sum(box.overlap(other) for other in taken) + 4 * box.outside(frame) + distance
            # A label next to another's point would be taken for that one's.
            near = box.distance(x, y) + 4
            cost += 250 * any(box.distance(*other) < near for other in at.values() if math.dist(other, (x, y)) > 8)
            if cost < best_cost:
                best, best_cost = box, cost
        taken.append(best)
        middle = ((best.left + best.right) / 2, (best.bottom + best.top) / 2)
        far = max(best.left - x, x - best.right, best.bottom - y, y - best.top)
        axes.annotate(
            text,
            xy=(x, y),
            xytext=middle,
            xycoords="figure pixels",
            textcoords="figure pixels",
            ha="center",
            va="center_baseline",
            fontsize=_LABEL_SIZE,
            color=STAND_IN[point.role],
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": STAND_IN["muted"],
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 5,
                "relpos": (
                    min(max((x - best.left) / width, 0), 1),
                    1.0 if y > best.top else 0.0 if y < best.bottom else 0.5,
                ),
            }
            if far > 12
            else None,
        )


def _places(x: float, y: float, width: float, height: float) -> Iterator[tuple[float, _Box]]:
    """Boxes around a point, near ones first, with their distance: right, left, above, below, and between."""
    for gap in (8, 14, 22, 32, 44, 58, 74, 92, 112, 134):
        for across, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1), (0.5, -1), (-0.5, -1)):
            centre_x = x + across * (gap * (0.4 if up else 1) + width / 2)
            centre_y = y + up * (gap + height / 2 - 3)
            box = _Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
            yield gap, box
