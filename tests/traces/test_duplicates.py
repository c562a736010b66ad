"""Groups of nearly equal questions against every pair compared plainly."""

from itertools import combinations

import numpy as np
import pytest

from distill.traces.hygiene.duplicates import jaccard, near_duplicates, shingles
from distill.traces.hygiene.words import word_hashes


def plain_shingles(text: list[str]) -> set[tuple[str, ...]]:
    return {tuple(text[i : i + 3]) for i in range(len(text) - 2)}


def plain_groups(texts: list[list[str]], threshold: float) -> list[int]:
    """The number of the first of each one's group, by comparing all with all."""
    sets, first = [plain_shingles(text) for text in texts], list(range(len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        union = len(sets[i] | sets[j])
        if union and len(sets[i] & sets[j]) / union >= threshold - 1e-12:
            one, other = sorted((first[i], first[j]))
            first = [one if f == other else f for f in first]
    return first


def edited(rng, text: list[str], edits: int) -> list[str]:
    """Other words at `edits` places, more than three from each other and from the ends."""
    text = list(text)
    for place in rng.choice(np.arange(3, len(text) - 3, 6), edits, replace=False):
        text[place] = f"other{rng.integers(10**9)}"
    return text


def sets_of(texts):
    return [shingles(word_hashes(text)) for text in texts]


def test_similarity_is_that_of_the_sets(rng):
    for _ in range(50):
        one, other = ([f"w{i}" for i in rng.integers(0, 4, rng.integers(0, 30))] for _ in range(2))
        a, b = plain_shingles(one), plain_shingles(other)
        assert jaccard(*sets_of([one, other])) == pytest.approx(len(a & b) / max(len(a | b), 1))


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.85, 1.0])
def test_groups_are_those_of_all_pairs(rng, threshold):
    """Copies with so many edits that their similarity is known: e edits of n words leave (s - 3e) / (s + 3e)."""
    texts = []
    for _ in range(40):
        text = [f"w{i}" for i in rng.integers(0, 10**6, 62)]  # 60 runs of three words
        texts += [text, *(edited(rng, text, int(e)) for e in rng.integers(0, 9, 2))]
    texts = [texts[i] for i in rng.permutation(len(texts))]
    found = near_duplicates(sets_of(texts), threshold)
    # Of pairs at a threshold itself one in thousands may be missed: no number of edits leaves one of these.
    assert found.first.tolist() == plain_groups(texts, threshold)
    assert found.crowded == 0


def test_of_edited_copies_those_within_the_threshold_are_found(rng):
    text = [f"w{i}" for i in rng.integers(0, 10**6, 62)]
    for edits in range(1, 9):
        similarity = (60 - 3 * edits) / (60 + 3 * edits)
        pair = sets_of([text, edited(rng, text, edits)])
        assert jaccard(*pair) == pytest.approx(similarity)
        for threshold in (0.5, 0.65, 0.75, 0.85):
            alike = near_duplicates(pair, threshold).first.tolist() == [0, 0]
            assert alike == (similarity >= threshold)


def test_chains_are_one_group_and_named_by_the_first(rng):
    chain = [[f"w{i}" for i in rng.integers(0, 10**6, 62)]]
    for _ in range(4):
        chain.append(edited(rng, chain[-1], 2))
    alone = [f"v{i}" for i in range(62)]
    assert near_duplicates(sets_of([alone, *chain]), 0.8).first.tolist() == [0, 1, 1, 1, 1, 1]


def test_questions_too_short_for_a_set_are_like_no_other():
    sets = [np.empty(0, np.uint64)] * 5
    assert near_duplicates(sets, 0.8).first.tolist() == [0, 1, 2, 3, 4]
    assert near_duplicates([], 0.8).first.tolist() == []


def test_a_crowd_of_look_alikes_ends_soon_and_is_said(rng):
    """One pattern with other numbers in it: all in the same buckets, none alike enough."""
    frame = [f"w{i}" for i in range(60)]
    texts = [edited(rng, frame, 2) for _ in range(600)]
    ticks = []
    found = near_duplicates(sets_of(texts), 0.8, lambda: ticks.append(1))
    assert found.crowded > 100 and len(ticks) == 2 * len(texts)
    copies = [frame] * 600  # but a crowd that is one group is found whole
    assert set(near_duplicates(sets_of(copies), 0.8).first.tolist()) == {0}
