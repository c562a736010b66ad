"""Two answers to a question become a pair, or a rejected row that says why not."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from distill.tasks.problem import Problem
from distill.traces.faults import FAULTS
from distill.traces.store import Rejected
from distill.traces.top_k import Distributions
from distill.traces.trace import Pair, Trace


@dataclass(frozen=True)
class Answer:
    """What came of one question in one mode."""

    trace: Trace
    fault: str | None = None  # a name in faults.FAULTS
    detail: str = ""
    output_tokens: int | None = None  # all that were generated, where the teacher says: what is paid for
    distributions: Distributions | None = None  # where they were asked for, and nothing is wrong with the answer


def pair_or_rejected(
    problem: Problem,
    reasoning: Answer,
    ift: Answer,
    is_correct: Callable[[Problem, str], bool] | None,
    *,
    source: str = "",
) -> Pair | Rejected:
    """A fault in either mode rejects both. A pair is labelled by the task's checker where there is one."""
    for mode, answer in (("reasoning", reasoning), ("ift", ift)):
        if answer.fault:
            detail = answer.detail or FAULTS[answer.fault]
            return Rejected(answer.fault, mode, detail, source, problem, reasoning.trace, ift.trace)
    if is_correct is None:
        return Pair(problem, reasoning.trace, ift.trace)
    return Pair(
        problem,
        replace(reasoning.trace, verified=is_correct(problem, reasoning.trace.answer)),
        replace(ift.trace, verified=is_correct(problem, ift.trace.answer)),
    )
