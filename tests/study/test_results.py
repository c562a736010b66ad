"""What a study's results say, from students that were made up: nothing is trained or served here."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from distill.artifact import Artifact
from distill.evaluation.answer_file import write_answers
from distill.evaluation.answers import Answer
from distill.evaluation.questions import ask
from distill.evaluation.settings import Questions
from distill.flops import hardware
from distill.settings import validate
from distill.study.cells import cells
from distill.study.results import MemberOutcome, build_results
from distill.study.settings import StudySettings

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
        levels = [
            {
                "concurrency": concurrency,
                "completed": 10,
                "failed": 0,
                "measured": {
                    "duration_s": random.uniform(1, 100),
                    "output_tokens_per_s": 1.0,
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
            )
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
        seconds = sum(level["measured"]["duration_s"] / 10 for level in highest) / len(members)
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
    results = build_results(settings, made_up(settings, tmp_path), {}, command="")
    for contrast, (matched_on, about) in zip(results["contrasts"], expected.values(), strict=True):
        assert contrast["matched_on"] == matched_on, contrast["id"]
        said = contrast["sentence"].replace("does not pay", "pays")
        assert about in said, said
        assert (contrast["subject"] == "reasoning") == (about == "reasoning pay")


def test_p_values_speak_of_what_the_interval_speaks_of(tmp_path):
    """Three seeds: of the arms; one: of these students, exactly. Holm's correction within the verdicts, or all contrasts."""
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
    assert primary["p_holm"] == primary["p_value"]  # one task: nothing to correct
    assert other["p_holm"] == pytest.approx(
        min(1, max(other["p_value"], min(1, 2 * primary["p_value"])))
        if other["p_value"] > primary["p_value"]
        else min(1, 2 * other["p_value"])
    )
    for contrast in (primary, other):
        half = (contrast["difference_points"]["high"] - contrast["difference_points"]["low"]) / 2
        assert contrast["detectable_points"] > half  # a difference at the interval's edge is seen half of the time
