"""The study as a whole: what a preset may say, how jobs fail, and that a killed study ends as an unharmed one does."""

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from distill.errors import InputError
from distill.evaluation.statistics.intervals import Interval
from distill.process import child_environment, distill_command
from distill.settings import load, validate
from distill.study import run as study_run
from distill.study import workplace
from distill.study.cells import cells
from distill.study.declared import declare, seeds_declared
from distill.study.jobs import Children, Job, JobFailed, run_jobs
from distill.study.outcomes import Graded, MemberOutcome
from distill.study.results import build_results, decide, sentence
from distill.study.settings import StudySettings
from distill.study.stages import stages
from distill.study.workplace import NotMade, Workplace

PRESETS = Path(__file__).parents[2] / "presets"

MINI = {
    "title": "two students",
    "question": "does it run?",
    "tasks": [{"task": "max", "train": 300, "test": 40}],
    "students": [{"name": "tiny", "student": "tiny", "learning_rate": 0.003, "seeds": [0]}],
    "arms": [{"arm": "ift"}, {"arm": "reasoning"}],
    "training": {"row_tokens": 512, "batch": 8, "precision": "fp32"},
    "evaluation": {"max_tokens": 40},
    "serving": {"concurrencies": [4], "requests": 8, "warmup_requests": 1},
    "margin_points": 2,
    "contrasts": [{"verdict_size": "tiny"}],
    "hardware": "cpu-2core",
}


SIZES = [MINI["students"][0], MINI["students"][0] | {"name": "other"}]
TWO = {"students": SIZES, "comparators": {"equal_cost": {}}}
VOTED = {
    "comparators": {"majority": {"votes": 5}},
    "contrasts": [{"verdict_size": "tiny"}, {"control": "majority"}],
}


