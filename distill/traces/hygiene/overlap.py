"""Words that a text shares with evaluation questions: 13 in a row, or the whole question.

Thirteen words in a row are what the published checks for contamination look for, and most of what they find is a
common phrase. So a match says how many such runs there are, how much of either text they cover, and where; how common
the rarest of them is, only the whole trace set can say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.traces.hygiene.evaluation_sets import EvaluationSet
from distill.traces.hygiene.words import ngrams, normal_form, word_hashes, words

NGRAM = 13
_POSTINGS = 64  # evaluation questions that one run of words is looked up in; a phrase of more is boilerplate


@dataclass(frozen=True)
class Match:
    """What a text shares with one evaluation question."""

    question: int  # its number among all of them
    runs: np.ndarray  # uint64: the shared runs of 13 words, distinct
    share: float  # of the text's words that stand in a shared run
    evaluation_share: float  # the same of the evaluation question
    span: tuple[int, int]  # the longest shared stretch of the text, in words
    evaluation_span: tuple[int, int]  # and where it stands in the evaluation question

    @property
    def coverage(self) -> float:
        return max(self.share, self.evaluation_share)


class EvaluationIndex:
    """The questions of several evaluation sets, numbered through."""

    def __init__(self, sets: Sequence[EvaluationSet]):
        self.names = [(one.name, name) for one in sets for name, _ in one.questions]
        self.texts = [text for one in sets for _, text in one.questions]
        self.set_of = np.repeat(np.arange(len(sets)), [len(one.questions) for one in sets])
        self.lengths = np.zeros(len(self.texts), dtype=np.int64)  # in words
        self._normal: dict[str, list[int]] = {}
        runs: list[np.ndarray] = []
        for number, text in enumerate(self.texts):
            its_words = words(text)
            self.lengths[number] = len(its_words)
            self._normal.setdefault(normal_form(text, its_words), []).append(number)
            runs.append(ngrams(word_hashes(its_words), NGRAM))
        counts = [len(one) for one in runs]
        keys = np.concatenate([np.empty(0, np.uint64), *runs])
        by_key = np.argsort(keys, kind="stable")  # of equal runs, the first questions stay first
        self._keys = keys[by_key]
        self._question = np.repeat(np.arange(len(runs)), counts)[by_key]
        starts = np.repeat(np.cumsum(counts) - counts, counts) if counts else np.empty(0, np.int64)
        self._position = (np.arange(len(keys)) - starts)[by_key]

    def same(self, normal: str) -> list[int]:
        """The questions that are this text, given in its normal form."""
        return self._normal.get(normal, [])

    def matches(self, hashes: np.ndarray) -> list[Match]:
        """Of a text given by the hashes of its words: the evaluation questions that share 13 of them in a row."""
        runs = ngrams(hashes, NGRAM)
        low, high = (np.searchsorted(self._keys, runs, side) for side in ("left", "right"))
        hit = np.flatnonzero(high > low)
        if len(hit) == 0:
            return []
        counts = np.minimum(high[hit] - low[hit], _POSTINGS)
        at = np.repeat(low[hit], counts) + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        question = self._question[at]
        by_question = np.argsort(question, kind="stable")
        mine, theirs = np.repeat(hit, counts)[by_question], self._position[at][by_question]
        numbers, begins = np.unique(question[by_question], return_index=True)
        found = []
        for number, begin, end in zip(numbers.tolist(), begins, [*begins[1:], len(mine)], strict=True):
            here, there = mine[begin:end], theirs[begin:end]
            span, evaluation_span = _longest(here, there)
            found.append(
                Match(
                    number,
                    np.unique(runs[here]),
                    _covered(here) / len(hashes),
                    _covered(there) / int(self.lengths[number]),
                    span,
                    evaluation_span,
                )
            )
        return found


def _covered(starts: np.ndarray) -> int:
    """Words that stand in a run, of runs of 13 words that begin at `starts`."""
    starts = np.unique(starts)
    return int(np.minimum(np.diff(starts), NGRAM).sum()) + NGRAM


def _longest(here: np.ndarray, there: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """The longest stretch that both texts have, from the places where runs of 13 words begin in each."""
    order = np.lexsort((here, here - there))  # along each diagonal
    here, there = here[order], there[order]
    breaks = np.flatnonzero((np.diff(here) != 1) | (np.diff(there) != 1)) + 1
    begins, ends = np.concatenate(([0], breaks)), np.concatenate((breaks, [len(here)]))
    best = int(np.argmax(ends - begins))
    size = int(ends[best] - begins[best]) + NGRAM - 1
    one, other = int(here[begins[best]]), int(there[begins[best]])
    return (one, one + size), (other, other + size)
