"""What a study's results say, from students that were made up: nothing is trained or served here."""

import json
import math
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from transformers import Qwen2Config

from distill.artifact import Artifact
from distill.evaluation.answer_file import read_answers, write_answers
from distill.evaluation.answers import Answer
from distill.evaluation.questions import ask
from distill.evaluation.settings import Questions
from distill.evaluation.statistics.intervals import difference
from distill.evaluation.statistics.resampling import of_scores
from distill.evaluation.statistics.significance import holm, sign_flip_test
from distill.flops import ModelShape, hardware
from distill.settings import validate
from distill.study.cells import cells
from distill.study.equal_cost import Enclosing, merged
from distill.study.outcomes import MemberOutcome
from distill.study.page import render
from distill.study.results import build_results
from distill.study.settings import StudySettings
from distill.tasks.problem import Problem

QUESTIONS = 20


def preset(**values: object) -> StudySettings:
    base = {
        "title": "made up",
        "question": "what is said?",
        "tasks": [{"task": "max", "train": 10, "test": QUESTIONS}],
        "students": [{"name": "tiny", "student": "tiny", "learning_rate": 0.003, "seeds": [0, 1, 2]}],
        "arms": [{"arm": "ift"}, {"arm": "reasoning"}],
        "margin_points": 2,
        "contrasts": [{"verdict_size": "tiny"}],
        "hardware": "cpu-2core",
    }
    return validate(StudySettings, base | values, source="preset")


SHAPE = ModelShape.from_config(
    Qwen2Config(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=32)
)


def graded(answers: list[Answer], place: Path) -> Artifact:
    """An evaluation of these answers to `max`."""
    place.mkdir(exist_ok=True)
    write_answers(place / "answers.parquet", answers)
    mean = lambda values: sum(values) / len(answers)  # noqa: E731
    tokens = {
        "prompt": mean(a.prompt_tokens for a in answers),
        "thinking": mean(a.thinking_tokens for a in answers),
        "answer": mean(a.answer_tokens for a in answers),
        "total": mean(a.thinking_tokens + a.answer_tokens for a in answers),
    }
    flops = mean(SHAPE.generation_flops(a.prompt_tokens, a.thinking_tokens + a.answer_tokens) for a in answers)
    summary = {
        "unfinished_rate": mean(not a.finished for a in answers),
        "think_rate": 0.0,
        "accuracy_finished": 0.5,
        "metrics": {"accuracy": mean(a.correct for a in answers)},
        "tokens_per_answer": tokens,
        "flops_per_answer": flops,
    }
    return Artifact(place, "evaluation", "", {}, {"max": summary}, {})


def sampled(problems: list[Problem], n: int, tokens: int) -> list[Answer]:
    """n answers to each question, of letters and silence, of up to so many tokens."""
    blank = Answer("", "max", "", "", [1], "", "", 5, 0, 1, False, True, "stop", False, 0.1)
    found = []
    for problem in problems:
        for number in range(n):
            said, finished = random.choice("ABCD" + 2 * problem.gold), random.random() < 0.9
            right = finished and said == problem.gold
            more = {"answer_tokens": random.randint(1, tokens), "prompt_tokens": random.randint(5, 30)}
            more |= {"finished": finished, "correct": right, "sample": number}
            found.append(replace(blank, problem_id=problem.id, answer=said, **more))
    return found


def made_up(settings: StudySettings, folder: Path, *, threads: int | None = 1) -> dict[str, MemberOutcome]:
    """An outcome for every member of the grid, with random numbers."""
    (asked,) = ask([Questions(task="max", count=QUESTIONS, seed=settings.data_seed)])
    outcomes = {}
    for member in [member for cell in cells(settings) for member in cell.students()]:
        place = folder / member.id
        place.mkdir()
        blank = Answer("", "max", "", "", [1], "", "", 5, 0, 1, False, True, "stop", False, 0.1)
        answers = []
        for problem in asked.problems:
            right = random.random() < 0.6
            answers.append(replace(blank, problem_id=problem.id, answer=problem.gold if right else "", correct=right))
        write_answers(place / "answers.parquet", answers)
        levels = [  # of the profile
            {
                "concurrency": concurrency,
                "load": {"concurrency": concurrency},
                "completed": 10,
                "failed": 0,
                "measured": {
                    "seconds_per_answer": random.uniform(0.1, 10),
                    "output_tokens_per_s": {"value": 1.0, "low": 0.9, "high": 1.1},
                    **{f"{name}_s": None for name in ("ttft", "tpot", "e2e")},
                },
            }
            for concurrency in random.sample([1, 4, 8, 32], 3)
        ]
        profile = {"tasks": {"max": {"levels": levels}}} | ({} if threads is None else {"threads": threads})
        (place / "profile.json").write_text(json.dumps(profile))
        graded = {
            "unfinished_rate": 0.0,
            "think_rate": 0.0,
            "accuracy_finished": 0.5,
            "tokens_per_answer": {
                "prompt": 5.0,
                "thinking": 0.0,
                "answer": 1.0,
                "total": random.uniform(1, 100),
            },
            "flops_per_answer": random.uniform(1e6, 1e8),
        }
        trained = {name: random.randint(1, 10**6) for name in ("tokens", "supervised_tokens", "examples", "steps")}
        measured = dict.fromkeys(("tokens_per_second", "supervised_tokens_per_second", "mfu", "peak_rss_bytes"), 1.0)
        measured |= {"seconds": random.uniform(1, 100), "threads": threads or 1}
        student = {"flops": 1e9, "parameters": 100, **trained, "measured": measured}
        outcomes[member.id] = MemberOutcome(
            *(
                Artifact(place, kind, "", {}, summary, {})
                for kind, summary in (("student", student), ("evaluation", {"max": graded}), ("profile", {}))
            ),
            shape=SHAPE,
        )
    return outcomes


