r"""Finding and comparing answers in text that a model wrote: boxed answers, numbers, option letters.

Everything here takes time linear in the text: patterns that could backtrack use possessive quantifiers, and nothing is
evaluated. A text from which no single answer can be read gives None, which no gold answer equals.
"""

import re
from collections import deque
from decimal import Decimal

_BOX = re.compile(r"\\boxed\{|\\.|[{}]", re.DOTALL)

# An integer, grouped or not, with an optional decimal part. Not part of a word, a list without spaces, a date or an
# expression (`9**9`, `3/4`, `3-5`, `1e5`): of those no part is the number that was meant.
_NUMBER = re.compile(
    r"(?<![\w.])(?<![0-9],)(?<![0-9]:)(?<![\w)][*/^+\-−×])(?<![\w)]\*\*)"
    r"(?P<sign>[-−+]?)[$€£]?(?P<minus>[-−]?)"
    r"(?P<digits>(?>[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?+)"
    r"(?![.,:][0-9])(?!(?:\*\*|[*/^+\-−×])\(?[0-9])(?![eE][+-]?[0-9])"
)
_ANSWER_CUE = re.compile(r"####|(?i:\banswer)(?:\*\*)?(?:\s{0,3}:|\s{1,3}is\b)")
_LATEX = [(re.compile(pattern), text) for pattern, text in [
    (r"\\[!,;: ]", ""), (r"\{,\}", ","), (r"\\([$%])", r"\1"), (r"\\text\{([^{}]*)\}", r" \1 "),
]]  # fmt: skip

_NOT_ONE_OF_SEVERAL = r"(?!\w)(?!\)?\s{0,3}(?:or|and|/|,|&)\s{0,3}\(?[A-J](?!\w))"
_LETTER_ALONE = re.compile(r"\(?([A-Ja-j])[).:]{0,2}")
# `answer B`, `the answer is option B`, `correct option: B`; not `option B`, which may be one of a list.
_LETTER_AFTER_CUE = re.compile(
    r"(?i:\banswer\s{0,3}(?::|=|-|\bis\b)?|\b(?:option|choice)\s{0,3}(?::|=|-|\bis\b))\s{0,3}"
    rf"(?i:(?:option|choice)\s{{1,3}})?:?[*(]{{0,3}}([A-J]){_NOT_ONE_OF_SEVERAL}"
)
# A letter that stands for an option: `B)`, `(B)`, `B.`, `B:`; not those of `6 A.M.`, `A:B` or `P(A)`.
_MARKED = r"(?:\)|[.:](?![A-Za-z]\b))"
_LETTER_FIRST = re.compile(rf"\(?([A-J])(?={_MARKED}){_NOT_ONE_OF_SEVERAL}")
_NAMED = r"(?i:\b(?:option|choice)[-\s]{1,4})[*(]{0,3}([A-J])"
_LETTER_NAMED = re.compile(_NAMED + _NOT_ONE_OF_SEVERAL)
_OPTION = re.compile(rf"(?<![\w.])(?<!\w\()([A-J])(?={_MARKED})|{_NAMED}(?!\w)")


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` that is closed.

    >>> last_boxed(r"\boxed{1} then \boxed{\frac{1}{2}} and \boxed{3")
    '\\frac{1}{2}'
    """
    if "\\boxed{" not in text:
        return None
    open_braces: list[int | None] = []  # where a box's content begins, None for other braces
    found = None
    for match in _BOX.finditer(text):
        if match[0] == "\\boxed{":
            open_braces.append(match.end())
        elif match[0] == "{":
            open_braces.append(None)
        elif match[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                found = (start, match.start())
    return text[found[0] : found[1]] if found else None


def final_answer(text: str) -> str:
    """What counts as the answer in `text`: the last closed box, else all of it; white space normalised."""
    boxed = last_boxed(text)
    return " ".join((text if boxed is None else boxed).split())


def exact_match(gold: str, text: str) -> bool:
    """Whether the final answer in `text` is `gold`, up to white space."""
    return final_answer(text) == " ".join(gold.split())


def final_number(text: str) -> Decimal | None:
    r"""The number a text ends up with: in the last box, else the first after the last `answer is`, else the last.

    Currency signs, grouping commas, trailing zeros and units do not matter. A box with several numbers has none.

    >>> final_number("So she pays $1,080.00 in all."), final_number(r"6 + 12 = \boxed{18\text{ dollars}}")
    (Decimal('1080.00'), Decimal('18'))
    """
    boxed = last_boxed(text)
    if boxed is not None:
        for pattern, replacement in _LATEX:
            boxed = pattern.sub(replacement, boxed)
        numbers = [_decimal(match) for match in _NUMBER.finditer(boxed)]
        return numbers[0] if len(set(numbers)) == 1 else None
    cue = _last(_ANSWER_CUE, text)
    if cue and (after := _NUMBER.search(text, cue.end())):
        return _decimal(after)
    last = _last(_NUMBER, text)
    return _decimal(last) if last else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None


def _decimal(match: re.Match[str]) -> Decimal:
    negative = (match["sign"] in ("-", "−")) != bool(match["minus"])
    return Decimal(("-" if negative else "") + match["digits"].replace(",", ""))


def option_letter(text: str) -> str | None:
    r"""The option (A to J) that a text chooses: `B`, `(B)`, `B.`, `B) 6000`, `the answer is B`, `\boxed{B}`.

    A text that marks several options says none, unless it also says which is the answer.

    >>> option_letter("Not A. The answer is (C)."), option_letter("A or B"), option_letter("A) 5 B) 7 C) 9")
    ('C', None, None)
    """
    boxed = last_boxed(text)
    if boxed is not None:
        for pattern, replacement in _LATEX:
            boxed = pattern.sub(replacement, boxed)
        text = boxed
    text = text.strip().strip("*_` \n")
    if alone := _LETTER_ALONE.fullmatch(text):
        return alone[1].upper()
    if said := _last(_LETTER_AFTER_CUE, text):
        return said[1]
    chosen = _LETTER_FIRST.match(text) or _LETTER_NAMED.search(text)
    if chosen is None or any((option[1] or option[2]) != chosen[1] for option in _OPTION.finditer(text)):
        return None
    return chosen[1]
