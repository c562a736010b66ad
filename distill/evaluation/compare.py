"""`distill compare`: several evaluations of the same questions on one page, side by side, and how they differ."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from distill import artifact, console
from distill.errors import InputError
from distill.evaluation.answer_file import KIND, read_answers
from distill.evaluation.page import Arm, contrasts, p_text, scores, what_p_says, write_page
from distill.evaluation.table import print_table, token_count, with_interval
from distill.report.numbers import fixed, percent, signed
from distill.report.text import visible

_KICKER = "distill compare"
_MADE_BY = "distill evaluate"


def compare(evaluations: Sequence[str], out: Path | None = None) -> dict[str, Any]:
    """The scores of evaluations, each a folder or NAME=FOLDER, and the differences to the first; with `out` a page of them.

    Questions that not all were asked are left out, and the page says how many. Raises InputError when there is none that
    all were asked, when one question has two gold answers, and when `out` is a file that was not made here.
    """
    if len(evaluations) < 2:
        raise InputError(f"{evaluations[0]}: found one evaluation, expected two or more; it has its own answers.html")
    if out is not None:
        _require_place(out)
    folders = _named(evaluations)
    arms, keys = [], []
    for name, folder in folders.items():
        found = artifact.read(folder, KIND, made_by=_MADE_BY)
        arms.append(Arm(name, read_answers(folder / "answers.parquet"), found.recipe, found.summary))
        keys.append(found.key)
    arms, notices = _same_questions(arms, list(folders.values()))
    if out is not None:
        write_page(out, arms, kicker=f"{_KICKER} · {' · '.join(key[:12] for key in keys)}", notices=notices)
    return {
        "page": None if out is None else str(out),
        "questions": len({answer.problem_id for answer in arms[0].answers}),
        "left_out": notices,
        "scores": [asdict(found) for found in scores(arms)],
        "differences": [asdict(contrast) for contrast in contrasts(arms)],
    }


def show(found: dict[str, Any]) -> None:
    """Scores and differences as a table on standard output."""
    differences = {(c["task"], c["treatment"]): c for c in found["differences"]}
    first = found["scores"][0]["arm"]
    groups = []
    for task, some in groupby(found["scores"], key=lambda s: s["task"]):
        rows = [[s["arm"], *_amounts(s), *_difference(differences.get((task, s["arm"])))] for s in some]
        groups.append([[task if i == 0 else "", *row] for i, row in enumerate(rows)])
    p = "p (Holm)" if len(differences) > 1 else "p"
    more = "points more than\nthe first [95 %]"
    columns = ("task", "evaluation", "% [95 %]", "unfinished\n%", "tokens", more, "seen\nfrom", p)
    print_table(f"{found['questions']:,} questions; differences are to {first}", columns, groups)
    console.note(
        f"{what_p_says(len(differences))} seen from: the true difference, in points, that would have been seen with 80 % power."
    )
    for notice in found["left_out"]:
        console.note(visible(notice))
    if found["page"] is not None:
        console.out.print(visible(f"page: {found['page']}"), markup=False, soft_wrap=True)


def _amounts(score: dict[str, Any]) -> list[str]:
    accuracy = with_interval(score["accuracy"]["value"], score["accuracy"])
    return [accuracy, percent(score["unfinished_rate"]), token_count(score["tokens"])]


def _difference(contrast: dict[str, Any] | None) -> list[str]:
    if contrast is None:  # of the first
        return ["", "", ""]
    value, low, high = (signed(100 * contrast["difference"][name]) for name in ("value", "low", "high"))
    return [f"{value} [{low}, {high}]", fixed(100 * contrast["detectable"]), p_text(contrast["p_holm"])]


def _require_place(out: Path) -> None:
    """Raises InputError when `out` is no place for a file, or a file that was not made here."""
    artifact.require_file_place(out)
    if out.is_file() and _KICKER not in out.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{out}: exists and is no page of `{_KICKER}`; choose another --out")


def _named(evaluations: Sequence[str]) -> dict[str, Path]:
    """Folders by name: the one given, else the folder's own. Raises InputError for a name that is there twice."""
    named: dict[str, Path] = {}
    for text in evaluations:
        name, equals, rest = text.partition("=")
        given = bool(name and equals and rest) and not Path(text).exists()
        folder = Path(rest if given else text)
        if not given:
            name = folder.resolve().name.removesuffix(".evaluation")
        if name in named:
            raise InputError(f"{text}: a second evaluation named {name!r}; name it: NAME={folder}")
        named[name] = folder
    return named


def _same_questions(arms: list[Arm], folders: list[Path]) -> tuple[list[Arm], list[str]]:
    """The arms with the questions that all of them were asked, and what was left out."""
    golds = [{answer.problem_id: answer.gold for answer in arm.answers} for arm in arms]
    common = set.intersection(*(set(gold) for gold in golds))
    if not common:
        raise InputError(
            f"{folders[0]} and {folders[-1]}: no question that all were asked; expected the same questions"
        )
    for folder, gold in zip(folders[1:], golds[1:], strict=True):
        for problem_id in golds[0]:
            if problem_id in common and gold[problem_id] != golds[0][problem_id]:
                raise InputError(
                    f"{folder}: the gold answer of {problem_id} is {_short(gold[problem_id])}, but in {folders[0]} it is "
                    f"{_short(golds[0][problem_id])}; expected the same questions"
                )
    notices = [
        f"{arm.name}: {len(gold) - len(common):,} of its {len(gold):,} questions were not asked of all, and are left out."
        for arm, gold in zip(arms, golds, strict=True)
        if len(gold) > len(common)
    ]
    kept = [
        # Grades are of all questions, so not of what is left of them.
        replace(
            a,
            answers=[x for x in a.answers if x.problem_id in common],
            grades={} if len(gold) > len(common) else a.grades,
        )
        for a, gold in zip(arms, golds, strict=True)
    ]
    return kept, notices


def _short(gold: str) -> str:
    return repr(gold if len(gold) <= 40 else gold[:39] + "…")
