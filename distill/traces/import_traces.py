"""`distill traces import`: pairs from files that have both answers already.

    pairs   prompt, reasoning, ift [, gold]; `reasoning` holds <think>...</think>answer    JSONL or Parquet
    gsm8k   question, answer with worked steps and `#### final`                            JSONL
    aqua    question, options, rationale, correct                                          JSONL

A worked solution is the reasoning answer; the final answer alone is the other. Every row of the file becomes a pair
or is refused: by default the first bad row ends the import with its line; with `skip_bad` bad rows go to
rejected.parquet with the reason, and are counted.

Evaluating a task from the same file asks the questions whose hash is in the test split. Rows of a task that are not in
the train split are therefore set aside as held out, which is no fault; `splits="all"` takes them too.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from distill.artifact import Artifact, workspace
from distill.errors import InputError, unknown_name
from distill.tasks import aqua, gsm8k
from distill.tasks.file_task import Worked
from distill.tasks.jsonl import text_field
from distill.tasks.problem import Problem
from distill.tasks.rows import Row, Source, open_source
from distill.tasks.task import split_of
from distill.traces.faults import FAULTS, fault_of, split_think
from distill.traces.pairing import Answer, pair_or_rejected
from distill.traces.store import KIND, Rejected, write_pairs
from distill.traces.teachers import worked_answer
from distill.traces.trace import MODES, Mode, Pair, Trace

VERSION = 1  # part of every key: raise it when the same file would give other rows
TASK = "imported"  # of problems that belong to no task of ours: they have no checker

ParsedRow = tuple[Problem, Answer, Answer]  # the problem, its reasoning answer, its ift answer
Checker = Callable[[Problem, str], bool]
Splits = Literal["train", "all"]


def import_file(
    path: Path,
    layout: str,
    out: Path,
    *,
    skip_bad: bool = False,
    splits: Splits | None = None,
    teacher: str = TASK,
) -> Artifact:
    """Write the pairs of a file in a layout to the folder `out`. `teacher` names who wrote the answers, if known.

    `splits` says which questions become pairs, by a hash of the prompt: "train" or "all". None is "train" for a layout
    of a task, and "all" for `pairs`, whose questions belong to none. Raises InputError for an unknown layout or splits,
    an unreadable file, a bad row (without `skip_bad`), or no good row.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    if splits is None:
        splits = "all" if LAYOUTS[layout][1] is None else "train"
    if splits not in get_args(Splits):
        raise unknown_name("splits", splits, get_args(Splits))
    source = open_source(path, layout)
    recipe = {
        "version": VERSION,
        **source.identity,
        "layout": layout,
        "skip_bad": skip_bad,
        "splits": splits,
        "teacher": teacher,
    }
    with workspace(out, KIND, recipe) as space:
        if space.finished:
            return space.finished
        rows = _rows(source, layout, skip_bad, splits, teacher)
        summary = write_pairs(space.path, _require_one_pair(path, rows))
        return space.commit(summary | {"questions": summary["pairs"] + sum(summary["rejected"].values())})


def _require_one_pair(path: Path, rows: Iterator[Pair | Rejected]) -> Iterator[Pair | Rejected]:
    pairs, bad = 0, ""
    for row in rows:
        if isinstance(row, Pair):
            pairs += 1
        else:
            bad = bad or f"{row.source}: {row.detail}"
        yield row
    if not pairs:
        raise InputError(f"{path}: no pair in it ({bad or 'the file is empty'})")


def _rows(source: Source, layout: str, skip_bad: bool, splits: Splits, teacher: str) -> Iterator[Pair | Rejected]:
    parse, check = LAYOUTS[layout]
    for where, read in source.rows():
        name = where.removeprefix(source.prefix)  # the same file elsewhere gives the same bytes
        try:
            problem, reasoning, ift = parse(read(), where)
        except InputError as error:
            if not skip_bad:
                raise
            yield Rejected("malformed", None, str(error).removeprefix(f"{where}: "), name)
            continue
        if layout == "pairs":
            reasoning = replace(reasoning, trace=replace(reasoning.trace, teacher=teacher))
            ift = replace(ift, trace=replace(ift.trace, teacher=teacher))
        if splits == "train" and split_of(problem.prompt) != "train":
            yield Rejected("held_out", None, FAULTS["held_out"], name, problem, reasoning.trace, ift.trace)
            continue
        row = pair_or_rejected(problem, reasoning, ift, check, source=name)
        if isinstance(row, Rejected) and not skip_bad:
            raise InputError(f"{where}: field {row.mode!r}: {row.detail}; with --skip-bad such rows are set aside")
        yield row


def _published(row: Row, where: str) -> ParsedRow:
    prompt = text_field(row, "prompt", where).strip()
    gold = "" if row.get("gold") is None else text_field(row, "gold", where).strip()
    reasoning = split_think(text_field(row, "reasoning", where))
    ift = split_think(text_field(row, "ift", where))
    return Problem(TASK, prompt, gold, "open"), _answer("reasoning", *reasoning), _answer("ift", *ift)


def _answer(mode: Mode, reasoning: str, answer: str, fault: str | None) -> Answer:
    trace = Trace(mode, reasoning, answer, "stop", TASK)
    return Answer(trace, fault or fault_of(trace))


def _worked(parse_row: Callable[[Row, str], Worked]) -> Callable[[Row, str], ParsedRow]:
    def parse(row: Row, where: str) -> ParsedRow:
        worked = parse_row(row, where)
        reasoning, ift = (worked_answer(mode, worked.reasoning, worked.problem.gold) for mode in MODES)
        return worked.problem, reasoning, ift

    return parse


# layout -> how a row is read, and the checker of its task if it has one
LAYOUTS: dict[str, tuple[Callable[[Row, str], ParsedRow], Checker | None]] = {
    "pairs": (_published, None),
    "gsm8k": (_worked(gsm8k.parse_row), gsm8k.is_correct),
    "aqua": (_worked(aqua.parse_row), aqua.is_correct),
}
