"""Every preset says what it is meant to say, on a machine with neither its files nor a network."""

import json
import socket
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from distill.artifact import folder_identity
from distill.cli import app
from distill.errors import InputError
from distill.evaluation.serving.profile import StudentProfileSettings
from distill.flops import hardware
from distill.report.blocks import Table
from distill.settings import load, validate
from distill.study.cells import cells
from distill.study.outcomes import MemberOutcome
from distill.study.page.beside import beside
from distill.study.plan.plan import plan
from distill.study.published import NAMES, Published, published
from distill.study.settings import StudySettings
from distill.study.stages import stages
from distill.study.workplace import NotMade, Workplace
from distill.tasks.benchmark import load_benchmark
from distill.tasks.registry import require_task

PRESETS = Path(__file__).parents[2] / "presets"
PAPER = "when-does-reasoning-matter"


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
    """In an empty folder, and whoever asks a network fails."""
    monkeypatch.chdir(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a preset is loaded without a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def preset(name: str) -> StudySettings:
    return load(StudySettings, PRESETS / f"{name}.yaml")


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_is_valid_anywhere_and_a_misspelt_task_in_it_is_not(path):
    settings = load(StudySettings, path)
    assert cells(settings) and {arm.id for arm in settings.arms} >= {c.treatment for c in settings.contrasts} - {
        *settings.comparators.names
    }
    values = yaml.safe_load(path.read_text())
    values["tasks"][0] = {"task": "winogrand", "test": 3}
    with pytest.raises(InputError, match=r"winogrand|unknown task in comparators|train of|tasks: none"):
        validate(StudySettings, values, source=path.name)


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_benchmark_has_too_few_questions_for_its_load(path):
    """As far as their files say how many there are: of the smallest that is put under load."""
    settings = load(StudySettings, path)
    sizes = {"aime": 30, "aqua-rat": 254, "consumer-qa": 396, "mmlu-pro-code": 410, "openbookqa": 500, "math-500": 500}
    names = settings.serving.get("tasks", [row.task for row in settings.tasks])
    load_ = validate(StudentProfileSettings, {"tasks": names} | settings.serving, source="serving").load
    counted = [sizes[name] for name in (name.partition(":")[0] for name in names) if name in sizes]
    assert load_.prompts_needed <= min(counted, default=10**9)


def test_the_papers_protocol_stands_in_its_preset():
    settings = preset(PAPER)
    rates = [(s.student, s.learning_rate["reasoning"], s.learning_rate["ift"]) for s in settings.students]
    assert rates == [
        ("Qwen/Qwen2.5-0.5B", 2e-5, 1e-5),
        ("Qwen/Qwen2.5-1.5B", 1e-5, 7e-6),
        ("Qwen/Qwen2.5-3B", 7e-6, 5e-6),
        ("Qwen/Qwen2.5-7B", 5e-6, 3e-6),
        ("Qwen/Qwen2.5-14B", 3e-6, 1e-6),
    ]
    assert [(row.name, row.imported.layout, row.expected_pairs) for row in settings.traces] == [
        ("general", "pairs", 1_300_000),
        ("math", "pairs", 300_000),
    ]
    every = {f"{kind}:{share}" for kind in ("sequential", "mixed") for share in ("0.25", "0.5", "0.75")}
    for corpus in ("general", "math"):
        shown = {arm.arm for arm in settings.arms if arm.traces == corpus and arm.match == "samples"}
        assert shown == {"ift", "reasoning", *every}
    names = [row.task.partition(":")[0] for row in settings.tasks]
    kinds = [load_benchmark(name).kind for name in names]
    assert (
        len(set(names)) == 18 and sorted(set(kinds)) == ["multiple choice", "open-ended"] and kinds.count(kinds[0]) == 9
    )
    by_arm = {arm.id: arm for arm in settings.arms}
    smallest, largest = settings.students[0], settings.students[-1]
    for student, name, wanted in (
        (smallest, "ift-general", (1e-5, None)),
        (smallest, "reasoning-math", (2e-5, None)),
        (largest, "sequential0.25-general", (1e-6, 3e-6)),
        (largest, "mixed0.75-math", (3e-6, None)),
    ):
        train = settings.train_settings(student, by_arm[name], 0)
        assert (train.learning_rate, train.reasoning_learning_rate) == wanted
        assert (train.epochs, train.batch, train.batch_unit, train.schedule) == (1, 32, "examples", "wsd")
        assert (train.warmup_steps, train.decay_steps, train.final_learning_rate_ratio) == (150, 300, 0.1)
    asked = settings.evaluate_settings()
    assert asked.max_tokens == 16384 and asked.score == "generated" and len(asked.judges) == 3


def test_the_summarys_variant_differs_in_teacher_sizes_and_count():
    settings = preset(f"{PAPER}-summary")
    (row,) = settings.traces
    assert row.tasks == {"questions": 100_000} and row.teacher.vllm == "Qwen/Qwen2.5-7B-Instruct"
    assert [s.student.rpartition("-")[2] for s in settings.students] == ["1.5B", "3B", "7B", "14B", "32B"]
    assert len(settings.tasks) == 6


def test_refuels_protocol_stands_in_its_preset():
    settings = preset("reason-or-not")
    assert len(settings.students) == 2 and len(settings.tasks) == 3
    assert {arm.arm for arm in settings.arms} == {"ift", "reasoning"} and settings.comparators.base is not None
    (interaction,) = settings.interactions
    assert interaction.students == [student.name for student in settings.students]
    assert settings.traces[0].gold == "shown"
    for student in settings.students:
        train = settings.train_settings(student, settings.arms[0], 1)
        assert (train.lora.rank, train.epochs, train.learning_rate) == (64, 20, 1e-5)
        assert train.schedule == "cosine" and train.learning_rate * train.final_learning_rate_ratio == pytest.approx(
            1e-6
        )
        assert (train.validation, train.validation_epochs, train.weights) == (0.1, 2, "best")


def test_embedded_full_is_three_sizes_by_five_ratios_by_two_orders_by_three_seeds():
    settings = preset("embedded-full")
    plain = {arm.arm for arm in settings.arms if arm.match == "samples" and not arm.training}
    assert plain == {"ift", "reasoning"} | {
        f"{kind}:{r}" for kind in ("sequential", "mixed") for r in (0.25, 0.5, 0.75)
    }
    assert len(settings.students) == 3 and all(len(size.seeds) == 3 for size in settings.students)
    assert {arm.match for arm in settings.arms} == {"samples", "tokens", "flops"}
    # The router's two arms are one student, asked in two ways.
    both = {m.student for cell in cells(settings) if cell.arm.id.startswith("switch") for m in cell.students()}
    assert len(both) == 9


def test_embedded_mixing_shows_every_pair_three_times_and_a_quarter_of_it_with_reasoning():
    settings = preset("embedded-mixing")
    (size,) = settings.students
    trainings = {arm.id: settings.train_settings(size, arm, 0) for arm in settings.arms}
    assert trainings.pop("ift").shown.ratio == 0 and trainings.pop("reasoning").shown.ratio == 1
    plain = trainings["mixed0.25"]
    for training in trainings.values():
        assert training.shown.ratio == 0.25
        assert (sum(own for _, own in training.shown.curriculum) or training.epochs) == plain.epochs == 3
        assert training.learning_rate == plain.learning_rate and training.match == "samples"
    others = trainings.keys() - {"mixed0.25"}
    assert {contrast.treatment for contrast in settings.contrasts} == others and len(size.seeds) == 5
    assert {contrast.control for contrast in settings.contrasts} == {"mixed0.25"}


def test_both_bases_of_embedded_interaction_are_made_before_what_starts_from_them():
    settings = preset("embedded-interaction")
    (row,) = settings.interactions
    assert row.students == ["reasoning_base", "plain_base"]
    after = {stage.name: stage.after for stage in stages(settings)}
    for base, arm in (("reasoning_base", "reasoner"), ("plain_base", "plain")):
        size = settings.size_row(base)
        for cell in cells(settings):
            for member in cell.students() if cell.size == size else ():
                first = member.origin(settings)
                assert (first.cell.id, first.seed) == (f"scratch-{arm}", member.seed)
                assert f"train {first.student}" in after[f"train {member.student}"]
                assert first.origin(settings) is None


AFTER = {
    "title": "a base made here",
    "question": "does it go on?",
    "traces": [
        {"name": "before", "tasks": {"max": 60}, "teacher": "solver"},
        {"name": "later", "tasks": {"add": 60}, "teacher": "solver"},
    ],
    "tasks": [{"task": "add", "test": 20}],
    "students": [
        {"name": "scratch", "student": "tiny", "learning_rate": 0.003, "seeds": [0, 1]},
        {"name": "base", "student": "tiny", "after": {"student": "scratch", "arm": "first"}, "learning_rate": 0.001}
        | {"seeds": [1]},
    ],
    "arms": [
        {"arm": "reasoning", "name": "first", "traces": "before", "students": ["scratch"]},
        {"arm": "ift", "name": "second", "traces": "later", "students": ["base"]},
        {"arm": "reasoning", "name": "third", "traces": "later", "students": ["base"]},
    ],
    "training": {"row_tokens": 256, "batch": 16, "precision": "fp32"},
    "serving": {"concurrencies": [1], "requests": 4},
    "margin_points": 2,
    "contrasts": [{"treatment": "third", "control": "second", "verdict_size": "base"}],
    "hardware": "cpu-2core",
}


def with_after(base: dict, **scratch: object) -> dict:
    first, second = AFTER["students"]
    return AFTER | {"students": [first | scratch, second | base]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (with_after({"after": {"student": "scrach", "arm": "first"}}), "did you mean 'scratch'"),
        (with_after({"after": {"student": "scratch", "arm": "furst"}}), "did you mean 'first'"),
        (with_after({"after": {"student": "base", "arm": "first"}}), "trained after nothing, found base"),
        (with_after({"student": "small"}), "a size of student small that is trained after nothing, found scratch"),
        (with_after({"after": {"student": "scratch", "arm": "second"}}), "scratch has no second with seed 1"),
        (with_after({}, seeds=[0]), "scratch has no first with seed 1 to start from"),
    ],
)
def test_what_a_training_goes_on_from_must_be_a_training_of_the_study(values, said):
    with pytest.raises(InputError, match=said):
        validate(StudySettings, values, source="study.yaml")


