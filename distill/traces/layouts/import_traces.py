"""`distill traces import`: pairs from files that have the answers already. read.py says how a row is read.

Every row of the file becomes a pair, one half of a pair, or is set aside in rejected.parquet with the reason: by
default the first bad row ends the import with its line; with `skip_bad` bad rows are set aside, and are counted.

Where a row has one answer, `ift_from` says where the other one is:

    a file       of the same layout: the answers to the same questions without reasoning
    "stripped"   nowhere: the reasoning answer is taken without its reasoning, and its trace says so
    None         in another row, where rows say their mode

Rows of the two modes belong together by prompt and by sample: the one the row says, else its number among the rows of
that question in that mode. What has no other half is set aside as unpaired, which ends no import.

Evaluating a task from the same file asks the questions whose hash is in the test split. Rows of a task that are not in
the train split are therefore set aside as held out, which is no fault; `splits="all"` takes them too.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from distill.artifact import Artifact, workspace
from distill.console import progress
from distill.errors import InputError, unknown_name
from distill.tasks.jsonl import checked_text
from distill.tasks.messages import SystemMessages
from distill.tasks.rows import Source, open_source
from distill.tasks.task import split_of
from distill.traces.faults import FAULTS, fault_of
from distill.traces.layouts import names
from distill.traces.layouts.read import BESIDE, LAYOUTS, Found, Layout, Reading
from distill.traces.pairing import Answer, pair_or_rejected
from distill.traces.store import KIND, Rejected, write_pairs
from distill.traces.trace import MODES, Mode, Pair

VERSION = 2  # part of every key: raise it when the same file would give other rows
STRIPPED = "stripped"

Splits = Literal["train", "all"]
Half = tuple[bytes, int]  # what two rows of a pair have in common: hash of the prompt, sample


def import_file(
    path: Path,
    layout: str,
    out: Path,
    *,
    fields: Mapping[str, str] | None = None,
    ift_from: str | Path | None = None,
    system: SystemMessages = "refuse",
    skip_bad: bool = False,
    splits: Splits | None = None,
    teacher: str = names.IMPORTED,
) -> Artifact:
    """Write the pairs of a file in a layout to the folder `out`. `teacher` names who wrote the answers, if known.

    `fields` are the file's names for those of the layout. `splits` says which questions become pairs, by a hash of the
    prompt: "train" or "all". None is "train" for a layout of a task, and "all" for the others, whose questions belong
    to none. `system` says what becomes of system messages. Raises InputError for an unknown layout, field or splits, an
    unreadable file, a bad row (without `skip_bad`), or no good row.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    how = LAYOUTS[layout]
    splits = splits or ("all" if how.check is None else "train")
    for kind, value, known in (("splits", splits, Splits), ("system", system, SystemMessages)):
        if value not in get_args(known):
            raise unknown_name(kind, value, get_args(known))
    for role, name in {"teacher": teacher, **(fields or {})}.items():
        checked_text(name, role, "import")
    if ift_from is not None and how.check is not None:
        raise InputError(f"--ift-from: rows of layout {layout} have both answers")
    mode = None if ift_from is None else "reasoning"
    reading = Reading(how.named(layout, fields or {}), teacher, system, mode)
    source = _open(path, how, reading, fields or {})
    other = None
    if ift_from is not None and str(ift_from) != STRIPPED:
        other = _open(Path(ift_from), how, replace(reading, mode="ift"), fields or {})
    recipe = {
        "version": VERSION,
        **source.identity,
        "layout": layout,
        "fields": dict(reading.fields),
        "ift_from": other.identity if other else ift_from and str(ift_from),
        "system": system,
        "skip_bad": skip_bad,
        "splits": splits,
        "teacher": teacher,
    }
    with workspace(out, KIND, recipe) as space:
        if space.finished:
            return space.finished
        importing = _Import(how, reading, skip_bad, splits)
        if other is not None:
            rows = importing.of_two_files(source, other)
        elif how.both or ift_from is not None:
            rows = importing.of_whole_rows(source)
        else:
            rows = importing.of_halves(source)
        summary = write_pairs(space.path, _share_places(_require_one_pair(path, rows)))
        made_of = {"ift": "reasoning removed"} if str(ift_from) == STRIPPED else {}
        return space.commit(summary | {"rows_read": sum(importing.rows.values())} | made_of)


def _open(path: Path, how: Layout, reading: Reading, named: Mapping[str, str]) -> Source:
    source = open_source(path, None if how.check else [*filter(None, reading.fields.values()), *BESIDE])
    # Of a file that is read for one mode only, the other's field may be missing.
    unread = {"reasoning": (names.IFT,), "ift": (names.REASONING, names.ANSWER)}.get(reading.mode, ())
    for role, field in reading.fields.items():
        if role not in unread and (role in named or role not in how.optional):
            source.require(field)
    return source


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


def _share_places(rows: Iterator[Pair | Rejected]) -> Iterator[Pair | Rejected]:
    """Samples of one question that follow each other have its place."""
    last: Pair | Rejected | None = None
    for row in rows:
        if last and last.problem and row.problem and last.problem.id == row.problem.id and row.sample > last.sample:
            row = replace(row, place=last.place)
        yield row
        last = row


@dataclass(frozen=True)
class _Row:
    """A row that was read; `name` is its place in the file wherever that lies, `where` the one to show."""

    place: int
    where: str
    name: str
    found: Found

    @property
    def answer(self) -> Answer:
        (answer,) = self.found.answers.values()
        return answer

    @property
    def mode(self) -> Mode:
        (mode,) = self.found.answers
        return mode


