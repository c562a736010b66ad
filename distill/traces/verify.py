"""`distill traces verify`: who is right, as labels. Nothing is dropped; what to train on is said at training.

Each answer is compared with the gold answer, or both of a pair with each other, by one checker (tasks/checkers.py) or by
judges (serve/judge.py). `auto` takes

    the task's own checker    for tasks that are known by name
    choice, labels            where the answers are of that format
    math                      for other answers, where the gold answer is nothing but mathematics
    normalised                for the rest

An answer without a gold one keeps the label it had, if any.
"""

import importlib.metadata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from distill import console
from distill.artifact import Artifact
from distill.errors import InputError
from distill.journal import Journal
from distill.serve.judge import MOST_JUDGES, Case, JudgeSettings, agreement, ask_judges
from distill.settings import Settings
from distill.tasks.answers import final_answer
from distill.tasks.check_pool import LIMIT_S, MEMORY_BYTES, check_all
from distill.tasks.checkers import (
    ANSWER_TO_GOLD_ONLY,
    CHECKERS,
    GOLD_TO_ANSWER_ONLY,
    QUICK,
    UNREADABLE_GOLD,
    Verdict,
    is_mathematics,
    shown,
)
from distill.tasks.checkers import VERSION as CHECKERS_VERSION
from distill.tasks.problem import Problem
from distill.tasks.registry import known_checker
from distill.traces.derive import deriving
from distill.traces.trace import MODES, Mode, Pair

VERSION = 1  # part of every key: raise it when the same traces and settings would give other labels
JOURNAL = "verdicts.jsonl"

_EXAMPLES, _EXAMPLE_CHARACTERS = 20, 200
_BESIDE = {"gold": "", "other-mode": " (with the other mode)"}
_SAID_BY = {"math": "math-verify"}  # else a checker signs with its name


class VerifySettings(Settings):
    """How answers are checked: all that the labels depend on, besides the traces."""

    checker: Literal["auto", "exact", "normalised", "number", "choice", "labels", "math", "judge"] = "auto"
    against: Literal["gold", "other-mode"] = "gold"
    judges: tuple[JudgeSettings, ...] = Field((), max_length=MOST_JUDGES)
    limit_s: float = Field(LIMIT_S, gt=0, le=3600, description="seconds that checking one answer may take")

    @field_validator("judges", mode="before")
    @classmethod
    def _judges_of_flags(cls, given: Any) -> Any:
        return [JudgeSettings.parse(one) if isinstance(one, str) else one for one in given]

    @model_validator(mode="after")
    def _judges_fit(self) -> "VerifySettings":
        if (self.checker == "judge") != bool(self.judges):
            raise InputError("checker judge and the judges belong together: give both, or neither")
        return self

    @property
    def recipe(self) -> dict[str, Any]:
        """What the key depends on."""
        common = {"step": "verify", "verify": VERSION, "checker": self.checker, "against": self.against}
        if self.judges:
            return common | {"judges": [one.identity for one in self.judges]}
        versions = {name: importlib.metadata.version(name) for name in ("math-verify", "sympy")}
        limits = {"limit_s": self.limit_s, "memory_bytes": MEMORY_BYTES}
        return common | {"checkers": CHECKERS_VERSION} | (limits | versions if self.checker in ("auto", "math") else {})


@dataclass(frozen=True)
class _Label:
    """What came of one answer; None: no majority of the judges."""

    verified: bool | None
    verdict: str
    failure: str | None = None


@dataclass(frozen=True)
class _Asked:
    """One comparison, and whose label it is."""

    key: str
    index: int  # of the pair
    modes: tuple[Mode, ...]
    checker: str
    problem: Problem
    gold: str
    answer: str


def verify(source: Path, out: Path, settings: VerifySettings, *, processes: int | None = None) -> Artifact:
    """Write the trace set at `source` with its answers labelled to the folder `out`. Run again after it was killed, it
    checks what is missing. `processes` check mathematics, one a core if not given.

    Raises InputError for a folder that is no finished trace set, when there is nothing to compare with, or for judges
    that do not answer.
    """
    with deriving(source, out, settings.recipe) as new:
        if new.finished:
            return new.finished
        asked = [one for index, pair in enumerate(new.pairs()) for one in _comparisons(index, pair, settings)]
        if not asked:
            raise InputError(f"{source}: no pair has a gold answer; --against other-mode compares the two answers")
        with Journal(new.path / JOURNAL) as journal:
            if settings.checker == "judge":
                labels, by_judges = _judge(asked, settings, journal)
            else:
                labels, by_judges = _check(asked, settings, journal, processes), None
            found = {(one.index, mode): labels[one.key] for one in asked for mode in one.modes}

            def labelled(index: int, pair: Pair) -> Pair:
                for mode in MODES:
                    if label := found.get((index, mode)):
                        trace = replace(pair.trace(mode), verified=label.verified, verdict=label.verdict)
                        pair = replace(pair, **{mode: trace})
                return pair

            summary = _summary(new.source.summary["pairs"], asked, labels, found, settings)
            if by_judges is not None:
                summary["judges"] = by_judges
            return new.commit(labelled, {"verification": summary}, remove=(JOURNAL,))


