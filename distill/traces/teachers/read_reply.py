"""What a server said becomes an answer: reasoning and answer apart, tokens counted, and what is wrong with it."""

from typing import Any

from distill.serve.client import ChatCompletion
from distill.serve.tokens import split_thinking
from distill.traces.faults import CLOSING, OPENING, fault_of, split_think
from distill.traces.pairing import Answer
from distill.traces.trace import Mode, Trace

ThinkIds = tuple[int | None, int | None]  # of the opening and closing tag, None where a tag is not one token


def read_reply(result: ChatCompletion, mode: Mode, think_ids: ThinkIds | None, about: dict[str, Any]) -> Answer:
    """The answer in one reply; `about` is what else its trace says: teacher, sampling, seed.

    Reasoning may stand in a field of its own or between tags. An empty think block is no reasoning.
    """
    if result.finish_reason == "error":
        return Answer(Trace(mode, "", "", "error", **about), "failed", _line(result.error or ""))
    reasoning, answer, fault = parts_of(result)
    reasoning_tokens, answer_tokens = _token_counts(result, think_ids)
    trace = Trace(
        mode=mode,
        reasoning=valid_text(reasoning),
        answer=valid_text(answer),
        finish_reason=result.finish_reason,
        prompt_tokens=count_in(result.usage, "prompt_tokens"),
        reasoning_tokens=reasoning_tokens,
        answer_tokens=answer_tokens,
        **about,
    )
    output_tokens = _output_tokens(result)
    if result.finish_reason == "refused":
        return Answer(trace, "refused", _line(result.error or ""), output_tokens)
    if fault is None and (trace.reasoning, trace.answer) != (reasoning, answer):
        fault = "bad_unicode"
    # What was cut off is called that, whatever else is wrong with it for the same reason.
    fault = fault_of(trace) if trace.finish_reason == "length" else fault or fault_of(trace)
    return Answer(trace, fault, output_tokens=output_tokens)


def parts_of(result: ChatCompletion) -> tuple[str, str, str | None]:
    """(reasoning, answer, fault): from a field of their own, or from between tags."""
    if result.reasoning is None:
        return split_think(result.content)
    # A parser of vLLM's leaves the opening tag in where it streams it together with what follows.
    return result.reasoning.strip().removeprefix(OPENING).strip(), result.content.strip(), None


def valid_text(text: str) -> str:
    """`text` with what cannot be encoded (lone surrogates) replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _line(text: str) -> str:
    return " ".join(valid_text(text).split())[:300]


def count_in(usage: Any, name: str) -> int | None:
    """A count of tokens in what a server says it used; None for anything else."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < 2**63 else None


def _output_tokens(result: ChatCompletion) -> int | None:
    return count_in(result.usage, "completion_tokens") if result.token_ids is None else len(result.token_ids)


def _token_counts(result: ChatCompletion, think_ids: ThinkIds | None) -> tuple[int | None, int | None]:
    """(reasoning, answer) tokens: from token ids where the server gives them, else from what it says it used."""
    if result.token_ids is not None and think_ids and think_ids[1] is not None:
        thinking, answer, _ = split_thinking(result.token_ids, *think_ids)
        return len(thinking), len(answer)
    output = _output_tokens(result)
    reasoning = count_in(result.usage.get("completion_tokens_details"), "reasoning_tokens")
    if reasoning is None and not result.reasoning and CLOSING not in result.content:
        reasoning = 0
    if output is None or reasoning is None or reasoning > output:
        return None, None
    return reasoning, output - reasoning
