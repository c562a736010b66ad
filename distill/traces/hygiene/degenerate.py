"""Signs that a teacher did not do its work: an answer that reads like a refusal, reasoning that goes round in a loop.

Both are guesses from the text alone, so they are labels to look at and nothing is removed for them.
"""

import re

import numpy as np

from distill.traces.hygiene.words import UNSPACED, ngrams

LOOP_WORDS, LOOP_TIMES = 10, 10  # ten words in a row that come ten times
_OPENING = 300  # characters: a refusal comes first
_REFUSAL = re.compile(
    r"\bI(?:['’]m| am) (?:very |really |truly |so )?(?:sorry|afraid)\b.{0,60}?\b(?:can(?:no|['’])t|unable|not able|won['’]t)\b"
    r"|\bI (?:can(?:not|['’]t)|am unable to|['’]m unable to|am not able to|['’]m not able to|won['’]t|will not) "
    r"(?:help|assist|comply|answer|provide|fulfill?|do that|engage|support)\b"
    r"|\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"|\bI must (?:respectfully )?(?:decline|refuse)\b|\bI (?:respectfully )?(?:decline|refuse) to\b",
    re.IGNORECASE | re.DOTALL,
)
# Long runs without a space are cut, so that a loop of characters is one of words.
_PIECE = re.compile(r"\w{1,20}|[^\w\s]{1,20}")
_PIECE_UNSPACED = re.compile(rf"[{UNSPACED}]|{_PIECE.pattern}")


def looks_refused(answer: str) -> bool:
    """Whether the beginning of an answer reads like a refusal, in English."""
    return _REFUSAL.search(answer[:_OPENING]) is not None


def loop(text: str) -> tuple[int, str] | None:
    """(how often, the words) of ten words in a row that come at least ten times; None where there are none."""
    pieces = (_PIECE if text.isascii() else _PIECE_UNSPACED).findall(text)
    if len(pieces) < LOOP_WORDS + LOOP_TIMES - 1:
        return None
    numbers: dict[str, int] = {}
    ids = np.fromiter((numbers.setdefault(piece, len(numbers)) for piece in pieces), np.uint64, len(pieces))
    _, first, counts = np.unique(ngrams(ids, LOOP_WORDS), return_index=True, return_counts=True)
    times = int(counts.max())
    if times < LOOP_TIMES:
        return None
    start = int(first[counts == times].min())
    return times, " ".join(pieces[start : start + LOOP_WORDS])