def changed(**values: object) -> dict:
    return json.loads(json.dumps(MINI)) | values


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("embedded*.yaml")), ids=lambda p: p.stem)
def test_every_preset_is_valid_and_names_its_cells_apart(preset):
    ids = [member.id for cell in cells(load(StudySettings, preset)) for member in cell.students()]
    assert len(set(ids)) == len(ids) >= 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (changed(tasks=[{"task": "ad", "train": 1, "test": 1}]), "did you mean 'add'"),
        (changed(arms=[{"arm": "mixed:1.5"}]), "from 0 to 1"),
        (changed(arms=[{"arm": "reason"}]), "did you mean 'reasoning'"),
        (changed(arms=[{"arm": "ift\nx"}]), "unknown arm"),
        (changed(students=[MINI["students"][0] | {"name": "x" * 300}]), "students.0.name"),
        (changed(arms=[*MINI["arms"], {"arm": "ift", "name": "x" * 300}]), "arms.2.name"),
        (changed(arms=[{"arm": "ift"}, {"arm": "ift"}]), "appears twice"),
        (changed(arms=[{"arm": "ift", "match": "token"}]), "arms.0.match"),
        (changed(contrasts=[{"verdict_size": "tinny"}]), "did you mean 'tiny'"),
        (changed(contrasts=[{"treatment": "mixed", "verdict_size": "tiny"}]), "unknown arm in contrasts"),
        (changed(contrasts=[{}]), "exactly one"),
        (changed(contrasts=[{"verdict_size": "tiny"}, {}]), "reasoning and ift are compared twice"),
        (changed(contrasts=[{"treatment": "ift", "verdict_size": "tiny"}]), "ift is compared with itself"),
        (changed(interactions=[{"students": ["tiny", "tiny"]}]), "two sizes that differ"),
        (changed(arms=[*MINI["arms"], {"arm": "mixed:0.5", "name": "base"}]), "arms: base is the name of a comparator"),
        (changed(server={"dtype": "float16"}), "server.dtype: the study says it itself"),
        (
            changed(
                comparators={"teacher": {"url": "http://a/v1", "model": "m"}},
                evaluation={"score": "loglikelihood"},
            ),
            "comparators.teacher: gives no likelihoods",
        ),
        (changed(expected_tokens={"prompt": 1, "reasoning": 1e300, "ift": 1}), "expected_tokens.reasoning"),
        (changed(title=[["x"] * 1000] * 1000), "field title"),
        (changed(margin_points=0), "margin_points"),
        (changed(hardware="h2000"), "h200-sxm"),
        (changed(epoch=3), "epoch: no such field"),
        (changed(arms=[{"arm": "ift"}, {"arm": "reasoning", "seeds": [1]}]), "no training seed in common in tiny"),
        (changed(training={"batch": 0}), "training of tiny-ift: field batch"),
        (changed(training={"schedule": "wsd"}), "needs decay_steps"),
        (changed(evaluation={"samples": 2}), "2 greedy answers would all be the same"),
        (changed(students=[MINI["students"][0] | {"seeds": [-1]}]), "students.0.seeds.0"),
        (changed(students=[MINI["students"][0] | {"seeds": [2**31]}]), "students.0.seeds.0"),
        (changed(students=[MINI["students"][0] | {"seeds": [0, 0]}]), "appears twice"),
        (changed(students=[MINI["students"][0] | {"learning_rate": float("inf")}]), "learning_rate"),
        (changed(data_seed=-1), "data_seed"),
        (changed(students=[{"name": "tiny", "student": "tiney", "learning_rate": 1, "seeds": [0]}]), "'tiny'"),
        (changed(arms=[{"arm": "ift", "training": {"batch": 4}}]), "with training of its own it needs a name"),
        (changed(arms=[{"name": "a"}]), "expected an arm, or phases under training"),
        (
            changed(arms=[{"arm": "ift", "name": "a", "training": {"seed": 4}}]),
            "is said by a student's or an arm's row",
        ),
        (changed(training={"epohcs": 2}), "field epohcs: no such field; did you mean epochs?"),
        (changed(evaluation={"questions": []}), "evaluation: field questions: is said"),
        (changed(evaluation={"max_token": 3}), "field max_token: no such field; did you mean max_tokens?"),
        (changed(arms=[{"arm": "ift", "traces": "other"}]), "unknown traces in arms"),
        (changed(tasks=[{"task": "max", "test": 40}]), "give some a `train`, or `traces`"),
        (changed(traces=[{"name": "a", "tasks": {"max": 5}}]), "train of task max: the rows of `traces` say"),
        (
            changed(traces=[{"name": "a"}], tasks=[{"task": "max", "test": 4}]),
            "expected one of tasks, import and folder",
        ),
        (changed(interactions=[{"students": ["tiny", "small"]}]), "unknown student in interactions"),
        (changed(comparators={"router": {"thinks": "reasoning", "direct": "it"}}), "unknown arm in comparators.router"),
        (changed(comparators={"majorty": {}}), "comparators.majorty"),
        (changed(comparators={"majority": {"arm": "ifft"}}), "did you mean 'ift'"),
        (changed(comparators={"majority": {"students": ["tinny"]}}), "did you mean 'tiny'"),
        (changed(comparators={"majority": {"tasks": ["add"]}}), "unknown task in comparators.majority"),
        (changed(comparators={"majority": {"votes": 1}}), "comparators.majority.votes"),
        (changed(comparators={"majority": {"temperature": 0}}), "comparators.majority.temperature"),
        (
            changed(
                arms=[{"arm": "ift"}, {"arm": "reasoning"}, {"arm": "mixed:0.5", "seeds": [3]}],
                comparators={"majority": {"matched": "mixed0.5"}},
            ),
            "ift and mixed0.5 have no training seed in common",
        ),
        (changed(comparators={"base": {}}), "tiny starts from random weights"),
        (changed(comparators={"teacher": {"url": "localhost", "model": "m"}}), "comparators.teacher.url"),
        (changed(contrasts=[{"verdict_size": "tiny"}, {"control": "majority"}]), "unknown arm in contrasts"),
        (changed(**VOTED, margin_points=0), "margin_points"),
        (
            changed(**VOTED | {"contrasts": [{"treatment": "ift", "control": "majority", "verdict_size": "tiny"}]}),
            "decides no verdict",
        ),
        (
            changed(
                comparators={"majority": {}, "router": {"thinks": "reasoning", "direct": "ift"}},
                contrasts=[{"control": "router", "verdict_size": "tiny"}],
            ),
            "router is a comparator, which may stand beside an arm but decides no verdict",
        ),
        (
            changed(
                comparators={"majority": {}},
                tasks=[{"task": "max", "train": 3, "test": 4, "metric": "macro_f1"}],
                contrasts=[{"control": "majority", "verdict_size": "tiny"}],
            ),
            "has no macro_f1, which task max is read in",
        ),
        (
            changed(contrasts=[{"matched": "tokens", "verdict_size": "tiny"}]),
            "matched on samples, found matched: tokens",
        ),
        (
            changed(
                arms=[*MINI["arms"], {"arm": "ift", "name": "longer", "training": {"epochs": 2}}],
                contrasts=[{"control": "longer", "matched": "samples", "verdict_size": "tiny"}],
            ),
            "reasoning against longer is matched on nothing, found matched: samples",
        ),
        (
            changed(**VOTED | {"contrasts": [{"verdict_size": "tiny"}, {"control": "majority", "matched": "tokens"}]}),
            "reasoning against majority is matched on output tokens, found matched: tokens",
        ),
        (changed(comparators={"equal_cost": {}}), "expected ift in two sizes or more"),
        (changed(comparators={"equal_cost": {"sizes": ["tiny"]}}), "comparators.equal_cost.sizes"),
        (changed(**TWO | {"comparators": {"equal_cost": {"sizes": ["tiny", "others"]}}}), "did you mean 'other'"),
        (
            changed(
                **TWO | {"comparators": {"equal_cost": {"arm": "reasoning"}}},
                contrasts=[{"control": "equal_cost", "verdict_size": "tiny"}],
            ),
            "equal_cost is made of reasoning, which is compared with itself",
        ),
        (changed(**TWO | {"comparators": {"equal_cost": {"arm": "itf"}}}), "unknown arm in comparators.equal_cost"),
        (
            changed(**TWO | {"contrasts": [{"control": "equal_cost", "matched": "flops", "verdict_size": "tiny"}]}),
            "is matched on inference flops, found matched: flops",
        ),
        (
            changed(**TWO | {"contrasts": [{"verdict_size": "tiny"}, {"treatment": "equal_cost"}]}),
            "name it as the control",
        ),
        (
            changed(
                **TWO,
                arms=[{"arm": "ift", "students": ["tiny"]}, {"arm": "reasoning"}],
            )
            | {"comparators": {"equal_cost": {"sizes": ["tiny", "other"]}}},
            "comparators.equal_cost: there is no ift in other",
        ),
        (
            changed(
                **TWO | {"students": [SIZES[0], SIZES[1] | {"seeds": [7]}]},
                contrasts=[{"control": "equal_cost", "verdict_size": "tiny"}],
            ),
            "reasoning and equal_cost have no training seed in common in tiny and each of tiny, other",
        ),
    ],
)
def test_a_wrong_preset_is_refused_in_one_line_that_names_the_field(values, said):
    with pytest.raises(InputError) as caught:
        validate(StudySettings, values, source="study.yaml")
    assert said in str(caught.value) and "\n" not in str(caught.value) and "study.yaml" in str(caught.value)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: a\ntitle: b\n", "study.yaml:2: the key 'title' stands twice"),
        ("training: {batch: 8, row_tokens: 256, batch: 16}\n", "study.yaml:1: the key 'batch' stands twice"),
        (f"{BOMB}title: *a11\n", "field a0: no such field"),
        (f"training: {'[' * 5000}", "not valid YAML"),
        ("training: &a {x: *a}\ntitle: a", "needed, but not given"),
        ("title: 2026-02-30\n", "not valid YAML"),
        ("- a\n", "expected a mapping"),
    ],
)
def test_a_file_that_is_no_preset_is_refused_in_one_line(tmp_path, text, said):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load(StudySettings, file)
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_small_number_is_the_same_however_it_is_written(tmp_path):
    """The stages of a study are named alike by its preset and by the preset.json that they are started with."""
    arms = [{"arm": "ift"}, {"arm": "reasoning"}, {"arm": "mixed:0.5", "name": "own", "training": {"weight_decay": 9}}]
    text, names = yaml.safe_dump(changed(arms=arms)), []
    for written in ("1e-5", "1.0e-5", "0.00001"):
        (tmp_path / "study.yaml").write_text(text.replace("weight_decay: 9", f"weight_decay: {written}"))
        settings = load(StudySettings, tmp_path / "study.yaml")
        study_run.write_beginning(settings, tmp_path / "out", "how")
        again = load(StudySettings, tmp_path / "out" / study_run.PRESET)
        names += [[stage.name for stage in stages(one)] for one in (settings, again)]
    assert all(one == names[0] for one in names)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (2.0, 9.0, "pays"),
        (1.99, 9.0, "cannot tell"),
        (-9.0, 1.99, "does not pay"),
        (-9.0, 2.0, "cannot tell"),
        (0.0, 0.0, "does not pay"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side_of_the_margin(low, high, verdict):
    assert decide(Interval((low + high) / 2, low, high), margin=2.0) == verdict
    corrected = decide(Interval((low + high) / 2, low, high), margin=2.0, significant=False)
    assert corrected == ("cannot tell" if verdict == "pays" else verdict)


@pytest.mark.parametrize("arm", ["ift", "mixed:0.5", "sequential:0.5"])
@pytest.mark.parametrize("match", ["steps", "tokens", "flops"])
def test_any_arm_can_be_matched_with_or_without_the_arm_reasoning(arm, match):
    row = {"arm": arm, "match": match, "answers": "stripped", "seeds": [0, 7]}
    name = f"{arm.replace(':', '')}-stripped-{match}_matched"
    contrast = {"treatment": name, "verdict_size": "tiny"}
    settings = validate(StudySettings, changed(arms=[{"arm": "ift"}, row], contrasts=[contrast]), source="study.yaml")
    (cell,) = [cell for cell in cells(settings) if cell.arm.match != "samples"]
    assert cell.id == f"tiny-{name}"
    wanted = [member.train_settings(settings) for member in cell.students()]
    assert [(w.arm, w.match, w.tokens, w.seed) for w in wanted] == [(arm, match, None, 0), (arm, match, None, 7)]


CONTRAST = {
    "task": "add",
    "size": "tiny",
    "metric": "accuracy",
    "treatment": "tiny-mixed0.5",
    "control": "tiny-ift",
    "difference_points": {"value": 10.0, "low": 5.0, "high": 15.0},
    "n_seeds": 3,
    "n_questions": 300,
    "token_factor": 9.5,
    "verdict": "pays",
    "subject": "these arms",
}


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("pays", "On add, tiny-mixed0.5 beats tiny-ift by the margin: "),
        ("does not pay", "On add, tiny-mixed0.5 does not beat tiny-ift by the margin: "),
        ("cannot tell", "On add, this study cannot tell whether tiny-mixed0.5 beats tiny-ift by the margin: "),
    ],
)
def test_a_sentence_speaks_of_reasoning_only_where_reasoning_was_compared_with_ift(verdict, said):
    text = sentence(CONTRAST | {"verdict": verdict}, 2.0, 0.95, on_reasoning=False)
    assert text.startswith(said) and "reasoning" not in text
    assert "reasoning" in sentence(CONTRAST | {"verdict": verdict}, 2.0, 0.95, on_reasoning=True)
    few = sentence(CONTRAST | {"verdict": verdict, "subject": "these trained students"}, 2.0, 0.95, on_reasoning=False)
    assert "in these trained students" in few and "tiny-mixed0.5" in few