@pytest.mark.parametrize(("threads", "share"), [(1, 0.5), (2, 1.0), (5, 1.0), (None, 0.5)])
def test_prices_are_of_the_threads_used_and_of_the_highest_concurrency(tmp_path, threads, share):
    settings = preset()
    outcomes = made_up(settings, tmp_path, threads=threads)
    results = build_results(settings, outcomes, {}, command="")
    an_hour = hardware("cpu-2core").price_usd_per_hour
    for cell in results["cells"]:
        members = [outcomes[f"{cell['id']}-seed{seed}"] for seed in cell["seeds"]]
        highest = [
            next(level for level in m.load["tasks"]["max"]["levels"] if level["concurrency"] == most)
            for m in members
            for most in [max(level["concurrency"] for level in m.load["tasks"]["max"]["levels"])]
        ]
        seconds = sum(level["measured"]["seconds_per_answer"] for level in highest) / len(members)
        found = cell["tasks"]["max"]["inference"]["measured"]
        assert found["seconds_per_answer"] == pytest.approx(seconds)
        assert found["usd_per_1000_answers"] == pytest.approx(1000 * seconds / 3600 * an_hour * share)
        accuracy = cell["tasks"]["max"]["metrics"]["accuracy"]["value"]
        assert found["usd_per_1000_correct"] == pytest.approx(found["usd_per_1000_answers"] / accuracy)
        trained = sum(m.student.summary["measured"]["seconds"] for m in members) / len(members)
        assert cell["training"]["measured"]["usd"] == pytest.approx(trained / 3600 * an_hour * share)


def test_a_device_without_a_count_of_cores_is_priced_whole(tmp_path):
    settings = preset(hardware="h200-sxm")
    results = build_results(settings, made_up(settings, tmp_path, threads=3), {}, command="")
    measured = results["cells"][0]["training"]["measured"]
    assert measured["usd"] == pytest.approx(measured["seconds"] / 3600 * hardware("h200-sxm").price_usd_per_hour)


def test_factors_and_examples_are_of_the_seeds_that_both_arms_have(tmp_path):
    seeds = {"ift": [3, 1, 4], "reasoning": [7, 4, 1]}
    settings = preset(arms=[{"arm": arm, "seeds": own} for arm, own in seeds.items()])
    outcomes = made_up(settings, tmp_path)
    results = build_results(settings, outcomes, {}, command="")
    (contrast,) = results["contrasts"]
    assert contrast["n_seeds"] == 2

    def factor(of) -> float:
        mean = lambda arm: sum(of(outcomes[f"tiny-{arm}-seed{seed}"]) for seed in (1, 4)) / 2  # noqa: E731
        return mean("reasoning") / mean("ift")

    answered = lambda m: m.evaluation.summary["max"]  # noqa: E731
    assert contrast["token_factor"] == pytest.approx(factor(lambda m: answered(m)["tokens_per_answer"]["total"]))
    assert contrast["flops_factor"] == pytest.approx(factor(lambda m: answered(m)["flops_per_answer"]))
    assert contrast["training_tokens_factor"] == pytest.approx(factor(lambda m: m.student.summary["tokens"]))
    for example in results["examples"]:
        assert [answer["cell"] for answer in example["answers"]] == ["tiny-reasoning", "tiny-ift"]
        assert len({answer["seed"] for answer in example["answers"]}) == 1
        assert {answer["seed"] for answer in example["answers"]} <= {1, 4}


def test_a_contrast_says_what_its_arms_were_matched_on_and_what_it_is_about(tmp_path):
    arms = [{"arm": "ift"}, {"arm": "reasoning"}, {"arm": "mixed:0.5"}]
    arms += [{"arm": "ift", "match": "tokens"}, {"arm": "reasoning", "answers": "gold"}]
    arms += [{"arm": "ift", "match": "flops"}, {"arm": "sequential:0.5", "match": "flops", "answers": "stripped"}]
    expected = {  # treatment, control -> matched on, what the sentence names
        ("reasoning", "ift"): ("samples", "reasoning pay"),
        ("mixed0.5", "ift"): ("samples", "tiny-mixed0.5"),
        ("reasoning", "ift-tokens_matched"): ("tokens", "reasoning pay"),
        ("ift-tokens_matched", "reasoning"): ("tokens", "tiny-ift-tokens_matched"),
        ("mixed0.5", "ift-tokens_matched"): ("nothing", "tiny-mixed0.5"),
        ("reasoning-gold", "ift-tokens_matched"): ("nothing", "reasoning pay"),
        ("ift", "ift-tokens_matched"): ("nothing", "tiny-ift"),
        ("reasoning", "ift-flops_matched"): ("flops", "reasoning pay"),
        ("sequential0.5-stripped-flops_matched", "ift-flops_matched"): ("flops", "tiny-sequential0.5-stripped-flops"),
        ("ift-flops_matched", "ift-tokens_matched"): ("nothing", "tiny-ift-flops_matched"),
    }
    contrasts = [{"treatment": t, "control": c} for t, c in expected]
    contrasts[0]["verdict_size"] = "tiny"
    settings = preset(arms=arms, contrasts=contrasts)
    assert [row.matched for row in settings.contrasts] == [matched for matched, _ in expected.values()]
    results = build_results(settings, made_up(settings, tmp_path), {}, command="")
    for contrast, (matched_on, about) in zip(results["contrasts"], expected.values(), strict=True):
        assert contrast["matched_on"] == contrast["declared_matched_on"] == matched_on, contrast["id"]
        said = contrast["sentence"].replace("does not pay", "pays")
        assert about in said, said
        assert (contrast["subject"] == "reasoning") == (about == "reasoning pay")


