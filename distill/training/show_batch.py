"""`distill train --show-batch`: the first row that would be trained on, as text, with what is supervised marked.

It is read back from the pack itself - input ids, shifted labels, document bounds - and not from the documents that it
was built from, so what is shown is what the loss sees.
"""

import unicodedata
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
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
    loss_weight: float  # of all its tokens together
    text: str


def show_batch(settings: TrainSettings, traces: Path) -> dict[str, Any]:
    """The documents of the first row of the first step, each as its parts. Nothing is trained and nothing written."""
    ready = make_ready(settings, read_traces(traces), weights=False)
    references = ready.steps[0].rows[0]
    pack = build_pack([ready.rendered.documents[r] for r in references], settings.loss_weight)
    reasoning_lengths = ready.rendered.reasoning_lengths[references].tolist()
    documents = [
        {"pair": ready.rendered.pair_ids[r // 2], "mode": MODES[r % 2], "parts": [asdict(part) for part in parts]}
        for r, parts in zip(references, parts_of(pack, reasoning_lengths, ready.origin.chat), strict=True)
    ]
    return {
        "arm": settings.arm,
        "student": settings.student,
        "tokens": pack.input_ids.numel(),
        "supervised_tokens": pack.supervised,
        "row_tokens": settings.row_tokens,
        "documents": documents,
    }


def parts_of(pack: Pack, reasoning_lengths: list[int], chat: ChatFormat) -> list[list[Part]]:
    """The parts of every document of a pack; `reasoning_lengths` of each, as its loss is weighed by them."""
    bounds = pack.cu_seqlens.tolist()
    ids, labels = pack.input_ids[0].tolist(), pack.labels[0].tolist()
    of_rows = torch.zeros(len(ids))
    of_rows[pack.loss_rows] = torch.ones(()) if pack.loss_weights is None else pack.loss_weights
    weights = of_rows.where(pack.labels[0] != IGNORE, 0.0).tolist()
    # The label of a row is the token after it, so a document's last token is only a label.
    return [
        _parts([*ids[start:end], labels[end - 1]], [0.0, *weights[start:end]], length, chat)
        for (start, end), length in zip(pairwise(bounds), reasoning_lengths, strict=True)
    ]


def _parts(tokens: list[int], weights: list[float], reasoning_length: int, chat: ChatFormat) -> list[Part]:
    first = next(i for i, weight in enumerate(weights) if weight)
    last = len(tokens) - (tokens[-1] == chat.end_of_turn)
    reasoned = first + reasoning_length
    cuts = {"prompt": (0, first), "reasoning": (first, reasoned), "answer": (reasoned, last)}
    cuts["end of turn"] = (last, len(tokens))
    return [
        Part(kind, all(weights[start:end]), end - start, sum(weights[start:end]), chat.decode(tokens[start:end]))
        for kind, (start, end) in cuts.items()
        if end > start
    ]


def print_batch(shown: dict[str, Any]) -> None:
    """The same for a person: a line for each line of text, `|` where the loss is taken and `:` where it is not. Where
    tokens do not all weigh 1, what a part weighs stands behind its tokens."""
    documents = shown["documents"]
    width = max([18, *(len(_label(part)) for document in documents for part in document["parts"])])
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
            label = _label(part)
            mark = "|" if part["supervised"] else ":"
            for line in _printable(part["text"]).split("\n"):
                _print(f"{label:>{width}} {mark} {line}", _STYLES[part["kind"]])
                label = ""


def _label(part: dict[str, Any]) -> str:
    weighed = part["supervised"] and part["loss_weight"] != part["tokens"]
    return f"{part['kind']} ({part['tokens']})" + (f" {part['loss_weight']:.2f}" if weighed else "")


def _print(line: str, style: str = "") -> None:
    console.out.print(Text(line, style=style), soft_wrap=True)


def _printable(text: str) -> str:
    """A teacher's text may hold what moves a terminal's cursor: control characters are shown as their codes."""
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf") else f"\\x{ord(c):02x}" for c in text)