def checker_for(problem: Problem, gold: str) -> str:
    """The name of the checker that `auto` takes. `gold`: what an answer is compared with."""
    if (own := known_checker(problem.task)) in CHECKERS:
        return own
    if problem.answer_format in ("choice", "labels"):
        return problem.answer_format
    return "math" if problem.answer_format == "open" and is_mathematics(gold) else "normalised"


def _comparisons(index: int, pair: Pair, settings: VerifySettings) -> Iterable[_Asked]:
    def asked(name: str, modes: tuple[Mode, ...], gold: str, answer: str) -> _Asked:
        checker = checker_for(pair.problem, gold) if settings.checker == "auto" else settings.checker
        return _Asked(f"{index} {name}", index, modes, checker, pair.problem, gold, answer)

    if settings.against == "other-mode":
        yield asked("both", MODES, final_answer(pair.reasoning.answer), pair.ift.answer)
    elif pair.problem.gold.strip():
        for mode in MODES:
            yield asked(mode, (mode,), pair.problem.gold, pair.trace(mode).answer)


def _check(asked: list[_Asked], settings: VerifySettings, journal: Journal, processes: int | None) -> dict[str, _Label]:
    labels: dict[str, _Label] = {}
    beside = _BESIDE[settings.against]
    waiting: dict[str, list[_Asked]] = defaultdict(list)  # by checker
    for one in asked:
        if one.key in journal:
            labels[one.key] = _Label(**journal.get(one.key))
        else:
            waiting[one.checker].append(one)
    with console.progress() as bar:
        task = bar.add_task("checking", total=len(asked), completed=len(labels))
        for checker, ones in sorted(waiting.items()):

            def keep(number: int, verdict: Verdict, checker: str = checker, ones: list[_Asked] = ones) -> None:
                key = ones[number].key
                said = f"{_SAID_BY.get(checker, checker)}{beside}: {verdict.note}"
                labels[key] = _Label(verdict.correct, said, verdict.failure)
                if checker not in QUICK:  # the others are sooner done again than read
                    journal.append(key, vars(labels[key]))
                bar.advance(task)

            pairs = ((one.gold, one.answer) for one in ones)
            check_all(checker, pairs, keep, processes=processes, limit_s=settings.limit_s)
    return labels


def _judge(asked: list[_Asked], settings: VerifySettings, journal: Journal) -> tuple[dict[str, _Label], dict[str, Any]]:
    cases = (Case(one.key, one.problem.prompt, one.gold, one.answer) for one in asked)
    judgements = ask_judges(settings.judges, cases, journal)
    names = [one.name for one in settings.judges]
    who = ", ".join(one.model for one in settings.judges) + _BESIDE[settings.against]
    labels = {key: _Label(judgement.correct, f"judges {who}: {judgement}") for key, judgement in judgements.items()}
    return labels, agreement((judgements[one.key] for one in asked), names)


def _summary(
    pairs: int,
    asked: list[_Asked],
    labels: dict[str, _Label],
    found: dict[tuple[int, Mode], _Label],
    settings: VerifySettings,
) -> dict[str, Any]:
    """Counts of answers, by mode where they differ; pairs with both answers verified are those --keep verified keeps."""
    one_way = [one for one in asked if labels[one.key].verdict.endswith((GOLD_TO_ANSWER_ONLY, ANSWER_TO_GOLD_ONLY))]
    return {
        "against": settings.against,
        "judged": {
            mode: sum(of == mode and label.verified is not None for (_, of), label in found.items()) for mode in MODES
        },
        "verified": {
            mode: sum(of == mode and label.verified is True for (_, of), label in found.items()) for mode in MODES
        },
        "pairs_verified": sum(
            all((label := found.get((index, mode))) and label.verified is True for mode in MODES)
            for index in range(pairs)
        ),
        "without_gold": pairs - len({one.index for one in asked}),
        "unreadable_gold": sum(labels[one.key].verdict.endswith(UNREADABLE_GOLD) for one in asked),
        "without_majority": sum(labels[one.key].verified is None for one in asked),
        "by_checker": dict(sorted(Counter(one.checker for one in asked).items())),
        "failures": dict(sorted(Counter(label.failure for label in labels.values() if label.failure).items())),
        "orders_disagree": {
            "answers": len(one_way),
            "examples": [_example(one, labels) for one in one_way[:_EXAMPLES]],
        },
    }


def _example(one: _Asked, labels: dict[str, _Label]) -> dict[str, Any]:
    """A comparison, cut short and printable."""
    answer = final_answer(one.answer)
    return {
        "id": one.problem.id,
        "mode": " and ".join(one.modes),
        "gold": shown(one.gold, _EXAMPLE_CHARACTERS),
        "answer": shown(answer, _EXAMPLE_CHARACTERS),
        "verdict": labels[one.key].verdict,
    }
