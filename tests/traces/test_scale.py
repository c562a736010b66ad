"""Large sets: 100,000 questions, killed half way, with the memory of every step; and 11,000 requests to a server, with
SIGKILLs in between, that come to one pass and a hundredth at most."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from distill.journal import Journal
from distill.process import child_environment
from distill.traces.generate import generate
from distill.traces.settings import EndpointSettings, GenerateSettings
from distill.traces.store import PAIRS, REJECTED, iter_columns, iter_pairs

STEPS = Path(__file__).with_name("scale_steps.py")


def step(name, folder, *more):
    """What the step said, and how it ended."""
    child = subprocess.run(
        [sys.executable, str(STEPS), name, str(folder), *map(str, more)],
        env=child_environment(1),
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(child.stdout) if child.stdout else {}, child.returncode


def write_questions(file, rows, rng):
    """So many rows: one in 1,000 cannot be read, one in 500 repeats an earlier one. Returns how many are questions."""
    words = np.array(
        [f"{a}{b}" for a in ("to", "wi", "sha", "pre", "un") for b in ("ld", "ne", "rk", "st", "mble", "")]
    )
    drawn, golds = rng.choice(words, (rows, 20)), rng.integers(1, 10**6, rows)
    questions, asked = 0, ""
    with open(file, "w") as lines:
        for number, (its_words, gold) in enumerate(zip(drawn.tolist(), golds.tolist(), strict=True)):
            if number % 1000 == 999:
                lines.write("{\n")
            elif number % 500 == 499:
                lines.write(asked)
            else:
                asked = json.dumps({"prompt": f"{' '.join(its_words)} {number}?", "gold": gold}) + "\n"
                lines.write(asked)
                questions += 1
    return questions


def places(folder):
    """Of all rows of a set, in both files."""
    batches = [batch for name in (PAIRS, REJECTED) for batch in iter_columns(folder, name, ["place"])]
    return sorted(place for batch in batches for place in batch.column("place").to_pylist())


@pytest.mark.long
def test_100_000_questions_killed_half_way(tmp_path, rng):
    """The teacher is in the process that asks it, and ends it by SIGKILL.

    Memory: what grows with a set is its questions and the places of its answers in the journal, not its texts, of which
    there are 2.4 kB a question; so half of that is allowed a question, beside what the libraries and a batch take. `check`
    also compares questions, by 128 numbers, 25 buckets and all runs of words of each.
    """
    rows, base_mib = 100_000, 300
    kibibytes = {"generate": 1.2, "verify": 1.2, "check": 2.8, "stats": 1.2}  # a question
    questions = write_questions(tmp_path / "questions.jsonl", rows, rng)
    one_pass, killed_after = 2 * questions, int(questions * rng.uniform(0.8, 1.2))
    _, code = step("generate", tmp_path, killed_after)
    assert code == -signal.SIGKILL and not (tmp_path / "traces" / "manifest.json").exists()
    with open(tmp_path / "traces" / "journal.jsonl", "rb") as journal:
        assert sum(1 for _ in journal) == killed_after
    said = {}
    for name in ("generate", "verify", "check", "stats"):
        said[name], code = step(name, tmp_path)
        assert code == 0
        print(f"{name}: {said[name]['seconds']:.0f} s, {said[name]['peak_mib']:.0f} MiB at most")
    requests = (tmp_path / "asked").stat().st_size
    assert one_pass <= requests <= 1.01 * one_pass
    made = said["generate"]["summary"]
    assert made["rows"] == rows == made["pairs"] + sum(made["rejected"].values())
    assert made["rejected"]["malformed"] + made["rejected"]["repeated"] == rows - questions
    assert 0 < made["rejected"]["truncated"] < 0.03 * rows
    for name in ("traces", "verified", "clean"):
        assert places(tmp_path / name) == list(range(rows))
    labels = said["verify"]["summary"]["verification"]
    assert labels["judged"] == dict.fromkeys(("reasoning", "ift"), made["pairs"])
    assert 0.85 < labels["verified"]["ift"] / made["pairs"] < 0.95
    clean = said["check"]["summary"]
    assert clean["rows"] == rows and clean["pairs"] > 0.95 * made["pairs"]
    seen = said["stats"]["summary"]
    assert (seen["rows"], seen["pairs"], seen["questions"]) == (rows, made["pairs"], questions)
    for name, one in said.items():
        assert one["peak_mib"] < base_mib + kibibytes[name] * rows / 1024, name


RUN = (
    "import sys; from pathlib import Path; from distill.traces.generate import generate; "
    "from distill.traces.settings import GenerateSettings; "
    "generate(GenerateSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
)


@pytest.mark.long
def test_11_000_requests_with_kills_come_to_one_pass(tmp_path, teacher, rng):
    """A hundredth more at most, and finished answers are kept as they were. The pause of the server is there so that a
    kill finds as many requests in flight as there may be."""
    teacher.delay_s = 0.005
    who = EndpointSettings(url=teacher.url, model="fake", concurrency=32)
    settings, out = GenerateSettings(tasks={"add": 5500}, seed=int(rng.integers(1000)), teacher=who), tmp_path / "t"
    kept, kills = {}, sorted(rng.uniform(0.05, 0.95, 3))
    for share in kills:
        child = subprocess.Popen(
            [sys.executable, "-c", RUN, settings.model_dump_json(), str(out)], env=child_environment(1)
        )
        deadline = time.monotonic() + 120
        while teacher.requests < max(share * 11_000, len(kept) + 1) and time.monotonic() < deadline:
            assert child.poll() is None
            time.sleep(0.002)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        with Journal(out / "journal.jsonl") as journal:
            found = {key: journal.get(key) for key in journal}
        assert all(found[key] == answer for key, answer in kept.items()) and len(found) >= len(kept)
        kept = found
    made = generate(settings, out)
    assert made.summary["pairs"] == 5500 and len(teacher.asked) == 11_000
    assert teacher.requests <= 11_000 + 32 * len(kills) <= 1.01 * 11_000
    written = {
        (trace.mode, trace.reasoning, trace.answer) for pair in iter_pairs(out) for trace in (pair.reasoning, pair.ift)
    }
    assert all(
        (mode, answer["trace"]["reasoning"], answer["trace"]["answer"]) in written
        for answer in kept.values()
        for mode in (("reasoning" if answer["trace"]["reasoning"] else "ift"),)
    )
