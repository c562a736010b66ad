"""Held-out pairs: which they are, when a student is asked about them, and what its loss is.

Which pairs are held out is a hash of their questions, so it is the same for every arm and every seed, a larger share
holds out those of a smaller one and more, and a question is never on both sides. The hash is salted: the tasks' own
split is a hash of the prompt too, and would otherwise decide this one.

An arm that shows both modes is validated on both modes of every held-out pair. Its loss is what training is expected
to see, R = share of reasoning, S = sum of a mode's token losses times their weights, N = sum of those weights:

    loss = (R S_reasoning + (1 - R) S_ift) / (R N_reasoning + (1 - R) N_ift)

so no draw of who gets reasoning blurs it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.errors import InputError
from distill.flops import ModelShape
from distill.packing.binning import best_fit_decreasing
from distill.packing.loss_weights import LossWeight, total_weight
from distill.packing.pack import Document
from distill.packing.plan import Step
from distill.packing.render import MODES, Rendered
from distill.training.settings import TrainSettings

_SALT = b"distill validation\n"


def is_held_out(prompt: str, share: float) -> bool:
    """Whether a question belongs to the held-out `share`."""
    digest = hashlib.sha256(_SALT + prompt.encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


@dataclass(frozen=True)
class Validation:
    """The held-out documents of the modes an arm shows, in rows as they are run."""

    rows: dict[str, list[list[Document]]]  # mode -> rows
    reasoning_share: float
    pairs: int
    loss_weight: LossWeight

    @classmethod
    def build(
        cls, settings: TrainSettings, rendered: Rendered, pairs: list[int], reasoning_share: float
    ) -> "Validation":
        """`pairs` are the held-out ones among the rendered."""
        rows = {}
        for number, mode in enumerate(MODES):
            if (reasoning_share if mode == "reasoning" else 1.0 - reasoning_share) > 0:
                documents = [rendered.documents[2 * pair + number] for pair in pairs]
                rows[mode] = _rows(documents, settings)
        return cls(rows, reasoning_share, len(pairs), settings.loss_weight)

    def measure(self, sum_of_losses: Callable[[list[list[Document]]], float]) -> dict[str, float]:
        """{"loss": weighted mean over supervised tokens, "loss_<mode>": of each mode}; `sum_of_losses` runs rows and
        weighs their tokens as training does."""
        found, numerator, denominator = {}, 0.0, 0.0
        for mode, rows in self.rows.items():
            total = sum_of_losses(rows)
            count = total_weight([d.supervised for row in rows for d in row], self.loss_weight)
            share = self.reasoning_share if mode == "reasoning" else 1.0 - self.reasoning_share
            numerator, denominator = numerator + share * total, denominator + share * count
            found[f"loss_{mode}"] = total / count
        return {"loss": numerator / denominator, **found}

    def describe(self, shape: ModelShape) -> dict[str, Any]:
        """What one validation reads and costs."""
        documents = [d for rows in self.rows.values() for row in rows for d in row]
        lengths, supervised = np.array([d.length for d in documents]), sum(d.supervised for d in documents)
        return {
            "pairs": self.pairs,
            "tokens": int(lengths.sum()),
            "supervised_tokens": supervised,
            "flops": shape.forward_flops(lengths, supervised),
        }


def _rows(documents: list[Document], settings: TrainSettings) -> list[list[Document]]:
    if not settings.packed:  # by length, so that little is padded
        return [[d] for d in sorted(documents, key=lambda d: d.length)]
    bins = best_fit_decreasing(np.array([d.length for d in documents]), settings.row_tokens)
    return [[documents[i] for i in members] for members in bins]


def split(rendered: Rendered, held_out: set[str], share: float) -> tuple[list[int], list[int]]:
    """(pairs to train on, pairs held out), as indices into the rendered. Raises InputError when either is empty."""
    training = [i for i, name in enumerate(rendered.pair_ids) if name not in held_out]
    held = [i for i, name in enumerate(rendered.pair_ids) if name in held_out]
    if share and rendered.pair_ids and not (training and held):
        which = "held out" if not held else "left to train on"
        raise InputError(f"validation={share:g}: of {rendered.n_pairs} pairs none is {which}; choose another share")
    return training, held


def when(settings: TrainSettings, steps: list[Step], training_pairs: int) -> set[int]:
    """After how many steps the student is validated: every `validation_steps`, or every `validation_epochs` epochs,
    and after the last. An epoch ends with the step that makes it as many examples as there are pairs to train on."""
    if not settings.validation:
        return set()
    if settings.validation_steps:
        return {*range(settings.validation_steps, len(steps), settings.validation_steps), len(steps)}
    examples = np.cumsum([sum(len(row) for row in step.rows) for step in steps])
    stride = settings.validation_epochs * training_pairs
    ends = np.searchsorted(examples, np.arange(stride, int(examples[-1]) + 1, stride))
    return {int(end) + 1 for end in ends} | {len(steps)}
