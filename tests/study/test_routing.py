"""A router of made-up questions whose right answers are known: what it finds, what it must not see, and what it keeps."""

import json
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom
from threadpoolctl import threadpool_limits

from distill.errors import InputError
from distill.evaluation.statistics.intervals import difference
from distill.evaluation.statistics.resampling import of_scores
from distill.study.routing.cross_fitting import FOLDS, cross_fitted, folds
from distill.study.routing.router import FEWEST, PRICES, Expected, Router, Texts, learn, read_router

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def invented(rng: np.random.Generator, n: int, words: int = 8) -> list[str]:
    """n prompts of random words, no two the same."""
    found: dict[str, None] = {}
    while len(found) < n:
        found[" ".join("".join(rng.choice(SYLLABLES, 2)) for _ in range(words))] = None
    return list(found)


def worded(rng: np.random.Generator, n: int) -> tuple[list[str], np.ndarray]:
    """Prompts half of which hold the word that says that thinking helps; which of them do."""
    hard = rng.permutation(n) < n // 2
    prompts = [p.split() for p in invented(rng, n)]
    for words, one in zip(prompts, hard, strict=True):
        words.insert(rng.integers(len(words) + 1), "derive" if one else "recall")
    return [" ".join(words) for words in prompts], hard


def coin(rng: np.random.Generator, p: np.ndarray) -> np.ndarray:
    return (rng.random(p.shape) < p).astype(float)


def test_a_word_that_decides_is_found_and_beats_both_at_equal_cost(rng):
    n = 400
    prompts, hard = worded(rng, n)
    think, direct = coin(rng, np.where(hard, 0.9, 0.4)), coin(rng, np.where(hard, 0.1, 0.9))
    tokens, short = rng.normal(200, 20, n), rng.normal(10, 2, n)
    chosen = cross_fitted(prompts, think - direct, tokens - short).thinks()
    assert (chosen == hard).mean() > 0.9  # 0.98 to 1 in a hundred trials
    rate = chosen.mean()
    mixture = rate * think.mean() + (1 - rate) * direct.mean()  # thinks as often, about no question in particular
    routed = np.where(chosen, think, direct).mean()
    assert routed > mixture + 0.2 and routed > max(think.mean(), direct.mean()) + 0.1


def test_counts_decide_where_words_do_not(rng):
    """As on `add`: the longer the number, the more thinking helps."""
    n = 300
    digits = rng.integers(2, 13, n)
    prompts = [f"add {''.join(str(d) for d in rng.integers(0, 10, k))}" for k in digits]
    gain = np.where(digits > 7, 1.0, -1.0)
    chosen = cross_fitted(prompts, gain, np.full(n, 20.0)).thinks()
    assert (chosen == (gain > 0)).mean() > 0.85


def test_noise_is_not_found(rng):
    """Where nothing tells questions apart, the router is as good as either arm, and far below who has seen the answers."""
    n = 600
    prompts = invented(rng, n)
    think, direct = coin(rng, np.full(n, 0.6)), coin(rng, np.full(n, 0.6))
    chosen = cross_fitted(prompts, think - direct, np.full(n, 50.0)).thinks()
    routed = np.where(chosen, think, direct).mean()
    chance = np.sqrt(0.24 / n)
    assert abs(routed - 0.6) < 6 * chance  # 0.12; who has seen the answers is right on 0.84


@pytest.mark.long
def test_studies_of_noise_seldom_claim_that_routing_gains(rng):
    """The interval over either arm leaves 0 out on the upper side no more often than it says, 2.5 % of the time."""
    studies, n, claims = 150, 120, np.zeros(2)
    for _ in range(studies):
        prompts, rates = invented(rng, n), rng.uniform(0.2, 0.9, n)  # hard and easy questions, the same for both arms
        arms = think, direct = coin(rng, rates), coin(rng, rates)
        routed = np.where(cross_fitted(prompts, think - direct, np.full(n, 30.0)).thinks(), think, direct)
        claims += [difference([of_scores(routed)], [of_scores(arm)]).interval().low > 0 for arm in arms]
    assert (claims <= binom.ppf(1 - 1e-6, studies, 0.025)).all(), claims


