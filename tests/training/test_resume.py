"""Real `distill train` processes, killed wherever they are: run again, they end in the bytes of one that was not."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from distill import artifact
from distill.errors import InputError
from distill.training import checkpoint
from distill.training.settings import RunOptions, TrainSettings
from distill.training.train import train

STEPS = 54
SETTINGS = dict(
    student="tiny", arm="reasoning", packed=True, row_tokens=96, batch=6, learning_rate=3e-3, warmup_steps=5, seed=3
)  # 320 pairs in steps of 6: 54 steps
RESULTS = ("model.safetensors", "training_log.jsonl", "config.json", "tokenizer.json", "generation_config.json")


@pytest.fixture(scope="module")
def uninterrupted(traces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "student"
    options = RunOptions(out=folder, threads=1, checkpoint_steps=1000, tensorboard=False)
    assert train(TrainSettings(**SETTINGS), traces, options).summary["steps"] == STEPS
    return folder


def command(traces, out, **changes):
    """Of `distill`, its arguments."""
    flags = {k.replace("_", "-"): v for k, v in (SETTINGS | changes).items() if k != "packed"}
    arguments = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    where = ["--traces", str(traces), "--out", str(out)]
    how = ["--threads", "1", "--no-tensorboard", "--checkpoint-steps", "2"]
    return ["train", "--packed", *where, *arguments, *how]


def newest(out: Path) -> int:
    return max((int(p.name.removeprefix("step-")) for p in out.glob("checkpoints/step-*")), default=0)


def wait_for_step(process, out, step):
    """Until a checkpoint of `step` or later is there, and a random moment more."""
    deadline = time.monotonic() + 120
    while newest(out) < step and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.001)
    time.sleep(random.random() * 0.05)


def kill_at(process, out, step):
    wait_for_step(process, out, step)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert not (out / "manifest.json").exists()


def assert_same_result(out, uninterrupted):
    for name in RESULTS:
        assert (out / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    finished = artifact.read(out, "student", made_by="distill train")
    finished.verify()
    assert finished.key == artifact.read(uninterrupted, "student", made_by="distill train").key
    assert not (out / "checkpoints").exists()
    whole = artifact.read(uninterrupted, "student", made_by="distill train").summary
    assert {k: v for k, v in finished.summary.items() if k != "measured"} == {
        k: v for k, v in whole.items() if k != "measured"
    }


def test_killed_stopped_damaged_and_run_by_two_at_once(traces, tmp_path, uninterrupted, run_forked):
    out = tmp_path / "student"
    arguments = command(traces, out)
    kill_at(run_forked(["-m", "distill", *arguments]), out, step=random.randrange(2, 20))

    stopped = run_forked(["-m", "distill", *arguments])
    wait_for_step(stopped, out, newest(out) + random.randrange(2, 14))
    stopped.send_signal(signal.SIGTERM)
    _, said = stopped.communicate()
    assert stopped.returncode == 128 + signal.SIGTERM, said
    assert f"of {STEPS}; run the same command to go on from there" in said.splitlines()[-1]
    assert "Traceback" not in said and not (out / "manifest.json").exists()

    last = newest(out)
    flip(out / "checkpoints" / f"step-{last:08d}")

    both = [run_forked(["-m", "distill", *arguments]), run_forked(["-m", "distill", *arguments])]
    outputs = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("already trained, nothing to do" in text for text in outputs) == 1
    assert sum("is damaged and not used" in text for text in outputs) == 1
    assert sum("going on from step" in text for text in outputs) == 1
    assert_same_result(out, uninterrupted)


@contextmanager
def last_checkpoint(copy: Path):
    """Of a training in this process, the newest checkpoint at its end: the optimizer's state is in no result."""
    real = artifact.Workspace.commit

    def commit(work, *arguments, **named):
        if work.kind == "student":
            shutil.copytree(max((work.path / "checkpoints").glob("step-*")), copy)
        return real(work, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact.Workspace, "commit", commit)
        yield


def test_killed_ten_times(traces, tmp_path, uninterrupted, run_forked):
    """SIGKILL at ten random steps of one run: weights, logged losses and the optimizer's state end in the same bits."""
    out, kept = tmp_path / "student", {}
    for life in range(10):
        kill_at(
            run_forked(["-m", "distill", *command(traces, out)]),
            out,
            step=min(newest(out) + random.randrange(5), 5 * (life + 1)),
        )
    for name, folder in {"killed": out, "whole": tmp_path / "whole"}.items():
        with last_checkpoint(tmp_path / f"{name}-checkpoint"):
            options = RunOptions(out=folder, threads=1, checkpoint_steps=2, tensorboard=False)
            train(TrainSettings(**SETTINGS), traces, options)
        kept[name] = tmp_path / f"{name}-checkpoint"
    assert_same_result(out, uninterrupted)
    assert_same_result(out, tmp_path / "whole")
    for file in kept["whole"].glob("*.safetensors"):
        found, expected = load_file(kept["killed"] / file.name), load_file(file)
        assert any(name.startswith("exp_avg_sq.") for name in expected)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def options(out):
    return RunOptions(out=out, threads=1, checkpoint_steps=4, tensorboard=False)


def truncate(folder):
    path = random.choice(sorted(folder.iterdir()))
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])


def flip(folder):
    path = random.choice(sorted(folder.glob("*.safetensors")))
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def remove(folder):
    random.choice(sorted(folder.iterdir())).unlink()


def empty(folder):
    for path in folder.iterdir():
        path.write_bytes(b"")


def other_state(folder):
    (folder / "state.json").write_text(random.choice(["[]", "{}", '{"step": "x", "sha256": {}}', "null"]))


