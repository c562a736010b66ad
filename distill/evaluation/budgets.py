"""An upper limit to a student's thinking: what does not end by itself is closed after so many tokens.

vLLM does it while it generates, token by token, where it can see the tags: they are one token each, and no prompt holds
one. Otherwise it takes two requests: the output without a limit is cut where its thinking is too long, the think block
closed, and the answer asked for. Either way a block holds its tags and at most `budget` tokens between them.
"""

import json
from collections.abc import Callable

from distill.evaluation.questions import Prompts
from distill.packing.chat import ChatFormat


def why_not_vllm(chat: ChatFormat, prompts: Prompts) -> str | None:
    """Why vLLM cannot limit this student's thinking itself; None when it can."""
    if chat.think_open_id is None or chat.think_close_id is None:
        return "a think tag is several tokens"
    for ids in prompts.ids.values():
        if ids.count(chat.think_open_id) + ids.count(chat.think_close_id) > prompts.opened:
            return "a prompt holds a think tag"
    return None


def server_arguments(chat: ChatFormat) -> tuple[str, ...]:
    """With which a vLLM server knows the tags, and takes `thinking_token_budget`."""
    tags = {"reasoning_start_str": chat.think.opening, "reasoning_end_str": chat.think.closing}
    return ("--reasoning-config", json.dumps(tags))


def cut_thinking(chat: ChatFormat, token_ids: list[int], budget: int, *, opened: bool) -> list[int] | None:
    """The beginning of an output whose first think block is longer than `budget`, cut and closed; None when it is not."""
    text = lambda n: chat.decode(token_ids[:n])  # noqa: E731
    start = 0
    if not opened:
        if chat.think.opening not in text(len(token_ids)):
            return None
        start = _shortest(lambda n: chat.think.opening in text(n), len(token_ids))
    (closing,) = chat.encode([chat.think.closing])
    thought = token_ids[start : start + budget + len(closing)]
    if len(token_ids) - start <= budget or chat.think.closing in chat.decode(thought):
        return None
    return [*token_ids[: start + budget], *closing]


def _shortest(holds: Callable[[int], bool], most: int) -> int:
    """The smallest n up to `most` for which it holds, and with which it goes on holding."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
