"""Pairs to documents: every pair in both modes, and what is too long dropped from both.

The tokenizer is what takes time. So threads keep it busy on all cores while this one renders the texts of the next
chunk; a chunk's documents are laid end to end as their ids come out, and no object is made for any of them.
"""

import gc
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import overload

import numpy as np

from distill.errors import InputError
from distill.packing.arms import Answers, content
from distill.packing.chat import ChatFormat
from distill.packing.pack import Document
from distill.traces.trace import Mode, Pair

MODES: tuple[Mode, Mode] = ("ift", "reasoning")  # by number: a reference is 2 * pair + the number of its mode
MAX_DROPPED_SHARE = 0.1  # of the pairs: with more of them gone, what is left is another data set
_CHUNK = 1 << 20  # characters: a tenth of a second on two cores, and some 50 MB while they are tokenized
_WORKERS = 2  # while one copies its token ids, which only one thread can do at a time, the other's chunk is tokenized


class Documents(Sequence[Document]):
    """The documents of a `Rendered` by reference, each made when it is asked for; its tokens are not copied."""

    def __init__(self, rendered: "Rendered"):
        self._rendered = rendered

    def __len__(self) -> int:
        return len(self._rendered.prompt_lengths)

    @overload
    def __getitem__(self, reference: int) -> Document: ...

    @overload
    def __getitem__(self, reference: slice) -> list[Document]: ...

    def __getitem__(self, reference: int | slice) -> Document | list[Document]:
        if isinstance(reference, slice):
            return [self[i] for i in range(*reference.indices(len(self)))]
        at = range(len(self))[reference]  # from the end too, and an IndexError beyond it
        rendered = self._rendered
        return Document(
            rendered.tokens[rendered.bounds[at] : rendered.bounds[at + 1]],
            int(rendered.prompt_lengths[at]),
            int(rendered.reasoning_lengths[at]),
        )