def test_with_fewer_than_three_seeds_a_sentence_speaks_of_these_students():
    of = lambda seeds, subject: sentence(  # noqa: E731
        CONTRAST | {"n_seeds": seeds, "subject": subject}, 2.0, 0.95, on_reasoning=True
    )
    assert "these trained students" in of(2, "these trained students")
    assert "these trained students" not in of(3, "reasoning")
    assert "+10.0 points" in of(3, "reasoning") and "+5.0 to +15.0" in of(3, "reasoning")
    assert "training tiny students on reasoning" in of(3, "reasoning") and "9.5x the output tokens" in of(
        3, "reasoning"
    )


def test_a_sentence_leaves_out_a_factor_that_is_not_known():
    text = sentence(CONTRAST | {"token_factor": None}, 2.0, 0.95, on_reasoning=True)
    assert text.endswith("3 training seeds).")


def test_a_failed_job_takes_down_only_what_depends_on_it():
    ran = []

    def fail(_: object) -> None:
        raise JobFailed("out of memory")

    jobs = [
        Job("bad", fail),
        Job("after bad", lambda _: ran.append("after bad"), after=("bad",)),
        Job("after that", lambda _: ran.append("after that"), after=("after bad",)),
        Job("good", lambda _: ran.append("good")),
        Job("after good", lambda _: ran.append("after good"), after=("good",)),
    ]
    failures = run_jobs(jobs, ["0", "1"], Children())
    assert ran == ["good", "after good"]
    assert failures == {"bad": "out of memory", "after bad": "bad failed", "after that": "after bad failed"}


