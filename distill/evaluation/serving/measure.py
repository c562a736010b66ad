"""What profiles and comparisons share: a student with the questions it is asked under load, its server, and the graded
answers of the very requests that were timed.

    asked = draw_questions([Questions(task="add", split="validation")], least=100, most=100)
    respondent = Respondent.load(Path("out/student"), asked, Sampling(max_tokens=64))
    with served(respondent, Serving(), out) as server, Clients(1) as clients:
        prompts = respondent.prompts_of(asked[0])
        run = run_load(clients, server.endpoint, prompts, ClosedLoop(concurrency=8), respondent.sampling, warmup=4)
    (answers,) = respondent.grade(asked[0], [run])
    cost([reckoned(answers, run)], price)
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from distill.errors import InputError
from distill.evaluation.answers import Answer, Think
from distill.evaluation.generate import Output, Sampling
from distill.evaluation.gradable import check_gradable
from distill.evaluation.grading import grade
from distill.evaluation.questions import Asked, Prompts, distinct_problems, positions_needed, up_to
from distill.evaluation.requests import Request
from distill.evaluation.responses import read_output
from distill.evaluation.server import Serving
from distill.evaluation.serving.cost import Answers, Energy
from distill.evaluation.settings import Questions
from distill.evaluation.subject import Subject, load_subject
from distill.evaluation.thinking import think_prompts
from distill.serve import Completion, Endpoint, Server
from distill.serve.endpoint import check_endpoint
from distill.serve.load.run import Run
from distill.serve.server import is_cpu_build
from distill.tasks import get_task
from distill.tasks.problem import Problem
from distill.traces.trace import Mode

MOST_PROCESSES = 8  # that send
# 20 to 50 us of a processor in every step: 0.5 % of a GPU's, 2 % of a small student's on a CPU, whose peak nobody knows.
MFU_ARGUMENTS = ("--enable-mfu-metrics",)


def draw_questions(questions: Sequence[Questions], *, least: int, most: int) -> list[Asked]:
    """Of every task as many questions as there are, up to `most`; `count` of `questions` is not looked at. Raises
    InputError for an unknown task, one whose answers cannot be graded, and for fewer than `least`."""
    own = [q.task for q in questions if q.data is not None]
    asked = []
    for q in questions:
        task = get_task(q.task, q.data, own)
        check_gradable(task)
        problems = up_to(task, q.split, most, q.seed) or task.problems(q.split, 1, q.seed)  # raises what is wrong
        if len(problems) < least:
            of_split = "" if q.split == "all" else f"{q.split} "
            raise InputError(
                f"task {task.name}: the loads need {least} different questions, and there are {len(problems)} "
                f"{of_split}questions; ask for fewer --requests or fewer loads"
            )
        asked.append(Asked(task, problems))
    distinct_problems(asked)
    return asked


@dataclass(frozen=True)
class Respondent:
    """A student, and how it is asked."""

    subject: Subject
    asked: list[Asked]
    prompts: Prompts  # of all questions
    sampling: Sampling
    think: Think = "free"

    @classmethod
    def load(
        cls, student: Path, asked: list[Asked], sampling: Sampling, *, mode: Mode | None = None, think: Think = "free"
    ) -> Self:
        """`sampling` is completed by the student's own end of turn. Raises InputError."""
        subject = load_subject(student)
        prompts = think_prompts(subject, asked, mode, think)
        stops = (*sampling.stop_token_ids, subject.require_chat().end_of_turn)
        return cls(subject, asked, prompts, sampling.model_copy(update={"stop_token_ids": stops}), think)

    @property
    def think_ids(self) -> tuple[int | None, int | None]:
        """Of the opening and the closing tag; None where a tag is several tokens."""
        chat = self.subject.require_chat()
        return chat.think_open_id, chat.think_close_id

    @property
    def positions(self) -> int:
        """That a server needs. Raises InputError when the model has fewer."""
        return positions_needed(self.subject, self.prompts.ids, self.sampling.max_tokens)

    def prompts_of(self, asked: Asked) -> list[list[int]]:
        """Token ids of a task's questions, in their order."""
        return [self.prompts.ids[problem.id] for problem in asked.problems]

    def grade(self, asked: Asked, runs: Sequence[Run]) -> list[list[Answer]]:
        """The graded answers of every run, in the order in which their requests were sent: of those that are measured
        and were answered. Raises InputError."""
        problems = {tuple(self.prompts.ids[problem.id]): problem for problem in asked.problems}
        answers = [[self._read(problems[tuple(p)], p, c) for p, c in run.answered] for run in runs]
        graded = iter(grade([asked], [answer for of_run in answers for answer in of_run]))
        return [[next(graded) for _ in of_run] for of_run in answers]

    def _read(self, problem: Problem, prompt: Sequence[int], c: Completion) -> Answer:
        request = Request(problem, list(prompt), self.sampling.max_tokens, budget=self.sampling.thinking_token_budget)
        seed = self.sampling.seed if self.sampling.temperature > 0 else None
        output = Output(c.token_ids, c.finish_reason, c.e2e_s)
        return read_output(self.subject, self.prompts, request, output, think=self.think, seed=seed)


def reckoned(answers: Sequence[Answer], run: Run) -> Answers | None:
    """The graded answers of a run as `cost` takes them; None when there is none or no rate was measured."""
    if not answers or run.rate is None:
        return None
    energy = run.energy if run.energy and "joules" in run.energy else None
    return Answers(
        questions=np.array([a.problem_id for a in answers]),
        output_tokens=np.array([len(a.token_ids) for a in answers]),
        prompt_tokens=np.array([a.prompt_tokens for a in answers]),
        correct=np.array([int(a.correct) for a in answers]),
        unfinished=np.array([not a.finished for a in answers]),
        rate=run.rate,
        energy=energy and Energy(energy["joules"], sum(len(c.token_ids) for c in run.completions)),
    )


@dataclass(frozen=True)
class Served:
    """A student's server; `check` raises InputError when it is gone, with the end of its log where it is ours."""

    endpoint: Endpoint
    check: Callable[[], None]
    start_s: float | None = None  # how long it took to start; None of one that was there already


@contextmanager
def served(respondent: Respondent, serving: Serving, out: Path, *, arguments: tuple[str, ...] = ()) -> Iterator[Served]:
    """A server of the student for as long as the block lasts; one started here on a GPU says what MFU is made of.
    `arguments` are vLLM's besides. Raises InputError when none can be started or reached."""
    own: list[Server] = []
    with serving.reachable(
        respondent.subject,
        out,
        positions=respondent.positions,
        arguments=(*(() if is_cpu_build() else MFU_ARGUMENTS), *arguments),
        on_start=own.append,
    ) as endpoint:
        if not own:
            check_endpoint(endpoint)

        def check() -> None:
            for server in own:
                server.check()
            check_endpoint(endpoint)

        yield Served(endpoint, check, own[0].start_s if own else None)


def sending_processes() -> int:
    """How many send where nobody says: one for every four cores."""
    return min(MOST_PROCESSES, max(1, len(os.sched_getaffinity(0)) // 4))
