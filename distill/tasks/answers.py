r"""Finding and comparing answers in text that a model wrote: boxed answers, numbers, option letters.

Everything here takes time linear in the text: patterns that could backtrack use possessive quantifiers, and nothing is
evaluated. A text from which no single answer can be read gives None, which no gold answer equals.
"""

import re
from collections import deque
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

_BOX = re.compile(r"\\boxed\{|\\.|[{}]", re.DOTALL)

# An integer, grouped or not, with an optional decimal part, and after it the lower half of a fraction (`3/4`, `5 3/4`)
# or a power of ten (`1.5e3`, `1.5 x 10^3`). Not part of a word, a list without spaces, a date or an expression (`9**9`,
# `3-5`): of those no part is the number that was meant.
_NUMBER = re.compile(
    r"(?<![\w.])(?<![0-9],)(?<![0-9]:)(?<![\w)][*/^+\-−×])(?<![\w)]\*\*)"
    r"(?P<sign>[-−+]?)[$€£]?(?P<minus>[-−]?)"
    r"(?:(?P<whole>[0-9]{1,4}+)\s(?=[0-9]{1,9}/[0-9]))?"
    r"(?P<digits>(?>(?>[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?+|\.[0-9]++))"
    r"(?:/(?P<below>[0-9]{1,30}+)|[eE](?P<e>[+-]?[0-9]{1,4}+)"
    r"|\s?[×x*]\s?10(?:\^|\*\*)\{?(?P<power>[-−+]?[0-9]{1,4}+)\}?)?+"
    r"(?![.,:]?[0-9])(?!(?:\*\*|[*/^+\-−×])\(?[0-9])(?![eE][+-]?[0-9])"
    r"(?P<percent>\s?(?:%|percent\b))?+"
)
_FRACTION_DIGITS = 300  # above a fraction line: more is no number that anyone means, and slow to divide
_ANSWER_CUE = re.compile(r"####|(?i:\banswer)(?:\*\*)?(?:\s{0,3}:|\s{1,3}is\b)")
_LATEX = [(re.compile(pattern), text) for pattern, text in [
    (r"\\[!,;: ]", ""), (r"\{,\}", ","), (r"\\([$%])", r"\1"), (r"~", " "),
    (r"\\(?:times|cdot)(?![A-Za-z])", "×"),
    (r"\\(?:text|textbf|mathrm|mathbf|mathsf|mbox)\{([^{}]*)\}(?:\s?\^\{?[-−]?[0-9]\}?)?", r" \1 "),
    (r"(?<![0-9])([0-9]{1,30}+)\s?\\[dt]?frac\{([0-9]{1,30})\}\{([0-9]{1,30})\}",  # 2\frac{1}{2}
     lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}"),
    (r"\\[dtc]?frac\{\s?([-−]?[0-9]{1,30})\s?\}\{\s?([0-9]{1,30})\s?\}", r"\1/\2"),
    (r"\\[dt]?frac([0-9])([0-9])", r"\1/\2"),
]]  # fmt: skip
# With one of these a box holds a formula, of which a number in it is only a part: `\sqrt{2}`, `18\pi`.
_FORMULA = re.compile(r"\\(?:sqrt|pi|[dtc]?frac|binom|ln|log|sin|cos|tan|exp|sum|prod|int|infty)(?![A-Za-z])|[√π∞]")

_NOT_ONE_OF_SEVERAL = r"(?!\w)(?!\)?\s{0,3}(?:or|and|/|,|&)\s{0,3}\(?[A-J](?!\w))"
_LETTER_ALONE = re.compile(r"\(?([A-Ja-j])[).:]{0,2}")
# A small letter may be a word or a variable, unless it ends its line or has a mark: `the answer is a.`, `b) 600`.
_SMALL = r"([a-j])(?=[*_]{0,3}(?:\)|[.,;:!](?:\s|\Z)|[ \t]{0,3}(?:\n|\Z)))"
# `answer B`, `the answer is option B`, `correct option: B`; not `option B`, which may be one of a list.
_LETTER_AFTER_CUE = re.compile(
    r"(?i:\banswer(?:\*\*)?\s{0,3}(?::|=|-|\bis\b)?|\b(?:option|choice)\s{0,3}(?::|=|-|\bis\b))\s{0,3}"
    rf"(?i:(?:option|choice)\s{{1,3}})?:?[*_('“\x22$\s]{{0,6}}(?:([A-J]){_NOT_ONE_OF_SEVERAL}|{_SMALL})"
)
# A letter that stands for an option: `B)`, `(B)`, `B.`, `B:`; not those of `6 A.M.`, `A:B` or `P(A)`.
_MARKED = r"(?:\)|[.:](?![A-Za-z]\b))"
_NOT_WRONG = r"(?!\)?\s(?:is|are)\s(?:wrong|false|incorrect|not)\b)"
_LETTER_FIRST = re.compile(rf"\(?([A-J])(?={_MARKED}){_NOT_ONE_OF_SEVERAL}{_NOT_WRONG}")
_NAMED = r"(?i:\b(?:option|choice)[-\s]{1,4})[*(]{0,3}([A-J])"
_LETTER_NAMED = re.compile(_NAMED + _NOT_ONE_OF_SEVERAL)
# `So it is (B).`, `so it is B`; not `not (B)` and `(B) is wrong`.
_LETTER_IN_BRACKETS = re.compile(rf"(?<!\w)(?<!not )\(([A-J])(?=\)){_NOT_ONE_OF_SEVERAL}{_NOT_WRONG}")
_LETTER_LAST = re.compile(r"(?<!\S)(?:is|it's|choose|pick|select)\s[*(]{0,3}([A-J])[*)]{0,3}[.!]?\s*\Z")
_OPTION = re.compile(rf"(?<![\w.])(?<!\w\()([A-J])(?={_MARKED})|{_NAMED}(?!\w)")
_SMALL_FIRST = re.compile(r"\(?([a-j])\)")
_SMALL_OPTION = re.compile(r"(?<![\w.])(?<!\w\()([a-j])\)")
_LAST_CHARACTERS = 200  # of a text in which its last words are looked for


