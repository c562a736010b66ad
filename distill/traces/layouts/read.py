"""How a row of each layout is read: a problem and the answers to it, both of them or one.

    pairs               prompt, reasoning, ift [, gold]          both answers in a row
    gsm8k, aqua         a problem and its worked solution        both: with its steps, and without
    prompt-completion   prompt, completion [, gold]              one answer in a row, as text or as messages
    messages            messages [, gold]                        one answer in a row
    sharegpt            conversations [, gold]                   one answer in a row

The reasoning stands between think tags in front of the answer, or in a field of the assistant's message. A row of one
answer may say in `mode` which of the two it is, and in `sample` which of several to the same question. Rows that were
exported from here keep their task.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from distill.errors import InputError, unknown_name
from distill.tasks import aqua, gsm8k
from distill.tasks.file_task import Worked
from distill.tasks.jsonl import checked_text, text_field, value_at
from distill.tasks.messages import Message, SystemMessages, one_question, read_messages
from distill.tasks.problem import AnswerFormat, Problem
from distill.tasks.questions import gold_text, prompt_text
from distill.tasks.rows import Row
from distill.traces.faults import fault_of, split_think
from distill.traces.layouts import names
from distill.traces.pairing import Answer
from distill.traces.trace import MODES, Mode, Trace

TASK = "imported"  # of problems that belong to no task of ours: they have no checker
SOLVER = "solver"  # who wrote the worked solutions of a task's file, as in `generate`
# What is read beside a layout's own fields, where it is there.
BESIDE = (names.MODE, names.SAMPLE, names.SYSTEM, names.ID, names.TASK, names.ANSWER_FORMAT)
_OWN_REASONING = (names.REASONING_CONTENT, "reasoning", "thinking")  # fields of an assistant's message

Checker = Callable[[Problem, str], bool]


@dataclass(frozen=True)
class Found:
    """What a row holds."""

    problem: Problem
    answers: dict[Mode, Answer]
    sample: int | None = None  # where the row says


@dataclass(frozen=True)
class Reading:
    """How rows are read. `fields` are names by role; `mode` is that of a file's answers, None where rows say theirs."""

    fields: Mapping[str, str]
    teacher: str
    system: SystemMessages
    mode: Mode | None = None


@dataclass(frozen=True)
class Layout:
    """`fields` are the default names by role, `optional` the roles that a row may lack."""

    read: Callable[[Row, str, Reading], Found]
    fields: Mapping[str, str]
    optional: tuple[str, ...] = ()
    check: Checker | None = None  # of the task whose layout it is
    both: bool = False  # whether a row holds both answers

    def named(self, layout: str, names: Mapping[str, str]) -> dict[str, str]:
        """All fields, with other names for some. A role that is renamed is there in every row. Raises InputError."""
        for role in names:
            if not self.fields:
                raise InputError(f"layout {layout}: its fields have fixed names; --{role} is for other layouts")
            if role not in self.fields:
                raise unknown_name(f"field of layout {layout}", role, self.fields)
        return {**self.fields, **names}


def _pairs(row: Row, where: str, reading: Reading) -> Found:
    fields = reading.fields
    answers = {}
    for mode in MODES if reading.mode is None else (reading.mode,):
        text = text_field(row, fields[mode], where)
        if mode == "reasoning" and fields[names.ANSWER]:
            answers[mode] = _answer(mode, reading, text.strip(), text_field(row, fields[names.ANSWER], where).strip())
        else:
            answers[mode] = _answer(mode, reading, *split_think(text))
    prompt = prompt_text(row, fields[names.PROMPT], where, reading.system)
    return Found(_problem(row, prompt, where, reading), answers, _sample(row))


def _prompt_completion(row: Row, where: str, reading: Reading) -> Found:
    prompt = prompt_text(row, reading.fields[names.PROMPT], where, reading.system)
    field = reading.fields[names.COMPLETION]
    completion = value_at(row, field, where)
    if isinstance(completion, list):
        messages = read_messages(completion, field, where)
        if [message.role for message in messages] != ["assistant"]:
            raise InputError(f"{where}: field {field!r}: expected one message of the assistant, found {len(messages)}")
        answer = _answered(messages[0], where)
    else:
        answer = split_think(text_field(row, field, where))
    return _one(row, prompt, answer, where, reading)


