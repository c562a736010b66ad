"""A study by Ray and by Slurm: the same results as at home, whatever is killed on the way; and what a launch refuses.

vLLM is a stand-in here: its answers are a hash of the weights it serves and of the question, so that results are equal only
where the same student was asked the same.
"""

import contextlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from distill.cli import app
from distill.errors import InputError
from distill.process import child_environment, distill_command
from distill.settings import validate
from distill.study import run as study_run
from distill.study.launch import on_ray, on_slurm, ray_task
from distill.study.launch.launch import LaunchSettings, devices_of
from distill.study.launch.on_slurm import arrays
from distill.study.launch.ray_task import Task, do_stage
from distill.study.live import Watched
from distill.study.run import failure_file, keep_failure, write_beginning
from distill.study.settings import StudySettings
from distill.study.stages import Stage, stages

MINI = {
    "title": "two students",
    "question": "does it run elsewhere?",
    "tasks": [{"task": "max", "train": 120, "test": 30}],
    "students": [{"name": "tiny", "student": "tiny", "learning_rate": 0.003, "seeds": [0]}],
    "arms": [{"arm": "ift"}, {"arm": "reasoning"}],
    "training": {"row_tokens": 512, "batch": 8, "precision": "fp32"},
    "evaluation": {"max_tokens": 40},
    "serving": {"concurrencies": [4], "requests": 8, "warmup_requests": 1},
    "margin_points": 2,
    "contrasts": [{"verdict_size": "tiny"}],
    "hardware": "cpu-2core",
}

STAND_IN = """
import hashlib, json, os, random, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

given = dict(zip(sys.argv[1:], sys.argv[2:]))
folder = Path(given["--model"])
weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
config = json.loads((folder / "config.json").read_text())
end = config["eos_token_id"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, body, status=200, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/health":
            self.reply(b"")
        elif self.path == "/v1/models":
            self.reply(json.dumps({"data": [{"id": given["--served-model-name"]}]}).encode())
        else:
            self.reply(b"", 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            return self.reply(b"{}", 404)
        draw = random.Random(weights + json.dumps(body["prompt"]))
        ids = [draw.randrange(6, config["vocab_size"]) for _ in range(draw.randrange(1, 8))] + [end]
        choice = {"index": 0, "text": "", "finish_reason": "stop", "token_ids": ids}
        reply = json.dumps({"choices": [choice]})
        if body.get("stream"):
            return self.reply(f"data: {reply}\\n\\ndata: [DONE]\\n\\n".encode(), kind="text/event-stream")
        self.reply(reply.encode())


ThreadingHTTPServer.request_queue_size = 64
ThreadingHTTPServer((given["--host"], int(given["--port"])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> dict[str, str]:
    """The environment of a machine with that vLLM."""
    folder = tmp_path_factory.mktemp("stand-in")
    place = folder / "vllm" / "entrypoints" / "openai"
    place.mkdir(parents=True)
    for package in (place, place.parent, place.parent.parent):
        (package / "__init__.py").write_text("")
    (place / "api_server.py").write_text(STAND_IN)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return child_environment(1, {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"})


def distill(elsewhere: dict[str, str], *arguments: object, **values: object) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(distill_command(*map(str, arguments)), env=elsewhere, **pipes | values)


SBATCH = r"""#!{python}
'''A Slurm of one job at a time: each is over, or was taken out, before sbatch returns. Where FAKE_BARE is set every job has
a machine of its own, on which there is nothing but the scripts; `left` says what it then had there.'''
import json, os, re, shutil, subprocess, sys
from pathlib import Path

kept = Path(os.environ["FAKE_SLURM"])
states = json.loads(kept.read_text()) if kept.exists() else {{}}
script = Path(sys.argv[-1])
options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script.read_text(), re.MULTILINE))
options |= dict(argument[2:].split("=", 1) for argument in sys.argv[2:-1])
kind, *needs = options.get("dependency", "").split(":")
number = str(len(states) + 1)
states[number] = {{"script": script.stem, "kind": kind, "tasks": {{}}}}


