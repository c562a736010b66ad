"""Pages as Markdown: what goes in as text stays text, tables keep their columns, and figures and folded parts are left out."""

import random
import re

from distill.report.blocks import (
    Bullets,
    Card,
    Cards,
    Cell,
    Check,
    Checks,
    Code,
    Facts,
    Figure,
    Fold,
    Group,
    KeyValues,
    Notice,
    Section,
    Table,
    Text,
)
from distill.report.markdown import render_markdown
from distill.report.page import render_page

PAYLOAD = "<img src=x onerror=alert(1)> | `a` *b* _c_ [d](javascript:e) # f ~~g~~ & \u202e\x07 \\"
FENCED = re.compile(r"^(`{3,})\n(.*?)\n\1$", flags=re.S | re.M)


def sections(text: str) -> list[Section]:
    rows = [[text, Cell(text, text), text]] * 2
    table = Table(text, ["A", Cell("B", text), "C"], [Group(rows, title=text), Group(rows)], prose=frozenset({2}))
    figure = Figure("a figure", "caption", (), [{"a": 1}], "a.csv")
    return [
        Section(
            "First",
            [Text(text), Bullets(text, [text]), Notice(text, [text]), Cards([Card(text, text, text, [(text, text)])])],
        ),
        Section(
            "Second",
            [table, KeyValues([Facts(text, [(text, text)])]), Checks([Check(text, text, concern=True)])],
            lead=text,
        ),
        Section(
            "Third",
            [
                Code(f"``` {text}\n````", text),
                Code("never shown", "folded", folded=True),
                Fold("more", [Text("hidden")]),
            ],
        ),
        Section("Only a figure", [figure]),
    ]


def test_text_stays_text_wherever_it_stands():
    markdown = render_markdown(PAYLOAD, sections(PAYLOAD), kicker=PAYLOAD)
    (code,) = FENCED.findall(markdown)
    assert len(code[0]) > 4 and "onerror" in code[1]  # a fence longer than any in the text
    outside = FENCED.sub("", markdown)
    assert not re.search(
        r"(?<!\\)[<`*_\[\]#~](?![#* ]|\*)", re.sub(r"^(\*\*|# |## |- \*\*|> )|\*\*", "", outside, flags=re.M)
    )
    assert not re.search("[\u202e\x07]", markdown) and "⟨U+202E⟩" in markdown
    assert "alert(1)" in outside


def test_tables_keep_their_columns_and_headings_their_lines():
    alphabet = "ab|\\`*\n<#-+1. "
    for _ in range(50):
        text = "".join(random.choices(alphabet, k=12))
        lines = FENCED.sub("", render_markdown("title", sections(text))).splitlines()
        rows = [line for line in lines if line.startswith("| ") or line.startswith("|-") or line.startswith("| ---")]
        assert len(rows) == 7  # names, rule, heading and two rows, two rows
        for row in rows:
            # A bar that is not escaped ends a cell: before it stand an even number of backslashes.
            bars = [m for m in re.finditer(r"\|", row) if (m.start() - len(row[: m.start()].rstrip("\\"))) % 2 == 0]
            assert len(bars) == 4, row


def test_lines_do_not_become_lists_or_headings():
    for text, written in (("+ 3", r"\+ 3"), ("- a", r"\- a"), ("1. a", r"1\. a"), ("+3.5", "+3.5"), ("=", r"\=")):
        assert f"\n{written}\n" in render_markdown("t", [Section("s", [Text(text)])])


def test_figures_and_what_is_folded_are_left_out():
    markdown = render_markdown("title", sections("text"))
    assert "a figure" not in markdown and "Only a figure" not in markdown and "never shown" not in markdown
    assert "hidden" not in markdown and "more: see the page beside this file." in markdown


def test_the_same_sections_are_a_page():
    html = render_page("title", sections(PAYLOAD))
    assert "<img" not in html and html.count("<details") == 2 and "hidden" in html