class Number(NamedTuple):
    """A number as it stands, and whether a percent sign follows: `25 %` has the value 25."""

    value: Decimal | Fraction
    percent: bool = False


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


def final_number(text: str) -> Decimal | Fraction | None:
    r"""The number a text ends up with: in the last box, else the first after the last `answer is`, else the last.

    Currency signs, grouping commas, trailing zeros and units do not matter. A box with several numbers or a formula has
    none.

    >>> final_number("So she pays $1,080.00 in all."), final_number(r"6 + 12 = \boxed{18\text{ dollars}}")
    (Decimal('1080.00'), Decimal('18'))
    """
    found = read_number(text)
    return found.value if found else None


def read_number(text: str) -> Number | None:
    r"""The number of `final_number`, with its percent sign.

    >>> read_number(r"That is \boxed{\frac{3}{4}}"), read_number("25 %")
    (Number(value=Fraction(3, 4), percent=False), Number(value=Decimal('25'), percent=True))
    """
    boxed = last_boxed(text)
    if boxed is not None:
        boxed = _plain(boxed)
        numbers = [_number(match) for match in _NUMBER.finditer(boxed)] if not _FORMULA.search(boxed) else []
        return numbers[0] if len(set(numbers)) == 1 else None
    text = _plain(text)
    cue = _last(_ANSWER_CUE, text)
    if cue and (after := _NUMBER.search(text, cue.end())):
        return _number(after)
    last = _last(_NUMBER, text)
    return _number(last) if last else None


def _plain(text: str) -> str:
    """Without the LaTeX that stands around numbers and letters."""
    if "\\" in text or "~" in text or "{" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    return text


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None


def _number(match: re.Match[str]) -> Number | None:
    """None for a fraction that has no value."""
    negative = (match["sign"] in ("-", "−")) != bool(match["minus"])
    digits = ("-" if negative else "") + match["digits"].replace(",", "")
    percent = match["percent"] is not None
    if match["below"]:
        below = int(match["below"])
        if not below or len(digits) > _FRACTION_DIGITS:
            return None
        part = Fraction(digits) / below
        whole = int(match["whole"] or 0)
        return Number(part - whole if negative else part + whole, percent)
    power = match["e"] or (match["power"] or "0").replace("−", "-")
    return Number(Decimal(f"{digits}e{power}") if power != "0" else Decimal(digits), percent)


def option_letter(text: str) -> str | None:
    r"""The option (A to J) that a text chooses: `B`, `(B)`, `B.`, `B) 6000`, `the answer is b`, `So it is (B).`

    A text that marks several options says none, unless it also says which is the answer.

    >>> option_letter("Not A. The answer is (C)."), option_letter("A or B"), option_letter("A) 5 B) 7 C) 9")
    ('C', None, None)
    """
    boxed = last_boxed(text)
    text = _plain(text if boxed is None else boxed).strip().strip("*_`$ \n")
    if alone := _LETTER_ALONE.fullmatch(text):
        return alone[1].upper()
    if said := _last(_LETTER_AFTER_CUE, text):
        return (said[1] or said[2]).upper()
    marked = {option[1] or option[2] for option in _OPTION.finditer(text)}
    if len(marked) > 1:
        return None
    end = text[-_LAST_CHARACTERS:]
    *before, last_line = (_LETTER_ALONE.fullmatch(line.strip(" \t*_`$")) for line in end.split("\n"))
    chosen = (
        _LETTER_FIRST.match(text)
        or _LETTER_NAMED.search(text)
        or _LETTER_IN_BRACKETS.search(text)
        or _LETTER_LAST.search(end)
        or (last_line if before and not any(before) else None)
    )
    if chosen is not None:
        return chosen[1].upper() if not marked - {chosen[1].upper()} else None
    small = {option[1] for option in _SMALL_OPTION.finditer(text)} if not marked else set()
    return small.pop().upper() if len(small) == 1 and _SMALL_FIRST.match(text) else None
