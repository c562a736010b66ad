"""The frontier and what costs as much: against plain loops, by hand, and by simulation with known truth.

`pytest tests/study/test_analysis_frontier.py -m long -s` prints the table of the documentation.
"""

import numpy as np
import pytest
from scipy import stats

from distill.study.analysis.draws import DRAWS, SPLITS, SeedDraws, over_tasks, resample, split
from distill.study.analysis.equal_cost import bracket, equal_cost, read
from distill.study.analysis.frontier import best, cross_fitted, frontier, on_frontier
from distill.study.analysis.points import Label, Point, summary


def points_of(rng, accuracies, costs, *, seeds=3, questions=300, seed_spread=0.0, alike=0.5, kinds=None, reasoned=()):
    """Cells that answer right with Phi(skill + seed + question + cell on question), and what they are worth: over all
    seeds, or with fewer than three these students. Costs are log-normal over questions."""
    total = np.sqrt(1 + 1 + alike**2 + seed_spread**2)
    hard = rng.normal(0, 1, questions)
    found, worth = [], []
    for i, (accuracy, cost) in enumerate(zip(accuracies, costs, strict=True)):
        skill = total * stats.norm.ppf(accuracy)
        own = rng.normal(0, seed_spread, seeds)
        z = skill + own[:, None] + hard + rng.normal(0, alike, questions)
        right = (rng.normal(size=(seeds, questions)) < z).astype(float)
        spent = cost * np.exp(rng.normal(-0.045, 0.3, (seeds, questions)))
        kind = kinds[i] if kinds else "cell"
        label = Label(f"p{i}", kind, f"size{i}", "ift", reasoned=i in reasoned)
        found.append(Point(label, tuple(range(seeds)), right, {"tokens": spent}))
        of_seeds = stats.norm.cdf((skill + own) / np.sqrt(total**2 - seed_spread**2)).mean()
        worth.append(accuracy if seeds >= 3 else of_seeds)
    return found, np.array(worth)


def found_frontier(points, draws=DRAWS):
    return frontier(
        [summary([p]) for p in points],
        "tokens",
        resample(points, ["tokens"], SeedDraws(points, draws)),
        split(points, ["tokens"], SeedDraws(points, SPLITS)),
        confidence=0.95,
    )


# Against plain loops.


def dominated(i, cost, accuracy):
    as_good = [j for j in range(len(cost)) if cost[j] <= cost[i] and accuracy[j] >= accuracy[i]]
    return any(cost[j] < cost[i] or accuracy[j] > accuracy[i] for j in as_good)


def test_the_frontier_is_what_nothing_dominates(rng):
    """With few different numbers, so that all ties occur."""
    for _ in range(200):
        P = rng.integers(1, 8)
        cost, accuracy = rng.integers(1, 5, (4, P)).astype(float), rng.integers(0, 5, (4, P)) / 4
        found = on_frontier(cost, accuracy)
        for b in range(4):
            assert list(found[b]) == [not dominated(i, cost[b], accuracy[b]) for i in range(P)]


def test_the_best_for_at_most_a_cost_and_its_worth_on_the_other_half(rng):
    for _ in range(100):
        P, B = rng.integers(1, 7), 3
        cost = rng.integers(1, 5, P).astype(float)
        points = [Point(Label(f"p{i}", "cell"), None, rng.random((1, 9)), {}) for i in range(P)]
        draws = split(points, [], SeedDraws(points, B))
        draws.halves[:] = np.round(3 * draws.halves) / 3  # with ties
        draws.shifts[:] = rng.random(draws.shifts.shape)
        at = np.unique(cost)
        chosen, worth = best(cost, draws.halves, at), cross_fitted(cost, draws, at)
        for b in range(B):
            for c, limit in enumerate(at):
                picks = []
                for half in draws.halves[b]:
                    able = [i for i in range(P) if cost[i] <= limit]
                    picks.append(min(able, key=lambda i: (-half[i], cost[i], i)))
                assert list(chosen[b, :, c]) == picks
                by_hand = (draws.halves[b, 1, picks[0]] + draws.halves[b, 0, picks[1]]) / 2
                by_hand += (draws.shifts[b, picks[0]] + draws.shifts[b, picks[1]]) / 2
                assert worth[b, c] == pytest.approx(by_hand)


