r"""The option that a text chooses: `B`, `(B)`, `B) 6000`, `the answer is b`, `So it is (B).`, `B is correct.`

A text that marks several options chooses none of them, unless it also says which is the answer.
"""

import re
from collections import deque

from distill.tasks.answers import last_boxed
from distill.tasks.latex import plain, readable_end

_AROUND = "*_`$ \t\n\r\"'“”‘’<>-#→✅✓✔•="
_IN_FRONT = r"[*_(\[{\x22'“‘`$>\s]{0,6}"
_MAYBE = r"(?i:(?:maybe|perhaps|possibly|option|choice|answer|also)\s{1,3})?"
_NOT_ONE_OF_SEVERAL = (
    rf"(?!\w)(?![)*\]]{{0,3}}[.,;]?\s{{0,3}}(?i:\b(?:or|and)\b|[/,&;+]|-(?=\s?\(?[A-J](?!\w)))\s{{0,3}}(?i:\bor\s{{1,3}})?{_MAYBE}"
    r"[(*]{0,3}[A-J](?!\w))"
)
_NOT_WRONG = (
    r"(?![)*_\].]{0,4}\s(?:(?:is|are|was|were|can|could|would|does|do|did|must|should)\s?"
    r"(?:wrong|false|incorrect|not\b|n['’]t)|(?:is|was|does|would|could|ca|wo)n['’]t|cannot))"
)
_LETTER_ALONE = re.compile(r"(?:(?i:option|choice)\s)?[(\[{]?([A-Ja-j])[)\]}]?[.:,;]?")
_BULLET = re.compile(r"[0-9]{1,2}[.)]\s{1,3}")
_LINE_CHARACTERS = 30  # of a line that is nothing but a letter
# A small letter may be a word or a variable, unless it ends its line or has a mark: `the answer is a.`, `b) 600`.
_SMALL = r"([a-j])(?=[*_]{0,3}(?:\)|[.,;:!](?:\s|\Z)|[ \t]{0,3}(?:\n|\Z)))"
_IS = r"(?:is|was|must\sbe|should\sbe|would\sbe|will\sbe)\b"
_SURELY = (
    r"(?i:(?:therefore|thus|hence|then|clearly|indeed|definitely|most\slikely|likely|probably|simply|now)\s{1,3})?"
)
# `answer B`, `the answer is option B`, `correct option: B`; not `option B`, which may be one of a list.
_SAID = re.compile(
    r"(?:(?i:(?<!wrong )(?<!incorrect )(?<!ans)(?<!\w)(?:answers?\b|ans\b\.?)(?:\s(?:choice|here|to\s(?:the|this)\s\w{1,20}))?)"
    rf"(?:[\x22*_>]{{1,3}})?(?:['’]s\b|\s{{0,3}}(?::|=|-|→|—|(?i:{_IS}))?)"
    rf"|(?i:(?<!wrong )(?<!incorrect )\b(?:option|choice)\s{{0,3}}(?::|=|-|{_IS}))|####)\s{{0,3}}{_SURELY}"
    r"(?:not\s[*(]{0,3}[A-J][*)]{0,3},?\sbut\s(?:rather\s)?)?"
    rf"{_IN_FRONT}(?i:(?:option|choice|letter)\s{{1,3}})?:?{_IN_FRONT}(?:([A-J]){_NOT_ONE_OF_SEVERAL}|{_SMALL})"
)
_CALLED_CORRECT = re.compile(
    r"(?<![\w(])[*(]{0,3}(?<!not )([A-J])[)*.]{0,3}\s(?:(?:is|must\sbe|would\sbe)\s)(?:therefore\s|thus\s|clearly\s|indeed\s)?"
    r"(?:(?:the\s)?(?:only\s|one\s)?(?:correct|right|best|true)\b|the\s(?:final\s)?(?:answer|only\soption|only\sone)\b)"
)
# A letter that stands for an option: `B)`, `(B)`, `B.`, `B:`; not those of `6 A.M.`, `A:B` or `P(A)`.
_MARKED = r"(?:\)|\]|[.:](?![A-Za-z]\b))"
_LETTER_FIRST = re.compile(
    rf"[(\[]?([A-J])(?={_MARKED}|\*\*|\s[-–—]\s|,?\s(?:because|since)\b){_NOT_ONE_OF_SEVERAL}{_NOT_WRONG}"
)
_NAMED = r"(?i:\b(?:option|choice)[-\s]{1,4})[*(]{0,3}([A-J])"
_LETTER_NAMED = re.compile(_NAMED + _NOT_ONE_OF_SEVERAL + _NOT_WRONG)
# `So it is (B).`, `so it is B`, `6000 = B) 6000`; not `not (B)` and `(B) is wrong`.
_LETTER_IN_BRACKETS = re.compile(rf"(?<![\w(])(?<!not )\(?(?<!not \()([A-J])(?=\)){_NOT_ONE_OF_SEVERAL}{_NOT_WRONG}")
_LETTER_LAST = re.compile(
    r"(?<!\S)(?<!answer )(?<!option )(?<!choice )(?i:is|it['’]s|choose|pick|select|with|so|therefore|hence|thus|matches|i\.e\.|corresponds\sto|selected:"
    r"|conclusion:|result:|solution:|→|=>),?\s[*(]{0,3}([A-J])[*)]{0,3}[.!]?\s*\Z"
)
_OPTION = re.compile(rf"(?<![\w.])(?<!\w\()([A-J])(?={_MARKED})|{_NAMED}(?!\w)")
_SMALL_FIRST = re.compile(r"\(?([a-j])\)")
_SMALL_OPTION = re.compile(r"(?<![\w.])(?<!\w\()([a-j])\)")
_LAST_CHARACTERS = 200  # of a text in which its last words are looked for


