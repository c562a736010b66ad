"""The colours of a page by role. Charts are drawn in stand-ins; CSS gives each role its light and its dark colour.

The series have Okabe and Ito's hues, with the lightness at which each has a contrast of at least 4.5:1 with every ground of its
theme, so that a label may carry the colour of its point, and no two look alike to readers who do not see red, green or
blue (tests/report/test_palette.py computes what they see).
"""

import re

ROLES = ("ink", "muted", "rule", "shade", "paper", "blue", "orange", "purple", "green", "gold", "grey")

# A colour that no chart would use by itself stands for each role: matplotlib wants numbers, CSS wants names.
STAND_IN = {role: f"#0d15{i:02x}" for i, role in enumerate(ROLES, start=0x70)}
_ROLE_OF = {colour: role for role, colour in STAND_IN.items()}
_ANY = re.compile("|".join(_ROLE_OF))

LIGHT = {
    "ink": "#1c1b19",
    "muted": "#5d5950",
    "rule": "#e3dfd6",
    "shade": "#efece4",
    "paper": "#fbfaf7",
    "raised": "#ffffff",
    "link": "#0b5a8a",
    "blue": "#0869a6",
    "orange": "#9b3100",
    "purple": "#96397c",
    "green": "#09614b",
    "gold": "#906200",
    "grey": "#6d6b62",
}
DARK = {
    "ink": "#e9e6df",
    "muted": "#aaa69c",
    "rule": "#36383d",
    "shade": "#26282c",
    "paper": "#16171a",
    "raised": "#1d1f23",
    "link": "#7cc0f0",
    "blue": "#6bb8ee",
    "orange": "#f09454",
    "purple": "#da97bf",
    "green": "#59dcb1",
    "gold": "#e2c050",
    "grey": "#9f9f91",
}


def themed(style: str) -> str:
    """An SVG attribute with stand-ins replaced by the page's CSS variables."""
    return _ANY.sub(lambda match: f"var(--{_ROLE_OF[match.group()]})", style)


def css_variables(theme: dict[str, str]) -> str:
    return " ".join(f"--{role}: {colour};" for role, colour in theme.items())
