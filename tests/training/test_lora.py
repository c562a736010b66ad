"""LoRA students: what is trained and what is not, against plain PEFT, and what is in the folder."""

import copy
import itertools
import json
import math
import secrets
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from distill.errors import InputError
from distill.kernels import fuse_layers, fused_layers
from distill.packing.pack import build_pack
from distill.packing.source import read_traces
from distill.packing.tokenizer import train_tokenizer
from distill.process import child_environment
from distill.settings import validate
from distill.traces.generate import generate
from distill.traces.settings import GenerateSettings
from distill.training import train as train_module
from distill.training.activations import checkpoint_activations
from distill.training.dry_run import dry_run
from distill.training.lora import linear_layers, merged
from distill.training.memory import estimate_bytes
from distill.training.prepare import make_ready
from distill.training.run import Run
from distill.training.save import save_student
from distill.training.settings import Lora, RunOptions, TrainSettings
from distill.training.student import Student, load_origin
from distill.training.train import train

SHAPE = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
FAMILIES = {
    "qwen2": (Qwen2Config, dict(tie_word_embeddings=True)),
    "qwen3": (Qwen3Config, dict(head_dim=8, tie_word_embeddings=False)),
    "llama": (LlamaConfig, dict(tie_word_embeddings=False)),
    "gemma": (GemmaConfig, dict(head_dim=8)),
    "gemma2": (Gemma2Config, dict(head_dim=8, sliding_window=12)),
    "gemma3": (Gemma3TextConfig, dict(head_dim=8, sliding_window=12, sliding_window_pattern=2)),
}
RUN = dict(threads=1, tensorboard=False)


@pytest.fixture
def student(tmp_path, rng):
    """student(family, dtype): a folder with a tiny model of that family with fresh weights, and a tokenizer."""

    def make(family: str, dtype: torch.dtype = torch.float32) -> str:
        kind, more = FAMILIES[family]
        tokenizer = train_tokenizer(["add 12 max A3 B9:the 7:7,5:12"] * 20, 320)
        ids = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        config = kind(**SHAPE, **more, **ids, vocab_size=320, max_position_embeddings=512, initializer_range=0.2)
        torch.manual_seed(int(rng.integers(2**31)))
        folder = tmp_path / family
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def few_traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few") / "traces"
    generate(GenerateSettings(tasks={"add": 60, "max": 20}, seed=secrets.randbits(30)), folder)
    return folder


def load(student, lora, packed=True, seed=0):
    return load_origin(student, [], packed=packed, vocab_size=320, seed=seed, lora=lora)


def weights_of(origin):
    return {name: p.detach().clone() for name, p in origin.model.named_parameters()}


