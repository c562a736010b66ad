"""What a page is made of. Plain data; how each looks is in blocks.html, one macro per block of the same name.

All text is plain text, never HTML: the templates escape it. The one exception is `Panel.svg`, made by `drawing.draw`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from markupsafe import Markup


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    macro: ClassVar = "text"
    text: str
    muted: bool = False


@dataclass(frozen=True)
class Bullets:
    """Findings that belong together, one sentence or two each."""

    macro: ClassVar = "bullets"
    title: str
    items: Sequence[str]


@dataclass(frozen=True)
class Notice:
    """Something the reader must not miss, with details."""

    macro: ClassVar = "notice"
    text: str
    items: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """One finding: a word, a sentence, and the numbers behind it as (name, value)."""

    label: str
    headline: str
    sentence: str
    facts: Sequence[tuple[str, str]] = ()
    # A full, an empty and a half disc, told apart without colour; no disc.
    tone: Literal["yes", "no", "open", "plain"] = "open"


@dataclass(frozen=True)
class Cards:
    macro: ClassVar = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Cell:
    """A table cell with a second, quieter line of text (an interval, a unit)."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Rows under a common heading; the first cell of a row is its header."""

    rows: Sequence[Sequence[str | Cell]]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Columns after the first are numbers unless named in `prose`."""

    macro: ClassVar = "table"
    caption: str
    columns: Sequence[str | Cell]
    groups: Sequence[Group]
    prose: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Panel:
    """One drawing of a figure. `description` is read out in place of the picture."""

    svg: Markup
    title: str
    description: str


@dataclass(frozen=True)
class Key:
    """An entry of a figure's legend: a colour role with a mark."""

    label: str
    role: str = "ink"
    mark: Literal[
        "disc",
        "ring",
        "square",
        "diamond",
        "triangle",
        "wedge",
        "star",
        "hollow-star",
        "cross",
        "bar",
        "bar-light",
        "line",
        "band",
    ] = "disc"


@dataclass(frozen=True)
class Figure:
    """Panels side by side (below each other where it is narrow) with one legend, and the data they show."""

    macro: ClassVar = "figure"
    title: str
    caption: str
    panels: Sequence[Panel]
    data: Sequence[dict[str, Any]]  # rows with the same keys
    file_name: str
    legend: Sequence[Key] = ()


@dataclass(frozen=True)
class Answer:
    """A model's output, in its two parts, as it was written."""

    label: str
    thinking: str
    answer: str
    judgement: Literal["right", "wrong", "unfinished", "unjudged"]
    note: str = ""
    role: str = "ink"


@dataclass(frozen=True)
class Example:
    """One question with the answers of several models side by side."""

    macro: ClassVar = "example"
    label: str
    prompt: str
    gold: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Choice:
    """A filter: its name, and the values that an entry of a list may have."""

    name: str
    values: Sequence[str]


@dataclass(frozen=True)
class Entry:
    """An example in a list. `values[i]` are the places of its values in the list's i-th choice."""

    example: Example
    values: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Browser:
    """Examples to look through, filtered by `choices` and by words; long texts are folded, and cut in the middle.

    The one block with a script (browse.js): it only hides what the reader filters out, so without it all are shown.
    """

    macro: ClassVar = "browser"
    choices: Sequence[Choice]
    entries: Sequence[Entry]
    text_limit: int = 20_000  # characters of one text that are shown


@dataclass(frozen=True)
class Facts:
    """A titled list of (name, value)."""

    title: str
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class KeyValues:
    """Lists of facts side by side."""

    macro: ClassVar = "key_values"
    lists: Sequence[Facts]


@dataclass(frozen=True)
class Code:
    macro: ClassVar = "code"
    text: str
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Check:
    """Something that could make the page's claims wrong, and what was measured about it."""

    title: str
    text: str
    concern: bool


@dataclass(frozen=True)
class Checks:
    macro: ClassVar = "checks"
    checks: Sequence[Check]


@dataclass(frozen=True)
class Fold:
    """Blocks that stand closed until the reader opens them: the rest of what would be too long."""

    macro: ClassVar = "folding"
    title: str
    blocks: Sequence["Block"]


Block = Text | Bullets | Notice | Cards | Table | Figure | Example | Browser | KeyValues | Code | Checks | Fold


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    lead: str = ""