@dataclass(frozen=True)
class Rendered:
    """Documents by reference (2 * pair + mode), of the pairs that fit, and what was dropped.

    All tokens lie end to end in one array, so that they can be a file that is mapped, not read.
    """

    tokens: np.ndarray  # int32[all]: of each document its prompt, its target, its end of turn
    bounds: np.ndarray  # int64[2 * pairs + 1]: where each document begins in them, and the last one ends
    prompt_lengths: np.ndarray  # int32[2 * pairs]
    reasoning_lengths: np.ndarray  # int32[2 * pairs]: reasoning with its tags, the first tokens of a target
    kept: np.ndarray  # int32[pairs]: the place of each among the pairs that were given, dropped ones included
    pair_ids: list[str]
    dropped: int  # pairs in which either mode was longer than the limit
    dropped_tokens: int  # their tokens, both modes

    @property
    def n_pairs(self) -> int:
        return len(self.pair_ids)

    @property
    def n_given(self) -> int:
        """Pairs that were to be rendered."""
        return self.n_pairs + self.dropped

    @property
    def documents(self) -> Documents:
        return Documents(self)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64[2 * pairs]: input tokens, `Document.length`."""
        return np.diff(self.bounds) - 1

    @cached_property
    def supervised(self) -> np.ndarray:
        """int64[2 * pairs]: `Document.supervised`."""
        return np.diff(self.bounds) - self.prompt_lengths

    @classmethod
    def joined(cls, parts: Iterable["Rendered"]) -> "Rendered":
        """One after another."""
        parts = [_NOTHING, *parts]
        starts = np.cumsum([0, *(len(part.tokens) for part in parts[:-1])])
        before = np.cumsum([0, *(part.n_given for part in parts[:-1])], dtype=np.int32)
        return cls(
            tokens=np.concatenate([part.tokens for part in parts]),
            bounds=np.concatenate([[0], *(start + p.bounds[1:] for start, p in zip(starts, parts, strict=True))]),
            prompt_lengths=np.concatenate([part.prompt_lengths for part in parts]),
            reasoning_lengths=np.concatenate([part.reasoning_lengths for part in parts]),
            kept=np.concatenate([given + part.kept for given, part in zip(before, parts, strict=True)]),
            pair_ids=[name for part in parts for name in part.pair_ids],
            dropped=sum(part.dropped for part in parts),
            dropped_tokens=sum(part.dropped_tokens for part in parts),
        )


_NONE = np.zeros(0, np.int32)
_NOTHING = Rendered(_NONE, np.zeros(1, np.int64), _NONE, _NONE, _NONE, [], 0, 0)


@dataclass(frozen=True)
class Rendering:
    """How pairs become documents, besides the chat format."""

    answers: Answers
    max_length: int  # input tokens of a document: a pair with a longer one leaves both modes
    vocab_size: int  # of the model, which must have an entry for every token id
    modes: tuple[Mode, ...] = MODES  # those the arm shows: the other is rendered for its length where its template can


def render(
    pairs: list[Pair], chat: ChatFormat, how: Rendering, *, advance: Callable[[int], None] = lambda n: None
) -> Rendered:
    """Tokenize every pair in both modes.

    Raises InputError when a document would be supervised nowhere, when a token id does not fit the model's vocabulary,
    or when more than MAX_DROPPED_SHARE of the pairs are too long.
    """
    rendered = Rendered.joined(render_parts(pairs, chat, how, advance=advance))
    require_enough(rendered.dropped, len(pairs), how.max_length)
    return rendered


def rendered_modes(chat: ChatFormat, modes: tuple[Mode, ...]) -> tuple[Mode, ...]:
    """Both modes, so that every arm reads the same documents; less those that the arm does not show and the template
    cannot hold."""
    return tuple(mode for mode in MODES if mode in modes or not chat.prompt_opens_thinking)


def require_enough(dropped: int, pairs: int, max_length: int) -> None:
    """Raise InputError when too many pairs were too long."""
    if dropped > MAX_DROPPED_SHARE * pairs:
        raise InputError(
            f"{dropped} of {pairs} pairs are longer than {max_length} tokens in one of their modes "
            f"(limit: {MAX_DROPPED_SHARE:.0%}); raise --row-tokens, or take a student with more positions"
        )


def render_parts(
    pairs: list[Pair], chat: ChatFormat, how: Rendering, *, advance: Callable[[int], None] = lambda n: None
) -> Iterator[Rendered]:
    """The documents of some pairs at a time, in order, in memory for those. A mode that is not rendered has the other's
    document. Raises InputError as `render`, but not for what was dropped."""
    shown = rendered_modes(chat, how.modes)
    with _few_to_collect(), ThreadPoolExecutor(_WORKERS) as workers:
        waiting = deque()

        def finished() -> Rendered:
            pairs, rendered = waiting.popleft()
            part = rendered.result()
            advance(pairs)
            return part

        for chunk in _chunks(pairs):
            names = [pair.problem.id for pair in chunk]
            texts = _texts(chunk, names, chat, shown, how.answers)
            waiting.append((len(chunk), workers.submit(_rendered, *texts, names, chat, how)))
            if len(waiting) > _WORKERS:
                yield finished()
        while waiting:
            yield finished()


@contextmanager
def _few_to_collect() -> Iterator[None]:
    """Leave what is there now out of Python's garbage collections. One that walks over all objects of torch and
    transformers, and over all pairs, holds every thread for a fifth of a second, as long as a chunk takes."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _chunks(pairs: list[Pair]) -> Iterator[list[Pair]]:
    chunk, size = [], 0
    for pair in pairs:
        chunk.append(pair)
        size += len(pair.problem.prompt) + len(pair.reasoning.reasoning) + len(pair.reasoning.answer)
        size += len(pair.ift.answer)
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _texts(
    pairs: list[Pair], names: list[str], chat: ChatFormat, shown: tuple[Mode, ...], answers: Answers
) -> tuple[list[str], list[bool]]:
    """(what is tokenized, whether it has reasoning for each pair and shown mode).

    Texts are pair by pair, as `_places_of` has them: the words of a pair stay together, which the tokenizer's memory of
    words likes.
    """
    prompts = [pair.problem.prompt for pair in pairs]
    signalled = chat.think.mode_signal == "prompt"
    columns = [] if signalled else [chat.prompt_texts(prompts)]
    thought = []
    for mode in shown:
        columns += [chat.prompt_texts(prompts, mode)] if signalled else []
        said = [content(pair, mode, answers) for pair in pairs]
        columns.append(chat.target_texts(said, names))
        thought.append([bool(reasoning) for reasoning, _ in said])
    return list(chain.from_iterable(zip(*columns, strict=True))), list(chain.from_iterable(zip(*thought, strict=True)))


def _places_of(shown: int, signalled: bool) -> list[tuple[int, int]]:
    """Where among a pair's texts the prompt and the target of either mode are. A prompt that is the same in both is
    there once, and a mode that is not shown has the other's texts."""
    if shown == 1:
        return [(0, 1)] * len(MODES)
    return [(0, 1), (2, 3)] if signalled else [(0, 1), (0, 2)]


