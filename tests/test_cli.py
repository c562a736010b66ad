"""Every command and bad input: one line, exit code 2, no traceback, nothing left on disk."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import typer

from distill import cli
from distill.process import child_environment, distill_command
from distill.traces.generate import generate
from distill.traces.settings import GenerateSettings


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "traces"
    generate(GenerateSettings(tasks={"add": 40}), folder)
    return folder


@pytest.fixture
def distill(monkeypatch, capsys):
    """distill(*arguments): (exit code, standard output, standard error) of a command in this process."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["distill", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as exit:
            code = exit.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def place(tmp_path, traces):
    """Files and folders that are wrong in one way each; {name} in an argument is replaced by their path."""
    write = lambda name, text: (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())  # noqa: E731
    good = '{"prompt": "1+1?", "reasoning": "<think>one more</think>2", "ift": "2"}\n'
    write("not_yaml.yaml", "student: tiny\narm: [ift\nseed: 1\n")
    write("unknown_field.yaml", "student: tiny\nlearnin_rate: 1\n")
    write("wrong_type.yaml", "student: tiny\nepochs: many\n")
    write("a_list.yaml", "- student\n")
    write("latin1.yaml", b"student: caf\xe9\n")
    write("malformed.jsonl", good + good.replace("1+1", "1+2") + '{"prompt": \n' + good)
    write("no_ift.jsonl", good + '{"prompt": "2+2?", "reasoning": "<think>x</think>4"}\n')
    write("no_answer.jsonl", '{"prompt": "2+2?", "reasoning": "<think>x</think>", "ift": "4"}\n')
    write("unclosed.jsonl", good + '{"prompt": "2+2?", "reasoning": "<think>x 4", "ift": "4"}\n')
    write("empty.jsonl", "")
    write("array.jsonl", "[" + good.strip() + "]\n")
    write("teacher.yaml", 'tasks: {add: 3}\nteacher: {url: "http://127.0.0.1:9/v1", model: m, temprature: 1}\n')
    write("latin1.jsonl", b'{"prompt": "caf\xe9"}\n')
    write("study_arm.yaml", STUDY.replace("arm: reasoning", "arm: reasonin"))
    write("study_task.yaml", STUDY.replace("task: add", "task: ad"))
    write("study_field.yaml", STUDY + "colour: red\n")
    write("study_text.yaml", STUDY.replace("test: 10", "test: ten"))
    write("plain_file", "precious")
    (tmp_path / "foreign").mkdir()
    write("foreign/thesis.tex", "precious")
    (tmp_path / "empty_folder").mkdir()
    (tmp_path / "no_weights").mkdir()
    write("no_weights/config.json", '{"model_type": "qwen2"}')
    (tmp_path / "bad_config").mkdir()
    write("bad_config/config.json", '{"model_type": "no-such-model"}')
    write("bad_config/model.safetensors", "x")
    return {path.name: path for path in tmp_path.iterdir()} | {"traces": traces, "out": tmp_path / "new" / "out"}


STUDY = """\
title: t
question: q
tasks: [{task: add, train: 40, test: 10}]
students: [{name: tiny, student: tiny, learning_rate: 0.001, seeds: [0]}]
arms: [{arm: ift}, {arm: reasoning}]
margin_points: 2
contrasts: [{treatment: reasoning, control: ift, verdict_size: tiny}]
hardware: cpu-2core
"""

