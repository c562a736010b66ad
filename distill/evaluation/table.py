"""What `distill evaluate` says in a terminal: a table of scores, and what about the grades must not be missed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from distill import console
from distill.report.numbers import DASH, count, fixed, percent
from distill.report.text import visible

_COLUMNS = (
    "task",
    "metric",
    "% [95 %]",
    "asked",
    "unfinished\n%",
    "thought\n%",
    "thinking\ntokens",
    "answer\ntokens",
)


def show_grades(folder: Path, grades: dict[str, Any]) -> None:
    """The grades of an evaluation, `grades.json`, on standard output; what to mind of them on standard error."""
    print_table(str(folder), _COLUMNS, [list(_rows(task, found)) for task, found in grades.items()])
    for line in _minded(grades):
        console.note(visible(line))
    console.out.print(visible(f"answers: {folder / 'answers.html'}"), markup=False, soft_wrap=True)


def show_lm_eval(folder: Path, found: dict[str, Any]) -> None:
    """What lm-eval said of each of its tasks, in its own units."""
    groups = [list(_lm_eval_rows(task, result)) for task, result in found.items()]
    print_table(str(folder), ["task", "metric,filter", "value", "stderr", "asked"], groups)
    console.out.print(visible(f"samples: {folder / 'samples.jsonl'}"), markup=False, soft_wrap=True)


def print_table(title: str, columns: Sequence[str], groups: Sequence[Sequence[Sequence[str]]]) -> None:
    """Groups of rows on standard output, within 100 columns for names of the usual length. The first two columns are
    names; the others stand at the right and are not broken, but in a terminal that is too narrow for them."""
    width = console.out.width
    gap = 1 if width >= 90 else 0
    view = Table(title=escape(visible(title)), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0))
    for i, column in enumerate(columns):
        if i < 2:
            view.add_column(column, overflow="fold", min_width=6)
        else:
            view.add_column(column, justify="right", overflow="fold", no_wrap=i == 2 or width >= 90)
    for rows in groups:
        for row in rows:
            view.add_row(*(escape(visible(cell)) for cell in row))
        if any(len(some) > 1 for some in groups):
            view.add_section()
    console.out.print(view)


def with_interval(value: float | None, interval: dict[str, float] | None) -> str:
    """Shares in percent.

    >>> with_interval(0.853, {"low": 0.8, "high": 0.9}), with_interval(0.5, None)
    ('85.3 [80.0, 90.0]', '50.0')
    """
    return percent(value) + (f" [{percent(interval['low'])}, {percent(interval['high'])}]" if interval else "")


def token_count(value: float) -> str:
    """
    >>> token_count(25.85), token_count(1204.3)
    ('25.9', '1,204')
    """
    return fixed(value) if value < 1000 else count(value)


def _rows(task: str, found: dict[str, Any]) -> Iterator[list[str]]:
    intervals = found.get("intervals", {})
    (first, value), *others = found["metrics"].items()
    samples = found["n_answers"] // found["n_questions"]
    asked = count(found["n_questions"]) + (f" x {samples}" if samples > 1 else "")
    yield [task, first, with_interval(value, intervals.get(first)), asked, *_amounts(found)]
    if found["unfinished_rate"] > 0:
        yield _row("if finished", percent(found["accuracy_finished"]))
    by_grade = found["tokens_by_grade"]
    if by_grade["right"]["n_answers"] and by_grade["wrong"]["n_answers"]:
        for grade in ("right", "wrong"):
            means = (token_count(by_grade[grade][part]) for part in ("thinking", "answer"))
            yield ["", f"if {grade}", "", "", "", "", *means]
    for name, value in others:
        yield _row(name, with_interval(value, intervals.get(name)))
    for name, interval in found.get("samples", {}).items():
        if name.startswith("majority_at_"):
            yield _row(name.replace("_at_", "@"), with_interval(interval["value"], interval))
    for point in found.get("curve", []):
        accuracy, budget = point["accuracy"], point["budget"]
        yield [
            "",
            "no budget" if budget is None else f"budget {count(budget)}",
            with_interval(accuracy["value"], accuracy),
            "",
            *_amounts(point),
        ]
    for name, label in (("thought", "if it thought"), ("did_not", "if it did not")):
        if part := found.get("by_thinking", {}).get(name):
            yield ["", label, percent(part["n_correct"] / part["n_answers"]), "", *_amounts(part)]
    likely = found.get("loglikelihood") or {}
    for name, label in (("sum", "log-likelihood"), ("per_byte", "per byte")):
        if name in likely:
            yield _row(label, with_interval(likely[name]["value"], likely[name]))


def _row(metric: str, value: str) -> list[str]:
    return ["", metric, value, "", "", "", "", ""]


def _amounts(part: dict[str, Any]) -> list[str]:
    means = part["tokens_per_answer"]
    return [
        percent(part["unfinished_rate"]),
        percent(part["think_rate"]),
        token_count(means["thinking"]),
        token_count(means["answer"]),
    ]


def _minded(grades: dict[str, Any]) -> Iterator[str]:
    for task, found in grades.items():
        if failures := found["grading"]["failures"]:
            which = ", ".join(f"{number} {name}" for name, number in failures.items())
            yield f"{task}: the checker came to no end on some answers, which count as wrong: {which}"
        audit = found.get("audit")
        if audit is None:
            yield f"{task}: no second checker looked at its grades ({found['grading']['not_audited']})"
        elif not audit["n_answers"]:
            yield f"{task}: the second checker ({audit['second_checker']}) has no word on any of its answers"
        elif audit["n_disagree"]:
            of = f"{count(audit['n_disagree'])} of {count(audit['n_answers'])}"
            yield f"{task}: a second checker ({audit['second_checker']}) disagrees on {of} answers; see `audit` in grades.json"


def _lm_eval_rows(task: str, result: dict[str, Any]) -> Iterator[list[str]]:
    """One a metric; `acc_stderr,none` is the standard error of `acc,none`."""
    metrics, size = result["metrics"], (result["questions"] or {}).get("effective")
    for name, value in metrics.items():
        kind, comma, filter_ = name.partition(",")
        if comma and not kind.endswith("_stderr"):
            error = metrics.get(f"{kind}_stderr,{filter_}")
            yield [task, name, f"{value:,.4f}", DASH if error is None else f"{error:.4f}", count(size) if task else ""]
            task = ""  # said once