def draw_b(model, rng):
    """As after a training: B is zero at first."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.from_numpy(rng.normal(0, 0.1, p.shape)))


@pytest.mark.parametrize("family", FAMILIES)
def test_base_and_adapters_are_the_merged_model(student, tmp_path, rng, family):
    folder = student(family)
    for merge in (False, True):
        origin = load(folder, Lora(int(rng.integers(1, 6)), float(rng.uniform(1, 40)), None, merge))
        draw_b(origin.model, rng)
        out = tmp_path / f"merge-{merge}"
        out.mkdir()
        save_student(origin, weights_of(origin), out)
        place = out / "adapter" if merge else out
        assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "distill_chat.json"} <= {
            f.name for f in place.iterdir()
        }
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        ids = torch.from_numpy(rng.integers(0, 320, (2, 30)))
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, place)(ids).logits
        assert (adapted - plain).abs().max() > 0.05
        trained = origin.model.double()
        trained.set_attn_implementation("sdpa")
        torch.testing.assert_close(trained(ids).logits, adapted, rtol=1e-4, atol=1e-4)
        assert (out / "config.json").exists() == merge
        if merge:
            whole = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float64)(ids).logits
            torch.testing.assert_close(whole, adapted, rtol=1e-4, atol=1e-4)  # the merged weights are float32
            assert "adapter_model.safetensors" not in {f.name for f in out.iterdir()}


def test_targets_are_the_layers_named_and_all_but_the_head_if_none(student):
    folder = student("qwen3")
    every = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for asked, expected in ((None, every), (("v_proj", "q_proj"), {"q_proj", "v_proj"})):
        origin = load(folder, Lora(3, 32.0, asked, False))
        trained = {name for name, p in origin.model.named_parameters() if p.requires_grad}
        assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == expected
        assert len(trained) == 2 * 3 * len(expected) and all(".lora_" in name for name in trained)
        assert set(origin.lora.targets) == expected
        assert origin.shape.adapter_weights == origin.trainable_parameters


def test_the_seed_draws_the_adapters_and_nothing_else_does(student):
    folder, lora = student("llama"), Lora(2, 32.0, None, False)
    torch.manual_seed(1)
    one = weights_of(load(folder, lora, seed=4))
    state = torch.random.get_rng_state()
    same, other = (weights_of(load(folder, lora, seed=seed)) for seed in (4, 5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed == {name for name in one if ".lora_A." in name}


def plain_training(settings, traces, rate):
    """(losses, gradient norms, adapters) of the same plan by PEFT on transformers' own model, in float64."""
    ready = make_ready(settings, read_traces(traces))
    origin, rendered, steps = ready.origin, ready.rendered, ready.steps
    model = AutoModelForCausalLM.from_pretrained(settings.student, dtype=torch.float64, attn_implementation="eager")
    targets = settings.lora.targets or [name.rpartition(".")[2] for name in linear_layers(model)]
    config = LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora.alpha, target_modules=list(targets))
    model = get_peft_model(model, config, autocast_adapter_dtype=False)
    started = {f"base_model.model.{name}": w for name, w in weights_of(origin).items() if ".lora_" in name}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert started.keys() == trained.keys()
    for name, p in trained.items():
        p.data = started[name].double()
    optimizer = torch.optim.AdamW(trained.values(), rate, betas=(0.9, 0.95), weight_decay=0.1, foreach=False)
    losses, norms = [], []
    for step in steps:
        documents = [rendered.documents[r] for row in step.rows for r in row]
        count, total = sum(d.supervised for d in documents), 0.0
        for d in documents:
            ids = torch.tensor(d.tokens.astype(np.int64))[None]
            logits = model(input_ids=ids, use_cache=False).logits[0, d.prompt_length - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, d.prompt_length :], reduction="sum") / count
            loss.backward()
            total += loss.item()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in trained.values()))
        for p in trained.values():
            p.grad *= min(1.0, 1.0 / norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        norms.append(norm)
    return losses, norms, trained


@pytest.mark.parametrize(
    ("family", "packed", "targets"), [("gemma3", True, None), ("qwen2", False, ("q_proj", "down_proj"))]
)
def test_losses_gradients_and_adapters_are_those_of_plain_peft(
    student, few_traces, tmp_path, monkeypatch, family, packed, targets
):
    """Gradients too: the norm of all of them at every step, and after some steps what became of the weights."""
    settings = TrainSettings(
        student=student(family),
        arm="mixed:0.5",
        packed=packed,
        row_tokens=256,
        batch=21,
        schedule="constant",
        learning_rate=3e-3,
        weight_decay=0.1,
        lora_rank=3,
        lora_alpha=7.0,
        lora_targets=targets,
        precision="fp32",
    )
    kept = {}
    monkeypatch.setattr(train_module, "save_student", lambda o, w, f: (kept.update(w), save_student(o, w, f)))
    made = train(settings, few_traces, RunOptions(out=tmp_path / "s", **RUN))
    losses, norms, trained = plain_training(settings, few_traces, 3e-3)
    log = [json.loads(line) for line in (tmp_path / "s" / "training_log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in log] == pytest.approx(losses, rel=2e-5)
    assert [line["gradient_norm"] for line in log] == pytest.approx(norms, rel=2e-4)
    saved = load_file(tmp_path / "s" / "adapter_model.safetensors")
    assert len(saved) == len(trained)
    for name, w in saved.items():
        expected = trained[name.replace("weight", "default.weight")]
        assert (w - expected).abs().mean() < 2e-5, name
    base = load_file(f"{settings.student}/model.safetensors")
    for name, w in base.items():  # not a bit of it has moved
        ours = kept.get(name, kept.get(name.removesuffix(".weight") + ".base_layer.weight"))
        ours = kept[name.removesuffix(".bias") + ".base_layer.bias"] if ours is None else ours
        assert torch.equal(ours, w), name
    assert made.summary["trainable_parameters"] == sum(p.numel() for p in trained.values())
    whole = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(settings.student).parameters())
    assert made.summary["parameters"] == whole + made.summary["trainable_parameters"]


def test_killed_and_resumed_ends_in_the_same_bytes_and_checkpoints_hold_adapters_only(
    student, few_traces, tmp_path, monkeypatch, rng
):
    settings = TrainSettings(student=student("qwen3"), row_tokens=256, batch=10, lora_rank=2, merge=True)
    options = dict(checkpoint_steps=2, **RUN)
    train(settings, few_traces, RunOptions(out=tmp_path / "whole", **options))
    calls, dies_at = itertools.count(), int(rng.integers(3, 8))
    step = Run.step

    def dying(*arguments):
        if next(calls) == dies_at:
            raise SystemExit
        return step(*arguments)

    monkeypatch.setattr(Run, "step", dying)
    with pytest.raises(SystemExit):
        train(settings, few_traces, RunOptions(out=tmp_path / "killed", **options))
    files = sorted((tmp_path / "killed" / "checkpoints").rglob("*.safetensors"))
    names = {name for file in files for name in load_file(file)}
    assert names and all(".lora_" in name for name in names)
    train(settings, few_traces, RunOptions(out=tmp_path / "killed", **options))
    assert next(calls) < dies_at + 1 + 8  # it went on from a checkpoint
    for name in (
        "model.safetensors",
        "config.json",
        "training_log.jsonl",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
    ):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_base_held_in_bf16_changes_no_bit(student, documents, family, rng):
    """Tied and untied heads; only where the files are bf16 too."""
    folder, batch = student(family, torch.bfloat16), build_pack(documents(7))
    found = []
    for held in (False, True):
        origin = load(folder, Lora(4, 32.0, None, True))
        draw_b(origin.model, np.random.default_rng(1))
        count = origin.hold_base(torch.bfloat16) if held else 0
        assert count == sum(p.numel() for p in origin.model.parameters() if p.dtype is torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            loss = Student(origin.model)(batch)
        loss.backward()
        gradients = [p.grad for p in origin.model.parameters()]
        found.append(
            [loss, *(g for g in gradients if g is not None), *dict(merged(origin.lora, weights_of(origin))).values()]
        )
    assert count > 3 * 4 * 32 * 48
    assert all(p.dtype is torch.float32 for n, p in origin.model.named_parameters() if "norm" in n or "embed" in n)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(found[0]) > 2 * 3 * 7
    assert load(student("qwen3"), Lora(4, 32.0, None, False)).hold_base(torch.bfloat16) == 0
    assert load(folder, Lora(4, 32.0, None, False)).hold_base(torch.float32) == 0
    assert load(folder, None).hold_base(torch.bfloat16) == 0


def test_activation_checkpointing_gives_the_same_bits(student, documents, rng):
    folder, batch, found = student("gemma2"), build_pack(documents(7)), []
    for how in ("off", "selective", "full"):
        origin = load(folder, Lora(4, 32.0, None, False))
        draw_b(origin.model, np.random.default_rng(1))
        checkpoint_activations(origin.model, how)
        loss = Student(origin.model).train()(batch)
        loss.backward()
        found.append([loss, *(p.grad for p in origin.model.parameters() if p.requires_grad)])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found, strict=True))


def test_flops_are_what_is_computed(student, documents, rng):
    """Counted by torch: of frozen weights no gradient, of the first layer's queries, keys and values no input's either."""
    folder, rank = student("qwen3"), int(rng.integers(1, 7))
    origin = load(folder, Lora(rank, 32.0, None, False))
    docs = documents(5)
    with FlopCounterMode(display=False) as counter:
        batch = build_pack(docs)
        decoder = origin.model.get_decoder()
        hidden = decoder(input_ids=batch.input_ids, use_cache=False, **Student(origin.model).context(batch))
        hidden.last_hidden_state.sum().backward()
    products = sum(
        n for op, n in counter.get_flop_counts()["Global"].items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm)
    )
    tokens = sum(d.length for d in docs)
    without_attention = origin.shape.training_flops([1] * tokens, 0) - 3 * 4 * 3 * 4 * 8 * tokens
    first = 2 * (32 * 8 * (4 + 2 * 2) + 3 * rank * 32) * tokens
    assert products == without_attention - first
    head = origin.shape.training_flops([], 10)
    assert head == 4 * 10 * 32 * 320 and load(folder, None).shape.training_flops([], 10) == 1.5 * head


