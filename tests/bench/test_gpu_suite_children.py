"""The GPU suite's measuring process: one that hangs or dies costs its piece a contender, and the suite little time."""

import json
import subprocess
import sys
import time

import pytest

from distill.bench import gpu, gpu_child
from distill.bench.gpu_pieces import GpuSuiteSettings
from distill.bench.gpu_tables import of_section
from distill.errors import InputError

# A worker that measures nothing: in sections named in HANGS or DIES a contender of that name does so, unless left out.
_WORKER = """
import json, os, signal, sys, time
pieces, hangs, dies = json.loads(os.environ["FAKE"])
spec = json.load(sys.stdin)
say = lambda **message: print(json.dumps(message), flush=True)
say(environment={"gpu": "none"}, session={"commit": str(len(spec["done"]))})
for key, section in pieces:
    if key in spec["done"]:
        continue
    say(start=key)
    out = spec["crashed"].get(key, {})
    if section in hangs and "slow" not in out:
        say(contender="slow")
        time.sleep(60)
    if section in dies and "fragile" not in out:
        say(contender="fragile")
        os.kill(os.getpid(), signal.SIGSEGV)
    say(done=key, value={"contenders": {name: {"error": how} for name, how in out.items()}, "passed": not out})
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the suite with the worker above: (result, processes started)."""
    settings = GpuSuiteSettings(budget_seconds=60.0, device="cpu", seed=1)
    started = []

    class Counted(gpu_child.Child):
        def __init__(self, *arguments):
            started.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(gpu, "Child", Counted)
    monkeypatch.setattr(gpu_child, "COMMAND", (sys.executable, "-S", "-c", _WORKER))
    monkeypatch.setattr(gpu_child, "SILENCE_SECONDS", 1.5)

    def call(hangs=(), dies=(), budget=60.0):
        pieces = [(p.key, p.about["section"]) for p in gpu.all_pieces(settings)]
        monkeypatch.setenv("FAKE", json.dumps([pieces, hangs, dies]))
        given = gpu.replace(settings, budget_seconds=budget)
        return gpu.bench_gpu(given, tmp_path / "gpu.json"), len(started)

    return call


def _unsessioned(result):
    return {key: piece | {"session": 0} for key, piece in result["pieces"].items()}


def _errors(result, section):
    return [p["measured"]["contenders"].values() for p in result["pieces"].values() if p["section"] == section]


def test_one_that_hangs_is_waited_for_once_in_its_section(run):
    result, started = run(hangs=["linear_cross_entropy"])
    assert started == 2 and result["pending"] == []
    first, *others = [[e["error"] for e in entries] for entries in _errors(result, "linear_cross_entropy")]
    assert len(others) == 23 and first == ["gave no answer for 120 s"]
    assert all(
        len(e) == 1 and e[0].startswith("not tried again: gave no answer for 120 s in linear_cross") for e in others
    )
    assert all(not list(entries) for entries in _errors(result, "varlen_attention"))


def test_one_that_dies_has_a_second_chance(run):
    result, started = run(dies=["correctness", "varlen_attention"])
    assert started == 5 and result["pending"] == []
    for section in ("correctness", "varlen_attention"):
        errors = [[e["error"] for e in entries] for entries in _errors(result, section)]
        assert all(e[0].startswith("ended its process with exit code -11") for e in errors[:2])
        assert all(e[0].startswith("not tried again: ended") for e in errors[2:])
    checks = [p for p in result["pieces"].values() if p["section"] == "correctness"]
    assert len(result["problems"]) == len(checks) > 40  # what was not computed did not pass


def test_a_second_session_gives_what_one_gives_and_a_new_commit_does_not_stop_it(run, tmp_path):
    """The result's own file makes its tree one with changes; the hash of the sources says what belongs together."""
    file = tmp_path / "gpu.json"
    whole, _ = run()
    cut = json.loads(file.read_text())
    for key in list(cut["pieces"])[5:]:
        del cut["pieces"][key]
    file.write_text(json.dumps(cut))
    resumed, _ = run()
    assert [s["commit"] for s in resumed["sessions"]] == ["0", "5"]
    for section in {piece["section"] for piece in whole["pieces"].values()}:
        assert of_section(resumed | {"pieces": _unsessioned(resumed)}, section) == of_section(whole, section)
    assert _unsessioned(resumed) == whole["pieces"]


@pytest.mark.parametrize("content", ['{"kind": "gpu suite"}', '{"kind": "gpu suite", "pieces": {}}', "[]", "3"])
def test_a_file_that_is_not_a_whole_result_is_left_alone(content, run, tmp_path):
    file = tmp_path / "gpu.json"
    file.write_text(content)
    with pytest.raises(InputError, match="not made by") as error:
        run()
    assert "\n" not in str(error.value) and file.read_text() == content


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Starts a child that runs this code."""

    def start(code, seconds=60.0):
        monkeypatch.setattr(gpu_child, "COMMAND", (sys.executable, "-S", "-c", code))
        return gpu_child.Child({"deadline": time.monotonic() + seconds, "done": ["x" * 300_000]}, tmp_path / "log")

    return start


def test_a_child_that_does_not_end_is_killed(child, monkeypatch):
    monkeypatch.setattr(gpu_child, "END_SECONDS", 10.0)
    stubborn = (
        "import os, sys, time; sys.stdin.read(); os.close(1); time.sleep(60)"  # it has said everything, and stays
    )
    first = child(stubborn)
    assert list(first.messages()) == [] and not first.has_hung
    monkeypatch.setattr(gpu_child, "END_SECONDS", 0.5)
    assert first.end(kill=False) == -9
    assert child(stubborn).end(kill=True) == -9
    monkeypatch.setattr(gpu_child, "END_SECONDS", 10.0)
    early = child("raise SystemExit(4)")  # without a look at its spec, which no pipe's buffer holds
    assert list(early.messages()) == [] and not early.has_hung and early.end(kill=False) == 4


def test_a_spec_of_any_size_arrives_and_a_line_that_was_cut_off_is_not_one(child):
    code = """
import json, sys
spec = json.load(sys.stdin)
print(json.dumps({"length": len(spec["done"][0])}), flush=True)
sys.stdout.write('{"done": "a", "val')
sys.exit("the last words")
"""
    found = child(code)
    assert list(found.messages()) == [{"length": 300_000}]
    assert found.end(kill=False) == 1 and found.last_words() == "the last words"


def test_one_that_is_silent_has_hung_at_the_latest_a_while_after_the_deadline(child, monkeypatch):
    monkeypatch.setattr(gpu_child, "GRACE_SECONDS", 0.5)
    found = child("import time; time.sleep(60)", seconds=0.2)
    assert list(found.messages()) == [] and found.has_hung and found.end(kill=True) == -9


def test_a_process_that_the_driver_holds_is_said_and_not_waited_for(child, monkeypatch):
    class Held:
        pid = 17

        def kill(self):
            pass

        def wait(self, timeout):
            raise subprocess.TimeoutExpired("worker", timeout)

    found = child("")
    assert list(found.messages()) == []
    process, found._process = found._process, Held()
    with pytest.raises(InputError, match="process 17 cannot be ended") as error:
        found.end(kill=True)
    assert "\n" not in str(error.value) and process.wait(timeout=20) == 0
