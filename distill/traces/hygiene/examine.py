"""One pass over a trace set that finds what `distill traces check` reports."""

import hashlib
from array import array
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from distill import console
from distill.tasks.problem import Problem
from distill.traces.hygiene.degenerate import looks_refused, loop
from distill.traces.hygiene.duplicates import SHORTEST, Near, near_duplicates, shingles
from distill.traces.hygiene.outliers import Languages, rare_languages, unusual_lengths
from distill.traces.hygiene.overlap import EvaluationIndex, Match
from distill.traces.hygiene.words import marked, normal_form, word_hashes, words
from distill.traces.store import iter_pairs
from distill.traces.trace import Mode, Pair

# What of a pair is measured, and the mode it belongs to.
PARTS: dict[str, Mode | None] = {
    "question": None,
    "reasoning": "reasoning",
    "answer after reasoning": "reasoning",
    "answer without reasoning": "ift",
}
SHOWN = 600  # characters of a text in a report
LISTED = 1000  # findings of a kind that are listed; all are counted


@dataclass(frozen=True)
class Hit:
    """A question that shares words with an evaluation question."""

    question: int
    evaluation: int  # number in the EvaluationIndex
    match: Match | None  # None: the same question

    @property
    def coverage(self) -> float:
        return 1.0 if self.match is None else self.match.coverage


@dataclass(frozen=True)
class Leak:
    """An evaluation question that stands in what the teacher wrote."""

    pair: int
    part: str
    evaluation: int
    share: float  # of the evaluation question's words
    shown: str  # the text, with the longest shared stretch marked; empty where there are too many to list


@dataclass(frozen=True)
class Outlier:
    """A pair unlike the others of its task; what stands in `part`, in words."""

    pair: int
    part: str
    detail: str


@dataclass
class Findings:
    """Questions are numbered as they come; several samples of one place are one question."""

    problems: list[Problem] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    pairs: list[list[int]] = field(default_factory=list)  # of every question
    samples: array = field(default_factory=lambda: array("i"))  # of every pair
    question_of: array = field(default_factory=lambda: array("q"))  # of every pair
    same_as: list[int] = field(default_factory=list)  # the first question with this text, its own where it is the first
    near: Near = field(default_factory=lambda: Near(np.zeros(0, np.int64), 0, 0))  # among those
    sets: dict[int, np.ndarray] = field(default_factory=dict)  # their shingles, by question
    too_short: int = 0  # questions that are only compared word for word
    hits: list[Hit] = field(default_factory=list)  # the best of each question with each evaluation set, best first
    phrases: Counter[int] = field(default_factory=Counter)  # shared run of words -> questions that have it
    leaks: list[Leak] = field(default_factory=list)
    languages: dict[str, Counter[str]] = field(default_factory=dict)  # task -> language of its questions
    odd_language: list[Outlier] = field(default_factory=list)
    odd_length: list[Outlier] = field(default_factory=list)
    medians: dict[str, dict[str, float]] = field(default_factory=dict)  # task -> part -> characters
    refused: list[tuple[int, str, str]] = field(default_factory=list)  # (pair, part, beginning of the answer)
    loops: list[tuple[int, int, str]] = field(default_factory=list)  # (pair, how often, the words)


def examine(path: Path, pairs: int, index: EvaluationIndex, near: float, leak: float) -> Findings:
    """`pairs` is how many there are, for the progress bar; `near` the similarity from which questions are nearly the
    same; `leak` the share of an evaluation question from which it stands in a text."""
    reader = _Reader(index, leak)
    with console.progress() as bar:
        reading = bar.add_task("reading", total=pairs)
        for number, pair in enumerate(iter_pairs(path)):
            reader.read(number, pair)
            bar.advance(reading)
        found = reader.found
        distinct = [q for q, first in enumerate(found.same_as) if q == first]
        comparing = bar.add_task("comparing", total=2 * len(distinct))
        empty = np.empty(0, np.uint64)
        groups = near_duplicates([found.sets.get(q, empty) for q in distinct], near, partial(bar.advance, comparing))
    first = np.arange(len(found.problems))
    first[distinct] = np.asarray(distinct, dtype=np.int64)[groups.first] if distinct else first
    found.near = Near(first[found.same_as] if found.same_as else first, groups.compared, groups.crowded)
    found.hits.sort(key=lambda hit: (hit.match is not None, -hit.coverage, hit.question, hit.evaluation))
    reader.close()
    return found


