"""answers.html: graded answers to look through, of one evaluation or of several side by side.

Equal answers give equal bytes: nothing timed is on the page, and what is drawn at random is drawn by a hash.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from distill import artifact
from distill.evaluation.answers import Answer
from distill.evaluation.statistics.intervals import Interval, difference, score
from distill.evaluation.statistics.power import minimum_detectable_difference
from distill.evaluation.statistics.resampling import of_scores
from distill.evaluation.statistics.significance import holm
from distill.report.blocks import Answer as Written
from distill.report.blocks import (
    Block,
    Browser,
    Cell,
    Choice,
    Code,
    Entry,
    Example,
    Group,
    Notice,
    Section,
    Table,
    Text,
)
from distill.report.numbers import DASH, count, fixed, percent, signed
from distill.report.page import render_page
from distill.report.text import shorten

ENTRIES = 2_000  # on a page, so that it opens in seconds
CHARACTERS = 12_000_000  # of questions and answers on a page
TEXT_LIMITS = (20_000, 6_000, 2_000)  # characters of one text: the first with which all of them fit
_ENTRY, _ANSWER = 600, 900  # characters of markup
_ROLES = ("blue", "orange", "purple", "green", "gold", "grey")
_NAME = 60  # characters of an arm's or a task's name
GRADES = ("right", "wrong", "unfinished")
AGREEMENT = ("disagree", "all right", "none right")
_VERDICT = 300  # characters of what a checker said
_THINK = {"on": "a think block was opened for it", "off": "thinking was closed for it"}


@dataclass(frozen=True)
class Arm:
    """The graded answers of one evaluation, or of one of its thinking budgets, and the recipe that made them.

    `grades` are those of all these answers, as in grades.json: metrics besides accuracy are read from there.
    """

    name: str
    answers: list[Answer]
    recipe: dict[str, Any]
    grades: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def by_task(self) -> dict[str, list[Answer]]:
        found: dict[str, list[Answer]] = {}
        for answer in self.answers:
            found.setdefault(answer.task, []).append(answer)
        return found

    def budgets(self) -> list["Arm"]:
        """An arm for every thinking budget, itself when there is one."""
        found = sorted({a.budget for a in self.answers}, key=lambda budget: (budget is None, budget or 0))
        if len(found) == 1:
            return [self]
        return [
            Arm(
                ", ".join(filter(None, [self.name, f"budget {'none' if budget is None else count(budget)}"])),
                [a for a in self.answers if a.budget == budget],
                self.recipe,
            )
            for budget in found
        ]


@dataclass(frozen=True)
class _Row:
    """One question, and one sample of each arm; None where an arm has fewer samples."""

    problem_id: str
    sample: int
    answers: list[Answer | None]

    @cached_property
    def given(self) -> list[Answer]:
        return [answer for answer in self.answers if answer is not None]

    @property
    def task(self) -> str:
        return self.given[0].task

    @cached_property
    def agreement(self) -> str:
        right = {answer.correct for answer in self.given}
        return "disagree" if len(right) == 2 else "all right" if right == {True} else "none right"

    @cached_property
    def draw(self) -> bytes:
        """A place in a random order that is the same everywhere."""
        return sha256(f"{self.problem_id} {self.sample}".encode(errors="replace")).digest()

    def characters(self, text_limit: int) -> int:
        """That it takes on the page, about."""
        size = _ENTRY + sum(min(len(text), text_limit) for text in (self.given[0].prompt, self.given[0].gold))
        return size + sum(
            _ANSWER + sum(min(len(text), text_limit) for text in (answer.thinking, answer.answer))
            for answer in self.given
        )


def grade_of(answer: Answer) -> str:
    """`right`, `wrong` or `unfinished`."""
    return "unfinished" if not answer.finished else "right" if answer.correct else "wrong"


def render(arms: Sequence[Arm], *, kicker: str, notices: Sequence[str] = ()) -> str:
    """The page as HTML, of evaluations of the same questions; every text of a model is escaped by the renderer."""
    columns = [replace(c, name=shorten(c.name, _NAME)) for arm in arms for c in arm.budgets()]
    rows = _rows(columns)
    text_limit, entries = _limits(rows)
    shown = _choose(rows, entries)
    head: list[Block] = [Notice("Mind this.", list(notices))] if notices else []
    head += [_scores(columns), *_further_metrics(arms)]
    if len(columns) > 1:
        found = contrasts(columns)
        head += [_differences(columns[0].name, found), Text(what_p_says(len(found)), muted=True)]
    browse: list[Block] = [] if len(shown) == len(rows) else [_left_out(rows, shown)]
    browse.append(_browser(columns, shown, text_limit))
    made = [
        Code(json.dumps(arm.recipe, indent=2, sort_keys=True, ensure_ascii=False), arm.name or "Recipe", folded=True)
        for arm in arms
    ]
    questions = len({row.problem_id for row in rows})
    tasks = ", ".join(shorten(task, _NAME) for task in columns[0].by_task)
    named = ", ".join(shorten(arm.name, _NAME) for arm in arms if arm.name)
    answers = f"{count(sum(len(column.answers) for column in columns))} graded answers"
    return render_page(
        f"{named}: {answers}" if named else answers,
        [
            Section("Scores", head, lead="Intervals are over questions, at 95\u00a0%; tokens are means."),
            Section("Answers", browse),
            Section("How they were made", made),
        ],
        kicker=kicker,
        lead=f"{count(questions)} {'question' if questions == 1 else 'questions'} of {tasks}.",
    )


def write_page(file: Path, arms: Sequence[Arm], *, kicker: str, notices: Sequence[str] = ()) -> None:
    """Write the page, whole or not at all."""
    artifact.write_atomic(file, render(arms, kicker=kicker, notices=notices))


def _rows(columns: Sequence[Arm]) -> list[_Row]:
    """In the order of the first arm."""
    rows: dict[tuple[str, int], list[Answer | None]] = {}
    for i, column in enumerate(columns):
        for answer in column.answers:
            rows.setdefault((answer.problem_id, answer.sample), [None] * len(columns))[i] = answer
    order = {problem_id: place for place, (problem_id, _) in enumerate(rows)}
    return [_Row(*key, rows[key]) for key in sorted(rows, key=lambda key: (order[key[0]], key[1]))]


def _limits(rows: list[_Row]) -> tuple[int, int]:
    """How many characters of a text, and how many rows, a page of bounded size has."""
    for text_limit in TEXT_LIMITS:
        sizes = sorted((row.characters(text_limit) for row in rows), reverse=True)[:ENTRIES]
        if sum(sizes) <= CHARACTERS:
            return text_limit, len(sizes)
    return text_limit, max(1, min(len(sizes), CHARACTERS // sizes[0]))


def _choose(rows: list[_Row], limit: int) -> list[_Row]:
    """All of them, or `limit`: those that not everybody has right first, but a quarter for the others if there are so many."""
    if len(rows) <= limit:
        return rows
    right = [row for row in rows if row.agreement == "all right"]
    others = [row for row in rows if row.agreement != "all right"]
    taken = sorted(others, key=lambda row: row.draw)[: limit - min(len(right), limit // 4)]
    taken += sorted(right, key=lambda row: row.draw)[: limit - len(taken)]
    chosen = {(row.problem_id, row.sample) for row in taken}
    return [row for row in rows if (row.problem_id, row.sample) in chosen]


def _left_out(rows: list[_Row], shown: list[_Row]) -> Notice:
    names = zip(
        AGREEMENT, ("on which the arms disagree", "that every arm has right", "that no arm has right"), strict=True
    )
    if len(rows[0].answers) == 1:
        names = (("none right", "wrong or unfinished"), ("all right", "right"))
    items = []
    for agreement, what in names:
        there, here = (sum(row.agreement == agreement for row in some) for some in (rows, shown))
        if there:
            items.append(f"{count(there)} {what}: {'all' if here == there else f'{count(here)}, drawn at random'}")
    return Notice(
        f"{count(len(shown))} of {count(len(rows))} are on this page. The scores above are of all of them; the counts "
        "beside the filters are of this page.",
        items,
    )


def _scores(columns: Sequence[Arm]) -> Table:
    """What every arm did on every task."""
    tasks = list(columns[0].by_task)
    if len(columns) == 1:
        groups = [Group([_score_row(shorten(task, _NAME), columns[0].by_task[task]) for task in tasks])]
    else:
        groups = [
            Group([_score_row(column.name, column.by_task[task]) for column in columns], title=shorten(task, _NAME))
            for task in tasks
        ]
    return Table(
        "Right answers",
        [
            "",
            Cell("Right", "% of answers"),
            "Questions",
            Cell("Unfinished", "%, graded wrong"),
            Cell("Thought", "%"),
            Cell("Tokens", "an answer"),
            Cell("Tokens", "if right"),
            Cell("Tokens", "if wrong"),
        ],
        groups,
    )


def _further_metrics(arms: Sequence[Arm]) -> list[Table]:
    """Metrics besides accuracy, where there are any."""
    groups = []
    for task in arms[0].by_task:
        found = [arm.grades.get(task, {}) for arm in arms]
        names = [name for name in found[0].get("metrics", {}) if name != "accuracy"]
        rows = [[shorten(name, _NAME), *(_metric_cell(grades, name) for grades in found)] for name in names]
        groups += [Group(rows, title=shorten(task, _NAME))] if rows else []
    names = [Cell(shorten(arm.name, _NAME), "%") if arm.name else "%" for arm in arms]
    return [Table("Further metrics", ["", *names], groups)] if groups else []


def _metric_cell(grades: dict[str, Any], name: str) -> Cell:
    interval = grades.get("intervals", {}).get(name)
    note = f"{percent(interval['low'])} to {percent(interval['high'])}" if interval else ""
    return Cell(percent(grades.get("metrics", {}).get(name)), note)


@dataclass(frozen=True)
class Score:
    """What an arm did on a task; accuracy in shares of right answers, tokens an answer."""

    task: str
    arm: str
    questions: int
    accuracy: Interval
    unfinished_rate: float
    tokens: float


def scores(arms: Sequence[Arm]) -> list[Score]:
    """Of every arm, or thinking budget of one, task by task."""
    columns = [column for arm in arms for column in arm.budgets()]
    return [_score(task, column.name, column.by_task[task]) for task in columns[0].by_task for column in columns]


def _score(task: str, arm: str, answers: list[Answer]) -> Score:
    by_question = _scores_by_question(answers)
    return Score(
        task,
        arm,
        len(by_question),
        score([of_scores(by_question)]),
        np.mean([not a.finished for a in answers]).item(),
        np.mean([a.thinking_tokens + a.answer_tokens for a in answers]).item(),
    )


def _score_row(name: str, answers: list[Answer]) -> list[str | Cell]:
    found = _score(answers[0].task, name, answers)
    accuracy, questions = found.accuracy, found.questions
    right = sum(a.correct for a in answers)
    several = f"{count(len(answers))} answers, {count(right)} right"
    tokens = lambda some: float(np.mean([a.thinking_tokens + a.answer_tokens for a in some])) if some else None  # noqa: E731
    parts = np.mean([[a.thinking_tokens, a.answer_tokens] for a in answers], axis=0).tolist()
    return [
        name,
        Cell(percent(accuracy.value), f"{percent(accuracy.low)} to {percent(accuracy.high)}"),
        Cell(count(questions), f"{count(right)} right" if questions == len(answers) else several),
        percent(found.unfinished_rate),
        percent(np.mean([a.thought for a in answers]).item()),
        Cell(fixed(found.tokens), "{} thinking + {} answer".format(*map(fixed, parts))),
        fixed(tokens([a for a in answers if a.correct])),
        Cell(
            fixed(tokens([a for a in answers if not a.correct])),
            f"{fixed(tokens([a for a in answers if a.finished and not a.correct]))} if finished",
        ),
    ]


def _scores_by_question(answers: list[Answer]) -> np.ndarray:
    """Shares of right answers [questions], by problem id."""
    ordered = sorted(answers, key=lambda a: a.problem_id)
    return np.array([np.mean([a.correct for a in some]) for _, some in groupby(ordered, key=lambda a: a.problem_id)])


@dataclass(frozen=True)
class Contrast:
    """A later arm minus the first on one task, in shares of right answers."""

    task: str
    treatment: str
    control: str
    difference: Interval
    p_value: float
    p_holm: float  # corrected for all contrasts that are made together
    detectable: float  # the true difference that would have been seen with 80 % power
    only_treatment: int  # samples that only the treatment has right
    only_control: int


def contrasts(arms: Sequence[Arm]) -> list[Contrast]:
    """Of every later arm, or thinking budget of one, with the first, task by task."""
    first, *later = (column for arm in arms for column in arm.budgets())
    found = [_contrast(task, column, first) for task in first.by_task for column in later]
    return [replace(c, p_holm=p) for c, p in zip(found, holm([c.p_value for c in found]), strict=True)]


def what_p_says(comparisons: int) -> str:
    """What to mind of the contrasts, in one line."""
    corrected = f" p is Holm's, for {count(comparisons)} comparisons." if comparisons > 1 else ""
    return f"Of these trained students: no training seeds are drawn.{corrected}"


def _contrast(task: str, treatment: Arm, control: Arm) -> Contrast:
    scores = [_scores_by_question(arm.by_task[task]) for arm in (treatment, control)]
    right = [{(a.problem_id, a.sample): a.correct for a in arm.by_task[task]} for arm in (treatment, control)]
    common = [(right[0][key], right[1][key]) for key in right[0].keys() & right[1].keys()]
    between = difference(*([of_scores(one)] for one in scores))
    return Contrast(
        task,
        treatment.name,
        control.name,
        between.interval(),
        between.p_value,
        between.p_value,
        minimum_detectable_difference(between.spread),
        sum(t and not c for t, c in common),
        sum(c and not t for t, c in common),
    )


def _differences(first: str, found: Sequence[Contrast]) -> Table:
    groups = [
        Group(
            [
                [
                    c.treatment,
                    Cell(
                        signed(100 * c.difference.value),
                        f"{signed(100 * c.difference.low)} to {signed(100 * c.difference.high)}",
                    ),
                    Cell(p_text(c.p_holm), p_text(c.p_value)) if len(found) > 1 else p_text(c.p_value),
                    fixed(100 * c.detectable),
                    count(c.only_treatment),
                    count(c.only_control),
                ]
                for c in some
            ],
            title=shorten(task, _NAME),
        )
        for task, some in groupby(found, key=lambda c: c.task)
    ]
    return Table(
        f"Differences to {first}",
        [
            "",
            Cell("Points", "95 % interval"),
            Cell("p", "Holm; signs flipped" if len(found) > 1 else "signs flipped"),
            Cell("Detectable", "points, 80\u00a0% power"),
            Cell("Right only", "in this arm"),
            Cell("Right only", f"in {first}"),
        ],
        groups,
    )


def p_text(p_value: float) -> str:
    """
    >>> p_text(0.0312), p_text(3e-9)
    ('0.031', '< 0.0001')
    """
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def _browser(columns: Sequence[Arm], rows: list[_Row], text_limit: int) -> Browser:
    choices = _choices(columns)
    samples = any(row.sample for row in rows)
    return Browser(
        [choice for choice, _ in choices],
        [Entry(_example(columns, row, samples), [places(row) for _, places in choices]) for row in rows],
        text_limit,
    )


def _choices(columns: Sequence[Arm]) -> list[tuple[Choice, Callable[[_Row], list[int]]]]:
    """Every filter, and the places of a row's values in it."""
    tasks = list(columns[0].by_task)
    several = len(columns) > 1
    found: list[tuple[Choice, Callable[[_Row], list[int]]]] = []
    if len(tasks) > 1:
        found.append((Choice("Task", [shorten(t, _NAME) for t in tasks]), lambda row: [tasks.index(row.task)]))
    for i, column in enumerate(columns):
        found.append((Choice(column.name if several else "Grade", GRADES), partial(_grade_place, i)))
    if several:
        found.append((Choice("Arms", AGREEMENT), lambda row: [AGREEMENT.index(row.agreement)]))
    thinking = [f"{c.name}: {what}" if several else what for c in columns for what in ("thought", "did not think")]
    found.append((Choice("Thinking", thinking), _thinking_places))
    return found


