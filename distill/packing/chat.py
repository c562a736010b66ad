"""How a question and an answer become tokens, and which of them are supervised.

Chat templates in the wild drop reasoning, wrap it twice, or cannot mark what the assistant said. So the template is
only asked for what surrounds an answer: it renders a conversation whose assistant turn is a marker, and what stands
before and after the marker is read off. The answer, with its reasoning between think tags, is put there by us:

    prompt   = everything up to the assistant's first token, exactly what a server renders for generation
    target   = [think tags + reasoning] + answer + end-of-turn token            <- supervised, all of it

Prompt and target are tokenized apart, as they are when a server continues a prompt. A template for which this does
not work is refused with the reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from distill.artifact import read_json, write_json
from distill.errors import InputError
from distill.traces.trace import Mode

LABELLING_VERSION = 1  # part of every key: raise it when rendering or masking changes

FORMAT_FILE = "distill_chat.json"
_MARKER = "MARKER7f3aMARKER"

ModeSignal = Literal["none", "prompt"]
MODE_SIGNALS: dict[Mode, str] = {"reasoning": " /think", "ift": " /no_think"}  # end the question; Qwen3's soft switch


@dataclass(frozen=True)
class ThinkFormat:
    """What marks reasoning in a student's output, and whether its question says that it is wanted. Written beside its
    weights as distill_chat.json."""

    opening: str = "<think>"
    closing: str = "</think>"
    after_opening: str = "\n"
    before_closing: str = "\n"
    after_closing: str = "\n\n"
    mode_signal: ModeSignal = "none"

    def wrap(self, reasoning: str, answer: str) -> str:
        return f"{self.opening}{self.after_opening}{reasoning}{self.before_closing}{self.closing}{self.after_closing}{answer}"

    def save(self, folder: Path) -> None:
        """Write it into a student's folder; a signal only where there is one."""
        values = asdict(self)
        if self.mode_signal == "none":
            del values["mode_signal"]
        write_json(folder / FORMAT_FILE, values)

    @classmethod
    def load(cls, folder: Path) -> "ThinkFormat":
        """From a student's folder; the default when the folder has none. Raises InputError."""
        path = folder / FORMAT_FILE
        if not path.is_file():
            return cls()
        values = read_json(path)
        if not isinstance(values, dict):
            raise InputError(f"{path}: expected a JSON object, found {type(values).__name__}")
        names = [field.name for field in fields(cls)]
        for name, value in values.items():
            if name not in names:
                raise InputError(f"{path}: field {name}: no such field")
            if not isinstance(value, str) or (name in ("opening", "closing") and not value):
                raise InputError(f"{path}: field {name}: expected a text that is not empty, found {value!r}")
        think = cls(**values)
        if think.mode_signal not in get_args(ModeSignal):
            raise InputError(f"{path}: field mode_signal: expected none or prompt, found {think.mode_signal!r}")
        return think


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

    def prompt_texts(self, prompts: list[str], mode: Mode | None = None) -> list[str]:
        """Each question as a server renders it, generation prompt included; asked for `mode` where the student has a
        signal for it. Raises InputError for a mode that cannot be asked for, or none where one must be."""
        signalled = self.think.mode_signal == "prompt"
        if signalled and mode is None:
            raise InputError(
                f"{self.source}: is told in the question what is wanted; say --mode reasoning or --mode ift"
            )
        if mode is not None and not signalled:
            raise InputError(f"{self.source}: has no mode signal, so --mode {mode} cannot be asked for; leave it out")
        signal = MODE_SIGNALS[mode] if mode is not None else ""
        conversations = [[{"role": "user", "content": prompt + signal}] for prompt in prompts]
        return self._render(conversations, add_generation_prompt=True) if conversations else []

    def target_texts(self, answers: list[tuple[str, str]], names: list[str]) -> list[str]:
        """Each (reasoning, answer) as the assistant says it, without its end of turn; reasoning may be empty.

        Raises InputError for a text with a think tag of its own: nobody could tell where the reasoning ends.
        """
        tags = (self.think.opening, self.think.closing)
        said = "\n".join(text for answer in answers for text in answer)
        if any(tag in said for tag in tags):  # one look at all texts, and at each of them only when it is there
            for answer, name in zip(answers, names, strict=True):
                for tag in tags:
                    if any(tag in text for text in answer):
                        raise InputError(f"{self.source}: {name} contains a think tag of its own ({tag})")
        if self.prompt_opens_thinking and not all(reasoning for reasoning, _ in answers):
            raise InputError(
                f"{self.source}: the chat template opens a think block before every answer, so it cannot hold an "
                "answer without reasoning; use a template whose generation prompt does not"
            )
        texts = [self.think.wrap(reasoning, answer) if reasoning else answer for reasoning, answer in answers]
        if self.prompt_opens_thinking:  # leave out what the prompt has said: the tag, and its white space
            texts = [text.removeprefix(self.think.opening) for text in texts]
            texts = [text.removeprefix(self.think.after_opening) if self._said else text for text in texts]
        return texts

    def encode(self, texts: list[str]) -> Iterator[list[int]]:
        """The token ids of every text, one list after another. They are made at once: on all cores where the tokenizer
        can, which leaves Python to other threads meanwhile."""
        if self.tokenizer.is_fast:
            # Straight to the library below transformers: no masks, no offsets, and no list of all texts' lists of ids.
            encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return (encoding.ids for encoding in encodings)
        return iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])

    def require_target(self, ids: Sequence[int], name: str) -> None:
        """Raise InputError for a target with no tokens, or with the end-of-turn token, where its turn would end."""
        if not len(ids):
            raise InputError(f"{self.source}: {name} has no tokens")
        if self.end_of_turn in ids:
            raise InputError(f"{self.source}: {name} contains the end-of-turn token itself ({self.decode(ids)[:60]!r})")

    def reasoning_tokens(self, target: Sequence[int]) -> int:
        """How many tokens of a target there are up to the closing think tag, which may be several tokens; 0 without one."""
        closing = self.think.closing
        if closing not in self.decode(target):
            return 0
        low, high = 0, len(target)
        while low < high:  # the shortest beginning whose text has the tag
            middle = (low + high) // 2
            low, high = (low, middle) if closing in self.decode(target[:middle]) else (middle + 1, high)
        return low

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids as it stands, special tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def prompt_ids(self, prompts: list[str], mode: Mode | None = None) -> list[list[int]]:
        """Token ids of each question as a server renders it, generation prompt included. Raises as `prompt_texts`."""
        return list(self.encode(self.prompt_texts(prompts, mode)))

    def target_ids(self, answers: list[tuple[str, str]]) -> list[list[int]]:
        """Token ids of each (reasoning, answer), end-of-turn token included. Raises InputError as its two halves do."""
        names = [f"answer {i + 1}" for i in range(len(answers))]
        rows = list(self.encode(self.target_texts(answers, names)))
        for row, name in zip(rows, names, strict=True):
            self.require_target(row, name)
        return [[*row, self.end_of_turn] for row in rows]
