"""How a pair is written as rows of each layout: the other direction of read.py.

A layout that cannot hold a pair, or would give back another one when it is read, refuses it with the reason.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from distill.errors import InputError
from distill.tasks import aqua, gsm8k
from distill.tasks.file_task import Worked
from distill.tasks.final_number import final_number
from distill.tasks.letters import option_letter
from distill.tasks.rows import Row
from distill.traces.faults import CLOSING, OPENING, split_think
from distill.traces.layouts import names
from distill.traces.trace import MODES, Mode, Pair, Trace

Style = Literal["tags", "field"]  # where a message has its reasoning

_TEXT = pa.string()
_ABOUT = {
    names.GOLD: _TEXT,
    names.TASK: _TEXT,
    names.ANSWER_FORMAT: _TEXT,
    names.ID: _TEXT,
    names.SAMPLE: pa.int32(),
}
_TRACE = {"teacher": _TEXT, "verified": pa.bool_(), "verdict": _TEXT}


class Misfit(Exception):
    """Why a pair has no place in a layout."""


@dataclass(frozen=True)
class Writing:
    """What is written of a pair: `modes` where a row is one trace; `style` where it is a message."""

    modes: tuple[Mode, ...] = MODES
    style: Style = "tags"


@dataclass(frozen=True)
class Layout:
    """`rows` raises Misfit; `columns` are those of a Parquet file, in the order of a row's fields."""

    rows: Callable[[Pair, Writing], Iterator[Row]]
    columns: Callable[[Writing], dict[str, pa.DataType]]
    by_trace: bool = False  # a row is one trace, not a pair
    messages: bool = False  # an answer is a message, which may have its reasoning in a field


def tagged(trace: Trace) -> str:
    """The text of a trace, its reasoning between think tags. Raises Misfit when it would not be read as it was."""
    if trace.mode == "ift":
        text, reasoning = trace.answer, ""
    else:
        text, reasoning = f"{OPENING}\n{trace.reasoning}\n{CLOSING}\n\n{trace.answer}", trace.reasoning
    if split_think(text) != (reasoning.strip(), trace.answer.strip(), None):
        raise Misfit(f"a think tag in the {trace.mode} answer")
    return text


def _about(pair: Pair) -> Row:
    problem = pair.problem
    return {
        names.GOLD: problem.gold,
        names.TASK: problem.task,
        names.ANSWER_FORMAT: problem.answer_format,
        names.ID: problem.id,
        names.SAMPLE: pair.sample,
    }


def _pairs(pair: Pair, writing: Writing) -> Iterator[Row]:
    texts = {mode: tagged(pair.trace(mode)) for mode in MODES}
    yield {names.PROMPT: pair.problem.prompt, **texts, **_about(pair)}


def _hub(pair: Pair, writing: Writing) -> Iterator[Row]:
    (row,) = _pairs(pair, writing)
    for mode in MODES:
        row |= {f"{mode}_{name}": getattr(pair.trace(mode), name) for name in _TRACE}
    tokens = {
        "reasoning_tokens": pair.reasoning.reasoning_tokens,
        "reasoning_answer_tokens": pair.reasoning.answer_tokens,
        "ift_tokens": pair.ift.answer_tokens,
    }
    yield {**row, **tokens}


def _pair_columns(_: Writing) -> dict[str, pa.DataType]:
    return {names.PROMPT: _TEXT, names.REASONING: _TEXT, names.IFT: _TEXT, **_ABOUT}


def _hub_columns(writing: Writing) -> dict[str, pa.DataType]:
    of_traces = {f"{mode}_{name}": kind for mode in MODES for name, kind in _TRACE.items()}
    tokens = dict.fromkeys(("reasoning_tokens", "reasoning_answer_tokens", "ift_tokens"), pa.int64())
    return {**_pair_columns(writing), **of_traces, **tokens}


def _prompt_completion(pair: Pair, writing: Writing) -> Iterator[Row]:
    for mode in writing.modes:
        answer = _message(pair.trace(mode), writing)
        yield {names.PROMPT: [_asked(pair)], names.COMPLETION: [answer], names.MODE: mode, **_about(pair)}


def _messages(pair: Pair, writing: Writing) -> Iterator[Row]:
    for mode in writing.modes:
        messages = [_asked(pair), _message(pair.trace(mode), writing)]
        yield {names.MESSAGES: messages, names.MODE: mode, **_about(pair)}


