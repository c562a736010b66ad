"""`distill train --show-batch`: the first row that would be trained on, as text, with what is supervised marked.

It is read back from the pack itself - input ids, shifted labels, document bounds - and not from the documents that it
was built from, so what is shown is what the loss sees.
"""

import unicodedata
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.text import Text

from distill import console
from distill.packing.chat import ChatFormat
from distill.packing.pack import IGNORE, Pack, build_pack
from distill.packing.render import MODES
from distill.packing.source import read_traces
from distill.training.prepare import make_ready
from distill.training.settings import TrainSettings

_STYLES = {"prompt": "dim", "reasoning": "cyan", "answer": "green", "end of turn": "bold magenta"}


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of one kind in a document."""

    kind: str  # prompt, reasoning, answer or end of turn
    supervised: bool
    tokens: int
    text: str


def show_batch(settings: TrainSettings, traces: Path) -> dict[str, Any]:
    """The documents of the first row of the first step, each as its parts. Nothing is trained and nothing written."""
    ready = make_ready(settings, read_traces(traces), weights=False)
    references = ready.steps[0].rows[0]
    pack = build_pack([ready.rendered.documents[r] for r in references])
    documents = [
        {"pair": ready.rendered.pair_ids[r // 2], "mode": MODES[r % 2], "parts": [asdict(part) for part in parts]}
        for r, parts in zip(references, parts_of(pack, ready.origin.chat), strict=True)
    ]
    return {
        "arm": settings.arm,
        "student": settings.student,
        "tokens": pack.input_ids.numel(),
        "supervised_tokens": pack.supervised,
        "row_tokens": settings.row_tokens,
        "documents": documents,
    }


def parts_of(pack: Pack, chat: ChatFormat) -> list[list[Part]]:
    """The parts of every document of a pack."""
    bounds = pack.cu_seqlens.tolist()
    ids, labels = pack.input_ids[0].tolist(), pack.labels[0].tolist()
    # The label of a row is the token after it, so a document's last token is only a label.
    return [
        _parts([*ids[start:end], labels[end - 1]], [False, *(label != IGNORE for label in labels[start:end])], chat)
        for start, end in pairwise(bounds)
    ]


def _parts(tokens: list[int], supervised: list[bool], chat: ChatFormat) -> list[Part]:
    first = supervised.index(True)
    last = len(tokens) - (tokens[-1] == chat.end_of_turn)
    reasoned = first + _reasoning_tokens(tokens[first:last], chat)
    cuts = {"prompt": (0, first), "reasoning": (first, reasoned), "answer": (reasoned, last)}
    cuts["end of turn"] = (last, len(tokens))
    return [
        Part(kind, all(supervised[start:end]), end - start, _decode(tokens[start:end], chat))
        for kind, (start, end) in cuts.items()
        if end > start
    ]


def _reasoning_tokens(target: list[int], chat: ChatFormat) -> int:
    """How many tokens of a target there are up to the closing think tag, which may be several tokens; 0 without one."""
    closing = chat.think.closing
    if closing not in _decode(target, chat):
        return 0
    low, high = 0, len(target)
    while low < high:  # the shortest beginning whose text has the tag
        middle = (low + high) // 2
        low, high = (low, middle) if closing in _decode(target[:middle], chat) else (middle + 1, high)
    return low


def _decode(tokens: list[int], chat: ChatFormat) -> str:
    return chat.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def print_batch(shown: dict[str, Any]) -> None:
    """The same for a person: a line for each line of text, `|` where the loss is taken and `:` where it is not."""
    documents = shown["documents"]
    _print(
        f"first row of {shown['arm']} for {shown['student']}: {len(documents)} documents, {shown['tokens']:,} tokens of "
        f"{shown['row_tokens']:,}, {shown['supervised_tokens']:,} supervised"
    )
    _print("  | supervised: the loss is taken over these tokens      : not supervised")
    for number, document in enumerate(documents, start=1):
        _print(
            f"--- document {number} of {len(documents)}: {document['pair']}, {document['mode']} ".ljust(80, "-"), "bold"
        )
        for part in document["parts"]:
            label = f"{part['kind']} ({part['tokens']})"
            mark = "|" if part["supervised"] else ":"
            for line in _printable(part["text"]).split("\n"):
                _print(f"{label:>18} {mark} {line}", _STYLES[part["kind"]])
                label = ""


def _print(line: str, style: str = "") -> None:
    console.out.print(Text(line, style=style), soft_wrap=True)


def _printable(text: str) -> str:
    """A teacher's text may hold what moves a terminal's cursor: control characters are shown as their codes."""
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf") else f"\\x{ord(c):02x}" for c in text)