def test_no_question_is_decided_by_its_own_answers(rng):
    """Whatever the answers of one fold are, nothing is decided otherwise in it, though a word that is nowhere else gives
    each question away; those of other folds are."""
    n = 150
    prompts = [f"{p} leak{i}" for i, p in enumerate(invented(rng, n))]
    gain, extra = rng.choice([-1.0, 0.0, 1.0], n), rng.normal(50, 10, n)
    before, fold = cross_fitted(prompts, gain, extra), folds(prompts)
    for one in rng.choice(FOLDS, 2, replace=False):
        mine = fold == one
        other = np.where(mine, 1 - gain, gain), np.where(mine, 1000 * extra, extra)
        after = cross_fitted(prompts, *other)
        np.testing.assert_array_equal(after.gain[mine], before.gain[mine])
        np.testing.assert_array_equal(after.cost[mine], before.cost[mine])
        assert not np.allclose(after.gain[~mine], before.gain[~mine])


def test_the_same_question_in_other_letters_and_spaces_is_in_one_fold(rng):
    n = int(rng.integers(30, 200))
    prompts = invented(rng, n)
    fold = folds(prompts)
    np.testing.assert_array_equal(folds([p.upper().replace(" ", "\n  ") for p in prompts]), fold)
    sizes = np.bincount(fold, minlength=FOLDS)
    assert sizes.max() - sizes.min() <= 1
    order = rng.permutation(n)
    np.testing.assert_array_equal(folds([prompts[i] for i in order]), fold[order])  # of the prompt, not of its place
    # Every question twice, once in capitals, with an answer that is the question's own: twins must not tell.
    gain = rng.choice([-1.0, 1.0], n)
    twice = cross_fitted([*prompts, *(p.upper() for p in prompts)], np.tile(gain, 2), np.full(2 * n, 9.0))
    np.testing.assert_array_equal(twice.gain[:n] > 0, twice.gain[n:] > 0)
    assert (np.sign(twice.gain[:n]) == gain).mean() < 0.5 + 5 * 0.5 / np.sqrt(n) + 0.01


def test_neither_order_nor_threads_matter(rng):
    n = 120
    prompts, hard = worded(rng, n)
    gain, extra = coin(rng, np.where(hard, 0.8, 0.3)) - 0.5, rng.normal(50, 30, n)
    found = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            found.append(cross_fitted(prompts, gain, extra))
    order = rng.permutation(n)
    shuffled = cross_fitted([prompts[i] for i in order], gain[order], extra[order])
    for price in PRICES:
        np.testing.assert_array_equal(found[0].thinks(price), found[1].thinks(price))
        np.testing.assert_array_equal(found[0].thinks(price)[order], shuffled.thinks(price))
    np.testing.assert_array_equal(found[0].gain, found[1].gain)
    np.testing.assert_array_equal(found[0].gain[order], shuffled.gain)


def test_where_both_answer_alike_it_answers_directly(rng):
    n = 80
    prompts = invented(rng, n)
    extra = rng.normal(100, 10, n)
    for gain, thinks in ((0.0, False), (1.0, True), (-1.0, False), (1 / 3, True)):
        chosen = cross_fitted(prompts, np.full(n, gain), extra).thinks()
        np.testing.assert_array_equal(chosen, thinks)


def test_with_few_questions_their_mean_decides(rng):
    prompts = invented(rng, FEWEST - 1)
    gain = rng.choice([-1.0, 0.0, 1.0], len(prompts))
    expected = learn(Texts.of(prompts), gain, np.full(len(prompts), 7.0)).expects(Texts.of(invented(rng, 4)))
    np.testing.assert_allclose(expected.gain, gain.mean(), atol=1e-12)
    np.testing.assert_allclose(expected.cost, 1.0)
    # One question leaves nothing to learn from; of two each decides the other.
    assert not cross_fitted(prompts[:1], np.ones(1), np.ones(1)).thinks().any()
    two = cross_fitted(prompts[:2], np.array([1.0, -1.0]), np.ones(2)).thinks()
    np.testing.assert_array_equal(two, [False, True])


