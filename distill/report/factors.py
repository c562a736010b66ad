"""Factors with their intervals over a logarithmic axis, measured beside modelled: where a cost comes from.

On this axis a product is a sum of lengths: from 1, the first factors of a group lead to their product, the last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.report.blocks import Key, Panel
from distill.report.drawing import PANEL_WIDTH, draw
from distill.report.numbers import DASH
from distill.report.palette import STAND_IN
from distill.report.scatter import decade_ticks
from distill.report.text import shorten

_ROW, _TITLE, _TOP, _BOTTOM = 36, 24, 2, 40
_MAX_LABEL, _MAX_TITLE = 22, 46
FACTOR_KEYS = (
    Key("measured, with 95 % interval", "orange", "disc"),
    Key("modelled from FLOPs", "grey", "ring"),
)


@dataclass(frozen=True)
class Factor:
    """`value` is measured, in its limits; what is not known is None. `emphasis`: the product of those before it."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    modelled: float | None = None
    emphasis: bool = False


@dataclass(frozen=True)
class FactorGroup:
    title: str
    factors: Sequence[Factor]


def factors(groups: Sequence[FactorGroup], *, title: str, description: str, x_label: str) -> Panel:
    """Groups of factors under one another, on one axis."""
    height = factors_height(groups)

    def paint(figure) -> None:
        axes = figure.add_axes((8 / PANEL_WIDTH, _BOTTOM / height, 1 - 16 / PANEL_WIDTH, 1 - (_TOP + _BOTTOM) / height))
        paint_factors(axes, groups, STAND_IN)
        axes.set_xlabel(x_label, labelpad=5)

    return draw(paint, title=title, description=description, height=height)


def factors_height(groups: Sequence[FactorGroup]) -> int:
    """CSS pixels of a drawing of them."""
    return _TOP + _BOTTOM + sum(bool(g.title) * _TITLE + _ROW * len(g.factors) for g in groups)


def paint_factors(axes, groups: Sequence[FactorGroup], colours: Mapping[str, str]) -> None:
    """Draw on matplotlib axes of `factors_height` less what stands below them; `colours` by role."""
    values = [1.0]
    for factor in (f for group in groups for f in group.factors):
        values += [v for v in (factor.value, factor.low, factor.high, factor.modelled) if v]
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 1.25, max(values) * 1.25)
    axes.set_ylim(sum(bool(g.title) * _TITLE + _ROW * len(g.factors) for g in groups) or 1, 0)
    axes.set_yticks([])
    decade_ticks(axes)
    axes.grid(False)
    y = 0
    for group in groups:
        if group.title:
            _text(axes, 0, y + 19, shorten(group.title, _MAX_TITLE), "left", colours["ink"], "bold")
            y += _TITLE
        for factor in group.factors:
            _row(axes, y, factor, colours)
            y += _ROW


def _row(axes, y: float, factor: Factor, colours: Mapping[str, str]) -> None:
    lane, weight = y + 26, "bold" if factor.emphasis else "normal"
    axes.plot([1, 1], [y + 19, y + 33], color=colours["muted"], linewidth=1)
    if factor.low and factor.high:
        axes.plot(
            [factor.low, factor.high],
            [lane] * 2,
            color=colours["orange"],
            linewidth=3 if factor.emphasis else 1.8,
            solid_capstyle="butt",
        )
    if factor.modelled:
        _mark(axes, factor.modelled, lane, 8.5, colours["paper"], colours["grey"])
    if factor.value:
        _mark(axes, factor.value, lane, 7.5 if factor.emphasis else 6, colours["orange"], colours["orange"])
    _text(axes, 0, y + 14, shorten(factor.label, _MAX_LABEL), "left", colours["ink"], weight)
    _text(axes, 1, y + 14, _numbers(factor), "right", colours["ink"], weight)


def _mark(axes, x: float, y: float, size: float, face: str, edge: str) -> None:
    axes.plot([x], [y], marker="o", markersize=size, markerfacecolor=face, markeredgecolor=edge, markeredgewidth=1.5)


def _text(axes, x: float, y: float, text: str, side: str, colour: str, weight: str) -> None:
    axes.text(x, y, text, transform=axes.get_yaxis_transform(), ha=side, color=colour, fontsize=10.5, weight=weight)


def _numbers(factor: Factor) -> str:
    text = DASH if factor.value is None else f"{factor.value:.3g}"
    if factor.low is not None and factor.high is not None:
        text += f" [{factor.low:.3g}, {factor.high:.3g}]"
    return text if factor.modelled is None else f"{text} · model {factor.modelled:.3g}"
