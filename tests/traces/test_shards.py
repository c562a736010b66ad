"""Shards: processes of their own, killed or not, that merge to the bytes of one run; and the same on a real local Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from typer.testing import CliRunner

from distill.artifact import content_key
from distill.cli import app
from distill.errors import InputError
from distill.process import child_environment
from distill.tasks import get_task
from distill.traces.generate import generate, generate_recipe
from distill.traces.merge import merge
from distill.traces.ray_shards import generate_on_ray
from distill.traces.settings import EndpointSettings, GenerateOptions, GenerateSettings
from distill.traces.store import read_pairs, read_rejected
from distill.traces.vocabulary import load_tokenizer


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def part(settings, number, of):
    return settings.model_copy(update={"shard": (number, of)})


@pytest.fixture
def questions(tmp_path, rng):
    """60 questions of our own, two bad rows and a repeated one among them."""
    lines = [json.dumps({"prompt": f"add {i} {rng.integers(100)}", "gold": "7"}) for i in range(60)]
    for bad in ("{", lines[0], '{"prompt": 3}'):
        lines.insert(int(rng.integers(1, 60)), bad)
    (tmp_path / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "mine": {"path": str(tmp_path / "questions.jsonl"), "answer": "gold", "checker": "number", "skip_bad": True}
    }


def test_merged_shards_are_the_unsharded_run(tmp_path, teacher, questions, rng):
    """Whatever the order of the arguments: the same files, key and manifest, for rows of every kind."""
    good = teacher.reply

    def reply(body):  # some answers are cut off, some requests refused; decided by the request alone
        fate = sum(map(ord, body["messages"][-1]["content"])) % 11
        return 400 if fate == 0 else good(body) | ({"finish_reason": "length"} if fate == 1 else {})

    teacher.reply = reply
    who = EndpointSettings(
        url=teacher.url, model="fake", concurrency=8, usd_per_million_input=1, usd_per_million_output=3
    )
    settings = GenerateSettings(tasks={"add": 20}, data=questions, samples=2, seed=int(rng.integers(99)), teacher=who)
    whole = generate(settings, tmp_path / "whole")
    assert set(whole.summary["rejected"]) >= {"malformed", "repeated"} and whole.summary["rows"] == 163
    of = int(rng.integers(2, 6))
    folders = [tmp_path / f"shard{number}" for number in range(1, of + 1)]
    sizes = [generate(part(settings, n, of), folder).summary["rows"] for n, folder in enumerate(folders, 1)]
    assert sum(sizes) == 163 and max(sizes) < 163
    assert max(Counter(teacher.asked).values()) == 2  # once in the whole run, once in one of the shards
    for number in range(2):
        order = [folders[i] for i in rng.permutation(of)]
        made = merge(order, tmp_path / f"merged{number}")
        assert made.key == whole.key == content_key("traces", generate_recipe(settings))
        assert contents(made.path) == contents(whole.path)
    asked = teacher.requests
    assert generate(settings, tmp_path / "merged0").key == whole.key and teacher.requests == asked  # a study finds it


def test_a_question_is_in_the_same_shard_whatever_is_beside_it(tmp_path):
    """By its own hash alone: all samples together, and independent of counts and other tasks."""
    shards = {}
    for number in (1, 2, 3):
        for name, tasks in (("few", {"add": 60}), ("many", {"max": 30, "add": 90})):
            generate(GenerateSettings(tasks=tasks, samples=2, shard=(number, 3)), tmp_path / f"{name}{number}")
        few, many = ({(p.problem.id, p.sample) for p in read_pairs(tmp_path / f"{n}{number}")} for n in ("few", "many"))
        assert few <= many and {(id, 1 - sample) for id, sample in few} == few
        shards |= dict.fromkeys((id for id, _ in few), number)
    sizes = Counter(shards.values())
    assert sum(sizes.values()) == 60 and min(sizes.values()) >= 5


def test_two_shards_in_processes_of_their_own_killed_at_random(tmp_path, teacher, rng):
    teacher.delay_s = 0.01
    who = EndpointSettings(url=teacher.url, model="fake", concurrency=4)
    settings = GenerateSettings(tasks={"add": 120}, seed=int(rng.integers(1000)), teacher=who)
    folders, kills = [tmp_path / "1", tmp_path / "2"], 0
    flags = f"--tasks add=120 --seed {settings.seed} --teacher {teacher.url} --model fake --concurrency 4".split()
    command = [sys.executable, "-m", "distill", "traces", "generate", *flags]

    def start(number):
        return subprocess.Popen(
            [*command, "--shard", f"{number}/2", "--out", str(folders[number - 1])],
            env=child_environment(1),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    children = {1: start(1), 2: start(2)}
    deadline = time.monotonic() + 120
    # At the first of these moments neither can be finished.
    for share in (rng.uniform(0.05, 0.4), *sorted(rng.uniform(0.4, 0.9, 2))):
        while teacher.requests < share * 240 and time.monotonic() < deadline:
            time.sleep(0.002)
        alive = [number for number, child in children.items() if child.poll() is None]
        if alive:
            number = alive[int(rng.integers(len(alive)))]
            os.kill(children[number].pid, signal.SIGKILL)
            children[number].communicate()
            children[number] = start(number)
            kills += 1
    said = [child.communicate(timeout=60)[1] for child in children.values()]
    assert [child.returncode for child in children.values()] == [0, 0], said
    assert kills and len(teacher.asked) == 240 and teacher.requests <= 240 + 4 * kills
    merge(folders, tmp_path / "merged")
    generate(settings, tmp_path / "whole")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_what_does_not_fit_together_is_refused(tmp_path):
    settings = GenerateSettings(tasks={"add": 30})
    for number in (1, 2, 3):
        generate(part(settings, number, 3), tmp_path / str(number))
    shutil.copytree(tmp_path / "2", tmp_path / "copy")
    generate(part(GenerateSettings(tasks={"add": 30}, seed=1), 2, 3), tmp_path / "seed")
    generate(part(GenerateSettings(tasks={"add": 31}), 2, 3), tmp_path / "count")
    generate(part(settings, 2, 2), tmp_path / "of2")
    generate(settings, tmp_path / "whole")
    for names, message in (
        ("1 3", "^shard 2 of 3 is missing; expected the folders of --shard 1/3 to"),
        ("3", "^shards 1, 2 of 3 are missing"),
        ("1 2 3 copy", r"copy: shard 2 of 3, and so is .*2"),
        ("1 seed 3", r"seed: made with other settings than .*1 \(seed 0 -> 1\)"),
        ("1 count 3", r"count: made with other settings .*tasks\.add\.count 30 -> 31"),
        ("1 of2", r"of2: made with other settings .*shards 3 -> 2"),
        ("1 2 whole", "whole: not a shard"),
        ("1 2 nowhere", "nowhere: no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            merge([tmp_path / name for name in names.split()], tmp_path / "out")
        assert not (tmp_path / "out").exists()
    damaged = tmp_path / "2" / "pairs.parquet"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(InputError, match=r"pairs\.parquet: damaged"):
        merge([tmp_path / name for name in "123"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_of_no_question(tmp_path):
    """With more shards than questions some are empty, and merge all the same."""
    settings = GenerateSettings(tasks={"add": 3})
    sizes = [generate(part(settings, n, 8), tmp_path / str(n)).summary["pairs"] for n in range(1, 9)]
    assert sum(sizes) == 3 and 0 in sizes
    merge([tmp_path / str(n) for n in range(1, 9)], tmp_path / "merged")
    generate(settings, tmp_path / "whole")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_partial_shards_merge_to_a_partial_set(tmp_path, teacher):
    who = EndpointSettings(url=teacher.url, model="fake", concurrency=1)
    settings = GenerateSettings(tasks={"add": 40}, teacher=who)
    folders = [tmp_path / "1", tmp_path / "2"]
    generate(part(settings, 1, 2), folders[0])
    generate(part(settings, 2, 2), folders[1], GenerateOptions(max_total_tokens=500, partial=True))
    made = merge(folders, tmp_path / "merged")
    assert set(made.summary["rejected"]) == {"not_asked"} == {row.reason for row in read_rejected(made.path)}
    with pytest.raises(InputError, match="made in part by shards; go on with those, then merge"):
        generate(settings, tmp_path / "merged")
    generate(part(settings, 2, 2), folders[1])
    assert teacher.requests == 80
    merge(folders, tmp_path / "merged")
    generate(settings, tmp_path / "whole")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_what_was_captured_to_distil_from_goes_with_its_pairs(tmp_path, teacher, tiny_student, rng):
    teacher.tokenizer = load_tokenizer(str(tiny_student))
    spoilt = {p.prompt for p in get_task("add").problems("train", 12, 0)[: int(rng.integers(1, 6))]}
    good = teacher.reply
    teacher.reply = lambda body: (
        good(body) | ({"finish_reason": "length"} if body["messages"][-1]["content"] in spoilt else {})
    )
    who = EndpointSettings(url=teacher.url, model="fake", tokenizer=str(tiny_student), top_k=int(rng.integers(1, 9)))
    settings = GenerateSettings(tasks={"add": 12}, teacher=who)
    folders = [generate(part(settings, number, 3), tmp_path / str(number)).path for number in (3, 1, 2)]
    merge(folders, tmp_path / "merged")
    generate(settings, tmp_path / "whole")
    assert "ift.top_k.safetensors" in contents(tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    hot = who.model_copy(update={"temperature": 0.5, "top_p": 1.0})
    other = settings.model_copy(update={"teacher": hot})
    generate(part(other, 1, 2), tmp_path / "raw")
    teacher.logprobs_mode = "processed_logprobs"
    generate(part(other, 2, 2), tmp_path / "processed")
    with pytest.raises(InputError, match=r"captured at temperatures 0\.5 and 1; expected one --logprobs-mode"):
        merge([tmp_path / "raw", tmp_path / "processed"], tmp_path / "mixed")


def test_the_commands(tmp_path):
    generate(GenerateSettings(tasks={"add": 20}), tmp_path / "whole")
    for number in (1, 2):
        flags = f"--tasks add=20 --shard {number}/2 --out {tmp_path / str(number)}"
        assert CliRunner().invoke(app, ["traces", "generate", *flags.split()]).exit_code == 0
    folders = [str(tmp_path / "2"), str(tmp_path / "1")]
    run = CliRunner().invoke(app, ["traces", "merge", *folders, "--out", str(tmp_path / "merged"), "--json"])
    assert run.exit_code == 0 and json.loads(run.stdout)["pairs"] == 20
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    for flags in ("--on ray", "--shards 2", "--on slurm --shards 2"):
        run = CliRunner().invoke(app, ["traces", "generate", "--tasks", "add=2", "--out", "x", *flags.split()])
        assert run.exit_code == 2


def test_ray_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray is not installed; expected .*distill-stack\[ray\]"):
        generate_on_ray(GenerateSettings(tasks={"add": 4}), tmp_path / "t", 2, GenerateOptions())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:99999"])
def test_no_cluster_is_said_at_once(tmp_path, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"--on ray: no cluster at {address}, which is RAY_ADDRESS"):
        generate_on_ray(GenerateSettings(tasks={"add": 4}), tmp_path / "t", 2, GenerateOptions())


@pytest.fixture(scope="module")
def ray_here():
    """A Ray of two cores on this machine, for all tests here."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield ray
    ray.shutdown()