def may_run(index):
    if kind == "aftercorr":
        return states[needs[0]]["tasks"].get(index) == 0
    if kind == "afterok":
        return all(states[job]["tasks"].get(task) == 0 for job, _, task in (need.partition("_") for need in needs))
    assert kind in ("", "afterany") and all(job in states for job in needs)
    return True


for index in options.get("array", "none").split(","):
    states[number]["tasks"][index] = None
    if may_run(index):
        out = script.parents[1]
        for entry in out.iterdir() if "FAKE_BARE" in os.environ else []:
            if entry.name != "slurm":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        # What a node gives a job: its script from a place of its own, and the number of the task.
        env = os.environ | {{"SLURM_ARRAY_TASK_ID": index}}
        with open(f"{{kept}}.{{number}}-{{index}}.log", "w") as log:
            run = subprocess.run(["bash", "-s"], input=script.read_text(), text=True, env=env, stdout=log, stderr=log, cwd="/")
        states[number]["tasks"][index] = run.returncode
        finished = sorted(str(p.parent.relative_to(out)) for p in out.rglob("manifest.json"))
        states[number].setdefault("left", {{}})[index] = finished
    kept.write_text(json.dumps(states))
print(number)
"""


@pytest.fixture
def slurm(tmp_path, elsewhere) -> tuple[dict[str, str], Path]:
    """An environment with a Slurm, and the file in which that keeps what became of its jobs."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(SBATCH.format(python=sys.executable))
    program.chmod(0o755)
    kept = tmp_path / "jobs.json"
    return elsewhere | {"PATH": f"{program.parent}:{os.environ['PATH']}", "FAKE_SLURM": str(kept)}, kept


def without_measured(value: object) -> object:
    if isinstance(value, dict):
        return {k: without_measured(v) for k, v in value.items() if k not in ("measured", "command")}
    return [without_measured(v) for v in value] if isinstance(value, list) else value


def results(out: Path) -> object:
    return without_measured(json.loads((out / "results.json").read_text()))


def manifests(out: Path) -> dict[str, int]:
    """Every finished artifact and when it was finished."""
    return {str(p.parent.relative_to(out)): p.stat().st_mtime_ns for p in out.rglob("manifest.json")}


