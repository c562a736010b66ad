"""What a study says of a router and an oracle, of students that were made up: a word decides on `record`, nothing on `max`."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from transformers import Qwen2Config

from distill.artifact import Artifact
from distill.errors import InputError
from distill.evaluation.answer_file import write_answers
from distill.evaluation.answers import Answer
from distill.evaluation.grading import metric_columns, summarise
from distill.evaluation.questions import Asked, ask
from distill.flops import ModelShape, hardware
from distill.settings import validate
from distill.study.cells import cells
from distill.study.comparators import AskedOnce, Majority, found_beside, write_routers
from distill.study.found import FoundCell
from distill.study.outcomes import MemberOutcome
from distill.study.results import build_results
from distill.study.routing.choices import share_of_oracle_gain
from distill.study.routing.router import PRICES, read_router
from distill.study.rows import TeacherRow
from distill.study.settings import StudySettings
from distill.tasks.problem import Problem

COUNTS = {"record": 240, "max": 40}
SHAPE = ModelShape.from_config(
    Qwen2Config(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=32)
)
ARMS = [{"arm": "mixed:0.5", "think": think} for think in ("on", "off")]
THINKS, DIRECT = "mixed0.5-think_on", "mixed0.5-think_off"
Right = Callable[[Problem, bool], float]


def preset(**values: object) -> StudySettings:
    base = {
        "title": "made up",
        "question": "when should it think?",
        "tasks": [{"task": task, "train": 10, "test": count} for task, count in COUNTS.items()],
        "students": [{"name": "tiny", "student": "tiny", "learning_rate": 0.003, "seeds": [0, 1, 2]}],
        "arms": ARMS,
        "comparators": {"router": {"thinks": THINKS, "direct": DIRECT}},
        "margin_points": 2,
        "contrasts": [
            {"treatment": THINKS, "control": DIRECT, "verdict_size": "tiny"},
            {"treatment": "router", "control": THINKS},
            {"treatment": "router", "control": DIRECT},
        ],
        "hardware": "cpu-2core",
    }
    return validate(StudySettings, base | values, source="preset")


def questions(settings: StudySettings) -> list[Asked]:
    return ask(settings.evaluate_settings().questions)


def is_hard(problem: Problem) -> bool:
    """Half of the records, known by one word: a keyword that is negated."""
    return " no " in f" {problem.prompt} "


def word_decides(problem: Problem, thinks: bool) -> float:
    if problem.task == "max":
        return 0.7
    return (0.9 if is_hard(problem) else 0.6) if thinks else (0.2 if is_hard(problem) else 0.95)


def answered(rng: np.random.Generator, problem: Problem, thinks: bool, right: float, sample: int) -> Answer:
    correct, finished = bool(rng.random() < right), True
    if not correct:
        finished = bool(rng.random() < 0.7)
    said = problem.gold if correct else "nova corp tech ok"
    thinking = int(rng.integers(20, 60)) if thinks else 0
    tokens = {"prompt_tokens": int(rng.integers(5, 30)), "answer_tokens": int(rng.integers(2, 9))}
    return Answer(
        problem_id=problem.id,
        task=problem.task,
        prompt=problem.prompt,
        gold=problem.gold,
        token_ids=[1],
        thinking="",
        answer=said,
        thinking_tokens=thinking,
        thought=thinks,
        finished=finished,
        finish_reason="stop" if finished else "length",
        correct=correct,
        seconds=0.1,
        sample=sample,
        **tokens,
    )


def evaluated(asked: list[Asked], answers: list[Answer], place: Path) -> Artifact:
    place.mkdir(parents=True, exist_ok=True)
    write_answers(place / "answers.parquet", answers)
    return Artifact(place, "evaluation", "", {}, summarise(asked, answers, SHAPE), {})


def made_up(
    settings: StudySettings, folder: Path, rng: np.random.Generator, right: Right = word_decides, samples: int = 1
) -> dict[str, MemberOutcome]:
    asked, outcomes = questions(settings), {}
    for member in [member for cell in cells(settings) for member in cell.students()]:
        thinks = member.cell.arm.think == "on"
        answers = [
            answered(rng, problem, thinks, right(problem, thinks), sample)
            for a in asked
            for problem in a.problems
            for sample in range(samples)
        ]
        evaluation = evaluated(asked, answers, folder / member.id)
        level = {"concurrency": 4, "load": {"concurrency": 4}, "completed": 9, "failed": 0}
        profile = {
            "threads": 1,
            "tasks": {
                a.task.name: {
                    "levels": [
                        level
                        | {
                            "measured": {
                                "seconds_per_answer": rng.uniform(0.1, 9),
                                "output_tokens_per_s": None,
                                **{f"{name}_s": None for name in ("ttft", "tpot", "e2e")},
                            }
                        }
                    ]
                }
                for a in asked
            },
        }
        (folder / member.id / "profile.json").write_text(json.dumps(profile))
        names = ("tokens_per_second", "supervised_tokens_per_second", "mfu", "peak_rss_bytes", "seconds", "threads")
        trained = {"flops": 1e9, "parameters": 100, "tokens": 7, "supervised_tokens": 5, "examples": 3, "steps": 2}
        student = Artifact(folder, "student", "", {}, trained | {"measured": dict.fromkeys(names, 1)}, {})
        profiled = Artifact(folder / member.id, "profile", "", {}, {}, {})
        outcomes[member.id] = MemberOutcome(student, evaluation, profiled, SHAPE)
    return outcomes


def sides(settings: StudySettings, outcomes: dict[str, MemberOutcome]) -> dict[str, FoundCell]:
    return {cell.id: FoundCell(cell, outcomes, hardware(settings.hardware)) for cell in cells(settings)}


def beside(settings: StudySettings, outcomes: dict[str, MemberOutcome]) -> dict:
    return found_beside(settings, sides(settings, outcomes), {})


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(settings, outcomes, results) of one world, with two answers to each question."""
    seed = int(np.random.default_rng().integers(2**32))
    print(f"np.random.default_rng({seed})")
    settings = preset()
    outcomes = made_up(settings, tmp_path_factory.mktemp("study"), np.random.default_rng(seed), samples=2)
    return settings, outcomes, build_results(settings, outcomes, {}, command="")


