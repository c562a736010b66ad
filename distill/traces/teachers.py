"""Teachers: who answers each question twice, once with reasoning and once without.

teachers.py           the solvers of the tasks themselves, and who is opened for which settings
chat_teacher.py       how a question is put to a model that chats
read_reply.py         what it said becomes an answer
endpoint_teacher.py   behind a server that is there already
vllm_teacher.py       behind one that is started for the purpose
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from distill.tasks.problem import Problem
from distill.tasks.task import Task
from distill.traces.endpoint_teacher import EndpointTeacher
from distill.traces.faults import fault_of
from distill.traces.pairing import Answer
from distill.traces.settings import GenerateSettings
from distill.traces.teacher import Question, Teacher
from distill.traces.teacher_settings import VllmSettings
from distill.traces.trace import Mode, Trace
from distill.traces.vllm_teacher import VllmTeacher


def open_teacher(settings: GenerateSettings, tasks: Mapping[str, Task], workdir: Path) -> Teacher:
    """The teacher of these settings; `tasks` by Problem.task. Nothing is asked or started yet.

    What it writes while it works lies beside `workdir`. Raises InputError for a model, key or tokenizer that is wrong.
    """
    if settings.teacher == "solver":
        return SolverTeacher(tasks)
    shown = settings.gold == "shown"
    if isinstance(settings.teacher, VllmSettings):
        return VllmTeacher(settings.teacher, settings.seed, workdir, gold_shown=shown)
    return EndpointTeacher(settings.teacher, settings.seed, gold_shown=shown)


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
