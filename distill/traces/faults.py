"""What can keep a trace from being trained on, and the one place that says so.

A trace with a fault is never trained on, and its pair is dropped from both modes; it is kept, with the reason, in
rejected.parquet. So is a question that is held out.
"""

from distill.traces.trace import Trace

OPENING, CLOSING = "<think>", "</think>"

FAULTS = {
    "malformed": "the row cannot be read",
    "failed": "the teacher did not answer",
    "refused": "the teacher refused to answer",
    "not_asked": "not asked: the budget was spent, or the run was ended early",
    "truncated": "the answer was cut off by the token limit",
    "unclosed_think": "the think tag is never closed",
    "stray_tag": "a think tag where none belongs",
    "no_reasoning": "no reasoning in the reasoning answer",
    "reasoning_in_ift": "reasoning in the answer that should have none",
    "no_answer": "no answer",
    "bad_unicode": "text that is not valid Unicode",
    "held_out": "a question of the validation or test split",
    "repeated": "a question that stands in the source already",
    "unpaired": "no answer to the question in the other mode",
    "duplicate": "the question of an earlier pair",
    "near_duplicate": "nearly the question of an earlier pair",
    "contaminated": "a question of an evaluation set",
    "outlier": "of another language or length than the rest",
}

# What can be done about it, to be added to the fault.
_SWITCH = "; --thinking says how this teacher's reasoning is switched on and off"
HINTS = {"truncated": "; --max-tokens is the limit", "reasoning_in_ift": _SWITCH, "no_reasoning": _SWITCH}


def split_think(text: str) -> tuple[str, str, str | None]:
    """(reasoning, answer, fault) of a text with its reasoning between think tags, both stripped.

    The opening tag may be missing: some chat templates put it into the prompt. The first closing tag ends the
    reasoning, as it does for a server. A text without tags is all answer.
    """
    before, closing, after = text.partition(CLOSING)
    lead, opening, inner = before.partition(OPENING)
    if not closing:
        return (inner.strip(), "", "unclosed_think") if opening else ("", text.strip(), None)
    reasoning = inner if opening else before
    fault = "stray_tag" if opening and lead.strip() else None
    return reasoning.strip(), after.strip(), fault


def fault_of(trace: Trace) -> str | None:
    """The first fault of a trace, by name in FAULTS; None when it can be trained on."""
    if trace.finish_reason != "stop":
        return "truncated" if trace.finish_reason == "length" else "failed"
    if any(tag in text for tag in (OPENING, CLOSING) for text in (trace.reasoning, trace.answer)):
        return "stray_tag"
    if trace.mode == "reasoning" and not trace.reasoning.strip():
        return "no_reasoning"
    if trace.mode == "ift" and trace.reasoning.strip():
        return "reasoning_in_ift"
    if not trace.answer.strip():
        return "no_answer"
    return None
