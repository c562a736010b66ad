"""What an answer costs under a load: machine seconds, joules and $, per token, per answer and per correct answer.

With r output tokens a second in the steady window, m output tokens and p correct ones an answer, and a price u of a
second ($; watts; 1 for seconds):

    per output token   u / r
    per answer         u m / r            a machine's seconds, not what one client waits: it answers many at once
    per correct one    u m / (r p)        all tokens, those of wrong and unfinished answers included, over correct ones
    fixed costs        F / (answers a month x months) more for each answer

Unfinished answers are paid for and wrong. A ratio of two students' costs is a product of ratios, exactly:

    cost factor = (m_a / m_b) (r_b / r_a) (u_a / u_b) = token factor x per-token factor

Intervals are at 95 %. Each of r, m and p has its own: r from the batch means of its window, or from three rounds or
more; m Student's in logarithms, because lengths are skewed; p Wilson's (`statistics.score`), which holds near 0 and 1.
m and p are ratios of sums over questions, all answers to one being one observation (linearized: Cochran 1977, Sampling
Techniques, chapter 6). A product or ratio has its limits from those of its factors (the method of variance estimates
recovery: Zou & Donner 2008, Statistics in Medicine 27, 1693-1702; of products and ratios by logarithms: Newcombe 2016,
doi:10.1177/0962280213502144). With s_i = 1 for what is multiplied by and -1 for what is divided by, and d_i the distance
in logarithms to that limit of factor i which moves the product to the side looked at,

    distance of the product's limit = sqrt(sum over i, j of s_i s_j rho_ij d_i d_j)

rho: between m and p, also of two students, the correlation over questions; r is taken to be independent of both. A
bootstrap over questions would be too narrow where few answers are right, and has no upper limit where some of its draws
have none. Nothing is known of what is too rare to have been seen, such as one answer in a hundred that does not end.

Joules per token are watts / r with the watts as read: the interval is that of r. What the counter itself gets wrong is
not in it (arXiv:2312.02741: some GPUs look at their power during a quarter of the time), but nearly the same for two
students on one machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from distill.evaluation.statistics.intervals import score
from distill.evaluation.statistics.resampling import Sample
from distill.flops import Hardware
from distill.serve.load.steady import Rate

CONFIDENCE = 0.95
ROUNDS_FOR_AN_INTERVAL = 3
MILLION = 1e6


@dataclass(frozen=True)
class Energy:
    """Joules of a window, and the output tokens that came in it."""

    joules: float
    tokens: int


@dataclass(frozen=True)
class Answers:
    """The measured answers of one student at one load. Arrays are [answers], in any order."""

    questions: np.ndarray  # ids
    output_tokens: np.ndarray
    prompt_tokens: np.ndarray
    correct: np.ndarray | None  # 0 or 1: right, or the row exactly right; None where nothing is graded
    unfinished: np.ndarray  # cut off, or without an answer
    rate: Rate
    energy: Energy | None = None


@dataclass(frozen=True)
class Price:
    """What a second of the machine costs in $, more than 0, and what was paid before the first answer."""

    usd_per_second: float
    fixed_usd: float = 0.0  # training, tuning runs, teacher
    answers_per_month: float | None = None
    months: float = 1.0  # of use

    @classmethod
    def of(cls, hardware: Hardware, *, threads: int | None = None, devices: int = 1, **fixed: Any) -> "Price":
        """Of so many devices; of the share of a CPU's cores that `threads` are."""
        return cls(devices * hardware.usd(1.0, threads), **fixed)

    @property
    def fixed_usd_per_answer(self) -> float | None:
        """None where it is not said over how many answers."""
        return self.fixed_usd / (self.answers_per_month * self.months) if self.answers_per_month else None