def test_the_router_finds_the_word_and_beats_both_arms_and_any_mixture_of_them(study):
    settings, outcomes, results = study
    router, oracle = results["comparators"]
    assert [(e["id"], e["kind"], e["size"]) for e in (router, oracle)] == [
        ("tiny-router", "router", "tiny"),
        ("tiny-oracle", "oracle", "tiny"),
    ]
    cell = {c["id"]: c["tasks"]["record"] for c in results["cells"]}
    always, never = cell[f"tiny-{THINKS}"], cell[f"tiny-{DIRECT}"]
    mine = router["tasks"]["record"]
    accuracy, tokens = mine["metrics"]["accuracy"]["value"], mine["tokens_per_answer"]["total"]
    spent = [found["tokens_per_answer"]["total"] for found in (never, always)]
    right = [found["metrics"]["accuracy"]["value"] for found in (never, always)]
    assert spent[0] < tokens < spent[1]
    assert accuracy > np.interp(tokens, spent, right) + 0.08  # some 0.25 in truth
    assert accuracy > max(right) + 0.03
    routing = mine["routing"]
    assert routing["over_always_points"]["value"] == pytest.approx(100 * (accuracy - right[1]))
    assert routing["over_never_points"]["low"] > 0  # some 35 points
    assert 0.3 < routing["share_of_oracle_gain"]["value"] <= 1
    a = questions(settings)[0]
    chosen = beside(settings, outcomes)["tiny-router"].chosen(a)
    assert (chosen == np.array([is_hard(p) for p in a.problems])).mean() > 0.85
    # Declared contrasts speak of it, and take it for what it is.
    named = {c["id"]: c for c in results["contrasts"] if c["metric"] == "accuracy" and c["task"] == "record"}
    against = named[f"record/tiny/accuracy/router-vs-{DIRECT}"]
    assert against["difference_points"]["value"] == pytest.approx(routing["over_never_points"]["value"])
    assert against["matched_on"] == "nothing" and against["training_tokens_factor"] == 1
    assert against["token_factor"] == pytest.approx(tokens / spent[0])
    json.dumps(results, allow_nan=False)