def option_letter(text: str) -> str | None:
    r"""The option (A to J) that a text chooses, None where it chooses none or several.

    >>> option_letter("Not A. The answer is (C)."), option_letter("A or B"), option_letter("A) 5 B) 7 C) 9")
    ('C', None, None)
    """
    boxed = last_boxed(text)
    text = plain(readable_end(text, boxed)).strip(_AROUND)
    if (letter := _alone(text)) is not None:
        return letter
    if said := deque(_SAID.finditer(text), maxlen=1):
        return (said[0][1] or said[0][2]).upper()
    correct = {match[1] for match in _CALLED_CORRECT.finditer(text)}
    if correct:
        return correct.pop() if len(correct) == 1 else None
    lines = text.split("\n")
    alone = {letter for line in lines if (letter := _alone(line))}
    if len(alone) == 1 and _alone(lines[0]):
        return alone.pop()
    marked = {option[1] or option[2] for option in _OPTION.finditer(text)}
    if len(marked) > 1:
        return None
    end = text[-_LAST_CHARACTERS:]
    chosen = (
        _LETTER_FIRST.match(text)
        or _LETTER_NAMED.search(text)
        or _LETTER_IN_BRACKETS.search(text)
        or _LETTER_LAST.search(end)
    )
    letter = chosen[1].upper() if chosen else _alone(lines[-1]) if len(alone) == 1 else None
    if letter:
        return letter if not marked - {letter} else None
    small = {option[1] for option in _SMALL_OPTION.finditer(text)} if not marked else set()
    return small.pop().upper() if len(small) == 1 and _SMALL_FIRST.match(text) else None


def _alone(line: str) -> str | None:
    """The letter that is all of a line."""
    if len(line) > _LINE_CHARACTERS:
        return None
    line = line.strip(_AROUND)
    bullet = _BULLET.match(line)
    match = _LETTER_ALONE.fullmatch(line[bullet.end() :].strip(_AROUND) if bullet else line)
    return match[1].upper() if match else None
