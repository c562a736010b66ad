"""Two cells and a rule that says, question by question, which of them answers: a router, and an oracle above it.

Both are scored as cells are, from answers that are there: nothing is generated again. Output tokens and FLOPs are those of
the answers chosen; the router's own arithmetic, a sum over the words of a question, is not counted. Seconds and price
are those of both cells, mixed by how often either answers.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import asdict
from typing import Any

import numpy as np

from distill.evaluation.answers import Answer
from distill.evaluation.questions import Asked
from distill.evaluation.statistics.intervals import SEEDS_FOR_A_CLAIM, Interval, difference, score
from distill.evaluation.statistics.resampling import Sample, batches, resample
from distill.study.found import Found, FoundCell, asked_and_graded
from distill.study.outcomes import MemberOutcome
from distill.study.routing.cross_fitting import cross_fitted
from distill.study.routing.router import PRICES, Expected, Router, Texts, learn
from distill.study.rows import common_seeds
from distill.tasks.task import Columns

DRAWS = 1000


class Choice(Found):
    """The answers of `thinks` to some questions, and of `direct` to the others. `size` is theirs."""

    kind: str

    def __init__(self, name: str, thinks: FoundCell, direct: FoundCell) -> None:
        super().__init__()
        self.id, self.thinks, self.direct = name, thinks, direct
        self.size, self.seeds = thinks.cell.size.name, common_seeds(thinks.seeds, direct.seeds)

    @abstractmethod
    def chosen(self, a: Asked, seed: int) -> np.ndarray:
        """bool[Q]: whether `thinks` answers, in the order of `a.problems`."""

    def rate(self, a: Asked, seed: int) -> float:
        """The share of questions that `thinks` answers."""
        return float(self.chosen(a, seed).mean())

    def metrics(self, a: Asked) -> list[str]:
        return [name for name in self.thinks.metrics(a) if name in self.direct.metrics(a)]

    def _resample(self, a: Asked, metric: str, seed: int | None) -> Sample:
        (columns,) = self.columns(a, metric, [seed])
        rows = len(next(iter(columns.values())))
        return resample(a.task.metrics[metric], columns, samples=rows // len(a.problems))

    def columns(self, a: Asked, metric: str, seeds: list[int]) -> list[Columns]:
        tables = zip(self.thinks.columns(a, metric, seeds), self.direct.columns(a, metric, seeds), strict=True)
        return [self._merged(a, seed, *table) for seed, table in zip(seeds, tables, strict=True)]

    def _merged(self, a: Asked, seed: int, thought: Columns, direct: Columns) -> Columns:
        chosen = self.chosen(a, seed)
        return {
            name: np.where(np.repeat(chosen, len(thought[name]) // len(chosen)), thought[name], direct[name])
            for name in thought
        }

    def per_question(self, a: Asked, name: str, seed: int | None) -> np.ndarray:
        sides = (cell.per_question(a, name, seed) for cell in (self.thinks, self.direct))
        return np.where(self.chosen(a, seed), *sides)

    def mean(self, a: Asked, name: str, seeds: Iterable[int] | None = None) -> float | None:
        seeds = self.seeds if seeds is None else list(seeds)
        if name == "training_tokens":  # of one student that is asked in two ways, or of two
            same = self.thinks.cell.arm.trained == self.direct.cell.arm.trained
            return sum(cell.mean(a, name, seeds) for cell in ([self.thinks] if same else [self.thinks, self.direct]))
        return float(np.mean([self.per_question(a, name, seed).mean() for seed in seeds]))

    def describe(self, asked: list[Asked], confidence: float) -> dict[str, Any]:
        """Its entry in the results."""
        members = self.thinks.members
        return {
            "id": self.id,
            "kind": self.kind,
            "size": self.size,
            "arm": self.thinks.shown,
            "thinks": self.thinks.id,
            "direct": self.direct.id,
            "seeds": self.seeds,
            "parameters": members[self.seeds[0]].student.summary["parameters"],
            "tasks": {a.task.name: self._task(a, confidence) for a in asked},
        }

    def _task(self, a: Asked, confidence: float) -> dict[str, Any]:
        name = a.task.name
        return asked_and_graded(
            a,
            self.scored(a, confidence),
            [_summary(self._answers(a, seed)) for seed in self.seeds],
            flops=self.mean(a, "flops"),
            seconds=self._mixed(a, lambda cell, m: m.seconds_per_answer(name)),
            usd=self._mixed(a, lambda cell, m: m.usd_per_answer(name, cell.device)),
        ) | {"routing": self.routing(a, confidence)}

    def routing(self, a: Asked, confidence: float) -> dict[str, Any]:
        return {
            "thinks_rate": float(np.mean([self.rate(a, seed) for seed in self.seeds])),
            "over_always_points": self._over(a, self.thinks, confidence),
            "over_never_points": self._over(a, self.direct, confidence),
        }

    def _over(self, a: Asked, cell: FoundCell, confidence: float) -> dict[str, float]:
        mine, theirs = (found.samples(a, "accuracy", self.seeds) for found in (self, cell))
        interval = difference(mine, theirs).interval(confidence)
        return {name: 100 * value for name, value in asdict(interval).items()}

    def _answers(self, a: Asked, seed: int) -> list[Answer]:
        sides = [cell.members[seed].graded.answers[a.task.name] for cell in (self.thinks, self.direct)]
        chosen = self.chosen(a, seed)
        each = np.repeat(chosen, len(sides[0]) // len(chosen))
        return [thought if think else direct for think, thought, direct in zip(each, *sides, strict=True)]

    def _mixed(self, a: Asked, value: Callable[[FoundCell, MemberOutcome], float | None]) -> float | None:
        found = []
        for seed in self.seeds:
            each = [value(cell, cell.members[seed]) for cell in (self.thinks, self.direct)]
            if None in each:
                return None
            rate = self.rate(a, seed)
            found.append(rate * each[0] + (1 - rate) * each[1])
        return float(np.mean(found))


class Oracle(Choice):
    """The cheapest right answer where there is one, else the direct one: no rule that chooses between these answers is right
    more often. It looks at the grades of each student, so nobody can use it."""

    kind = "oracle"

    def metrics(self, a: Asked) -> list[str]:
        return ["accuracy"]

    def chosen(self, a: Asked, seed: int) -> np.ndarray:
        right = [cell.per_question(a, "accuracy", seed) for cell in (self.thinks, self.direct)]
        tokens = [cell.per_question(a, "tokens", seed) for cell in (self.thinks, self.direct)]
        return (right[0] > right[1]) | ((right[0] == right[1]) & (right[0] > 0) & (tokens[0] < tokens[1]))


class Routed(Choice):
    """What routers choose for questions that they have not seen, the same for every seed. `price`: of tokens, in points."""

    kind = "router"

    def __init__(self, name: str, thinks: FoundCell, direct: FoundCell) -> None:
        super().__init__(name, thinks, direct)
        self.price, self.oracle = PRICES[0], Oracle(f"{self.size}-oracle", thinks, direct)
        self._expected: dict[str, Expected] = {}

    def at(self, price_points: float) -> "Routed":
        """The same expectations, decided at another price."""
        other = copy(self)
        other.price, other._resampled = price_points, {}
        return other

    def chosen(self, a: Asked, seed: int | None = None) -> np.ndarray:
        if a.task.name not in self._expected:
            self._expected[a.task.name] = cross_fitted(_prompts(a), *self._differences(a))
        return self._expected[a.task.name].thinks(self.price)

    def router(self, asked: list[Asked]) -> Router:
        """One fitted on all questions, to decide on new ones."""
        tasks = {a.task.name: learn(Texts.of(_prompts(a)), *self._differences(a)) for a in asked}
        return Router(self.thinks.id, self.direct.id, tasks)

    def _differences(self, a: Asked) -> list[np.ndarray]:
        """What thinking gains in accuracy and costs in tokens, float64[Q] each, means over seeds."""

        def mean(cell: FoundCell, name: str) -> np.ndarray:
            return np.mean([cell.per_question(a, name, seed) for seed in self.seeds], axis=0)

        return [mean(self.thinks, name) - mean(self.direct, name) for name in ("accuracy", "tokens")]

    def routing(self, a: Asked, confidence: float) -> dict[str, Any]:
        sides = (self, self.oracle, self.thinks, self.direct)
        scores = np.array([[side.per_question(a, "accuracy", seed) for side in sides] for seed in self.seeds])
        share = share_of_oracle_gain(scores, confidence=confidence)
        return super().routing(a, confidence) | {
            "share_of_oracle_gain": None if share is None else asdict(share),
            "curve": [self.at(price).point(a, confidence) for price in PRICES],
        }

    def point(self, a: Asked, confidence: float) -> dict[str, Any]:
        return {
            "price_points": self.price,
            "thinks_rate": self.rate(a, self.seeds[0]),
            "accuracy": asdict(score(self.samples(a, "accuracy", self.seeds), confidence=confidence)),
            "tokens_per_answer": self.mean(a, "tokens"),
            "flops_per_answer": self.mean(a, "flops"),
        }


def share_of_oracle_gain(scores: np.ndarray, *, confidence: float) -> Interval | None:
    """Of scores[S, 4, Q] of a router, the oracle, always and never thinking: what the router gains over the better of the
    last two, as a share of what the oracle does. None where that gains nothing.

    The interval is the middle of draws of questions, and of seeds where there are enough to speak of more than these.
    """
    seeds, _, questions = scores.shape
    rng = np.random.default_rng(questions)
    means = [scores.mean(axis=(0, 2))[None]]
    for some in batches(DRAWS, 4 * questions):
        n = some.stop - some.start
        asked = rng.multinomial(questions, np.full(questions, 1 / questions), size=n) / questions
        drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=n) / seeds
        each = drawn if seeds >= SEEDS_FOR_A_CLAIM else np.full((n, seeds), 1 / seeds)
        means.append(np.einsum("nq,nkq->nk", asked, np.einsum("ns,skq->nkq", each, scores)))
    router, oracle, always, never = np.concatenate(means).T
    better = np.maximum(always, never)
    gains = oracle - better > 1e-9
    if not gains[0]:
        return None
    shares = (router - better)[gains] / (oracle - better)[gains]
    low, high = np.quantile(shares, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(shares[0]), float(min(low, shares[0])), float(max(high, shares[0])))


def _prompts(a: Asked) -> list[str]:
    return [problem.prompt for problem in a.problems]


def _summary(answers: list[Answer]) -> dict[str, Any]:
    """What an evaluation's summary says of these answers."""
    mean = lambda values: float(np.mean(list(values)))  # noqa: E731
    finished = [x.correct for x in answers if x.finished]
    return {
        "unfinished_rate": mean(not x.finished for x in answers),
        "think_rate": mean(x.thought for x in answers),
        "accuracy_finished": mean(finished) if finished else None,
        "tokens_per_answer": {
            "prompt": mean(x.prompt_tokens for x in answers),
            "thinking": mean(x.thinking_tokens for x in answers),
            "answer": mean(x.answer_tokens for x in answers),
            "total": mean(x.thinking_tokens + x.answer_tokens for x in answers),
        },
    }
