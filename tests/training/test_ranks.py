"""Several ranks against one process: real processes, started by torchrun as a user starts them or forked as it would."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.errors import InputError
from distill.flops import ModelShape
from distill.packing.pack import Document
from distill.process import child_environment
from distill.training import checkpoint
from distill.training.batches import batches_of_rank
from distill.training.ranks import Ranks
from distill.training.settings import RunOptions, TrainSettings
from distill.training.train import train

WORKER = Path(__file__).with_name("ranks_worker.py")
SETTINGS = dict(student="tiny", arm="mixed:0.5", row_tokens=96, batch=10, learning_rate=3e-3, seed=3, precision="fp32")
KEEP_BEST = dict(validation=0.2, validation_steps=3, weights="best")


@contextmanager
def torchrun(ranks, *arguments):
    """A running torchrun; whatever it started is gone afterwards."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    alone = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # a port of its own
    process = subprocess.Popen(
        [*launcher, *alone, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(1),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finish(process):
    """(exit code, standard output, what the ranks said on standard error).

    torchrun's own lines carry its logger's mark, up to the traceback with which it reports and ends.
    """
    out, err = process.communicate(timeout=300)
    said = [line for line in err.splitlines() if line.strip()]
    if "Traceback (most recent call last):" in said:
        said = said[: said.index("Traceback (most recent call last):")]
    return process.returncode, out, [line for line in said if "torch/distributed/" not in line]


def flags(traces, out, settings, checkpoint_steps=3):
    own = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    how = ["--threads", "1", "--no-tensorboard", "--checkpoint-steps", str(checkpoint_steps)]
    return ["-m", "distill", "train", "--packed", "--traces", str(traces), "--out", str(out), *own, *how]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def newest(out):
    return max((int(p.name.removeprefix("step-")) for p in out.glob("checkpoints/step-*")), default=0)


def wait_for_step(process, out, step):
    deadline = time.monotonic() + 240
    while newest(out) < step and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)


def assert_close(out, expected):
    """Equal to rounding, which AdamW makes larger where a gradient is nearly zero."""
    for found, wanted in zip(lines(out / "training_log.jsonl"), lines(expected / "training_log.jsonl"), strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=2e-4)
        assert found["gradient_norm"] == pytest.approx(wanted["gradient_norm"], rel=5e-3)
        assert {k: found[k] for k in ("step", "tokens", "learning_rate")} == {
            k: wanted[k] for k in ("step", "tokens", "learning_rate")
        }
    ours, theirs = load_file(out / "model.safetensors"), load_file(expected / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        difference = (ours[name] - theirs[name]).float().norm() / theirs[name].float().norm()
        assert difference < 2e-3, (name, float(difference))


FAMILIES = ("qwen2 tied", "llama untied, with recomputation", "gemma3 untied", "lora on qwen3")
MORE = ("qwen2 untied", "qwen3 tied", "gemma tied", "gemma2 tied")
EVERY = [*FAMILIES, *(pytest.param(name, marks=pytest.mark.long) for name in MORE)]


@pytest.fixture(scope="session")
def found(tmp_path_factory, run_ranks):
    """found(number of ranks, family): (what ranks_worker found, its folder). The same seed: the same models and documents."""
    seed = secrets.randbits(30)

    @cache
    def of(ranks, families):
        print("seed", seed)
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        processes = run_ranks(ranks, [WORKER, seed, folder, *families])
        said = [process.communicate()[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * ranks, (seed, said)
        return json.loads((folder / "found.json").read_text()), folder

    return lambda ranks, family=FAMILIES[0]: of(ranks, FAMILIES if family in FAMILIES else MORE)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", EVERY)
def test_a_step_is_that_of_one_process(found, name, ranks):
    """Weights read by the first rank alone; losses, gradient norms, gradients and updated weights after two steps."""
    case = found(ranks, name)[0][name]
    assert case["losses and norms"] < 3e-6
    assert case["gradients"] < 1e-5
    assert case["weights"] < 1e-5
    assert case["share"] < 1 / ranks + 0.05  # of the parameters on the rank that holds most
    assert case["restored"]


@pytest.mark.parametrize("name", ["qwen2 tied", "gemma3 untied", "lora on qwen3"])
def test_one_process_reads_what_two_and_four_wrote(found, name, monkeypatch):
    monkeypatch.syspath_prepend(str(WORKER.parent))
    from ranks_worker import distance, make

    read = {}
    for ranks in (2, 4):
        folder = found(ranks, name)[1]
        student = make(name, 1, "cpu")
        optimizer = torch.optim.AdamW(student.parameters(), fused=True)
        assert checkpoint.restore(folder / name, student, optimizer, Ranks()).step == 2
        moments = {n: optimizer.state[p] for n, p in student.named_parameters() if p.requires_grad}
        assert all(float(of_one["step"]) == 2 for of_one in moments.values())
        weights = {n: p.detach() for n, p in student.named_parameters() if p.requires_grad}
        read[ranks] = weights | {f"{n} {k}": s[k] for n, s in moments.items() for k in ("exp_avg", "exp_avg_sq")}
    assert distance(read[2], read[4]) < 1e-4


@pytest.mark.parametrize("ranks", [2, 4])
def test_in_bf16_only_weights_and_activations_are(found, ranks):
    assert found(ranks)[0]["bf16"]


@pytest.mark.parametrize("ranks", [2, 4])
def test_an_error_of_one_is_the_error_of_all(found, ranks):
    last = ["InputError", "the last", None]
    full, stopped = ["OSError", "[Errno 28] full: 'here'", None], ["Stopped", "asked", 15]
    assert found(ranks)[0]["errors"] == [[last, full, full, stopped, stopped]] * ranks


@pytest.fixture(scope="session")
def alone(traces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "student"
    options = RunOptions(out=folder, threads=1, checkpoint_steps=1000, tensorboard=False)
    train(TrainSettings(**SETTINGS, **KEEP_BEST), traces, options)
    return folder


@pytest.fixture(scope="session")
def two(traces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "student"
    with torchrun(2, *flags(traces, folder, SETTINGS | KEEP_BEST, 1000), "--json") as process:
        code, out, said = finish(process)
    assert code == 0, said
    return folder, out, said


def test_two_ranks_train_the_student_that_one_trains(two, alone):
    folder, out, said = two
    assert_close(folder, alone)
    summary = json.loads(out)  # of one rank
    assert summary["path"] == str(folder) and summary["measured"]["ranks"] == 2
    assert all(line.startswith("step ") for line in said), said
    validations = lines(folder / "validation_log.jsonl")
    assert len(said) == len(validations)  # said once
    for ours, theirs in zip(validations, lines(alone / "validation_log.jsonl"), strict=True):
        assert ours == {name: pytest.approx(value, rel=2e-4) for name, value in theirs.items()}
    counted = json.loads((folder / "metrics.json").read_text()), json.loads((alone / "metrics.json").read_text())
    ours, theirs = (summary.pop("final_loss") for summary in counted)
    assert ours == pytest.approx(theirs, rel=2e-4)
    for summary in counted:
        del summary["measured"], summary["validation"]["lowest"], summary["validation"]["kept"]
    assert counted[0] == counted[1]


def test_four_ranks_stop_one_goes_on_and_two_finish(traces, tmp_path, alone, run_ranks, train_until, capsys):
    out = tmp_path / "student"
    arguments = flags(traces, out, SETTINGS | KEEP_BEST)
    first, *others = run_ranks(4, arguments)
    wait_for_step(first, out, 3)
    random.choice([first, *others]).send_signal(signal.SIGTERM)
    said = first.communicate()[1].splitlines()
    assert first.returncode == 128 + signal.SIGTERM and newest(out) >= 3, said
    # validations, and perhaps that some ranks had no row
    assert [line for line in said if not line.startswith(("step ", "devices have a row"))] == [
        f"stopped after step {newest(out)} of {len(lines(alone / 'training_log.jsonl'))}; run the same command to go on "
        "from there"
    ]
    stopped = newest(out)
    options = RunOptions(out=out, threads=1, checkpoint_steps=2, tensorboard=False)
    train_until(TrainSettings(**SETTINGS, **KEEP_BEST), traces, options, stopped + 3)
    between = newest(out)
    assert f"going on from step {stopped} " in capsys.readouterr().err and between > stopped
    processes = run_ranks(2, arguments)
    (_, said), (_, nothing) = (process.communicate() for process in processes)
    assert [process.returncode for process in processes] == [0, 0] and not nothing, (said, nothing)
    said = said.splitlines()
    assert any(f"going on from step {between} " in line for line in said), said
    assert_close(out, alone)


def test_bad_input_is_one_line_of_the_whole_job(traces, tmp_path, run_ranks):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "notes.txt").write_text("mine")
    first, second = run_ranks(2, flags(traces, tmp_path / "student", SETTINGS))
    message = f"error: {tmp_path / 'student'}: exists and was not made by distill; choose another --out\n"
    assert first.communicate() == ("", message) and first.returncode == 2
    second.kill()  # as torchrun does: it waits for that, so that the first one's line is the last
    assert second.communicate() == ("", "")
    assert [p.name for p in (tmp_path / "student").iterdir()] == ["notes.txt"]


@pytest.mark.long
def test_when_one_rank_is_killed_all_end_and_two_go_on_to_the_same_bits(traces, tmp_path, two):
    out = tmp_path / "student"
    arguments = flags(traces, out, SETTINGS | KEEP_BEST)
    for victim in ("a rank", "torchrun"):  # after a step that was also validated: the checkpoint is written after that
        with torchrun(2, *arguments) as process:
            wait_for_step(process, out, newest(out) + random.randrange(1, 6))
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert len(workers) == 2
            os.kill(process.pid if victim == "torchrun" else int(random.choice(workers)), signal.SIGKILL)
            code, _, said = finish(process)  # which is the end of all: they write to the same pipe
            assert code != 0 and not any("Traceback" in line for line in said), said
            assert victim == "a rank" or any("stopped after step" in line for line in said), said
        assert not (out / "manifest.json").exists()
    with torchrun(2, *arguments) as process:
        code, _, said = finish(process)
    assert code == 0 and any("going on from step" in line for line in said), said
    for name in ("model.safetensors", "training_log.jsonl", "validation_log.jsonl"):
        assert (out / name).read_bytes() == (two[0] / name).read_bytes(), name


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_ranks_share_every_row_of_a_step_and_run_as_many_batches(packed, rng):
    shape = ModelShape(hidden=8, layers=2, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocab=32)
    for world in (1, 2, 3, 4, 8):
        lengths = rng.integers(3, 30, int(rng.integers(1, 25)))
        documents = [Document(np.arange(n, dtype=np.int32), 1) for n in lengths]
        rows = [[d] for d in documents]
        if packed:
            cuts = np.unique(rng.integers(1, len(documents) + 1, 9))
            rows = [list(part) for part in np.split(np.array(documents, dtype=object), cuts) if len(part)]
        settings = TrainSettings(student="tiny", row_tokens=64, packed=packed)
        shares = [batches_of_rank(rows, settings, shape, rank=rank, world=world) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        shared = [id(d) for share in shares for row in share for d in row]
        assert sorted(shared) == sorted(id(d) for d in documents)
        if packed:
            assert {tuple(map(id, row)) for share in shares for row in share if row} == {
                tuple(map(id, row)) for row in rows
            }
        else:
            assert all(max(d.length for d in row) * len(row) <= 64 for share in shares for row in share if row)


def test_cpu_offload_without_a_gpu_is_refused(traces, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="there is no GPU here"):
        train(TrainSettings(**SETTINGS), traces, RunOptions(out=tmp_path / "student", cpu_offload=True))
    assert not (tmp_path / "student").exists()
