"""A trace set as training sees it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill import artifact, console
from distill.errors import InputError
from distill.traces.store import read_pairs
from distill.traces.trace import MODES, Pair


@dataclass(frozen=True)
class TraceSet:
    """The pairs of a finished trace set and the key that names them."""

    key: str
    pairs: list[Pair]
    path: Path

    def texts(self) -> Iterator[str]:
        """Every text a student will see, for training a tokenizer."""
        for pair in self.pairs:
            yield from (pair.problem.prompt, pair.problem.gold)
            yield from (pair.reasoning.reasoning, pair.reasoning.answer, pair.ift.answer)


def read_traces(path: Path) -> TraceSet:
    """Raises InputError when `path` is not a finished trace set or a row of it is malformed."""
    return TraceSet(artifact.read(path, "traces", made_by="distill traces generate").key, read_pairs(path), path)


def verified_only(trace_set: TraceSet) -> tuple[TraceSet, dict[str, Any]]:
    """The pairs of which both answers are labelled as right, so that every arm has the same questions; and what is left
    out: pairs by the reason, and what it would have been to train on, in the teacher's tokens, or in characters where
    those are not known. It is said in a note.

    Raises InputError when nothing has a label, or no pair has both.
    """
    labels = [[pair.trace(mode).verified for mode in MODES] for pair in trace_set.pairs]
    if not any(label is not None for both in labels for label in both):
        raise InputError(
            f"{trace_set.path}: no answer has a label, which --keep verified needs; run `distill traces verify` first"
        )
    kept = [pair for pair, both in zip(trace_set.pairs, labels, strict=True) if all(both)]
    if not kept:
        raise InputError(f"{trace_set.path}: no pair has two answers that are verified, of {len(labels)} pairs")
    unit, amounts = _amounts(trace_set.pairs)
    left_out = {
        "pairs": len(labels),
        "kept": len(kept),
        "wrong": sum(False in both for both in labels),
        "without_label": sum(None in both and False not in both for both in labels),
        unit: sum(amounts),
        f"dropped_{unit}": sum(amount for amount, both in zip(amounts, labels, strict=True) if not all(both)),
    }
    share = left_out[f"dropped_{unit}"] / max(left_out[unit], 1)
    console.note(
        f"{trace_set.path}: {len(kept):,} of {len(labels):,} pairs are verified in both modes; left out are "
        f"{left_out['wrong']:,} with a wrong answer and {left_out['without_label']:,} without a label, with "
        f"{left_out[f'dropped_{unit}']:,} of {left_out[unit]:,} {unit} ({share:.1%})"
    )
    return replace(trace_set, pairs=kept), left_out


def _amounts(pairs: list[Pair]) -> tuple[str, list[int]]:
    """How much each pair is, both answers together, and in what."""
    tokens = [[(t.reasoning_tokens, t.answer_tokens) for t in map(pair.trace, MODES)] for pair in pairs]
    if not any(None in trace for both in tokens for trace in both):
        return "tokens", [sum(map(sum, both)) for both in tokens]
    texts = ((pair.trace(mode) for mode in MODES) for pair in pairs)
    return "characters", [sum(len(trace.reasoning) + len(trace.answer) for trace in both) for both in texts]
