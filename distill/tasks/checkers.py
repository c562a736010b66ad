r"""Whether an answer says what a gold answer says: checkers by name, each of them total.

    exact       the same text, up to white space
    normalised  the same words: case, articles, punctuation and white space do not count, Unicode forms neither
    number      the same number: `$1,080.00` is `1080`
    near_number the same number within 5 %
    choice      the same option letter: `(B)`, `B.`, `the answer is B`
    labels      the same set of labels, in any order; commas, semicolons, bars, lines or a JSON list
    squad       the same words as one of the accepted answers, a JSON list
    math        the same mathematics, by math-verify: `\frac12` is `0.5`
    ifeval      every rule followed

An answer is read as `final_answer` reads it: the last closed `\boxed{}` where there is one. Any two texts give a
verdict and no exception. Those of QUICK take time linear in their texts; `math` may take for ever or all memory, and
`ifeval` has rules that others wrote: they belong into the processes of `check_pool`.
"""

import json
import re
import unicodedata
from collections import deque
from fractions import Fraction
from typing import Any

from distill.errors import unknown_name
from distill.tasks.answers import exact_match, final_answer, last_boxed
from distill.tasks.final_number import Number, read_number
from distill.tasks.ifeval import ifeval
from distill.tasks.latex import one_form
from distill.tasks.letters import option_letter
from distill.tasks.verdict import Checker, Verdict

VERSION = 3  # part of every key: raise it when a checker here would say something else
GOLD_TO_ANSWER_ONLY, ANSWER_TO_GOLD_ONLY = "gold to answer only", "answer to gold only"
UNREADABLE_GOLD = "in the gold answer"  # ends the note that no answer could ever be right

_NOTE_CHARACTERS = 40  # of a text that a note quotes
_MATH_CHARACTERS = 4_000  # of an answer without a box: its end; of a box: more is not read
_CHARACTERS = 100_000  # of an answer that is compared word by word or label by label
_PIECE = 256  # characters of a word that are brought into one form at a time
_TOLERANCE = Fraction(5, 100)  # of the larger of the two numbers, as the authors of SciBench count
_LARGEST_POWER = 400  # of ten, in numbers that are compared for nearness


def check(name: str, gold: str, answer: str) -> Verdict:
    """The verdict of a checker in this process. Raises InputError for a name that is none."""
    return checker_named(name)(gold, answer)


def checker_named(name: str) -> Checker:
    if name not in CHECKERS:
        raise unknown_name("checker", name, CHECKERS)
    return CHECKERS[name]


def exact(gold: str, answer: str) -> Verdict:
    same = exact_match(gold, answer)
    return Verdict(same, "the same text" if same else "another text")


def number(gold: str, answer: str) -> Verdict:
    """A word such as `%` or `million` counts, or is a unit where only one of the two has it: `25 %` is `0.25` and
    `25`."""
    wanted, found = read_number(gold), read_number(answer)
    if wanted is None or found is None:
        return _same_reading("number", wanted, found)
    if found.agrees(wanted):
        return Verdict(True, _said(found))
    return Verdict(False, f"{_said(found)} is not {_said(wanted)}")


def near_number(gold: str, answer: str) -> Verdict:
    wanted, found = read_number(gold), read_number(answer)
    if wanted is None or found is None:
        return _same_reading("number", wanted, found)
    pairs = [(wanted.whole, found.whole)]
    if not wanted.places or not found.places:
        pairs.append((wanted.value, found.value))
    near = False
    for pair in pairs:
        one, other = map(_fraction, pair)
        if one is None or other is None:
            return Verdict(False, "a number that is too large or too long to compare")
        near |= abs(one - other) <= _TOLERANCE * max(abs(one), abs(other))
    return Verdict(near, f"{_said(found)} is {'' if near else 'not '}near {_said(wanted)}")


def _said(number: Number) -> str:
    value = shown(str(number.value))
    return value if not number.places else f"{value} %" if number.places < 0 else f"{value} x 10^{number.places}"


def _fraction(value: Any) -> Fraction | None:
    """None where the power of ten or the digits are too many: arithmetic with them would not end."""
    if isinstance(value, Fraction):
        return value
    _, digits, exponent = value.as_tuple()
    return Fraction(value) if len(digits) + abs(exponent) <= _LARGEST_POWER else None


def choice(gold: str, answer: str) -> Verdict:
    return _same_reading("option letter", option_letter(gold), option_letter(answer))


def _same_reading(what: str, gold: Any, answer: Any) -> Verdict:
    if gold is None:
        return Verdict(False, f"no {what} {UNREADABLE_GOLD}")
    if answer is None:
        return Verdict(False, f"no {what} in the answer")
    if answer == gold:
        return Verdict(True, shown(str(answer)))
    return Verdict(False, f"{shown(str(answer))} is not {shown(str(gold))}")


def shown(text: str, characters: int = _NOTE_CHARACTERS) -> str:
    """The beginning of a text in one printable line."""
    cut = text[: characters + 1]
    cut = "".join(c if c.isprintable() else " " for c in cut)
    return cut if len(text) <= characters else cut[:characters] + "..."