@dataclass(frozen=True)
class Part:
    """A positive number and how far its limits are, in logarithms; inf where a limit is not known."""

    value: float
    down: float = 0.0
    up: float = 0.0
    over_questions: np.ndarray | None = None  # [questions]; None where it does not vary with them

    def __mul__(self, factor: float) -> "Part":
        return Part(self.value * factor, self.down, self.up, self.over_questions)

    def as_dict(self) -> dict[str, float | None]:
        """{value, low, high}; a limit that is not known is None."""
        low, high = self.value * np.exp(-self.down), self.value * np.exp(self.up)
        known = np.isfinite(self.down), np.isfinite(self.up) and np.isfinite(high)
        return {"value": self.value, "low": float(low) if known[0] else None, "high": float(high) if known[1] else None}


def product(over: Sequence[Part], under: Sequence[Part] = ()) -> Part:
    """The product of parts, over that of others."""
    signs = np.array([1.0] * len(over) + [-1.0] * len(under))
    parts = [*over, *under]
    correlation = np.eye(len(parts))
    for i, a in enumerate(parts):
        for j, b in enumerate(parts[:i]):
            correlation[i, j] = correlation[j, i] = _correlation(a, b)
    distances = []
    for side in (-1, 1):
        d = np.array([part.up if sign == side else part.down for sign, part in zip(signs, parts, strict=True)])
        square = (signs * d) @ correlation @ (signs * d) if np.isfinite(d).all() else np.inf
        distances.append(float(np.sqrt(max(square, 0.0))))
    value = np.prod([p.value for p in over]) / np.prod([p.value for p in under])
    return Part(float(value), *distances)


def _correlation(a: Part, b: Part) -> float:
    if a.over_questions is None or b.over_questions is None:
        return 0.0
    size = np.sqrt((a.over_questions @ a.over_questions) * (b.over_questions @ b.over_questions))
    return float(np.clip(a.over_questions @ b.over_questions / size, -1, 1)) if size else 0.0