def test_a_training_goes_on_from_the_weights_of_the_one_before_it(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    settings = validate(StudySettings, AFTER, source="study.yaml")
    place = Workplace(settings, tmp_path / "out", threads=1)
    # The command that would be a process of its own, here: importing everything again takes longer than it does.
    here = lambda command, *_: app(command[command.index("train") :], standalone_mode=False)  # noqa: E731
    monkeypatch.setattr(place.children, "run", here)
    for row in settings.trace_rows:
        place.traces(row)
    planned = {one["id"]: one["training"] for one in plan(settings)["cells"]}
    student = {member.id: member for cell in cells(settings) for member in cell.students()}
    with pytest.raises(NotMade):
        place.train(student["base-second-seed1"])  # what it starts from is not there
    first, later = (place.train(student[name]) for name in ("scratch-first-seed1", "base-second-seed1"))
    assert later.recipe["student"]["files"] == folder_identity(first.path)
    vocabularies = [json.loads((one.path / "tokenizer.json").read_text())["model"]["vocab"] for one in (first, later)]
    assert vocabularies[0] == vocabularies[1]
    for name, made in (("scratch-first", first), ("base-second", later)):  # with the tokenizer that it would go on with
        counts = ("examples", "steps", "tokens", "supervised_tokens")
        assert [planned[name][count] for count in counts] == [made.summary[count] for count in counts]
    before, after = (load_file(folder.path / "model.safetensors") for folder in (first, later))
    steps, rate = later.summary["steps"], 0.001
    moved = max(float((after[name] - weight).abs().max()) for name, weight in before.items())
    assert 0 < moved < 3 * steps * rate  # AdamW moves a weight by about its rate a step; others would be far off
    assert place.looking().train(student["base-second-seed1"]).key == later.key


def test_a_name_is_checked_without_its_rows():
    for name in ("winogrande", "winogrande:nowhere.jsonl", "gsm8k:nowhere.jsonl", "gsm8k.yaml", "add"):
        require_task(name)
    for name, said in {
        "winogrand": "winogrande",
        "gsm8k": "needs a file",
        "add:x": "takes no path",
        "mine.yaml": "mine.yaml",
        "winogrande:": "after the colon",
        "rows.jsonl": "of your own",
    }.items():
        with pytest.raises(InputError, match=said):
            require_task(name)


def test_the_published_table_has_the_counts_that_its_text_states():
    table = published(PAPER)
    ahead = sum(pair.reasoning > pair.ift for pair in table.pairs)
    (claim,) = (claim for claim in table.claims if claim.of is not None)
    assert (ahead, len(table.pairs)) == (claim.value, claim.of) == (28, 40)
    by_place = {(p.corpus, p.suite, p.size): p for p in table.pairs}
    assert len(by_place) == 40
    one = by_place["math", "General-OE", "0.5B"]
    assert (one.ift, one.reasoning, one.difference_points, one.base) == (31.8, 8.2, -23.6, None)
    one = by_place["general", "Math-MC", "14B"]
    assert (one.ift, one.reasoning, one.group, one.format) == (76.2, 90.9, "math", "multiple choice")


def test_refuels_figures_show_a_base_that_lost_what_it_could():
    f1, rouge = published("reason-or-not").pairs
    assert (f1.metric, f1.base, f1.ift, f1.reasoning, f1.difference_points) == ("macro_f1", 9.6, 8.2, None, None)
    assert (rouge.metric, rouge.base, rouge.ift, rouge.reasoning) == ("rouge_l", 20.5, 30.0, 77.0)
    assert {claim.value for claim in published("reason-or-not").claims} == {4.9, 6.7}


def test_refuels_figures_stand_beside_a_reproduction_by_its_preset(rng):
    settings = preset("reason-or-not")
    score = lambda: {"value": float(rng.random()), "low": 0.0, "high": 1.0}  # noqa: E731
    tasks = [
        {"name": row.task, "answer_format": row.data.answer_format, "metrics": ["accuracy", row.metric]}
        | {"metric": row.metric}
        for row in settings.tasks
    ]
    scored = lambda: {t["name"]: {"metrics": {name: score() for name in t["metrics"]}} for t in tasks}  # noqa: E731
    found = [
        {"id": cell.id, "arm": cell.arm.arm, "size": cell.size.name, "match": "samples", "tasks": scored()}
        for cell in cells(settings)
    ]
    results = {"preset": settings.model_dump(mode="json"), "tasks": tasks, "cells": found, "confidence": 0.95}
    results["teacher"] = {"sets": [{"name": row.name} for row in settings.trace_rows]}
    blocks = beside(results)
    (table,) = (block for block in blocks if isinstance(block, Table))
    rows = [row for group in table.groups for row in group.rows]
    here = {rows[i - 1][0].text: row for i, row in enumerate(rows) if row[0].text == "this study"}
    assert set(here) == {"classification, macro_f1", "extraction, rouge_l"}
    cell = {one["id"]: one["tasks"] for one in found}
    for suite, names, metric in (
        ("classification, macro_f1", ["classification"], "macro_f1"),
        ("extraction, rouge_l", ["extraction-1", "extraction-2"], "rouge_l"),
    ):
        means = [
            100 * sum(cell[f"reasoning_base-{arm}"][n]["metrics"][metric]["value"] for n in names) / len(names)
            for arm in ("ft_nr", "ft_r")
        ]
        assert here[suite][1].text == f"{means[0]:.1f} → {means[1]:.1f}"


@pytest.mark.parametrize("name", NAMES)
def test_what_was_published_is_named_as_the_preset_names_it(name):
    settings, table = preset(name), published(name)
    assert {size.casefold() for size in table.sizes} <= {row.name for row in settings.students}
    assert {row.corpus for row in table.rows} <= {row.name for row in settings.trace_rows}


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_contrast_of_a_preset_says_what_it_is_matched_on(path):
    written = [row.get("matched") for row in yaml.safe_load(path.read_text())["contrasts"]]
    assert written == [row.matched for row in load(StudySettings, path).contrasts]


def test_every_published_study_can_be_named_in_a_preset_and_travels_with_the_package():
    assert set(NAMES) == {*StudySettings.model_fields["published"].annotation.__args__[0].__args__}
    folder = files("distill.study.published")
    assert {entry.name for entry in folder.iterdir()} >= {f"{name}.yaml" for name in NAMES}
    with pytest.raises(InputError, match="did you mean 'reason-or-not'"):
        published("reason-or-no")


def test_a_table_with_a_score_too_few_is_refused(tmp_path):
    values = yaml.safe_load((files("distill.study.published") / f"{PAPER}.yaml").read_text())
    values["rows"][3]["ift"].pop()
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"general / Math-MC: expected a score for each"):
        load(Published, tmp_path / "short.yaml")


def test_a_task_that_is_not_put_under_load_has_no_price():
    outcome = MemberOutcome(None, None, None)
    level = {"concurrency": 1, "load": {"concurrency": 1}, "measured": {"seconds_per_answer": 2.0}}
    outcome.__dict__["load"] = {"threads": 1, "tasks": {"add": {"levels": [level]}}}
    assert outcome.seconds_per_answer("add") == 2.0
    assert outcome.seconds_per_answer("max") is None and outcome.usd_per_answer("max", hardware("l4")) is None