def test_halves_are_halves(rng):
    """Of questions and, of three seeds or more, of seeds: together they are the whole."""
    S, Q = int(rng.integers(3, 7)), 2 * int(rng.integers(4, 20))
    right = rng.random((S, Q))
    many, few = (Point(Label(n, "cell", n), tuple(range(len(x))), x, {}) for n, x in (("m", right), ("f", right[:2])))
    draws = split([many, few], [], SeedDraws([many, few], 200))
    assert draws.accuracy == pytest.approx(np.tile([right.mean(), right[:2].mean()], (200, 1)))
    assert draws.halves[:, :, 1].mean(axis=1) == pytest.approx(right[:2].mean())  # the same two students in both
    assert draws.halves[:, 0, 0].std() > draws.halves[:, 0, 1].std() / 2 > 0
    seeds = SeedDraws([many], 50).halves(many)
    assert (seeds.sum(axis=1) == 1).all() and (np.abs(seeds.sum(axis=2) - S / 2) <= 0.5).all()


def test_draws_vary_as_much_as_the_intervals_of_the_same_means(rng):
    """Their variance is that of seeds and questions, with Student's t for the seeds: with eleven seeds 10/8 of it."""
    (point,), _ = points_of(rng, [0.6], [10], seeds=11, questions=200, seed_spread=0.3)
    draws = resample([point], ["tokens"], SeedDraws([point], 4000))
    right = point.accuracy
    seeds = right.mean(axis=1).var(ddof=1) / 11
    own = (right.var(axis=1).mean() - np.cov(right, bias=True).mean()) / 10 / 200  # of each student on questions
    questions = right.mean(axis=0).var() / 200
    expected = questions + 10 / 8 * max(seeds - own, 0)
    assert draws.accuracy.var() == pytest.approx(expected, rel=0.25)
    assert draws.accuracy.mean() == pytest.approx(right.mean(), abs=5 * np.sqrt(expected / 4000))
    assert draws.costs["tokens"].mean() == pytest.approx(point.costs["tokens"].mean(), rel=0.02)


# By hand.


def test_a_cost_between_two_of_a_frontier():
    cost, right = np.array([10.0, 40.0, 20.0, 160.0]), np.array([0.4, 0.6, 0.3, 0.5])
    at = lambda x: bracket(cost, right, np.array(float(x)))  # noqa: E731
    half = at(20)  # in the middle of 10 and 40 in doublings; the point at 20 is under the frontier
    assert (half.below, half.above, half.share) == (0, 1, pytest.approx(0.5))
    assert read(half, right) == pytest.approx(0.5)
    exact = at(40)
    assert exact.beyond and read(exact, right) == 0.6
    assert at(1000).beyond and read(at(1000), right) == 0.6  # not the dearest, the best
    assert at(5).cheaper and not at(10).cheaper


def certain(label, value, cost, questions=40):
    right = np.zeros((1, questions))
    right[0, : round(value * questions)] = 1
    return Point(label, (0,), right, {"tokens": np.full((1, questions), float(cost))})


def compare(points, treatment, controls, fixed=None):
    parts = SeedDraws(points, 50)
    return equal_cost(
        [summary([p]) for p in points],
        "tokens" if fixed is None else "training_flops",
        fixed,
        treatment,
        controls,
        resample(points, ["tokens"], parts),
        split(points, ["tokens"], parts),
        confidence=0.95,
    )


def test_equal_cost_by_hand():
    cells = [certain(Label(n, "cell", n), *x) for n, *x in [("a", 0.4, 10), ("b", 0.8, 40), ("r", 0.9, 20)]]
    found = compare(cells, 2, [0, 1])
    assert found["between"] == ["a", "b"] and not found["beyond"] and found["at"] == 20
    assert found["control_accuracy"] == pytest.approx(0.6, abs=0.02)
    d = found["difference_points"]
    assert d["value"] == pytest.approx(30, abs=2) and -100 <= d["low"] < d["value"] < d["high"] <= 100
    trained = compare(cells, 2, [0, 1], np.array([1e9, 4e9, 8e9]))
    assert (
        trained["beyond"] and trained["between"] == ["b"] and trained["difference_points"]["value"] == pytest.approx(10)
    )
    exact = compare([*cells, certain(Label("x", "cell", "x"), 0.7, 10)], 3, [0, 1])
    assert exact["between"] == ["a"] and exact["difference_points"]["value"] == pytest.approx(30)
    cheap = compare(cells, 0, [1, 2])
    assert cheap["difference_points"] is None and cheap["reason"] and cheap["between"] == []


