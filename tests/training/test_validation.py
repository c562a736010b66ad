"""Held-out pairs: which they are, what the student's loss on them is, and which weights are kept."""

import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distill.errors import InputError
from distill.packing.plan import Step
from distill.packing.source import read_traces
from distill.process import child_environment
from distill.tasks.task import split_of
from distill.training import best
from distill.training import run as runner
from distill.training.prepare import make_ready
from distill.training.settings import RunOptions, TrainSettings
from distill.training.train import train
from distill.training.validation import is_held_out, when

SETTINGS = dict(
    student="tiny",
    arm="reasoning",
    row_tokens=96,
    batch=24,
    learning_rate=3e-3,
    seed=3,
    validation=0.2,
    precision="fp32",
)


def settings(**changes):
    return TrainSettings(**(SETTINGS | changes))


def options(out, **changes):
    return RunOptions(**(dict(out=out, threads=1, tensorboard=False, checkpoint_steps=3) | changes))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_held_out_is_a_hash_of_the_question(rng):
    prompts = [f"add {n}" for n in rng.integers(10**9, 10**12, 20000)]
    share = float(rng.uniform(0.05, 0.5))
    held = [p for p in prompts if is_held_out(p, share)]
    spread = 6 * (share * (1 - share) / len(prompts)) ** 0.5
    assert abs(len(held) / len(prompts) - share) < spread
    assert all(is_held_out(p, share * 1.5) for p in held)
    assert not any(is_held_out(p, 0.0) for p in prompts)
    tests = [p for p in prompts if split_of(p) == "test"]  # a hash of the same prompt, which must not decide this one
    assert abs(np.mean([is_held_out(p, share) for p in tests]) - share) < spread * (len(prompts) / len(tests)) ** 0.5


