"""What a training is trained on, counted from its plan before it runs: no clock is involved."""

from typing import Any

import numpy as np

from distill.packing.loss_weights import total_weight
from distill.packing.render import MODES
from distill.packing.selection import Select, Selection
from distill.training.prepare import Ready
from distill.training.settings import TrainSettings

MODE_NAMES = {"ift": "without reasoning", "reasoning": "with reasoning"}
_LENGTHS = {"ift": "characters of it left out", "reasoning": "characters of it"}
_MARKS = {"wrong_without_reasoning": "answered wrong without it", "answers_differ": "whose two answers differ"}


def describe(settings: TrainSettings, ready: Ready) -> dict[str, Any]:
    """Counts of everything that is trained on, FLOPs, and what one validation reads and costs.

    Tokens are input tokens; `by_mode` splits them, the examples, the supervised tokens and what these weigh in the loss,
    and `shares` says the same as parts of the whole. `selection`, where it was chosen which pairs have reasoning, counts
    in the examples of each mode what they were chosen by, and says how long the teacher's reasoning on them is, shown or
    not. `matched` says up to what the pairs were repeated, and what the training comes to; None for whole epochs.
    """
    origin, rendered, steps = ready.origin, ready.rendered, ready.steps
    lengths, supervised = rendered.lengths, rendered.supervised
    rows = [row for step in steps for row in step.rows]
    seen = np.array([r for row in rows for r in row])
    by_mode = {}
    for mode, name in enumerate(MODES):
        of_mode = seen[seen % 2 == mode]
        by_mode[name] = {
            "examples": len(of_mode),
            "tokens": int(lengths[of_mode].sum()),
            "supervised_tokens": int(supervised[of_mode].sum()),
            "loss_weight": total_weight(supervised[of_mode], settings.loss_weight),
        }
    totals = {name: sum(of_mode[name] for of_mode in by_mode.values()) for name in by_mode[MODES[0]]}
    spent = {
        "steps": len(steps),
        "tokens": totals["tokens"],
        "flops": origin.shape.training_flops(lengths[seen], totals["supervised_tokens"]),
    }
    matched = None
    if ready.until is not None:
        on, to = ready.until.kind, "the given number" if settings.tokens else "arm reasoning in the same epochs"
        matched = {"on": on, "to": to, "wanted": ready.until.amount, "reached": spent[on]}
    row_slots = len(rows) * settings.row_tokens if settings.packed else None
    return {
        "arm": settings.arm,
        "student": settings.student,
        "parameters": sum(p.numel() for p in origin.model.parameters()),
        "trainable_parameters": origin.trainable_parameters,
        "vocabulary": origin.model.config.vocab_size,
        "rows": len(rows),
        **totals,
        **spent,
        "by_mode": by_mode,
        "shares": {mode: _shares(of_mode, totals) for mode, of_mode in by_mode.items()},
        "matched": matched,
        "row_fill": totals["tokens"] / row_slots if row_slots else None,
        "pairs": rendered.n_pairs - (ready.validation.pairs if ready.validation else 0),
        "distillation": ready.teaching.coverage if ready.teaching else None,
        "validation": ready.validation.describe(origin.shape) if ready.validation else None,
        **({"unverified": ready.unverified} if ready.unverified else {}),
        **({"selection": _selection(settings.select, ready.selection, seen)} if ready.selection else {}),
        "dropped_pairs": rendered.dropped,
        "dropped_tokens": rendered.dropped_tokens,
    }


def selection_text(found: dict[str, Any]) -> list[str]:
    """`selection` of `describe` in words, a text for each mode."""
    said = []
    for mode, of_mode in found["by_mode"].items():
        mean, marks = of_mode["mean_reasoning_characters"], [name for name in _MARKS if name in of_mode]
        said.append(
            f"{of_mode['examples']:,} examples {MODE_NAMES[mode]}"
            + (f", {mean:,.0f} {_LENGTHS[mode]} on average" if mean is not None else "")
            + "".join(f", {of_mode[name]:,} {_MARKS[name]}" for name in marks)
        )
    return said


def _selection(select: Select, chosen: Selection, seen: np.ndarray) -> dict[str, Any]:
    by_mode = {}
    for mode, name in enumerate(MODES):
        of_mode = chosen.at(seen[seen % 2 == mode] // 2)
        examples = len(of_mode.characters)
        by_mode[name] = {
            "examples": examples,
            **{mark: int(flags.sum()) for mark, flags in of_mode.marked.items()},
            "mean_reasoning_characters": float(of_mode.characters.mean()) if examples else None,
        }
    return {"select": select, "by_mode": by_mode}


def _shares(of_mode: dict[str, int], totals: dict[str, int]) -> dict[str, float]:
    names = {name: name for name in ("examples", "tokens", "supervised_tokens")} | {"loss": "loss_weight"}
    return {name: of_mode[key] / totals[key] for name, key in names.items()}
