"""What the students of a cell generate: answers that are graded, those that vote, and those under load.

Before a run nobody knows how long answers will be. They are taken to be as long as the traces of the mode that the arm
teaches, on the very questions where the solver is the teacher: `mixed` R of them with reasoning; `sequential` and phases as their last phase, which decides how a student
answers; `think: on`, `off` and a `mode` as they say. A thinking budget cuts what is thought. A base that is shown
examples answers like IFT. Nothing is longer than max_tokens.
"""

from dataclasses import dataclass
from typing import Any

from distill.evaluation.questions import Asked
from distill.evaluation.requests import answer_limit
from distill.evaluation.serving.profile import StudentProfileSettings
from distill.evaluation.settings import EvaluateSettings
from distill.serve.load.run import requests_of
from distill.serve.load.shapes import ClosedLoop
from distill.study.plan.counts import Lengths
from distill.training.settings import TrainSettings

EVALUATED_TOGETHER = 256  # requests in flight of an evaluation (distill/evaluation/generate.py)


@dataclass(frozen=True)
class Batch:
    """Requests of one kind: `answers` of them, `concurrency` at a time, with mean tokens of each."""

    what: str  # graded, votes, load
    task: str
    answers: int
    concurrency: int
    prompt_tokens: float
    output_tokens: float
    longest: int  # tokens that one of them may generate

    @property
    def generated(self) -> float:
        return self.answers * self.output_tokens

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"generated_tokens": self.generated}


@dataclass(frozen=True)
class Answering:
    """How a model answers: its share of answers with reasoning, and what limits them."""

    reasoning_share: float
    lengths: Lengths

    @classmethod
    def of_arm(cls, training: TrainSettings, asked: EvaluateSettings, lengths: Lengths) -> "Answering":
        arm = training.shown
        last = arm.curriculum[-1][0] if arm.curriculum else arm.ratio
        if arm.kind == "sequential" and arm.ratio > 0:
            last = 1.0
        if asked.think != "free":
            last = 1.0 if asked.think == "on" else 0.0
        if asked.mode is not None:
            last = 1.0 if asked.mode == "reasoning" else 0.0
        return cls(last, lengths)

    def tokens(self, task: str, limit: int, budget: int | None = None) -> float:
        """Of one answer."""
        with_reasoning = self.lengths.of("reasoning", task)
        if budget is not None:
            with_reasoning -= max(0.0, self.lengths.thinking_of(task) - budget)
        without = self.lengths.of("ift", task)
        share = self.reasoning_share
        return share * min(with_reasoning, limit) + (1 - share) * min(without, limit)


def graded(asked: EvaluateSettings, questions: list[Asked], how: Answering, what: str = "graded") -> list[Batch]:
    """Every answer that an evaluation asks for."""
    found = []
    for a in questions:
        limit, name = answer_limit(asked, a), a.task.name
        each = [how.tokens(name, limit, budget) for budget in asked.thinking_budgets]
        answers = len(a.problems) * asked.samples * len(each)
        found.append(
            Batch(
                what=what,
                task=name,
                answers=answers,
                concurrency=min(EVALUATED_TOGETHER, answers),
                prompt_tokens=how.lengths.prompt_of(name),
                output_tokens=sum(each) / len(each),
                longest=limit,
            )
        )
    return found


def under_load(load: StudentProfileSettings, names: list[str], how: Answering, budget: int | None) -> list[Batch]:
    """What a profile sends, warm-up included. A search for the load, and one that repeats a recording, is not known
    before and left out."""
    found = []
    for name in names:
        for one in load.loads:
            if isinstance(one, ClosedLoop):
                answers = requests_of(one, load.requests, load.warmup_requests)
                tokens = how.tokens(name, load.max_tokens, budget)
                prompt = how.lengths.prompt_of(name)
                found.append(Batch("load", name, answers, one.concurrency, prompt, tokens, load.max_tokens))
    return found
