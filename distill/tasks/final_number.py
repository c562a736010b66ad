r"""The number that a text ends up with.

A box counts before everything, then what is said to be the answer, then the last number of the text. Where several
numbers are offered (`5 or 7`, `\boxed{5, 7}`), or a number is only part of a formula, there is none.
"""

import re
from collections import deque
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from distill.tasks.answers import last_boxed
from distill.tasks.latex import plain, readable_end

# An integer, grouped or not, with an optional decimal part, and after it the lower half of a fraction (`3/4`, `5 3/4`)
# or a power of ten (`1.5e3`, `1.5 x 10^3`). Not part of a word, a list without spaces, a date or an expression (`9**9`,
# `3-5`, `x^{2}`): of those no part is the number that was meant.
_NUMBER = re.compile(
    r"(?<![\w.√±])(?<![0-9],)(?<![0-9]:)(?<![\w)][*/^+\-×])(?<![\w)]\*\*)(?<![\^_]\{)(?:Rs\.\s?)?"
    r"(?P<sign>[-+]?)[$€£₹¥]?(?P<minus>-?)"
    r"(?:(?P<whole>[0-9]{1,4}+)\s{1,2}(?:and\s)?(?=[0-9]{1,9}/[0-9]))?"
    r"(?P<digits>(?>(?>[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?+|\.[0-9]++))"
    r"(?:\s?/\s?(?P<below>-?[0-9](?:,?[0-9]){0,30}+)|[eE](?P<e>[+-]?[0-9]{1,4}+)"
    r"|\s?[×x*]\s?10(?:\^|\*\*)\{?(?P<power>[-+]?[0-9]{1,4}+)\}?)?+"
    r"(?![.,:]?[0-9])(?!(?:\*\*|[*/^+\-×])\(?[0-9])(?![eE][+-]?[0-9])"
    r"(?!\s?[π²³])(?:\s{0,3}(?P<unit>%|percent\b|k\b|(?i:hundred|thousand|million|billion|trillion)\b))?+"
)
_PLACES = {"%": -2, "percent": -2, "hundred": 2, "k": 3, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_FRACTION_DIGITS = 300  # above a fraction line: more is no number that anyone means, and slow to divide

_SPELLINGS = [(re.compile(pattern), text) for pattern, text in [
    (r"(?<![0-9])(?<![0-9][.,])[0-9]{1,3}(?:(?:[\u00a0'’][0-9]{3})++|(?:[ ][0-9]{3}){2,9}+)(?![0-9])",  # 1'080, 1 000 000
     lambda m: "".join(filter(str.isdecimal, m[0]))),
    (r"(?<![\w.,])[0-9]{1,3}(?:(?:\.[0-9]{3}){2,9}+(?![.,]?\w)|(?:\.[0-9]{3}){1,9}+,[0-9]{1,2}(?![.,]?\w))",
     lambda m: m[0].replace(".", "").replace(",", ".")),  # 1.000.000; 1.080,50
    (r"(?<![\w.,([{])0,([0-9]{1,30}+)(?![.,]?\w)(?![)\]}])", r"0.\1"),
    (r"(?<![\w.*/^+×-])(?<![*/^+×x-]\s)10(?:\^|\*\*)(?:([0-9]{1,4})(?![\w^*.])|\{([0-9]{1,4})\})", r"1e\1\2"),
    (r"(?<!\w)_{1,2}(?=[0-9$-])", ""),
    (r"=\s?-\s(?=[0-9.$])", "=-"),
    (r"(?:(?i:\bnegative)|(?<![0-9)]\s)(?i:\bminus))\s(?=[0-9.$])", "-"),
]]  # fmt: skip
_IN_A_BOX = [(re.compile(pattern), text) for pattern, text in [
    (r"(?<=[0-9])\s(?=[0-9]{3}(?![0-9]))", ""),  # 1 080
    (r"\A\s*-\s", "-"),
]]  # fmt: skip
# With one of these a box holds a formula, of which its number is only a part: `\sqrt{2}`, `18\pi`, `72 + x`, `> 5`.
_FORMULA = re.compile(
    r"\\(?:sqrt|pi|[dtc]?frac|binom|ln|log|sin|cos|tan|exp|sum|prod|int|infty|neg|not)(?![A-Za-z])"
    r"|[√π∞<>≤≥≠±!_]|[0-9)]\s?[\^²³]|[0-9]\s{0,2}(?:[+*-]\s?[a-z](?![a-z])|/?\s?[xyz](?![A-Za-z]))"
    r"|(?<![A-Za-z])[a-z]\s?[+*-]\s?[0-9]"
)
_SEPARATOR = re.compile(r",(?![0-9]{3}(?![0-9]))|;|\b(?:or|and)\b")

# After `is` a number of the same sentence is meant; after the others one that follows at once.
_SAID = re.compile(
    r"####|(?i:\banswer)(?:[\x22*_]{0,3}\s{0,3}[:=]"
    r"|\*{0,2}(?P<is>['’]s|\s{1,3}(?:is|would\sbe|should\sbe|must\sbe|will\sbe)\b)(?!\s(?:not|n't)\b))"
)
_CUES = 8  # so many of the last ones are looked at
_SENTENCE_ENDS = re.compile(r"[^\W\d_][^\w\n]{0,9}\n|\w[.!?]\s")
_AT_ONCE = re.compile(
    r"(?:[\W_]|(?i:\b(?:about|approximately|roughly|around|exactly|only|just|simply|a|total|of|usd?|rs|final|answer|is)\b)"
    r"|\b[A-Za-z](?=\s?=)|\\[a-z]{1,12})*+"
)
# From a number to the result of the sum that it begins: in `48 + 24 = 72` it is ` + 24 = `.
_SUM = re.compile(
    r"(?:[^=\n.,;:]|[.,](?=[0-9])){0,60}?[-+*/×÷]\s?[$(]?[0-9](?:[^=\n.;:]|\.(?=[0-9])){0,80}?=\s{0,3}(?=[-$(]{0,2}[0-9])"
)
_ANOTHER = re.compile(
    r"(?:\s[A-Za-z]{1,20}){0,2}\s(?:or|to)\s{1,3}(?=[-$]{0,2}[0-9])"
    r"|(?:,\s?|\s(?:and|&)\s)(?=[-$]{0,2}[0-9.,]{1,30}\s{0,3}(?:[.\n]|\Z))"
)


class Number(NamedTuple):
    """A number as it stands, and by how many places a word behind it moves its point: -2 for `%`, 6 for `million`."""

    value: Decimal | Fraction
    places: int = 0

    @property
    def whole(self) -> Decimal | Fraction:
        """The value with its word: 0.25 for `25 %`. Exact."""
        if isinstance(self.value, Fraction):
            return self.value * Fraction(10) ** self.places
        sign, digits, exponent = self.value.as_tuple()
        return Decimal((sign, digits, int(exponent) + self.places)) if self.places else self.value

    def agrees(self, other: "Number") -> bool:
        """Whether both are the same: with their words, or where only one has a word, which is then a unit."""
        if self.value == other.value and (self.places == other.places or not self.places or not other.places):
            return True
        return self.places != other.places and self.whole == other.whole


def final_number(text: str) -> Decimal | Fraction | None:
    r"""The number a text ends up with. Currency signs, grouping, trailing zeros and units do not matter.

    >>> final_number("So she pays $1,080.00 in all."), final_number(r"6 + 12 = \boxed{18\text{ dollars}}")
    (Decimal('1080.00'), Decimal('18'))
    """
    found = read_number(text)
    return found.value if found else None


def read_number(text: str) -> Number | None:
    r"""The number of `final_number`, with the word that changes its size.

    >>> read_number(r"That is \boxed{\frac{3}{4}}"), read_number("25 %"), read_number("The answer is 5 or 7.")
    (Number(value=Fraction(3, 4), places=0), Number(value=Decimal('25'), places=-2), None)
    """
    boxed = last_boxed(text)
    text = plain(readable_end(text, boxed))
    for pattern, replacement in _SPELLINGS if boxed is None else (*_SPELLINGS, *_IN_A_BOX):
        text = pattern.sub(replacement, text)
    if boxed is not None:
        return _only_number(text)
    for cue in reversed(deque(_SAID.finditer(text), maxlen=_CUES)):
        first = _NUMBER.search(text, cue.end())
        if first and _is_meant(text, cue, first.start()):
            found = _result(text, first)
            return None if _offers_another(text, found) else _number(found)
    last = deque(_NUMBER.finditer(text), maxlen=1)
    return _number(last[0]) if last else None


def _only_number(box: str) -> Number | None:
    """Of a box. What stands before the last `=` is how it was found."""
    if "=" in box and not _SEPARATOR.search(box) and _NUMBER.search(end := box.rpartition("=")[2]):
        box = end
    if _FORMULA.search(_NUMBER.sub("0 ", box)):
        return None
    numbers = [_number(match) for match in _NUMBER.finditer(box)]
    return numbers[0] if numbers and all(n is not None and n == numbers[0] for n in numbers) else None


def _is_meant(text: str, cue: re.Match[str], start: int) -> bool:
    """Whether a number that starts there belongs to what announces an answer."""
    if start - cue.end() > 300:
        return False
    if cue[0] == "####":
        return "\n" not in text[cue.end() : start].strip()
    if cue["is"]:
        return not _SENTENCE_ENDS.search(text, cue.end(), start)
    return _AT_ONCE.match(text, cue.end(), start).end() == start  # type: ignore[union-attr]  # it may match nothing


def _result(text: str, first: re.Match[str]) -> re.Match[str]:
    """The number itself, or what the sum comes to that it begins."""
    while (sum_ := _SUM.match(text, first.end())) and (result := _NUMBER.search(text, sum_.end())):
        first = result
    return first


def _offers_another(text: str, found: re.Match[str]) -> bool:
    """Whether another number is offered beside it, as in `5 or 7`; not in `1/2 or 0.5`."""
    beside = _ANOTHER.match(text, found.end())
    other = beside and _NUMBER.match(text, beside.end())
    one, two = _number(found), _number(other) if other else None
    return one is not None and two is not None and not one.agrees(two)


def _number(match: re.Match[str]) -> Number | None:
    """None for a fraction that has no value."""
    negative = (match["sign"] == "-") != bool(match["minus"])
    digits = ("-" if negative else "") + match["digits"].replace(",", "")
    places = _PLACES[match["unit"].lower()] if match["unit"] else 0
    if match["below"]:
        below = int(match["below"].replace(",", ""))
        if not below or len(digits) > _FRACTION_DIGITS:
            return None
        part = Fraction(digits) / below
        whole = int(match["whole"] or 0)
        return Number(part - whole if negative else part + whole, places)
    power = match["e"] or match["power"] or "0"
    return Number(Decimal(f"{digits}e{power}") if power != "0" else Decimal(digits), places)
