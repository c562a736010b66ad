"""Traces to train on, and documents of random tokens."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def traces(tmp_path_factory):
    """A finished trace set: 240 pairs of `add` and 80 of `max`, other ones in every session."""
    import secrets

    from distill.traces.generate import generate
    from distill.traces.settings import GenerateSettings

    folder = tmp_path_factory.mktemp("traces") / "traces"
    generate(GenerateSettings(tasks={"add": 240, "max": 80}, seed=secrets.randbits(30)), folder)
    return folder


@pytest.fixture
def documents(rng):
    """documents(n): n documents of 2 to 40 random tokens below 96, each with some of them supervised."""
    from distill.packing.pack import Document

    def make(n: int, low: int = 0, high: int = 96) -> list[Document]:
        tokens = [rng.integers(low, high, int(rng.integers(2, 41))).astype(np.int32) for _ in range(n)]
        return [Document(row, int(rng.integers(1, len(row)))) for row in tokens]

    return make