def _conversation(role: str) -> Callable[[Row, str, Reading], Found]:
    def read(row: Row, where: str, reading: Reading) -> Found:
        field = reading.fields[role]
        messages = read_messages(value_at(row, field, where), field, where)
        if messages[-1].role != "assistant":
            raise InputError(f"{where}: field {field!r}: expected the assistant's answer at the end")
        if _given(row, names.SYSTEM) and messages[0].role != "system":  # beside the conversation, as some files have it
            text = {"role": "system", "content": row[names.SYSTEM]}
            messages = [Message("system", text, names.SYSTEM, "content"), *messages]
        prompt = one_question(messages[:-1], field, where, reading.system).strip()
        return _one(row, prompt, _answered(messages[-1], where), where, reading)

    return read


def _worked(parse_row: Callable[[Row, str], Worked]) -> Callable[[Row, str, Reading], Found]:
    def read(row: Row, where: str, reading: Reading) -> Found:
        worked = parse_row(row, where)
        answers = {}
        for mode in MODES:
            reasoning = worked.reasoning if mode == "reasoning" else ""
            trace = Trace(mode, reasoning, worked.problem.gold, "stop", SOLVER, cost_usd=0.0)
            answers[mode] = Answer(trace, fault_of(trace))
        return Found(worked.problem, answers)

    return read


def _one(row: Row, prompt: str, answer: tuple[str, str, str | None], where: str, reading: Reading) -> Found:
    """A row with one answer, in the mode of its file or its own."""
    said = row.get(names.MODE)
    if reading.mode is None and said not in MODES:
        raise InputError(
            f"{where}: one answer a row, and no field {names.MODE!r} that says whether it is {' or '.join(MODES)}; "
            "--ift-from names a file with the other answers, or says 'stripped'"
        )
    if reading.mode is not None and said in MODES and said != reading.mode:
        raise InputError(f"{where}: field {names.MODE!r}: expected {reading.mode}, found {said}")
    mode = reading.mode or said
    return Found(_problem(row, prompt, where, reading), {mode: _answer(mode, reading, *answer)}, _sample(row))


def _answered(message: Message, where: str) -> tuple[str, str, str | None]:
    """(reasoning, answer, fault) of an assistant's message."""
    content = message.fields.get(message.content_key)
    text = "" if isinstance(content, str) and not content.strip() else message.text(where)
    own = next((name for name in _OWN_REASONING if _given(message.fields, name)), None)
    if own is None:
        return split_think(text)
    return checked_text(message.fields[own], f"{message.place}.{own}", where).strip(), text.strip(), None


def _given(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    return value is not None and not (isinstance(value, str) and not value.strip())


def _answer(mode: Mode, reading: Reading, reasoning: str, answer: str, fault: str | None = None) -> Answer:
    trace = Trace(mode, reasoning, answer, "stop", reading.teacher)
    return Answer(trace, fault or fault_of(trace))


def _problem(row: Row, prompt: str, where: str, reading: Reading) -> Problem:
    field = reading.fields[names.GOLD]
    # Under its usual name it may be left out, or empty; a field that was named must be there.
    usual = field == names.GOLD and not _given(row, field)
    gold = "" if usual else gold_text(value_at(row, field, where), field, where)
    task, answer_format = row.get(names.TASK), row.get(names.ANSWER_FORMAT)
    if isinstance(task, str) and task.isprintable():
        problem = Problem(task, prompt, gold, answer_format if answer_format in get_args(AnswerFormat) else "open")
        if row.get(names.ID) == problem.id:  # a row of `distill traces export`
            return problem
    return Problem(TASK, prompt, gold, "open")


def _sample(row: Row) -> int | None:
    said = row.get(names.SAMPLE)
    return said if isinstance(said, int) and not isinstance(said, bool) and 0 <= said < 2**31 else None


def _layout(read: Callable[[Row, str, Reading], Found], *fields: str, **more: Any) -> Layout:
    return Layout(read, {field: field for field in (*fields, names.GOLD)}, (names.GOLD,), **more)


LAYOUTS: dict[str, Layout] = {
    "pairs": Layout(
        _pairs,
        {
            **{name: name for name in (names.PROMPT, names.REASONING, names.IFT, names.GOLD)},
            names.ANSWER: "",  # the answer after the reasoning, where it has a field of its own
        },
        (names.GOLD, names.ANSWER),
        both=True,
    ),
    "gsm8k": Layout(_worked(gsm8k.parse_row), {}, check=gsm8k.is_correct, both=True),
    "aqua": Layout(_worked(aqua.parse_row), {}, check=aqua.is_correct, both=True),
    "prompt-completion": _layout(_prompt_completion, names.PROMPT, names.COMPLETION),
    "messages": _layout(_conversation(names.MESSAGES), names.MESSAGES),
    "sharegpt": _layout(_conversation(names.CONVERSATIONS), names.CONVERSATIONS),
}