class Student:
    """Rounds of one load on one student, put together."""

    def __init__(self, rounds: Sequence[Answers], only: np.ndarray | None = None):
        """`only`: ids of the questions that count. Raises ValueError without answers."""
        every = np.concatenate([r.questions for r in rounds])
        keep = np.ones(len(every), dtype=bool) if only is None else np.isin(every, only)
        if not keep.any():
            raise ValueError("no answers to reckon a cost from")
        column = lambda name: np.concatenate([getattr(r, name) for r in rounds])[keep]  # noqa: E731
        _, self._question = np.unique(every[keep], return_inverse=True)
        self.answers, self.questions = int(keep.sum()), int(self._question.max()) + 1
        self.unfinished_share = float(column("unfinished").mean())
        self.prompt_tokens = float(column("prompt_tokens").mean())
        self.tokens = self._tokens(column("output_tokens").astype(float))
        self.correct: Part | None = None
        if all(r.correct is not None for r in rounds):
            self.correct = self._share(column("correct").astype(float) * ~column("unfinished").astype(bool))
        self.rates = [rate_part(r.rate) for r in rounds]
        # J per token vary as seconds per token do
        self.joules_per_token: list[Part] | None = None
        if all(r.energy is not None and r.energy.joules > 0 and r.energy.tokens > 0 for r in rounds):
            self.joules_per_token = [
                Part(r.energy.joules / r.energy.tokens, rate.up, rate.down)
                for r, rate in zip(rounds, self.rates, strict=True)
            ]

    def _over_questions(self, values: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean of values[answers], and the part of its error that each question has."""
        mean = float(values.mean())
        return mean, np.bincount(self._question, values - mean, self.questions) / len(values)

    def _tokens(self, tokens: np.ndarray) -> Part:
        mean, deviations = self._over_questions(tokens)
        if mean <= 0:
            raise ValueError("no output token in any answer")
        n, half = self.questions, np.inf
        if n > 1:
            error = np.sqrt(deviations @ deviations * n / (n - 1)) / mean
            half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * error)
        return Part(mean, half, half, deviations)

    def _share(self, correct: np.ndarray) -> Part:
        share, deviations = self._over_questions(correct)
        if share == 0:
            # The one-sided limit that 0 of so many questions leave (Clopper & Pearson 1934). It keeps half of the
            # 5 % and what it is combined with the other half (Bonferroni).
            return Part(0.0, np.inf, 1 - ((1 - CONFIDENCE) / 2) ** (1 / self.questions), deviations)
        found = score([Sample(share, self.questions, deviations, None)], confidence=CONFIDENCE)
        return Part(share, float(np.log(share / found.low)), float(np.log(found.high / share)), deviations)

    def seconds_per_token(self) -> Part:
        rate = over_rounds(self.rates)
        return product([], [rate])

    def per_token(self, price: Price | None) -> dict[str, Part]:
        """Of every unit that can be told."""
        found = {"seconds": self.seconds_per_token()}
        if price is not None:
            found["usd"] = found["seconds"] * price.usd_per_second
        if self.joules_per_token:
            found["joules"] = over_rounds(self.joules_per_token)
        return found


def rate_part(rate: Rate) -> Part:
    """A rate of one window; without its interval where the window was too short for one."""
    if rate.low is None or rate.high is None:
        return Part(rate.value, np.inf, np.inf)
    down = np.log(rate.value / rate.low) if rate.low > 0 else np.inf
    return Part(rate.value, float(down), float(np.log(rate.high / rate.value)))


def over_rounds(rounds: Sequence[Part]) -> Part:
    """The geometric mean, so that a ratio of means is the mean of the rounds' ratios.

    Three rounds or more tell how they vary, also by what drifts between them; of fewer it is what varied within each.
    """
    logs = np.log([part.value for part in rounds])
    value, n = float(np.exp(logs.mean())), len(rounds)
    if n >= ROUNDS_FOR_AN_INTERVAL:
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * stats.sem(logs))
        return Part(value, half, half)
    down, up = (float(np.linalg.norm([getattr(part, side) for part in rounds]) / n) for side in ("down", "up"))
    return Part(value, down, up)


def cost(rounds: Sequence[Answers], price: Price | None) -> dict[str, Any]:
    """What one student's answers cost at one load, measured once or in several rounds.

    {"answers", "questions", "unfinished_share", "prompt_tokens_per_answer": mean,
     "tokens_per_answer", "correct_share": {value, low, high},
     "per_million_output_tokens", "per_answer", "per_correct": {"seconds", "usd", "joules": {value, low, high}},
     "amortised": {"fixed_usd", "fixed_usd_per_answer", and the same three with "usd" alone}}

    "usd" is None without a price, "joules" without energy, "correct_share" and "per_correct" where nothing is graded,
    "amortised" without answers a month. With no correct answer the value is None, and "low" what one costs at least.
    Raises ValueError when there is no answer, or none with a token.
    """
    student = Student(rounds)
    per_token = student.per_token(price)
    per_answer = {unit: product([student.tokens, part]) for unit, part in per_token.items()}
    shown = lambda by_unit: {u: by_unit[u].as_dict() if u in by_unit else None for u in ("seconds", "usd", "joules")}  # noqa: E731
    graded = student.correct is not None
    return {
        "answers": student.answers,
        "questions": student.questions,
        "unfinished_share": student.unfinished_share,
        "prompt_tokens_per_answer": student.prompt_tokens,
        "tokens_per_answer": student.tokens.as_dict(),
        "correct_share": _share_dict(student.correct) if graded else None,
        "per_million_output_tokens": shown({unit: part * MILLION for unit, part in per_token.items()}),
        "per_answer": shown(per_answer),
        "per_correct": {
            unit: per_correct(student.tokens, per_token[unit], student.correct) if unit in per_token else None
            for unit in ("seconds", "usd", "joules")
        }
        if graded
        else None,
        "amortised": _amortised(student, per_token["usd"], price) if price is not None else None,
    }


def per_correct(tokens: Part, per_token: Part, correct: Part, fixed: float = 0.0) -> dict[str, float | None]:
    """tokens x per_token + fixed, of each answer, over the share of correct ones."""
    answer = with_fixed(product([tokens, per_token]), fixed)
    if correct.value == 0:
        return {"value": None, "low": answer.value * float(np.exp(-answer.down)) / correct.up, "high": None}
    # The tokens' part of the answer's cost varies with the share of correct ones, what is fixed does not.
    share = 1 - fixed / answer.value
    moving = Part(1.0, tokens.down * share, tokens.up * share, tokens.over_questions)
    rest = Part(answer.value, *(_rest(getattr(answer, s), getattr(moving, s)) for s in ("down", "up")))
    return product([moving, rest], [correct]).as_dict()


def with_fixed(part: Part, fixed: float) -> Part:
    """part + fixed, which is known."""
    value = part.value + fixed
    low, high = part.value * np.exp(-part.down) + fixed, part.value * np.exp(part.up) + fixed
    down = float(np.log(value / low)) if low > 0 and np.isfinite(part.down) else np.inf
    return Part(value, down, float(np.log(high / value)), part.over_questions)


def _rest(whole: float, part: float) -> float:
    return float(np.sqrt(max(whole**2 - part**2, 0.0))) if np.isfinite(whole) else np.inf


def _amortised(student: Student, usd_per_token: Part, price: Price) -> dict[str, Any] | None:
    fixed = price.fixed_usd_per_answer
    if fixed is None:
        return None
    # Per token u / r + F / m: F / m is dear where answers are short.
    per_token = _sum(usd_per_token, product([Part(fixed)], [student.tokens]) if fixed else Part(0.0))
    found = {
        "fixed_usd": price.fixed_usd,
        "fixed_usd_per_answer": fixed,
        "per_million_output_tokens": {"usd": (per_token * MILLION).as_dict()},
        "per_answer": {"usd": with_fixed(product([student.tokens, usd_per_token]), fixed).as_dict()},
        "per_correct": None,
    }
    if student.correct is not None:
        found["per_correct"] = {"usd": per_correct(student.tokens, usd_per_token, student.correct, fixed)}
    return found


def _sum(a: Part, b: Part) -> Part:
    """a + b, independent: the distances of the limits add up as squares (Zou & Donner 2008)."""
    value = a.value + b.value
    low = value - np.hypot(*(p.value * -np.expm1(-p.down) for p in (a, b)))
    high = value + np.hypot(*(p.value * np.expm1(p.up) if p.value else 0.0 for p in (a, b)))
    return Part(value, float(np.log(value / low)) if low > 0 else np.inf, float(np.log(high / value)))


def _share_dict(share: Part) -> dict[str, float | None]:
    return share.as_dict() if share.value else {"value": 0.0, "low": 0.0, "high": share.up}


def factors(a: Sequence[Answers], b: Sequence[Answers], price_a: Price, price_b: Price) -> dict[str, Any]:
    """How much dearer `a` is than `b`: both measured in turns, round i of one beside round i of the other.

    {"questions": that both answered, "left_out": that one of them did not, "token_factor", "correct_factor": a's share
     of correct answers over b's, and for "seconds", "usd" and "joules" (None without energy): {"per_token_factor",
     "cost_factor": token_factor x per_token_factor, "cost_factor_per_correct": that over correct_factor}}

    each {value, low, high}. What concerns correct answers is None where nothing is graded or one has none correct.
    Questions are paired: of what makes both answers long nothing is left in the ratio. So are rounds. Raises ValueError
    when there is no question that both answered, or the rounds are not as many.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} rounds of one student and {len(b)} of the other; they are compared in pairs")
    asked_a, asked_b = (np.unique(np.concatenate([r.questions for r in rounds])) for rounds in (a, b))
    both = np.intersect1d(asked_a, asked_b)
    one, other = Student(a, both), Student(b, both)
    graded = all(s.correct is not None and s.correct.value > 0 for s in (one, other))
    rates = _paired_rounds(other.rates, one.rates)  # seconds per token are 1 / rate
    per_token = {"seconds": rates, "usd": rates * (price_a.usd_per_second / price_b.usd_per_second)}
    if one.joules_per_token and other.joules_per_token:
        per_token["joules"] = _paired_rounds(one.joules_per_token, other.joules_per_token)
    found: dict[str, Any] = {
        "questions": len(both),
        "left_out": len(np.union1d(asked_a, asked_b)) - len(both),
        "token_factor": product([one.tokens], [other.tokens]).as_dict(),
        "correct_factor": product([one.correct], [other.correct]).as_dict() if graded else None,
    }
    for unit in ("seconds", "usd", "joules"):
        part = per_token.get(unit)
        found[unit] = part and {
            "per_token_factor": part.as_dict(),
            "cost_factor": product([one.tokens, part], [other.tokens]).as_dict(),
            "cost_factor_per_correct": product([one.tokens, part, other.correct], [other.tokens, one.correct]).as_dict()
            if graded
            else None,
        }
    return found


