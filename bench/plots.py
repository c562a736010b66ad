"""Charts of measured results as SVG files: the same bytes from the same numbers, whenever they are drawn."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from distill.report.factors import FactorGroup, factors_height, paint_factors
from distill.report.palette import LIGHT

_WIDTH, _ROW, _LABELS, _RIGHT = 680, 22, 210, 90  # CSS pixels
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "distill",
    "font.family": ["DejaVu Sans"],  # ships with matplotlib, so that layout does not depend on the machine
    "font.size": 11.0,
    "figure.dpi": 72,
    "savefig.dpi": 72,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


class Bar(NamedTuple):
    """`low` and `high` bound `value`; `text` stands behind the bar; `is_ours` gives it the colour of this project."""

    label: str
    value: float
    low: float
    high: float
    text: str
    is_ours: bool


def bar_chart(groups: Sequence[tuple[str, Sequence[Bar]]], x_label: str) -> str:
    """Horizontal bars in titled groups, all on one scale."""
    lines = sum(len(bars) + 1 for _, bars in groups)
    height = _ROW * lines + 44
    box = (_LABELS / _WIDTH, 38 / height, 1 - (_LABELS + _RIGHT) / _WIDTH, 1 - 44 / height)
    with _canvas(height, box) as (axes, svg):
        axes.set_xlim(0, max((bar.high for _, bars in groups for bar in bars), default=1.0))
        axes.set_ylim(lines, 0)
        axes.set_yticks([])
        axes.set_xlabel(x_label, color=LIGHT["muted"])
        axes.grid(axis="x", color=LIGHT["rule"], linewidth=0.8)
        axes.set_axisbelow(True)
        y = 0.0
        for title, bars in groups:
            axes.text(0, y + 0.65, title, color=LIGHT["ink"], weight="bold", va="center")
            y += 1
            for bar in bars:
                colour = LIGHT["blue"] if bar.is_ours else LIGHT["grey"]
                axes.barh(y + 0.5, bar.value, height=0.6, color=colour, alpha=1.0 if bar.is_ours else 0.6)
                axes.plot([bar.low, bar.high], [y + 0.5] * 2, color=LIGHT["ink"], linewidth=1.2)
                offset = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
                axes.annotate(bar.label, (0, y + 0.5), xytext=(-6, 0), ha="right", color=LIGHT["ink"], **offset)
                axes.annotate(bar.text, (bar.high, y + 0.5), xytext=(6, 0), color=LIGHT["ink"], **offset)
                y += 1
    return svg.getvalue().decode()


def factor_chart(groups: Sequence[FactorGroup], x_label: str) -> str:
    """Factors, measured (discs with intervals) beside modelled (rings), on one logarithmic scale."""
    height = factors_height(groups)
    with _canvas(height, (16 / _WIDTH, 38 / height, 1 - 32 / _WIDTH, 1 - 42 / height)) as (axes, svg):
        paint_factors(axes, groups, LIGHT)
        axes.set_xlabel(x_label, color=LIGHT["muted"])
    return svg.getvalue().decode()


@contextmanager
def _canvas(height: float, box: tuple[float, float, float, float]) -> Iterator[tuple[Any, io.BytesIO]]:
    """Axes at `box` of a page's width, and where the SVG is when the block has ended."""
    import matplotlib
    from matplotlib.figure import Figure

    svg = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH / 72, height / 72), facecolor=LIGHT["paper"])
        axes = figure.add_axes(box, facecolor="none")
        axes.tick_params(axis="x", colors=LIGHT["muted"])
        yield axes, svg
        figure.savefig(svg, format="svg", metadata={"Date": None}, facecolor=LIGHT["paper"])
