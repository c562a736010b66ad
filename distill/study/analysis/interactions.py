"""Whether a gain is another one in one student than in the other: a difference of differences.

Treatment and control of one student are paired by seed and by question, both students by question; seeds of the two
students have nothing to do with each other. With fewer than three seeds in either, it is these trained students that
are spoken of, and the test is exact: were a gain the same in both, their two differences on a question could be swapped.
"""

from dataclasses import dataclass

import numpy as np

from distill.evaluation.statistics.intervals import SEEDS_FOR_A_CLAIM
from distill.evaluation.statistics.resampling import Sample
from distill.evaluation.statistics.significance import sign_flip_test
from distill.study.analysis.combination import Combination, Term, combine, paired


@dataclass(frozen=True)
class Gain:
    """Treatment and control of one student, one sample a seed."""

    treatment: list[Sample]
    control: list[Sample]


def interaction(first: Gain, second: Gain) -> Combination:
    """The gain in the first student less that in the second, as a share."""
    differences = [paired(gain.treatment, gain.control) for gain in (first, second)]
    found = combine([Term(1.0, differences[0]), Term(-1.0, differences[1])])
    if min(map(len, differences)) >= SEEDS_FOR_A_CLAIM:
        return found
    if any(sample.scores is None for samples in differences for sample in samples):
        return found
    one, other = (np.mean([sample.scores for sample in samples], axis=0) for samples in differences)
    return Combination(found.value, found.centre, found.spread, found.reach, sign_flip_test(one - other))


def sentence(entry: dict, confidence: float) -> str:
    """One interaction as a person would say it: it is there where Holm's correction leaves it significant."""
    d, (first, second) = entry["difference_points"], entry["students"]
    who = f"{entry['treatment']} against {entry['control']}"
    narrow = ", in these trained students" if entry["n_seeds"] < SEEDS_FOR_A_CLAIM else ""
    if entry["p_holm"] > 1 - confidence:
        said = f"this study cannot tell whether {who} gains more or less in {first} than in {second}{narrow}"
    else:
        more = "more" if d["value"] > 0 else "less"
        said = f"{who} gains {more} in {first} than in {second}{narrow}"
    seeds = entry["n_seeds"]
    return (
        f"On {entry['task']}, {said}: {d['value']:+.1f} points of {entry['metric']} ({confidence:.0%} interval "
        f"{d['low']:+.1f} to {d['high']:+.1f}; {entry['n_questions']} questions, {seeds} training "
        f"seed{'s' if seeds > 1 else ''})."
    )
