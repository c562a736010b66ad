"""What an answer costs: plain arithmetic on made-up answers, and intervals that hold the truth as often as they say.

`pytest tests/evaluation/test_serving_cost.py -m long -s` prints the table of the documentation: 2,000 loads a row, so a
share near 95 % is known to +- 1.0 point (95 %).
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import signal, stats

from distill.evaluation.serving.cost import (
    Answers,
    Energy,
    Part,
    Price,
    cost,
    factors,
    fieller,
    per_added_point,
    product,
)
from distill.evaluation.statistics.resampling import of_scores
from distill.flops import hardware
from distill.serve.load.steady import Rate

UNITS = ("seconds", "usd", "joules")


def rate(value, low=None, high=None):
    return Rate(value, low, high, 10.0, round(10 * value))


def answers(rng, n=40, *, questions=None, right=0.6, tokens=None, of=None, energy=None):
    """Made-up answers to n questions, each to one."""
    value = float(rng.uniform(100, 5000))
    return Answers(
        questions=np.array([f"q{i}" for i in range(n)]) if questions is None else questions,
        output_tokens=rng.integers(1, 500, n) if tokens is None else tokens,
        prompt_tokens=rng.integers(5, 50, n),
        correct=(rng.random(n) < right).astype(int),
        unfinished=rng.random(n) < 0.1,
        rate=of or rate(value, 0.9 * value, 1.1 * value),
        energy=energy,
    )


def widths(found):
    return np.log([found["value"] / found["low"], found["high"] / found["value"]])


def test_values_are_plain_arithmetic(rng):
    one = answers(rng, energy=Energy(float(rng.uniform(100, 1e5)), int(rng.integers(1000, 100_000))))
    price = Price(2e-4, fixed_usd=300.0, answers_per_month=1e4, months=6)
    found = cost([one], price)
    tokens, right = one.output_tokens.sum(), (one.correct * ~one.unfinished).sum()
    seconds = tokens / one.rate.value
    joules = tokens * one.energy.joules / one.energy.tokens
    for unit, total in (("seconds", seconds), ("usd", 2e-4 * seconds), ("joules", joules)):
        assert found["per_million_output_tokens"][unit]["value"] == pytest.approx(1e6 * total / tokens)
        assert found["per_answer"][unit]["value"] == pytest.approx(total / 40)
        assert found["per_correct"][unit]["value"] == pytest.approx(total / right)
        assert all(found[per][unit]["low"] < found[per][unit]["value"] < found[per][unit]["high"]
                   for per in ("per_million_output_tokens", "per_answer", "per_correct"))  # fmt: skip
    fixed = 300.0 / 6e4
    amortised, usd = found["amortised"], 2e-4 * seconds + 40 * fixed
    assert amortised["fixed_usd_per_answer"] == pytest.approx(fixed)
    assert amortised["per_answer"]["usd"]["value"] == pytest.approx(usd / 40)
    assert amortised["per_correct"]["usd"]["value"] == pytest.approx(usd / right)
    assert amortised["per_million_output_tokens"]["usd"]["value"] == pytest.approx(1e6 * usd / tokens)
    assert found["unfinished_share"] == one.unfinished.mean() and found["answers"] == found["questions"] == 40


def test_price_is_of_the_devices_and_threads_in_use():
    assert Price.of(hardware("h200-sxm"), devices=4).usd_per_second == pytest.approx(4 * hardware("h200-sxm").usd(1.0))
    one = Price.of(hardware("cpu-2core"), threads=1, fixed_usd=5.0)
    assert one.usd_per_second == pytest.approx(hardware("cpu-2core").price_usd_per_hour / 7200) and one.fixed_usd == 5.0
    assert one.fixed_usd_per_answer is None


def test_what_is_not_known_is_none_and_nothing_else_fails(rng):
    plain = replace(answers(rng), correct=None, rate=rate(1000.0))
    found = cost([plain], Price(1e-4))
    assert found["correct_share"] is found["per_correct"] is found["amortised"] is found["per_answer"]["joules"] is None
    assert found["per_answer"]["seconds"]["value"] == pytest.approx(plain.output_tokens.mean() / 1000)
    assert found["per_answer"]["seconds"]["low"] is found["per_answer"]["seconds"]["high"] is None
    assert found["tokens_per_answer"]["low"] < found["tokens_per_answer"]["high"]
    single = cost([answers(rng, 1, right=1.0)], Price(1e-4, 1.0, 100.0))  # of one question nothing is known
    assert single["tokens_per_answer"]["low"] is single["per_answer"]["usd"]["high"] is None
    both = factors([plain], [answers(rng)], Price(1e-4), Price(1e-4))
    assert both["correct_factor"] is both["joules"] is both["seconds"]["cost_factor_per_correct"] is None
    assert both["seconds"]["cost_factor"]["low"] is None and both["token_factor"]["low"] > 0
    stalled = cost([replace(plain, rate=rate(100.0, 0.0, 210.0))], Price(1e-4))["per_answer"]["seconds"]
    assert 0 < stalled["low"] < stalled["value"] and stalled["high"] is None


def test_without_a_correct_answer_there_is_a_lower_bound(rng):
    """None of n right has 2.5 % probability at the share that the bound is of."""
    n = int(rng.integers(5, 100))
    found = cost([replace(answers(rng, n), correct=np.zeros(n))], Price(1e-4, 10.0, 1e5))
    most = found["correct_share"]["high"]
    assert stats.binom.pmf(0, n, most) == pytest.approx(0.025) and found["correct_share"]["value"] == 0
    for per_correct, per_answer in ((found["per_correct"], found["per_answer"]),
                                    (found["amortised"]["per_correct"], found["amortised"]["per_answer"])):  # fmt: skip
        bound = per_correct["usd"]
        assert bound["value"] is bound["high"] is None
        assert bound["low"] == pytest.approx(per_answer["usd"]["low"] / most)


def test_several_answers_to_a_question_are_one_observation(rng):
    """Answers that repeat each other say nothing more, and their order is of no matter."""
    once = answers(rng)
    order = rng.permutation(160)
    copied = {name: np.tile(getattr(once, name), 4)[order] for name in
              ("questions", "output_tokens", "prompt_tokens", "correct", "unfinished")}  # fmt: skip
    one, four = cost([once], Price(1e-4)), cost([replace(once, **copied)], Price(1e-4))
    assert four["answers"] == 160 and four["questions"] == 40
    for name in ("per_answer", "per_correct"):
        assert list(four[name]["seconds"].values()) == pytest.approx(list(one[name]["seconds"].values()))


def test_the_interval_per_correct_is_the_bootstraps_where_that_is_good(rng):
    """Many questions, half of them right, long answers more often wrong: both draw over the same questions."""
    n = 400
    hard = rng.normal(size=n)
    tokens = np.ceil(np.exp(4 + 0.5 * hard + 0.3 * rng.normal(size=n)))
    one = Answers(np.arange(n), tokens, tokens, (hard + rng.normal(size=n) < 0) * 1, np.zeros(n, bool),
                  rate(1000.0, 1000.0 - 1e-9, 1000.0 + 1e-9))  # fmt: skip
    drawn = rng.integers(n, size=(4000, n))
    logs = np.log(one.output_tokens[drawn].sum(1) / one.correct[drawn].sum(1))
    found = cost([one], Price(1e-4))["per_correct"]["seconds"]
    assert widths(found).sum() == pytest.approx(2 * 1.96 * logs.std(), rel=0.1)


def test_a_product_of_exact_and_of_shared_parts():
    part = Part(2.0, 0.3, 0.4, np.array([0.1, -0.2, 0.1]))
    opposite = Part(3.0, 0.3, 0.4, -np.array([0.1, -0.2, 0.1]))
    assert product([part], [part]).up == product([part], [part]).down == pytest.approx(0.1)  # 0.4 - 0.3, of one number
    assert product([part], [opposite]).up == pytest.approx(0.7)
    alone = product([part, Part(5.0)])
    assert (alone.value, alone.down, alone.up) == pytest.approx((10.0, 0.3, 0.4))
    apart = product([Part(2.0, 0.3, 0.4)], [Part(2.0, 0.3, 0.4)])
    assert apart.down == apart.up == pytest.approx(0.5)


def test_token_factor_times_per_token_factor_is_the_cost_factor(rng):
    """Exactly, and it is the ratio of what each costs."""
    joules = lambda: Energy(float(rng.uniform(100, 1e5)), int(rng.integers(1000, 100_000)))  # noqa: E731
    a, b = ([answers(rng, energy=joules()) for _ in range(int(rng.integers(1, 5)))] for _ in range(2))
    a, b = a[: len(b)], b[: len(a)]
    prices = Price(float(rng.uniform(1e-5, 1e-3))), Price(float(rng.uniform(1e-5, 1e-3)))
    found = factors(a, b, *prices)
    alone = [cost(rounds, price) for rounds, price in zip((a, b), prices, strict=True)]
    for unit in UNITS:
        of = found[unit]
        assert found["token_factor"]["value"] * of["per_token_factor"]["value"] == pytest.approx(
            of["cost_factor"]["value"], rel=1e-12
        )
        for name, per in (("cost_factor", "per_answer"), ("cost_factor_per_correct", "per_correct")):
            ratio = alone[0][per][unit]["value"] / alone[1][per][unit]["value"]
            assert of[name]["value"] == pytest.approx(ratio, rel=1e-12)
            assert of[name]["low"] < of[name]["value"] < of[name]["high"]
    assert found["questions"] == 40 and found["left_out"] == 0


def test_pairs_leave_nothing_of_what_both_share(rng):
    """A student beside itself, in another order; rounds whose machine drifts under both."""
    drift = np.exp(rng.normal(0, 0.5, 4))
    one = answers(rng)
    order = rng.permutation(40)
    turned = replace(one, **{name: getattr(one, name)[order] for name in
                             ("questions", "output_tokens", "prompt_tokens", "correct", "unfinished")})  # fmt: skip
    a = [replace(one, rate=rate(1000 * d, 500 * d, 1500 * d)) for d in drift]
    b = [replace(turned, rate=rate(3000 * d, 1500 * d, 4500 * d)) for d in drift]
    found = factors(a, b, Price(1e-4), Price(1e-4))
    assert list(found["token_factor"].values()) == pytest.approx([1, 1, 1])
    assert list(found["seconds"]["cost_factor"].values()) == pytest.approx([3, 3, 3])
    assert found["correct_factor"]["value"] == 1.0
    assert widths(cost(a, Price(1e-4))["per_million_output_tokens"]["seconds"]).min() > 0.01


def test_only_questions_that_both_answered_are_compared(rng):
    a, b = answers(rng, 50), answers(rng, 40)  # b failed at the last ten
    found = factors([a], [b], Price(1e-4), Price(1e-4))
    assert found["questions"] == 40 and found["left_out"] == 10
    assert found["token_factor"]["value"] == pytest.approx(a.output_tokens[:40].mean() / b.output_tokens.mean())
    strange = replace(b, questions=np.array([f"other {i}" for i in range(40)]))
    with pytest.raises(ValueError, match="no answers"):
        factors([a], [strange], Price(1e-4), Price(1e-4))
    with pytest.raises(ValueError, match="1 rounds of one student and 2"):
        factors([a], [b, b], Price(1e-4), Price(1e-4))


def test_fieller_solves_its_equation(rng):
    """At both ends of the interval, |x - ratio y| is z standard errors of it."""
    x, y = rng.uniform(1, 10, 2)
    v_x, v_y = (rng.uniform(0.01, 0.4) * np.array([x, y])) ** 2
    found = fieller(x, v_x, y, v_y)
    for end in (found["low"], found["high"]):
        assert abs(x - end * y) == pytest.approx(1.959964 * np.sqrt(v_x + end**2 * v_y), rel=1e-6)
    assert found["low"] < found["value"] == pytest.approx(x / y) and found["high"] > found["value"]
    assert fieller(x, v_x, y, y**2)["low"] is None and "cannot be told" in fieller(x, v_x, y, y**2)["reason"]
    assert fieller(x, v_x, -y, v_y)["reason"] == "the metric is not better"
    assert fieller(-x, v_x, y, v_y)["reason"] == "better, and no dearer"


def test_cost_of_an_added_point(rng):
    """A dear and better student; the fixed costs of both are in the $ when they are spread over answers."""
    n = 300
    a, b = answers(rng, n, tokens=rng.integers(200, 400, n)), answers(rng, n, tokens=rng.integers(10, 30, n))
    a, b = replace(a, rate=rate(1000.0, 990.0, 1010.0)), replace(b, rate=rate(1000.0, 990.0, 1010.0))
    score_a, score_b = of_scores(rng.uniform(0.5, 1, n)), of_scores(rng.uniform(0, 0.5, n))
    price = Price(1e-3)
    found = per_added_point([a], [b], score_a, score_b, price, price)
    points = 100 * (score_a.value - score_b.value)
    more = (a.output_tokens.mean() - b.output_tokens.mean()) / 1000
    assert found["seconds"]["value"] == pytest.approx(more / points) and found["joules"] is None
    assert found["seconds"]["low"] < more / points < found["seconds"]["high"]
    monthly = [replace(price, fixed_usd=usd, answers_per_month=1000.0) for usd in (70.0, 20.0)]
    with_fixed = per_added_point([a], [b], score_a, score_b, *monthly)
    assert with_fixed["usd"]["value"] == pytest.approx((1e-3 * more + 50.0 / 1000) / points)


@dataclass(frozen=True)
class Made:
    """Loads of a made-up student: lengths log-normal and cut off, `linked` to being right by a correlation; the rate
    moves from one of 200 steps to the next with the correlation `memory`."""

    questions: int = 64
    right: float = 0.6
    skew: float = 0.7
    linked: float = -0.5
    wobble: float = 0.1
    memory: float = 0.5

    def answers(self, rng, n):
        z = rng.normal(size=n)
        skill = self.linked * z + np.sqrt(1 - self.linked**2) * rng.normal(size=n)
        return np.minimum(np.ceil(np.exp(5 + self.skew * z)), 1500), (skill > stats.norm.ppf(1 - self.right)) * 1

    def rate(self, rng, value):
        """Ten blocks of a series that is correlated with itself, and the interval that `output_rate` takes from them."""
        steps, _ = signal.lfilter(
            [np.sqrt(1 - self.memory**2)], [1, -self.memory], rng.normal(size=200), zi=[self.memory * rng.normal()]
        )
        blocks = value * (1 + self.wobble * steps.reshape(10, 20).mean(axis=1))
        half = stats.t.ppf(0.975, 9) * stats.sem(blocks)
        return rate(float(blocks.mean()), float(blocks.mean() - half), float(blocks.mean() + half))


PRICE = Price(1e-4, fixed_usd=100.0, answers_per_month=5e4, months=2)


def covered(made, rng, loads):
    """Shares of the loads whose intervals hold the truth: per answer, per correct answer, that with fixed costs."""
    tokens, right = made.answers(rng, 2_000_000)
    truth = np.array([tokens.mean() / 1000, tokens.mean() / 1000 / right.mean(), 0])
    truth[2] = (1e-4 * truth[0] + 100 / 1e5) / right.mean()
    held = np.zeros(3)
    for _ in range(loads):
        tokens, right = made.answers(rng, made.questions)
        one = Answers(np.arange(made.questions), tokens, tokens, right, np.zeros(made.questions, bool),
                      made.rate(rng, 1000.0))  # fmt: skip
        found = cost([one], PRICE)
        shown = (
            found["per_answer"]["seconds"],
            found["per_correct"]["seconds"],
            found["amortised"]["per_correct"]["usd"],
        )
        held += [low["low"] <= true and (low["high"] is None or true <= low["high"])
                 for low, true in zip(shown, truth, strict=True)]  # fmt: skip
    return held / loads


def test_intervals_hold_the_truth(rng):
    assert covered(Made(), rng, 300).min() > 0.88


ROWS = {
    "64 questions, 60 % right": Made(),
    "200 questions, 60 % right": Made(questions=200),
    "64 questions, 97 % right": Made(right=0.97),
    "64 questions, 5 % right": Made(right=0.05),
    "200 questions, 2 % right": Made(questions=200, right=0.02),
    "64 questions, 1 % right (half of the loads have none)": Made(right=0.01),
    "64 questions, lengths more skewed": Made(skew=1.0),
    "long answers are right": Made(linked=0.5),
    "200 questions, an unsteady rate counts most": Made(questions=200, skew=0.2, wobble=0.3, memory=0.0),
}


@pytest.mark.long
@pytest.mark.parametrize("name", ROWS)
def test_coverage(name, rng, capsys):
    found = covered(ROWS[name], rng, 2000)
    with capsys.disabled():
        print(f"\n| {name} | " + " | ".join(f"{100 * share:.1f} %" for share in found) + " |")
    assert found.min() > 0.915 and found.max() < 0.995
