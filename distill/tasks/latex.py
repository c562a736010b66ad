r"""Numbers and letters without what stands around them: LaTeX, full-width characters, dashes for minus signs."""

import re

_CHARACTERS, _BOX_CHARACTERS = 50_000, 5_000
# Characters that stand for others: full width, dashes, fractions, blanks that do not break.
_STAND_FOR = str.maketrans(
    {0xFF10 + i: ord("0") + i for i in range(10)}
    | {0xFF21 + i: ord("A") + i for i in range(26)}
    | dict.fromkeys(map(ord, "−–﹣－"), "-")
    | {ord(one): other for one, other in zip("（）＝：⁄\u2009\u202f", "()=:/\u00a0\u00a0", strict=True)}
    | {
        ord(one): rf"\frac{{{i}}}{{{j}}}"
        for one, i, j in [("½", 1, 2), ("⅓", 1, 3), ("⅔", 2, 3), ("¼", 1, 4), ("¾", 3, 4)]
    }
)
_WHOLE = r"\{\s?(-?[0-9](?:,?[0-9]){0,30}+(?:\.[0-9]{1,30}+)?)\s?\}"
_LATEX = [(re.compile(pattern), text) for pattern, text in [
    (r"\^\s?\{?\\circ\}?", "°"),
    (r"\\[!,;: ]|\\(?:left|right|displaystyle)(?![A-Za-z])", ""), (r"\{,\}", ","), (r"\\([$%])", r"\1"), (r"~", " "),
    (r"\\(?:times|cdot)(?![A-Za-z])", "×"), (r"\\pm(?![A-Za-z])", "±"), (r"\\neq?(?![A-Za-z])", "≠"),
    (r"\\[lg](?:eq?|t)(?:slant|q)?(?![A-Za-z])", "<"), (r"\\[()\[\]]|\\(?:rm|bf|it)(?![A-Za-z])", " "),
    (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mbox)\{([^{}]*)\}(?:\s?\^\{?-?[0-9]\}?)?", r" \1 "),
    (r"\\[dt]?frac\s?([0-9])\s?([0-9])(?![0-9])", r"\\frac{\1}{\2}"),  # \frac12, \frac1{2}, \frac{1}2
    (r"\\[dt]?frac\s?([0-9])\s?\{", r"\\frac{\1}{"),
    (r"\\[dt]?frac\{([0-9]{1,30})\}\s?([0-9])", r"\\frac{\1}{\2}"),
    (r"(?<![0-9])([0-9]{1,30}+)\s?\\[dt]?frac\{([0-9]{1,30})\}\{([0-9]{1,30})\}",  # 2\frac{1}{2}
     lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}"),
    (rf"\\[dtc]?frac{_WHOLE}{_WHOLE}", r"\1/\2"),
    (r"\{\s?([0-9]{1,30})\s?\\over\s?([0-9]{1,30})\s?\}", r"\1/\2"),
]]  # fmt: skip


def readable_end(text: str, boxed: str | None) -> str:
    """What is read of a text for a number or a letter: its box, or its end. A box that is too long has neither."""
    if boxed is None:
        return text[-_CHARACTERS:]
    return boxed if len(boxed) <= _BOX_CHARACTERS else ""


def one_form(text: str) -> str:
    r"""`text` with one form of each digit, letter, minus sign, bracket and fraction: `½` becomes `\frac{1}{2}`."""
    return text if text.isascii() else text.translate(_STAND_FOR)


def plain(text: str) -> str:
    r"""`text` without the LaTeX around numbers, letters and words, and with one form of each digit and minus sign.

    >>> plain(r"\text{about } 2\frac12"), plain("−５ °C")
    (' about   5/2', '-5 °C')
    """
    text = one_form(text)
    if "\\" in text or "~" in text or "{" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    return text
