"""`distill compare`: several evaluations of the same questions on one page, side by side, and how they differ."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill import artifact, console
from distill.errors import InputError
from distill.evaluation.answer_file import KIND, read_answers
from distill.evaluation.page import Arm, contrasts, p_text, write_page
from distill.report.numbers import signed
from distill.report.text import visible

_KICKER = "distill compare"
_MADE_BY = "distill evaluate"


def compare(evaluations: Sequence[str], out: Path) -> dict[str, Any]:
    """Write the page of evaluations, each a folder or NAME=FOLDER, and give the differences to the first.

    Questions that not all were asked are left out, and the page says how many. Raises InputError when there is none that
    all were asked, when one question has two gold answers, and when `out` is a file that was not made here.
    """
    if len(evaluations) < 2:
        raise InputError(f"{evaluations[0]}: found one evaluation, expected two or more; it has its own answers.html")
    artifact.require_file_place(out)
    if out.is_file() and _KICKER not in out.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{out}: exists and is no page of `{_KICKER}`; choose another --out")
    folders = _named(evaluations)
    arms, keys = [], []
    for name, folder in folders.items():
        found = artifact.read(folder, KIND, made_by=_MADE_BY)
        arms.append(Arm(name, read_answers(folder / "answers.parquet"), found.recipe))
        keys.append(found.key)
    arms, notices = _same_questions(arms, list(folders.values()))
    write_page(out, arms, kicker=f"{_KICKER} · {' · '.join(key[:12] for key in keys)}", notices=notices)
    return {
        "page": str(out),
        "questions": len({answer.problem_id for answer in arms[0].answers}),
        "left_out": notices,
        "differences": [asdict(contrast) for contrast in contrasts(arms)],
    }


def show(found: dict[str, Any]) -> None:
    """The differences in a few lines on standard output."""
    for c in found["differences"]:
        value, low, high = (signed(100 * c["difference"][name]) for name in ("value", "low", "high"))
        line = f"{c['task']}: {c['treatment']} {value} points against {c['control']}"
        line += f" (95 % interval {low} to {high}, p {p_text(c['p_value'])}; these trained students)"
        console.out.print(visible(line), markup=False, soft_wrap=True)
    for notice in found["left_out"]:
        console.note(visible(notice))
    console.out.print(visible(found["page"]), markup=False, soft_wrap=True)


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
    return [Arm(a.name, [x for x in a.answers if x.problem_id in common], a.recipe) for a in arms], notices


def _short(gold: str) -> str:
    return repr(gold if len(gold) <= 40 else gold[:39] + "…")