TRAIN = "train --packed --traces {traces} --out {out} --student tiny --arm ift"
GENERATE = "traces generate --out {out}"
IMPORT = "traces import --out {out}"
CASES = {
    # command -> what the line must say
    "train --traces {missing} --out {out} --student tiny": "missing: no such folder; expected traces made by",
    "train --traces {empty_folder} --out {out} --student tiny": "empty_folder: has no manifest.json",
    "train --traces {plain_file} --out {out} --student tiny": "plain_file: has no manifest.json",
    "train --traces {traces} --out {out}": "field student",
    "train --traces {traces} --student tiny": "--out",
    TRAIN + " --arm reasonin": "did you mean 'reasoning'",
    TRAIN + " --arm mixed:1.5": "from 0 to 1, found '1.5'",
    TRAIN + " --arm sequential:-1": "from 0 to 1, found '-1'",
    TRAIN + " --student tinny": "unknown student 'tinny': did you mean 'tiny'",
    TRAIN + " --student {empty_folder}": "has no config.json",
    TRAIN + " --student {no_weights}": r"has no \*.safetensors",
    TRAIN + " --student {bad_config}": "cannot be loaded",
    TRAIN + " --batch abc": "--batch.*valid integer",
    TRAIN + " --batch 0": "field batch: .*greater than or equal to 1, found 0",
    TRAIN + " --learning-rate -1": "field learning_rate: .*found '-1'",
    TRAIN + " --answers golden": "field answers: .*found 'golden'",
    TRAIN + " --precision fp8": "field precision: .*found 'fp8'",
    TRAIN + " --schedule wsd": "decay_steps",
    TRAIN + " --threads 0": "field threads",
    TRAIN + " --row-tokens 8": r"longer than 8 tokens .*raise --row-tokens",
    TRAIN + " --think-tags <t>": "field think_tags",
    TRAIN + " --no-such-flag": "No such option: --no-such-flag",
    "train --traces {traces} --out {out} --student tiny --arm sequential:0.5 --tokens 100": "phase 2 of 2 has no step of its own",
    TRAIN + " --config {missing}": "missing: cannot be read",
    TRAIN + " --config {empty_folder}": "empty_folder: cannot be read",
    TRAIN + " --config {not_yaml.yaml}": r"not_yaml.yaml:3: not valid YAML",
    TRAIN + " --config {unknown_field.yaml}": "unknown_field.yaml.*field learnin_rate: no such field",
    TRAIN + " --config {wrong_type.yaml}": "wrong_type.yaml.*field epochs: .*found 'many'",
    TRAIN + " --config {a_list.yaml}": "a_list.yaml: expected a mapping of settings, found list",
    TRAIN + " --config {latin1.yaml}": "latin1.yaml: not UTF-8 text",
    TRAIN.replace("{out}", "{plain_file}"): "was not made by distill",
    TRAIN.replace("{out}", "{foreign}"): "was not made by distill",
    TRAIN.replace("{out}", "{plain_file}/below"): "plain_file/below: cannot be written",
    TRAIN.replace("{out}", "{traces}"): "already holds traces, not student",
    "evaluate {missing} --tasks add": "missing: has no config.json",
    "evaluate {empty_folder} --tasks ad --out {out}": "unknown task 'ad': did you mean 'add'",
    "evaluate {empty_folder} --tasks add=x --out {out}": "--tasks add=x: expected how many .*, or all",
    "evaluate {empty_folder} --tasks add=0 --out {out}": "--tasks add=0: expected how many",
    "evaluate {empty_folder} --tasks add=5,add --out {out}": "--tasks add=5,add: add is named twice",
    "evaluate {empty_folder} --tasks add=5 --samples 4 --out {out}": "error: command line: samples: 4 greedy answers",
    "evaluate {empty_folder} --data mine={malformed.jsonl} --answer ift --out {out}": "mine=.*need --checker",
    "evaluate {empty_folder} --data mine={malformed.jsonl} --checker number --out {out}": "mine=.*need --answer",
    "evaluate {empty_folder} --data mine={malformed.jsonl} --answer ift --checker numbr --out {out}": "did you mean 'number'",
    "evaluate {empty_folder} --data mine={malformed.jsonl} --answer ift --checker number --answer-format opn": "data mine=.*: field answer_format: .*found 'opn'",
    "evaluate {empty_folder} --data mine={empty.jsonl} --answer ift --checker number --out {out}": "no question in it",
    "evaluate {empty_folder} --tasks add --answer ift --out {out}": "--answer: only for --data with questions of your own",
    "evaluate {empty_folder} --tasks gsm8k --out {out}": "needs a file, written gsm8k:PATH",
    "evaluate {empty_folder} --tasks gsm8k:{missing} --out {out}": "missing: cannot be read",
    "evaluate {empty_folder} --tasks add --engine vlm --out {out}": "field engine: .*found 'vlm'",
    "evaluate {empty_folder} --tasks add --split tset --out {out}": "split: .*found 'tset'",
    "evaluate {empty_folder} --tasks max=99999 --out {out}": "there are only 5040 in all splits",
    "evaluate {empty_folder} --out {out}": "--tasks",
    GENERATE + " --tasks ad=3": "unknown task 'ad': did you mean 'add'",
    GENERATE + " --tasks add": "add",
    GENERATE
    + " --tasks add=3 --teacher http://127.0.0.1:9/v1 --model m --usd-per-million-input -1": "usd_per_million_in",
    IMPORT + " {malformed.jsonl} --splits trian": "unknown splits 'trian': did you mean 'train'",
    GENERATE + " --tasks add=many": "add: .*valid integer.*found 'many'",
    GENERATE + " --tasks max=99999": "there are only 5040 in all splits",
    GENERATE + " --tasks add=3 --split tset": "split",
    GENERATE + " --tasks add=3 --teacher http://127.0.0.1:9/v1 --model m": "cannot be reached",
    GENERATE + " --tasks add=3 --teacher somebody": "--teacher: expected solver, the URL .* found 'somebody'",
    GENERATE + " --tasks add=3 --teacher http://127.0.0.1:9/v1": "--teacher http://127.0.0.1:9/v1: --model says",
    GENERATE + " --tasks add=3 --shard 2": "field shard: expected I/N",
    GENERATE + " --data {no_ift.jsonl}": "task own: has no worked solutions; --teacher says who answers",
    GENERATE + " --config {teacher.yaml}": "teacher.yaml.*: field teacher.temprature: no such field",
    GENERATE: "no questions: give --tasks, such as add=1000, or --data FILE",
    IMPORT + " {array.jsonl}": r"array.jsonl:1: expected a JSON object, found list; `jq -c '\.\[\]' FILE`",
    IMPORT + " {malformed.jsonl} --layout gsm8k --gold x": "its fields have fixed names; --gold is for other layouts",
    "traces verify {traces} --out {traces}": "is the set that is read",
    "traces export {traces} --layout chatml --out {out}": "unknown layout 'chatml'. Known: aqua",
    "traces import {missing} --out {out}": "missing: no such file",
    "traces import {empty_folder} --out {out}": "empty_folder: no data in this folder",
    "traces import {malformed.jsonl} --out {out}": "malformed.jsonl:3: not valid JSON",
    "traces import {no_ift.jsonl} --out {out}": "no_ift.jsonl:2: field 'ift' is missing",
    "traces import {no_answer.jsonl} --out {out}": "no_answer.jsonl:1: .*no answer",
    "traces import {unclosed.jsonl} --out {out}": "unclosed.jsonl:2: .*never closed",
    "traces import {empty.jsonl} --out {out}": "empty.jsonl: no pair in it",
    "traces import {latin1.jsonl} --out {out}": "latin1.jsonl:1: not UTF-8 text",
    "traces import {malformed.jsonl} --layout pears --out {out}": "did you mean 'pairs'",
    "traces stats {missing}": "missing: no such folder",
    "serve compare {missing} other={missing} --tasks add --out {out}": "missing: has no config.json",
    "serve compare {empty_folder} --tasks add --out {out}": "Missing argument 'b'",
    "serve compare {empty_folder} {missing} --tasks add --objective ttft --out {out}": "objective 'ttft': expected a limit",
    "serve compare {empty_folder} {missing} --tasks add --rounds 0 --out {out}": "field rounds: .*greater than or equal to 2",
    "serve profile {missing} --tasks add": "missing: has no config.json",
    "serve profile {empty_folder} --tasks add --concurrency 1,b --out {out}": "concurrencies.1: .*found 'b'",
    "serve profile {empty_folder} --tasks add --rate 0 --out {out}": "rates.0: .*greater than 0",
    "serve profile {empty_folder} --tasks add --objective ttft --out {out}": "objective 'ttft': expected a limit such as",
    "serve profile {empty_folder} --tasks add --replay {latin1.jsonl} --out {out}": "latin1.jsonl: not UTF-8 text",
    "serve profile {empty_folder} --tasks add --replay {empty.jsonl} --out {out}": "expected two arrivals or more, found 0",
    "serve profile {empty_folder} --tasks add --speed 2 --out {out}": "--speed: only with --replay",
    "serve profile {empty_folder} --tasks add --hardware h20 --out {out}": "did you mean 'h200-sxm'",
    "serve profile {empty_folder} --tasks add --months 3 --out {out}": "--months: needs --hardware",
    "serve profile {empty_folder} --tasks add --endpoint http://127.0.0.1:9/v1": "--endpoint and --model are given together",
    "serve profile {empty_folder} --tasks max --requests 5000": "task max: the loads need .* different questions, and there",
    "study run {missing} --out {out}": "missing: cannot be read",
    "study run {not_yaml.yaml} --out {out}": "not_yaml.yaml:3: not valid YAML",
    "study run {study_arm.yaml} --out {out}": "did you mean 'reasoning'",
    "study run {study_task.yaml} --out {out}": "unknown task 'ad': did you mean 'add'",
    "study run {study_field.yaml} --out {out}": "study_field.yaml: field colour: no such field",
    "study run {study_text.yaml} --out {out}": "study_text.yaml: field tasks.0.test: .*found 'ten'",
    "study report {missing}": "missing",
    "study report {empty_folder}": "empty_folder",
    "trian": "No such command 'trian'. Did you mean 'train'",
    "traces genrate": "No such command 'genrate'",
}


