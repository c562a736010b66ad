"""A student's output to one question, taken apart by token ids."""

from dataclasses import dataclass, field
from typing import Any, Literal

from distill.packing.chat import ChatFormat
from distill.serve import split_thinking

Think = Literal["free", "on", "off"]  # as trained; a think block opened for the student; an empty one closed


@dataclass(frozen=True)
class Answer:
    """One graded output. `thinking` and `answer` hold no tags and no end-of-turn token.

    (problem_id, sample, budget) are unique in an evaluation. `finished`: the student ended its turn by itself with every
    think block closed. What is not finished is wrong.
    Token counts are of generated ids: thinking with its tags, answer with its end-of-turn token.
    """

    problem_id: str
    task: str
    prompt: str
    gold: str
    token_ids: list[int]
    thinking: str
    answer: str
    prompt_tokens: int
    thinking_tokens: int
    answer_tokens: int
    thought: bool
    finished: bool
    finish_reason: str
    correct: bool
    seconds: float  # from request to last token
    sample: int = 0  # which of the n answers to this question
    think: Think = "free"
    budget: int | None = None  # of thinking tokens; None: no limit
    seed: int | None = None  # of this sample; None: greedy, or not ours to set
    verdict: str = ""  # what the checker said, one line
    failure: str | None = None  # why the checker came to no end: time, memory or crash
    scores: dict[str, float] = field(default_factory=dict)  # what else it counted


_ONE_OF_EACH: dict[int, int] = {}


def shared(token_ids: list[int]) -> list[int]:
    """The same ids, with one object for all that are equal: evaluations hold millions, and each parsed anew takes 36
    bytes in a list, shared 8."""
    return list(map(_ONE_OF_EACH.setdefault, token_ids, token_ids))


@dataclass(frozen=True)
class Parts:
    """Generated ids split into thinking and answer."""

    thinking: str
    answer: str
    thinking_tokens: int
    answer_tokens: int
    thought: bool
    closed: bool


def take_apart(chat: ChatFormat, token_ids: list[int], *, opened: bool | None = None) -> Parts:
    """Split what a student generated: thinking is what think blocks hold, the answer is the rest, its
    pieces on lines of their own: `7 <think>...</think> 2` is not `72`. With tags of several tokens the answer is what follows the last closing tag. A think block left open has no answer. `opened`: the prompt
    ended inside one; by default where the chat template does that."""
    opened = chat.prompt_opens_thinking if opened is None else opened
    if chat.think_open_id is not None and chat.think_close_id is not None:
        thinking_ids, answer_ids, closed = _split_by_ids(chat, token_ids, opened)
    else:
        thinking_ids, after, closed = _split_by_text(chat, token_ids, opened)
        answer_ids = [after]
    tags = {chat.think_open_id, chat.think_close_id}
    thinking = chat.tokenizer.decode([i for i in thinking_ids if i not in tags], skip_special_tokens=False)
    ends = {chat.end_of_turn, chat.tokenizer.eos_token_id, chat.tokenizer.pad_token_id}
    pieces = ([i for i in piece if i not in ends] for piece in answer_ids)
    answer = "\n".join(chat.tokenizer.decode(piece, skip_special_tokens=False) for piece in pieces)
    return Parts(
        thinking=thinking.removeprefix(chat.think.opening).removesuffix(chat.think.closing).strip(),
        answer=answer.strip(),
        thinking_tokens=len(thinking_ids),
        answer_tokens=sum(map(len, answer_ids)),
        thought=closed is not None,
        closed=closed is not False,
    )


def _split_by_ids(
    chat: ChatFormat, token_ids: list[int], opened: bool
) -> tuple[list[int], list[list[int]], bool | None]:
    """As `split_thinking`, with the answer in the pieces that stand between think blocks."""
    tags = (chat.think_open_id, chat.think_close_id)
    places = [token if token in tags else -1 - place for place, token in enumerate(token_ids)]  # ids are not negative
    thinking, answer, closed = split_thinking(places, *tags, opened=opened)
    pieces: list[list[int]] = []
    for n, place in enumerate(answer):
        if not n or place != answer[n - 1] - 1:
            pieces.append([])
        pieces[-1].append(token_ids[-1 - place])
    return [token if token >= 0 else token_ids[-1 - token] for token in thinking], pieces, closed


def _split_by_text(chat: ChatFormat, token_ids: list[int], opened: bool) -> tuple[list[int], list[int], bool | None]:
    """For tokenizers that spell the tags with several tokens: the shortest prefix whose text holds the last tag."""
    text: Any = lambda n: chat.tokenizer.decode(token_ids[:n], skip_special_tokens=False)  # noqa: E731
    whole = text(len(token_ids))
    if chat.think.closing not in whole:
        thinking = opened or chat.think.opening in whole
        return (token_ids, [], False) if thinking else ([], token_ids, None)
    if chat.think.opening in whole.rpartition(chat.think.closing)[2]:
        return token_ids, [], False  # opened again and never closed: what follows is no answer
    count = whole.count(chat.think.closing)
    low, high = 1, len(token_ids)
    while low < high:  # the number of tags in a prefix only grows with it
        middle = (low + high) // 2
        low, high = (low, middle) if text(middle).count(chat.think.closing) >= count else (middle + 1, high)
    return token_ids[:low], token_ids[low:], True
