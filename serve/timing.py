"""How long an answer took, from when each of its tokens came."""

from dataclasses import dataclass

from distill.serve.client import Completion


@dataclass(frozen=True)
class Timing:
    """Seconds since the request was sent; None where there is no such token."""

    ttft_s: float | None  # to the first token
    ttfat_s: float | None  # to the first answer token after thinking; of answers that thought
    tpot_s: float | None  # from the first token on, for each further one
    e2e_s: float


def timing(completion: Completion, think_start_id: int | None, think_end_id: int | None) -> Timing:
    """Of a streamed completion that has ended. Which tokens are thinking is as in tokens.py."""
    times_s, e2e_s = completion.token_times_s, completion.e2e_s
    first = times_s[0] if times_s else None
    tpot_s = (e2e_s - first) / (len(times_s) - 1) if len(times_s) > 1 else None
    answer = _first_answer_token(completion.token_ids, think_start_id, think_end_id)
    return Timing(first, None if answer is None else times_s[answer], tpot_s, e2e_s)


def _first_answer_token(token_ids: list[int], think_start_id: int | None, think_end_id: int | None) -> int | None:
    """The place of the first token after thinking that is not thinking again; None where there is none."""
    if think_end_id not in token_ids:
        return None
    inside = False
    for place in range(token_ids.index(think_end_id) + 1, len(token_ids)):
        token = token_ids[place]
        if token == think_start_id:
            inside = True
        elif token == think_end_id:
            inside = False
        elif not inside:
            return place
    return None
