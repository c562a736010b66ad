"""How long an arm is trained: whole epochs, or until it has spent as much as something else.

Arms on the same pairs differ in what they cost: answers with reasoning are longer. Matched on samples, every arm shows
the same pairs equally often. Matched on steps, tokens or FLOPs, an arm repeats its pairs, in new orders, until the
first step that reaches what the arm `reasoning` spends on them in the same epochs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Match = Literal["samples", "steps", "tokens", "flops"]

# Sums of FLOPs in another order differ in their last bits, which must not cost a step.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Budget:
    """Training ends with the first step that brings what was spent to `amount`."""

    kind: Literal["steps", "tokens", "flops"]
    amount: float
    of_documents: np.ndarray | None = None  # what showing each reference spends; None: a step spends 1

    def spent(self, rows: Iterable[list[int]]) -> float:
        """By one step of these rows."""
        if self.of_documents is None:
            return 1
        return sum(self.of_documents[row].sum() for row in rows)
