"""Intervals of made-up studies hold the truth as often as they say.

A student of an arm answers right with the probability Phi(skill + seed + question + arm on question + seed on
question), every effect normal, so the truth over all seeds and questions is known. The accuracy is drawn anew for
every study, up to a tenth of the way to 0 or 1 from the one stated: a share of 100 questions is a whole number of
points, so that at one exact accuracy even Wilson's interval covers 93.6 to 96.6 %, up and down with its last digit.
`pytest tests/evaluation/test_coverage.py -m long -s` prints the table of the documentation. Every row has 2,000 studies
or more, up to 20,000: as many as it takes to know that the share is between 93.5 and 96.5 %.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats

from distill.evaluation.statistics.intervals import SEEDS_FOR_A_CLAIM, difference, score
from distill.evaluation.statistics.pass_at_k import majority_at_k
from distill.evaluation.statistics.resampling import Sample, of_scores, resample
from distill.tasks.record import Record

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
SHARES = np.array([0.3, 0.25, 0.2, 0.15, 0.1])  # of the gold labels
MACRO_F1 = Record().metrics["macro_f1"]


@dataclass(frozen=True)
class Study:
    """`accuracy` of the treatment, and `gap` to the control, in shares; standard deviations on the probit scale."""

    accuracy: float = 0.7
    gap: float = 0.05
    seeds: int = 3
    questions: int = 300
    samples: int = 1
    difficulty: float = 1.0  # of questions, the same for both arms
    taste: float = 0.3  # of arms on questions
    seed: float = 0.0  # of training seeds
    interaction: float = 0.3  # of seeds on questions
    together: float = 0.0  # correlation of the seed effects of both arms
    macro_f1: bool = False
    majority: bool = False  # of the samples, instead of their mean

    @property
    def total(self) -> float:
        return np.sqrt(1 + self.difficulty**2 + self.taste**2 + self.seed**2 + self.interaction**2)

    def skills(self) -> tuple[float, float]:
        return tuple(float(self.total * stats.norm.ppf(p)) for p in (self.accuracy, self.accuracy - self.gap))

    def value(self, skill: float, seed_effects: np.ndarray) -> np.ndarray:
        """The metric over all questions of students with these seed effects."""
        rest = np.sqrt(self.total**2 - self.seed**2)
        if self.majority:  # over questions, each of which a single answer gets right with this chance
            spread = np.sqrt(rest**2 - 1)
            chance = stats.norm.cdf(skill + self.seed * seed_effects[..., None] + spread * NODES)
            return stats.binom.sf(self.samples // 2, self.samples, chance) @ WEIGHTS / WEIGHTS.sum()
        right = stats.norm.cdf((skill + self.seed * seed_effects) / rest)
        if not self.macro_f1:
            return right
        hits = SHARES * right[..., None]
        said = hits + (1 - SHARES) * (1 - right[..., None]) / (len(SHARES) - 1)
        return (2 * hits / (said + SHARES)).mean(axis=-1)

    def truth(self, skill: float, seed_effects: np.ndarray) -> float:
        """What an interval speaks of: of all seeds, or of these students where they are too few."""
        if self.seeds < SEEDS_FOR_A_CLAIM:
            return float(self.value(skill, seed_effects).mean())
        return float(WEIGHTS @ self.value(skill, NODES) / WEIGHTS.sum())

    def run(self, rng: np.random.Generator) -> list[tuple[list[Sample], float]]:
        """One study: samples and truth of treatment and of control."""
        S, Q = self.seeds, self.questions
        question = rng.normal(0, self.difficulty, Q)
        shared = rng.normal(0, 1, S)
        gold = rng.choice(len(SHARES), Q, p=SHARES)
        arms = []
        for skill in self.skills():
            own = np.sqrt(self.together) * shared + np.sqrt(1 - self.together) * rng.normal(0, 1, S)
            chance = skill + self.seed * own[:, None] + question + rng.normal(0, self.taste, Q)
            chance = chance + rng.normal(0, self.interaction, (S, Q))
            right = rng.normal(size=(self.samples, S, Q)) < chance
            if self.macro_f1:
                wrong = (gold + rng.integers(1, len(SHARES), (S, Q))) % len(SHARES)
                labels = np.where(right[0], gold, wrong)
                students = [resample(MACRO_F1, {"gold_label": gold, "label": label}) for label in labels]
            elif self.majority:
                votes = right.transpose(1, 2, 0).tolist()  # [S, Q, samples]: for the right answer, or the one wrong one
                students = [of_scores(majority_at_k(said, said, self.samples)) for said in votes]
            else:
                students = [of_scores(scores) for scores in right.mean(axis=0)]
            arms.append((students, self.truth(skill, own)))
        return arms


def coverage(study: Study, rng: np.random.Generator, trials: int) -> np.ndarray:
    """Sums over the studies: how often (the score of an arm, a paired difference) is held, and the widths of the intervals."""
    found, off = np.zeros(4), 0.1 * min(study.accuracy, 1 - study.accuracy)
    for _ in range(trials):
        near = replace(study, accuracy=study.accuracy + rng.uniform(-off, off))
        (treatment, first), (control, second) = near.run(rng)
        one, both = score(treatment), difference(treatment, control).interval()
        held = one.low <= first <= one.high, both.low <= first - second <= both.high
        found += [*held, one.high - one.low, both.high - both.low]
    return found


CELLS = {
    **{
        f"{seeds} seeds, of {spread:g}, accuracy {accuracy:g}": Study(accuracy, 0.03, seeds, seed=spread)
        for seeds in (3, 5, 10)
        for spread in (0, 0.05, 0.15, 0.5)
        for accuracy in (0.5, 0.95)
    },
    "3 seeds, of 0.8, accuracy 0.95": Study(0.95, 0.03, seed=0.8),
    "1 seed": Study(seeds=1),
    "1 seed, 100 questions": Study(seeds=1, questions=100),
    "1 seed, accuracy 0.95, 100 questions": Study(0.95, 0.03, 1, questions=100),
    "1 seed, accuracy 0.985, 1,000 questions": Study(0.985, 0.005, 1, questions=1000),
    "2 seeds": Study(seeds=2, seed=0.3),
    "3 seeds, 100 questions": Study(questions=100, seed=0.1),
    "3 seeds, 2,000 questions": Study(questions=2000, seed=0.1),
    "3 seeds, accuracy 0.05, gap 0.02": Study(0.05, 0.02, seed=0.1),
    "3 seeds, accuracy 0.985, 1,000 questions": Study(0.985, 0.005, questions=1000, seed=0.1),
    "8 samples, 1 seed": Study(seeds=1, samples=8),
    "8 samples, 3 seeds": Study(samples=8, seed=0.1),
    "majority of 5, 1 seed": Study(seeds=1, samples=5, majority=True),
    "seeds pull both arms alike": Study(seed=0.5, together=0.9),
    "strong seed-by-question interaction": Study(interaction=1.0),
    "questions all alike, 3 seeds": Study(difficulty=0, taste=0, interaction=0),
    "questions all alike, 10 seeds": Study(difficulty=0, taste=0, interaction=0, seeds=10),
    "questions right or wrong for everybody": Study(difficulty=3, taste=0.1),
    "Macro F1, 1 seed": Study(seeds=1, macro_f1=True),
    "Macro F1, 3 seeds": Study(seed=0.15, macro_f1=True),
    "Macro F1, 3 seeds, accuracy 0.95": Study(0.95, 0.03, seed=0.1, macro_f1=True),
}
# The exceptions: with one or two wrong answers a student there is too little to know better, and intervals hold the
# truth too often. Not too rarely: the least is the same.
CONSERVATIVE = {
    f"{seeds} seed{'s' * (seeds > 1)}, accuracy 0.985, 100 questions": Study(
        0.985, 0.005, seeds, questions=100, seed=0.1
    )
    for seeds in (1, 3, 10)
}


@pytest.mark.parametrize("study", [Study(seeds=1), Study(seed=0.5), Study(0.95, 0.03, 5, seed=0.15)])
def test_intervals_hold_the_truth(rng, study):
    """Of 150 intervals at 94.1 %, the least of these methods, fewer than 125 hold less than once in a million runs.
    Resampling three seeds of this spread as if they were many holds about 117."""
    found = coverage(study, rng, 150)[:2]
    assert (found >= 125).all(), found


def describe(name: str, found: np.ndarray, studies: int) -> str:
    return " | ".join([f"| {name}", *(f"{100 * share:.1f}" for share in found), f"{studies:,} |"])


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*CELLS, *CONSERVATIVE])
def test_coverage_is_what_is_stated(rng, name):
    """95 % +- 1.5. Studies are added until the share is inside by two standard errors, or outside by four; one that
    is at the edge after all of them may be three outside by chance, 0.5 points."""
    study, sums, studies = (CELLS | CONSERVATIVE)[name], np.zeros(4), 0
    least, most = (0.935, 0.965) if name in CELLS else (0.935, np.inf)
    batch = 500 if study.macro_f1 else 2000
    for _ in range(10):
        sums, studies = sums + coverage(study, rng, batch), studies + batch
        held, error = sums[:2] / studies, np.sqrt(0.05 * 0.95 / studies)
        inside = np.minimum(held - least, most - held) / error
        if inside.min() >= 2 or inside.min() < -4:
            break
    print(describe(name, sums / studies, studies))
    assert inside.min() >= -3, held