@pytest.mark.parametrize("damage", [truncate, flip, remove, empty, other_state])
def test_the_last_good_checkpoint_is_used(traces, tmp_path, uninterrupted, train_until, capsys, damage):
    out = tmp_path / "student"
    train_until(TrainSettings(**SETTINGS), traces, options(out), 12)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-00000008", "step-00000012"]
    damage(out / "checkpoints" / "step-00000012")
    train(TrainSettings(**SETTINGS), traces, options(out))
    said = capsys.readouterr().err
    assert "step-00000012 is damaged and not used" in said and "going on from step 8 of 54" in said
    assert_same_result(out, uninterrupted)


def test_when_every_checkpoint_is_damaged_it_says_so(traces, tmp_path, train_until):
    out = tmp_path / "student"
    train_until(TrainSettings(**SETTINGS), traces, options(out), 12)
    for folder in (out / "checkpoints").iterdir():
        truncate(folder)
    with pytest.raises(InputError, match="every checkpoint is damaged; delete the folder"):
        train(TrainSettings(**SETTINGS), traces, options(out))


def test_other_settings_or_traces_are_refused_with_what_changed(traces, tmp_path, train_until, uninterrupted):
    out = tmp_path / "student"
    train_until(TrainSettings(**SETTINGS), traces, options(out), 4)
    changed = TrainSettings(**(SETTINGS | {"learning_rate": 1e-3, "epochs": 2}))
    with pytest.raises(InputError) as refused:
        train(changed, traces, options(out))
    assert "settings.learning_rate 0.003 -> 0.001" in str(refused.value)
    assert "settings.epochs 1 -> 2" in str(refused.value) and "was started as" in str(refused.value)
    with pytest.raises(InputError, match=r"already holds.*settings\.epochs 1 -> 2"):
        train(changed, traces, options(uninterrupted))
    assert newest(out) == 4  # and nothing of the other one is touched


@contextmanager
def small_disk(folder: Path, size: str):
    """A file system of that size; `remount(size)` makes it larger. Skips where mounting is not allowed."""
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def run_command(arguments, monkeypatch, capsys):
    """(exit code, standard error) of a `distill` command in this process."""
    from distill import cli

    monkeypatch.setattr("sys.argv", ["distill", *arguments])
    capsys.readouterr()
    try:
        cli.main()
    except SystemExit as exit:
        return exit.code, capsys.readouterr().err
    return 0, capsys.readouterr().err


def test_a_full_disk_loses_nothing_that_was_saved(traces, tmp_path, uninterrupted, monkeypatch, capsys):
    """Room for one checkpoint, not for two: one line, exit code 2; with more room the same command goes on."""
    with small_disk(tmp_path / "disk", "2500k") as grow:
        out = tmp_path / "disk" / "student"
        arguments = command(traces, out)
        code, said = run_command(arguments, monkeypatch, capsys)
        assert code == 2, said
        assert "No space left on device" in said and len(said.strip().splitlines()) == 1, said
        assert newest(out) == 2 and not (out / "manifest.json").exists()
        assert not list(out.rglob("*.part"))
        grow("64m")
        code, said = run_command(arguments, monkeypatch, capsys)
        assert code == 0, said
        assert "going on from step 2" in said
        assert_same_result(out, uninterrupted)


def test_a_loss_that_is_not_a_number_stops_with_the_step_and_its_documents(traces, tmp_path, monkeypatch, capsys):
    out = tmp_path / "student"
    code, said = run_command(command(traces, out, learning_rate=1e38), monkeypatch, capsys)
    assert code == 2 and len(said.strip().splitlines()) == 1, said
    assert "error: step " in said and "gradient norm" in said and "Documents in the step: add/" in said
    assert not (out / "manifest.json").exists()
    named = int(said.split("step ")[1].split(":")[0])
    assert newest(out) < named, "a checkpoint of broken weights was kept"
    for folder in out.glob("checkpoints/step-*"):
        for file in folder.glob("*.safetensors"):
            assert all(t.isfinite().all() for t in load_file(file).values()), folder
    lines = (out / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, named))


def test_weights_that_the_last_step_broke_are_no_student(traces, tmp_path, monkeypatch, capsys):
    """The only step's loss is fine; what its update leaves is not."""
    out = tmp_path / "student"
    changes = {"learning_rate": 1e39, "batch": 320, "warmup_steps": 0}
    code, said = run_command(command(traces, out, **changes), monkeypatch, capsys)
    assert code == 2 and len(said.strip().splitlines()) == 1, said
    assert "is not a finite number in float32 after the last step" in said
    assert not (out / "manifest.json").exists() and not (out / "model.safetensors").exists()


def test_leftovers_of_a_kill_while_saving_are_cleared(traces, tmp_path, train_until, uninterrupted):
    out = tmp_path / "student"
    train_until(TrainSettings(**SETTINGS), traces, options(out), 8)
    torn = out / "checkpoints" / ".step-00000011.part"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(os.urandom(100))
    train(TrainSettings(**SETTINGS), traces, options(out))
    assert_same_result(out, uninterrupted)


def test_a_disk_that_fills_while_the_tokenizer_is_saved_is_said_as_any_other(tmp_path, uninterrupted):
    """tokenizers raises a plain Exception there."""
    tokenizer = AutoTokenizer.from_pretrained(uninterrupted)
    with (
        small_disk(tmp_path / "disk", "8k"),
        pytest.raises(OSError, match="No space left") as raised,
        checkpoint.disk_errors(tmp_path / "disk"),
    ):
        tokenizer.save_pretrained(tmp_path / "disk" / "student")
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(tmp_path / "disk")
