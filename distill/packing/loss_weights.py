"""What the tokens of a document weigh in the loss of a step, which is sum(w l) / sum(w) over all of the step's tokens.

token     every supervised token weighs 1: long documents decide
example   every document weighs 1, its n tokens 1/n each
answer    every document weighs 1: one half for its reasoning with the tags, one half for its answer with the end of
          turn; all of it for the answer where there is no reasoning
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

LossWeight = Literal["token", "example", "answer"]


def loss_weights(supervised: Sequence[int], reasoning: Sequence[int], weigh: LossWeight) -> np.ndarray | None:
    """Weights of the supervised tokens of documents laid end to end, float32[sum(supervised)]; None where all are 1.

    `supervised`, `reasoning`: of each document its supervised tokens, and how many of them, from the first, are reasoning.
    """
    if weigh == "token":
        return None
    n, r = np.asarray(supervised), np.asarray(reasoning)
    if weigh == "example":
        return np.repeat(1.0 / n, n).astype(np.float32)
    tokens = np.stack([r, n - r], axis=1)
    shares = np.where((r > 0)[:, None], 0.5, (0.0, 1.0))
    return np.repeat(shares / np.maximum(tokens, 1), tokens.reshape(-1)).astype(np.float32)


def total_weight(supervised: Sequence[int], weigh: LossWeight) -> int:
    """sum(w) over such documents: what the sum of their weighted losses is divided by."""
    return int(np.sum(supervised)) if weigh == "token" else len(supervised)
