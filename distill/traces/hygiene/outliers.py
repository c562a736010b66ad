"""Texts unlike the rest of their task: in another language, or far longer or shorter.

Language: a text is judged where the identifier is sure (90 %), in windows of 600 characters, so that a switch in the
middle shows. A question is an outlier when less than one in twenty of its task's are in its language; reasoning, when
any of its windows is in another language than its question.

Length: of log(characters + 20), further than 5 robust standard deviations (1.4826 x the median distance from the
median) from the task's median. A deviation counts as at least 0.25, so that nothing within 3.5 times the median is an
outlier where nearly all texts are equally long.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

SURE, RARE = 0.9, 0.05
DEVIATIONS, LEAST_DEVIATION, OFFSET = 5.0, 0.25, 20
ENOUGH = 20  # texts of a task, below which nothing is called unusual
_WINDOW, _WINDOWS, _LETTERS = 600, 3, 20
_NOT_LETTERS = re.compile(r"[\W\d_]+")


class Languages:
    """What language texts are in."""

    def __init__(self) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def of(self, text: str) -> list[str]:
        """ISO 639 codes of the beginning, the middle and the end of a text: only those it is sure of, each once."""
        starts = np.unique(np.linspace(0, max(len(text) - _WINDOW, 0), _WINDOWS).astype(int)).tolist()
        if len(text) <= _WINDOW:
            starts = [0]
        found = []
        for start in starts:
            letters = _NOT_LETTERS.sub(" ", text[start : start + _WINDOW])  # figures look like many languages
            if len(letters) - letters.count(" ") < _LETTERS:
                continue
            code, confidence = self._identifier.classify(letters)
            if confidence >= SURE and code != "zxx" and code not in found:  # zxx: no language
                found.append(code)
        return found


def rare_languages(codes: Sequence[str | None]) -> set[str]:
    """Of the languages of one task's questions, those that hardly any has."""
    counts = Counter(code for code in codes if code)
    total = sum(counts.values())
    return {code for code, count in counts.items() if total >= ENOUGH and count < RARE * total}


def unusual_lengths(lengths: np.ndarray) -> tuple[np.ndarray, float]:
    """(bool[n], the median): which of these lengths in characters, all of one task, are far from the others."""
    if len(lengths) == 0:
        return np.zeros(0, bool), 0.0
    logs = np.log(lengths + OFFSET)
    away = np.abs(logs - np.median(logs))
    deviation = max(1.4826 * float(np.median(away)), LEAST_DEVIATION)
    unusual = away > DEVIATIONS * deviation if len(lengths) >= ENOUGH else np.zeros(len(lengths), bool)
    return unusual, float(np.median(lengths))