def test_p_values_speak_of_what_the_interval_speaks_of(tmp_path):
    """Three seeds: of the arms; one: of these students, exactly. Holm's correction is over both."""
    students = [
        {"name": name, "student": name, "learning_rate": 0.003, "seeds": seeds}
        for name, seeds in (("tiny", [0, 1, 2]), ("small", [4]))
    ]
    settings = preset(students=students)
    results = build_results(settings, made_up(settings, tmp_path), {}, command="")
    primary, other = results["contrasts"]
    assert (primary["primary"], other["primary"]) == (True, False)
    assert primary["n_seeds"] == 3 and other["n_seeds"] == 1
    assert other["p_value"] == other["p_value_students"]
    low, high = primary["difference_points"]["low"], primary["difference_points"]["high"]
    assert (primary["p_value"] < 0.05) == (not low <= 0 <= high)
    assert [primary["p_holm"], other["p_holm"]] == pytest.approx(holm([primary["p_value"], other["p_value"]]))
    for contrast in (primary, other):
        half = (contrast["difference_points"]["high"] - contrast["difference_points"]["low"]) / 2
        assert contrast["detectable_points"] > half  # a difference at the interval's edge is seen half of the time


def vote_by_hand(answers: list[Answer], k: int) -> float:
    """The chance that the commonest of k of these answers is right, by looking at every choice of k."""
    found = []
    for chosen in combinations(answers, k):
        votes = Counter(a.answer for a in chosen if a.finished)
        most = [said for said, count in votes.items() if count == max(votes.values())]
        found.append(sum(said == chosen[0].gold for said in most) / len(most) if most else 0.0)
    return sum(found) / len(found)


def with_votes(settings: StudySettings, folder: Path, drawn: int, tokens: tuple[int, int]) -> dict[str, MemberOutcome]:
    """Outcomes whose IFT students were sampled; `tokens`: the most of a sampled answer, and of one with reasoning."""
    (asked,) = ask([Questions(task="max", count=QUESTIONS, seed=settings.data_seed)])
    gold = {problem.id: problem.gold for problem in asked.problems}
    outcomes = made_up(settings, folder)
    for name, outcome in outcomes.items():
        answers = [replace(a, gold=gold[a.problem_id]) for a in sampled(asked.problems, drawn, tokens[0])]
        place = folder / f"{name}-votes"
        outcomes[name] = replace(outcome, shape=SHAPE, sampled=graded(answers, place) if "-ift" in name else None)
        if "-reasoning" in name:
            main = graded(sampled(asked.problems, 1, tokens[1]), folder / name)
            outcomes[name] = replace(outcome, evaluation=main, shape=SHAPE)
    return outcomes


@pytest.mark.parametrize(("tokens", "capped"), [((8, 24), False), ((2, 90), True), ((30, 4), False)])
def test_a_majority_has_as_many_votes_as_the_other_arms_tokens_pay_for(tmp_path, tokens, capped):
    drawn = 6
    settings = preset(
        comparators={"majority": {"votes": drawn}},
        contrasts=[{"verdict_size": "tiny"}, {"control": "majority"}, {"treatment": "majority", "control": "ift"}],
    )
    outcomes = with_votes(settings, tmp_path, drawn, tokens)
    results = build_results(settings, outcomes, {}, command="")
    (entry,) = results["comparators"]
    assert (entry["id"], entry["kind"], entry["of"], entry["seeds"]) == (
        "tiny-majority",
        "majority",
        "tiny-ift",
        [0, 1, 2],
    )
    task = entry["tasks"]["max"]

    mean = lambda values: sum(values) / 3  # noqa: E731
    of = lambda arm, seed: outcomes[f"tiny-{arm}-seed{seed}"]  # noqa: E731
    one = mean(of("ift", s).sampled.summary["max"]["tokens_per_answer"]["total"] for s in range(3))
    other = mean(of("reasoning", s).evaluation.summary["max"]["tokens_per_answer"]["total"] for s in range(3))
    affordable = max(1, round(other / one))
    k = min(affordable, drawn)
    assert (task["votes"]["k"], task["votes"]["affordable"], task["votes"]["drawn"]) == (k, affordable, drawn)
    assert task["votes"]["capped"] == (affordable > drawn) == capped
    assert task["tokens_per_answer"]["total"] == pytest.approx(k * one)
    assert task["votes"]["matched_tokens"] == pytest.approx(other)

    for seed, found in enumerate(task["metrics"]["accuracy"]["per_seed"]):
        answers = read_answers(of("ift", seed).sampled.path / "answers.parquet")
        by_hand = [vote_by_hand(answers[i : i + drawn], k) for i in range(0, len(answers), drawn)]
        assert found == pytest.approx(sum(by_hand) / QUESTIONS)
    accuracy = task["metrics"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]

    def vote_flops(seed: int) -> float:  # each prompt read once, k answers written after it
        answers = read_answers(of("ift", seed).sampled.path / "answers.parquet")
        reading = sum(SHAPE.forward_flops([a.prompt_tokens], 0) for a in answers) / len(answers)
        whole = sum(SHAPE.generation_flops(a.prompt_tokens, a.answer_tokens) for a in answers) / len(answers)
        return reading + k * (whole - reading)

    assert task["inference"]["flops_per_answer"] == pytest.approx(mean(map(vote_flops, range(3))))

    against = {c["id"].rpartition("/")[2]: c for c in results["contrasts"]}
    beside = against["reasoning-vs-majority"]
    assert beside["matched_on"] == ("nothing" if capped else "output tokens") and beside["n_seeds"] == 3
    assert beside["token_factor"] == pytest.approx(other / (k * one))
    assert beside["difference_points"]["value"] == pytest.approx(
        100 * (results["cells"][1]["tasks"]["max"]["metrics"]["accuracy"]["value"] - accuracy["value"])
    )
    assert "majority of" in beside["sentence"] and ("all that were drawn" in beside["sentence"]) == capped
    assert against["majority-vs-ift"]["matched_on"] == "nothing"
    (verdict,) = results["verdicts"]
    assert f"majority of {k} answers of tiny-ift is right on {accuracy['value']:.1%}" in verdict["sentence"]
    assert against["reasoning-vs-ift"]["sentence"] in verdict["sentence"]
    text = render(results)
    assert "tiny-majority" in text and f"majority of {k} of tiny-ift" in text


