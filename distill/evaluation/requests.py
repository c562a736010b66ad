"""What is to be generated: for each question, sample and thinking budget one output."""

import zlib
from dataclasses import dataclass

from distill.evaluation.questions import Asked, Prompts
from distill.evaluation.settings import MAX_TOKENS, EvaluateSettings
from distill.tasks.problem import Problem


@dataclass(frozen=True)
class Request:
    """One output to be generated."""

    problem: Problem
    prompt: list[int]  # token ids
    max_tokens: int
    sample: int = 0  # which of n
    budget: int | None = None  # of thinking tokens

    @property
    def key(self) -> str:
        """In the journal."""
        sample = f" sample {self.sample}" if self.sample else ""
        return self.problem.id + sample + (f" budget {self.budget}" if self.budget is not None else "")

    def seed(self, seed: int) -> int:
        """Its own sampling seed: the same whether it is asked first or after a restart, and at every budget."""
        name = f"{seed} {self.problem.id}" + (f" {self.sample}" if self.sample else "")
        return zlib.crc32(name.encode())


def requests(settings: EvaluateSettings, asked: list[Asked], prompts: Prompts) -> list[Request]:
    """All of them: by budget, task, question and sample."""
    return [
        Request(problem, prompts.ids[problem.id], answer_limit(settings, a), sample, budget)
        for budget in settings.thinking_budgets
        for a in asked
        for problem in a.problems
        for sample in range(settings.samples)
    ]


def answer_limit(settings: EvaluateSettings, asked: Asked) -> int:
    """How many tokens an answer to this task may have."""
    return settings.max_tokens or getattr(asked.task, "max_tokens", MAX_TOKENS)
