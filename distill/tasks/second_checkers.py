r"""A second, independent checker for each checker: what an audit asks whether it would have said the same.

Of no answer do both read the same way: they share the place where it stands (the last closed `\boxed{}`, else all of
it) and, for numbers and formulas, which characters stand for others. The second ones are plain on purpose. So they are
wrong more often: what an audit counts is disagreement.
"""

import json
import re
from collections.abc import Callable

from distill.tasks.answers import last_boxed
from distill.tasks.check_pool import check_all
from distill.tasks.checkers import normalised, number
from distill.tasks.final_number import final_number
from distill.tasks.latex import one_form
from distill.tasks.plain_rules import plain_rules
from distill.tasks.verdict import Verdict

_LETTER = re.compile(r"(?<![A-Za-z])[A-J](?![A-Za-z'])")
_PLAIN_NUMBER = re.compile(r"[-+]?[0-9]++(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]{1,3})?+")
_WORD = re.compile(r"\w++")
_BETWEEN_LABELS = re.compile(r"[,;|\n]")
_LATEX_DRESS = re.compile(r"\\(?:left|right|displaystyle|[!,;: ])|[\s{}$]|(?<=\\)[dt](?=frac)")
_CHARACTERS = 100_000


def plain_letter(gold: str, answer: str) -> Verdict:
    """The last letter from A to J that stands alone on the last line."""
    lines = [line for line in _final(answer).splitlines() if line.strip()]
    letters = _LETTER.findall(lines[-1]) if lines else []
    return Verdict(bool(letters) and letters[-1] == gold)


def plain_words(gold: str, answer: str) -> Verdict:
    """The same letters and digits as one of the accepted answers; case and articles do not count."""
    found = _words(_final(answer))
    return Verdict(any(_words(one) == found for one in _listed(gold) or [gold]))


def plain_near_number(gold: str, answer: str) -> Verdict:
    """The last number as Python reads it, within 5 %."""
    numbers = _PLAIN_NUMBER.findall(one_form(_final(answer)).replace(",", ""))
    try:
        wanted, found = float(one_form(gold).replace(",", "")), float(numbers[-1])
    except (ValueError, IndexError):
        return Verdict(False)
    return Verdict(abs(wanted - found) <= 0.05 * max(abs(wanted), abs(found)))


def plain_labels(gold: str, answer: str) -> Verdict:
    """Every label of the gold answer stands in the answer, and it has as many parts between commas."""
    listed, text = _listed(gold), _final(answer).casefold()
    listed = _BETWEEN_LABELS.split(gold) if listed is None else listed
    wanted = {label.strip().casefold() for label in listed} - {"", "none"}
    if not wanted:
        return Verdict(text.strip(" []{}.") in ("", "none"))
    return Verdict(all(label in text for label in wanted) and text.count(",") + 1 == len(wanted))


def plain_latex(gold: str, answer: str) -> Verdict:
    """The same number, or the same LaTeX without its dress."""
    if final_number(f"\\boxed{{{gold}}}") is not None:
        return number(gold, answer)
    return Verdict(_LATEX_DRESS.sub("", gold) == _LATEX_DRESS.sub("", _final(answer)))


# None for what a second checker has no word on.
SECOND: dict[str, tuple[str, Callable[[str, str], Verdict | None] | None]] = {
    "exact": ("normalised", normalised),
    "normalised": ("plain words", plain_words),
    "squad": ("plain words", plain_words),
    "number": ("math-verify", None),
    "near_number": ("plain number", plain_near_number),
    "choice": ("plain letter", plain_letter),
    "labels": ("plain labels", plain_labels),
    "math": ("plain number or LaTeX", plain_latex),
    "ifeval": ("plain rules", plain_rules),
}


def second_verdicts(checker: str, pairs: list[tuple[str, str]]) -> list[bool | None]:
    """Whether the second checker takes each (gold, answer); None where it has no word on that."""
    function = SECOND[checker][1]
    if function is not None:
        verdicts = (function(gold, answer) for gold, answer in pairs)
        return [None if verdict is None else verdict.correct for verdict in verdicts]
    found: list[bool | None] = [False] * len(pairs)

    def keep(place: int, verdict: Verdict) -> None:
        found[place] = verdict.correct

    check_all("math", ((gold.replace(",", ""), answer) for gold, answer in pairs), keep)
    return found


def _final(answer: str) -> str:
    boxed = last_boxed(answer)
    return (answer if boxed is None else boxed)[-_CHARACTERS:]


def _listed(gold: str) -> list[str] | None:
    """The entries of a JSON list."""
    try:
        value = json.loads(gold)
    except (ValueError, RecursionError):
        return None
    return [str(entry) for entry in value] if isinstance(value, list) else None


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.casefold()) if word not in ("a", "an", "the")]