class _Reader:
    """Takes pairs one by one; keeps numbers, and of texts only the questions."""

    def __init__(self, index: EvaluationIndex, leak: float):
        self.found = Findings()
        self._index, self._leak = index, leak
        self._identify = Languages()
        self._numbers: dict[tuple[int, str], int] = {}
        self._first: dict[bytes, int] = {}  # hash of a normal form -> question
        self._language: list[str | None] = []  # of every question, where it is sure
        self._lengths = {part: array("q") for part in PARTS}

    def read(self, number: int, pair: Pair) -> None:
        found = self.found
        question = self._numbers.setdefault((pair.place, pair.problem.id), len(found.problems))
        if question == len(found.problems):
            self._read_question(question, pair)
        found.pairs[question].append(number)
        found.question_of.append(question)
        found.samples.append(pair.sample)
        texts = dict(
            zip(
                PARTS,
                (pair.problem.prompt, pair.reasoning.reasoning, pair.reasoning.answer, pair.ift.answer),
                strict=True,
            )
        )
        for part, text in texts.items():
            self._lengths[part].append(len(text))
            if part != "question":
                self._look_for_leaks(number, part, text)
            if part.startswith("answer") and looks_refused(text):
                found.refused.append((number, part, text[:SHOWN]))
        language = self._language[question]
        others = [code for code in self._identify.of(texts["reasoning"]) if code != language] if language else []
        if others:
            detail = f"reasoning in {' and '.join(others)}, question in {language}"
            found.odd_language.append(Outlier(number, "reasoning", detail))
        repeated = loop(texts["reasoning"])
        if repeated:
            found.loops.append((number, *repeated))

    def _read_question(self, question: int, pair: Pair) -> None:
        found, text = self.found, pair.problem.prompt
        found.problems.append(pair.problem)
        found.places.append(pair.place)
        found.pairs.append([])
        its_words = words(text)
        normal, hashes = normal_form(text, its_words), word_hashes(its_words)
        digest = hashlib.blake2b(normal.encode(), digest_size=16).digest()
        first = self._first.setdefault(digest, question)
        found.same_as.append(first)
        found.too_short += len(its_words) < SHORTEST
        if first == question and len(its_words) >= SHORTEST:
            found.sets[question] = shingles(hashes)
        self._compare(question, normal, hashes)
        language = (self._identify.of(text) or [None])[0]
        self._language.append(language)
        found.languages.setdefault(pair.problem.task, Counter())[language or "not sure"] += 1

    def _compare(self, question: int, normal: str, hashes: np.ndarray) -> None:
        """With the evaluation sets: of each the same question, or else the one that shares most."""
        found, index = self.found, self._index
        best = {}
        for number in reversed(index.same(normal)):
            best[index.set_of[number]] = Hit(question, number, None)
        matches = index.matches(hashes)
        for match in sorted(matches, key=lambda match: (-match.coverage, match.question)):
            best.setdefault(index.set_of[match.question], Hit(question, match.question, match))
        found.hits.extend(best.values())
        if matches:
            found.phrases.update(np.unique(np.concatenate([match.runs for match in matches])).tolist())

    def _look_for_leaks(self, number: int, part: str, text: str) -> None:
        for match in self._index.matches(word_hashes(words(text))) if self._index.texts else ():
            if match.evaluation_share >= self._leak:
                shown = marked(text, *match.span, limit=SHOWN) if len(self.found.leaks) < LISTED else ""
                self.found.leaks.append(Leak(number, part, match.question, match.evaluation_share, shown))

    def close(self) -> None:
        """What can only be said when all is read."""
        found = self.found
        tasks = [problem.task for problem in found.problems]
        for task in dict.fromkeys(tasks):
            mine = [q for q, name in enumerate(tasks) if name == task]
            rare = rare_languages([self._language[q] for q in mine])
            for q in mine:
                if self._language[q] in rare:
                    detail = f"question in {self._language[q]}, unlike most of {task}"
                    found.odd_language += [Outlier(number, "question", detail) for number in found.pairs[q]]
            numbers = np.array(sorted(number for q in mine for number in found.pairs[q]), dtype=np.int64)
            found.medians[task] = {}
            for part in PARTS:
                lengths = np.frombuffer(self._lengths[part], dtype=np.int64)[numbers]
                unusual, median = unusual_lengths(lengths)
                found.medians[task][part] = median
                for number, length in zip(numbers[unusual].tolist(), lengths[unusual].tolist(), strict=True):
                    detail = f"{part} of {length:,} characters, the median of {task} is {median:,.0f}"
                    found.odd_length.append(Outlier(number, part, detail))
        found.odd_language.sort(key=lambda one: one.pair)
        found.odd_length.sort(key=lambda one: one.pair)
