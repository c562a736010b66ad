"""`distill traces verify`: who is right, as labels. Nothing is dropped; what to train on is said at training.

Each answer is compared with the gold answer, or both of a pair with each other, by one checker (tasks/checkers.py) or by
judges (serve/judge.py). `auto` takes

    the task's own checker    for tasks that are known by name
    choice, labels            where the answers are of that format
    math                      for other answers, where the gold answer is nothing but mathematics
    normalised                for the rest

An answer without a gold one keeps the label it had, if any. Pairs are read as often as they are needed and not held,
but for what judges are shown of them.
"""

import importlib.metadata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from distill import console
from distill.artifact import Artifact
from distill.errors import InputError
from distill.journal import Journal
from distill.serve.judge import ANSWER_CHARACTERS, MOST_JUDGES, Case, JudgeSettings, agreement, ask_judges
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
    check,
    is_mathematics,
    shown,
)
from distill.tasks.checkers import VERSION as CHECKERS_VERSION
from distill.tasks.problem import Problem
from distill.tasks.registry import known_checker
from distill.traces.derive import Derivation, deriving
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
        counts = _Counts(settings.against, Counter(one.checker for one in _all_comparisons(new, settings)))
        if not counts.by_checker:
            raise InputError(f"{source}: no pair has a gold answer; --against other-mode compares the two answers")
        with Journal(new.path / JOURNAL) as journal:
            by_judges: dict[str, Any] = {}
            if settings.checker == "judge":
                label_of, by_judges = _judge(new, settings, journal)
            else:
                label_of = _check(new, settings, journal, counts.by_checker, processes)

            def labelled(index: int, pair: Pair) -> Pair:
                found = [(one, label_of(one)) for one in _comparisons(index, pair, settings)]
                counts.add(found)
                for one, label in found:
                    for mode in one.modes:
                        trace = replace(pair.trace(mode), verified=label.verified, verdict=label.verdict)
                        pair = replace(pair, **{mode: trace})
                return pair

            return new.commit(labelled, lambda: {"verification": counts.to_json() | by_judges}, remove=(JOURNAL,))


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
        return _Asked(f"{index} {name}", modes, checker, pair.problem, gold, answer)

    if settings.against == "other-mode":
        yield asked("both", MODES, final_answer(pair.reasoning.answer), pair.ift.answer)
    elif pair.problem.gold.strip():
        for mode in MODES:
            yield asked(mode, (mode,), pair.problem.gold, pair.trace(mode).answer)


def _all_comparisons(new: Derivation, settings: VerifySettings) -> Iterator[_Asked]:
    return (one for index, pair in enumerate(new.pairs()) for one in _comparisons(index, pair, settings))


def _check(
    new: Derivation, settings: VerifySettings, journal: Journal, by_checker: Counter[str], processes: int | None
) -> Callable[[_Asked], _Label]:
    """What the checkers say. Those that take long say it here, to the journal; the others when they are asked, which is
    sooner done again than read."""
    beside = _BESIDE[settings.against]

    def label(checker: str, verdict: Verdict) -> _Label:
        return _Label(verdict.correct, f"{_SAID_BY.get(checker, checker)}{beside}: {verdict.note}", verdict.failure)

    def keep(one: _Asked, verdict: Verdict) -> None:
        journal.append(one.key, vars(label(one.checker, verdict)))
        bar.advance(task)

    slow = sorted(by_checker.keys() - set(QUICK))
    with console.progress() as bar:
        task = bar.add_task("checking", total=sum(by_checker[name] for name in slow), completed=len(journal))
        for name in slow:
            mine = (one for one in _all_comparisons(new, settings) if one.checker == name and one.key not in journal)
            _check_all(name, mine, keep, processes=processes, limit_s=settings.limit_s)

    def label_of(one: _Asked) -> _Label:
        if one.checker in QUICK:
            return label(one.checker, check(one.checker, one.gold, one.answer))
        return _Label(**journal.get(one.key))

    return label_of


def _check_all(checker: str, asked: Iterable[_Asked], keep: Callable[[_Asked, Verdict], None], **limits: Any) -> None:
    """check_all of comparisons: those that are being made are held, and no others."""
    waiting: dict[int, _Asked] = {}

    def pairs() -> Iterator[tuple[str, str]]:
        for number, one in enumerate(asked):
            waiting[number] = one
            yield one.gold, one.answer

    check_all(checker, pairs(), lambda number, verdict: keep(waiting.pop(number), verdict), **limits)


def _judge(
    new: Derivation, settings: VerifySettings, journal: Journal
) -> tuple[Callable[[_Asked], _Label], dict[str, Any]]:
    """What the judges say, and how far they agree."""
    cases = (  # of an answer they see the end
        Case(one.key, one.problem.prompt, one.gold, one.answer[-ANSWER_CHARACTERS:])
        for one in _all_comparisons(new, settings)
    )
    judgements = ask_judges(settings.judges, cases, journal)
    names = [one.name for one in settings.judges]
    who = ", ".join(one.model for one in settings.judges) + _BESIDE[settings.against]

    def label_of(one: _Asked) -> _Label:
        judgement = judgements[one.key]
        return _Label(judgement.correct, f"judges {who}: {judgement}")

    return label_of, {"judges": agreement(judgements.values(), names)}


@dataclass
class _Counts:
    """Counts of answers, by mode where they differ; pairs with both answers verified are those --keep verified keeps."""

    against: str
    by_checker: Counter[str]
    judged: Counter[Mode] = field(default_factory=Counter)
    verified: Counter[Mode] = field(default_factory=Counter)
    pairs_verified: int = 0
    without_gold: int = 0
    unreadable_gold: int = 0
    without_majority: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    one_way: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, found: list[tuple[_Asked, _Label]]) -> None:
        """The labels of one pair."""
        right = [mode for one, label in found if label.verified for mode in one.modes]
        self.verified.update(right)
        self.judged.update(mode for one, label in found if label.verified is not None for mode in one.modes)
        self.pairs_verified += len(right) == len(MODES)
        self.without_gold += not found
        for one, label in found:
            self.without_majority += label.verified is None
            self.unreadable_gold += label.verdict.endswith(UNREADABLE_GOLD)
            self.failures.update([label.failure] if label.failure else [])
            if label.verdict.endswith((GOLD_TO_ANSWER_ONLY, ANSWER_TO_GOLD_ONLY)):
                self.one_way += 1
                if len(self.examples) < _EXAMPLES:
                    self.examples.append(_example(one, label))

    def to_json(self) -> dict[str, Any]:
        return {
            "against": self.against,
            "judged": {mode: self.judged[mode] for mode in MODES},
            "verified": {mode: self.verified[mode] for mode in MODES},
            "pairs_verified": self.pairs_verified,
            "without_gold": self.without_gold,
            "unreadable_gold": self.unreadable_gold,
            "without_majority": self.without_majority,
            "by_checker": dict(sorted(self.by_checker.items())),
            "failures": dict(sorted(self.failures.items())),
            "orders_disagree": {"answers": self.one_way, "examples": self.examples},
        }


def _example(one: _Asked, label: _Label) -> dict[str, Any]:
    """A comparison, cut short and printable."""
    answer = final_answer(one.answer)
    return {
        "id": one.problem.id,
        "mode": " and ".join(one.modes),
        "gold": shown(one.gold, _EXAMPLE_CHARACTERS),
        "answer": shown(answer, _EXAMPLE_CHARACTERS),
        "verdict": label.verdict,
    }