def test_every_arm_and_seed_holds_out_the_same_and_trains_on_none_of_them(traces):
    trace_set = read_traces(traces)
    found = set()
    for arm, seed, packed in (("ift", 0, True), ("mixed:0.5", 1, False), ("sequential:0.25", 2, True)):
        for unit in ({"batch": 7}, {"batch": 192, "batch_unit": "tokens"}):
            ready = make_ready(settings(arm=arm, seed=seed, packed=packed, **unit), trace_set, weights=False)
            seen = [r for step in ready.steps for row in step.rows for r in row]
            trained = {ready.rendered.pair_ids[r // 2] for r in seen}
            assert len(seen) == len(trained) and len(trained) + ready.validation.pairs == 320
            held = frozenset(p.problem.id for p in trace_set.pairs) - trained
            assert held == {p.problem.id for p in trace_set.pairs if is_held_out(p.problem.prompt, 0.2)}
            found.add(held)
            rows = ready.validation.rows
            assert set(rows) == ({"ift"} if arm == "ift" else {"ift", "reasoning"})
            assert all(sum(len(row) for row in of_mode) == ready.validation.pairs for of_mode in rows.values())
            assert all(sum(d.length for d in row) <= 96 for of_mode in rows.values() for row in of_mode)
    assert len(found) == 1


def plain_loss(folder, config, documents):
    """(sum of token losses, tokens) of a saved student in float64, one document at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, attn_implementation="eager").double()
    total, count = 0.0, 0
    for d in documents:
        ids = torch.tensor(d.tokens.astype(np.int64))[None]
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, d.prompt_length - 1 : -1]
        targets = ids[0, d.prompt_length :]
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        count += len(targets)
    return total, count


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_the_loss_is_that_of_a_plain_loop_over_the_held_out_pairs(traces, tmp_path, packed):
    wanted = settings(arm="mixed:0.25", packed=packed, batch=64)
    made = train(wanted, traces, options(tmp_path / "s"))
    log = lines(tmp_path / "s" / "validation_log.jsonl")
    ready = make_ready(wanted, read_traces(traces), weights=False)
    sums = {}
    held = [p for p in read_traces(traces).pairs if is_held_out(p.problem.prompt, 0.2)]
    index = {name: i for i, name in enumerate(ready.rendered.pair_ids)}
    for number, mode in enumerate(("ift", "reasoning")):
        documents = [ready.rendered.documents[2 * index[p.problem.id] + number] for p in held]
        sums[mode] = plain_loss(tmp_path / "s", None, documents)
    (si, ni), (sr, nr) = sums["ift"], sums["reasoning"]
    last = log[-1]
    assert last["step"] == made.summary["steps"] and len(log) == 1  # one epoch
    assert last["loss_ift"] == pytest.approx(si / ni, rel=2e-5)
    assert last["loss_reasoning"] == pytest.approx(sr / nr, rel=2e-5)
    assert last["loss"] == pytest.approx((0.25 * sr + 0.75 * si) / (0.25 * nr + 0.75 * ni), rel=2e-5)
    said = made.summary["validation"]
    assert (said["pairs"], said["supervised_tokens"]) == (len(held), ni + nr)
    assert said["kept"] == said["lowest"] == last and made.summary["pairs"] == 320 - len(held)


def steps_of(sizes):
    return [Step([[0] * size], 0, i, len(sizes)) for i, size in enumerate(sizes)]


def test_when_it_is_validated():
    steps = steps_of([4, 4, 4, 4, 4, 4, 4, 2])  # 30 examples, 10 pairs: epochs end in steps 3, 5 and 8
    assert when(settings(), steps, 10) == {3, 5, 8}
    assert when(settings(validation_epochs=2), steps, 10) == {5, 8}
    assert when(settings(validation_epochs=9), steps, 10) == {8}
    assert when(settings(validation_steps=3), steps, 10) == {3, 6, 8}
    assert when(settings(validation_steps=100), steps, 10) == {8}
    assert when(settings(validation=0.0), steps, 10) == set()
    assert when(settings(), steps_of([30]), 10) == {1}


@pytest.fixture(scope="module")
def eleven_steps(traces):
    """Settings of 11 steps however many of the pairs are held out, validated after 2, 4, ..., 10 and 11."""
    trained = sum(not is_held_out(p.problem.prompt, 0.2) for p in read_traces(traces).pairs)
    return settings(batch=-(-trained // 11), weights="best", validation_steps=2)


@pytest.fixture(scope="module")
def uninterrupted(traces, tmp_path_factory, eleven_steps):
    """(folder, weights after every validation); the third, after step 6, is made the lowest."""
    folder, weights = tmp_path_factory.mktemp("best") / "student", {}
    with pytest.MonkeyPatch.context() as patch:
        raise_after(patch, 6, weights)
        train(eleven_steps, traces, options(folder))
    return folder, weights


def raise_after(patch, lowest, weights=None):
    """Real losses, raised by a nat a step away from step `lowest`: the last is not the best."""
    real = runner.Run.validate

    def validate(run, step):
        found = real(run, step)
        if weights is not None:
            weights[step] = {n: p.detach().clone() for n, p in run.student.model.named_parameters()}
        return found | {"loss": found["loss"] + abs(step - lowest)}

    patch.setattr(runner.Run, "validate", validate)


def assert_same(out, uninterrupted):
    for name in ("model.safetensors", "training_log.jsonl", "validation_log.jsonl"):
        assert (out / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    assert not (out / "checkpoints").exists()


def test_the_weights_of_the_lowest_loss_are_kept(uninterrupted, traces):
    folder, weights = uninterrupted
    assert sorted(weights) == [2, 4, 6, 8, 10, 11]
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in weights[6].items() if name in saved)
    assert not all(torch.equal(saved[name], value) for name, value in weights[11].items() if name in saved)
    validation = json.loads((folder / "metrics.json").read_text())["validation"]
    assert validation["kept"]["step"] == 6 and validation["times"] == 6
    assert validation["kept"] == lines(folder / "validation_log.jsonl")[2]


def test_validating_changes_no_weight(traces, tmp_path):
    outs = {}
    for name, changes in {"often": {"validation_steps": 1}, "once": {}}.items():
        train(settings(batch=64, **changes), traces, options(tmp_path / name))
        outs[name] = tmp_path / name
    for file in ("model.safetensors", "training_log.jsonl"):
        assert (outs["often"] / file).read_bytes() == (outs["once"] / file).read_bytes(), file


class Killed(BaseException):
    """Stands for a kill at one exact place; no handler for Exception may swallow it."""


def die(*_, **__):
    raise Killed


@pytest.mark.parametrize("moment", ["before it is kept", "before the old one goes", "after it is kept"])
@pytest.mark.parametrize("step", [4, 6])  # the checkpoint before is of step 3
def test_killed_while_the_best_is_kept(traces, tmp_path, uninterrupted, eleven_steps, moment, step):
    out, real = tmp_path / "student", best.keep

    def keep(folder, model, number, ranks):
        if number < step:
            return real(folder, model, number, ranks)
        if moment == "before the old one goes":
            patch.setattr(best.Path, "glob", die)
        if moment != "before it is kept":
            real(folder, model, number, ranks)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        raise_after(patch, 6)
        patch.setattr(best, "keep", keep)
        with pytest.raises(Killed):
            train(eleven_steps, traces, options(out))
    with pytest.MonkeyPatch.context() as patch:
        raise_after(patch, 6)
        train(eleven_steps, traces, options(out))
    assert_same(out, uninterrupted[0])


def test_damaged_best_weights_are_made_again_or_refused(traces, tmp_path, uninterrupted, eleven_steps, capsys):
    def run(out, stop):
        real = runner.Run.step
        with pytest.MonkeyPatch.context() as patch:
            raise_after(patch, 6)
            if stop:
                patch.setattr(runner.Run, "step", lambda run, step: die() if step.index == stop else real(run, step))
            train(eleven_steps, traces, options(out))

    def damage(out, name):
        (path,) = (out / "checkpoints" / name).glob("*.safetensors")
        data = bytearray(path.read_bytes())
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(data)

    with pytest.raises(Killed):
        run(tmp_path / "ahead", 5)  # five steps done: checkpoint of step 3, best of step 4
    damage(tmp_path / "ahead", "best-00000004")
    run(tmp_path / "ahead", None)
    assert "best-00000004 is damaged and not used" in capsys.readouterr().err
    assert_same(tmp_path / "ahead", uninterrupted[0])
    with pytest.raises(Killed):
        run(tmp_path / "behind", 10)  # checkpoint of step 9, best of step 6
    damage(tmp_path / "behind", "best-00000006")
    with pytest.raises(InputError, match=r"best weights so far \(step 6\) are damaged or gone; delete the folder"):
        run(tmp_path / "behind", None)


KILL_IN_VALIDATION = """
import os, signal, sys
from distill import cli
from distill.training.student import Student
real, seen = Student.forward, []
def forward(self, batch):
    if not self.training:
        seen.append(1)
        if len(seen) == {number}:
            os.kill(os.getpid(), signal.SIGKILL)
    return real(self, batch)
Student.forward = forward
cli.main()
"""


def test_killed_in_the_middle_of_a_validation_it_ends_in_the_same_bits(traces, tmp_path, eleven_steps):
    """SIGKILL in a real process between two rows of a validation; the lowest loss is the real one here."""
    wanted = eleven_steps
    train(wanted, traces, options(tmp_path / "whole"))
    rows = len(make_ready(wanted, read_traces(traces), weights=False).validation.rows["reasoning"])
    out = tmp_path / "student"
    flags = [text for name, value in wanted.model_dump(exclude_defaults=True).items() for text in (f"--{name}", value)]
    arguments = [str(a).replace("_", "-") if str(a).startswith("--") else str(a) for a in flags if a is not None]
    where = [
        "--traces",
        str(traces),
        "--out",
        str(out),
        "--threads",
        "1",
        "--no-tensorboard",
        "--checkpoint-steps",
        "3",
    ]
    number = rows * 2 + random.randrange(2, rows)  # in the third validation, after step 6
    code = KILL_IN_VALIDATION.format(number=number)
    command = [sys.executable, "-c", code, "train", "--packed", *where, *arguments]
    killed = subprocess.run(command, capture_output=True, text=True, env=child_environment(1), timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(lines(out / "validation_log.jsonl")) == 2 and (out / "checkpoints" / "step-00000003").is_dir()
    assert not os.path.exists(out / "manifest.json")
    train(wanted, traces, options(out))
    assert_same(out, tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": "best", "validation": 0.0}, "need a share of pairs"),
        ({"validation_steps": 3, "validation": 0.0}, "need a share of pairs"),
        ({"validation": 1.0}, "less than 1"),
    ],
)
def test_settings_that_cannot_be(changes, said):
    with pytest.raises((InputError, ValueError), match=said):
        settings(**changes)


@pytest.mark.parametrize(("share", "said"), [(1e-9, "none is held out"), (1 - 1e-9, "none is left to train on")])
def test_a_share_that_leaves_one_side_empty_is_refused(traces, share, said):
    with pytest.raises(InputError, match=said):
        make_ready(settings(validation=share), read_traces(traces), weights=False)


def test_tensorboard_has_every_step_and_validation_once_after_a_kill(traces, tmp_path, eleven_steps):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, real = tmp_path / "student", runner.Run.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.Run, "step", lambda run, step: die() if step.index == 8 else real(run, step))
        with pytest.raises(Killed):
            train(eleven_steps, traces, options(out, tensorboard=True))
    train(eleven_steps, traces, options(out, tensorboard=True))  # goes on from step 6
    curves = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in curves.Scalars("train/loss")] == list(range(1, 12))
    for name in ("loss", "loss_reasoning"):
        found = [(event.step, event.value) for event in curves.Scalars(f"validation/{name}")]
        assert found == [(v["step"], pytest.approx(v[name])) for v in lines(out / "validation_log.jsonl")]
