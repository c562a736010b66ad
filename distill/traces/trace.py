"""A teacher's answers: one in each mode to the same question."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from distill.tasks.problem import Problem

Mode = Literal["reasoning", "ift"]
MODES: tuple[Mode, Mode] = get_args(Mode)


@dataclass(frozen=True)
class Trace:
    """One teacher answer to one problem in one mode. Token counts come from token ids; None where the teacher has none."""

    mode: Mode
    reasoning: str  # empty in mode "ift"
    answer: str
    finish_reason: str  # "stop" when the teacher ended by itself, "length" when it was cut off
    teacher: str
    prompt_tokens: int | None = None
    reasoning_tokens: int | None = None
    answer_tokens: int | None = None
    sampling: dict[str, Any] | None = None
    seed: int | None = None
    cost_usd: float | None = None  # None: not known; 0.0: known to be free
    verified: bool | None = None  # whether a checker accepts the answer; a label, never a filter
    verdict: str | None = None  # which checker that was, and what it said


@dataclass(frozen=True)
class Pair:
    """Both traces of one problem. What is dropped is dropped from both modes."""

    problem: Problem
    reasoning: Trace
    ift: Trace
    place: int = 0  # of the question among all that were asked or imported; the same in every shard of them
    sample: int = 0  # of several pairs of one question

    def trace(self, mode: Mode) -> Trace:
        return self.reasoning if mode == "reasoning" else self.ift
