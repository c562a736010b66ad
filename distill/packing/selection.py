"""Which pairs are shown with their reasoning, where an arm shows only a share of them so.

What a pair goes by is said by the traces alone, lengths in characters: with one seed, students of any tokenizer are shown
the same pairs with reasoning.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distill.errors import InputError
from distill.packing.source import TraceSet
from distill.traces.trace import Pair

Select = Literal["random", "hard", "disagree", "short"]
VERSION = 1  # part of the keys of what is not random: raise it when the same pairs would be in another order


@dataclass(frozen=True)
class Selection:
    """What n pairs go by. `priority` int64[n]: smaller ones get reasoning first, equal ones in the seed's order.
    `characters` int64[n]: of the teacher's reasoning. `marked`: bool[n] by name, what else is worth counting of them."""

    priority: np.ndarray
    characters: np.ndarray
    marked: dict[str, np.ndarray]

    def at(self, pairs: np.ndarray | list[int]) -> "Selection":
        """Of these pairs, in this order."""
        marked = {name: flags[pairs] for name, flags in self.marked.items()}
        return Selection(self.priority[pairs], self.characters[pairs], marked)


def selection(select: Select, trace_set: TraceSet) -> Selection | None:
    """Of all pairs of the set; None for `random`, which goes by the seed alone.

    `hard`: those whose answer without reasoning is labelled wrong, then those with the longest reasoning. `disagree`:
    those whose two answers differ. `short`: those with the shortest reasoning. Raises InputError where `hard` finds no
    label.
    """
    if select == "random":
        return None
    characters = np.array([len(pair.reasoning.reasoning) for pair in trace_set.pairs], dtype=np.int64)
    if select == "short":
        return Selection(characters, characters, {})
    if select == "disagree":
        differ = np.array([_differ(pair) for pair in trace_set.pairs], dtype=bool)
        return Selection(1 - differ.astype(np.int64), characters, {"answers_differ": differ})
    labels = [pair.ift.verified for pair in trace_set.pairs]
    if not any(label is not None for label in labels):
        raise InputError(
            f"{trace_set.path}: no answer without reasoning has a label, which --select hard needs; run `distill traces "
            "verify` first"
        )
    wrong = np.array([label is False for label in labels], dtype=bool)
    longest = characters.max(initial=0)
    return Selection(-characters - wrong * (longest + 1), characters, {"wrong_without_reasoning": wrong})


def selection_recipe(select: Select) -> dict[str, Any]:
    """What decides the order of the same pairs, for keys; nothing for `random`."""
    if select != "disagree":
        return {} if select == "random" else {"selection_version": VERSION}
    from distill.traces.stats.columns import AGREEMENT_VERSION

    return {"selection_version": VERSION, "agreement_version": list(AGREEMENT_VERSION)}


def _differ(pair: Pair) -> bool:
    from distill.traces.stats.columns import agree

    return not agree(pair.ift.answer, pair.reasoning.answer, pair.problem.answer_format)
