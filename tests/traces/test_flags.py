"""The flags of `distill traces generate`: the questions they name, and what is said of those that do not fit."""

import json

import pytest
from typer.testing import CliRunner

from distill.cli import app
from distill.errors import InputError
from distill.settings import validate
from distill.traces.flags import from_flags
from distill.traces.generate import generate_recipe
from distill.traces.settings import GenerateSettings

MODEL = {"teacher": "http://127.0.0.1:9/v1", "model": "m"}


def settings(*, written=None, **given):
    return validate(GenerateSettings, from_flags(written or {}, MODEL | given)[0], source="flags")


@pytest.fixture
def questions(tmp_path, rng):
    """Two files of questions with gold answers."""
    files = [tmp_path / "one.jsonl", tmp_path / "two=2.jsonl"]
    for number, file in enumerate(files):
        rows = [{"q": f"{number} {rng.integers(10**9)} {i}", "a": int(rng.integers(99))} for i in range(5)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(file) for file in files]


def test_questions_of_ones_own_have_the_name_they_are_given(questions):
    """Without one they are `own`, and their key is that of settings that say so."""
    one, two = questions
    unnamed = settings(data=[one], prompt="q", count=3)
    assert unnamed.tasks == {"own": 3} and str(unnamed.data["own"].path) == one
    written = GenerateSettings(tasks={"own": 3}, data={"own": {"path": one, "prompt": "q"}}, teacher=unnamed.teacher)
    assert generate_recipe(unnamed) == generate_recipe(written)
    # A file that is there is a path, whatever is in its name.
    both = settings(data=[f"mine={one}", two], prompt="q", answer="a")
    assert both.tasks == {"mine": None, "own": None} and str(both.data["own"].path) == two
    assert list(generate_recipe(both)["tasks"]) == ["mine", "own"]
    counted = settings(data=[f"mine={one}"], tasks={"mine": "2", "add": "4"}, prompt="q")
    assert counted.tasks == {"add": 4, "mine": 2}
    known = settings(data=["gsm8k=x.jsonl"], tasks={"gsm8k": "2"})  # as `evaluate` reads it: that task's rows
    assert known.tasks == {"gsm8k:x.jsonl": 2} and not known.data


def test_names_and_flags_that_do_not_fit(questions):
    one, two = questions
    for given, message in (
        ({"data": [one, two]}, "own is named twice"),
        ({"data": [f"m={one}", f"m={two}"]}, "m is named twice"),
        ({"data": [f"m={one}"], "tasks": {"m": "3"}, "count": 2}, "--count and --tasks m=3"),
        ({"data": ["gsm8k=x.jsonl"], "prompt": "q"}, "--prompt is about .*, which has only gsm8k"),
    ):
        with pytest.raises(InputError, match=message):
            settings(**given)
    with pytest.raises(InputError, match="task add: takes no path"):
        generate_recipe(settings(data=["add=x.jsonl"], count=2))
    with pytest.raises(InputError, match=r"unknown task 'suport': did you mean 'support'\?.*, support"):
        generate_recipe(settings(data=[f"support={one}"], tasks={"suport": "3"}, prompt="q"))


def test_the_command_takes_a_name(questions, tmp_path, teacher):
    """As `distill evaluate` does: the rows of the set say whose they are."""
    flags = f"--data mine={questions[0]} --prompt q --teacher {teacher.url} --model fake --out {tmp_path / 't'} --json"
    run = CliRunner().invoke(app, ["traces", "generate", *flags.split()])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(app, ["traces", "stats", str(tmp_path / "t"), "--json"])
    assert json.loads(run.stdout)["pairs_by_task"] == {"mine": 5}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"teacher": {"url": "http://h/v1", "model": "m", "temprature": 1}}, "teacher.temprature: .*mean temperature?"),
        ({"teacher": {"ulr": "http://h/v1", "model": "m"}}, "teacher.ulr: .*mean url?"),
        ({"teacher": {"vllm": "m", "server": {"argumnts": []}}}, "teacher.server.argumnts: .*mean arguments?"),
        ({"data": {"mine": {"path": "x", "promt": "q"}}}, "data.mine.promt: .*mean prompt?"),
        ({"sampels": 2}, "field sampels: .*mean samples?"),
        ({"max_cost": 2}, "field max_cost: .*mean max_cost_usd?"),
    ],
)
def test_a_misspelt_field_is_recognised_at_any_depth(values, said, tmp_path):
    (tmp_path / "t.yaml").write_text(json.dumps({"tasks": {"add": 2}} | values))
    run = CliRunner().invoke(app, ["traces", "generate", "--config", str(tmp_path / "t.yaml"), "--out", "x"])
    assert isinstance(run.exception, InputError)
    with pytest.raises(InputError, match=said.replace("?", r"\?")):
        raise run.exception


def test_a_misspelt_field_that_is_needed_is_not_called_missing(tmp_path):
    (tmp_path / "t.yaml").write_text("taks: {add: 3}\n")
    run = CliRunner().invoke(app, ["traces", "generate", "--config", str(tmp_path / "t.yaml"), "--out", "x"])
    assert "field taks: no such field; did you mean tasks?" in str(run.exception)
