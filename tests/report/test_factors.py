"""Factors over a logarithmic axis: everything known is drawn inside, what is unknown is not."""

import re

import pytest

from distill.report.factors import Factor, FactorGroup, factors, factors_height, paint_factors
from distill.report.palette import LIGHT


def drawn(groups):
    from matplotlib.figure import Figure

    axes = Figure().add_axes((0, 0, 1, 1))
    paint_factors(axes, groups, LIGHT)
    return axes


def test_every_number_is_drawn_inside_the_axes(rng):
    values = rng.lognormal(0, 2, (4, 4))
    groups = [
        FactorGroup(
            "a", [Factor("x", *sorted(row[:3])[1:2], min(row[:3]), max(row[:3]), row[3]) for row in values[:2]]
        ),
        FactorGroup(
            "", [Factor("y", *sorted(row[:3])[1:2], min(row[:3]), max(row[:3]), row[3], True) for row in values[2:]]
        ),
    ]
    axes = drawn(groups)
    shown = sorted(float(x) for line in axes.lines for x in line.get_xdata() if x != 1)
    assert shown == pytest.approx(sorted(values.ravel()))
    low, high = axes.get_xlim()
    assert low < min(shown) and max(shown) < high and low < 1 < high
    height = axes.get_ylim()[0]
    assert all(0 <= y <= height for line in axes.lines for y in line.get_ydata())
    assert all(0 <= text.get_position()[1] <= height for text in axes.texts)
    assert height < factors_height(groups)


def test_what_is_not_known_is_not_drawn():
    axes = drawn([FactorGroup("a", [Factor("x", None), Factor("y", 3.0)])])
    assert [x for line in axes.lines for x in line.get_xdata() if x != 1] == [3.0]
    assert {"a", "x", "–", "y", "3"} == {text.get_text() for text in axes.texts}
    assert len(drawn([]).lines) == 0


def test_the_same_factors_give_the_same_panel(rng):
    value = float(rng.uniform(0.1, 9))
    one, other = (
        factors(
            [FactorGroup("<t>", [Factor("cost", value, None, None, 2.0)])],
            title="t",
            description="<d>",
            x_label="times",
        )
        for _ in range(2)
    )
    assert one == other and f"{value:.3g} · model 2" in one.svg and not re.search("<[td]>", str(one.svg))