def processes_about(out: Path) -> dict[int, list[str]]:
    """The running processes whose command names the folder."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        if any(str(out) in part for part in process.info["cmdline"] or []):
            found[process.pid] = process.info["cmdline"]
    return found


def ray_workers_about(out: Path) -> list[int]:
    """The Ray workers that have started one of them."""
    parents = {psutil.Process(pid).ppid() for pid in processes_about(out) if psutil.pid_exists(pid)}
    return [pid for pid in parents if psutil.pid_exists(pid) and psutil.Process(pid).name().startswith("ray::")]


def wait_for(what, run: subprocess.Popen | None = None, timeout_s: float = 300.0):
    """What `what` finds, once it does; it must before `run` ends."""
    end = time.monotonic() + timeout_s
    while not (found := what()):
        assert run is None or run.poll() is None, run.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def finish(child: subprocess.Popen) -> tuple[str, str]:
    out, errors = child.communicate(timeout=500)
    assert child.returncode == 0, errors
    return out, errors


@pytest.mark.timeout(900)
def test_what_ray_began_and_lost_slurm_ends_elsewhere(tmp_path, elsewhere, slurm):
    """A worker is killed, then the launcher, then the next one is stopped; machines that share nothing but the storage go on."""
    preset = tmp_path / "mini.yaml"
    preset.write_text(yaml.safe_dump(MINI))
    on_ray, by_slurm, stored = tmp_path / "ray", tmp_path / "slurm", tmp_path / "stored"

    def launched() -> subprocess.Popen:
        flags = ["--on", "ray", "--cpus", 1, "--storage", stored.as_uri()]
        return distill(elsewhere, "study", "launch", preset, "--out", on_ray, *flags)

    run = launched()
    os.kill(wait_for(lambda: ray_workers_about(on_ray), run)[0], signal.SIGKILL)
    wait_for(lambda: [one for one in processes_about(on_ray).values() if "train tiny-ift-seed0" in one], run)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    wait_for(lambda: not processes_about(on_ray))
    assert any(name.startswith("traces-") for name in manifests(stored))

    finished, there = manifests(on_ray), manifests(stored)
    run = launched()
    wait_for(lambda: len(list(stored.glob("stages/train-*.json"))) == 2, run)
    os.kill(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 128 + signal.SIGINT and "Traceback" not in errors, errors
    assert not processes_about(on_ray)
    assert finished.items() <= manifests(on_ray).items() and there.items() <= manifests(stored).items()

    there = manifests(stored)
    env, kept = slurm
    flags = ["--on", "slurm", "--no-gpus", "--cpus", 1, "--storage", stored.as_uri()]
    _, errors = finish(distill(env | {"FAKE_BARE": "1"}, "study", "launch", preset, "--out", by_slurm, *flags))
    jobs = [*json.loads(kept.read_text()).values()]
    logs = [log.read_text() for log in tmp_path.glob("jobs.json.*.log")]
    asked, ended = jobs[:-1], jobs[-1]
    # Answers were never there before the end: of both students, unless one was done in the moment before the stop.
    assert all(job["script"] == "serve-1" and set(job["tasks"].values()) == {0} for job in asked), logs
    assert (ended["script"], ended["kind"], ended["tasks"]) == ("collect", "afterany", {"none": 0}), logs
    assert len(re.findall(r"^submitted \S+ \d+$", errors, re.MULTILINE)) == len(jobs), errors
    found = json.loads((by_slurm / "results.json").read_text())
    assert len(found["cells"]) == 2 and not found["failures"] and "On max" in "".join(logs)
    assert there.items() <= manifests(stored).items(), "finished work was done again"

    # What a stage does not need did not come to its machine: no pairs to whom asks, no weights to whom collects, who compares
    # the questions of the pairs with those asked.
    outlines = [".outlines/students", ".outlines/traces"]
    for left in (left for job in asked for left in job["left"].values()):
        assert shape_of(left) == [*outlines, "evaluations", "profiles", "students"]
    expected = [f".outlines/{kind}" for kind in ("evaluations", "profiles", "students") for _ in range(2)]
    assert shape_of(ended["left"]["none"]) == [*expected, ".outlines/traces", "traces"]
    assert not list(by_slurm.rglob("*.safetensors")) and list(by_slurm.rglob("tokenizer.json"))


def shape_of(left: list[str]) -> list[str]:
    """Folders by what they hold, in order."""
    return sorted(re.sub(r"^(\.outlines/)?(traces|[a-z]+).*$", r"\1\2", name) for name in left)


WIDE = MINI | {
    "traces": [{"name": name, "tasks": {"max": 20}} for name in ("some", "more")],
    "tasks": [{"task": "max", "test": 30}],
    "students": [
        MINI["students"][0] | {"seeds": [0, 1]},
        MINI["students"][0] | {"name": "wide", "devices": 4},
    ],
    "arms": [
        {"arm": "ift", "traces": "some"},
        *({"arm": "mixed:0.5", "traces": "some", "think": think} for think in ("on", "off")),
        {"arm": "reasoning", "traces": "more"},
    ],
    "contrasts": [{"treatment": "reasoning-more", "control": "ift-some", "verdict_size": "tiny"}],
}
ON_FROM = WIDE | {
    "students": [
        WIDE["students"][0],
        WIDE["students"][0] | {"name": "further", "after": {"student": "tiny", "arm": "ift-some"}},
    ],
}
NO_GPUS = {"on": "slurm", "gpus": False}


def study(values: dict) -> StudySettings:
    return validate(StudySettings, values, source="study.yaml")


@pytest.mark.parametrize("values", [MINI, WIDE, ON_FROM])
def test_each_job_waits_for_what_it_needs(values, rng):
    """Whatever is done already."""
    settings = study(values)
    every = stages(settings)
    todo = [one for one in every if rng.random() < 0.7]
    found = arrays(settings, todo)
    assert sorted(name for array in found for name in array.stages.values()) == sorted(one.name for one in todo)
    by_name = {array.name: array for array in found}
    for one in todo:
        (place,) = [(array, i) for array in found for i, name in array.stages.items() if name == one.name]
        array, index = place
        needed = [name for name in one.after if name in {other.name for other in todo}]
        assert array.devices == devices_of(settings, one)
        waited = [*array.after, *([(array.beside, index)] if array.beside else [])]
        assert all(found.index(by_name[name]) < found.index(array) for name, _ in waited)
        assert sorted(by_name[name].stages[number] for name, number in waited) == sorted(needed)


def test_a_stage_that_starts_its_own_teacher_takes_its_gpus():
    arguments = ["--tensor-parallel-size", "2", "--data-parallel-size=4"]
    teacher = {"vllm": "some/model", "server": {"arguments": arguments}}
    values = WIDE | {"traces": [WIDE["traces"][0] | {"teacher": teacher}, WIDE["traces"][1]]}
    settings = study(values)
    taken = {one.name: devices_of(settings, one) for one in stages(settings)}
    assert (taken["traces some"], taken["traces more"], taken["train wide-ift-some-seed0"]) == (8, 0, 4)


def stand_in_stages(monkeypatch, tmp_path: Path, fails: str) -> Path:
    """Stages that write their names to a file, but for one that fails."""
    done = tmp_path / "done"
    body = f'name="$3"; [ "$1" = report ] && name=collect; [ "$name" = "{fails}" ] && exit 2; echo "$name" >> "{done}"'
    program = tmp_path / "a stage.sh"
    program.write_text(body)
    monkeypatch.setattr(on_slurm, "distill_command", lambda _, *rest: ["bash", str(program), *rest])
    return done


def submit(settings: StudySettings, out: Path, **how: object) -> None:
    on_slurm.submit(settings, out, stages(settings), validate(LaunchSettings, NO_GPUS | how, source="test"))


@pytest.mark.parametrize("values", [WIDE, ON_FROM])
def test_a_job_that_fails_takes_out_only_what_depends_on_it(tmp_path, slurm, monkeypatch, rng, values):
    settings = study(values)
    every = {one.name: one for one in stages(settings)}
    fails = str(rng.choice([*every]))
    done = stand_in_stages(monkeypatch, tmp_path, fails)
    for name in ("PATH", "FAKE_SLURM"):
        monkeypatch.setenv(name, slurm[0][name])
    submit(settings, tmp_path / 'it\'s "an" öut')
    broken = {fails}
    for one in every.values():  # in an order in which what is needed comes first
        if broken & set(one.after):
            broken.add(one.name)
    assert sorted(done.read_text().splitlines()) == sorted([*(every.keys() - broken), "collect"])
    assert done.read_text().splitlines()[-1] == "collect"


def test_the_scripts_say_what_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / 'it\'s 100% "out"'
    lines = ["--partition=gpu", "train: --time=9:00:00", "train-1: --mem=4G", "collect:--partition=cpu"]
    submit(study(WIDE), out, gpus=True, dry_run=True)
    log = rf"{tmp_path}/it's 100%% \"out\"/slurm/logs/train-4-after-traces-0-%A-%a.log"
    assert f'#SBATCH --output="{log}"' in (out / "slurm" / "train-4-after-traces-0.sh").read_text().splitlines()
    submit(study(WIDE), out, gpus=True, dry_run=True, sbatch=lines, cpus=3, storage="s3://b/c d")
    scripts = {path.stem: path.read_text() for path in (out / "slurm").glob("*.sh")}
    assert len(scripts) == 2 + len(arrays(study(WIDE), stages(study(WIDE))))
    for path in (out / "slurm").glob("*.sh"):
        subprocess.run(["bash", "-n", path], check=True)
    options = {name: re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE) for name, text in scripts.items()}
    wide = options["train-4-after-traces-0"]
    assert {"--gres=gpu:4", "--cpus-per-task=12", "--partition=gpu", "--time=9:00:00", "--array=0,1"} <= {*wide}
    assert not any(line.startswith(("--output", "--mem")) for line in wide)
    assert "--mem=4G" in options["train-1-after-traces-0"]
    assert "--array=0,1" in options["traces"] and "--time=9:00:00" not in options["traces"]
    assert not any("gres" in line for line in options["traces"] + options["collect"])
    assert [line for line in options["collect"] if "partition" in line] == ["--partition=gpu", "--partition=cpu"]
    for name, text in scripts.items():
        if name != "submit":
            assert "--storage 's3://b/c d'" in text and "PYTHONSAFEPATH=1" in text
    assert not (out / "slurm" / "jobs").exists()


def test_a_submission_that_is_refused_leaves_nothing_queued(tmp_path, monkeypatch):
    """Neither is anything submitted while jobs of the last time are there."""
    programs = tmp_path / "bin"
    programs.mkdir()
    taken_back = tmp_path / "taken back"
    for name, body in {
        "sbatch": f'[ -e "{tmp_path}/full" ] || {{ touch "{tmp_path}/full"; echo "7;cluster"; exit; }}; echo "of our site" >&2; echo "error: no such partition" >&2; exit 1',
        "scancel": f'echo "$@" > "{taken_back}"',
        "squeue": '[ "$4" = 7,8 ] && echo 7',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(InputError, match=r"no such partition .*nothing was submitted"):
        submit(study(MINI), tmp_path / "out")
    assert taken_back.read_text() == "7\n" and not (tmp_path / "out" / "slurm" / "jobs").exists()
    (tmp_path / "out" / "slurm" / "jobs").write_text("traces 7\ntrain-1 8\n")
    with pytest.raises(InputError, match="still queued; wait, or scancel 7"):
        submit(study(MINI), tmp_path / "out")
    (tmp_path / "out" / "slurm" / "jobs").write_text("traces 8\n")
    (tmp_path / "full").unlink()
    with pytest.raises(InputError, match="no such partition"):
        submit(study(MINI), tmp_path / "out")


def test_without_slurm_nothing_is_submitted(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="there is no sbatch here"):
        submit(study(MINI), tmp_path / "out")


def test_jobs_that_were_submitted_by_hand_or_left_by_a_kill_are_known(tmp_path, slurm, monkeypatch):
    """submit.sh says what it submits while it does."""
    stand_in_stages(monkeypatch, tmp_path, "nothing")
    for name in ("PATH", "FAKE_SLURM"):
        monkeypatch.setenv(name, slurm[0][name])
    jobs, kept = tmp_path / "out" / "slurm" / "jobs", tmp_path / "out" / "slurm" / "kept"
    submit(study(MINI), tmp_path / "out", dry_run=True)
    assert not jobs.exists()
    subprocess.run(["bash", jobs.with_name("submit.sh")], check=True, capture_output=True, cwd="/")
    assert [line.split()[0] for line in jobs.read_text().splitlines()][-1] == "collect"
    (tmp_path / "bin" / "squeue").write_text(f'#!/bin/bash\nset -- ${{@: -1}}\necho "${{1%%,*}}" | tee "{kept}"\n')
    (tmp_path / "bin" / "squeue").chmod(0o755)
    with pytest.raises(InputError, match=r"still queued; wait, or scancel 1$"):
        submit(study(MINI), tmp_path / "out")
    (tmp_path / "bin" / "scancel").write_text("#!/bin/bash\nexit 1\n")
    (tmp_path / "bin" / "squeue").unlink()
    (tmp_path / "bin" / "sbatch").write_text(
        f'#!/bin/bash\n[ -e "{kept}.2" ] && kill -9 $PPID; touch "{kept}.2"; echo 5\n'
    )
    with pytest.raises(InputError, match="exit code -9"):
        submit(study(MINI), tmp_path / "out")
    assert jobs.read_text() == "traces 5\n"


def test_a_path_that_slurm_cannot_read_is_refused(tmp_path):
    for name in ("a\nb", "a\\b"):
        with pytest.raises(InputError, match="expected a path that Slurm can read"):
            submit(study(MINI), tmp_path / name, dry_run=True)


class Nobody:
    """A board that nobody reads."""

    class begin:
        @staticmethod
        def remote(name: str) -> None:
            pass


def do(out: Path, *failures: str | None, shared: bool = True) -> str | None:
    after = [f"train {number}" for number in range(len(failures))]
    task = Task("serve x", ["study"], "/", out / "log", failure_file(out, "serve x"), out / "p" if shared else None)
    return do_stage(Nobody, task, after, *failures)


def test_what_a_task_says_of_its_stage(tmp_path, monkeypatch):
    said = {"exit 0": None, 'echo "error: so it is" >&2; exit 2': "error: so it is"}
    command = {"text": ""}
    monkeypatch.setattr(ray_task, "distill_command", lambda *_: ["bash", "-c", command["text"]])
    assert "not seen from" in do(tmp_path / "out")
    assert do(tmp_path / "out", None, "out of memory", shared=False) == "train 1 failed"
    for command["text"], expected in said.items():
        reason = do(tmp_path / "out", shared=False)
        assert reason is None if expected is None else reason.startswith(expected)
    keep_failure(tmp_path / "out", "serve x", "of an earlier try")
    assert do(tmp_path / "out", shared=False).startswith(expected)
    keep_failure(tmp_path / "out", "serve x", "a line\nand another")
    command["text"] = f'cp "{tmp_path}/said" "{failure_file(tmp_path / "out", "serve x")}"; exit 2'
    failure_file(tmp_path / "out", "serve x").rename(tmp_path / "said")
    assert do(tmp_path / "out", shared=False) == "a line\nand another"
    for command["text"] in ("kill -9 $$", "exit 143"):  # killed, or told to stop: not of its own
        with pytest.raises(RuntimeError, match="killed"):
            do(tmp_path / "out", shared=False)


def test_a_stage_that_fails_on_ray_takes_down_only_what_depends_on_it(tmp_path, monkeypatch, capsys):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    settings, out = study(MINI), tmp_path / "out"
    write_beginning(settings, out, "command")
    how = validate(LaunchSettings, {"on": "ray", "cpus": 1}, source="test")
    todo = [Stage("train nobody", print), Stage("serve nobody", print, after=("train nobody",))]
    todo.append(next(one for one in stages(settings) if one.name == "traces all"))
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    try:
        on_ray.do_on_ray(settings, out, todo, how, None)
        with pytest.raises(InputError, match="wide takes 1000 CPUs, and no machine of the cluster has as many"):
            on_ray.do_on_ray(settings, out, [Stage("wide", print, devices=1000)], how, None)
    finally:
        ray.shutdown()
    said = capsys.readouterr().err
    assert "traces all: done" in said and "serve nobody: train nobody failed" in said
    (kept,) = (out / "failures").iterdir()  # of the one that is done there is none
    assert "unknown stage 'train nobody'" in json.loads(kept.read_text())["reason"]
    assert list(out.glob("traces-*/manifest.json"))


class Cluster:
    """Machines that a Ray says it has, by their (CPUs, GPUs)."""

    def __init__(self, *machines: tuple[float, float]):
        self._machines = machines

    def nodes(self) -> list[dict]:
        gone = {"Alive": False, "Resources": {"CPU": 999.0, "GPU": 99.0}}
        return [{"Alive": True, "Resources": {"CPU": c} | ({"GPU": g} if g else {})} for c, g in self._machines] + [
            gone
        ]


def test_what_is_left_of_a_study_can_be_watched(rng):
    """Whatever was done before: each student's mark is there, and says so."""
    settings = study(WIDE)
    every = stages(settings)
    there = {one.name for one in every if rng.random() < 0.5} | {"train wide-ift-some-seed0"}
    left = [one for one in every if one.name not in there]
    with Watched(left) as watched:
        rows = watched._rows(watched._states)
    serves = [one for one in left if one.name.startswith("serve ")]
    marks = Counter(mark for _, trained, _ in rows for mark in trained)
    assert marks["done"] == sum(name in there for one in serves for name in one.after)


