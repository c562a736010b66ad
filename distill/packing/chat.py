"""How a question and an answer become tokens, and which of them are supervised.

Chat templates in the wild drop reasoning, wrap it twice, or cannot mark what the assistant said. So the template is
only asked for what surrounds an answer: it renders a conversation whose assistant turn is a marker, and what stands
before and after the marker is read off. The answer, with its reasoning between think tags, is put there by us:

    prompt   = everything up to the assistant's first token, exactly what a server renders for generation
    target   = [think tags + reasoning] + answer + end-of-turn token            <- supervised, all of it

Prompt and target are tokenized apart, as they are when a server continues a prompt. A template for which this does
not work is refused with the reason.
"""

from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from distill.artifact import read_json, write_json
from distill.errors import InputError
from distill.settings import Settings, validate

LABELLING_VERSION = 1  # part of every key: raise it when rendering or masking changes

FORMAT_FILE = "distill_chat.json"
_MARKER = "MARKER7f3aMARKER"


class ThinkFormat(Settings):
    """What marks reasoning in a student's output. Written beside its weights as distill_chat.json."""

    opening: str = Field("<think>", min_length=1)
    closing: str = Field("</think>", min_length=1)
    after_opening: str = "\n"
    before_closing: str = "\n"
    after_closing: str = "\n\n"

    def wrap(self, reasoning: str, answer: str) -> str:
        return f"{self.opening}{self.after_opening}{reasoning}{self.before_closing}{self.closing}{self.after_closing}{answer}"

    def save(self, folder: Path) -> None:
        write_json(folder / FORMAT_FILE, self.model_dump())

    @classmethod
    def load(cls, folder: Path) -> "ThinkFormat":
        """From a student's folder; the default when the folder has none. Raises InputError."""
        path = folder / FORMAT_FILE
        return validate(cls, read_json(path), source=str(path)) if path.is_file() else cls()


COMPACT = ThinkFormat(after_opening="", before_closing="", after_closing="")  # from-scratch students: no white space


