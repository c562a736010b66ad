"""Pairs to documents: every pair in both modes, and what is too long dropped from both."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from distill.errors import InputError
from distill.packing.arms import Answers, content
from distill.packing.chat import ChatFormat
from distill.packing.pack import Document
from distill.traces.trace import Mode, Pair

MODES: tuple[Mode, Mode] = ("ift", "reasoning")
_CHUNK = 1024


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
    documents: list[Document] = []
    kept: list[str] = []
    dropped = dropped_tokens = 0
    for start in range(0, len(pairs), _CHUNK):
        chunk = pairs[start : start + _CHUNK]
        prompts = chat.prompt_ids([pair.problem.prompt for pair in chunk])
        targets = {
            mode: chat.target_ids([content(pair, mode, answers) for pair in chunk], [pair.problem.id for pair in chunk])
            if mode in modes or not chat.prompt_opens_thinking
            else None
            for mode in MODES
        }
        for i, pair in enumerate(chunk):
            both = [
                _document(prompts[i], targets[mode][i] if targets[mode] else targets[modes[0]][i]) for mode in MODES
            ]
            if max(int(d.tokens.max()) for d in both) >= vocab_size:
                raise InputError(
                    f"{chat.source}: tokenizer and model disagree: token id {max(int(d.tokens.max()) for d in both)} in "
                    f"{pair.problem.id}, but the model's vocabulary has {vocab_size} entries"
                )
            if max(d.length for d in both) > max_length:
                dropped += 1
                dropped_tokens += sum(d.length for d in both)
                continue
            documents += both
            kept.append(pair.problem.id)
        advance(len(chunk))
    if dropped > max_dropped_share * len(pairs):
        raise InputError(
            f"{dropped} of {len(pairs)} pairs are longer than {max_length} tokens in one of their modes "
            f"(limit: {max_dropped_share:.0%}); raise --row-tokens"
        )
    return Rendered(documents, kept, dropped, dropped_tokens)


def _document(prompt: list[int], target: list[int]) -> Document:
    return Document(np.asarray(prompt + target, dtype=np.int32), len(prompt))