def test_shards_on_ray(tmp_path, teacher, questions, ray_here):
    who = EndpointSettings(url=teacher.url, model="fake", concurrency=4)
    settings = GenerateSettings(tasks={"add": 30}, data=questions, teacher=who)
    made = generate_on_ray(settings, tmp_path / "t", 3, GenerateOptions())
    asked = teacher.requests
    assert asked == 180 == len(teacher.asked)
    whole = generate(settings, tmp_path / "whole")
    assert made.key == whole.key and contents(made.path) == contents(whole.path)
    assert generate_on_ray(settings, tmp_path / "t", 3, GenerateOptions()).key == made.key
    assert teacher.requests == asked + 180


def test_the_command_on_a_cluster_that_is_there(tmp_path, ray_here):
    address = ray_here.get_runtime_context().gcs_address
    rows = [{"question": f"{i}?", "answer": f"It is {i}. #### {i}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = "--tasks gsm8k:rows.jsonl=20 --on ray --shards 2 --out t --json"  # names relative to the working folder
    command = [sys.executable, "-m", "distill", "traces", "generate", *flags.split()]
    child = subprocess.run(
        command, env=child_environment(1, {"RAY_ADDRESS": address}), cwd=tmp_path, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    whole = generate(GenerateSettings(tasks={f"gsm8k:{tmp_path / 'rows.jsonl'}": 20}), tmp_path / "whole")
    assert json.loads(child.stdout)["key"] == whole.key and contents(tmp_path / "t") == contents(whole.path)


def test_a_worker_that_is_killed_on_ray(tmp_path, teacher, ray_here):
    """Ray starts the shard again, which goes on from its journal."""
    teacher.delay_s, good, killed = 0.02, teacher.reply, []

    def reply(body):
        with teacher.lock:
            if teacher.requests > 40 and not killed:
                killed.extend(workers_in(tmp_path)[:1])
                for process in killed:
                    os.kill(process, signal.SIGKILL)
        return good(body)

    teacher.reply = reply
    who = EndpointSettings(url=teacher.url, model="fake", concurrency=4)
    settings = GenerateSettings(tasks={"add": 80}, teacher=who)
    made = generate_on_ray(settings, tmp_path / "t", 2, GenerateOptions())
    assert killed and made.summary["pairs"] == 80
    assert len(teacher.asked) == 160 and teacher.requests <= 160 + 8


def workers_in(folder):
    """The processes that have a journal open somewhere below a folder."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            files = [os.readlink(f"/proc/{process}/fd/{fd}") for fd in os.listdir(f"/proc/{process}/fd")]
        except OSError:
            continue
        if any(file.startswith(str(folder)) and file.endswith("journal.jsonl") for file in files):
            found.append(int(process))
    return found


def test_failures_and_budgets_on_ray_are_one_line(tmp_path, teacher, ray_here):
    who = EndpointSettings(url=teacher.url, model="fake", concurrency=2)
    settings = GenerateSettings(tasks={"add": 40}, teacher=who)
    with pytest.raises(InputError, match=r"2 of 2 shards are not finished: .*stopped at --max-total-tokens 400 "):
        generate_on_ray(settings, tmp_path / "t", 2, GenerateOptions(max_total_tokens=800))
    part = generate_on_ray(settings, tmp_path / "t", 2, GenerateOptions(max_total_tokens=1600, partial=True))
    assert 0 < part.summary["pairs"] < 40
    assert generate_on_ray(settings, tmp_path / "t", 2, GenerateOptions()).summary["pairs"] == 40
    assert teacher.requests == len(teacher.asked) == 80
    bad = settings.model_copy(update={"teacher": who.model_copy(update={"model": "fak"})})
    with pytest.raises(InputError, match=r"2 of 2 shards are not finished: .*unknown model"):
        generate_on_ray(bad, tmp_path / "u", 2, GenerateOptions())
    with pytest.raises(InputError, match="--on ray makes all shards"):
        generate_on_ray(settings.model_copy(update={"shard": (1, 2)}), tmp_path / "u", 2, GenerateOptions())