class ChatFormat:
    """Renders questions and answers with one tokenizer.

    Raises InputError when the tokenizer's chat template cannot be used, with the reason.
    """

    def __init__(self, tokenizer: Any, think: ThinkFormat, *, source: str):
        self.tokenizer, self.think, self.source = tokenizer, think, source
        if tokenizer.is_fast:  # `encode` asks the library below, which would pad or cut if its file says so
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.encode_special_tokens = tokenizer.split_special_tokens
        if not tokenizer.chat_template:
            raise InputError(
                f"{source}: the tokenizer has no chat template, which is needed to mark the assistant's turn"
            )
        question = [{"role": "user", "content": _MARKER + "?"}]
        answered = [*question, {"role": "assistant", "content": _MARKER}]
        (prompt,) = self._render([question], add_generation_prompt=True)
        (whole,) = self._render([answered], add_generation_prompt=False)
        if prompt.count(_MARKER) != 1:
            raise InputError(f"{source}: the chat template does not show the user's message exactly once")
        if whole.count(_MARKER) != 2:
            raise InputError(f"{source}: the chat template does not show the assistant's message exactly once")
        before, _, after = whole.rpartition(_MARKER)
        # Some templates open the think block themselves, in the generation prompt only.
        header, opened, self._said = prompt.rpartition(think.opening)
        self.prompt_opens_thinking = bool(opened) and not self._said.strip()
        header = header.rstrip() if self.prompt_opens_thinking else prompt
        if not before.startswith(header):
            raise InputError(
                f"{source}: the chat template's generation prompt {prompt[-40:]!r} is not how an assistant turn begins "
                f"({before[-40:]!r}), so the supervised part cannot be told"
            )
        self.rendered = prompt + whole  # for keys: a template may print the date, or change with a library
        self.end_of_turn = self._end_of_turn(after)
        self.think_close_id = self._single_id(think.closing)
        self.think_open_id = self._single_id(think.opening)

    def _render(self, conversations: list[list[dict[str, str]]], add_generation_prompt: bool) -> list[str]:
        try:
            return self.tokenizer.apply_chat_template(
                conversations, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise InputError(f"{self.source}: the chat template fails ({type(error).__name__}: {error})") from None

    def _end_of_turn(self, after: str) -> int:
        """The id of the token that ends an assistant's turn: the first one after the answer."""
        ids = self.tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        if ids and ids[0] in special:
            return ids[0]
        if self.tokenizer.eos_token_id is not None and not after.strip():
            return self.tokenizer.eos_token_id
        raise InputError(
            f"{self.source}: nothing ends the assistant's turn in the chat template (after the answer comes {after[:30]!r}), "
            "so a student could not learn to stop"
        )

    def _single_id(self, text: str) -> int | None:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[0] if len(ids) == 1 else None

    def prompt_texts(self, prompts: list[str]) -> list[str]:
        """Each question as a server renders it, generation prompt included."""
        conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return self._render(conversations, add_generation_prompt=True) if conversations else []

    def target_texts(self, answers: list[tuple[str, str]], names: list[str]) -> list[str]:
        """Each (reasoning, answer) as the assistant says it, without its end of turn; reasoning may be empty.

        Raises InputError for a text with a think tag of its own: nobody could tell where the reasoning ends.
        """
        return [self._target(*answer, name) for answer, name in zip(answers, names, strict=True)]

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The token ids of all texts end to end, int32[n], and where each text ends in them, int64[len(texts)].

        On all cores where the tokenizer can, which leaves Python to other threads meanwhile.
        """
        if self.tokenizer.is_fast:
            # Straight to the library below transformers: no masks, no offsets, and no list of all texts' lists of ids.
            encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            rows = (encoding.ids for encoding in encodings)
        else:
            rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        ids, ends = array("i"), []
        for row in rows:
            ids.fromlist(row)
            ends.append(len(ids))
        return np.array(ids, dtype=np.int32), np.array(ends, dtype=np.int64)

    def check_targets(self, ids: np.ndarray, ends: np.ndarray, texts: list[str], names: list[str]) -> None:
        """Raise InputError for an encoded target with no tokens, or with the end-of-turn token, where its turn would end."""
        starts = np.concatenate(([0], ends[:-1]))
        for i in np.flatnonzero(starts == ends):
            raise InputError(f"{self.source}: {names[i]} has no tokens ({texts[i]!r})")
        for at in np.flatnonzero(ids == self.end_of_turn):
            i = int(np.searchsorted(ends, at, side="right"))
            raise InputError(f"{self.source}: {names[i]} contains the end-of-turn token itself ({texts[i][:60]!r})")

    def prompt_ids(self, prompts: list[str]) -> list[list[int]]:
        """Token ids of each question as a server renders it, generation prompt included."""
        return _split(*self.encode(self.prompt_texts(prompts)))

    def target_ids(self, answers: list[tuple[str, str]]) -> list[list[int]]:
        """Token ids of each (reasoning, answer), end-of-turn token included. Raises InputError as its two halves do."""
        names = [f"answer {i + 1}" for i in range(len(answers))]
        texts = self.target_texts(answers, names)
        ids, ends = self.encode(texts)
        self.check_targets(ids, ends, texts, names)
        return [[*row, self.end_of_turn] for row in _split(ids, ends)]

    def _target(self, reasoning: str, answer: str, name: str) -> str:
        for tag in (self.think.opening, self.think.closing):
            if tag in reasoning or tag in answer:
                raise InputError(f"{self.source}: {name} contains a think tag of its own ({tag})")
        if not reasoning and self.prompt_opens_thinking:
            raise InputError(
                f"{self.source}: the chat template opens a think block before every answer, so it cannot hold an "
                "answer without reasoning; use a template whose generation prompt does not"
            )
        text = self.think.wrap(reasoning, answer) if reasoning else answer
        if self.prompt_opens_thinking:  # leave out what the prompt has said: the tag, and its white space
            text = text.removeprefix(self.think.opening)
            text = text.removeprefix(self.think.after_opening) if self._said else text
        return text


def _split(ids: np.ndarray, ends: np.ndarray) -> list[list[int]]:
    flat = ids.tolist()
    return [flat[start:end] for start, end in pairwise([0, *ends.tolist()])]
