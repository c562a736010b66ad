"""Text that came from a model, made safe to look at: nothing in it is invisible, turns its surroundings or is endless.

Escaping of HTML is not done here: the page's templates escape everything, always.
"""

import unicodedata

KEPT = frozenset("\n\t")


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


def shorten(label: str, limit: int) -> str:
    """A label of at most `limit` characters on one line, nothing in it invisible.

    >>> shorten("small-reasoning", 8)
    'small-r…'
    """
    label = " ".join(visible(label).split())
    return label if len(label) <= limit else label[: limit - 1] + "…"