def test_a_failed_child_is_told_by_the_last_line_of_its_log(tmp_path):
    with pytest.raises(JobFailed, match="no such folder"):
        Children().run(
            distill_command("train", "--traces", "nowhere", "--student", "tiny", "--out", str(tmp_path / "s")),
            tmp_path / "logs" / "a.log",
            1,
        )


def test_what_nobody_expected_takes_down_no_other_job():
    ran = []
    jobs = [Job("bad", lambda _: {}["column"]), Job("good", lambda _: ran.append("good"))]
    assert run_jobs(jobs, ["0"], Children()) == {"bad": "KeyError: 'column'"} and ran == ["good"]


def test_why_a_stage_failed_that_nobody_expected_is_kept_with_its_traceback(tmp_path):
    with pytest.raises(KeyError), study_run._kept_failure(tmp_path, "serve a"):
        raise KeyError("column")
    assert json.loads((tmp_path / "failures" / "serve-a.json").read_text())["reason"] == "KeyError: 'column'"
    assert "Traceback" in (tmp_path / "logs" / "serve-a.traceback.log").read_text()


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "{}", '{"asked_for": "ASKED"}', '{"asked_for": "ASKED", "left": {"other": "x"}}', "\xff"]
)
def test_a_damaged_note_of_a_stage_is_written_again(tmp_path, damage):
    settings = validate(StudySettings, MINI, source="study.yaml")
    (row,) = settings.trace_rows
    place = Workplace(settings, tmp_path, 1)
    made = place.traces(row)
    file = tmp_path / "stages" / "traces-all.json"
    whole = file.read_bytes()
    damage = damage.replace("ASKED", json.loads(whole)["asked_for"])
    file.write_bytes(damage.encode("latin-1"))
    with pytest.raises(NotMade):
        place.looking().traces(row)
    assert place.traces(row).key == made.key and file.read_bytes() == whole


@pytest.mark.parametrize("after", [("nobody",), ("b",)])
@pytest.mark.timeout(30)
def test_jobs_that_can_never_start_are_an_error_and_no_endless_loop(after):
    ran = []
    jobs = [Job("a", lambda _: ran.append("a")), Job("b", lambda _: ran.append("b"), after=after)]
    with pytest.raises(ValueError, match=f"jobs wait for what nobody makes: {after[0]}"):
        run_jobs(jobs, ["0", "1"], Children())
    assert ran == ["a"]


