"""A trace set of a part of its questions stays what it is until more of it, or the whole, takes its place."""

import os
import signal
import subprocess
import sys
import time

import pytest

from distill import artifact
from distill.errors import InputError
from distill.process import child_environment
from distill.traces import generate as generate_module
from distill.traces.generate import generate
from distill.traces.settings import EndpointSettings, GenerateOptions, GenerateSettings
from distill.traces.stats.stats import stats
from distill.traces.store import read_pairs, read_rejected


@pytest.fixture
def part(tmp_path, teacher, rng):
    """(settings, folder, what is in it) of a set that ended early."""
    who = EndpointSettings(url=teacher.url, model="fake", concurrency=2)
    settings = GenerateSettings(tasks={"add": 60}, seed=int(rng.integers(99)), teacher=who)
    generate(settings, tmp_path / "t", GenerateOptions(partial=True, max_total_tokens=int(rng.integers(200, 900))))
    return settings, tmp_path / "t", contents(tmp_path / "t")


def contents(folder):
    """Of a set that is whole: every reader is content with it."""
    made = artifact.read(folder, "traces", made_by="a test")
    made.verify()
    found = stats(folder)
    assert found["key"] == made.key and found["pairs"] == len(read_pairs(folder))
    return made, (folder / "pairs.parquet").read_bytes(), read_rejected(folder)


def test_what_cannot_be_asked_now_leaves_it_as_it_was(part, teacher, tmp_path, monkeypatch):
    settings, folder, before = part
    assert "partial" in before[0].recipe
    with pytest.raises(InputError, match="stopped at --max-total-tokens"):  # it asked some, and has them in its journal
        generate(settings, folder, GenerateOptions(max_total_tokens=1200))
    asked = teacher.requests
    assert contents(folder) == before and not (folder / ".next").exists()
    # Also when it fails with the new rows half written.
    write = generate_module.write_pairs

    def fails(place, rows):
        write(place, rows)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generate_module, "write_pairs", fails)
    with pytest.raises(OSError, match="No space left"):
        generate(settings, folder, GenerateOptions(partial=True, max_total_tokens=0))
    assert contents(folder) == before and teacher.requests == asked
    monkeypatch.undo()
    whole = generate(settings, folder)
    assert whole.summary["pairs"] == 60 and contents(folder)[0] == whole and teacher.requests == 120
    assert {path.name for path in folder.iterdir()} <= {*whole.files, "manifest.json", "recipe.json", ".lock"}


def test_killed_while_it_goes_on(part, teacher):
    settings, folder, before = part
    teacher.delay_s = 0.02
    flags = f"--tasks add=60 --seed {settings.seed} --teacher {teacher.url} --model fake --concurrency 2".split()
    command = [sys.executable, "-m", "distill", "traces", "generate", *flags, "--out", str(folder)]
    asked = teacher.requests
    child = subprocess.Popen(command, env=child_environment(1), stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while teacher.requests < asked + 10 and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert asked + 10 <= teacher.requests < 120
    assert contents(folder) == before
    whole = generate(settings, folder)
    assert whole.summary["pairs"] == 60 and teacher.requests <= 120 + 2  # at most those in flight twice


def test_killed_while_the_new_takes_its_place(part, teacher, monkeypatch):
    """Between the two there is an unfinished folder, which the same command finishes without asking anything again."""
    settings, folder, _ = part
    asked = teacher.requests

    def killed(*_):
        raise KeyboardInterrupt

    for step in ("replace", "rmdir"):
        with monkeypatch.context() as patch:
            patch.setattr(artifact.Workspace, "_take_the_place_of_the_part", lambda work: killed())
            with pytest.raises(KeyboardInterrupt):
                generate(settings, folder, GenerateOptions(partial=True, max_total_tokens=0))
        (folder / ".next").mkdir()  # as SIGKILL leaves it
        (folder / ".next" / "pairs.parquet").write_bytes(b"half")
        if step == "rmdir":
            (folder / "manifest.json").unlink()
            with pytest.raises(InputError, match="not finished; run the same command again"):
                read_pairs(folder)
    assert teacher.requests == asked
    assert generate(settings, folder).summary["pairs"] == 60 and teacher.requests == 120
    contents(folder)
