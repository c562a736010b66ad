"""A publication's own figures beside these, where sizes, kinds of task and training data have the same names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from distill.errors import InputError
from distill.report.blocks import Block, Cell, Facts, Figure, Group, Key, KeyValues, Panel, Table, Text
from distill.report.lines import Line, lines
from distill.report.numbers import DASH, fixed, signed
from distill.study.page.reading import FORMAT, analysis, confidence, ends, judged_by, parameters, pick
from distill.study.published import Pair, Published, published

_FORMAT = {FORMAT["open"]: "open", FORMAT["choice"]: "choice"} | {name: name for name in FORMAT}
_MARK = ("disc", "square", "diamond", "triangle")


@dataclass(frozen=True)
class _Ours:
    """What this study has of one published cell: means over `tasks`; the difference without limits is not tested."""

    ift: float
    reasoning: float
    difference: dict
    tasks: int


def beside(results: dict) -> list[Block]:
    """Empty where the preset names no publication, or one that this version does not know."""
    name = pick(results, "preset", "published")
    if not isinstance(name, str):
        return []
    try:
        theirs = published(name)
    except InputError:
        return []
    ours = {pair: found for pair in theirs.pairs if (found := _ours(results, pair)) is not None}
    said = f"{theirs.title}: {theirs.citation}. {theirs.note}"
    if not ours:
        said += " None of its cells is in this study, by size, kind of task and training data: its figures stand alone."
    else:
        said += (
            " Under a published figure stands what this study has of the same size, kind of task and training data: other "
            "questions, asked in another way."
        )
    blocks: list[Block] = [Text(said), *([figure] if (figure := _figure(results, theirs, ours)) else [])]
    blocks.append(_table(theirs, ours))
    claims = [(claim.name, _claim(claim)) for claim in theirs.claims]
    return [*blocks, KeyValues([Facts("Also published", claims)])] if claims else blocks


def _ours(results: dict, pair: Pair) -> _Ours | None:
    cells = [c for c in results["cells"] if _same(c["size"], pair.size) and _plain(results, c, pair.corpus)]
    sides = [next((c for c in cells if c["arm"] == arm), None) for arm in ("ift", "reasoning")]
    if None in sides:
        return None
    tasks = {
        task: metric
        for task, metric in _tasks(results, pair)
        if all(_score(c, task, metric) is not None for c in sides)
    }
    if not tasks:
        return None
    ift, reasoning = (100 * sum(_score(cell, *one) for one in tasks.items()) / len(tasks) for cell in sides)
    found = _tested(results, sides[1], sides[0], list(tasks))
    return _Ours(ift, reasoning, found or {"value": reasoning - ift, "low": None, "high": None}, len(tasks))


def _plain(results: dict, cell: dict, corpus: str) -> bool:
    """Whether a cell is an arm as published: the same samples, asked as everybody is, trained on data of that name."""
    asked = any(cell.get(name) is not None for name in ("think", "mode", "thinking_budget"))
    sets = [one.get("name") for one in pick(results, "teacher", "sets") or [] if isinstance(one, dict)]
    trained_on = cell.get("traces") or (sets[0] if len(sets) == 1 else None)
    return (cell.get("match") or "samples") == "samples" and not asked and trained_on == corpus


def _tasks(results: dict, pair: Pair) -> list[tuple[str, str]]:
    """Those of the pair's domain and format, with the metric of each; questions of one's own have no domain."""
    domain = {t: e.get("domain") for e in analysis(results, "by_domain") for t in e.get("tasks") or []}
    return [
        (task["name"], judged_by(task))
        for task in results["tasks"]
        if domain.get(task["name"], "own") == pair.group and task.get("answer_format") == _FORMAT.get(pair.format)
    ]


def _tested(results: dict, treatment: dict, control: dict, tasks: list[str]) -> dict | None:
    """The difference with its interval, where the analysis has it of just these tasks."""
    for entry in [*analysis(results, "by_suite"), *analysis(results, "by_format")]:
        sides = [f"{entry.get('size')}-{entry.get(side)}" for side in ("treatment", "control")]
        if sides == [treatment["id"], control["id"]] and sorted(entry.get("tasks") or []) == sorted(tasks):
            return entry.get("difference_points")
    return None


def _figure(results: dict, theirs: Published, ours: dict[Pair, _Ours]) -> Figure | None:
    """Gains by size: dashed as published, a line each corpus; full as found here."""
    at = {size: _parameters(size) for size in theirs.sizes}
    if len(at) < 2 or None in at.values():
        return None
    corpora = list(dict.fromkeys(pair.corpus for pair in theirs.pairs))
    look = dict(zip(corpora, _MARK, strict=False))
    panels, data = [], []
    for suite in dict.fromkeys(pair.suite for pair in theirs.pairs):
        drawn = []
        for corpus in look:
            pairs = [p for p in theirs.pairs if (p.suite, p.corpus) == (suite, corpus)]
            known = [(at[p.size], p.difference_points, None, None) for p in pairs if p.difference_points is not None]
            drawn.append(Line(known, "grey", look[corpus], dashed=True))
            found = [(at[p.size], *ends(ours[p].difference)) for p in pairs if p in ours]
            drawn.append(Line(found, "orange", look[corpus]))
        data += list(_rows(theirs, ours, suite))
        panels.append(_panel(results, suite, drawn, at))
    return Figure(
        title="The gain by size, as published and here",
        caption=(
            "Reasoning less IFT at the same samples. Dashed and hollow: as published, of one student each, without intervals. "
            f"Full, where there are any: this study, with {confidence(results)} intervals where they were computed."
        ),
        panels=panels,
        data=data,
        file_name="published.csv",
        legend=[Key(f"published, trained on: {corpus}", "grey", mark) for corpus, mark in look.items()]
        + [Key("this study", "orange", "disc")],
    )


def _panel(results: dict, suite: str, drawn: list[Line], at: dict[str, float]) -> Panel:
    spoken = "; ".join(
        f"{'published' if line.dashed else 'here'}: "
        + ", ".join(f"{signed(y)} at {parameters(x)}" for x, y, *_ in line.points)
        for line in drawn
        if line.points
    )
    return lines(
        drawn,
        title=suite,
        description=f"Gains on {suite} in points by parameters. {spoken}.",
        x_label="student",
        y_label="gain, points",
        ticks=[(x, size) for size, x in at.items()],
        margin=results.get("margin_points"),
    )


def _rows(theirs: Published, ours: dict[Pair, _Ours], suite: str) -> Iterator[dict]:
    for pair in theirs.pairs:
        if pair.suite == suite:
            here = ours.get(pair)
            yield {
                "corpus": pair.corpus,
                "suite": suite,
                "size": pair.size,
                "published_ift": pair.ift,
                "published_reasoning": pair.reasoning,
                "published_difference": pair.difference_points,
                "ift": here and here.ift,
                "reasoning": here and here.reasoning,
                "difference": here and here.difference.get("value"),
                "low": here and here.difference.get("low"),
                "high": here and here.difference.get("high"),
            }


def _table(theirs: Published, ours: dict[Pair, _Ours]) -> Table:
    groups: dict[str, dict[str, list]] = {}
    for pair in theirs.pairs:
        by_suite = groups.setdefault(f"trained on: {pair.corpus}", {})
        by_suite.setdefault(f"{pair.suite}, {pair.metric}", []).append((pair, ours.get(pair)))
    made = []
    for title, by_suite in groups.items():
        rows = []
        for suite, pairs in by_suite.items():
            rows.append([Cell(suite, "published"), *(_theirs(pair) for pair, _ in pairs)])
            if any(here for _, here in pairs):
                tasks = max(here.tasks for _, here in pairs if here)
                rows.append(
                    [Cell("this study", f"{tasks} task{'s' if tasks > 1 else ''}"), *(_here(here) for _, here in pairs)]
                )
        made.append(Group(rows, title))
    return Table("IFT → reasoning, percent", ["Asked", *theirs.sizes], made)


def _theirs(pair: Pair) -> Cell:
    return Cell(
        f"{fixed(pair.ift)} → {fixed(pair.reasoning)}",
        signed(pair.difference_points) if pair.difference_points is not None else "",
    )


def _here(here: _Ours | None) -> Cell | str:
    if here is None:
        return DASH
    low, high = here.difference.get("low"), here.difference.get("high")
    note = f" [{signed(low)}, {signed(high)}]" if low is not None and high is not None else ""
    return Cell(f"{fixed(here.ift)} → {fixed(here.reasoning)}", signed(here.difference.get("value")) + note)


def _claim(claim) -> str:
    if claim.low is not None:
        return f"{claim.low:g} to {claim.high:g}"
    return f"{claim.value:g}" + (f" of {claim.of}" if claim.of is not None else "")


def _score(cell: dict, task: str, metric: str) -> float | None:
    return pick(cell, "tasks", task, "metrics", metric, "value")


def _same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def _parameters(size: str) -> float | None:
    found = re.fullmatch(r"([\d.]+)([MB])", size)
    return None if found is None else float(found[1]) * {"M": 1e6, "B": 1e9}[found[2]]
