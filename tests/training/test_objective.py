"""What the loss weighs: packed, padded and accumulated it is that of a plain loop over single documents in float64."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from distill.kernels import register_attention
from distill.packing.loss_weights import loss_weights, total_weight
from distill.packing.pack import build_pack
from distill.packing.source import read_traces
from distill.training.padded import build_padded
from distill.training.prepare import make_ready
from distill.training.settings import RunOptions, TrainSettings
from distill.training.show_batch import print_batch, show_batch
from distill.training.student import Student
from distill.training.train import train

WEIGHINGS = ["token", "example", "answer"]


def weights_of(supervised, reasoning, weigh):
    """By token of one document, as a person would write them down."""
    if weigh == "token":
        return [1.0] * supervised
    if weigh == "example" or reasoning == 0:
        return [1 / supervised] * supervised
    answer = supervised - reasoning
    return [1 / (2 * reasoning)] * reasoning + [1 / (2 * answer)] * answer


def plain_sums(model, document, reasoning, weigh, z_loss=0.0):
    """(sum of weighted losses as a tensor with gradients, sum of weights) of one document alone."""
    ids = torch.tensor(document.tokens.astype(np.int64))[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, document.prompt_length - 1 : -1].double()
    lse = logits.logsumexp(-1)
    losses = lse - logits.gather(1, ids[0, document.prompt_length :, None])[:, 0] + z_loss * lse**2
    weights = torch.tensor(weights_of(len(losses), reasoning, weigh), dtype=torch.float64)
    return (losses * weights).sum(), float(weights.sum())


@pytest.fixture
def some(documents, rng):
    """19 documents, some with reasoning: at least the end of turn comes after it."""
    found = documents(19)
    return [replace(d, reasoning_length=int(rng.integers(0, d.supervised))) for d in found]


@pytest.mark.parametrize("weigh", WEIGHINGS)
def test_what_a_token_weighs(some, weigh):
    expected = [w for d in some for w in weights_of(d.supervised, d.reasoning_length, weigh)]
    supervised, reasoning = [d.supervised for d in some], [d.reasoning_length for d in some]
    found = loss_weights(supervised, reasoning, weigh)
    assert total_weight(supervised, weigh) == pytest.approx(sum(expected))
    for batch in (build_pack(some, weigh), build_padded(some, 0, weigh)):
        if weigh == "token":
            assert found is None and batch.loss_weights is None
            continue
        assert found.dtype == np.float32 and found == pytest.approx(expected, rel=1e-6)
        assert torch.equal(batch.to("cpu").loss_weights, torch.from_numpy(found))
        assert len(batch.loss_weights) == len(batch.loss_rows)


@pytest.mark.parametrize("z_loss", [0.0, 0.02])
@pytest.mark.parametrize("weigh", WEIGHINGS)
def test_packed_padded_and_accumulated_equal_a_plain_loop(some, rng, weigh, z_loss):
    register_attention()
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=96)
    config = Qwen2Config(**shape, num_key_value_heads=1, initializer_range=0.2)
    plain = AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation="eager").double()
    sums = [plain_sums(plain, d, d.reasoning_length, weigh, z_loss) for d in some]
    expected = sum(s for s, _ in sums) / sum(w for _, w in sums)
    expected.backward()
    divisor = total_weight([d.supervised for d in some], weigh)
    cut = sorted(rng.choice(np.arange(1, len(some)), 2, replace=False).tolist())
    parts = [some[a:b] for a, b in zip([0, *cut], [*cut, len(some)], strict=True)]
    for attention, batches in {
        "distill": [build_pack(part, weigh) for part in parts],
        "sdpa": [build_padded(part, 0, weigh) for part in parts],
    }.items():
        model = AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation=attention)
        model.load_state_dict(plain.state_dict())
        student = Student(model, z_loss=z_loss).train()
        total = 0.0
        for batch in batches:
            loss = student(batch)
            (loss / divisor).backward()
            total += loss.item()
        assert total / divisor == pytest.approx(expected.item(), rel=1e-5)
        for (name, found), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert (found.grad - wanted.grad).abs().max() <= 1e-4 * wanted.grad.abs().max() + 1e-7, name
        with torch.no_grad():  # a validation is of the answers alone
            asked = sum(student.eval()(batch).item() for batch in batches) / divisor
        alone = sum(plain_sums(plain, d, d.reasoning_length, weigh)[0].item() for d in some) / divisor
        assert asked == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(("weigh", "packed"), [("example", False), ("answer", True)])
def test_a_training_and_its_validation_weigh_as_they_say(traces, tmp_path, weigh, packed):
    settings = TrainSettings(
        student="tiny", arm="mixed:0.5", row_tokens=96, batch=150, seed=4, precision="fp32", packed=packed,
        loss_weight=weigh, z_loss=0.01, validation=0.15,
    )  # fmt: skip
    made = train(settings, traces, RunOptions(out=tmp_path / "s", threads=1, tensorboard=False))
    ready = make_ready(settings, read_traces(traces))
    documents, close = ready.rendered.documents, ready.origin.chat.think_close_id
    reasoning = lambda r: documents[r].tokens.tolist().index(close) + 1 - documents[r].prompt_length if r % 2 else 0  # noqa: E731

    model = AutoModelForCausalLM.from_config(ready.origin.model.config, attn_implementation="eager")
    model.load_state_dict(ready.origin.model.state_dict())
    model = model.double()
    references = [r for row in ready.steps[0].rows for r in row]
    divisor, loss = len(references), 0.0  # each document weighs 1
    for r in references:
        part = plain_sums(model, documents[r], reasoning(r), weigh, 0.01)[0] / divisor
        part.backward()
        loss += part.item()
    norm = sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5
    first = json.loads((tmp_path / "s" / "training_log.jsonl").read_text().split("\n")[0])
    assert first["loss"] == pytest.approx(loss, rel=2e-5)
    assert first["gradient_norm"] == pytest.approx(norm, rel=2e-4)

    trained = {r // 2 for step in ready.steps for row in step.rows for r in row}
    held = [pair for pair in range(ready.rendered.n_pairs) if pair not in trained]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "s", attn_implementation="eager").double()
    means = {}
    for mode in (0, 1):
        with torch.no_grad():
            sums = [plain_sums(model, documents[2 * p + mode], reasoning(2 * p + mode), weigh) for p in held]
        means[mode] = sum(s.item() for s, _ in sums) / len(held)
    last = json.loads((tmp_path / "s" / "validation_log.jsonl").read_text().splitlines()[-1])
    assert last["loss_ift"] == pytest.approx(means[0], rel=2e-5)
    assert last["loss_reasoning"] == pytest.approx(means[1], rel=2e-5)
    assert last["loss"] == pytest.approx((means[0] + means[1]) / 2, rel=2e-5)

    by_mode = made.summary["by_mode"]
    assert all(mode["loss_weight"] == mode["examples"] for mode in by_mode.values())
    assert made.summary["loss_weight"] == made.summary["examples"] == len(trained)


def test_the_shown_batch_says_what_its_parts_weigh(traces, capsys):
    settings = TrainSettings(student="tiny", arm="mixed:0.5", row_tokens=200, batch=40, loss_weight="answer")
    shown = show_batch(settings, traces)
    for document in shown["documents"]:
        found = {part["kind"]: part["loss_weight"] for part in document["parts"]}
        assert found["prompt"] == 0 and sum(found.values()) == pytest.approx(1, rel=1e-5)
        if document["mode"] == "reasoning":
            assert found["reasoning"] == pytest.approx(0.5, rel=1e-5)
    print_batch(shown)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.strip().startswith("reasoning (") and ") 0.50 |" in line for line in lines)
    print_batch(show_batch(settings.model_copy(update={"loss_weight": "token"}), traces))
    assert not any(") 0.50" in line for line in capsys.readouterr().out.splitlines())
