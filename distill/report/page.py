"""A title and sections of blocks become one HTML file that needs nothing else: no script, no request, no font."""

import csv
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from distill.report import palette
from distill.report.blocks import Panel, Section
from distill.report.drawing import ID_MARK
from distill.report.text import clip, visible

# A model that repeats itself can write megabytes; a reader needs the beginning.
ANSWER_LIMIT = 20_000


def render_page(title: str, sections: Sequence[Section], *, kicker: str = "distill", lead: str = "") -> str:
    """The page as HTML. `kicker` is the small line above the title, `lead` the paragraph under it."""
    template = _environment().get_template("page.html")
    return template.render(
        title=title,
        sections=sections,
        kicker=kicker,
        lead=lead,
        css=Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8")),
        light=palette.css_variables(palette.LIGHT),
        dark=palette.css_variables(palette.DARK),
        panel_svg=_PanelIds(),
    )


class _PanelIds:
    """Gives every panel of one page a prefix of its own for the ids in its SVG."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, panel: Panel) -> Markup:
        self.count += 1
        return Markup(str(panel.svg).replace(ID_MARK, f"panel{self.count}-"))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Every value on its way out, in every template, so that no call can be forgotten.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.globals.update(csv_uri=csv_uri, clip=clip, answer_limit=ANSWER_LIMIT)
    return environment


def csv_uri(rows: Sequence[dict[str, Any]]) -> str:
    """A link that downloads `rows` as CSV without asking anyone for it. What is None is an empty field."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    # "replace" because a lone surrogate, which JSON can carry, has no UTF-8.
    return "data:text/csv;charset=utf-8," + quote(out.getvalue(), errors="replace")
