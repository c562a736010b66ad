"""The page renderer: what goes in as text stays text, colours follow the theme, charts say what their data say."""

import doctest
import random
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from markupsafe import escape

from distill.report import numbers, palette, text
from distill.report.bars import Bar, bars
from distill.report.blocks import (
    Answer,
    Browser,
    Card,
    Cards,
    Cell,
    Check,
    Checks,
    Choice,
    Code,
    Entry,
    Example,
    Facts,
    Figure,
    Group,
    Key,
    KeyValues,
    Notice,
    Section,
    Table,
    Text,
)
from distill.report.forest import Interval, forest
from distill.report.histogram import Series, histogram
from distill.report.page import csv_uri, render_page
from distill.report.scatter import Point, _frontier, scatter

PAYLOAD = "</title></style></pre><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='x' {{7*7}} \u202e\x07"


@pytest.mark.parametrize("module", [numbers, text])
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_every_invisible_character_is_written_out_and_no_other():
    for code in range(0x110000):
        character = chr(code)
        category = unicodedata.category(character)
        hidden = category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") and character not in "\n\t"
        assert text.visible(character) == (f"⟨U+{code:04X}⟩" if hidden else character)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_is_a_dash(value):
    for write in (
        numbers.fixed,
        numbers.signed,
        numbers.percent,
        numbers.count,
        numbers.compact,
        numbers.usd,
        numbers.times,
    ):
        assert write(value) == numbers.DASH


def test_compact_keeps_three_digits_at_every_magnitude():
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21, "Y": 1e24}
    for _ in range(2000):
        value = 10 ** random.uniform(0, 26)
        number, _, prefix = numbers.compact(value).partition(" ")
        assert float(number) * scale[prefix] == pytest.approx(value, rel=5.01e-3)


@pytest.mark.parametrize("alphabet", ["x", "ab <&\n", "\u202e\x00", "\U0001f600é"])
def test_a_folded_text_loses_only_its_middle_and_says_how_much(alphabet):
    for _ in range(50):
        whole = "".join(random.choices(alphabet, k=random.randrange(3000)))
        limit = random.randrange(64, 4000)
        found = text.fold(whole, limit)
        assert len(found.head) + found.left_out + len(found.tail) == len(whole)
        assert whole.startswith(found.head) and whole.endswith(found.tail)
        assert (found.beginning is None) == (len(whole) <= 800 and whole.count("\n") < 12)
        shown = len(str(escape(text.visible(found.head + found.tail))).encode())
        assert len(found.head + found.tail) <= limit and shown <= 4 * limit
        if len(whole) <= limit and not any(map(text._is_hidden, alphabet)):
            assert found.left_out == 0 and found.head == whole


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [palette.LIGHT, palette.DARK])
def test_every_colour_of_text_or_series_contrasts_with_every_ground(theme):
    for ground in ("paper", "raised", "shade"):
        for role in theme.keys() - {"paper", "raised", "shade", "rule"}:
            high, low = sorted((luminance(theme[role]), luminance(theme[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (role, ground)
    assert set(palette.ROLES) <= set(theme)


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def some_points(count: int) -> list[Point]:
    return [
        Point(10 ** random.uniform(6, 8), y := random.uniform(20, 90), y - 5, y + 5, f"student {i} <b> $x$", "blue")
        for i in range(count)
    ]


def a_scatter(points=None):
    points = some_points(5) if points is None else points
    return scatter(points, title="t", description="d", x_label="x", y_label="y", y_range=(0, 100))


def all_blocks(word: str) -> list[Section]:
    return [
        Section(
            word,
            [
                Text(word),
                Notice(word, [word]),
                Cards([Card(word, word, word, [(word, word)], tone="yes")]),
                Table(word, [word, Cell(word, word)], [Group([[word, Cell(word, word)]], title=word)]),
                Cards([Card(word, word, word, tone="plain")]),
                Example(word, word, word, [Answer(word, word, word, how, word) for how in ("right", "unjudged")]),
                Browser(
                    [Choice(word, [word, word])],
                    [Entry(Example(word, word, word, [Answer(word, word, word, "wrong", word)]), [[1]])],
                ),
                KeyValues([Facts(word, [(word, word)])]),
                Code(word, word),
                Code(word, word, folded=True),
                Checks([Check(word, word, concern=True)]),
                Figure(
                    word,
                    word,
                    [
                        scatter(
                            [Point(1e6, 50, 40, 60, word, "blue")],
                            title=word,
                            description=word,
                            x_label=word,
                            y_label=word,
                            y_range=(0, 100),
                        ),
                        forest([Interval(word, 1, 0, 2)], margin=2, title=word, description=word, x_label=word),
                        bars([Bar(word, 1, 2, "green")], title=word, description=word, x_label=word),
                        histogram([Series([1, 2, 4], [1, 3], "blue")], title=word, description=word, x_label=word),
                    ],
                    [{"name": word}],
                    "data.csv",
                    [Key(word, "blue", "ring")],
                ),
            ],
            lead=word,
        )
    ]


def test_no_block_lets_text_become_markup():
    html = render_page(PAYLOAD, all_blocks(PAYLOAD), kicker=PAYLOAD, lead=PAYLOAD)
    found, plain = Tags(html), Tags(render_page("Zebra", all_blocks("Zebra"), kicker="Zebra", lead="Zebra"))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attributes) for _, attributes in found.tags] == [sorted(attributes) for _, attributes in plain.tags]
    # Where one page says Zebra the other shows the payload, readable; three labels in drawings are shortened.
    shown = text.visible(PAYLOAD)
    assert "".join(found.text).count(shown) == "".join(plain.text).count("Zebra") - html.count("…</text>")
    assert "\u202e" not in html and "\x07" not in html


def test_page_asks_for_nothing():
    html = render_page("title", all_blocks("word"))
    assert "default-src 'none'" in html
    for tag, attributes in Tags(html).tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"@import|url\((?!#)", html)


def test_drawings_use_the_pages_colours_and_fonts_only():
    svg = str(a_scatter().svg)
    assert "var(--blue)" in svg and "var(--muted)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert "font-family" not in svg and "<style" not in svg and "<metadata" not in svg and "DejaVu" not in svg
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert "student 0 <b> $x$" in texts


def test_drawing_twice_gives_the_same_bytes():
    points = some_points(7)
    assert a_scatter(points).svg == a_scatter(points).svg


def test_the_same_drawing_twice_in_a_page_has_ids_of_its_own():
    panel = a_scatter()
    html = render_page("title", [Section("s", [Figure("f", "c", [panel, panel], [], "d.csv")])])
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids)) > 10
    references = re.findall(r'url\(#([^)]*)\)|<use[^>]* href="#([^"]*)"', html)
    assert references and {a or b for a, b in references} <= set(ids)