class _Import:
    """One import. `rows` are counts of the rows read, by the mode of a file's answers."""

    def __init__(self, how: Layout, reading: Reading, skip_bad: bool, splits: Splits):
        self.how, self.reading, self.skip_bad, self.splits = how, reading, skip_bad, splits
        self.rows: dict[Mode | None, int] = {}

    def of_whole_rows(self, source: Source) -> Iterator[Pair | Rejected]:
        """Rows with both answers, or one from which the other is made."""
        for row in self._read(source, self.reading):
            if isinstance(row, Rejected):
                yield row
                continue
            reasoning = row.found.answers["reasoning"]
            ift = row.found.answers["ift"] if "ift" in row.found.answers else _stripped(reasoning)
            yield self._finish(row, row.found.sample or 0, reasoning, ift)

    def of_two_files(self, source: Source, other: Source) -> Iterator[Pair | Rejected]:
        """Rows of `source` with the rows of `other` that have the same question; then what `other` has besides, which
        is why it is read twice."""
        reading = replace(self.reading, mode="ift")
        answers: dict[Half, Answer] = {}
        for row, half in self._halves(other, reading):
            if half is not None:
                answers.setdefault(half, row.answer)
        taken: set[Half] = set()
        for row, half in self._halves(source, self.reading):
            if half is None:
                yield row
            elif half in taken:
                yield _unpaired(row, half, "repeated")
            elif half in answers:
                yield self._finish(row, half[1], row.answer, answers[half])
            else:
                yield _unpaired(row, half, "unpaired")
            if half is not None:
                taken.add(half)
        first = self.rows["reasoning"]  # places after those of the first file
        again: set[Half] = set()
        for row, half in self._halves(other, reading):
            row = replace(row, place=first + row.place)
            if half is None:
                yield row
            elif half in again:
                yield _unpaired(row, half, "repeated")
            elif half not in taken:
                yield _unpaired(row, half, "unpaired")
            if half is not None:
                again.add(half)

    def of_halves(self, source: Source) -> Iterator[Pair | Rejected]:
        """Rows that say their mode. Read twice: the answers without reasoning are kept, the long ones are not."""
        answers: dict[Half, Answer] = {}
        reasoned: set[Half] = set()
        for row, half in self._halves(source, self.reading):
            if half is not None and row.mode == "reasoning":
                reasoned.add(half)
            elif half is not None:
                answers.setdefault(half, row.answer)
        taken: set[tuple[Mode, Half]] = set()
        for row, half in self._halves(source, self.reading):
            if half is None:
                yield row
            elif (row.mode, half) in taken:
                yield _unpaired(row, half, "repeated")
            elif half not in reasoned or half not in answers:
                yield _unpaired(row, half, "unpaired")
            elif row.mode == "reasoning":
                yield self._finish(row, half[1], row.answer, answers[half])
            if half is not None:
                taken.add((row.mode, half))

    def _halves(self, source: Source, reading: Reading) -> Iterator[tuple[_Row, Half] | tuple[Rejected, None]]:
        """Rows of one answer, with what they share with the row of the other."""
        seen = Counter[tuple[Mode, bytes]]()
        for row in self._read(source, reading):
            if isinstance(row, Rejected):
                yield row, None
                continue
            prompt = hashlib.sha256(row.found.problem.prompt.encode()).digest()[:16]
            number = seen[row.mode, prompt]
            seen[row.mode, prompt] += 1
            yield row, (prompt, number if row.found.sample is None else row.found.sample)

    def _read(self, source: Source, reading: Reading) -> Iterator[_Row | Rejected]:
        self.rows[reading.mode] = 0
        with progress() as bar:
            task = bar.add_task("reading rows", total=None)
            for place, (where, read) in enumerate(source.rows()):
                self.rows[reading.mode] += 1
                bar.advance(task)
                name = where.removeprefix(source.prefix)  # the same file elsewhere gives the same bytes
                try:
                    yield _Row(place, where, name, self.how.read(read(), where, reading))
                except InputError as error:
                    if not self.skip_bad:
                        raise
                    yield Rejected("malformed", None, str(error).removeprefix(f"{where}: "), name, place=place)

    def _finish(self, row: _Row, sample: int, reasoning: Answer, ift: Answer) -> Pair | Rejected:
        problem, at = row.found.problem, {"source": row.name, "place": row.place, "sample": sample}
        if self.splits == "train" and split_of(problem.prompt) != "train":
            return Rejected(
                "held_out", None, FAULTS["held_out"], problem=problem, reasoning=reasoning.trace, ift=ift.trace, **at
            )
        made = pair_or_rejected(problem, reasoning, ift, self.how.check, **at)
        if isinstance(made, Rejected) and not self.skip_bad:
            field = f"field {self.reading.fields[made.mode]!r}" if self.how.both else f"{made.mode} answer"
            raise InputError(f"{row.where}: {field}: {made.detail}; with --skip-bad such rows are set aside")
        return made


def _stripped(reasoning: Answer) -> Answer:
    teacher = f"{reasoning.trace.teacher}{names.REASONING_REMOVED}"
    trace = replace(reasoning.trace, mode="ift", reasoning="", teacher=teacher)
    return Answer(trace, fault_of(trace))


def _unpaired(row: _Row, half: Half, reason: str) -> Rejected:
    other = MODES[1 - MODES.index(row.mode)]
    detail = f"no {other} answer to this question" if reason == "unpaired" else "the same question, mode and sample"
    trace: dict[str, Any] = {row.mode: row.answer.trace}
    return Rejected(reason, row.mode, detail, row.name, row.found.problem, place=row.place, sample=half[1], **trace)
