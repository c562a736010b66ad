"""Stacked horizontal bars in two parts, the label above each bar and its total at the end."""

from collections.abc import Sequence
from dataclasses import dataclass

from distill.report.blocks import Panel
from distill.report.drawing import PANEL_WIDTH, draw
from distill.report.numbers import compact, fixed
from distill.report.palette import STAND_IN
from distill.report.text import shorten

_ROW, _TOP, _BOTTOM = 33, 4, 38
_MAX_LABEL = 40


@dataclass(frozen=True)
class Bar:
    label: str
    first: float  # drawn light, from zero
    second: float  # drawn full, after it
    role: str


def bars(rows: Sequence[Bar], *, title: str, description: str, x_label: str) -> Panel:
    height = _TOP + _BOTTOM + _ROW * len(rows)

    def paint(figure) -> None:
        axes = figure.add_axes((8 / PANEL_WIDTH, _BOTTOM / height, 1 - 56 / PANEL_WIDTH, 1 - (_TOP + _BOTTOM) / height))
        axes.set_xlim(0, max((row.first + row.second for row in rows), default=0) or 1)
        axes.set_ylim(max(len(rows), 1), 0)
        axes.set_yticks([])
        axes.set_xlabel(x_label, labelpad=5)
        axes.locator_params(axis="x", nbins=5)
        for i, row in enumerate(rows):
            colour, y = STAND_IN[row.role], i + 0.72
            axes.barh(y, row.first, height=0.34, color=colour, alpha=0.4, linewidth=0)
            axes.barh(y, row.second, height=0.34, left=row.first, color=colour, linewidth=0)
            axes.text(0, i + 0.44, shorten(row.label, _MAX_LABEL), color=colour, fontsize=10.5, clip_on=False)
            axes.annotate(
                fixed(row.first + row.second) if row.first + row.second < 1000 else compact(row.first + row.second),
                (row.first + row.second, y),
                xytext=(5, 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=10.5,
                color=STAND_IN["ink"],
                annotation_clip=False,
            )

    return draw(paint, title=title, description=description, height=height)
