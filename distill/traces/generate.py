"""`distill traces generate`: every question to the teacher in both modes, and the answers to a trace set.

A journal keeps each answer as it comes. The rows are written at the end in the order of the questions, read from the
journal one by one, so a run that was killed and one that was not leave the same bytes for the same answers, and a run of
any size needs the memory of its questions, not of its answers.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from heapq import merge as merge_sorted
from pathlib import Path
from typing import Any

from distill import console
from distill.artifact import Artifact, Workspace, content_key, workspace
from distill.errors import InputError
from distill.journal import Journal
from distill.tasks.problem import Problem
from distill.tasks.questions import OwnTask
from distill.tasks.task import Task
from distill.traces.asked import asked_questions, open_tasks
from distill.traces.asking import VERSION as REQUEST_VERSION
from distill.traces.asking import Asking, answer_from_json, request_key
from distill.traces.bill import GOLD, Bill
from distill.traces.faults import FAULTS, HINTS, fault_of
from distill.traces.pairing import Answer, pair_or_rejected
from distill.traces.settings import GenerateOptions, GenerateSettings
from distill.traces.store import KIND, PAIRS, REJECTED, Rejected, write_pairs
from distill.traces.teachers.open_teacher import open_teacher
from distill.traces.teachers.teacher import Question, Teacher
from distill.traces.top_k import Distributions, top_k_file, write_top_k
from distill.traces.trace import MODES, Mode, Pair, Trace

VERSION = 2  # part of every key: raise it when the same answers would give other rows
JOURNAL = "journal.jsonl"


def generate(settings: GenerateSettings, out: Path, options: GenerateOptions | None = None) -> Artifact:
    """Ask the teacher for both answers to every question; write the pairs to the folder `out`.

    Run again after it was killed, it asks only for what is missing. Raises InputError for an unknown task, more
    questions than there are, an endpoint that does not answer, a budget that is spent, or when no question gave a pair.
    With `options.partial` a run that ends early writes what there is; the same command later goes on from it.
    """
    options = options or GenerateOptions()
    tasks = open_tasks(settings)
    teacher = open_teacher(settings, tasks, out)
    recipe = _recipe(settings, tasks, teacher)
    goes_on = from_partial(out, recipe, merged=False)
    with workspace(out, KIND, recipe, expendable=(PAIRS, REJECTED), goes_on=goes_on) as space:
        if space.finished:
            return space.finished
        with Journal(space.path / JOURNAL) as journal:
            asking = Asking(settings, options, tasks, teacher, asked_questions(settings, tasks), journal)
            try:
                early = asking.ask()
            except InputError as error:
                raise InputError(f"{out}: {error}" if asking.stopped_by else str(error)) from None
            rows = _Rows(asking)
            summary = write_pairs(space.files, rows)
            _require_pairs(out, settings, summary, asking.failed, early)
            for answer in asking.paid_for_nothing():
                rows.bill.failed.add_sums(1, answer.trace.prompt_tokens, answer.output_tokens, teacher.cost_usd(answer))
            summary |= {"bill": rows.bill.to_json()}
            if teacher.vocabulary is not None and summary["pairs"]:
                summary |= _write_top_k(space, teacher, journal, rows.captured)
        if asking.requests and settings.teacher != "solver":
            console.note(asking.in_words(rows.bill))
        if not rows.missing:
            return space.commit(summary, remove=(JOURNAL,))
        # A set of its own, of the answers there are. The journal stays in it: nothing is paid for twice.
        console.note(f"{out}: written as far as it is ({early}); the same command goes on")
        return space.commit(summary, part={"partial": rows.answered.hexdigest()}, beside=(JOURNAL,))


def generate_recipe(settings: GenerateSettings) -> dict[str, Any]:
    """Everything the trace set of these settings depends on. Raises InputError for an unknown task or missing file."""
    tasks = open_tasks(settings)
    return _recipe(settings, tasks, open_teacher(settings, tasks, Path()))


def _recipe(settings: GenerateSettings, tasks: dict[str, Task | OwnTask], teacher: Teacher) -> dict[str, Any]:
    counts = zip(tasks.items(), settings.tasks.items(), strict=True)
    about = {
        name: {"revision": task.revision, "count": count, "split": settings.split_of(asked_as)}
        for (name, task), (asked_as, count) in counts
    }
    return {
        "version": [VERSION, REQUEST_VERSION],
        "tasks": about,
        "order": list(about),  # of the rows; the keys of a recipe are sorted
        "seed": settings.seed,
        "samples": settings.samples,
        "gold": settings.gold,
        "teacher": teacher.identity | teacher.prices,
    } | ({"shard": list(settings.shard)} if settings.shard else {})


def from_partial(out: Path, recipe: dict[str, Any], *, merged: bool) -> Callable[[dict[str, Any]], bool]:
    """For `workspace`: whether what is in `out` is a partial set of this recipe, from which to go on.

    That raises InputError for a set that was merged where this one is not, or the other way round.
    """

    def goes_on(found: dict[str, Any]) -> bool:
        whole = {name: value for name, value in found.items() if name != "partial"}
        if "partial" not in found or content_key(KIND, whole) != content_key(KIND, recipe):
            return False
        if merged == (out / JOURNAL).is_file():
            how = (
                "by a run without shards; choose another --out" if merged else "by shards; go on with those, then merge"
            )
            raise InputError(f"{out}: holds traces made in part {how}")
        return True

    return goes_on


@dataclass
class _Captured:
    """Where in the journal the distributions of the pairs are, in the pairs' order, and how long they are."""

    keys: dict[Mode, list[str]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    lengths: dict[Mode, list[int]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    temperatures: set[float] = field(default_factory=set)
    k: int = 0

    def add(self, mode: Mode, key: str, found: Distributions) -> None:
        self.keys[mode].append(key)
        self.lengths[mode].append(len(found.token_ids))
        self.temperatures.add(found.temperature)
        self.k = found.ids.shape[1]


class _Rows:
    """The rows of a trace set, once, from what the journal has. What is counted on the way is complete at the end."""

    def __init__(self, asking: Asking):
        self.asking = asking
        self.missing = 0  # answers that were not asked for; where the other one of the pair failed, its row says that
        self.bill, self.captured = Bill(), _Captured()
        self.answered = hashlib.sha256()  # of the keys of all answers

    def __iter__(self) -> Iterator[Pair | Rejected]:
        asked = self.asking.asked
        places = zip(asked.places, asked.problems, strict=True)
        samples = range(self.asking.settings.samples)
        rows = (self._row(problem, place, sample) for place, problem in places for sample in samples)
        for row in merge_sorted(rows, asked.bad_rows, key=lambda row: row.place):
            self.bill.add(row)
            yield row

    def _row(self, problem: Problem, place: int, sample: int) -> Pair | Rejected:
        asking = self.asking
        if asking.settings.gold != "grade" and not problem.gold:
            return Rejected("no_answer", "ift", "no gold answer", "", problem, place=place, sample=sample)
        keys = {mode: request_key(asking.teacher, Question(problem, mode, sample)) for mode in asking.modes}
        answers = {mode: self._answer(keys[mode], mode) if mode in keys else gold_answer(problem) for mode in MODES}
        check = asking.tasks[problem.task].is_correct
        row = pair_or_rejected(problem, **answers, is_correct=check, place=place, sample=sample)
        if isinstance(row, Pair) and asking.teacher.vocabulary is not None:
            for mode, answer in answers.items():
                self.captured.add(mode, keys[mode], answer.distributions)
        return row

    def _answer(self, key: str, mode: Mode) -> Answer | None:
        """None when it was not asked for."""
        if key in self.asking.journal:
            answer = answer_from_json(self.asking.journal.get(key), mode)
            self.answered.update(key.encode())
        elif key in self.asking.failed:
            answer = self.asking.failed[key]
        else:
            self.missing += 1
            return None
        return replace(answer, trace=replace(answer.trace, cost_usd=self.asking.teacher.cost_usd(answer)))


def gold_answer(problem: Problem) -> Answer:
    """The gold answer in place of one without reasoning."""
    trace = Trace("ift", "", problem.gold, "stop", GOLD, cost_usd=0.0)
    return Answer(trace, fault_of(trace))


def _require_pairs(
    out: Path, settings: GenerateSettings, summary: dict[str, Any], failed: dict[str, Answer], early: str | None
) -> None:
    """A set without a pair is an error; but a small shard may have none, unless another run may give it some."""
    rejected = summary["rejected"]
    if summary["pairs"] or (settings.shard and not {"failed", "not_asked"} & set(rejected)):
        return
    if early:
        raise InputError(f"{out}: no question has both answers yet ({early})")
    reasons = ", ".join(f"{FAULTS[reason]}: {count}" for reason, count in rejected.items())
    detail = next((f"; {answer.detail}" for answer in failed.values()), "")
    hint = HINTS.get(max(rejected, key=rejected.__getitem__), "") if rejected else ""
    raise InputError(f"{out}: none of {sum(rejected.values())} questions gave a pair ({reasons}{detail}){hint}")


def _write_top_k(space: Workspace, teacher: Teacher, journal: Journal, captured: _Captured) -> dict[str, Any]:
    """Both modes' files. Returns what the summary says of them."""
    if len(captured.temperatures) > 1:
        found = " and ".join(f"{t:g}" for t in sorted(captured.temperatures))
        raise InputError(
            f"{space.path}: log-probabilities captured at temperatures {found}: the server's --logprobs-mode was changed "
            f"between two runs of this command; delete {space.path / JOURNAL} and run again"
        )
    temperature = captured.temperatures.pop()
    for mode in MODES:
        answers = (Distributions.from_json(journal.get(key)["top_k"]) for key in captured.keys[mode])
        write_top_k(
            top_k_file(space.files, mode),
            captured.lengths[mode],
            answers,
            k=captured.k,
            temperature=temperature,
            vocabulary=teacher.vocabulary,
        )
    return {"top_k": {"k": captured.k, "temperature": temperature, "tokens": sum(map(sum, captured.lengths.values()))}}
