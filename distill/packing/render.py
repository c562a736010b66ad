"""Pairs to documents: every pair in both modes, and what is too long dropped from both.

The tokenizer is what takes time. So threads keep it busy on all cores while this one renders the texts of the next
chunk and lays out the documents of the last one, with a few array operations a chunk and little Python a pair.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from distill.errors import InputError
from distill.packing.arms import Answers, content
from distill.packing.chat import ChatFormat
from distill.packing.pack import Document
from distill.traces.trace import Mode, Pair

MODES: tuple[Mode, Mode] = ("ift", "reasoning")
_CHUNK = 1 << 20  # characters: a tenth of a second on two cores, and some 50 MB while they are tokenized
_WORKERS = 2  # while one copies its token ids, which only one thread can do at a time, the other's chunk is tokenized


@dataclass(frozen=True)
class Rendered:
    """Documents by reference (2 * pair + mode), of the pairs that fit, and what was dropped."""

    documents: list[Document]
    pair_ids: list[str]
    dropped: int  # pairs in which either mode was longer than the limit
    dropped_tokens: int  # their tokens, both modes

    @property
    def n_pairs(self) -> int:
        return len(self.pair_ids)


def render(
    pairs: list[Pair],
    chat: ChatFormat,
    *,
    answers: Answers,
    max_length: int,
    vocab_size: int,
    modes: tuple[Mode, ...] = MODES,
    max_dropped_share: float = 0.1,
    advance: Callable[[int], None] = lambda n: None,
) -> Rendered:
    """Tokenize every pair in both modes; a pair with a document of more than `max_length` input tokens leaves both.

    `modes` are those the arm shows: the other is rendered for its length only where its template allows it. Raises
    InputError when a document would be supervised nowhere, when a token id does not fit the model's vocabulary, or when
    more than `max_dropped_share` of the pairs are too long.
    """
    shown = [mode for mode in MODES if mode in modes or not chat.prompt_opens_thinking]
    documents: list[Document] = []
    kept: list[str] = []
    dropped = dropped_tokens = 0
    for chunk, tokens, bounds, prompt_lengths in _tokenized(pairs, chat, shown, answers):
        if tokens.max() >= vocab_size:
            largest = int(tokens.argmax())
            document = int(np.searchsorted(bounds, largest, side="right")) - 1
            raise InputError(
                f"{chat.source}: tokenizer and model disagree: token id {tokens[largest]} in "
                f"{chunk[document // 2].problem.id}, but the model's vocabulary has {vocab_size} entries"
            )
        lengths = np.diff(bounds).reshape(-1, 2) - 1  # Document.length, by pair
        fits = lengths.max(axis=1) <= max_length
        dropped += int((~fits).sum())
        dropped_tokens += int(lengths[~fits].sum())
        bounds = bounds.tolist()
        for i in np.flatnonzero(fits).tolist():
            kept.append(chunk[i].problem.id)
            documents += [Document(tokens[bounds[d] : bounds[d + 1]], prompt_lengths[i]) for d in (2 * i, 2 * i + 1)]
        advance(len(chunk))
    if dropped > max_dropped_share * len(pairs):
        raise InputError(
            f"{dropped} of {len(pairs)} pairs are longer than {max_length} tokens in one of their modes "
            f"(limit: {max_dropped_share:.0%}); raise --row-tokens"
        )
    return Rendered(documents, kept, dropped, dropped_tokens)


def _tokenized(
    pairs: list[Pair], chat: ChatFormat, shown: list[Mode], answers: Answers
) -> Iterator[tuple[list[Pair], np.ndarray, np.ndarray, list[int]]]:
    """A chunk of pairs at a time, and its documents as `_documents` lays them out."""
    with ThreadPoolExecutor(_WORKERS) as workers:
        waiting = deque()
        for chunk in _chunks(pairs):
            names = [pair.problem.id for pair in chunk]
            texts = chat.prompt_texts([pair.problem.prompt for pair in chunk])
            for mode in shown:
                texts += chat.target_texts([content(pair, mode, answers) for pair in chunk], names)
            waiting.append((chunk, workers.submit(_documents, texts, names, shown, chat)))
            if len(waiting) > _WORKERS:
                done, documents = waiting.popleft()
                yield done, *documents.result()
        for done, documents in waiting:
            yield done, *documents.result()


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


def _documents(
    texts: list[str], names: list[str], shown: list[Mode], chat: ChatFormat
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """All documents of n pairs end to end: (tokens int32, where each begins and the last ends, prompts' lengths).

    `texts`: n prompts, then n targets of each mode in `shown`. A mode that is not shown has the other's target.
    """
    n = len(names)
    ids, ends = chat.encode(texts)
    of_prompts = int(ends[n - 1])
    chat.check_targets(ids[of_prompts:], ends[n:] - of_prompts, texts[n:], names * len(shown))
    rows = [ids[start:end] for start, end in pairwise([0, *ends.tolist()])]
    targets = {mode: rows[n * (1 + k) : n * (2 + k)] for k, mode in enumerate(shown)}
    both = [targets.get(mode, targets[shown[0]]) for mode in MODES]
    end = np.array([chat.end_of_turn], dtype=np.int32)
    pieces = [piece for i in range(n) for target in both for piece in (rows[i], target[i], end)]
    prompt_lengths = np.diff(ends[:n], prepend=0)
    target_lengths = np.array([[len(target[i]) for target in both] for i in range(n)])
    bounds = np.zeros(2 * n + 1, dtype=np.int64)
    np.cumsum((prompt_lengths[:, None] + target_lengths + 1).reshape(-1), out=bounds[1:])
    return np.concatenate(pieces), bounds, prompt_lengths.tolist()
