"""A teacher that is no model: the solvers of the tasks themselves, or the worked solutions of a file."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distill.tasks.problem import Problem
from distill.tasks.task import Task
from distill.traces.faults import fault_of
from distill.traces.pairing import Answer
from distill.traces.teachers.teacher import Question
from distill.traces.trace import Mode, Trace


class SolverTeacher:
    """The solver of an embedded task, or the worked solutions of a file. It costs nothing."""

    def __init__(self, tasks: Mapping[str, Task]):
        self.tasks = tasks  # by Problem.task
        self.identity = {"name": "solver", "revision": "1"}
        self.prices: dict[str, float | None] = {}
        self.vocabulary = None

    def render(self, question: Question) -> dict[str, Any]:
        return {"task": question.problem.task, "prompt": question.problem.prompt, "mode": question.mode}

    async def answer(self, questions: Iterable[Question], on_answer: Callable[[Question, Answer], None]) -> None:
        for question in questions:
            on_answer(question, self.solve(question.problem, question.mode))

    def cost_usd(self, answer: Answer) -> float:
        return 0.0

    def solve(self, problem: Problem, mode: Mode) -> Answer:
        """The answer to one problem."""
        reasoning, answer = self.tasks[problem.task].solve(problem)
        return worked_answer(mode, reasoning, answer)


def worked_answer(mode: Mode, reasoning: str, answer: str) -> Answer:
    """An answer of known reasoning that cost nothing; in mode "ift" the reasoning is left out."""
    trace = Trace(mode, reasoning if mode == "reasoning" else "", answer, "stop", "solver", cost_usd=0.0)
    return Answer(trace, fault_of(trace))