@pytest.mark.parametrize("capped", [False, True])
def test_a_verdict_at_equal_inference_cost_is_read_against_the_vote_of_as_many_tokens(tmp_path, capped):
    settings = preset(
        tasks=[{"task": "max", "train": 10, "test": QUESTIONS}],
        comparators={"majority": {"votes": 3}},
        contrasts=[{"control": "majority", "verdict_size": "tiny"}, {"treatment": "majority", "control": "ift"}],
    )
    assert [row.matched for row in settings.contrasts] == ["output tokens", "nothing"]
    outcomes = with_votes(settings, tmp_path, 3, (2, 90) if capped else (8, 24))
    for name, outcome in outcomes.items():  # reasoning is always right, and a vote never
        field, right = ("evaluation", True) if "-reasoning" in name else ("sampled", False)
        answers = read_answers(getattr(outcome, field).path / "answers.parquet")
        answers = [replace(a, correct=right, finished=True, answer=a.gold if right else "E") for a in answers]
        outcomes[name] = replace(outcome, **{field: graded(answers, tmp_path / f"{name}-sure")})
    results = build_results(settings, outcomes, {}, command="")
    (verdict,), contrast = results["verdicts"], results["contrasts"][0]
    assert (verdict["contrast"], verdict["verdict"]) == (contrast["id"], "cannot tell" if capped else "pays")
    assert contrast["declared_matched_on"] == "output tokens" and contrast["subject"] == "reasoning"
    assert contrast["matched_on"] == ("nothing" if capped else "output tokens")
    assert ("the vote spent less" in verdict["sentence"]) == capped and "against tiny-majority" in verdict["sentence"]
    assert verdict["sentence"].count("is right on") == 0  # the vote is not told of twice
    assert {answer["cell"] for e in results["examples"] for answer in e["answers"]} == {"tiny-reasoning", "tiny-ift"}
    assert "spent as many output tokens" in render(results) or capped


SIZES = ("small", "middle", "large")


def of_sizes(contrasts: list[dict], **values: object) -> StudySettings:
    """Three sizes with both arms, and ift at the cost of what it is compared with."""
    sizes = [{"name": name, "student": "tiny", "learning_rate": 0.003, "seeds": [0, 1, 2]} for name in SIZES]
    return preset(**{"students": sizes, "comparators": {"equal_cost": {}}, "contrasts": contrasts} | values)


def answered(
    settings: StudySettings, folder: Path, tokens: dict[str, int], right: dict[str, float]
) -> dict[str, MemberOutcome]:
    """Made-up outcomes, whose answers are so long in each cell and so often right, whatever the question."""
    outcomes = made_up(settings, folder)
    for name, outcome in outcomes.items():
        cell = name.rpartition("-seed")[0]
        answers = [
            replace(a, answer_tokens=tokens[cell], prompt_tokens=25, correct=r, answer=a.gold if r else "")
            for a in read_answers(outcome.evaluation.path / "answers.parquet")
            for r in [random.random() < right[cell]]
        ]
        outcomes[name] = replace(outcome, evaluation=graded(answers, folder / f"{name}-asked"))
    return outcomes


def lengths(ift: list[int], reasoning: list[int]) -> dict[str, int]:
    """Of the answers of each cell: the sizes in any order of ift's lengths, which then are the order of its costs."""
    drawn = random.sample(ift, 3)
    return {f"{size}-ift": n for size, n in zip(SIZES, drawn, strict=True)} | {
        f"{size}-reasoning": n for size, n in zip(SIZES, reasoning, strict=True)
    }


