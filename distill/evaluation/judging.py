"""Answers that models judge: by the majority of up to three, each reply kept as it comes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.evaluation.answers import Answer
from distill.journal import Journal
from distill.serve.judge import Case, Judgement, JudgeSettings, agreement, ask_judges
from distill.tasks.verdict import Verdict

JUDGEMENTS = "judgements.journal.jsonl"
_VOTE = "judge {}"  # a score of an answer: what this judge said; missing where it said no clear word


@dataclass(frozen=True)
class Judges:
    """Who judges, and the file that keeps what they said."""

    settings: tuple[JudgeSettings, ...]
    journal: Path

    def judge(self, answers: Sequence[Answer]) -> list[Verdict]:
        """One verdict an answer. Without a majority for it an answer does not count as correct. Raises InputError when
        judges do not answer; what they said before is kept."""
        cases = [Case(str(n), a.prompt, a.gold, a.answer) for n, a in enumerate(answers)]
        with Journal(self.journal) as journal:
            judgements = ask_judges(self.settings, cases, journal)
        return [self._verdict(judgements[case.key]) for case in cases]

    def agreement(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """How far the judges agree on answers that they graded."""
        keys = [_VOTE.format(n) for n in range(1, len(self.settings) + 1)]
        votes = [
            Judgement(tuple(bool(a.scores[key]) if key in a.scores else None for key in keys))
            for a in answers
            if a.finished
        ]
        return agreement(votes, [one.name for one in self.settings])

    def _verdict(self, judgement: Judgement) -> Verdict:
        scores = {_VOTE.format(n): float(vote) for n, vote in enumerate(judgement.votes, 1) if vote is not None}
        return Verdict(judgement.correct is True, f"judges: {judgement}", scores=scores)


def judges_of(settings: tuple[JudgeSettings, ...], folder: Path) -> Judges | None:
    """Those that are named, with their journal in `folder`."""
    return Judges(settings, folder / JUDGEMENTS) if settings else None
