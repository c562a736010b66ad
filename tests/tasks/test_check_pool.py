"""Checking in worker processes: what hangs, dies or eats memory ends alone, and every other answer has its verdict."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from distill.errors import InputError
from distill.process import child_environment
from distill.tasks import check_pool
from distill.tasks.check_pool import CHUNK, check_all
from distill.tasks.checkers import Verdict, math

BAD_CHECKER = """
import os, signal, time
from distill.tasks.checkers import Verdict

def check(gold, answer):
    if gold == "hang":
        9**9**9  # in C, where no Python signal handler runs
    if gold == "sleep":
        time.sleep(float(answer))
    if gold == "die":
        os.kill(os.getpid(), getattr(signal, answer))
    if gold == "exit":
        os._exit(int(answer))
    if gold == "eat":
        "x" * int(answer)
    if gold == "raise":
        raise ValueError(answer)
    if gold == "once":  # dies the first time it is checked
        try:
            os.mkdir(answer)
        except FileExistsError:
            return Verdict(True, "in the end")
        os.kill(os.getpid(), signal.SIGKILL)
    if gold == "pid":
        with open(answer, "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(60)
    return Verdict(gold == answer, str(os.getpid()))

def fail_to_start(memory_bytes, function):
    raise OSError("no")
"""


@pytest.fixture(scope="module")
def bad_checker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "bad_checker_of_a_test.py").write_text(BAD_CHECKER)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        from bad_checker_of_a_test import check

        yield check


def checked(checker, pairs, **options):
    verdicts = {}

    def keep(number, verdict):
        assert number not in verdicts
        verdicts[number] = verdict

    check_all(checker, iter(pairs), keep, processes=2, **options)
    assert sorted(verdicts) == list(range(len(pairs)))
    return [verdicts[number] for number in range(len(pairs))]


def test_math_in_workers_is_math_here(rng):
    numbers = rng.integers(1, 30, (60, 3)).tolist()
    pairs = [
        (rf"\frac{{{a}}}{{{b}}}", rf"so \boxed{{{a * c}/{b * c + int(rng.random() < 0.3)}}}") for a, b, c in numbers
    ]
    assert checked("math", pairs) == [math(*pair) for pair in pairs]


def test_towers_of_powers_end_in_time_and_cost_no_other_its_verdict(rng):
    pairs = [(str(n), rf"\boxed{{{n + int(n % 3 == 0)}}}") for n in rng.integers(1, 10**6, 3 * CHUNK).tolist()]
    towers = ["9**9**9", *rng.choice(["10^{10^{10}}", "99999999999!", r"\boxed{9^{9^{9^{9}}}}"], 2).tolist()]
    places = rng.choice(len(pairs), len(towers), replace=False).tolist()
    for place, tower in zip(places, towers, strict=True):
        pairs[place] = ("5", tower)
    start = time.monotonic()
    verdicts = checked("math", pairs, limit_s=2)
    assert time.monotonic() - start < 90
    for place, ((gold, answer), verdict) in enumerate(zip(pairs, verdicts, strict=True)):
        if place in places:
            assert not verdict.correct
        else:
            assert verdict == Verdict(f"{{{gold}}}" in answer, "equal" if f"{{{gold}}}" in answer else "not equal")
    assert "time" in {verdicts[place].failure for place in places}


def test_whatever_one_answer_does_the_others_have_their_verdict(rng, bad_checker, tmp_path):
    pairs = [(str(n), str(n + n % 2)) for n in rng.integers(0, 100, 3 * CHUNK).tolist()]
    bad = {
        ("hang", ""): Verdict(False, "no verdict in 2 s", "time"),
        ("die", "SIGSEGV"): Verdict(False, "the checking process died (SIGSEGV)", "crash"),
        ("exit", "3"): Verdict(False, "the checking process died (exit code 3)", "crash"),
        ("eat", str(2 ** int(rng.integers(32, 40)))): Verdict(False, "out of memory", "memory"),
        ("raise", "x"): Verdict(False, "the checker failed (ValueError)", "crash"),
        ("once", str(tmp_path / "once")): Verdict(True, "in the end"),
    }
    places = rng.choice(len(pairs), len(bad), replace=False).tolist()
    for place, pair in zip(places, bad, strict=True):
        pairs[place] = pair
    verdicts = checked(bad_checker, pairs, limit_s=2)
    for pair, verdict in zip(pairs, verdicts, strict=True):
        if pair in bad:
            assert verdict == bad[pair]
        else:
            assert verdict.correct == (pair[0] == pair[1]) and verdict.failure is None


def test_an_answer_alone_whose_worker_died_is_checked_once_more(bad_checker, tmp_path):
    """Its worker may have been killed for something else."""
    assert checked(bad_checker, [("once", str(tmp_path / "once"))]) == [Verdict(True, "in the end")]


def test_several_answers_share_a_chunk_but_each_has_its_own_limit(bad_checker):
    """Together they take longer than the limit, alone none does."""
    verdicts = checked(bad_checker, [("sleep", "0.3")] * 8, limit_s=2)
    assert all(verdict.failure is None for verdict in verdicts)


def test_workers_killed_from_outside(bad_checker, tmp_path):
    """At work and while idle: what they had is checked again."""
    pids, stop = tmp_path / "pids", threading.Event()

    def kill():
        while not stop.is_set():
            time.sleep(0.05)
            if pids.exists():
                os.kill(int(pids.read_text().split()[0]), signal.SIGKILL)
                pids.unlink()
                return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        pairs = [("1", "1")] * CHUNK + [("pid", str(pids))] + [("2", "2")] * CHUNK
        verdicts = checked(bad_checker, pairs, limit_s=2)
    finally:
        stop.set()
        killer.join()
    assert all(verdict.correct for number, verdict in enumerate(verdicts) if number != CHUNK)
    assert verdicts[CHUNK].failure == "time"


def test_from_a_thread_and_lazily(bad_checker):
    drawn, got = [], []

    def pairs():
        for n in range(40 * CHUNK):
            drawn.append(n)
            assert n - len(got) < 12 * CHUNK  # of a hundred thousand answers only some are in memory
            yield str(n), str(n)

    thread = threading.Thread(target=check_all, args=(bad_checker, pairs(), lambda n, verdict: got.append(n)))
    thread.start()
    thread.join(120)
    assert sorted(got) == drawn == list(range(40 * CHUNK))


def test_nothing_to_check_starts_nothing(monkeypatch):
    monkeypatch.setattr(check_pool._Checking, "run_pool", None)
    check_all("math", [], None)


def test_workers_that_cannot_start_are_said_so(bad_checker, monkeypatch):
    monkeypatch.setattr(check_pool, "_start_worker", sys.modules[bad_checker.__module__].fail_to_start)
    with pytest.raises(InputError, match="cannot be started"):
        checked(bad_checker, [("1", "1")])


def test_no_worker_outlives_a_killed_parent(bad_checker, tmp_path):
    pids = tmp_path / "pids"
    code = f"""
import sys
sys.path.insert(0, {str(os.path.dirname(sys.modules[bad_checker.__module__].__file__))!r})
from bad_checker_of_a_test import check
from distill.tasks.check_pool import check_all
if __name__ == "__main__":
    check_all(check, [("pid", {str(pids)!r})] * 2, print, processes=2, limit_s=50)
"""
    (tmp_path / "parent.py").write_text(code)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], env=child_environment(1))
    deadline = time.monotonic() + 60
    while not pids.exists() or not pids.read_text().strip():
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    for pid in map(int, pids.read_text().split()):
        while alive(pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
