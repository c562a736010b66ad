"""`ifeval`: whether an answer follows the rules that its prompt sets, by the rule book in lm-eval.

    gold     {"instruction_id_list": ["punctuation:no_comma", ...], "kwargs": [{...}, ...]}
    strict   the answer follows each rule as it stands: it is then correct
    loose    a rule counts as followed when it is so without the answer's first line, last line or asterisks

The rule book wants three things put right. It downloads a table of abbreviations that tells where sentences end
(punkt_tab of nltk) while it is imported: nothing is downloaded here, and where the table is not there nltk's Punkt goes
without it, which `sentence_splitter` says. It guesses languages with numbers drawn at random: their seed is fixed. And
it trusts an answer to be harmless, so it belongs into the processes of `check_pool`.
"""

import importlib.util
import json
import random
from contextlib import redirect_stdout
from functools import cache, partial
from io import StringIO
from types import SimpleNamespace
from typing import Any

from distill.errors import InputError
from distill.tasks.verdict import Verdict

RULES = frozenset(
    f"{group}:{rule}"
    for group, rules in {
        "change_case": "capital_word_frequency english_capital english_lowercase",
        "combination": "repeat_prompt two_responses",
        "detectable_content": "number_placeholders postscript",
        "detectable_format": "constrained_response json_format multiple_sections number_bullet_lists "
        "number_highlighted_sections title",
        "keywords": "existence forbidden_words frequency letter_frequency",
        "language": "response_language",
        "length_constraints": "nth_paragraph_first_word number_paragraphs number_sentences number_words",
        "punctuation": "no_comma",
        "startend": "end_checker quotation",
    }.items()
    for rule in rules.split()
)
PACKAGES = ("lm_eval", "langdetect", "immutabledict", "nltk")
_CHARACTERS = 100_000  # of an answer: more follows no rule


def missing_packages() -> list[str]:
    """What must be installed before `ifeval` can check anything."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def check_rules(gold: str, where: str) -> None:
    """Raises InputError when a gold answer names a rule that is none, or gives rules other than one object each."""
    asked = json.loads(gold)
    names, arguments = (asked.get(key) for key in ("instruction_id_list", "kwargs"))
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: field 'instruction_id_list': expected a list of rules")
    if unknown := [name for name in names if name not in RULES]:
        raise InputError(f"{where}: field 'instruction_id_list': no rule of IFEval is called {unknown[0]!r:.60}")
    if not isinstance(arguments, list) or len(arguments) != len(names):
        raise InputError(f"{where}: field 'kwargs': expected a list of {len(names)}, one entry a rule")
    if not all(isinstance(entry, dict) for entry in arguments):
        raise InputError(f"{where}: field 'kwargs': expected an object for each rule")


def ifeval(gold: str, answer: str) -> Verdict:
    """Correct when every rule is followed strictly. `scores`: how many rules there are, and are followed strictly and
    loosely."""
    asked = json.loads(gold)
    count = len(asked["instruction_id_list"])
    if len(answer) > _CHARACTERS:
        return Verdict(False, f"more than {_CHARACTERS:,} characters", scores=_scores(count, 0, 0))
    book = _rule_book()
    random.seed(0)  # a rule without an argument draws one
    example = book.InputExample(0, asked["instruction_id_list"], "", asked["kwargs"])
    strict = sum(book.test_instruction_following_strict(example, answer).follow_instruction_list)
    loose = sum(book.test_instruction_following_loose(example, answer).follow_instruction_list)
    return Verdict(
        strict == count, f"{strict} of {count} rules followed, loosely {loose}", scores=_scores(count, strict, loose)
    )


def rule_count(gold: str) -> int:
    return len(json.loads(gold)["instruction_id_list"])


def sentence_splitter() -> str:
    """What tells where a sentence ends, on this machine."""
    return "punkt_tab" if _has_punkt() else "Punkt without its table of abbreviations (nltk's punkt_tab)"


def _scores(rules: int, strict: int, loose: int) -> dict[str, float]:
    return {"rules": float(rules), "followed": float(strict), "followed_loosely": float(loose)}


def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


@cache
def _rule_book() -> Any:
    """The module of lm-eval, imported without the network."""
    import nltk

    has_punkt, download = _has_punkt(), nltk.download
    nltk.download = lambda *names, **options: True
    try:
        with redirect_stdout(StringIO()):  # it says that it has downloaded the table
            from lm_eval.tasks.ifeval import instructions_util, utils
    finally:
        nltk.download = download
    if not has_punkt:
        from nltk.tokenize.punkt import PunktSentenceTokenizer

        instructions_util._get_sentence_tokenizer = PunktSentenceTokenizer
        words = partial(nltk.word_tokenize, preserve_line=True)  # of a text that is not cut into sentences before
        instructions_util.nltk = SimpleNamespace(tokenize=nltk.tokenize, word_tokenize=words)
    import langdetect

    langdetect.DetectorFactory.seed = 0
    return utils
