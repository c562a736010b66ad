"""What a router expects of questions that it was not fitted on.

The questions of a task are dealt into FOLDS folds, and each fold is decided by a router that learned from the others: from
the grades and token counts that all students gave to those. Prompts that are the same but for case and spaces are one
question. Which fold a question is in depends on its prompt alone, and is the same for every student and every seed.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from distill.study.routing.router import Expected, Texts, learn

FOLDS = 5


def folds(prompts: Sequence[str]) -> np.ndarray:
    """int64[Q]: the fold of each question; their sizes differ by no more than one question."""
    plain = [" ".join(prompt.split()).casefold() for prompt in prompts]
    shuffled = sorted(set(plain), key=lambda text: hashlib.sha256(text.encode(errors="replace")).digest())
    place = {text: i % FOLDS for i, text in enumerate(shuffled)}
    return np.array([place[text] for text in plain])


def cross_fitted(prompts: Sequence[str], gain: np.ndarray, extra_tokens: np.ndarray) -> Expected:
    """Of each question by the router that has not seen it; from gain[Q] and extra_tokens[Q] of one task.

    Where no other question is left to learn from nothing is expected, and it is answered directly.
    """
    texts, fold = Texts.of(prompts), folds(prompts)
    found = Expected(np.zeros(len(prompts)), np.zeros(len(prompts)))
    for one in np.unique(fold):
        (asked,), (others,) = np.nonzero(fold == one), np.nonzero(fold != one)
        if not others.size:
            continue
        expected = learn(texts.some(others), gain[others], extra_tokens[others]).expects(texts.some(asked))
        found.gain[asked], found.cost[asked] = expected.gain, expected.cost
    return found