def test_a_verdict_at_equal_inference_cost_is_against_the_two_sizes_that_enclose_it(tmp_path):
    settings = of_sizes([{"control": "equal_cost", "verdict_size": "small"}])
    assert settings.contrasts[0].matched == "inference flops"
    tokens = lengths([3, 20, 150], random.sample(range(21, 149), 3))
    right = {cell: random.choice([0.3, 0.9]) for cell in tokens}
    outcomes = answered(settings, tmp_path, tokens, right)
    results = build_results(settings, outcomes, {}, command="")
    cells = {cell["id"]: cell["tasks"]["max"] for cell in results["cells"]}
    cost = lambda name: cells[name]["inference"]["flops_per_answer"]  # noqa: E731
    of = {n: next(name for name in tokens if name.endswith("ift") and tokens[name] == n) for n in (3, 20, 150)}
    assert [c["size"] for c in results["contrasts"]] == list(SIZES)
    scores = lambda cell: [  # noqa: E731
        [float(a.correct) for a in read_answers(outcomes[f"{cell}-seed{s}"].evaluation.path / "answers.parquet")]
        for s in range(3)
    ]
    for contrast in results["contrasts"]:
        treatment, around = contrast["treatment"], contrast["at_equal_cost"]["students"]
        assert contrast["control"] == f"{contrast['size']}-equal_cost" and contrast["token_factor"] is None
        assert [(one["cell"], one["encloses"]) for one in around] == [(of[3], False), (of[20], True), (of[150], True)]
        assert contrast["at_equal_cost"]["spends"] == "as much"
        found = []
        for one in around:  # each is a contrast of its own
            assert one["flops_factor"] == pytest.approx(cost(treatment) / cost(one["cell"]))
            pairs = zip(scores(treatment), scores(one["cell"]), strict=True)
            alone = difference(*zip(*((of_scores(t), of_scores(c)) for t, c in pairs), strict=True))
            interval, points = alone.interval(0.95), one["difference_points"]
            found.append((100 * interval.value, 100 * interval.low, 100 * interval.high, alone.p_value))
            assert (points["value"], points["low"], points["high"], one["p_value"]) == pytest.approx(found[-1])
        values, lows, highs, p = zip(*found, strict=True)
        points = contrast["difference_points"]
        assert (points["low"], points["high"]) == pytest.approx((min(lows), max(highs[1:])))
        share = math.log(cost(treatment) / cost(of[20])) / math.log(cost(of[150]) / cost(of[20]))
        assert points["value"] == pytest.approx((1 - share) * values[1] + share * values[2])
        assert contrast["p_value"] == pytest.approx(max(p) if not min(values) < 0 < max(values) else 1)
        assert contrast["n_seeds"] == 3 and contrast["subject"] == "reasoning"
        assert contrast["matched_on"] == contrast["declared_matched_on"] == "inference flops"
        assert all(f"{cell} at" in contrast["sentence"] for cell in of.values())
        low, high = points["low"], points["high"]
        wanted = "pays" if low >= 2 and contrast["p_holm"] <= 0.05 else "does not pay" if high < 2 else "cannot tell"
        assert contrast["verdict"] == wanted
    assert all(e["answers"][1]["cell"] == of[20] for e in results["examples"]) and results["examples"]
    assert not results["comparators"] and not results["analysis"]["scaling"]  # it is no student of its own
    assert "spent as many FLOPs on an answer, between those of two sizes" in render(results)


@pytest.mark.parametrize(("ift", "signs"), [((0.1, 1.0, 0.0), {1, -1}), ((1.0, 0.0, 0.1), {-1, 1})])
def test_reasoning_is_not_said_to_pay_at_equal_cost_where_any_cheaper_student_is_better(tmp_path, ift, signs):
    settings = of_sizes([{"control": "equal_cost", "verdict_size": "small"}])
    tokens = lengths([3, 20, 150], [60, 60, 60])
    right = dict(zip([3, 20, 150], ift, strict=True)) | {60: 0.5}
    outcomes = answered(settings, tmp_path, tokens, {cell: right[n] for cell, n in tokens.items()})
    for contrast in build_results(settings, outcomes, {}, command="")["contrasts"]:
        students = contrast["at_equal_cost"]["students"]
        assert {math.copysign(1, one["difference_points"]["value"]) for one in students} == signs
        assert (contrast["verdict"], contrast["p_value"], contrast["p_holm"]) == ("cannot tell", 1, 1)


def test_the_order_of_sizes_that_cost_the_same_is_nothing(tmp_path):
    rows = [{"name": name, "student": "tiny", "learning_rate": 0.003, "seeds": [0, 1, 2]} for name in SIZES]
    contrasts = [{"control": "equal_cost", "verdict_size": "small"}]
    settings = of_sizes(contrasts)
    tokens = {
        f"{size}-ift": n for size, n in zip(SIZES, random.choice([(9, 9, 40), (9, 40, 40), (20, 20, 9)]), strict=True)
    }
    tokens |= dict.fromkeys([f"{size}-reasoning" for size in SIZES], 20)
    outcomes = answered(settings, tmp_path, tokens, {cell: random.random() for cell in tokens})
    found = []
    for order in permutations(rows):
        results = build_results(of_sizes(contrasts, students=list(order)), outcomes, {}, command="")
        kept = ("difference_points", "p_value", "verdict", "detectable_points")
        found.append({c["size"]: {name: c[name] for name in kept} for c in results["contrasts"]})
        tied = [
            {s["flops_factor"] for s in c["at_equal_cost"]["students"] if s["encloses"]} for c in results["contrasts"]
        ]
        assert {len(factors) for factors in tied} <= {1, 2}
    for other in found[1:]:
        for size, one in other.items():
            first = found[0][size]
            assert one["verdict"] == first["verdict"] and one["p_value"] == pytest.approx(first["p_value"])
            assert one["difference_points"] == pytest.approx(first["difference_points"])


@pytest.mark.parametrize(("spends", "right", "verdict"), [
    ("less", {"reasoning": 1.0, "ift": 0.1}, "cannot tell"),
    ("less", {"reasoning": 0.1, "ift": 1.0}, "does not pay"),
    ("more", {"reasoning": 1.0, "ift": 0.1}, "pays"),
    ("more", {"reasoning": 0.1, "ift": 1.0}, "cannot tell"),
])  # fmt: skip
def test_where_no_size_costs_as_much_only_the_unfavoured_side_wins(tmp_path, spends, right, verdict):
    settings = of_sizes([{"control": "equal_cost", "verdict_size": "middle"}])
    tokens = lengths(random.sample(range(20, 50), 3), [200 if spends == "less" else 2] * 3)
    outcomes = answered(settings, tmp_path, tokens, {cell: right[cell.partition("-")[2]] for cell in tokens})
    results = build_results(settings, outcomes, {}, command="")
    (found,) = results["verdicts"]
    (contrast,) = (c for c in results["contrasts"] if c["primary"])
    assert (found["verdict"], contrast["matched_on"]) == (verdict, "nothing")
    assert contrast["declared_matched_on"] == "inference flops" and contrast["at_equal_cost"]["spends"] == spends
    (end,) = (one for one in contrast["at_equal_cost"]["students"] if one["encloses"])
    ift = [n for cell, n in tokens.items() if cell.endswith("ift")]
    assert tokens[end["cell"]] == (max if spends == "less" else min)(ift)
    assert (f"middle-equal_cost spent {spends}" in found["sentence"]) == (verdict == "cannot tell")
    assert f"none is {'dearer' if spends == 'less' else 'cheaper'}" in found["sentence"]
    assert f"max (the control spent {spends})" in render(results)