@pytest.mark.parametrize("command", CASES)
def test_bad_input_is_one_line_and_leaves_nothing(distill, tmp_path, traces, command):
    paths = place(tmp_path, traces) | {"missing": tmp_path / "missing"}
    before = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
    before_traces = {path: path.stat().st_mtime_ns for path in traces.rglob("*") if path.name != ".lock"}
    arguments = [re.sub(r"\{([^}]+)\}", lambda m: str(paths[m[1]]), part) for part in command.split()]
    code, out, err = distill(*arguments)
    assert code == 2, err
    assert len(err.splitlines()) == 1 and err.startswith("error: "), err
    assert re.search(CASES[command], err), err
    assert "Traceback" not in err and out == ""
    assert {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")} == before
    assert {path: path.stat().st_mtime_ns for path in traces.rglob("*") if path.name != ".lock"} == before_traces


def test_debug_shows_the_traceback(tmp_path):
    command = distill_command("--debug", "train", "--traces", str(tmp_path / "none"), "--out", "o", "--student", "tiny")
    shown = subprocess.run(command, capture_output=True, text=True, env=child_environment(1), cwd=tmp_path)
    assert "Traceback" in shown.stderr and "no such folder" in shown.stderr and shown.returncode != 0
    del command[command.index("--debug")]
    hidden = subprocess.run(command, capture_output=True, text=True, env=child_environment(1), cwd=tmp_path)
    assert hidden.returncode == 2 and len(hidden.stderr.splitlines()) == 1, hidden.stderr
    assert list(tmp_path.iterdir()) == []


def commands(group=None, path=()):
    """Every command as the words that run it."""
    group = group or typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help_shows_an_example_that_parses(distill, words):
    code, out, _ = distill(*words, "--help")
    text = " ".join(out.split())
    examples = re.findall(rf"Example[^:]*: (distill {' '.join(words)}\b.*?)(?= Example| [╭─]|$)", text)
    assert code == 0 and len(examples) == len(re.findall(r" Example\b", text)) > 0, out
    command = typer.main.get_command(cli.app)
    for word in words:
        command = command.commands[word]
    for example in examples:
        arguments = shlex.split(example.replace(" \\ ", " "))[1 + len(words) :]
        command.make_context("distill", arguments)  # raises for an option that is not there


def test_no_arguments_show_the_help(distill):
    code, out, err = distill()
    assert "traces" in out + err and "evaluate" in out + err and "Traceback" not in err
    assert code in (0, 2)


def test_version(distill):
    from distill import __version__

    assert distill("--version")[:2] == (0, f"distill {__version__}\n")


def test_json_is_json(distill, tmp_path, traces):
    code, out, _ = distill("traces", "stats", traces, "--json")
    assert code == 0 and isinstance(json.loads(out), dict)
    code, out, _ = distill("traces", "generate", "--tasks", "add=5", "--out", tmp_path / "t", "--json")
    assert code == 0 and json.loads(out)["pairs"] == 5
    assert json.loads(distill("doctor", "--json")[1])["cores"] >= 1


def test_importing_the_command_line_imports_nothing_heavy():
    heavy = [
        "torch",
        "transformers",
        "datasets",
        "pyarrow",
        "pydantic",
        "numpy",
        "scipy",
        "sklearn",
        "aiohttp",
        "httpx",
        "triton",
        "vllm",
    ]
    code = f"import sys, distill.cli; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_environment(1))
    assert found.stdout.strip() == "[]", found.stderr


def test_ctrl_c_is_one_line_and_leaves_no_result(tmp_path):
    run = subprocess.Popen(
        distill_command("bench", "training", "--steps", "50", "--out", str(tmp_path / "b.json")),
        env=child_environment(1),
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(5)  # somewhere in imports or set-up
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in said, said
    assert "run the same command again" in said
    assert not (tmp_path / "b.json").exists()
