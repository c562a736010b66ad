"""The sets of pairs: what is there, what can be made in a moment, and what a teacher will be asked and paid for."""

from dataclasses import dataclass
from typing import Any, Literal

from distill.artifact import Artifact
from distill.errors import InputError
from distill.evaluation.questions import Asked
from distill.study.plan.problems import Problems, is_out_of_reach
from distill.study.rows import ExpectedTokens, TraceRow
from distill.study.settings import StudySettings
from distill.study.workplace import NotMade, Workplace
from distill.tasks.procedural import ProceduralTask
from distill.traces.asked import asked_questions, open_tasks
from distill.traces.teachers.settings import ChatSettings, VllmSettings
from distill.traces.teachers.solver import SolverTeacher
from distill.traces.trace import MODES, Pair

Source = Literal["there", "made", "expected", "unknown"]


@dataclass
class Pairs:
    """One set. `source`: there before; made for this plan, as a solver or an import costs nothing; expected from what the
    preset says; or unknown."""

    row: TraceRow
    source: Source
    count: int | None  # pairs
    made: Artifact | None = None
    done: bool = False  # finished where the study is
    mean: ExpectedTokens | None = None
    input_tokens: float | None = None  # of the teacher, prompts of both modes
    output_tokens: float | None = None
    usd: float | None = None
    seconds: float = 0.0  # of devices of our own that a teacher is served by, for what is not there
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        names = ("source", "count", "done", "input_tokens", "output_tokens", "seconds", "usd", "note")
        return {"name": self.row.name, **{name: getattr(self, name) for name in names}}


def pairs_of(settings: StudySettings, row: TraceRow, place: Workplace | None, problems: Problems) -> Pairs:
    """What is known of a row's pairs. What is wrong with it goes to `problems`."""
    try:
        made = place.looking().traces(row) if place is not None else None
        if made is not None:
            return _there(row, made, done=True)
    except NotMade:
        pass
    except InputError as error:
        problems.add(f"traces {row.name}: {error}")
        return _unknown(row, None)
    free = row.teacher == "solver" if row.tasks is not None else row.imported is not None and row.imported.file.exists()
    if free and place is not None:
        try:
            return _there(row, place.traces(row), done=False)
        except InputError as error:
            problems.add(f"traces {row.name}: {error}")
            return _unknown(row, None)
    if row.imported is not None:
        return _expected(row, row.expected_pairs, None)
    try:
        wanted = settings.generate_settings(row)
        count = len(asked_questions(wanted, open_tasks(wanted)).problems) * row.samples
    except InputError as error:
        problems.add(f"traces {row.name}: {error}", note=all(is_out_of_reach(name) for name in row.tasks))
        counts = list(row.tasks.values())
        count = None if None in counts else sum(counts) * row.samples
    return _expected(row, count, row.teacher if isinstance(row.teacher, ChatSettings) else None)


def _there(row: TraceRow, made: Artifact, *, done: bool) -> Pairs:
    bill = made.summary.get("bill", {})
    sums = {
        name: sum(of_mode.get(name, 0) for of_mode in bill.values())
        for name in ("prompt_tokens", "output_tokens", "cost_usd")
    }
    found = Pairs(row, "there" if done else "made", made.summary["pairs"], made, done, row.expected_tokens)
    found.input_tokens, found.output_tokens, found.usd = sums["prompt_tokens"], sums["output_tokens"], sums["cost_usd"]
    return found


def _expected(row: TraceRow, count: int | None, teacher: ChatSettings | None) -> Pairs:
    """Both modes are asked, or with a gold answer in the place of IFT's only reasoning."""
    mean = row.expected_tokens
    if mean is None or count is None:
        return _unknown(row, count)
    found = Pairs(row, "expected", count, mean=mean, usd=0.0, input_tokens=0.0, output_tokens=0.0)
    if teacher is None:
        return found
    modes = 2 if row.gold == "grade" else 1
    limit = teacher.max_tokens
    found.input_tokens = modes * count * mean.prompt
    found.output_tokens = count * (min(mean.reasoning, limit) + (min(mean.ift, limit) if modes == 2 else 0.0))
    prices = teacher.usd_per_million_input, teacher.usd_per_million_output
    found.usd = None
    if None not in prices:
        found.usd = (found.input_tokens * prices[0] + found.output_tokens * prices[1]) / 1e6
    elif not isinstance(teacher, VllmSettings):
        found.note = "what the teacher costs is not known: say usd_per_million_input and usd_per_million_output"
    return found


def _unknown(row: TraceRow, count: int | None) -> Pairs:
    what = "expected_tokens: {prompt: P, reasoning: R, ift: I}, means of a pair"
    if count is None and row.imported is not None:
        what += ", and expected_pairs"
    return Pairs(row, "unknown", count, note=f"how long its pairs are is not known before they are there: give {what}")


def solved(row: TraceRow, asked: list[Asked]) -> dict[str, list[Pair]]:
    """The questions of a study as the solver answers them, by task, where it is the teacher and can."""
    if row.teacher != "solver" or row.tasks is None:
        return {}
    found = {}
    for a in asked:
        if isinstance(a.task, ProceduralTask):
            teacher = SolverTeacher({a.task.name: a.task})
            answers = [{mode: teacher.solve(p, mode).trace for mode in MODES} for p in a.problems]
            found[a.task.name] = [Pair(p, **both) for p, both in zip(a.problems, answers, strict=True)]
    return found
