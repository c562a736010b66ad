r"""Rules of IFEval read a second time, from their wording and not from the rule book: what an audit of `ifeval` asks.

Each is as plain as the rule is said: words are what blanks separate, a bullet is a line that begins with one, a sentence
ends where its mark stands. Of rules that take more than a line, as those of languages, nothing is said, nor of a rule
without its argument (the rule book draws one at random), nor of very long answers.
"""

import json
import re
from collections.abc import Callable

from distill.tasks.verdict import Verdict

_WORD = re.compile(r"\w++")
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"')]|\Z)")
_STARS = re.compile(r"\*++")
_CHARACTERS = 100_000  # of an answer


def plain_rules(gold: str, answer: str) -> Verdict | None:
    """Whether every rule is followed; None where that cannot be said here."""
    if len(answer) > _CHARACTERS:
        return None
    asked = json.loads(gold)
    followed = bool(answer.strip())
    for name, arguments in zip(asked["instruction_id_list"], asked["kwargs"], strict=True):
        wanted, rule = _RULES.get(name, ((), None))
        values = [arguments.get(key) for key in wanted]
        if rule is None or not all(values):
            return None
        try:
            followed &= rule(answer, *values)
        except (AttributeError, TypeError):  # an argument of another type is no rule
            return None
    return Verdict(followed)


def _is(relation: str, count: int, number: int) -> bool:
    return count < number if relation == "less than" else count >= number


def _words(text: str) -> str:
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def _bullets(text: str) -> int:
    return sum(line.lstrip().startswith(("* ", "- ")) for line in text.splitlines())


def _highlights(text: str) -> int:
    return sum(_STARS.sub("*", line).count("*") // 2 for line in text.splitlines())


def _is_json(text: str) -> bool:
    try:
        json.loads(re.sub(r"(?i)\Ajson\b", "", text.strip().strip("`")))
    except (ValueError, RecursionError):
        return False
    return True


# Rule: (its arguments, whether a text with these follows it).
_RULES: dict[str, tuple[tuple[str, ...], Callable[..., bool]]] = {
    "change_case:english_capital": ((), lambda text: text == text.upper() != text.lower()),
    "change_case:english_lowercase": ((), lambda text: text == text.lower() != text.upper()),
    "combination:repeat_prompt": (("prompt_to_repeat",), lambda text, prompt: _words(text).startswith(_words(prompt))),
    "detectable_content:number_placeholders": (("num_placeholders",), lambda text, n: text.count("]") >= n),
    "detectable_content:postscript": (("postscript_marker",), lambda text, mark: mark.casefold() in text.casefold()),
    "detectable_format:json_format": ((), _is_json),
    "detectable_format:number_bullet_lists": (("num_bullets",), lambda text, n: _bullets(text) == n),
    "detectable_format:number_highlighted_sections": (("num_highlights",), lambda text, n: _highlights(text) >= n),
    "detectable_format:title": ((), lambda text: any(">>" in x.partition("<<")[2] for x in text.splitlines())),
    "keywords:existence": (("keywords",), lambda text, words: all(w.casefold() in text.casefold() for w in words)),
    "keywords:forbidden_words": (
        ("forbidden_words",),
        lambda text, words: not any(_words(word) in _words(text) for word in words),
    ),
    "keywords:frequency": (
        ("relation", "keyword", "frequency"),
        lambda text, relation, word, n: _is(relation, text.casefold().count(word.casefold()), n),
    ),
    "keywords:letter_frequency": (
        ("let_relation", "letter", "let_frequency"),
        lambda text, relation, letter, n: _is(relation, text.casefold().count(letter.casefold()), n),
    ),
    "length_constraints:number_paragraphs": (
        ("num_paragraphs",),
        lambda text, n: sum(bool(part.strip()) for part in text.split("***")) == n,
    ),
    "length_constraints:number_sentences": (
        ("relation", "num_sentences"),
        lambda text, relation, n: _is(relation, len(_SENTENCE_END.findall(text)), n),
    ),
    "length_constraints:number_words": (
        ("relation", "num_words"),
        lambda text, relation, n: _is(relation, len(text.split()), n),
    ),
    "punctuation:no_comma": ((), lambda text: "," not in text),
    "startend:end_checker": (
        ("end_phrase",),
        lambda text, end: text.casefold().rstrip(' \n"').endswith(end.casefold().rstrip(' \n"')),
    ),
    "startend:quotation": ((), lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"'),
}