def test_a_size_that_costs_just_as_much_stands_alone(tmp_path):
    settings = of_sizes([{"control": "equal_cost", "verdict_size": "small"}])
    tokens = lengths([3, 20, 150], [20, 3, 150])
    results = build_results(settings, answered(settings, tmp_path, tokens, dict.fromkeys(tokens, 0.5)), {}, command="")
    for contrast in results["contrasts"]:
        *cheaper, end = contrast["at_equal_cost"]["students"]
        assert end["encloses"] and not any(one["encloses"] for one in cheaper)
        assert tokens[end["cell"]] == tokens[contrast["treatment"]] and end["flops_factor"] == pytest.approx(1)
        points = contrast["difference_points"]
        assert (points["value"], points["high"]) == tuple(end["difference_points"][name] for name in ("value", "high"))
        assert points["low"] == min(one["difference_points"]["low"] for one in [*cheaper, end])
        assert contrast["at_equal_cost"]["spends"] == "as much" and contrast["matched_on"] == "inference flops"


def test_students_that_failed_take_nothing_from_what_does_not_need_them(tmp_path):
    """Seeds are those in common with each of the two, and a size that is gone leaves the next."""
    settings = of_sizes([{"control": "equal_cost", "verdict_size": "small"}])
    tokens = dict(
        zip([f"{s}-{arm}" for arm in ("ift", "reasoning") for s in SIZES], [3, 20, 150, 10, 60, 5], strict=True)
    )
    outcomes = answered(settings, tmp_path, tokens, dict.fromkeys(tokens, 0.5))
    del outcomes["large-ift-seed2"]
    by_size = lambda: {c["size"]: c for c in build_results(settings, outcomes, {}, command="")["contrasts"]}  # noqa: E731
    found = by_size()
    assert {size: c["n_seeds"] for size, c in found.items()} == {"small": 3, "middle": 2, "large": 3}
    assert found["middle"]["subject"] == "these trained students" and found["small"]["subject"] == "reasoning"
    for seed in (0, 1, 2)[: random.choice([2, 3])]:
        del outcomes[f"middle-ift-seed{seed}"]
    if "middle-ift-seed2" in outcomes:  # then what is left of it has no seed in common with middle's reasoning
        del outcomes["middle-reasoning-seed2"]
    around = [one["cell"] for one in by_size()["middle"]["at_equal_cost"]["students"]]
    assert around == ["small-ift", "large-ift"]


def test_a_vote_on_some_tasks_leaves_the_others_be(tmp_path):
    settings = preset(
        tasks=[{"task": "max", "train": 10, "test": QUESTIONS}, {"task": "add", "train": 10, "test": QUESTIONS}],
        comparators={"majority": {"votes": 3, "tasks": ["max"]}},
        contrasts=[{"verdict_size": "tiny"}, {"control": "majority"}],
    )
    of_max = preset(
        comparators={"majority": {"votes": 3}}, contrasts=[{"verdict_size": "tiny"}, {"control": "majority"}]
    )
    outcomes = with_votes(of_max, tmp_path, 3, (8, 24))
    (add,) = ask([Questions(task="add", count=QUESTIONS, seed=0)])
    for name, outcome in outcomes.items():  # both tasks are asked, and votes are drawn on one
        answers = read_answers(outcome.evaluation.path / "answers.parquet")
        other = [replace(a, task="add", problem_id=p.id) for a, p in zip(answers, add.problems, strict=True)]
        place = tmp_path / f"{name}-both"
        place.mkdir()
        write_answers(place / "answers.parquet", [*answers, *other])
        summary = outcome.evaluation.summary["max"]
        evaluation = replace(outcome.evaluation, path=place, summary={"max": summary, "add": summary})
        load = {"tasks": outcome.load["tasks"] | {"add": outcome.load["tasks"]["max"]}, "threads": 1}
        (place / "profile.json").write_text(json.dumps(load))
        outcomes[name] = replace(outcome, evaluation=evaluation, profile=replace(outcome.profile, path=place))
    results = build_results(settings, outcomes, {}, command="")
    found = [(c["task"], c["control"]) for c in results["contrasts"] if c["metric"] == "accuracy"]
    assert found == [("max", "tiny-ift"), ("add", "tiny-ift"), ("max", "tiny-majority")]
    assert {verdict["task"] for verdict in results["verdicts"]} == {"max", "add"}


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_student_between_those_that_enclose_its_cost_is_hardly_ever_said_to_differ(seeds):
    """As good as the cheaper, as the dearer, or in between: no difference to be found, whichever is the better one."""
    rng, studies, wrong = np.random.default_rng(random.getrandbits(64)), 400, 0
    low, high, worse = 0.3, rng.choice([0.3, 0.6, 0.95]), bool(rng.integers(2))
    at, spread = rng.choice([low, high, (low + high) / 2]), 0.05 * (seeds > 1)  # one seed says nothing of others
    for _ in range(studies):
        hard = rng.normal(0, 0.15, 100)
        students = [
            [
                (rng.random(100) < np.clip(level + shift + hard, 0, 1)).astype(float)
                for shift in rng.normal(0, spread, seeds)
            ]
            for level in (at, *((high, low) if worse else (low, high)))
        ]
        treatment, *controls = [[of_scores(scores) for scores in of_cell] for of_cell in students]
        parts = []
        for control in controls:
            between = difference(treatment, control)
            interval = between.interval(0.95)
            p = between.p_value
            if seeds == 1:
                p = sign_flip_test(np.array(treatment[0].scores) - control[0].scores)
                interval = replace(between, exact_p=p).interval(0.95)
            points = {"value": interval.value, "low": interval.low, "high": interval.high}
            part = dict.fromkeys(("detectable_points", "n_seeds", "token_factor", "training_tokens_factor"), 1.0)
            part |= {"per_seed": [], "subject": "reasoning", "control": "x", "difference_points": points}
            parts.append(part | {"p_value": p, "p_value_students": p})
        found = merged(parts, Enclosing((), (2.0, 0.5), "as much"))
        points = found["difference_points"]
        wrong += found["p_value"] <= 0.05 or not points["low"] <= 0 <= points["high"]
    assert wrong <= 36  # 400 studies at just 5 % give more than 36 once in a thousand times