def test_the_head_has_no_gradient(student, documents):
    origin = load(student("llama"), Lora(2, 32.0, None, False))
    Student(origin.model)(build_pack(documents(3))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in origin.model.parameters())
    assert origin.model.get_output_embeddings().weight.grad is None


def test_memory_is_estimated_from_what_is_kept(student, documents, rng):
    """Activations of two layers more, counted in the autograd graph, in float32."""
    folder, rank = student("llama"), int(rng.integers(1, 9))
    batch, kept, estimates = build_pack(documents(12)), [], []
    lengths = np.diff(batch.cu_seqlens.numpy())
    for layers in (1, 3):
        origin = load(folder, Lora(rank, 32.0, None, False))
        del origin.model.get_decoder().layers[layers:]
        origin.model.config.num_hidden_layers = layers
        storages = {}

        def keep(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        weights = {p.untyped_storage().data_ptr() for p in origin.model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            Student(origin.model)(batch)
        kept.append(sum(s.nbytes() for at, s in storages.items() if at not in weights))
        how = dict(rows=[lengths], supervised=1, bf16=False, device="cpu", checkpointing="off")
        estimates.append(estimate_bytes(origin.shape, 9, frozen=8, rank=rank, **how))
    # Less by what a norm keeps for the gradient of its weight, which is frozen.
    assert kept[1] - kept[0] == pytest.approx(estimates[1]["activations"] - estimates[0]["activations"], rel=0.2)
    assert (estimates[0]["weights"], estimates[0]["gradients"], estimates[0]["moments"]) == (36, 4, 8)
    whole = estimate_bytes(origin.shape, 9, **how)
    assert whole["head"] - estimates[1]["head"] == 4 * 32 * 320
    held = estimate_bytes(origin.shape, 10**6, frozen=9 * 10**5, held=10**4, rank=rank, **(how | {"bf16": True}))
    assert held["weights"] == 4 * 10**6 - 2 * 10**4
    assert held["casts"] == 2 * (3 * origin.shape.layer_weights + 32 * 320 + origin.shape.adapter_weights - 10**4)


def test_a_dry_run_says_what_is_trained_and_needs_less(student, traces, tmp_path):
    folder = student("qwen2", torch.bfloat16)
    lora = TrainSettings(student=folder, lora_rank=4, precision="bf16")
    full = TrainSettings(student=folder, precision="bf16")
    said = {name: dry_run(settings, traces, RunOptions(out=tmp_path)) for name, settings in (("l", lora), ("f", full))}
    origin = load(folder, lora.lora)
    assert said["l"]["trainable_parameters"] == origin.trainable_parameters
    assert said["f"]["trainable_parameters"] == said["f"]["parameters"]
    assert said["l"]["parameters"] == said["f"]["parameters"] + origin.trainable_parameters
    assert 0.6 < said["l"]["flops"]["training"] / said["f"]["flops"]["training"] < 1
    for what in ("weights", "gradients", "moments", "head"):
        assert said["l"]["memory_gib"][what] < said["f"]["memory_gib"][what]


def test_fused_layers_go_through_the_adapters(student, documents, rng, monkeypatch):
    """What liger-kernel fuses stands between the products, never in their place; its gate is here in plain torch."""

    class Gate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, gate, up):
            ctx.save_for_backward(gate, up)
            return torch.nn.functional.silu(gate) * up

        @staticmethod
        def backward(ctx, gradient):
            gate, up = ctx.saved_tensors
            sigmoid = gate.sigmoid()
            return gradient * up * sigmoid * (1 + gate * (1 - sigmoid)), gradient * gate * sigmoid

    monkeypatch.setattr(fused_layers, "liger_problem", lambda device_type: None)
    monkeypatch.setattr(fused_layers, "LAYERS", ("gated MLP",))
    monkeypatch.setattr(fused_layers, "import_module", lambda name: SimpleNamespace(LigerSiLUMulFunction=Gate))
    origin = load(student("llama"), Lora(4, 32.0, None, False))
    draw_b(origin.model, rng)
    plain, fused, batch = copy.deepcopy(origin.model), origin.model, build_pack(documents(5))
    assert fuse_layers(fused) == ["3 gated MLP"]
    for model in (plain, fused):
        Student(model)(batch).backward()
    for (name, a), b in zip(plain.named_parameters(), fused.parameters(), strict=True):
        if a.requires_grad:
            # of the whole tensor: single entries of a sum over tokens may cancel
            assert (b.grad - a.grad).norm() <= 1e-4 * a.grad.norm() + 1e-6, name
            assert "lora" in name and b.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (dict(lora_rank=0), "lora_rank"),
        (dict(lora_rank=4, lora_alpha=0), "lora_alpha"),
        (dict(lora_rank=4, lora_alpha=-1), "lora_alpha"),
        (dict(lora_rank=4, lora_targets=[]), "lora_targets"),
        (dict(lora_rank=4, lora_targets="q_proj,,v_proj"), "lora_targets"),
        (dict(lora_alpha=16), "lora_alpha: there are no adapters without lora_rank"),
        (dict(merge=True), "merge: there are no adapters without lora_rank"),
        (dict(lora_rank=4, student="tiny"), "student tiny starts from scratch, so there is nothing to adapt"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, values, said):
    with pytest.raises(InputError, match=said) as refused:
        validate(TrainSettings, {"student": str(tmp_path)} | values, source="command line")
    assert "\n" not in str(refused.value)


def test_settings_read_as_they_are_typed(tmp_path):
    settings = TrainSettings(student=str(tmp_path), lora_rank=8, lora_targets="q_proj, v_proj")
    assert settings.lora == Lora(8, 32.0, ("q_proj", "v_proj"), False)
    assert TrainSettings(student=str(tmp_path), lora_rank=8, lora_targets="all-linear").lora.targets is None
    assert settings.learning_rate == pytest.approx(10 * TrainSettings(student=str(tmp_path)).learning_rate)
    assert TrainSettings(student=str(tmp_path), lora_rank=8, learning_rate=2e-5).learning_rate == 2e-5
    assert TrainSettings(student=str(tmp_path)).lora is None


def test_targets_that_are_not_there_are_named_with_those_that_are(student):
    for unknown in ("c_attn", "lm_head", "embed_tokens"):
        with pytest.raises(InputError) as refused:
            load(student("qwen2"), Lora(4, 32.0, ("q_proj", unknown), False))
        assert f"no linear layer {unknown} in its blocks" in str(refused.value)
        assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(refused.value)


@pytest.mark.long
def test_two_ranks_train_the_adapters_that_one_does(student, few_traces, tmp_path):
    settings = dict(arm="mixed:0.5", row_tokens=256, batch=20, lora_rank=3, merge=True, precision="fp32", packed=True)
    folder, found = student("gemma2"), []
    (tmp_path / "settings.yaml").write_text(json.dumps({"student": folder, "learning_rate": 5e-3, **settings}))
    arguments = ["train", "--config", str(tmp_path / "settings.yaml"), "--traces", str(few_traces), "--threads", "1"]
    for ranks in ("1", "2"):
        out = tmp_path / ranks
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", ranks, "-m", "distill"]
        done = subprocess.run(
            [*command, *arguments, "--out", str(out), "--no-tensorboard"],
            env=child_environment(1),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        log = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
        weights = load_file(out / "adapter" / "adapter_model.safetensors") | load_file(out / "model.safetensors")
        found.append((log, weights))
    (one, before), (two, after) = found
    for name in ("loss", "gradient_norm"):
        assert [line[name] for line in one] == pytest.approx([line[name] for line in two], rel=1e-4)
    assert before.keys() == after.keys() and len(one) > 3
    for name, w in before.items():
        assert (w - after[name]).abs().mean() < 1e-5, name
