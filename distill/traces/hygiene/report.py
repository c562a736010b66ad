"""What a check found, as JSON: counts of everything, and what is behind them with the text to judge it by."""

from collections import Counter, defaultdict
from typing import Any

from distill.traces.hygiene.duplicates import SHORTEST, jaccard
from distill.traces.hygiene.evaluation_sets import EvaluationSet
from distill.traces.hygiene.examine import LISTED, SHOWN, Findings, Hit, Outlier
from distill.traces.hygiene.overlap import NGRAM, EvaluationIndex
from distill.traces.hygiene.words import clipped, marked

_MEMBERS = 10  # of a group that are listed


def report(
    found: Findings, sets: list[EvaluationSet], index: EvaluationIndex, settings: Any, key: str
) -> dict[str, Any]:
    """Of every kind of finding at most LISTED are listed, of a text SHOWN characters."""
    return {
        "traces": key,
        "pairs": len(found.question_of),
        "questions": len(found.problems),
        "duplicates": _duplicates(found),
        "near_duplicates": _near(found) | {"threshold": settings.near},
        "evaluation_sets": [_overlap(found, number, sets, index, settings) for number in range(len(sets))],
        "language": {
            "questions": {task: dict(counts.most_common()) for task, counts in found.languages.items()},
            "outliers": _outliers(found, found.odd_language),
        },
        "length": {"median_characters": found.medians, "outliers": _outliers(found, found.odd_length)},
        "labels": {
            "refusals": {
                "pairs": len({number for number, *_ in found.refused}),
                "listed": [
                    _pair(found, number) | {"part": part, "text": text} for number, part, text in found.refused[:LISTED]
                ],
            },
            "loops": {
                "pairs": len(found.loops),
                "listed": [
                    _pair(found, number) | {"times": times, "text": text[:SHOWN]}
                    for number, times, text in found.loops[:LISTED]
                ],
            },
        },
    }


def _duplicates(found: Findings) -> dict[str, Any]:
    groups = _groups(found.same_as)
    return {
        "questions": sum(len(members) - 1 for members in groups),
        "groups": len(groups),
        "listed": [
            {
                "text": clipped(found.problems[members[0]].prompt, 0, SHOWN, SHOWN),
                "size": len(members),
                "questions": [_question(found, q) for q in members[:_MEMBERS]],
            }
            for members in groups[:LISTED]
        ],
    }


def _near(found: Findings) -> dict[str, Any]:
    """Word for word the same is counted once, as one text."""
    texts = [q for q, first in enumerate(found.same_as) if q == first]
    groups = [[texts[i] for i in members] for members in _groups([int(found.near.first[q]) for q in texts])]
    other_gold = [m for m in groups if len({found.problems[q].gold.strip().casefold() for q in m}) > 1]
    return {
        "questions": sum(len(members) - 1 for members in groups),
        "groups": len(groups),
        "groups_with_other_gold": len(other_gold),
        "largest_group": max(map(len, groups), default=0),
        "too_short": found.too_short,
        "shortest_words": SHORTEST,
        "crowded": found.near.crowded,
        "pairs_compared": found.near.compared,
        "listed": [
            {
                "size": len(members),
                "questions": [
                    _question(found, q)
                    | {
                        "text": clipped(found.problems[q].prompt, 0, SHOWN, SHOWN),
                        "similarity": round(jaccard(found.sets[members[0]], found.sets[q]), 4),
                    }
                    for q in members[:_MEMBERS]
                ],
            }
            for members in groups[:LISTED]
        ],
    }


def _groups(first: list[int]) -> list[list[int]]:
    """Members of every group of more than one, by the number of its first."""
    groups: dict[int, list[int]] = defaultdict(list)
    for member, one in enumerate(first):
        groups[one].append(member)
    return [members for members in groups.values() if len(members) > 1]


def _overlap(
    found: Findings, number: int, sets: list[EvaluationSet], index: EvaluationIndex, settings: Any
) -> dict[str, Any]:
    mine = [hit for hit in found.hits if index.set_of[hit.evaluation] == number]
    contaminated = {hit.question for hit in mine if hit.coverage >= settings.contaminated}
    leaks = [leak for leak in found.leaks if index.set_of[leak.evaluation] == number]
    leaked = {leak.pair for leak in leaks}
    return {
        "name": sets[number].name,
        "what": sets[number].what,
        "sha256": sets[number].sha256,
        "questions": len(sets[number].questions),
        "too_short": int((index.lengths[index.set_of == number] < NGRAM).sum()),
        "exact": sum(hit.match is None for hit in mine),
        "ngram": sum(hit.match is not None for hit in mine),
        "ngram_coverage": dict(
            sorted(Counter(f"{min(int(hit.coverage * 4), 3) * 25}%" for hit in mine if hit.match).items())
        ),
        "contaminated_from": settings.contaminated,
        "contaminated": len(contaminated),
        "hits": [_hit(found, hit, index) for hit in mine[:LISTED]],
        "leaks": {
            "pairs": len(leaked),
            "pairs_of_other_questions": len({p for p in leaked if found.question_of[p] not in contaminated}),
            "evaluation_questions": len({leak.evaluation for leak in leaks}),
            "parts": dict(sorted(Counter(leak.part for leak in leaks).items())),
            "listed": [
                _pair(found, leak.pair)
                | {
                    "part": leak.part,
                    "share_of_evaluation": round(leak.share, 4),
                    "evaluation": index.names[leak.evaluation][1],
                    "evaluation_text": clipped(index.texts[leak.evaluation], 0, SHOWN, SHOWN),
                    "text": leak.shown,
                }
                for leak in leaks
                if leak.shown
            ],
        },
    }


def _hit(found: Findings, hit: Hit, index: EvaluationIndex) -> dict[str, Any]:
    text, other, match = found.problems[hit.question].prompt, index.texts[hit.evaluation], hit.match
    return _question(found, hit.question) | {
        "kind": "exact" if match is None else "ngram",
        "coverage": round(hit.coverage, 4),
        "share_of_question": 1.0 if match is None else round(match.share, 4),
        "share_of_evaluation": 1.0 if match is None else round(match.evaluation_share, 4),
        "ngrams": None if match is None else len(match.runs),
        # A run of words that many questions have is a phrase, and says nothing about this one.
        "questions_with_its_rarest": None if match is None else min(found.phrases[run] for run in match.runs.tolist()),
        "evaluation": index.names[hit.evaluation][1],
        "text": clipped(text, 0, SHOWN, SHOWN) if match is None else marked(text, *match.span, limit=SHOWN),
        "evaluation_text": clipped(other, 0, SHOWN, SHOWN)
        if match is None
        else marked(other, *match.evaluation_span, limit=SHOWN),
    }


def _outliers(found: Findings, outliers: list[Outlier]) -> dict[str, Any]:
    return {
        "pairs": len({one.pair for one in outliers}),
        "parts": dict(sorted(Counter(one.part for one in outliers).items())),
        "listed": [_pair(found, one.pair) | {"part": one.part, "detail": one.detail} for one in outliers[:LISTED]],
    }


def _question(found: Findings, question: int) -> dict[str, Any]:
    problem = found.problems[question]
    return {"id": problem.id, "place": found.places[question], "gold": problem.gold[:80]}


def _pair(found: Findings, number: int) -> dict[str, Any]:
    question = found.question_of[number]
    return {"id": found.problems[question].id, "place": found.places[question], "sample": found.samples[number]}