class FakeServer:
    """Waits for its end as a request to a server does."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def __enter__(self) -> "FakeServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.ended.set()


@pytest.mark.timeout(30)
def test_what_stops_a_study_stops_its_servers_and_lets_nothing_new_start(tmp_path):
    children, server = Children(), FakeServer()
    seen = []

    def serve(_: object) -> None:
        with children.serving(server):
            server.ended.wait(20)
            seen.append("server gone")
        try:
            children.run(distill_command("doctor"), tmp_path / "late.log", 1)
        except JobFailed as failure:
            seen.append(str(failure))

    def interrupt(_: object) -> None:
        while not children.servers:
            time.sleep(0.01)
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("serve", serve), Job("interrupt", interrupt)], ["0", "1"], children)
    assert seen == ["server gone", "the study was stopped"] and time.monotonic() - began < 10
    assert (tmp_path / "late.log").read_text() == "" and not children.servers and not children.running
    with pytest.raises(JobFailed, match="stopped"), children.serving(FakeServer()):
        pytest.fail("a server was started after the end")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.timeout(60)
def test_sigterm_ends_a_study_as_ctrl_c_does(tmp_path, monkeypatch, number):
    settings = validate(StudySettings, MINI, source="study.yaml")
    server = FakeServer()

    def serve_forever(jobs, slots, children, watch):
        def serve(_: object) -> None:
            with children.serving(server):
                os.kill(os.getpid(), number)
                server.ended.wait(20)

        return run_jobs([Job("serve", serve)], slots, children)

    monkeypatch.setattr(study_run, "run_jobs", serve_forever)
    before = signal.getsignal(number)
    with pytest.raises(study_run.Stopped) as stopped:
        study_run.run(settings, tmp_path / "out", command="")
    assert stopped.value.signal == number and server.ended.is_set()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (changed(margin_points=3), "margin_points 2.0 -> 3.0"),
        (changed(confidence=0.9), "confidence 0.95 -> 0.9"),
        (changed(data_seed=4), "data_seed 0 -> 4"),
        (changed(tasks=[{"task": "max", "train": 300, "test": 41}]), "tasks.max.test 40 -> 41"),
        (changed(comparators={"majority": {"votes": 3}}), "comparators.majority.votes (none) -> 3"),
        (
            changed(contrasts=[{"verdict_size": "tiny"}, {"treatment": "ift", "control": "reasoning"}]),
            "contrasts.1.control (none) -> reasoning",
        ),
        (changed(tasks=[MINI["tasks"][0] | {"metric": "f1"}]), "tasks.max.metric accuracy -> f1"),
        # What the compared arms are, under names that stay.
        (
            changed(arms=[{"arm": "ift", "match": "tokens", "name": "ift"}, {"arm": "reasoning"}]),
            "arms.ift.match samples",
        ),
        (
            changed(arms=[{"arm": "ift"}, {"arm": "mixed:0.5", "name": "reasoning"}]),
            "arms.reasoning.arm reasoning -> mixed",
        ),
        (changed(arms=[{"arm": "ift", "think": "off", "name": "ift"}, {"arm": "reasoning"}]), "arms.ift.think"),
        (
            changed(arms=[{"arm": "ift", "name": "ift", "training": {"keep": "verified"}}, {"arm": "reasoning"}]),
            "arms.ift.training.keep (none) -> verified",
        ),
        (changed(teacher={"url": "http://a/v1", "model": "m"}), "traces.all.teacher"),
        (changed(students=[MINI["students"][0] | {"student": "small"}]), "students.tiny.student tiny -> small"),
        (changed(students=[MINI["students"][0] | {"seeds": [1]}]), "seeds.tiny-ift.0 0 -> null"),
        (
            changed(students=[MINI["students"][0] | {"name": "other"}], contrasts=[{"verdict_size": "other"}]),
            "seeds.tiny-ift",
        ),
    ],
)
def test_what_was_declared_before_the_run_cannot_be_changed_after_it(tmp_path, values, said):
    first = validate(StudySettings, MINI, source="study.yaml")
    declare(first, tmp_path)
    declare(first, tmp_path)
    kept = (tmp_path / "declared.json").read_bytes()
    with pytest.raises(InputError, match="choose another --out") as caught:
        declare(validate(StudySettings, values, source="study.yaml"), tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "declared.json").read_bytes() == kept
    # What is not declared may change: another learning rate is another student, not another question.
    declare(validate(StudySettings, changed(training={"batch": 4}), source="study.yaml"), tmp_path)
    # Nor is an arm that is compared with nothing, and what is matched need not be said.
    more = {
        "arms": [*MINI["arms"], {"arm": "mixed:0.5"}],
        "contrasts": [{"verdict_size": "tiny", "matched": "samples"}],
    }
    declare(validate(StudySettings, changed(**more), source="study.yaml"), tmp_path)


def test_what_a_declared_size_goes_on_from_is_declared_too(tmp_path):
    first = MINI["students"][0]
    students = [first, first | {"name": "later", "after": {"student": "tiny", "arm": "start"}}]
    start = {"arm": "mixed:0.5", "name": "start", "students": ["tiny"]}
    of = lambda **more: validate(  # noqa: E731
        StudySettings, changed(students=students, arms=[*MINI["arms"], start | more]), source="study.yaml"
    )
    declare(of(), tmp_path)
    with pytest.raises(InputError, match=r"arms\.start\.arm mixed:0\.5 -> mixed:0\.6"):
        declare(of(arm="mixed:0.6"), tmp_path)


def test_sizes_and_seeds_may_be_added_and_which_were_is_known(tmp_path):
    row = MINI["students"][0]
    begun = validate(StudySettings, changed(students=[row | {"seeds": [3, 5]}]), source="study.yaml")
    declare(begun, tmp_path)
    rows = [row | {"seeds": [8, 5, 3]}, row | {"name": "small", "student": "small"}]
    grown = validate(StudySettings, changed(students=rows), source="study.yaml")
    for _ in range(2):  # the first declaration stays
        declare(grown, tmp_path)
    assert seeds_declared(tmp_path) == {"tiny-ift": [3, 5], "tiny-reasoning": [3, 5]}
    assert seeds_declared(tmp_path / "elsewhere") is None


def test_sizes_between_which_equal_cost_is_read_are_declared(tmp_path):
    of = lambda rows, **row: validate(  # noqa: E731
        StudySettings, changed(**TWO | {"students": rows, "comparators": {"equal_cost": row}}), source="study.yaml"
    )
    declare(of(SIZES), tmp_path)
    more = [*SIZES, SIZES[0] | {"name": "third"}]
    with pytest.raises(InputError, match=r"comparators\.equal_cost\.sizes.*third"):
        declare(of(more), tmp_path)
    declare(of(more[::-1], sizes=["other", "tiny"]), tmp_path)


@pytest.mark.parametrize(
    ("values", "workers", "said"),
    [
        (MINI, 0, "workers: expected at least 1, found 0"),
        (MINI, -2, "workers"),
        (changed(tasks=[{"task": "max", "train": 300, "test": 10**9}]), 1, "max"),
        (changed(tasks=[{"task": "max", "train": 10**9, "test": 40}]), 1, "max"),
        (changed(tasks=[MINI["tasks"][0] | {"metric": "accurcy"}]), 1, "metric of task max 'accurcy': did you mean"),
        (changed(serving={"requests": 10**9}), 1, "max"),
        (changed(serving={"think": "on"}), 1, "serving: field think"),
        (changed(serving={"concurrencies": [0]}), 1, "serving: field concurrencies.0"),
        (
            changed(serving={"concurrencys": [1]}),
            1,
            "serving: field concurrencys: no such field; did you mean concurrencies",
        ),
    ],
)
def test_a_study_that_cannot_end_well_does_not_start(tmp_path, values, workers, said):
    settings = validate(StudySettings, values, source="study.yaml")
    with pytest.raises(InputError, match=said):
        study_run.run(settings, tmp_path / "out", command="", workers=workers)
    assert not (tmp_path / "out").exists()


def test_two_tasks_of_one_name_are_refused(tmp_path):
    for name in ("a", "b"):
        rows = [{"question": f"{name}{i}?", "answer": f"so #### {i}"} for i in range(60)]
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    tasks = [{"task": f"gsm8k:{tmp_path / name}", "train": 5, "test": 2} for name in ("a", "b")]
    settings = validate(StudySettings, changed(tasks=tasks), source="study.yaml")
    with pytest.raises(InputError, match="are both called gsm8k"):
        Workplace(settings, tmp_path / "out", 1)


def test_votes_are_asked_for_as_their_arm_is():
    ways = [{"mode": "ift", "name": "a"}, {"mode": "reasoning", "thinking_budget": 5, "name": "b"}]
    arms = [way | {"arm": "mixed:0.5", "training": {"mode_signal": "prompt"}} for way in ways]
    values = changed(
        arms=arms,
        contrasts=[{"treatment": "b", "control": "a", "verdict_size": "tiny"}],
        comparators={"majority": {"arm": "b", "matched": "a", "votes": 3}},
    )
    settings = validate(StudySettings, values, source="study.yaml")
    place = Workplace(settings, PRESETS, 1, looks_only=True)
    first, second = (cell.students()[0] for cell in cells(settings))
    assert place._vote_settings(first) is None
    votes = place._vote_settings(second)
    assert (votes.mode, votes.thinking_budgets, votes.samples, votes.temperature) == ("reasoning", (5,), 3, 0.7)


def test_a_load_at_rates_has_a_price():
    outcome = MemberOutcome(None, None, None)
    level = lambda seconds, **load: {  # noqa: E731
        "concurrency": load.get("concurrency"),
        "load": load,
        "measured": {"seconds_per_answer": seconds},
    }
    levels = [level(3.0, rate=2.0), level(1.0, concurrency=1), level(2.0, concurrency=4), level(4.0, rate=5.0)]
    for count, seconds in ((1, 3.0), (2, 1.0), (4, 2.0)):
        outcome.__dict__["load"] = {"tasks": {"add": {"levels": levels[:count]}}}
        assert outcome.seconds_per_answer("add") == seconds
    outcome.__dict__["load"] = {"tasks": {"add": {"levels": [levels[0], levels[3]]}}}
    assert outcome.seconds_per_answer("add") == 4.0


def test_arms_that_differ_in_how_they_are_asked_are_trained_once():
    arms = [{"arm": "ift"}, *({"arm": "mixed:0.5", "think": think} for think in ("on", "off", None))]
    values = changed(arms=arms, contrasts=[{"treatment": "mixed0.5-think_on", "verdict_size": "tiny"}])
    settings = validate(StudySettings, values, source="study.yaml")
    members = [member for cell in cells(settings) for member in cell.students()]
    assert len({member.id for member in members}) == 4
    assert {member.student for member in members} == {"tiny-ift-seed0", "tiny-mixed0.5-seed0"}
    bare = yaml.safe_load(yaml.safe_dump(values).replace("'on'", "on").replace("'off'", "off"))
    assert bare != values and validate(StudySettings, bare, source="study.yaml") == settings


def test_a_teacher_may_move_but_not_change(tmp_path):
    with_teacher = lambda **values: validate(  # noqa: E731
        StudySettings,
        changed(comparators={"teacher": {"url": "http://a/v1", "model": "m", **values}}),
        source="study.yaml",
    )
    declare(with_teacher(), tmp_path)
    declare(with_teacher(url="http://b/v1", api_key_env="B"), tmp_path)
    with pytest.raises(InputError, match=r"comparators\.teacher\.model m -> n"):
        declare(with_teacher(model="n"), tmp_path)


@pytest.fixture
def borrowed(vllm_server, tiny_student, tmp_path, monkeypatch) -> Callable[..., Workplace]:
    """A study of the student that the session's server has, which it borrows instead of starting one."""

    class Borrowed:
        def __init__(self, *_: object) -> None:
            pass

        def __enter__(self) -> "Borrowed":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        endpoint = vllm_server.endpoint

    def study(**comparators: object) -> Workplace:
        students = [MINI["students"][0] | {"student": str(tiny_student)}]
        values = changed(students=students, tasks=[{"task": "max", "train": 5, "test": 6}], comparators=comparators)
        settings = validate(StudySettings, values, source="study.yaml")
        return Workplace(settings, tmp_path / "out", 1)

    monkeypatch.setattr(workplace, "Server", Borrowed)
    return study


