"""A whole training against one written plainly: transformers, torch's cross-entropy and AdamW, document by document."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distill import artifact
from distill.packing.source import read_traces
from distill.training.prepare import make_ready
from distill.training.settings import RunOptions, TrainSettings
from distill.training.train import train

STEPS = 6
SHARED = dict(
    student="tiny",
    arm="mixed:0.5",
    row_tokens=128,
    batch=53,
    learning_rate=2e-3,
    warmup_steps=2,
    weight_decay=0.1,
    gradient_clip=0.5,
    precision="fp32",
    seed=7,
)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def plain_training(settings, traces):
    """(losses, gradient norms, final weights) of the same plan in float64."""
    ready = make_ready(settings, read_traces(traces))
    origin, rendered, steps = ready.origin, ready.rendered, ready.steps
    assert len(steps) == STEPS + 1
    model = AutoModelForCausalLM.from_config(origin.model.config, attn_implementation="eager")
    model.load_state_dict(origin.model.state_dict())
    model = model.double()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=False, foreach=False)
    losses, norms = [], []
    for number, step in enumerate(steps, start=1):
        documents = [rendered.documents[r] for row in step.rows for r in row]
        count = sum(len(d.tokens) - d.prompt_length for d in documents)
        total = 0.0
        for d in documents:
            ids = torch.tensor(d.tokens.astype(np.int64))[None]
            logits = model(input_ids=ids, use_cache=False).logits[0, d.prompt_length - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, d.prompt_length :], reduction="sum") / count
            loss.backward()
            total += loss.item()
        squares = sum(float(p.grad.square().sum()) for p in model.parameters())
        share = (number - 2) / (len(steps) - 2)
        rate = 2e-3 * number / 2 if number <= 2 else 2e-4 + 1.8e-3 * (1 + math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        for p in model.parameters():
            p.grad *= min(1.0, 0.5 / math.sqrt(squares))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        norms.append(math.sqrt(squares))
    return losses, norms, model.state_dict()


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_losses_and_weights_are_those_of_a_plain_loop(traces, tmp_path, packed):
    settings = TrainSettings(**SHARED, packed=packed)
    made = train(settings, traces, RunOptions(out=tmp_path / "s", threads=1, tensorboard=False))
    losses, norms, weights = plain_training(settings, traces)
    log = log_of(tmp_path / "s")
    assert [line["loss"] for line in log] == pytest.approx(losses, rel=2e-5)
    assert [line["gradient_norm"] for line in log] == pytest.approx(norms, rel=2e-4)
    found = load_file(tmp_path / "s" / "model.safetensors")
    for name, value in found.items():
        # AdamW divides by the root of the second moment: tiny gradients' rounding becomes steps of a rate's size
        assert (value.double() - weights[name]).abs().mean() < 2e-5, name
    assert made.summary["tokens"] == sum(line["tokens"] for line in log)
    assert made.summary["supervised_tokens"] == sum(line["supervised_tokens"] for line in log)
    by_mode = made.summary["by_mode"]
    assert sum(mode["examples"] for mode in by_mode.values()) == made.summary["examples"] == 320
    assert by_mode["ift"]["examples"] == by_mode["reasoning"]["examples"] == 160


def test_the_finished_folder_is_a_hugging_face_model_and_is_reused(traces, tmp_path, capsys):
    settings = TrainSettings(**SHARED)
    options = RunOptions(out=tmp_path / "s", threads=1)
    made = train(settings, traces, options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()}
    assert not (tmp_path / "s" / "checkpoints").exists()
    assert {"model.safetensors", "config.json", "tokenizer.json", "distill_chat.json", "training_log.jsonl"} <= set(
        made.files
    )
    assert any(name.startswith("tensorboard/") for name in made.files)
    again = train(settings, traces, options)
    assert (again.key, again.summary) == (made.key, made.summary)
    assert "already trained" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in before if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }
    artifact.read(tmp_path / "s", "student", made_by="distill train").verify()


def test_the_seed_decides(traces, tmp_path):
    weights = {}
    for name, changes in {"a": {}, "b": {}, "seed": {"seed": 8}}.items():
        settings = TrainSettings(**(SHARED | changes))
        train(settings, traces, RunOptions(out=tmp_path / name, threads=1, tensorboard=False, checkpoint_seconds=0.0))
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert weights["a"] == weights["b"] != weights["seed"]


def test_bf16_stays_near_fp32(traces, tmp_path):
    """Autocast costs accuracy, not learning: the last losses agree within a few percent."""
    last = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        train(
            TrainSettings(**(SHARED | {"precision": precision})),
            traces,
            RunOptions(out=out, threads=1, tensorboard=False),
        )
        last[precision] = [line["loss"] for line in log_of(out)]
    assert last["bf16"] == pytest.approx(last["fp32"], rel=0.03)
    assert last["bf16"] != last["fp32"]