def _rendered(texts: list[str], thought: list[bool], names: list[str], chat: ChatFormat, how: Rendering) -> Rendered:
    """The documents of n pairs, less those that are too long. `texts` and `thought` are as `_texts` has them."""
    shown = len(thought) // len(names)
    places = _places_of(shown, chat.think.mode_signal == "prompt")
    ids, bounds, prompt_lengths = array("I"), [0], []  # unsigned, which Python fills twice as fast as signed
    for rows in zip(*[chat.encode(texts)] * (len(texts) // len(names)), strict=True):
        for prompt, target in places:
            ids.fromlist(rows[prompt])
            ids.fromlist(rows[target])
            ids.append(chat.end_of_turn)
            prompt_lengths.append(len(rows[prompt]))
            bounds.append(len(ids))
    part = Rendered(
        tokens=np.frombuffer(ids, np.int32),
        bounds=np.array(bounds, np.int64),
        prompt_lengths=np.array(prompt_lengths, np.int32),
        reasoning_lengths=np.zeros(len(prompt_lengths), np.int32),
        kept=np.arange(len(names), dtype=np.int32),
        pair_ids=names,
        dropped=0,
        dropped_tokens=0,
    )
    _require_targets(part, chat)
    _require_vocabulary(part, chat, how.vocab_size)
    _measure_reasoning(part, np.repeat(np.array(thought), len(MODES) // shown), chat)
    return _less_the_long(part, how.max_length)


def _places(part: Rendered, token: int) -> tuple[np.ndarray, np.ndarray]:
    """(document, number of the target's token) of every place in a target, end of turn left out, that holds `token`."""
    at = np.flatnonzero(part.tokens == token)
    document = np.searchsorted(part.bounds, at, side="right") - 1
    number = at - part.bounds[document] - part.prompt_lengths[document]
    inside = (number >= 0) & (at < part.bounds[document + 1] - 1)
    return document[inside], number[inside]


def _require_targets(part: Rendered, chat: ChatFormat) -> None:
    empty = np.flatnonzero(part.supervised == 1)
    for document in (*empty.tolist(), *_places(part, chat.end_of_turn)[0].tolist()):
        target = part.tokens[part.bounds[document] + part.prompt_lengths[document] : part.bounds[document + 1] - 1]
        chat.require_target(target.tolist(), part.pair_ids[document // 2])


def _require_vocabulary(part: Rendered, chat: ChatFormat, vocab_size: int) -> None:
    largest = int(part.tokens.argmax())
    if part.tokens[largest] >= vocab_size:
        document = int(np.searchsorted(part.bounds, largest, side="right")) - 1
        raise InputError(
            f"{chat.source}: tokenizer and model disagree: token id {part.tokens[largest]} in "
            f"{part.pair_ids[document // 2]}, but the model's vocabulary has {vocab_size} entries"
        )


def _measure_reasoning(part: Rendered, thought: np.ndarray, chat: ChatFormat) -> None:
    """Write the reasoning lengths of the documents that have reasoning: up to the one closing tag in each where that is a
    token of its own, else by decoding."""
    found = np.zeros(len(thought), np.int64)
    if chat.think_close_id is not None:
        document, number = _places(part, chat.think_close_id)
        found = np.bincount(document, minlength=len(thought))
        part.reasoning_lengths[document] = number + 1
        part.reasoning_lengths[~thought] = 0
    for document in np.flatnonzero(thought & (found != 1)).tolist():
        target = part.documents[document].tokens[part.prompt_lengths[document] : -1]
        part.reasoning_lengths[document] = chat.reasoning_tokens(target.tolist())


def _less_the_long(part: Rendered, max_length: int) -> Rendered:
    lengths = part.lengths.reshape(-1, 2)
    fits = lengths.max(axis=1) <= max_length
    if fits.all():
        return part
    both = np.repeat(fits, 2)
    return Rendered(
        tokens=part.tokens[np.repeat(both, part.lengths + 1)],
        bounds=np.concatenate(([0], np.cumsum(part.lengths[both] + 1))),
        prompt_lengths=part.prompt_lengths[both],
        reasoning_lengths=part.reasoning_lengths[both],
        kept=part.kept[fits],
        pair_ids=[name for name, kept in zip(part.pair_ids, fits, strict=True) if kept],
        dropped=int((~fits).sum()),
        dropped_tokens=int(lengths[~fits].sum()),
    )