def test_seeds_that_were_added_are_told(tmp_path):
    settings = preset(arms=[{"arm": "ift"}, {"arm": "reasoning"}, {"arm": "mixed:0.5"}])
    outcomes = made_up(settings, tmp_path)
    of = lambda declared: build_results(settings, outcomes, {}, command="", seeds_declared=declared)  # noqa: E731
    results = of({"tiny-ift": [0, 1, 2], "tiny-reasoning": [1]})
    assert [cell["seeds_added"] for cell in results["cells"]] == [[], [0, 2], []]  # the last is compared with nothing
    assert "2 of 3 of tiny-reasoning" in render(results)
    for declared in (None, {"tiny-ift": [0, 1, 2], "tiny-reasoning": [2, 1, 0]}):
        results = of(declared)
        assert not any(cell["seeds_added"] for cell in results["cells"])
        assert "added after the study had begun" not in render(results)


def test_two_teachers_on_the_same_questions_are_compared_on_the_same_questions(tmp_path):
    asked = {"tasks": {"max": 10}, "teacher": {"url": "http://127.0.0.1:1/v1", "model": "a"}}
    other = asked | {"teacher": {"url": "http://127.0.0.1:1/v1", "model": "b"}}
    traces = [asked | {"name": "a"}, other | {"name": "b"}, other | {"name": "fewer", "tasks": {"max": 9}}]
    arms = [{"arm": "reasoning", "traces": row["name"]} for row in traces] + [{"arm": "ift", "traces": "b"}]
    pairs = {("a", "b"): "questions", ("a", "fewer"): "nothing", ("b", "fewer"): "nothing"}
    contrasts = [{"treatment": f"reasoning-{t}", "control": f"reasoning-{c}"} for t, c in pairs]
    contrasts[0] |= {"verdict_size": "tiny", "matched": "questions"}
    settings = preset(tasks=[{"task": "max", "test": QUESTIONS}], traces=traces, arms=arms, contrasts=contrasts)
    outcomes = made_up(settings, tmp_path)
    results = build_results(settings, outcomes, {}, command="")
    assert [c["matched_on"] for c in results["contrasts"]] == [*pairs.values()]
    shown = {c["id"]: c["training"]["examples"] for c in results["cells"]}
    said = " and ".join(f"tiny-reasoning-{name} {shown[f'tiny-reasoning-{name}']:,.0f}" for name in "ab")
    assert f"Of the same questions {said} examples were shown" in results["verdicts"][0]["sentence"]
    text = render(results)
    assert "saw the same questions, each by another teacher" in text


def test_a_verdict_is_read_in_the_metric_that_its_task_names(tmp_path):
    rows = [{"q": f"question {i}", "a": random.choice("xyz")} for i in range(400)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"path": str(tmp_path / "rows.jsonl"), "prompt": "q", "answer": "a", "answer_format": "labels"}
    data |= {"checker": "labels", "metrics": ["macro_f1"]}
    sizes = [{"name": n, "student": "tiny", "learning_rate": 0.003, "seeds": [0]} for n in ("one", "two")]
    own = {"task": "own", "data": data, "train": 10, "test": None, "metric": "macro_f1"}
    settings = preset(
        tasks=[own],
        students=sizes,
        contrasts=[{"verdict_size": "one"}],
        interactions=[{"students": ["two", "one"]}],
    )
    (asked,) = ask(settings.evaluate_settings().questions)
    outcomes = {}
    for name, outcome in made_up(preset(students=sizes, contrasts=[{"verdict_size": "one"}]), tmp_path).items():
        blank = Answer("", "own", "", "", [1], "", "", 5, 0, 1, False, True, "stop", False, 0.1)
        said = [(p, random.choice([p.gold, *"xyz"])) for p in asked.problems]
        answers = [replace(blank, problem_id=p.id, gold=p.gold, answer=s, correct=s == p.gold) for p, s in said]
        evaluation = graded(answers, tmp_path / f"{name}-own")
        evaluation = replace(evaluation, summary={"own": evaluation.summary["max"]})
        student = replace(
            outcome.student, summary=outcome.student.summary | {"parameters": 10 ** (2 + ("two" in name))}
        )
        outcomes[name] = replace(outcome, evaluation=evaluation, student=student)
    results = build_results(settings, outcomes, {}, command="")
    (primary,) = (c for c in results["contrasts"] if c["primary"])
    assert (primary["metric"], results["tasks"][0]["metric"]) == ("macro_f1", "macro_f1")
    assert (
        results["verdicts"][0]["contrast"] == primary["id"]
        and "points of macro_f1" in results["verdicts"][0]["sentence"]
    )
    of = {c["size"]: c["difference_points"] for c in results["contrasts"] if c["metric"] == "macro_f1"}
    (line,), found = results["analysis"]["scaling"], results["analysis"]
    assert line["metric"] == "macro_f1"
    assert {s["size"]: s["difference_points"] for s in line["sizes"]} == {k: pytest.approx(v) for k, v in of.items()}
    assert {e["size"]: e["difference_points"] for e in found["by_format"]} == {
        k: pytest.approx(v) for k, v in of.items()
    }
    # One family: what is asked first has half the weight of all.
    first = [primary, *(i for i in found["interactions"] if i["metric"] == "macro_f1")]
    others = [c for c in results["contrasts"] if not c["primary"]]
    others += [i for i in found["interactions"] if i["metric"] == "accuracy"]
    assert (len(first), len(others)) == (2, 4)
    least = min([2 * e["p_value"] for e in first] + [4 * e["p_value"] for e in others])
    assert min(e["p_holm"] for e in first + others) == pytest.approx(min(1, 2 * least))
    assert "Macro F1" in render(results)