def test_a_pretrained_student_is_asked_before_it_is_trained(borrowed, tmp_path):
    study = borrowed(base={"few_shot": 3})
    (size,) = study.settings.students
    made = study.ask_base(size)
    assert made.summary["max"]["few_shot"] == 3 and made.summary["max"]["n_questions"] == 6
    results = build_results(study.settings, {}, {}, command="", asked_once={"tiny-base": made})
    (entry,) = results["comparators"]
    assert (entry["id"], entry["kind"], entry["size"]) == ("tiny-base", "base", "tiny")
    assert entry["tasks"]["max"]["few_shot"] == 3 and entry["tasks"]["max"]["inference"]["flops_per_answer"] > 0
    finished = manifests(tmp_path / "out")
    study.ask_base(size)
    assert manifests(tmp_path / "out") == finished


def test_the_teacher_is_asked_what_the_students_are(borrowed, vllm_server, tmp_path, monkeypatch):
    endpoint = vllm_server.endpoint
    monkeypatch.setenv("THE_KEY", endpoint.api_key)
    teacher = {"url": endpoint.base_url, "model": endpoint.model, "api_key_env": "THE_KEY"}
    study = borrowed(teacher=teacher)
    made = study.ask_teacher()
    (entry,) = build_results(study.settings, {}, {}, command="", asked_once={"teacher": made})["comparators"]
    assert entry["id"] == "teacher" and entry["tasks"]["max"]["inference"]["flops_per_answer"] is None
    assert entry["tasks"]["max"]["tokens_per_answer"]["total"] > 0
    asked = [a.prompt for a in Graded(made).answers["max"]]
    assert asked == [problem.prompt for problem in study.test[0].problems]
    finished = manifests(tmp_path / "out")
    study.ask_teacher()
    assert manifests(tmp_path / "out") == finished