def test_prices_are_points_for_the_extra_tokens_of_an_average_question(rng):
    expected = Expected(np.array([0.03, 0.03, 0.03, 0.12]), np.array([0.0, 1.0, 2.0, 2.0]))
    np.testing.assert_array_equal(expected.thinks(), True)
    np.testing.assert_array_equal(expected.thinks(2), [True, True, False, True])
    np.testing.assert_array_equal(expected.thinks(5), [True, False, False, True])
    # Dearer tokens never make it think more; where thinking is the cheaper way, they weigh nothing.
    n = 200
    prompts, hard = worded(rng, n)
    gain, extra = coin(rng, np.where(hard, 0.7, 0.3)) - 0.4, rng.normal(60, 20, n)
    found = cross_fitted(prompts, gain, extra)
    rates = [found.thinks(price) for price in PRICES]
    assert all((more <= less).all() for less, more in pairwise(rates))
    cheaper = cross_fitted(prompts, gain, -extra)
    np.testing.assert_array_equal(cheaper.thinks(PRICES[-1]), cheaper.thinks())


def test_a_router_in_a_file_decides_as_the_one_that_was_written(rng, tmp_path):
    tasks, held_out = {}, {}
    for name in ("one", "two"):
        prompts, hard = worded(rng, 160)
        gain, extra = coin(rng, np.where(hard, 0.7, 0.3)) - 0.4, rng.normal(60, 20, 160)
        tasks[name] = learn(Texts.of(prompts[:100]), gain[:100], extra[:100])
        held_out[name] = [*prompts[100:], "", "  \n", "日本語 の 問題 ５", "a" * 3000]
    router = Router("tiny-thinks", "tiny-direct", tasks)
    path = tmp_path / "router-tiny.json"
    router.write(path)
    assert path.stat().st_size < 2 * 200_000
    again = read_router(path)
    assert (again.thinks, again.direct) == ("tiny-thinks", "tiny-direct")
    for name, prompts in held_out.items():
        for price in PRICES:
            decisions = tasks[name].expects(Texts.of(prompts)).thinks(price)
            assert [again.decide(p, name, price) for p in prompts] == decisions.tolist()
            assert [router.decide(p, name, price) for p in prompts] == decisions.tolist()
    with pytest.raises(InputError, match=r"unknown task 'on'.*did you mean 'one'"):
        again.decide("x", "on")
    with pytest.raises(InputError, match="unknown task"):
        again.decide("x")
    alone = Router("t", "d", {"two": tasks["two"]})
    assert alone.decide(held_out["two"][0]) == again.decide(held_out["two"][0], "two")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(schema="x"), "expected a router"),
        (lambda v: v.pop("tasks"), "damaged"),
        (lambda v: v.update(tasks=[1]), "damaged"),
        (lambda v: v["tasks"]["a"].update(places=[10**9]), "damaged"),
        (lambda v: v["tasks"]["a"].update(places=[-1], weights=[[1, 1]]), "damaged"),
        (lambda v: v["tasks"]["a"].update(scale=[0] * 5), "damaged"),
        (lambda v: v["tasks"]["a"].update(bias=["x", 1]), "damaged"),
        (lambda v: v["tasks"]["a"].update(extra_tokens=None), "damaged"),
        (lambda v: v["tasks"]["a"]["weights"].pop(), "damaged"),
    ],
)
def test_a_file_that_is_no_router_is_refused_in_one_line(rng, tmp_path, change, said):
    prompts, hard = worded(rng, 40)
    path = tmp_path / "router.json"
    Router("t", "d", {"a": learn(Texts.of(prompts), np.where(hard, 1.0, -1.0), np.full(40, 5.0))}).write(path)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=said) as error:
        read_router(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
