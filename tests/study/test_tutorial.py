"""The tutorial of docs/study.md, to the letter: what it has a reader type, and what it says comes out; and what stands there
when a stage fails or is stopped."""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from distill import console
from distill.cli import app
from distill.errors import InputError
from distill.evaluation.questions import ask
from distill.process import child_environment, distill_command
from distill.settings import load, read_yaml, validate
from distill.study import results, run
from distill.study.jobs import Children, JobFailed, reason_of
from distill.study.live import Watched
from distill.study.page import recommended
from distill.study.plan.plan import plan
from distill.study.settings import StudySettings
from distill.study.stages import Stage

DOCS = Path(__file__).parents[2] / "docs" / "study.md"
PRESETS = Path(__file__).parents[2] / "presets"


@pytest.fixture(scope="module")
def tutorial() -> str:
    text = DOCS.read_text(encoding="utf-8")
    return text[text.index("## Should I train") : text.index("## The presets")]


@pytest.fixture(scope="module")
def begun(tutorial, tmp_path_factory):
    """The folder after the first two steps, and what the second printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    program = re.search(r"python > records\.jsonl <<'END'\n(.*?)\nEND\n", tutorial, re.DOTALL).group(1)
    with open(folder / "records.jsonl", "w") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, check=True, env=child_environment(1))
    command = re.search(r"```\n(distill study init .*?)\n```", tutorial, re.DOTALL).group(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ran = CliRunner().invoke(app, shlex.split(command.replace("\\\n", " "))[1:])
        assert ran.exit_code == 0, ran.output
    return folder, ran.stdout


def test_the_file_and_the_preset_come_out_as_shown(tutorial, begun):
    folder, printed = begun
    shown = re.search(r"```\n(records\.yaml\n.*?)\n```", tutorial, re.DOTALL).group(1)
    assert printed.startswith(shown + "\n")
    example = json.loads(re.search(r"```json\n(.*?)\n```", tutorial, re.DOTALL).group(1))
    assert example in [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_what_it_says_of_the_preset_is_in_it(tutorial, begun, monkeypatch):
    folder, _ = begun
    monkeypatch.chdir(folder)
    text, settings = (folder / "records.yaml").read_text(), load(StudySettings, Path("records.yaml"))
    for quoted in ("answers: gold", "keep: verified", "margin_points: 3", "sequential_quarter"):
        assert f"`{quoted}" in tutorial and quoted in text
    said = int(re.search(r"Here that is about (\d+) points", tutorial).group(1))
    of_verdict = [one for one in plan(settings)["detectable"] if one["verdict"]]
    assert [round(one["points"]) for one in of_verdict] == [said]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_it_ends_in_a_verdict(tutorial, begun, tmp_path):
    """With no teacher at hand, and with fewer pairs, questions, arms and seeds than it says; else by its own commands."""

    def distill(command: str) -> str:
        words = shlex.split(command.replace("\\\n", " "))[1:]
        how = {"cwd": tmp_path, "capture_output": True, "text": True, "env": child_environment(2)}
        ran = subprocess.run(distill_command(*words), timeout=900, **how)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def said(pattern: str) -> str:
        return re.search(pattern, tutorial, re.DOTALL).group(1)

    shutil.copy(begun[0] / "records.jsonl", tmp_path)
    small, cut = re.subn(r"record=\d+", "record=300", said(r"`(distill traces generate [^`]*)`"))
    distill(small)
    init, told = re.subn(r"--students \S+", "--students tiny", said(r"```\n(distill study init .*?)\n```"))
    assert cut == told == 1
    distill(init)
    preset = read_yaml(tmp_path / "records.yaml")
    preset["traces"] = [{"name": "record", "folder": "out/record"}]  # as the tutorial has it of traces that are there
    preset["tasks"][0]["test"], preset["students"][0]["seeds"] = 40, [0]
    preset["contrasts"] = preset["contrasts"][:1]
    sides = {preset["contrasts"][0][side] for side in ("treatment", "control")}
    preset["arms"] = [arm for arm in preset["arms"] if arm["name"] in sides]
    preset["serving"]["requests"] = 16
    (tmp_path / "records.yaml").write_text(yaml.safe_dump(preset))
    distill(said(r"```\n(distill study plan [^`]*?)\n```"))
    printed = distill(said(r"`(distill study run [^`]*)`"))
    out = tmp_path / "out" / "records"
    found = json.loads((out / "results.json").read_text())
    (verdict,) = found["verdicts"]
    assert verdict["verdict"] in ("pays", "does not pay", "cannot tell") and not found["failures"]
    assert "in these trained students" in verdict["sentence"] and "On records" in printed
    assert len((out / "report.html").read_text()) > 50_000
    (compared,) = found["contamination"]
    assert (compared["traces"], compared["pairs"], compared["questions"]) == ("record", 300, 40)


def test_a_stage_that_was_stopped_is_no_failure_of_its_own(tmp_path):
    children = Children()
    children.terminate()
    with pytest.raises(InputError), run._kept_failure(tmp_path, "serve a", children):
        raise InputError("vLLM ended with exit code 137")
    assert json.loads(run.failure_file(tmp_path, "serve a").read_text())["reason"] == "stopped before it ended"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            InputError("m: vLLM ended: why\nlast lines of out/a b.log:\n  one\n  two"),
            "m: vLLM ended: why (log: out/a b.log)",
        ),
        (JobFailed("one\n  two"), "one two"),
        (OSError(28, "No space left"), "[Errno 28] No space left"),
        (ValueError(""), "ValueError:"),
        (InputError(""), ""),
    ],
)
def test_why_a_stage_failed_is_one_line_that_names_the_log(error, reason):
    assert reason_of(error) == reason


def test_the_live_table_says_how_many_cells_it_leaves_out(monkeypatch):
    monkeypatch.setattr(console, "err", Console(file=io.StringIO(), width=80, height=16))
    watched = Watched([Stage(f"train c{i}", lambda place: None, cell=f"c{i}") for i in range(30)])
    out = Console(file=io.StringIO(), width=80)
    out.print(watched._table())
    shown = out.file.getvalue()
    assert "and 20 more" in shown and shown.count("·") > 10 and "c9" in shown and "c10" not in shown


def test_a_task_is_described_by_its_own_words_or_its_file(rng, tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"q": f"{i}?", "a": int(rng.integers(9))}) + "\n" for i in range(200)))
    own = {"path": str(file), "prompt": "q", "answer": "a", "checker": "number"}
    preset = read_yaml(PRESETS / "embedded.yaml")
    preset["tasks"] += [{"task": "own", "data": own, "test": 3}]
    settings = validate(StudySettings, preset, source="study.yaml")
    asked = ask(settings.evaluate_settings().questions, [])
    said = {a.task.name: results._description(settings, a.task) for a in asked}
    assert said["own"] == f"Questions of {file}." and said["max"] == "The largest of four different digits."


def test_a_student_that_has_nothing_right_is_not_recommended():
    points = [{"id": str(i), "cost": {"value": i}, "accuracy": {"value": 0.0}} for i in range(3)]
    assert recommended._cheapest(points, 0.02) is None
    points[2]["accuracy"]["value"] = 0.01
    assert recommended._cheapest(points, 0.02)["id"] == "0"


def test_the_live_table_shows_a_training_with_every_arm_that_it_is_for():
    train = Stage("train s", lambda place: None, cell="one")
    stages = [train, *(Stage(f"serve {arm}", lambda place: None, (train.name,), cell=arm) for arm in ("one", "two"))]
    watched = Watched(stages)
    watched.tell("train s", "running", "")
    assert watched._rows(watched._states) == [("one", ["running"], ["waiting"]), ("two", ["running"], ["waiting"])]