def test_ties_the_cheaper_and_the_first_of_equals():
    cells = [("dear", 0.6, 30), ("cheap", 0.6, 20), ("twin", 0.6, 20), ("low", 0.5, 20)]
    points, steps = found_frontier([certain(Label(n, "cell", n), *x) for n, *x in cells], 50)
    assert [p["id"] for p in points if p["on_frontier"]] == ["cheap", "twin"]
    assert steps["id"] == ["cheap", "cheap"] and steps["cost"] == [20, 30]


def test_ties_are_ties_on_every_draw(rng):
    """However many there are, and wherever they stand in a matrix product."""
    right, spent = (rng.random((1, 301)) < 0.5).astype(float), rng.random((1, 301))
    twins = [Point(Label(f"p{i}", "cell", f"s{i}"), (0,), right, {"tokens": spent}) for i in range(29)]
    dear = [Point(Label(f"d{i}", "cell", f"d{i}"), (0,), right, {"tokens": 2 * spent}) for i in range(30)]
    points, _ = found_frontier([p for pair in zip(dear, [*twins, dear[-1]], strict=True) for p in pair][:-1], 100)
    assert {p["stability"] for p in points if p["id"].startswith("p")} == {1.0}
    assert {p["stability"] for p in points if p["id"].startswith("d")} == {0.0}


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("questions", [1, 2, 7, 8, 40])
def test_all_wrong_or_all_right_and_few_questions(value, questions):
    cells = [certain(Label(n, "cell", n), value, cost, questions) for n, cost in (("a", 0), ("b", 10), ("c", 10))]
    points, steps = found_frontier(cells, 50)
    assert [p["on_frontier"] for p in points] == [True, False, False] and steps["cross_fitted"] == (questions >= 8)
    for low, accuracy, high in zip(steps["low"], steps["accuracy"], steps["high"], strict=True):
        assert 0 <= low <= accuracy == value <= high <= 1 and high > low
    for treatment in (1, 2):
        found = compare(cells, treatment, [0])
        d = found["difference_points"]
        assert found["beyond"] and d["value"] == 0 and d["low"] < 0 < d["high"]


def test_an_oracle_is_drawn_and_never_chosen(rng):
    cells, _ = points_of(rng, [0.5, 0.95, 0.6], [10, 5, 20], seeds=1, kinds=["cell", "oracle", "cell"])
    points, steps = found_frontier(cells, 50)
    assert (points[1]["on_frontier"], points[1]["stability"]) == (False, None)
    assert "p1" not in steps["id"] and len(steps["cost"]) == 2


def test_over_tasks_the_mean_of_draws_is_drawn(rng):
    tasks = [points_of(rng, [0.4, 0.7], [10, 20], questions=q)[0] for q in (30, 80)]
    seeds = SeedDraws([p for points in tasks for p in points], 60)
    draws = [resample(points, ["tokens"], seeds) for points in tasks]
    together = over_tasks(draws)
    assert together.accuracy == pytest.approx((draws[0].accuracy + draws[1].accuracy) / 2)
    both = summary([points[1] for points in tasks])
    mean = np.mean([points[1].accuracy.mean() for points in tasks])
    assert np.mean([s.value for s in both.accuracy]) == pytest.approx(mean)
    assert both.accuracy[0].questions == int(4 / (1 / 30 + 1 / 80))


# By simulation.


def test_known_members_are_found(rng):
    """Four steps of ten points and two decoys under them. Neighbours differ by z = 0.1 / sqrt((p1 (1 - p1) + p2 (1 - p2)) /
    300) or more, questions being apart (their common part only helps); all five comparisons come out right in at least
    1 - 5 Phi(-z) = 96 % of studies, and fewer than 31 of 40 do once in ten million runs."""
    right = 0
    for _ in range(40):
        cells, _ = points_of(rng, [0.4, 0.5, 0.4, 0.62, 0.52, 0.74], [10, 20, 30, 40, 60, 80], seeds=1)
        spent, accuracy = (
            np.array([x.mean() for x in of]) for of in ([p.costs["tokens"] for p in cells], [p.accuracy for p in cells])
        )
        right += list(on_frontier(spent, accuracy)) == [True, True, False, True, False, True]
    assert right >= 31, right


