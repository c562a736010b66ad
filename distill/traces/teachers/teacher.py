"""What is asked of a teacher, and what every teacher offers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from distill.tasks.problem import Problem
from distill.traces.pairing import Answer
from distill.traces.trace import Mode
from distill.traces.vocabulary import Vocabulary


@dataclass(frozen=True)
class Question:
    """A problem to be answered in one mode; `sample` counts the answers to the same problem in that mode."""

    problem: Problem
    mode: Mode
    sample: int = 0


class Teacher(Protocol):
    """Answers questions. Two teachers with the same identity give answers that may stand for each other's."""

    identity: dict[str, Any]  # name, revision and everything else that answers depend on
    prices: dict[str, float | None]  # what answers cost; other prices do not make other answers
    vocabulary: Vocabulary | None  # of the ids in its answers' distributions; None when it gives none

    def render(self, question: Question) -> dict[str, Any]:
        """The request as it is sent, its seed included: with the identity, all that its answer depends on."""

    async def answer(self, questions: Iterable[Question], on_answer: Callable[[Question, Answer], None]) -> None:
        """Answer questions in the order given, several at a time; `on_answer` gets every answer as it comes.

        The next question is drawn only when there is room for it, so that who gives them can stop: no more are asked
        once they end, and those in flight are waited for. Answers are not kept. Raises InputError when the teacher is
        out of reach, or fails so often that it must be taken to be gone.
        """

    def cost_usd(self, answer: Answer) -> float | None:
        """What an answer cost; None when that is not known."""