def _grade_place(column: int, row: _Row) -> list[int]:
    answer = row.answers[column]
    return [] if answer is None else [GRADES.index(grade_of(answer))]


def _thinking_places(row: _Row) -> list[int]:
    return [2 * i + (not answer.thought) for i, answer in enumerate(row.answers) if answer is not None]


def _example(columns: Sequence[Arm], row: _Row, samples: bool) -> Example:
    return Example(
        f"{row.problem_id}, sample {row.sample + 1}" if samples else row.problem_id,
        row.given[0].prompt,
        row.given[0].gold,
        [
            Written(
                column.name or "Answer",
                answer.thinking,
                answer.answer,
                grade_of(answer),
                _note(answer),
                _ROLES[i % len(_ROLES)],
            )
            for i, (column, answer) in enumerate(zip(columns, row.answers, strict=True))
            if answer is not None
        ],
    )


def _note(answer: Answer) -> str:
    parts = [
        shorten(answer.verdict, _VERDICT) if answer.finished else "",
        f"the checker came to no end ({shorten(answer.failure, _VERDICT)})" if answer.failure else "",
        *(f"{shorten(name, _VERDICT)} {value:.3g}" for name, value in sorted(answer.scores.items())),
        f"{count(answer.thinking_tokens)} thinking + {count(answer.answer_tokens)} answer tokens",
        "" if answer.budget is None else f"budget {count(answer.budget)} thinking",
        f"finish reason {answer.finish_reason or DASH}",
        "" if answer.finished or answer.finish_reason != "stop" else "its thinking was never closed",
        _THINK.get(answer.think, ""),
    ]
    return " · ".join(filter(None, parts))