def test_a_stage_that_lacks_what_it_needs_says_so_and_the_reason_is_kept(tmp_path):
    settings = validate(StudySettings, MINI, source="study.yaml")
    place, _ = study_run.begin(settings, tmp_path, command="how")
    for one in stages(settings):
        with pytest.raises(NotMade):
            one.act(place.looking())
    with pytest.raises(NotMade, match="traces all is not done yet"):
        study_run.run_stage(settings, tmp_path, "serve tiny-ift-seed0")
    with pytest.raises(InputError, match="unknown stage 'serve tiny-if-seed0': did you mean 'serve tiny-ift-seed0'"):
        study_run.run_stage(settings, tmp_path, "serve tiny-if-seed0")
    kept = json.loads((tmp_path / "failures" / "serve-tiny-ift-seed0.json").read_text())
    assert kept["stage"] == "serve tiny-ift-seed0" and "not done yet" in kept["reason"]
    with pytest.raises(InputError, match="nothing was trained or asked; traces all: not run"):
        study_run.collect(settings, tmp_path)
    study_run.run_stage(settings, tmp_path, "traces all")
    assert place.looking().traces(settings.trace_rows[0]).summary["pairs"] == 300


def test_jobs_share_slots_and_what_takes_none_does_not_wait_for_one():
    slots = [str(n) for n in range(random.randint(2, 5))]
    lock, held, most, ran = threading.Lock(), set(), [0], []

    def work(taken: tuple[str, ...]) -> None:
        with lock:
            assert not held & set(taken)
            held.update(taken)
            most[0] = max(most[0], len(held))
        time.sleep(random.uniform(0, 0.02))
        with lock:
            held.difference_update(taken)
            ran.append(len(taken))

    started = threading.Event()
    takes = [random.randint(1, len(slots)) for _ in range(12)]
    hold = Job("hold", lambda taken: started.wait(20), takes=len(slots))
    jobs = [hold, Job("free", lambda taken: started.set(), takes=0)]
    jobs += [Job(str(i), work, after=("free",), takes=n) for i, n in enumerate(takes)]
    told = []
    assert run_jobs(jobs, slots, Children(), lambda *what: told.append(what)) == {}
    assert sorted(ran) == sorted(takes) and not held and most[0] <= len(slots)
    assert sorted(told) == sorted((job.name, state, "") for job in jobs for state in ("running", "done"))
    with pytest.raises(ValueError, match="takes more than the"):
        run_jobs([Job("wide", work, takes=len(slots) + 1)], slots, Children())


