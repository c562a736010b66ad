"""The study as a whole: what a preset may say, how jobs fail, and that a killed study ends as an unharmed one does."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from distill.errors import InputError
from distill.evaluation.statistics import Interval
from distill.process import child_environment, distill_command
from distill.settings import load, validate
from distill.study.cells import cells
from distill.study.jobs import Children, Job, JobFailed, run_jobs
from distill.study.results import decide, sentence
from distill.study.settings import StudySettings

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


def changed(**values: object) -> dict:
    return json.loads(json.dumps(MINI)) | values


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_is_valid_and_names_its_cells_apart(preset):
    ids = [member.id for cell in cells(load(StudySettings, preset)) for member in cell.students()]
    assert len(set(ids)) == len(ids) >= 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (changed(tasks=[{"task": "ad", "train": 1, "test": 1}]), "did you mean 'add'"),
        (changed(arms=[{"arm": "mixed:1.5"}]), "from 0 to 1"),
        (changed(arms=[{"arm": "reason"}]), "did you mean 'reasoning'"),
        (changed(arms=[{"arm": "ift"}, {"arm": "ift"}]), "appears twice"),
        (changed(arms=[{"arm": "ift", "match": "tokens"}]), "needs an arm 'reasoning'"),
        (changed(contrasts=[{"verdict_size": "tinny"}]), "did you mean 'tiny'"),
        (changed(contrasts=[{"treatment": "mixed", "verdict_size": "tiny"}]), "unknown arm in contrasts"),
        (changed(contrasts=[{}]), "exactly one"),
        (changed(margin_points=0), "margin_points"),
        (changed(hardware="h2000"), "h200-sxm"),
        (changed(epoch=3), "epoch: no such field"),
        (changed(students=[{"name": "tiny", "student": "tiney", "learning_rate": 1, "seeds": [0]}]), "'tiny'"),
    ],
)
def test_a_wrong_preset_is_refused_in_one_line_that_names_the_field(values, said):
    with pytest.raises(InputError) as caught:
        validate(StudySettings, values, source="study.yaml")
    assert said in str(caught.value) and "\n" not in str(caught.value) and "study.yaml" in str(caught.value)


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


def test_with_fewer_than_three_seeds_a_sentence_speaks_of_these_students():
    contrast = {
        "task": "add",
        "metric": "accuracy",
        "control": "tiny-ift",
        "difference_points": {"value": 10.0, "low": 5.0, "high": 15.0},
        "n_questions": 300,
        "token_factor": 9.5,
        "verdict": "pays",
    }
    of = lambda seeds, subject: sentence(contrast | {"n_seeds": seeds, "subject": subject}, 2.0, 0.95)  # noqa: E731
    assert "these trained students" in of(2, "these trained students")
    assert "these trained students" not in of(3, "reasoning")
    assert "+10.0 points" in of(3, "reasoning") and "+5.0 to +15.0" in of(3, "reasoning")


def test_a_failed_job_takes_down_only_what_depends_on_it():
    ran = []

    def fail() -> None:
        raise JobFailed("out of memory")

    jobs = [
        Job("bad", fail),
        Job("after bad", lambda: ran.append("after bad"), after=("bad",)),
        Job("after that", lambda: ran.append("after that"), after=("after bad",)),
        Job("good", lambda: ran.append("good")),
        Job("after good", lambda: ran.append("after good"), after=("good",)),
    ]
    failures = run_jobs(jobs, workers=2, children=Children())
    assert ran == ["good", "after good"]
    assert failures == {"bad": "out of memory", "after bad": "bad failed", "after that": "after bad failed"}


def test_a_failed_child_is_told_by_the_last_line_of_its_log(tmp_path):
    with pytest.raises(JobFailed, match="no such folder"):
        Children().run(
            ["train", "--traces", "nowhere", "--student", "tiny", "--out", str(tmp_path / "s")],
            tmp_path / "logs" / "a.log",
            1,
        )


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
    preset.write_text(yaml.safe_dump(MINI))
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
    assert "On max" in out

    results = [
        without_measured(json.loads((folder / "results.json").read_text())) for folder in (tmp_path / "whole", killed)
    ]
    assert results[0] == results[1], f"killed after {moments} s"
    weights = [sorted(folder.glob("students/*/model.safetensors")) for folder in (tmp_path / "whole", killed)]
    assert [w.read_bytes() for w in weights[0]] == [w.read_bytes() for w in weights[1]]

    finished = manifests(killed)
    again = start(preset, killed)
    again.communicate(timeout=600)
    assert again.returncode == 0 and manifests(killed) == finished
    assert (killed / "report.html").stat().st_size > 10_000
