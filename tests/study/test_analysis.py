"""`analysis` of a study's results, of students that were made up: nothing is trained or served here."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import Qwen2Config

from distill.artifact import Artifact
from distill.evaluation.answer_file import write_answers
from distill.evaluation.answers import Answer
from distill.evaluation.grading import summarise
from distill.evaluation.questions import Asked, ask
from distill.flops import ModelShape
from distill.settings import validate
from distill.study.analysis.analyse import _domains
from distill.study.analysis.family import weighted_holm
from distill.study.cells import cells
from distill.study.outcomes import MemberOutcome
from distill.study.results import build_results
from distill.study.rows import TRACES
from distill.study.settings import StudySettings

TASKS = {"add": "open", "max": "choice", "record": "extraction"}
SIZES = {"tiny": 1_000_000, "small": 4_000_000, "large": 16_000_000}
SHAPE = ModelShape.from_config(
    Qwen2Config(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=32)
)
TEACHER = {"url": "http://127.0.0.1:1/v1", "model": "big", "usd_per_million_input": 1.0, "usd_per_million_output": 3.0}


TWO = [
    {"name": name, "student": "tiny", "learning_rate": 0.003, "seeds": seeds}
    for name, seeds in (("tiny", [0, 1, 2]), ("small", [5]))
]
ONE = [{"task": "max", "train": 10, "test": 24}]


def preset(questions: int = 24, **values: object) -> StudySettings:
    base = {
        "title": "made up",
        "question": "what is said?",
        "tasks": [{"task": task, "train": 10, "test": questions} for task in TASKS],
        "students": [
            {"name": name, "student": "tiny", "learning_rate": 0.003, "seeds": [0, 1, 2] if name == "tiny" else [5]}
            for name in SIZES
        ],
        "arms": [{"arm": "ift"}, {"arm": "reasoning"}, {"arm": "mixed:0.5", "thinking_budget": 64}],
        "margin_points": 2,
        "contrasts": [{"verdict_size": "tiny"}, {"treatment": "mixed0.5-budget_64"}, {"control": "majority"}],
        "interactions": [{"students": ["tiny", "small"]}],
        "comparators": {
            "teacher": TEACHER,
            "majority": {"votes": 4, "tasks": ["add", "max"]},
            "router": {"thinks": "reasoning", "direct": "ift"},
        },
        "hardware": "cpu-2core",
    }
    return validate(StudySettings, base | values, source="preset")


def answers(rng: np.random.Generator, a: Asked, right: float, tokens: int, samples: int = 1) -> list[Answer]:
    found = []
    for problem in a.problems:
        for sample in range(samples):
            correct = bool(rng.random() < right)
            finished = correct or bool(rng.random() < 0.8)
            found.append(
                Answer(
                    problem_id=problem.id,
                    task=a.task.name,
                    prompt=problem.prompt,
                    gold=problem.gold,
                    token_ids=[1],
                    thinking="",
                    answer=problem.gold if correct else "x",
                    prompt_tokens=int(rng.integers(5, 30)),
                    thinking_tokens=int(rng.integers(tokens, 2 * tokens)) if tokens else 0,
                    answer_tokens=int(rng.integers(1, 9)),
                    thought=tokens > 0,
                    finished=finished,
                    finish_reason="stop" if finished else "length",
                    correct=correct,
                    seconds=0.1,
                    sample=sample,
                )
            )
    return found


def evaluated(asked: list[Asked], rows: list[Answer], place: Path) -> Artifact:
    place.mkdir(parents=True)
    write_answers(place / "answers.parquet", rows)
    return Artifact(place, "evaluation", "", {}, summarise(asked, rows, SHAPE), {})


def made_up(
    settings: StudySettings, folder: Path, rng: np.random.Generator, right=None, sizes=SIZES
) -> tuple[dict[str, MemberOutcome], dict[str, Artifact]]:
    """Outcomes of all members, and the teacher's answers. `right`: the share of right answers of an arm's students."""
    asked, outcomes = ask(settings.evaluate_settings().questions), {}
    for member in [member for cell in cells(settings) for member in cell.students()]:
        arm, size = member.cell.arm.arm or "phases", member.cell.size.name
        share = rng.random() if right is None else right[arm]
        rows = [x for a in asked for x in answers(rng, a, share, 0 if arm == "ift" else 20)]
        votes = [x for a in asked for x in answers(rng, a, share, 0, 4)] if arm == "ift" else None
        evaluation = evaluated(asked, rows, folder / member.id)
        sampled = votes and evaluated(asked, votes, folder / f"{member.id}-votes")
        levels = [{"concurrency": 4, "load": {}, "completed": 9, "failed": 0, "measured": _load(rng)}]
        profile = {"threads": 1, "tasks": {a.task.name: {"levels": levels} for a in asked}}
        (folder / member.id / "profile.json").write_text(json.dumps(profile))
        trained = {"flops": float(sizes[size] * (1 + len(arm))), "parameters": sizes[size], "tokens": 7}
        trained |= {"supervised_tokens": 5, "examples": 3, "steps": 2}
        names = ("tokens_per_second", "supervised_tokens_per_second", "mfu", "peak_rss_bytes", "threads")
        measured = dict.fromkeys(names, 1) | {"seconds": float(rng.uniform(10, 20))}
        student = Artifact(folder, "student", "", {}, trained | {"measured": measured}, {})
        loaded = Artifact(folder / member.id, "profile", "", {}, {}, {})
        outcomes[member.id] = MemberOutcome(student, evaluation, loaded, SHAPE, sampled)
    teacher = evaluated(asked, [x for a in asked for x in answers(rng, a, 0.9, 50)], folder / "teacher")
    return outcomes, {"teacher": teacher}


def _load(rng: np.random.Generator) -> dict[str, object]:
    nothing = {f"{name}_s": None for name in ("ttft", "tpot", "e2e")}
    return nothing | {"seconds_per_answer": float(rng.uniform(0.1, 9)), "output_tokens_per_s": None}


def analysed(settings, outcomes, once, **more) -> dict:
    results = build_results(settings, outcomes, {}, command="", asked_once=once, **more)
    json.dumps(results["analysis"], allow_nan=False)
    return results


def unmeasured(value):
    if isinstance(value, dict):
        return {k: unmeasured(v) for k, v in value.items() if k != "measured"}
    return [unmeasured(v) for v in value] if isinstance(value, list) else value


def test_every_list_of_a_whole_study(tmp_path, rng, undocumented):
    settings = preset()
    outcomes, once = made_up(settings, tmp_path, rng)
    results = analysed(settings, outcomes, once)
    assert not undocumented(results)
    found, cell_ids = results["analysis"], [cell["id"] for cell in results["cells"]]

    views = {(f["task"], f["cost"]): f for f in found["frontier"]}
    assert set(views) == {(task, cost) for task in [*TASKS, "all"] for cost in ("tokens", "flops")}
    scored = {entry["id"]: entry for entry in results["cells"] + results["comparators"]}
    for (task, cost), view in views.items():
        ids = [point["id"] for point in view["points"]]
        everywhere = set(scored) - ({f"{size}-majority" for size in SIZES} if task in ("record", "all") else set())
        assert set(ids) | set(view["left_out"]) == everywhere
        assert view["left_out"] == (["teacher"] if cost == "flops" else [])  # nobody said how large it is
        steps = view["frontier"]
        assert len({len(steps[name]) for name in ("id", "cost", "accuracy", "low", "high")}) == 1
        assert steps["cost"] == sorted(set(steps["cost"])) and steps["cross_fitted"]
        for point in view["points"]:
            assert point["cost"]["low"] <= point["cost"]["value"] <= point["cost"]["high"]
            if point["kind"] == "oracle":
                assert not point["on_frontier"] and point["id"] not in steps["id"]
            if task == "all":
                continue
            entry = scored[point["id"]]["tasks"][task]
            for name in ("value", "low", "high"):
                assert point["accuracy"][name] == pytest.approx(entry["metrics"]["accuracy"][name])
            if point["kind"] != "oracle" and cost == "tokens":
                assert point["cost"]["value"] == pytest.approx(entry["tokens_per_answer"]["total"])
            if cost == "flops":
                assert point["cost"]["value"] == pytest.approx(entry["inference"]["flops_per_answer"], rel=1e-6)
    of_all = {p["id"]: p for p in views["all", "tokens"]["points"]}["tiny-ift"]
    assert of_all["accuracy"]["value"] == pytest.approx(
        np.mean([scored["tiny-ift"]["tasks"][t]["metrics"]["accuracy"]["value"] for t in TASKS])
    )
    budget = {p["id"]: p for p in views["add", "tokens"]["points"]}["large-mixed0.5-budget_64"]
    assert (budget["size"], budget["arm"], budget["thinking_budget"]) == ("large", "mixed:0.5", 64)

    reasoned = {c for c in cell_ids if "-ift" not in c} | {f"{size}-router" for size in SIZES}
    for entry in found["equal_cost"]:
        assert entry["id"] in reasoned - (
            set() if entry["cost"] != "training_flops" else {e for e in reasoned if "router" in e}
        )
        assert all("-ift" in name or "-majority" in name for name in entry["between"])
        assert (entry["difference_points"] is None) == (entry["reason"] is not None)
    assert {e["cost"] for e in found["equal_cost"]} == {"tokens", "flops", "training_flops"}

    of_contrasts = {c["id"]: c["difference_points"] for c in results["contrasts"]}
    assert len(found["scaling"]) == 3 + 3 + 2  # the majority votes on two of three tasks
    for line in found["scaling"]:
        assert [s["parameters"] for s in line["sizes"]] == list(SIZES.values())
        for size in line["sizes"]:
            known = of_contrasts[f"{line['task']}/{size['size']}/accuracy/{line['treatment']}-vs-{line['control']}"]
            assert size["difference_points"] == pytest.approx(known)
    formats = {(e["format"], tuple(e["tasks"])) for e in found["by_format"]}
    assert formats == {(form, (task,)) for task, form in TASKS.items()} and found["by_domain"] == []

    assert [(e["cell"], e["task"]) for e in found["lengths"]] == [(c, t) for c in cell_ids for t in TASKS]
    for entry in found["lengths"]:
        assert entry["right"]["n"] + entry["wrong"]["n"] == 24 * (3 if entry["cell"].startswith("tiny") else 1)

    # Seeds that differ are of one size.
    assert [(e["cell"], e["task"]) for e in found["seed_sd"]] == [
        (c, t) for c in cell_ids if c.startswith("tiny") for t in [*TASKS, "all"]
    ]
    for entry in found["seed_sd"]:
        cell = scored[entry["cell"]]["tasks"]
        if entry["task"] != "all":
            seeds = cell[entry["task"]]["metrics"]["accuracy"]["per_seed"]
            assert entry["sd_points"]["value"] == pytest.approx(100 * np.std(seeds, ddof=1))
            assert np.mean(entry["think_rate_per_seed"]) == pytest.approx(cell[entry["task"]]["think_rate"])
        assert entry["sd_points"]["low"] <= entry["sd_points"]["value"] < entry["sd_points"]["high"]
    (pure,) = found["seed_sd_of_kinds"]  # the other arm is asked in its own way
    assert (pure["kind"], pure["task"], pure["over_pure"]) == ("pure", "all", None)
    assert pure["cells"] == ["tiny-ift", "tiny-reasoning"] and pure["freedom"] == 4

    assert len(found["break_even"]) == 9 + 9 + 6
    first = found["break_even"][0]["measured"]
    cells_by_id = {c["id"]: c for c in results["cells"]}
    for side, arm in (("treatment", "reasoning"), ("control", "ift")):
        cell = cells_by_id[f"tiny-{arm}"]
        priced = cell["tasks"]["add"]["inference"]["measured"]["usd_per_1000_answers"]
        assert 1000 * first["usd_per_answer"][side] == pytest.approx(priced)
        assert first["one_off_usd"]["training"][side] == pytest.approx(cell["training"]["measured"]["usd"])
        assert first["one_off_usd"]["teacher"][side] == 0  # the solver's
    against_votes = next(e for e in found["break_even"] if e["control"] == "majority")
    majority = next(e for e in results["comparators"] if e["id"] == "tiny-majority")
    assert 1000 * against_votes["measured"]["usd_per_answer"]["control"] == pytest.approx(
        majority["tasks"]["add"]["inference"]["measured"]["usd_per_1000_answers"]
    )

    metrics = [(task["name"], metric) for task in results["tasks"] for metric in task["metrics"]]
    assert [(e["task"], e["metric"]) for e in found["interactions"]] == metrics
    for entry in found["interactions"]:
        one, other = (
            of_contrasts[f"{entry['task']}/{size}/{entry['metric']}/reasoning-vs-ift"] for size in ("tiny", "small")
        )
        assert entry["difference_points"]["value"] == pytest.approx(one["value"] - other["value"])
        assert entry["n_seeds"] == 1 and "these trained students" in entry["sentence"]
    p_values = [e["p_value"] for e in found["interactions"]]
    everything = [c["p_value"] for c in results["contrasts"]] + p_values
    weights = [1 / 6 if c["primary"] else 0 for c in results["contrasts"]]  # verdicts and interactions, of accuracy
    weights += [1 / 6 if e["metric"] == "accuracy" else 0 for e in found["interactions"]]
    weights = [weight or 1 / weights.count(0) for weight in weights]
    corrected = [e["p_holm"] for e in (*results["contrasts"], *found["interactions"])]
    assert corrected == pytest.approx(weighted_holm(everything, weights))


def test_nothing_depends_on_a_clock_but_what_is_measured(tmp_path, rng):
    settings = preset(comparators={}, contrasts=[{"verdict_size": "tiny"}], students=TWO, tasks=ONE)
    outcomes, _ = made_up(settings, tmp_path, rng)
    first = analysed(settings, outcomes, {})["analysis"]
    later = {}
    for name, outcome in outcomes.items():
        summary = outcome.student.summary
        slower = summary | {"measured": summary["measured"] | {"seconds": 999.0}}
        load = json.loads(json.dumps(outcome.load))
        for task in load["tasks"].values():
            task["levels"][0]["measured"]["seconds_per_answer"] = float(rng.uniform(10, 20))
        place = tmp_path / f"{name}-later"
        place.mkdir()
        (place / "profile.json").write_text(json.dumps(load))
        later[name] = replace(
            outcome, student=replace(outcome.student, summary=slower), profile=replace(outcome.profile, path=place)
        )
    second = analysed(settings, later, {})["analysis"]
    assert unmeasured(first) == unmeasured(second)
    assert first["break_even"] != second["break_even"]


@pytest.mark.parametrize("questions", [1, 5])
def test_few_questions_and_failed_cells(tmp_path, rng, questions):
    """Of any single cell, or without any cell, there is an analysis."""
    settings = preset(questions, students=TWO, comparators={}, contrasts=[{"verdict_size": "tiny"}])
    outcomes, _ = made_up(settings, tmp_path, rng, {"ift": 0.0, "reasoning": 1.0, "mixed:0.5": 0.5})
    whole = analysed(settings, outcomes, {})["analysis"]
    assert whole["frontier"][0]["frontier"]["cross_fitted"] is (questions >= 8)
    assert len(whole["break_even"]) == 6 and len(whole["interactions"]) >= 3
    for kept in ("tiny-ift-seed1", "tiny-reasoning-seed0", "small-mixed0.5-budget_64-seed5"):
        found = analysed(settings, {kept: outcomes[kept]}, {})["analysis"]
        assert len(found["frontier"]) == 2 * 4 and found["interactions"] == found["break_even"] == []
    left = {name: o for name, o in outcomes.items() if name not in ("tiny-ift-seed0", "small-ift-seed5")}
    found = analysed(settings, left, {})["analysis"]
    assert {e["size"] for e in found["break_even"]} == {"tiny"} and found["scaling"] == found["interactions"] == []
    assert analysed(settings, {}, {})["analysis"]["frontier"] == []


def test_a_server_that_answered_nothing_has_no_price(tmp_path, rng):
    settings = preset(comparators={}, contrasts=[{"verdict_size": "tiny"}], students=TWO, tasks=ONE)
    outcomes, _ = made_up(settings, tmp_path, rng)
    outcome = outcomes["small-reasoning-seed5"]
    load = outcome.load
    load["tasks"]["max"]["levels"][0]["measured"]["seconds_per_answer"] = None
    (outcome.profile.path / "profile.json").write_text(json.dumps(load))
    outcomes["small-reasoning-seed5"] = replace(outcome)  # reads it again
    tiny, small = analysed(settings, outcomes, {})["analysis"]["break_even"]
    assert small["measured"] is None and "no price" in small["reason"]
    assert tiny["measured"] is not None and tiny["reason"] is None


def test_the_teachers_bill_is_for_what_an_arm_was_shown(tmp_path, rng):
    arms = [{"arm": "ift"}, {"arm": "reasoning"}, {"arm": "mixed:0.25"}, {"arm": "ift", "answers": "stripped"}]
    arms += [{"arm": "ift", "answers": "gold"}, {"arm": "reasoning", "answers": "gold"}]
    arms += [{"name": "up", "training": {"phases": [{"reasoning": 0.2}, {"reasoning": 0.6}]}}]
    teacher = {"url": "http://127.0.0.1:1/v1", "model": "big"}
    usd = {  # of 8 for all reasoning and 2 for all short answers
        "ift": 2,
        "reasoning": 8,
        "mixed0.25": 0.25 * 8 + 0.75 * 2,
        "ift-stripped": 8,
        "ift-gold": 0,
        "reasoning-gold": 8,
        "up": 0.6 * 8 + 0.8 * 2,
    }
    contrasts = [{"treatment": name, "control": "ift"} for name in usd if name != "ift"]
    contrasts[0]["verdict_size"] = "small"
    settings = preset(
        arms=arms,
        teacher=teacher,
        comparators={},
        contrasts=contrasts,
        students=TWO[1:],
        interactions=[],
        tasks=ONE,
    )
    outcomes, _ = made_up(settings, tmp_path, rng, dict.fromkeys(["ift", "reasoning", "mixed:0.25", "phases"], 0.5))
    bill = {"reasoning": {"cost_usd": 8.0}, "ift": {"cost_usd": 2.0}}
    traces = {TRACES: Artifact(tmp_path, "traces", "", {}, {"pairs": 10, "bill": bill}, {})}
    for entry in analysed(settings, outcomes, {}, traces=traces)["analysis"]["break_even"]:
        found = entry["measured"]["one_off_usd"]["teacher"]
        assert found == pytest.approx({"treatment": usd[entry["treatment"]], "control": 2})
        assert entry["measured"]["with_training_and_teacher"] is not None
    for traces in ({}, {TRACES: Artifact(tmp_path, "traces", "", {}, {"bill": {"reasoning": {}, "ift": {}}}, {})}):
        (entry, *_) = analysed(settings, outcomes, {}, traces=traces)["analysis"]["break_even"]
        assert entry["measured"]["one_off_usd"]["teacher"]["control"] is None
        assert entry["measured"]["with_training"] is not None
        assert entry["measured"]["with_training_and_teacher"] is None


def test_mixed_arms_stand_beside_those_with_all_or_no_reasoning(tmp_path, rng):
    arms = [{"arm": "ift"}, {"arm": "reasoning"}, {"arm": "mixed:0.5"}, {"arm": "sequential:0.5"}]
    settings = preset(
        arms=arms, comparators={}, contrasts=[{"verdict_size": "tiny"}], students=TWO[:1], interactions=[]
    )
    outcomes, _ = made_up(settings, tmp_path, rng)
    found = {e["kind"]: e for e in analysed(settings, outcomes, {})["analysis"]["seed_sd_of_kinds"]}
    assert set(found) == {"pure", "mixed", "sequential"} and found["mixed"]["cells"] == ["tiny-mixed0.5"]
    over = found["mixed"]["over_pure"]
    assert over["value"] == pytest.approx(found["mixed"]["sd_points"]["value"] / found["pure"]["sd_points"]["value"])
    assert over["low"] < over["value"] < over["high"]


def test_answers_after_a_base_that_reasons_are_students_with_reasoning(tmp_path, rng):
    students = [
        {"name": "scratch", "student": "tiny", "learning_rate": 0.003, "seeds": [0]},
        {
            "name": "reasoner",
            "student": "tiny",
            "learning_rate": 0.003,
            "seeds": [0],
            "after": {"student": "scratch", "arm": "reasoning"},
        },
    ]
    arms = [{"arm": "ift"}, {"arm": "reasoning", "students": ["scratch"]}]
    settings = preset(
        students=students,
        arms=arms,
        comparators={},
        contrasts=[{"verdict_size": "scratch"}],
        interactions=[],
        tasks=ONE,
    )
    sizes = dict.fromkeys(("scratch", "reasoner"), 1_000_000)
    outcomes, _ = made_up(settings, tmp_path, rng, sizes=sizes)
    found = analysed(settings, outcomes, {})["analysis"]["equal_cost"]
    assert {e["id"] for e in found} == {"scratch-reasoning", "reasoner-ift"}
    assert {name for e in found for name in e["between"]} <= {"scratch-ift"}


def test_pays_needs_what_holms_correction_leaves(tmp_path, rng, monkeypatch):
    settings = preset(
        200,
        comparators={},
        contrasts=[{"verdict_size": "tiny"}],
        students=TWO,
        interactions=[],
        tasks=[{"task": "max", "train": 10, "test": 200}],
    )
    outcomes, _ = made_up(settings, tmp_path, rng, {"ift": 0.2, "reasoning": 0.9, "mixed:0.5": 0.5})
    results = analysed(settings, outcomes, {})
    assert {c["verdict"] for c in results["contrasts"]} == {"pays"}
    assert all("Holm" not in c["sentence"] for c in results["contrasts"])
    monkeypatch.setattr("distill.study.analysis.family.weighted_holm", lambda p_values, _: [0.2] * len(p_values))
    results = analysed(settings, outcomes, {})
    assert (
        {c["verdict"] for c in results["contrasts"]} == {"cannot tell"} == {v["verdict"] for v in results["verdicts"]}
    )
    assert all(
        "after Holm's correction for all that was declared p is 0.200" in c["sentence"] for c in results["contrasts"]
    )


def test_domains_are_the_groups_of_benchmarks():
    tasks = [SimpleNamespace(name="law", benchmark=SimpleNamespace(group="general")), SimpleNamespace(name="add")]
    assert _domains([Asked(task, []) for task in tasks]) == {"law": "general"}
