"""matplotlib as inline SVG: page fonts, CSS variables for colours, ids of its own, the same bytes every time.

matplotlib is imported when the first chart is drawn, not when a page is.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from distill.report.blocks import Panel
from distill.report.palette import STAND_IN, themed
from distill.report.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
PANEL_WIDTH = 340  # CSS pixels: three side by side on a desk, one on a phone, text at its nominal size on both
FONT_SIZE = 11.0

# Stands before every id; the page puts each panel's own prefix in its place. A private-use character cannot come from
# a label: `visible` writes those out.
ID_MARK = "\ue000"

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "distill",
    "text.parse_math": False,  # a label is text, whatever it contains
    "font.family": ["DejaVu Sans"],  # ships with matplotlib, so that layout does not depend on the machine
    "font.size": FONT_SIZE,
    "figure.dpi": 72,  # one point is one CSS pixel
    "savefig.dpi": 72,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.edgecolor": STAND_IN["muted"],
    "axes.labelcolor": STAND_IN["muted"],
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": STAND_IN["rule"],
    "grid.linewidth": 0.8,
    "text.color": STAND_IN["ink"],
    "xtick.color": STAND_IN["muted"],
    "ytick.color": STAND_IN["muted"],
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "xtick.major.size": 3,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
}


def draw(paint: "Callable[[Figure], None]", *, title: str, description: str, height: float) -> Panel:
    """The chart that `paint` draws on an empty figure of PANEL_WIDTH x `height` pixels."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The page's fonts draw the text, so it does not matter what matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(PANEL_WIDTH / 72, height / 72))
        paint(figure)
        for text in figure.findobj(Text):
            text.set_text(visible(text.get_text()))  # control characters are not XML
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Panel(_inline(buffer.getvalue(), height, description), title, description)


def _inline(document: bytes, height: float, description: str) -> Markup:
    """matplotlib's own document as an element of an HTML page."""
    root = ElementTree.fromstring(document)
    # The document's own style sheet would apply to the whole page.
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
        for name, value in list(element.attrib.items()):
            if name == "id":
                value = ID_MARK + value
            elif name == f"{{{XLINK}}}href":
                del element.attrib[name]
                name, value = "href", "#" + ID_MARK + value.removeprefix("#")
            else:
                value = re.sub(r"url\(#", f"url(#{ID_MARK}", value)
            element.set(name, _page_font(themed(value)) if name == "style" else themed(value))
    root.attrib.clear()
    root.attrib.update(
        viewBox=f"0 0 {PANEL_WIDTH} {height:g}",
        width=str(PANEL_WIDTH),
        height=f"{height:g}",
        role="img",
    )
    root.set("aria-label", visible(description))
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _page_font(style: str) -> str:
    """Keeps size and weight of a `font:` shorthand; the family is the page's."""

    def replace(match: re.Match) -> str:
        weight = f"; font-weight: {match['weight']}" if match["weight"] else ""
        return f"font-size: {match['size']}px{weight}"

    # Rotated text, which a tick label is to matplotlib, spells the shorthand out.
    style = re.sub(r"font-family: [^;]*; ", "", style)
    return re.sub(r"font: (?:(?P<weight>\w+) )?(?P<size>[\d.]+)px [^;]*", replace, style)
