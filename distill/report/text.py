"""Text that came from a model, made safe to look at: nothing in it is invisible, turns its surroundings or is endless.

Escaping of HTML is only measured here: the page's templates escape everything, always.
"""

import unicodedata
from dataclasses import dataclass

from markupsafe import escape

KEPT = frozenset("\n\t")
_OPEN, _OPEN_LINES = 800, 12  # characters and lines of a text that is not folded
_BEGINNING = 240  # characters of a folded one that are seen


def _is_hidden(character: str) -> bool:
    # Control, format (bidirectional overrides, zero-width), surrogates, private use and unassigned; line separators.
    category = unicodedata.category(character)
    return character not in KEPT and (category[0] == "C" or category in ("Zl", "Zp"))


def visible(text: str) -> str:
    """`text` with every invisible character except line feed and tab written as its code point.

    >>> visible("a\\x1b[31m\\u202eb")
    'a⟨U+001B⟩[31m⟨U+202E⟩b'
    """
    if text.isprintable():
        return text
    return text.translate({ord(c): f"⟨U+{ord(c):04X}⟩" for c in set(text) if _is_hidden(c)})


def clip(text: str, limit: int) -> tuple[str, int]:
    """The first `limit` characters of `text`, and how many were left out.

    >>> clip("abcdef", 4)
    ('abcd', 2)
    """
    return text[:limit], max(0, len(text) - limit)


@dataclass(frozen=True)
class Folded:
    """A text for a list of many: its beginning, to unfold it by, or None where it is short enough to stand open."""

    beginning: str | None
    head: str
    left_out: int  # characters between head and tail
    tail: str


def fold(text: str, limit: int) -> Folded:
    """At most `limit` characters of `text`: the middle of a longer one is left out, since models end with what they
    found, or with what they repeat. More is left out of a text that would take over four bytes a character of `limit`.

    >>> fold("short", 100)
    Folded(beginning=None, head='short', left_out=0, tail='')
    >>> fold("digits: 123456", 12)
    Folded(beginning=None, head='digits: 1', left_out=2, tail='456')
    """
    short = len(text) <= _OPEN and text.count("\n") < _OPEN_LINES
    kept = min(limit, len(text))
    while True:
        tail = 0 if kept == len(text) else kept // 4
        shown = Folded(
            beginning=None if short else " ".join(text[:_BEGINNING].split()),
            head=text[: kept - tail],
            left_out=len(text) - kept,
            tail=text[len(text) - tail :],
        )
        if len(escape(visible(shown.head + shown.tail)).encode(errors="replace")) <= 4 * limit:
            return shown
        kept //= 2


def shorten(label: str, limit: int) -> str:
    """A label of at most `limit` characters on one line, nothing in it invisible.

    >>> shorten("small-reasoning", 8)
    'small-r…'
    """
    label = " ".join(visible(label).split())
    return label if len(label) <= limit else label[: limit - 1] + "…"