def test_a_stage_takes_its_share_of_the_machines_that_it_can_run_on():
    """Machines without GPUs have cores that a stage with GPUs cannot have."""
    settings = study(WIDE)
    todo = [one for one in stages(settings) if one.name in ("traces some", "train wide-ift-some-seed0")]
    how = validate(LaunchSettings, {"on": "ray"}, source="test")
    cpus, needs = on_ray._needs(Cluster((64, 0), (32, 4), (48, 8)), settings, todo, how)
    assert cpus == 6 and needs["train wide-ift-some-seed0"] == {"num_cpus": 24, "num_gpus": 4}
    cpus, needs = on_ray._needs(Cluster((4, 0), (2, 0)), settings, todo, how)
    assert cpus == 1 and [*needs.values()] == [{"num_cpus": 1, "num_gpus": 0}, {"num_cpus": 4, "num_gpus": 0}]
    with pytest.raises(InputError, match="takes 36 CPUs and 4 GPUs, and no machine of the cluster has as many"):
        on_ray._needs(Cluster((32, 4)), settings, todo, how.model_copy(update={"cpus": 9}))


@pytest.mark.parametrize("gpus", [["a", "b", "c"], ["a"], []])
def test_a_stage_takes_as_many_devices_as_it_wants_and_no_more(tmp_path, monkeypatch, gpus):
    """Whatever a machine has; killed on the way, it is known to have been begun."""
    seen = []

    def act(place) -> None:
        seen.append((place.gpus, json.loads(failure_file(tmp_path, "serve x").read_text())["reason"]))
        raise KeyboardInterrupt  # which nobody keeps

    monkeypatch.setattr(study_run, "local_gpus", lambda: gpus)
    monkeypatch.setattr(study_run, "stage", lambda *_: Stage("serve x", act, devices=2))
    error, said = (InputError, "serve x: takes 2 devices") if len(gpus) == 1 else (KeyboardInterrupt, None)
    with pytest.raises(error, match=said):
        study_run.run_stage(study(MINI), tmp_path, "serve x", threads=1)
    begun = "begun and not ended: it was killed, or still runs"
    assert seen == ([] if len(gpus) == 1 else [(("a", "b") if gpus else None, begun)])
    assert json.loads(failure_file(tmp_path, "serve x").read_text())["reason"].startswith(said or begun)


