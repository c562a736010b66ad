"""Gains over sizes and the band of a frontier: what is drawn says what the data say, and stays in its frame."""

import random
import re
from xml.etree import ElementTree

import pytest

from distill.report.lines import Line, lines
from distill.report.scatter import Band, Point, scatter


def texts(svg) -> list[str]:
    return [
        "".join(e.itertext())
        for e in ElementTree.fromstring(str(svg).replace("\ue000", "")).iter()
        if e.tag.endswith("text")
    ]


def test_lines_name_their_sizes_and_keep_to_the_palette():
    xs = sorted(random.sample(range(10**5, 10**10), 5))
    series = [
        Line([(x, random.uniform(-30, 30), -40.0, 40.0) for x in xs], "orange"),
        Line([(x, random.uniform(-30, 30), None, None) for x in xs[1:]], "grey", "square", dashed=True),
        Line([], "blue"),
    ]
    panel = lines(
        series,
        title="t",
        description="d",
        x_label="student",
        y_label="gain",
        ticks=[(x, f"<{i}>") for i, x in enumerate(xs)],
        margin=2.0,
    )
    found = texts(panel.svg)
    assert {f"<{i}>" for i in range(5)} <= set(found) and {"student", "gain"} <= set(found)
    assert not re.search(r"#(?!0d15)[0-9a-f]{6}", re.sub(r'"#', "", str(panel.svg)))
    assert "var(--orange)" in panel.svg and "var(--grey)" in panel.svg and "stroke-dasharray" in panel.svg


@pytest.mark.parametrize("series", [[], [Line([], "blue")], [Line([(1.0, 0.0, 0.0, 0.0)], "blue")]])
def test_lines_of_little_or_nothing_are_drawn(series):
    assert lines(series, title="t", description="d", x_label="x", y_label="y").svg


def test_a_band_is_shaded_where_it_says():
    points = [
        Point(10.0**i, 20.0 * i, 20.0 * i - 5, 20.0 * i + 5, f"p{i}", "blue", x_low=0.8 * 10**i, x_high=1.2 * 10**i)
        for i in range(1, 5)
    ]
    at = {"x_label": "x", "y_label": "y", "y_range": (0, 100), "title": "t", "description": "d"}
    plain = scatter(points, **at)
    assert "var(--shade)" not in plain.svg
    band = Band([10.0, 1000.0], [15.0, 55.0], [10.0, 50.0], [25.0, 65.0])
    shaded = scatter(points, band=band, **at)
    assert "var(--shade)" in shaded.svg
    assert {"p1", "p2", "p3", "p4"} <= set(texts(shaded.svg))


def test_quiet_points_have_no_label():
    points = [Point(float(i + 1), i, i, i, f"name{i}", "green", "wedge", quiet=i % 2 == 0) for i in range(20)]
    found = texts(scatter(points, x_label="x", y_label="y", y_range=(0, 100), title="t", description="d").svg)
    assert {t for t in found if t.startswith("name")} == {f"name{i}" for i in range(1, 20, 2)}
