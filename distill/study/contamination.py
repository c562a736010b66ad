"""How many of the questions that a study asks stand in the pairs that its students learn from, whole or in large part."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill import console
from distill.artifact import Artifact
from distill.errors import InputError
from distill.evaluation.questions import Asked, ask
from distill.study.settings import StudySettings
from distill.traces.hygiene.check import CheckSettings
from distill.traces.hygiene.duplicates import SHORTEST, jaccard, shingles
from distill.traces.hygiene.evaluation_sets import EvaluationSet
from distill.traces.hygiene.overlap import NGRAM, EvaluationIndex
from distill.traces.hygiene.words import ngrams, normal_form, word_hashes, words
from distill.traces.store import PAIRS, iter_columns

# What more of the questions asked than this have in common is a phrase of their task, and says nothing about one of them.
_PHRASE = 10
_FROM = CheckSettings()  # the thresholds of `distill traces check`


def contamination(
    settings: StudySettings, traces: dict[str, Artifact], whole: Callable[[Path], Path] = lambda folder: folder
) -> list[dict[str, Any]]:
    """`contamination` of the results: one entry for each set of pairs, by name, and task; none for a set that cannot be read.

    Only questions are compared, each text once, and of a set nothing else is read: 20,000 take a second or two. `whole`
    gives a set's folder with its rows in it, where they lie elsewhere.
    """
    asked = ask(settings.evaluate_settings().questions, settings.evaluate_settings().judges)
    index, found = _Index(asked), []
    for name, made in traces.items():
        try:
            how = index.compare(_prompts(whole(made.path)))
        except InputError as error:
            console.note(f"traces {name}: not compared with the questions asked ({error})")
            continue
        for number, a in enumerate(asked):
            mine = how[index.task == number]
            found.append(
                {
                    "traces": name,
                    "task": a.task.name,
                    "pairs": made.summary.get("pairs"),
                    "questions": len(a.problems),
                    "too_short": int((index.lengths[index.task == number] < SHORTEST).sum()),
                    **{kind: int((mine == level).sum()) for kind, level in _LEVELS.items()},
                }
            )
    return found


# What is said of a question is the strongest that holds.
_LEVELS = {"exact": 4, "near": 3, "half": 2, "ngram": 1}


class _Index:
    """The questions that are asked, numbered through."""

    def __init__(self, asked: Sequence[Asked]):
        texts = [problem.prompt for a in asked for problem in a.problems]
        self.task = np.repeat(np.arange(len(asked)), [len(a.problems) for a in asked])
        self._index = EvaluationIndex([EvaluationSet("asked", "", tuple(("", text) for text in texts))])
        self.lengths = self._index.lengths
        hashes = [word_hashes(words(text)) for text in texts]
        self._shingles = [shingles(one) if len(one) >= SHORTEST else one[:0] for one in hashes]
        self._by_shingle = _of_few(self._shingles)
        self._runs = _of_few([np.unique(ngrams(one, NGRAM)) for one in hashes])

    def compare(self, prompts: Iterable[str]) -> np.ndarray:
        """int[Q]: how each question stands in these texts, by _LEVELS; 0 where it does not."""
        how = np.zeros(len(self.task), dtype=np.int64)
        for prompt in prompts:
            its_words = words(prompt)
            for number in self._index.same(normal_form(prompt, its_words)):
                how[number] = _LEVELS["exact"]
            hashes = word_hashes(its_words)
            mine = shingles(hashes) if len(hashes) >= SHORTEST else hashes[:0]
            for number in {q for one in mine.tolist() for q in self._by_shingle.get(one, ())}:
                if jaccard(mine, self._shingles[number]) >= _FROM.near:
                    how[number] = max(how[number], _LEVELS["near"])
            for match in self._index.matches(hashes):
                if any(run in self._runs for run in match.runs.tolist()):
                    level = "half" if match.coverage >= _FROM.contaminated else "ngram"
                    how[match.question] = max(how[match.question], _LEVELS[level])
        return how


def _of_few(sets: Sequence[np.ndarray]) -> dict[int, list[int]]:
    """What stands in at most _PHRASE of the sets -> their numbers."""
    holders: dict[int, list[int]] = {}
    for number, one in enumerate(sets):
        for value in one.tolist():
            holders.setdefault(value, []).append(number)
    return {value: numbers for value, numbers in holders.items() if len(numbers) <= _PHRASE}


def _prompts(folder: Path) -> Iterator[str]:
    """The questions of a set, each text once."""
    seen: set[int] = set()
    for batch in iter_columns(folder, PAIRS, ["prompt"]):
        for prompt in batch.column(0).to_pylist():
            if (number := hash(prompt)) not in seen:
                seen.add(number)
                yield prompt