def test_an_oracle_bounds_what_any_choice_between_the_arms_can_reach(study, rng):
    settings, outcomes, results = study
    found = beside(settings, outcomes)
    for a in questions(settings):
        for seed in (0, 1, 2):
            right, tokens = (
                [found["tiny-oracle"].__dict__[side].per_question(a, name, seed) for side in ("thinks", "direct")]
                for name in ("accuracy", "tokens")
            )
            best = found["tiny-oracle"].per_question(a, "accuracy", seed)
            np.testing.assert_array_equal(best, np.maximum(*right))
            for at in (found["tiny-router"].at(price) for price in PRICES):
                assert (at.per_question(a, "accuracy", seed) <= best).all()
            # The cheaper of two right answers, and the direct one where neither is right.
            alike = right[0] == right[1]
            cheapest = np.where(right[0] > 0, np.minimum(*tokens), tokens[1])
            spent = found["tiny-oracle"].per_question(a, "tokens", seed)
            np.testing.assert_array_equal(spent[alike], cheapest[alike])
    for task in COUNTS:
        router, oracle = (entry["tasks"][task]["metrics"]["accuracy"]["per_seed"] for entry in results["comparators"])
        assert (np.array(router) <= np.array(oracle) + 1e-12).all()


def test_everything_said_is_of_the_answers_chosen(study):
    """Scores, rates, tokens and FLOPs by hand, from the answers that the decisions pick; seconds and price as mixtures."""
    settings, outcomes, results = study
    found = beside(settings, outcomes)
    for entry in results["comparators"]:
        for a in questions(settings):
            said, per_seed, by_seed = entry["tasks"][a.task.name], [], []
            problems = [problem for problem in a.problems for _ in range(2)]
            for seed in (0, 1, 2):
                members = [outcomes[f"tiny-{arm}-seed{seed}"] for arm in (THINKS, DIRECT)]
                chosen = found[entry["id"]].chosen(a, seed)
                both = [member.graded.answers[a.task.name] for member in members]
                picked = [both[0 if chosen[i // 2] else 1][i] for i in range(len(problems))]
                per_seed.append({n: m.value(metric_columns(m, problems, picked)) for n, m in a.task.metrics.items()})
                output = [x.thinking_tokens + x.answer_tokens for x in picked]
                seconds = [m.load["tasks"][a.task.name]["levels"][0]["measured"]["seconds_per_answer"] for m in members]
                by_seed.append(
                    (
                        np.mean(output),
                        np.mean(
                            [SHAPE.generation_flops(x.prompt_tokens, n) for x, n in zip(picked, output, strict=True)]
                        ),
                        np.mean([not x.finished for x in picked]),
                        np.mean([x.thought for x in picked]),
                        np.mean([x.correct for x in picked if x.finished]),
                        chosen.mean() * seconds[0] + (1 - chosen.mean()) * seconds[1],
                        chosen.mean(),
                    )
                )
            metrics = ["accuracy"] if entry["kind"] == "oracle" else list(a.task.metrics)
            assert list(said["metrics"]) == metrics
            for metric in metrics:
                assert said["metrics"][metric]["per_seed"] == pytest.approx([values[metric] for values in per_seed])
            tokens, flops, unfinished, thought, of_finished, seconds, rate = np.mean(by_seed, axis=0)
            measured = said["inference"]["measured"]
            assert said["tokens_per_answer"]["total"] == pytest.approx(tokens)
            assert said["inference"]["flops_per_answer"] == pytest.approx(flops)
            assert said["unfinished_rate"] == pytest.approx(unfinished)
            assert said["think_rate"] == pytest.approx(thought) == pytest.approx(rate)
            assert said["accuracy_finished"] == pytest.approx(of_finished)
            assert measured["seconds_per_answer"] == pytest.approx(seconds)
            an_hour = hardware("cpu-2core").price_usd_per_hour / 2  # one thread of two
            assert measured["usd_per_1000_answers"] == pytest.approx(1000 * seconds / 3600 * an_hour)
            assert said["routing"]["thinks_rate"] == pytest.approx(rate)


def test_the_curve_starts_where_thinking_needs_no_price(study):
    _, _, results = study
    for task in COUNTS:
        said = results["comparators"][0]["tasks"][task]
        curve = said["routing"]["curve"]
        assert [point["price_points"] for point in curve] == list(PRICES)
        first = curve[0]
        assert first["thinks_rate"] == pytest.approx(said["routing"]["thinks_rate"])
        assert first["accuracy"]["value"] == said["metrics"]["accuracy"]["value"]
        assert first["tokens_per_answer"] == pytest.approx(said["tokens_per_answer"]["total"])
        for name in ("thinks_rate", "tokens_per_answer"):  # every answer with thinking has more tokens here
            values = [point[name] for point in curve]
            assert all(later <= earlier + 1e-9 for earlier, later in pairwise(values)), name
        for point in curve:
            assert point["accuracy"]["low"] <= point["accuracy"]["value"] <= point["accuracy"]["high"]


def test_only_what_is_measured_depends_on_a_clock(study, tmp_path):
    settings, outcomes, results = study

    def timeless(value: object) -> object:
        if isinstance(value, dict):
            return {name: timeless(part) for name, part in value.items() if name != "measured"}
        return [timeless(part) for part in value] if isinstance(value, list) else value

    slower = {}
    for name, outcome in outcomes.items():
        load = json.loads((outcome.profile.path / "profile.json").read_text())
        for task in load["tasks"].values():
            task["levels"][0]["measured"]["seconds_per_answer"] *= 3
        place = tmp_path / name
        place.mkdir()
        (place / "profile.json").write_text(json.dumps(load))
        slower[name] = replace(outcome, profile=replace(outcome.profile, path=place))
    found = beside(settings, slower)
    asked = questions(settings)
    again = [f.describe(asked, settings.confidence) for f in found.values()]
    assert timeless(again) == timeless(results["comparators"])
    for ours, theirs in zip(again, results["comparators"], strict=True):
        old, new = (e["tasks"]["max"]["inference"]["measured"]["seconds_per_answer"] for e in (theirs, ours))
        assert new == pytest.approx(3 * old)


def test_where_nothing_tells_questions_apart_the_router_gains_nothing(rng, tmp_path):
    """Two arms equally right by chance: it stays within chance of them, and far below the oracle."""
    settings = preset(tasks=[{"task": "record", "train": 10, "test": 300}])
    outcomes = made_up(settings, tmp_path, rng, right=lambda problem, thinks: 0.6)
    (a,) = questions(settings)
    found = beside(settings, outcomes)
    router, oracle = (
        np.mean([f.per_question(a, "accuracy", seed).mean() for seed in range(3)]) for f in found.values()
    )
    assert abs(router - 0.6) < 6 * np.sqrt(
        0.24 / 900
    )  # 0.098, where choosing by the mean of the seeds' grades gives 0.74
    assert oracle > 0.75


def test_of_seeds_and_arms_that_are_missing(rng, tmp_path):
    """Only common seeds count; without a pair there is neither router nor oracle, and nothing else is lost."""
    settings = preset(tasks=[{"task": "max", "train": 10, "test": 30}])
    outcomes = made_up(settings, tmp_path, rng)
    lost = int(rng.integers(3))
    del outcomes[f"tiny-{THINKS}-seed{lost}"]
    results = build_results(settings, outcomes, {"serve x": "gone"}, command="")
    left = [seed for seed in range(3) if seed != lost]
    assert [entry["seeds"] for entry in results["comparators"]] == [left, left]
    routed = [c for c in results["contrasts"] if c["treatment"] == "tiny-router"]
    assert [c["n_seeds"] for c in routed] == [2, 2]
    outcomes = {name: outcome for name, outcome in outcomes.items() if THINKS not in name}
    results = build_results(settings, outcomes, {"serve x": "gone"}, command="")
    assert results["comparators"] == [] and len(results["cells"]) == 1
    write_routers(settings, outcomes, tmp_path)
    assert not list(tmp_path.glob("router-*.json"))


def test_the_router_beside_the_results_decides_on_new_questions(study, tmp_path):
    settings, outcomes, _ = study
    write_routers(settings, outcomes, tmp_path)
    (path,) = tmp_path.glob("*")
    assert path.name == "router-tiny.json" and path.stat().st_size < 500_000
    router = read_router(path)
    assert (router.thinks, router.direct) == (f"tiny-{THINKS}", f"tiny-{DIRECT}")
    asked = questions(settings)
    fitted = beside(settings, outcomes)["tiny-router"].router(asked)
    asked_before = {problem.prompt for a in asked for problem in a.problems}
    (a,) = (a for a in asked if a.task.name == "record")
    new = [p for p in a.task.problems("validation", 100, seed=5) if p.prompt not in asked_before]
    decisions = [router.decide(problem.prompt, "record") for problem in new]
    assert decisions == [fitted.decide(problem.prompt, "record") for problem in new]
    assert np.mean([d == is_hard(p) for d, p in zip(decisions, new, strict=True)]) > 0.8


def test_two_students_cost_the_training_of_both(study):
    """One student asked in two ways was trained once; two arms were trained twice."""
    settings, outcomes, _ = study
    (a, _) = questions(settings)
    assert beside(settings, outcomes)["tiny-router"].mean(a, "training_tokens") == 7
    arms = [{"arm": "reasoning", "think": "on", "name": THINKS}, {"arm": "ift", "name": DIRECT}]
    two = preset(arms=arms)
    assert beside(two, outcomes)["tiny-router"].mean(a, "training_tokens") == 14


def test_a_share_of_the_oracles_gain(rng):
    """0 for the better arm, 1 for the oracle, half for half of the way; nothing where there is nothing to gain."""
    Q, S = int(rng.integers(50, 200)), int(rng.integers(1, 5))
    always, never = rng.integers(0, 2, (2, S, Q)).astype(float)
    oracle = np.maximum(always, never)
    of = lambda router: share_of_oracle_gain(np.stack([router, oracle, always, never], axis=1), confidence=0.9)  # noqa: E731
    assert of(oracle).value == of(oracle).low == of(oracle).high == 1
    better = max(always, never, key=lambda scores: scores.mean())
    assert of(better).value == pytest.approx(0)
    half = of((oracle + better) / 2)
    assert half.value == pytest.approx(0.5) and half.low <= half.value <= half.high
    worse = of(np.minimum(always, never))
    assert worse.high < 0
    same = share_of_oracle_gain(np.stack([never] * 4, axis=1), confidence=0.9)
    assert same is None


def test_what_was_asked_once_and_votes_say_the_same_question_by_question(rng, tmp_path):
    """Means over questions are those of the entry, for every cost."""
    settings = preset(
        tasks=[{"task": "max", "train": 10, "test": 20}],
        comparators={"majority": {"arm": DIRECT, "matched": THINKS, "votes": 5}},
        contrasts=[{"treatment": THINKS, "control": DIRECT, "verdict_size": "tiny"}],
    )
    outcomes, asked = made_up(settings, tmp_path, rng), questions(settings)
    (a,) = asked
    for name, outcome in outcomes.items():
        votes = [answered(rng, p, False, 0.6, sample) for p in a.problems for sample in range(5)]
        outcomes[name] = replace(outcome, sampled=evaluated(asked, votes, tmp_path / f"{name}-votes"))
    majority = beside(settings, outcomes)["tiny-majority"]
    assert isinstance(majority, Majority) and majority.k(a) > 1
    answers = [answered(rng, problem, True, 0.5, 0) for problem in a.problems]
    once = evaluated(asked, answers, tmp_path / "once")
    teacher = AskedOnce("teacher", once, teacher=TeacherRow(url="http://x", model="big", parameters=1e9))
    base = AskedOnce("tiny-base", once, size="tiny", student="x")
    for found, seeds in ((majority, majority.seeds), (teacher, [None]), (base, [None])):
        for name in ("tokens", "flops"):
            each = [found.per_question(a, name, seed) for seed in seeds]
            assert all(values.shape == (20,) for values in each)
            assert np.mean(each) == pytest.approx(found.mean(a, name))
        for seed in seeds:
            (sample,) = found.samples(a, "accuracy", [seed])
            np.testing.assert_allclose(found.per_question(a, "accuracy", seed), sample.scores)
    output = [x.thinking_tokens + x.answer_tokens for x in answers]
    np.testing.assert_array_equal(teacher.per_question(a, "tokens", None), output)
    read = np.array([x.prompt_tokens for x in answers]) + output
    np.testing.assert_allclose(teacher.per_question(a, "flops", None), 2e9 * read)


@pytest.mark.parametrize(
    ("arms", "row", "said"),
    [
        ([{"arm": "ift", "name": "oracle"}], {}, "oracle is the name of"),
        ([{"arm": "ift", "name": "router"}], {}, "router is the name of"),
        ([], {"direct": THINKS}, "thinks and direct are the same arm"),
        ([{"arm": "ift", "seeds": [9]}], {"direct": "ift"}, "no training seed in common"),
    ],
)
def test_a_router_that_cannot_be_is_refused_before_anything_runs(arms, row, said):
    with pytest.raises(InputError, match=said):
        preset(arms=[*ARMS, *arms], comparators={"router": {"thinks": THINKS, "direct": DIRECT} | row})