def luck(rng, studies, *, seeds, seed_spread):
    """Mean errors of the frontier's last step, plain and cross-fitted, and their standard errors, where eight cells are
    equally good: so the mean of all is right on average, and shares the luck with questions that all have."""
    errors = []
    for _ in range(studies):
        cells, _ = points_of(rng, [0.6] * 8, 10 * 2.0 ** np.arange(8), seeds=seeds, seed_spread=seed_spread)
        accuracy, spent = (
            np.array([x.mean() for x in of]) for of in ([p.accuracy for p in cells], [p.costs["tokens"] for p in cells])
        )
        parted = split(cells, ["tokens"], SeedDraws(cells, 10))
        worth = cross_fitted(spent, parted, np.array([1e9])).mean()
        errors.append([accuracy.max() - accuracy.mean(), worth - accuracy.mean()])
    plain, fitted = np.array(errors).T
    return plain.mean(), fitted.mean(), plain.std() / np.sqrt(studies), fitted.std() / np.sqrt(studies)


@pytest.mark.parametrize(("seeds", "seed_spread"), [(1, 0.0), (3, 0.3)])
def test_the_winners_luck_is_taken_out(rng, seeds, seed_spread):
    """Of equally good cells the best looks better than it is; not so on seeds and questions that did not choose it."""
    plain, fitted, se_plain, se_fitted = luck(rng, 150, seeds=seeds, seed_spread=seed_spread)
    assert plain > 6 * se_plain, (plain, se_plain)
    assert abs(fitted) < 5 * se_fitted, (fitted, se_fitted)


SHAPES = {
    "steps far apart, 3 seeds": {"accuracies": [0.4, 0.5, 0.6, 0.7], "seed_spread": 0.1},
    "steps far apart, 1 seed": {"accuracies": [0.4, 0.5, 0.6, 0.7], "seeds": 1},
    "8 equally good cells, 3 seeds": {"accuracies": [0.6] * 8, "seed_spread": 0.1},
    "8 equally good cells, 1 seed": {"accuracies": [0.6] * 8, "seeds": 1},
    "nearly all right, 3 seeds, 100 questions": {"accuracies": [0.9, 0.95, 0.97, 0.985], "questions": 100},
    "small steps, 5 seeds": {"accuracies": [0.5, 0.52, 0.54, 0.56, 0.58, 0.6], "seeds": 5, "seed_spread": 0.1},
}


def covered(rng, studies, **shape):
    """How often the last step's interval holds the best true accuracy; mean errors of plain and cross-fitted values."""
    costs, found = 10 * 2.0 ** np.arange(len(shape["accuracies"])), []
    for _ in range(studies):
        cells, worth = points_of(rng, costs=costs, **shape)
        _, steps = found_frontier(cells, 200)
        value, plain = steps["accuracy"][-1], steps["not_cross_fitted"][-1]
        found.append([steps["low"][-1] <= worth.max() <= steps["high"][-1], plain - worth.max(), value - worth.max()])
    return np.mean(found, axis=0)


def test_the_band_holds_the_frontier(rng):
    """Of 25 at 95 %, fewer than 17 hold it once in ten million runs."""
    assert 25 * covered(rng, 25, **SHAPES["small steps, 5 seeds"] | {"questions": 150})[0] >= 17


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SHAPES)
def test_bands_hold_the_frontier_as_often_as_they_say(rng, name):
    studies = 600
    held, plain, fitted = covered(rng, studies, **SHAPES[name])
    print(f"| {name} | {100 * held:.1f} | {100 * plain:+.1f} | {100 * fitted:+.1f} | {studies} |")
    assert held >= 0.93
    assert fitted < 0.005  # never much too high


def null_claims(rng, studies, seeds):
    """How often a cell with reasoning that is no better than its controls is said to be."""
    claims = 0
    for _ in range(studies):
        cells, _ = points_of(rng, [0.6, 0.6, 0.6], [10, 40, 20], seeds=seeds, seed_spread=0.1 if seeds > 2 else 0)
        d = compare(cells, 2, [0, 1])["difference_points"]
        claims += not d["low"] <= 0 <= d["high"]
    return claims


def test_equally_good_students_are_rarely_told_apart_at_equal_cost(rng):
    """At 5 % more than 16 claims in 100 come once in a hundred thousand runs."""
    assert null_claims(rng, 100, 1) <= 16


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_no_difference_at_equal_cost_is_claimed_in_one_study_of_twenty(rng, seeds):
    claims = null_claims(rng, 1000, seeds)
    print(f"| equal cost, {seeds} seeds | {claims / 10:.1f} |")
    assert claims <= 70