def test_each_mode_has_its_learning_rate():
    rates = {"ift": 0.001, "reasoning": 0.002}
    rows = ["ift", "reasoning", "mixed:0.5", "sequential:0.25"]
    students = [MINI["students"][0] | {"learning_rate": rates}]
    values = changed(students=students, arms=[{"arm": arm} for arm in rows])
    settings = validate(StudySettings, values, source="study.yaml")
    wanted = [settings.train_settings(settings.students[0], arm, 0) for arm in settings.arms]
    assert [w.learning_rate for w in wanted] == [0.001, 0.002, 0.002, 0.001]
    assert [w.reasoning_learning_rate for w in wanted] == [None, None, None, 0.002]


def test_what_an_arm_says_of_training_wins_over_its_size_and_that_over_the_study():
    students = [MINI["students"][0] | {"training": {"batch": 16, "weight_decay": 0.1}}]
    curriculum = {"name": "curriculum", "training": {"phases": [{"reasoning": 0}, {"reasoning": 1}], "batch": 32}}
    values = changed(students=students, arms=[{"arm": "ift"}, {"arm": "reasoning"}, curriculum])
    settings = validate(StudySettings, values, source="study.yaml")
    plain, _, own = (settings.train_settings(settings.students[0], arm, 0) for arm in settings.arms)
    assert (plain.batch, plain.weight_decay, plain.row_tokens) == (16, 0.1, 512)
    assert (own.batch, own.weight_decay, own.arm) == (32, 0.1, "phases")
    (cell,) = [cell for cell in cells(settings) if cell.id == "tiny-curriculum"]
    asked = curriculum | {"name": "curriculum-thinking", "think": "on"}
    values["arms"].append(asked)
    both = cells(validate(StudySettings, values, source="study.yaml"))[-2:]
    assert len({cell.students()[0].student for cell in both}) == 1 and len({cell.id for cell in both}) == 2
    assert cell.students()[0].student == both[0].students()[0].student


def start(preset: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        distill_command("study", "run", str(preset), "--out", str(out)),
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def without_measured(value: object) -> object:
    if isinstance(value, dict):
        return {k: without_measured(v) for k, v in value.items() if k not in ("measured", "command")}
    return [without_measured(v) for v in value] if isinstance(value, list) else value


def manifests(out: Path) -> dict[str, int]:
    """Every finished artifact and when it was finished."""
    return {str(p.parent.relative_to(out)): p.stat().st_mtime_ns for p in out.rglob("manifest.json")}


@pytest.mark.timeout(900)
def test_killed_at_random_moments_and_run_again_it_ends_the_same_and_repeats_nothing(tmp_path):
    preset = tmp_path / "mini.yaml"
    preset.write_text(yaml.safe_dump(changed(**VOTED)))
    began = time.monotonic()
    whole = start(preset, tmp_path / "whole")
    _, errors = whole.communicate(timeout=600)
    assert whole.returncode == 0, errors
    took = time.monotonic() - began

    killed, finished, moments = tmp_path / "killed", {}, []
    for _ in range(3):
        run = start(preset, killed)
        moments.append(random.uniform(0.1, 0.7) * took)
        try:
            run.communicate(timeout=moments[-1])
        except subprocess.TimeoutExpired:
            os.kill(run.pid, signal.SIGKILL)
            run.communicate()
        now = manifests(killed)
        assert finished.items() <= now.items(), f"finished work was done again (killed after {moments} s)"
        finished = now
    last = start(preset, killed)
    out, errors = last.communicate(timeout=600)
    assert last.returncode == 0, errors
    assert finished.items() <= manifests(killed).items(), f"finished work was done again (killed after {moments} s)"
    assert "On max" in out and "the majority of" in out

    results = [
        without_measured(json.loads((folder / "results.json").read_text())) for folder in (tmp_path / "whole", killed)
    ]
    assert results[0] == results[1], f"killed after {moments} s"
    (vote,) = results[0]["comparators"]
    assert (vote["id"], vote["of"], vote["matched"]) == ("tiny-majority", "tiny-ift", "tiny-reasoning")
    assert 1 <= vote["tasks"]["max"]["votes"]["k"] <= 5 and vote["tasks"]["max"]["votes"]["drawn"] == 5
    assert results[0]["contrasts"][1]["control"] == "tiny-majority" and not results[0]["failures"]
    weights = [sorted(folder.glob("students/*/model.safetensors")) for folder in (tmp_path / "whole", killed)]
    assert [w.read_bytes() for w in weights[0]] == [w.read_bytes() for w in weights[1]]

    finished = manifests(killed)
    (killed / "results.json").unlink()
    settings = load(StudySettings, killed / study_run.PRESET)
    assert settings == load(StudySettings, preset)
    study_run.collect(settings, killed)
    assert without_measured(json.loads((killed / "results.json").read_text())) == results[0]
    assert (killed / "report.html").stat().st_size > 10_000 and manifests(killed) == finished

    # With other settings the stages that they concern are not done yet, and only those.
    evaluation = {"max_tokens": MINI["evaluation"]["max_tokens"] + 1}
    other = Workplace(validate(StudySettings, changed(evaluation=evaluation), source=""), killed, 1, looks_only=True)
    for one in stages(other.settings):
        if one.name.startswith("serve"):
            with pytest.raises(NotMade, match="is not done yet"):
                one.act(other)
        else:
            one.act(other)
