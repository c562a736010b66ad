"""Which tokens of an output are thinking and which are the answer. The one definition, counted from token ids.

Thinking is every token inside a think block, the tags themselves included: they are paid for because the model
thinks. The answer is every other token, the final end-of-turn token included. So thinking + answer = output.

    <think> a b </think> c <end>            thinking 4, answer 2, closed
    <think> a b                             thinking 3, answer 0, not closed: cut off while thinking
    a b </think> c                          thinking 3, answer 1, closed: the template opened the block in the prompt
    <think> a </think> b <think> c </think> d     thinking 6, answer 2 (b, d), closed
    c <end>                                 thinking 0, answer 2, None: did not think
"""

from collections.abc import Sequence


def split_thinking(
    token_ids: Sequence[int], think_start_id: int | None, think_end_id: int | None, *, opened: bool = False
) -> tuple[list[int], list[int], bool | None]:
    """Split one output into (thinking ids, answer ids, closed), order kept in both.

    `opened`: the prompt ends inside a think block. Without it a first end tag that nothing opened still means that
    the prompt did, and all before it is thinking; only an output cut off before its end tag needs to be told.
    A start tag inside a block and a later stray end tag are thinking tokens that change nothing else.
    `closed` is None when there is no thinking, False when the last block was never closed.
    """
    thinking: list[int] = []
    answer: list[int] = []
    inside, any_block = opened, opened
    for token in token_ids:
        if token == think_end_id:
            if not any_block:
                thinking, answer = answer, []
            thinking.append(token)
            inside, any_block = False, True
        elif inside or token == think_start_id:
            thinking.append(token)
            inside, any_block = True, True
        else:
            answer.append(token)
    return thinking, answer, (not inside) if any_block else None