def _sharegpt(pair: Pair, writing: Writing) -> Iterator[Row]:
    for mode in writing.modes:
        said = ((names.USER, pair.problem.prompt), (names.ASSISTANT, tagged(pair.trace(mode))))
        turns = [{names.FROM: names.SHAREGPT_ROLES[role], names.VALUE: text} for role, text in said]
        yield {names.CONVERSATIONS: turns, names.MODE: mode, **_about(pair)}


def _asked(pair: Pair) -> Row:
    return {names.ROLE: names.USER, names.CONTENT: pair.problem.prompt}


def _message(trace: Trace, writing: Writing) -> Row:
    text = tagged(trace)
    if writing.style == "tags" or trace.mode == "ift":
        return {names.ROLE: names.ASSISTANT, names.CONTENT: text}
    return {
        names.ROLE: names.ASSISTANT,
        names.REASONING_CONTENT: trace.reasoning,
        names.CONTENT: trace.answer,
    }


def _conversation(*fields: str) -> Callable[[Writing], dict[str, pa.DataType]]:
    def columns(writing: Writing) -> dict[str, pa.DataType]:
        parts = [names.ROLE, names.CONTENT]
        if writing.style == "field":
            parts.insert(1, names.REASONING_CONTENT)
        if fields == (names.CONVERSATIONS,):
            parts = [names.FROM, names.VALUE]
        message = pa.struct([(name, _TEXT) for name in parts])
        return {**{field: pa.list_(message) for field in fields}, names.MODE: _TEXT, **_ABOUT}

    return columns


def _gsm8k(pair: Pair, _: Writing) -> Iterator[Row]:
    gold, trace = pair.problem.gold, pair.reasoning
    number = final_number(gold)
    if number is None:
        raise Misfit(f"the gold answer is no number, found {gold[:40]!r}")
    if final_number(trace.answer) != number:
        raise Misfit(
            "the reasoning ends in another number than the gold answer's; --keep verified leaves such pairs out"
        )
    row = {"question": pair.problem.prompt, "answer": f"{trace.reasoning}\n#### {gold}"}
    yield _read_back(row, pair, gsm8k.parse_row)


def _aqua(pair: Pair, _: Writing) -> Iterator[Row]:
    gold, lines = pair.problem.gold.strip(), pair.problem.prompt.split("\n")
    first = next((i for i in range(1, len(lines)) if _are_options(lines[i:])), None)
    if first is None:
        raise Misfit("the prompt does not end in lines 'A) ...', 'B) ...'")
    if option_letter(pair.reasoning.answer) != gold:
        raise Misfit(
            "the reasoning ends in another option than the gold answer's; --keep verified leaves such pairs out"
        )
    row = {
        "question": "\n".join(lines[:first]),
        "options": lines[first:],
        "rationale": pair.reasoning.reasoning,
        "correct": gold,
    }
    yield _read_back(row, pair, aqua.parse_row)


def _are_options(lines: list[str]) -> bool:
    letters = aqua.LETTERS[: len(lines)]
    return 2 <= len(lines) == len(letters) and all(
        line.startswith(f"{letter})") for line, letter in zip(lines, letters, strict=True)
    )


def _read_back(row: Row, pair: Pair, parse_row: Callable[[Row, str], Worked]) -> Row:
    """The row, once it was read as an import will read it. Raises Misfit when that gives another problem or reasoning."""
    try:
        worked = parse_row(row, "")
    except InputError as error:
        raise Misfit(str(error).removeprefix(": ")) from None
    for name, found, expected in (
        ("prompt", worked.problem.prompt, pair.problem.prompt),
        ("gold answer", worked.problem.gold, pair.problem.gold),
        ("reasoning", worked.reasoning, pair.reasoning.reasoning),
    ):
        if found != expected.strip():
            raise Misfit(f"the {name} has signs that this layout uses itself, and would be read as another text")
    return row


LAYOUTS: dict[str, Layout] = {
    "pairs": Layout(_pairs, _pair_columns),
    "prompt-completion": Layout(
        _prompt_completion, _conversation(names.PROMPT, names.COMPLETION), by_trace=True, messages=True
    ),
    "messages": Layout(_messages, _conversation(names.MESSAGES), by_trace=True, messages=True),
    "sharegpt": Layout(_sharegpt, _conversation(names.CONVERSATIONS), by_trace=True),
    "gsm8k": Layout(_gsm8k, lambda _: {"question": _TEXT, "answer": _TEXT}),
    "aqua": Layout(
        _aqua, lambda _: {"question": _TEXT, "options": pa.list_(_TEXT), "rationale": _TEXT, "correct": _TEXT}
    ),
    "hub": Layout(_hub, _hub_columns),
}