def _paired_rounds(over: Sequence[Part], under: Sequence[Part]) -> Part:
    return over_rounds([product([x], [y]) for x, y in zip(over, under, strict=True)])


def per_added_point(
    a: Sequence[Answers],
    b: Sequence[Answers],
    metric_a: Sample,
    metric_b: Sample,
    price_a: Price,
    price_b: Price,
) -> dict[str, dict[str, Any] | None]:
    """What each point (0.01) of a metric more than `b` costs in each answer: the incremental cost-effectiveness ratio.

    For every unit {value, low, high, reason}, "joules" None without energy; "usd" has the fixed costs in it where both
    prices have answers a month. There is no value where the metric is not better or nothing more is paid, and "reason"
    says so. The interval is Fieller's (1954; of this ratio Willan & O'Brien 1996, Health Economics 5, 297-305), which
    has no ends where that of the difference includes 0. The metric's error is taken to be independent of the cost's,
    which is small beside it.
    """
    one, other = Student(a), Student(b)
    fixed = (price_a.fixed_usd_per_answer or 0.0) - (price_b.fixed_usd_per_answer or 0.0)
    if price_a.fixed_usd_per_answer is None or price_b.fixed_usd_per_answer is None:
        fixed = 0.0
    points = 100 * (metric_a.value - metric_b.value)
    deviations = 100 * (metric_a.deviations - metric_b.deviations)
    parts_a, parts_b = one.per_token(price_a), other.per_token(price_b)
    found: dict[str, dict[str, Any] | None] = {}
    for unit in ("seconds", "usd", "joules"):
        if unit not in parts_a or unit not in parts_b:
            found[unit] = None
            continue
        answers = product([one.tokens, parts_a[unit]]), product([other.tokens, parts_b[unit]])
        more = answers[0].value - answers[1].value + (fixed if unit == "usd" else 0.0)
        found[unit] = fieller(more, _variance(*answers), points, float(deviations @ deviations))
    return found


