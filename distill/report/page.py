"""A title and sections of blocks become one HTML file that needs nothing else: no request, no font, and no script but the
one that filters a `Browser`."""

import csv
import io
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from distill.report import palette
from distill.report.blocks import Browser, Panel, Section
from distill.report.drawing import ID_MARK
from distill.report.text import clip, fold, visible

# A model that repeats itself can write megabytes; a reader needs the beginning.
ANSWER_LIMIT = 20_000


def render_page(title: str, sections: Sequence[Section], *, kicker: str = "distill", lead: str = "") -> str:
    """The page as HTML. `kicker` is the small line above the title, `lead` the paragraph under it."""
    template = _environment().get_template("page.html")
    browsed = any(isinstance(block, Browser) for section in sections for block in section.blocks)
    script = Markup(_file("browse.js")) if browsed else ""
    return template.render(
        title=title,
        sections=sections,
        kicker=kicker,
        lead=lead,
        css=Markup(_file("page.css")),
        script=script,
        # The browser runs this text and no other, whatever else might get into the page.
        script_hash=Markup("'sha256-" + b64encode(sha256(script.encode()).digest()).decode() + "'"),
        light=palette.css_variables(palette.LIGHT),
        dark=palette.css_variables(palette.DARK),
        panel_svg=_PanelIds(),
    )


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


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
    environment.globals.update(csv_uri=csv_uri, clip=clip, answer_limit=ANSWER_LIMIT, fold=fold)
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