# normalised

_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\{([^{}]*)\}")
_GROUPING = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_COMMA_IN_NUMBER = re.compile(r"(?<=[0-9]),(?=[0-9])")
_PART_OF_NUMBER = re.compile(r"([-−+./:^*](?=[0-9]))")  # before a digit these are no punctuation: -5, .5, 1/2, 10:30
_ARTICLES = {"a", "an", "the"}


class _WithoutPunctuation(dict):
    """For str.translate: punctuation, currency signs and what is invisible go; the table grows as they are met."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        category = unicodedata.category(character)
        gone = category[0] == "P" or category in ("Sc", "Cc", "Cf", "Cs") or (category[0] == "S" and code < 128)
        self[code] = None if gone and not character.isspace() else character
        return self[code]


_WITHOUT_PUNCTUATION = _WithoutPunctuation()


def normalised_text(text: str) -> str:
    """`text` as SQuAD compares it, with signs, points and fractions of numbers kept; Unicode by NFKC.

    >>> normalised_text("The  “Battle of Hastings”, (1066)!"), normalised_text("$1,000.50"), normalised_text("-5.")
    ('battle of hastings 1066', '1000.50', '-5')
    """
    text = _compatible(_TEXT.sub(r" \1 ", text))
    text = _COMMA_IN_NUMBER.sub(" ", _GROUPING.sub("", text)).replace("−", "-")
    parts = _PART_OF_NUMBER.split(text)  # every other one is such a sign
    parts[::2] = (part.translate(_WITHOUT_PUNCTUATION) for part in parts[::2])
    words = "".join(parts).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def _compatible(text: str) -> str:
    """One form of the text in lower case, white space as single blanks. In pieces: canonical ordering takes time
    quadratic in a run of combining marks."""
    forms = (
        "".join(unicodedata.normalize("NFKC", word[i : i + _PIECE]) for i in range(0, len(word), _PIECE))
        for word in text.split()
    )
    return " ".join(" ".join(forms).casefold().split())


def normalised(gold: str, answer: str) -> Verdict:
    return _same_words([gold], answer)


def squad(gold: str, answer: str) -> Verdict:
    return _same_words(accepted_answers(gold), answer)


def _same_words(accepted: list[str], answer: str) -> Verdict:
    answer = final_answer(answer)
    if max(len(answer), *map(len, accepted)) > _CHARACTERS:
        return Verdict(False, f"more than {_CHARACTERS:,} characters")
    found = normalised_text(answer)
    for gold in accepted:
        wanted = normalised_text(gold)
        if wanted == found if wanted else gold.strip() == answer:  # of nothing but punctuation that is what counts
            return Verdict(True, "the same words")
    return Verdict(False, "other words")


def accepted_answers(gold: str) -> list[str]:
    """Those of a JSON list; a text that is none is the only one."""
    return _json_list(gold) or [gold]


# labels

_LABELS_CUE = re.compile(
    r"(?im:^[^\w\n]{0,9}(?:the\s{1,3})?(?:(?:final|correct)\s{1,3})?"
    r"(?:answers?|labels?|categor(?:y|ies)|class(?:es)?|tags?)"
    r"(?:\*\*)?(?:\s{0,3}:|\s{1,3}(?:is|are)\b(?:\s{0,3}:)?))"
)
_LABEL_SEPARATORS = re.compile(r"[,;|\n\r\u2028\u2029]")
_BULLET = re.compile(r"(?:[-*•]|[0-9]{1,3}[.)])\s")
_FINER = (re.compile(r"\s(?:and|&)\s|/"), re.compile(r"\s"))
_NO_LABELS = {"none", "no labels", "n/a", "empty"}
_AROUND_LABEL = " \t\"'`“”‘’*_.()[]{}<>:"


def labels(gold: str, answer: str) -> Verdict:
    if max(len(gold), len(answer)) > _CHARACTERS:
        return Verdict(False, f"more than {_CHARACTERS:,} characters")
    wanted, found = label_set(gold), label_set(answer)
    if wanted is None:
        return Verdict(False, f"no labels {UNREADABLE_GOLD}")
    if found is None:
        return Verdict(False, "no labels in the answer")
    if found != wanted:
        found = label_set(answer, wanted)
    if found == wanted:
        return Verdict(True, "the same labels")
    missing, more = len(wanted - found), len(found - wanted)
    return Verdict(False, f"{missing} of {len(wanted)} labels missing, {more} too many")


def label_set(text: str, known: set[str] | None = None) -> set[str] | None:
    """The labels of a text, None where there are none. What is none of the `known` is cut further, if all its parts are
    known: `billing and tech`, `billing tech`."""
    boxed = last_boxed(text)
    if boxed is not None:
        text = _TEXT.sub(r" \1 ", boxed)
    listed = _json_list(text)
    if listed is None:
        cue = deque(_LABELS_CUE.finditer(text), maxlen=1)
        lines = [part.strip() for part in _LABEL_SEPARATORS.split(text[cue[0].end() :] if cue else text)]
        listed = [line[bullet.end() :] if (bullet := _BULLET.match(line)) else line for line in lines]
        if not any(map(_label, listed)):
            return None
    found: set[str] = set()
    for label in filter(None, map(_label, listed)):
        parts = {label} if known is None or label in known else _finer(label, known)
        found |= parts
    return set() if found <= _NO_LABELS and not (known and found & known) else found


def _finer(label: str, known: set[str]) -> set[str]:
    label = label.removeprefix("and ")
    for separator in _FINER:
        parts = {_label(part) for part in separator.split(label)} - {""}
        if parts and parts <= known:
            return parts
    return {label}


def _label(text: str) -> str:
    return _compatible(text).strip(_AROUND_LABEL)


def _json_list(text: str) -> list[str] | None:
    """The last JSON list of texts and numbers in a text."""
    end = text.rfind("]")
    start = text.rfind("[", 0, end) if end >= 0 else -1
    if start < 0:
        return None
    try:
        value: Any = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or not all(isinstance(entry, str | int | float) for entry in value):
        return None
    return [str(entry) for entry in value]


# math

_COMMAND = re.compile(r"\\(?:(?:begin|end)\{[a-z]+\*?\}|[A-Za-z]+|.)", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2,}")
_FUNCTIONS = re.compile(r"\b(?:sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|sqrt|pi|oo|infty)\b")
_MATH_SIGN = re.compile(r"[0-9\\=<>≤≥^∞π√]|(?<![^\W_])[A-Za-z)]\s?[-+*/]\s?[A-Za-z(](?![^\W_])")
_GROUPING_BLANK = re.compile(r"(?<=[0-9])(?:\\[,!;: ]|[\u00a0'’])(?=[0-9]{3}(?![0-9]))")
_ANCHOR = re.compile(r"\$|\\\(|\\\[|\\boxed")


def is_mathematics(text: str) -> bool:
    r"""Whether a text is nothing but mathematics: numbers, LaTeX, formulas of one-letter names.

    >>> [is_mathematics(t) for t in (r"\frac{1}{2}", "x^2+1", "(1, 2]", "1,080", "Paris", "72 apples", "B")]
    [True, True, True, True, False, False, False]
    """
    if len(text) > _MATH_CHARACTERS or not _MATH_SIGN.search(text):
        return False
    words = _COMMAND.sub(" ", _TEXT.sub(" ", text))
    return not _WORD.search(_FUNCTIONS.sub(" ", words))


def math(gold: str, answer: str) -> Verdict:
    """By math-verify, whose comparison is not symmetric: what counts is that it accepts the answer for the gold one,
    and a note says when it would not accept them the other way round. Only under a time and a memory limit."""
    import logging

    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own alarms are off: limits are ours
    texts = [_expression(text) for text in (gold, answer)]
    if None in texts:
        return Verdict(False, f"a formula of more than {_MATH_CHARACTERS} characters")
    wanted, found = (parse(text, parsing_timeout=None) for text in texts)
    if not wanted:
        verdict = normalised(gold, answer)
        return Verdict(verdict.correct, f"the gold answer is no mathematics; {verdict.note}")
    if not found:
        return Verdict(False, "no mathematics in the answer")
    there = verify(wanted, found, timeout_seconds=None)
    back = verify(found, wanted, timeout_seconds=None)
    if there and back:
        return Verdict(True, "equal")
    if there or back:
        return Verdict(there, GOLD_TO_ANSWER_ONLY if there else ANSWER_TO_GOLD_ONLY)
    return Verdict(False, "not equal")


def _expression(text: str) -> str | None:
    """What of a text math-verify is to read: its last closed box; all of a bare formula, which it would read only in
    part; else the end of the text. With one form of each sign and digit: it does not know them all. None for a box that
    is too long."""
    text = _GROUPING_BLANK.sub("", one_form(text).replace(r"\$", ""))
    boxed = last_boxed(text)
    bare = text.strip("*_ \n")  # Markdown
    if boxed is None and not _ANCHOR.search(bare) and is_mathematics(bare):
        boxed = bare
    if boxed is None:
        return text[-_MATH_CHARACTERS:]
    return None if len(boxed) > _MATH_CHARACTERS else f"\\boxed{{{boxed}}}"


CHECKERS: dict[str, Checker] = {
    "exact": exact,
    "normalised": normalised,
    "number": number,
    "near_number": near_number,
    "choice": choice,
    "labels": labels,
    "squad": squad,
    "math": math,
    "ifeval": ifeval,
}
QUICK = tuple(name for name in CHECKERS if name not in ("math", "ifeval"))
# What a process checks before a clock runs: the first time takes long.
WARM_UP: dict[Checker, tuple[tuple[str, str], ...]] = {
    math: (("x^2+1", "x^2+1"), ("1/2", "1/2")),
    ifeval: (('{"instruction_id_list":["change_case:english_lowercase"],"kwargs":[{}]}', "all is well"),),
}