def test_a_majority_is_of_the_students_that_were_sampled(tmp_path):
    settings = preset(
        comparators={"majority": {"votes": 3}}, contrasts=[{"verdict_size": "tiny"}, {"control": "majority"}]
    )
    outcomes = with_votes(settings, tmp_path, 3, (3, 9))
    lost, alone = random.sample(range(3), 2)
    outcomes[f"tiny-ift-seed{lost}"] = replace(outcomes[f"tiny-ift-seed{lost}"], sampled=None)
    del outcomes[f"tiny-reasoning-seed{alone}"]
    results = build_results(settings, outcomes, {"serve x": "gone"}, command="")
    left = [seed for seed in range(3) if seed not in (lost, alone)]
    assert results["comparators"][0]["seeds"] == left
    assert [c["n_seeds"] for c in results["contrasts"]] == [2, 1]
    outcomes = {name: replace(outcome, sampled=None) for name, outcome in outcomes.items()}
    results = build_results(settings, outcomes, {"serve x": "gone"}, command="")
    assert results["comparators"] == [] and len(results["contrasts"]) == 1


def test_several_answers_to_a_question_are_one_observation(tmp_path):
    """pass@1 is the headline and majority@n beside it; every answer twice is no more questions than once."""
    n = random.randint(2, 4)
    settings = preset(evaluation={"samples": n, "temperature": 0.8})
    (asked,) = ask([Questions(task="max", count=QUESTIONS)])
    gold = {problem.id: problem.gold for problem in asked.problems}
    outcomes, twice = {}, {}
    for name, outcome in made_up(settings, tmp_path).items():
        answers = [replace(a, gold=gold[a.problem_id]) for a in sampled(asked.problems, n, 5)]
        outcomes[name] = replace(outcome, evaluation=graded(answers, tmp_path / name))
        again = [replace(a, sample=a.sample + extra) for a in answers for extra in (0, n)]
        twice[name] = replace(outcome, evaluation=graded(again, tmp_path / f"{name}-twice"))
    doubled, results = (build_results(settings, of, {}, command="") for of in (twice, outcomes))
    for cell in results["cells"]:
        found = cell["tasks"]["max"]
        per_seed = []
        for seed in range(3):
            answers = read_answers(outcomes[f"{cell['id']}-seed{seed}"].evaluation.path / "answers.parquet")
            assert found["metrics"]["accuracy"]["per_seed"][seed] == pytest.approx(
                sum(a.correct for a in answers) / len(answers)
            )
            votes = [vote_by_hand(answers[i : i + n], n) for i in range(0, len(answers), n)]
            per_seed.append(sum(votes) / QUESTIONS)
        assert found["samples"]["n"] == n and found["samples"]["majority"]["per_seed"] == pytest.approx(per_seed)
        assert found["n_questions"] == QUESTIONS
    for a, b in zip(doubled["contrasts"], results["contrasts"], strict=True):
        assert a["difference_points"] == pytest.approx(b["difference_points"])
        assert a["p_value"] == pytest.approx(b["p_value"])
    for example in results["examples"]:
        assert len({answer["cell"] for answer in example["answers"]}) == 2


def test_what_was_asked_once_stands_beside_every_seed(tmp_path):
    """A teacher has no seeds: each student is compared with the same answers."""
    teacher = {"url": "http://127.0.0.1:1/v1", "model": "big", "parameters": 1e9}
    teacher |= {"usd_per_million_input": 1.0, "usd_per_million_output": 3.0}
    settings = preset(comparators={"teacher": teacher}, contrasts=[{"verdict_size": "tiny"}, {"control": "teacher"}])
    (asked,) = ask([Questions(task="max", count=QUESTIONS)])
    answers = sampled(asked.problems, 1, 40)
    once = {"teacher": graded(answers, tmp_path / "teacher")}
    results = build_results(settings, made_up(settings, tmp_path), {}, command="", asked_once=once)
    (entry,) = results["comparators"]
    found, tokens = entry["tasks"]["max"], entry["tasks"]["max"]["tokens_per_answer"]
    assert (entry["model"], entry["seeds"], entry["size"]) == ("big", [], None)
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(sum(a.correct for a in answers) / QUESTIONS)
    assert found["inference"]["flops_per_answer"] == pytest.approx(2e9 * (tokens["prompt"] + tokens["total"]))
    assert found["inference"]["measured"]["usd_per_1000_answers"] == pytest.approx(
        1000 * (tokens["prompt"] + 3 * tokens["total"]) / 1e6
    )
    against = results["contrasts"][1]
    reasoning = results["cells"][1]["tasks"]["max"]["metrics"]["accuracy"]["per_seed"]
    assert against["control"] == "teacher" and against["n_seeds"] == 3 and against["training_tokens_factor"] is None
    value = found["metrics"]["accuracy"]["value"]
    assert against["per_seed"] == pytest.approx([100 * (r - value) for r in reasoning])
    text = render(results)
    assert "big" in text and ">teacher<" in text
