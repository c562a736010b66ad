r"""A router: whether to think about a question, decided from its text alone.

Of a question x let r(x) in [0, 1] be the share of right answers and t(x) the mean output tokens, of students that think
(T) and of students that answer directly (D). What thinking gains there, and what it costs:

    g(x) = r_T(x) - r_D(x)                d(x) = t_T(x) - t_D(x)

The rule that gives the highest mean of (right - lambda tokens) is to think where E[g | x] > lambda E[d | x]. So these two
expectations are learned, of each task apart, by ridge regression on features phi(x):

    min over b, w of   sum_x (g(x) - b - w.phi(x))^2 + alpha |w|^2                        and likewise for d

Least squares aims at a conditional mean, which is all that the rule needs, and g is a difference of paired answers, so
what makes a question hard in both ways drops out of it; two classifiers would have to learn it twice. alpha is that of
ALPHAS with the least squared error on questions left out one by one, which has a closed form. Where the text says little
it is large, w is small, and the questions of a task are decided alike, by the mean of g. Where g is the same everywhere w
is zero: nothing is left to tell questions apart by. With fewer than FEWEST questions only b is learned.

phi(x): words and pairs of words, and two to four characters within words, each present or not, hashed into BUCKETS signed
places and scaled to length one; and logarithms of the counts of characters, words, digits, numbers and lines, standardised.

The price of tokens is given in points of accuracy, so that it means the same for short and for long answers: a price of c
says that the extra tokens of an average question of the task must gain c points,

    think where  g^(x) > (c / 100) max(d^(x), 0) / mean d

At price 0 thinking needs no price: the router thinks where it expects to gain anything. Where thinking is not dearer on
average the price has nothing to weigh and is left out.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from distill import artifact
from distill.errors import InputError, unknown_name

SCHEMA = "distill-router/1"
PRICES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)  # in points, of the curve in the results
ALPHAS = 10.0 ** np.arange(5.0, -1.5, -0.5)  # the largest first: it is kept where others do no better
BUCKETS = 2**11  # for words, and as many for characters
FEWEST = 20
MOST = 2000  # questions of a task that are learned from: the time grows with their cube
_COUNTS = 5


@dataclass(frozen=True)
class Texts:
    """Questions as a router reads them: the logarithms of their counts, float64[Q, 5], and their hashed words and
    characters, sparse float64[Q, 2 BUCKETS]."""

    prompts: list[str]
    counts: np.ndarray
    hashed: Any

    @classmethod
    def of(cls, prompts: Sequence[str]) -> "Texts":
        from scipy.sparse import hstack

        prompts = list(prompts)
        hashed = hstack([hashing.transform(prompts) for hashing in _hashing()], format="csr")
        return cls(prompts, _log_counts(prompts), hashed)

    def __len__(self) -> int:
        return len(self.prompts)

    def some(self, rows: np.ndarray) -> "Texts":
        return Texts([self.prompts[i] for i in rows], self.counts[rows], self.hashed[rows])

    def features(self, centre: np.ndarray, scale: np.ndarray) -> Any:
        """Sparse float64[Q, 5 + 2 BUCKETS]."""
        from scipy.sparse import csr_matrix, hstack

        return hstack([csr_matrix((self.counts - centre) / scale), self.hashed], format="csr")


@dataclass(frozen=True)
class Expected:
    """What thinking is expected to gain in accuracy, and to cost in extra tokens as a multiple of the task's mean (0 where
    it is not dearer): float64[Q] each."""

    gain: np.ndarray
    cost: np.ndarray

    def thinks(self, price_points: float = 0.0) -> np.ndarray:
        """bool[Q]. What is within rounding of a tie is answered directly, whatever the machine."""
        return np.round(self.gain - price_points / 100 * self.cost, 9) > 0


@dataclass(frozen=True)
class TaskRouter:
    """What was learned of one task. Columns of `bias` and `weights`: gain in accuracy, extra tokens."""

    questions: int
    centre: np.ndarray  # float64[5], of the logarithms of counts
    scale: np.ndarray
    bias: np.ndarray  # float64[2]
    weights: np.ndarray  # float64[5 + 2 BUCKETS, 2]
    extra_tokens: float  # mean over the questions learned from

    def expects(self, texts: Texts) -> Expected:
        found = np.asarray(texts.features(self.centre, self.scale) @ self.weights + self.bias)
        cost = np.maximum(found[:, 1], 0) / self.extra_tokens if self.extra_tokens > 0 else np.zeros(len(found))
        return Expected(found[:, 0], cost)


def learn(texts: Texts, gain: np.ndarray, extra_tokens: np.ndarray) -> TaskRouter:
    """From gain[Q] in accuracy and extra_tokens[Q] of one task's questions, at least one. The same for any order of them
    and any number of threads."""
    from sklearn.linear_model import RidgeCV
    from threadpoolctl import threadpool_limits

    prompts = texts.prompts
    order = np.array(sorted(range(len(texts)), key=lambda i: (_digest(prompts[i]), gain[i], extra_tokens[i]))[:MOST])
    texts, y = texts.some(order), np.column_stack([gain, extra_tokens])[order]
    centre, spread = texts.counts.mean(axis=0), texts.counts.std(axis=0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    bias, weights = y.mean(axis=0), np.zeros((_COUNTS + 2 * BUCKETS, 2))
    if len(texts) >= FEWEST:
        with threadpool_limits(limits=1):
            ridge = RidgeCV(alphas=ALPHAS, alpha_per_target=True).fit(texts.features(centre, scale).toarray(), y)
        varies = np.ptp(y, axis=0) > 0  # what does not is told apart by rounding errors only
        bias, weights = np.where(varies, ridge.intercept_, bias), np.where(varies, ridge.coef_.T, 0.0)
    return TaskRouter(len(texts), centre, scale, bias, _short(weights), float(y[:, 1].mean()))


@dataclass(frozen=True)
class Router:
    """Decides between two cells of a study, on the tasks that it learned from."""

    thinks: str
    direct: str
    tasks: dict[str, TaskRouter]

    def decide(self, prompt: str, task: str | None = None, price_points: float = 0.0) -> bool:
        """Whether to think about a question, as the study asks it and without a chat template. `task` may be left out
        where there is one. Raises InputError for a task that it has not learned."""
        if task is None and len(self.tasks) == 1:
            (task,) = self.tasks
        if task not in self.tasks:
            raise unknown_name("task", str(task), self.tasks)
        return bool(self.tasks[task].expects(Texts.of([prompt])).thinks(price_points)[0])

    def write(self, path: Path) -> None:
        """As JSON: numbers and names. Places without weight are left out."""
        tasks = {}
        for name, one in self.tasks.items():
            (places,) = np.nonzero(one.weights.any(axis=1))
            tasks[name] = {
                "questions": one.questions,
                "centre": one.centre.tolist(),
                "scale": one.scale.tolist(),
                "bias": one.bias.tolist(),
                "extra_tokens": one.extra_tokens,
                "places": places.tolist(),
                "weights": one.weights[places].tolist(),
            }
        values = {"schema": SCHEMA, "thinks": self.thinks, "direct": self.direct, "tasks": tasks}
        artifact.write_atomic(path, json.dumps(values, separators=(",", ":"), allow_nan=False) + "\n")


def read_router(path: Path) -> Router:
    """What `Router.write` wrote. Raises InputError when it is anything else."""
    values = artifact.read_json(path)
    found = values.get("schema") if isinstance(values, dict) else type(values).__name__
    if found != SCHEMA:
        raise InputError(f"{path}: expected a router, an object with schema {SCHEMA!r}, found {found!r}")
    try:
        tasks = {name: _read_task(one) for name, one in values["tasks"].items()}
        return Router(str(values["thinks"]), str(values["direct"]), tasks)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: is damaged as a router ({type(error).__name__}: {error})") from None


def _read_task(values: dict[str, Any]) -> TaskRouter:
    weights = np.zeros((_COUNTS + 2 * BUCKETS, 2))
    places = np.asarray(values["places"], dtype=np.int64)
    if places.size and places.min() < 0:
        raise ValueError("places: expected none below 0")
    weights[places] = np.asarray(values["weights"], dtype=np.float64).reshape(-1, 2)
    shapes = {"centre": _COUNTS, "scale": _COUNTS, "bias": 2}
    given = {name: np.asarray(values[name], dtype=np.float64).reshape(n) for name, n in shapes.items()}
    numbers = np.concatenate([weights.ravel(), *given.values(), [extra := float(values["extra_tokens"])]])
    if not np.isfinite(numbers).all() or not given["scale"].all():
        raise ValueError("expected finite numbers, and no scale of 0")
    return TaskRouter(int(values["questions"]), weights=weights, extra_tokens=extra, **given)


@cache
def _hashing() -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import HashingVectorizer

    common = {"n_features": BUCKETS, "binary": True, "norm": "l2", "lowercase": True}
    words = HashingVectorizer(token_pattern=r"(?u)\w+|[^\w\s]", ngram_range=(1, 2), **common)
    return words, HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), **common)


def _log_counts(prompts: Sequence[str]) -> np.ndarray:
    """float64[Q, 5]: log(1 + count) of characters, words, digits, numbers and lines."""
    digit = re.compile(r"\d")
    counts = [
        (len(p), len(p.split()), len(digit.findall(p)), len(re.findall(r"\d+", p)), len(p.splitlines()))
        for p in prompts
    ]
    return np.log1p(np.array(counts, dtype=np.float64).reshape(-1, _COUNTS))


def _short(values: np.ndarray) -> np.ndarray:
    """To six digits: what is kept in a file decides as what was learned."""
    return np.array([float(f"{value:.6g}") for value in values.ravel()]).reshape(values.shape)


def _digest(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode(errors="replace")).digest()