def _variance(*parts: Part) -> float:
    """Of a sum or difference of parts, from the mean of their limits' distances."""
    z = stats.norm.ppf(0.5 + CONFIDENCE / 2)
    return float(sum((p.value * (p.up + p.down) / 2 / z) ** 2 for p in parts))


def fieller(more: float, variance_more: float, points: float, variance_points: float) -> dict[str, Any]:
    """more / points of independent normal estimates, {value, low, high, reason}."""
    nothing = {"value": None, "low": None, "high": None}
    if points <= 0:
        return nothing | {"reason": "the metric is not better"}
    if more <= 0:
        return nothing | {"reason": "better, and no dearer"}
    ratio = more / points
    g = stats.norm.ppf(0.5 + CONFIDENCE / 2) ** 2 * variance_points / points**2
    if g >= 1 or not np.isfinite(variance_more):
        reason = "the metric's gain cannot be told from none" if g >= 1 else "the rate has no interval"
        return nothing | {"value": ratio, "reason": reason}
    z = stats.norm.ppf(0.5 + CONFIDENCE / 2)
    half = z / points * np.sqrt(variance_more * (1 - g) + ratio**2 * variance_points)
    return {
        "value": ratio,
        "low": float((ratio - half) / (1 - g)),
        "high": float((ratio + half) / (1 - g)),
        "reason": None,
    }