def test_how_a_study_was_launched_is_written_as_a_shell_reads_it(tmp_path):
    (tmp_path / "my study.yaml").write_text(yaml.safe_dump(MINI))
    given = ["study", "launch", str(tmp_path / "my study.yaml"), "--out", str(tmp_path / "it's out"), "--on", "slurm"]
    given += [
        "--storage",
        (tmp_path / "stored").as_uri(),
        "--cpus",
        "3",
        "--sbatch",
        "train: --time=9:00:00",
        "--no-gpus",
    ]
    run = CliRunner().invoke(app, [*given, "--dry-run"])
    assert run.exit_code == 0, run.exception
    assert shlex.split((tmp_path / "it's out" / "command").read_text()) == ["distill", *given]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--on ray --dry-run", "dry_run: is for --on slurm"),
        ("--on ray --no-gpus", "gpus: is for --on slurm"),
        ("--on ray --sbatch --time=1", "sbatch: is for --on slurm"),
        ("--on slurm --address a:1", "address: is for --on ray"),
        ("--on kubernetes", "field on"),
        ("--on slurm --sbatch trian:--time=1", "sbatch: expected '--option' or '{traces|"),
        ("--on slurm --sbatch train8:--time=1", "found 'train8:--time=1'"),
        ("--on slurm --cpus 0", "field cpus"),
        ("--on ray --address 127.0.0.1:9", "no cluster at 127.0.0.1:9, which is --address"),
        ("--on ray --storage nosuch://x", "--storage nosuch://x"),
    ],
)
def test_a_launch_that_cannot_be_is_one_line(tmp_path, flags, said):
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(MINI))
    arguments = ["study", "launch", str(tmp_path / "mini.yaml"), "--out", str(tmp_path / "out"), *flags.split()]
    run = CliRunner().invoke(app, arguments)
    assert isinstance(run.exception, InputError) and said in str(run.exception) and "\n" not in str(run.exception)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, elsewhere) -> tuple[Path, Path, float]:
    """A study of six students, where it was run without a fault, and how many seconds that took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    arms = [*MINI["arms"], {"arm": "mixed:0.5"}]
    students = [MINI["students"][0] | {"seeds": [0, 1]}]
    (folder / "mini.yaml").write_text(yaml.safe_dump(MINI | {"arms": arms, "students": students}))
    began = time.monotonic()
    finish(distill(elsewhere, "study", "run", folder / "mini.yaml", "--out", folder / "whole"))
    return folder / "mini.yaml", folder / "whole", time.monotonic() - began


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", [("run",), ("launch", "--on", "ray", "--cpus", 1)], ids=["run", "ray"])
def test_killed_twenty_times_the_study_ends_the_same_and_repeats_nothing_finished(
    tmp_path, elsewhere, undisturbed, command
):
    """Any of its processes: the first one, Ray's own, stages, trainings, servers and their keepers."""
    (preset, whole, seconds), out, times = undisturbed, tmp_path / "killed", 20
    again = ("study", command[0], preset, "--out", out, *command[1:])
    seed = random.randrange(2**32)
    print(f"random.Random({seed})")
    draw, finished, killed, in_all = random.Random(seed), {}, [], len(manifests(whole))
    while len(killed) < times:
        run = distill(elsewhere, *again)
        while run.poll() is None:
            # Without a pause where more of the study than of the kills is over, so that it never ends before them.
            there = len(manifests(out))
            ahead = there and times * there > (len(killed) - 3) * in_all
            time.sleep(0.05 if ahead else draw.uniform(0.2, seconds / 8))
            kinds = of_kinds(run.pid, out)
            if kinds.keys() & {"study stage", "distill train", "vllm.entrypoints"} and len(killed) < times:
                kind = draw.choice(sorted(kinds))
                with contextlib.suppress(psutil.NoSuchProcess):
                    draw.choice(kinds[kind]).kill()
                    killed.append(kind)
        _, errors = run.communicate()
        wait_for(lambda: not processes_about(out))
        print(run.returncode, len(killed), errors[-300:])
        assert finished.items() <= manifests(out).items(), f"finished work was done again ({killed})"
        finished = manifests(out)
        assert run.returncode != 0 or len(killed) == times, f"the study was over too soon ({killed})"
    finish(distill(elsewhere, *again))
    assert finished.items() <= manifests(out).items()
    assert results(out) == results(whole), killed
    weights = [sorted(folder.glob("students/*/model.safetensors")) for folder in (out, whole)]
    assert [w.read_bytes() for w in weights[0]] == [w.read_bytes() for w in weights[1]], killed


def of_kinds(first: int, out: Path) -> dict[str, list[psutil.Process]]:
    """The processes of a study, by what they do."""
    marks = ("study run", "study launch", "study stage", "distill train", "serve.keeper", "vllm.entrypoints", "ray::")
    found: dict[str, list[psutil.Process]] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(first).children(recursive=True)
        for process in {*below, *map(psutil.Process, processes_about(out))}:
            command = " ".join(process.cmdline())
            found.setdefault(next((mark for mark in marks if mark in command), "another"), []).append(process)
    return found