def test_a_point_stands_where_its_data_say():
    """Positions are compared through a linear map fitted on two of the points: log x, and y downwards."""
    from math import log10

    points = [Point(x, y, y, y, f"p{i}", "blue") for i, (x, y) in enumerate([(1e6, 10), (1e8, 90), (3.7e6, 62.5)])]
    root = ElementTree.fromstring(str(a_scatter(points).svg))
    marks = [
        (float(use.get("x")), float(use.get("y"))) for use in root.iter("use") if "var(--blue)" in use.get("style", "")
    ]
    (x0, y0), (x1, y1), (x2, y2) = marks[-3:]
    assert x2 == pytest.approx(x0 + (x1 - x0) * (log10(3.7e6) - 6) / 2, abs=0.01)
    assert y2 == pytest.approx(y0 + (y1 - y0) * (62.5 - 10) / 80, abs=0.01)
    assert y1 < y0 and x1 > x0


def test_a_histogram_has_the_heights_of_its_shares_on_a_logarithmic_axis():
    counts = [random.randint(1, 99) for _ in range(4)]
    edges = [1, 10, 100, 1000, 10000]
    panel = histogram([Series(edges, counts, "blue")], title="t", description="d", x_label="x")
    (line,) = [
        path.get("d")
        for path in ElementTree.fromstring(str(panel.svg)).iter("path")
        if "fill: none" in (path.get("style") or "") and "var(--blue)" in path.get("style")
    ]
    corners = [tuple(map(float, pair)) for pair in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", line)]
    ground, tops = corners[0][1], [y for _, y in corners[1:-1:2]]
    assert [(ground - y) / (ground - tops[0]) for y in tops] == pytest.approx([n / counts[0] for n in counts], rel=1e-3)
    widths = [b[0] - a[0] for a, b in zip(corners[1:-1:2], corners[2:-1:2], strict=True)]
    assert widths == pytest.approx([widths[0]] * 4, rel=1e-3)


@pytest.mark.parametrize(
    "edges, counts", [([], []), ([0, 1], [5]), ([0, 1, 2], [0, 0]), ([2**61, 2**62], [1]), ([5, 6], [2])]
)
def test_a_histogram_of_anything_can_be_drawn(edges, counts):
    series = [Series(edges, counts, "blue"), Series([0, 1, 2, 3], [1, 0, 2], "orange", dashed=True)]
    for some in (series[:1], series):
        svg = str(histogram(some, title="t", description="d", x_label="x").svg)
        assert "nan" not in svg and "inf" not in svg


def test_frontier_is_the_set_of_points_nothing_beats():
    for _ in range(50):
        points = [
            Point(random.choice([1.0, 2.0, 3.0, 5.0]), random.randrange(5), 0, 0, str(i), "blue") for i in range(8)
        ]
        unbeaten = {
            (p.x, p.y)
            for p in points
            if not any(q.x <= p.x and q.y >= p.y and (q.x, q.y) != (p.x, p.y) for q in points)
        }
        assert {(p.x, p.y) for p in _frontier(points)} == unbeaten


@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_charts_of_any_number_of_entries(count):
    a_scatter(some_points(count))
    a_scatter([Point(1e6, 50, 50, 50, "same", "blue")] * count)
    rows = [Interval(f"row {i}" * 9, -1.0, -2.0, 0.5) for i in range(count)]
    forest(rows, margin=2.0, title="t", description="d", x_label="x")
    bars([Bar("b", 0.0, 0.0, "blue")] * count, title="t", description="d", x_label="x")


def test_csv_comes_back_as_it_was():
    import csv
    import io

    rows = [{"name": 'a,"b"\n\u202e', "value": 0.1 + 0.2, "none": None}, {"name": "é", "value": 1e-300, "none": None}]
    back = list(csv.DictReader(io.StringIO(unquote(csv_uri(rows).split(",", 1)[1]), newline="")))
    assert [(r["name"], float(r["value"]), r["none"]) for r in back] == [(r["name"], r["value"], "") for r in rows]
    assert '"' not in csv_uri(rows) and csv_uri([]) and csv_uri([{"lone": "\ud800"}])


def test_a_page_without_charts_does_not_import_matplotlib():
    program = (
        "import sys; from distill.report.page import render_page; from distill.report.blocks import Section, Text;"
        "render_page('t', [Section('s', [Text('x')])]); sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
