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
    reasoning: Answer | None,
    ift: Answer | None,
    is_correct: Callable[[Problem, str], bool] | None,
    *,
    source: str = "",
    place: int = 0,
    sample: int = 0,
) -> Pair | Rejected:
    """A fault in either mode rejects both, and so does an answer that was not asked for (None). A pair is labelled by
    the task's checker where there is one."""
    answers = {"reasoning": reasoning, "ift": ift}
    traces = {mode: answer and answer.trace for mode, answer in answers.items()}
    faults = [(answer.fault, mode, answer.detail) for mode, answer in answers.items() if answer and answer.fault]
    faults += [("not_asked", mode, "") for mode, answer in answers.items() if answer is None]
    if faults:
        fault, mode, detail = faults[0]
        detail = detail or FAULTS[fault]
        return Rejected(fault, mode, detail, source, problem, **traces, place=place, sample=sample)
    if is_correct is not None:
        for mode, trace in traces.items():
            right = is_correct(problem, trace.answer)
            traces[mode] = replace(
                trace, verified=right, verdict=f"task {problem.task}: {'right' if right else 'wrong'}"
            )
    return Pair(problem, **traces, place=place, sample=sample)
