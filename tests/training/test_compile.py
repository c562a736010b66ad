"""Compiled layers: the same losses and gradients, and nothing is compiled again however the packs differ."""

import copy
import json

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModelForCausalLM, Gemma2Config, Qwen2Config, Qwen3Config

from distill.errors import InputError
from distill.kernels import register_attention
from distill.packing.pack import build_pack
from distill.training.activations import checkpoint_activations
from distill.training.compile import compile_layers, has_cpp_compiler, resolve_compile
from distill.training.settings import RunOptions, TrainSettings
from distill.training.student import Student
from distill.training.train import train

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    register_attention()


@pytest.mark.parametrize(
    "kind, checkpointing",
    [(Qwen3Config, "off"), (Gemma2Config, "full"), pytest.param(Qwen2Config, "selective", marks=pytest.mark.long)],
)
def test_compiled_once_for_all_packs(documents, rng, kind, checkpointing):
    register_attention()
    config = kind(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    torch.manual_seed(int(rng.integers(2**31)))
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="distill").train()
    model = copy.deepcopy(plain)
    counter = CompileCounterWithBackend("aot_eager")
    checkpoint_activations(model, checkpointing)
    compile_layers(model, backend=counter)
    compiled, plain = Student(model), Student(plain)

    def step(pack):
        loss, expected = compiled(pack), plain(pack)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        for (name, p), q in zip(compiled.named_parameters(), plain.parameters(), strict=True):
            assert (p.grad - q.grad).norm() <= 1e-4 * q.grad.norm() + 1e-6, name
        compiled.zero_grad()
        plain.zero_grad()

    def validate(pack):
        compiled.eval()
        with torch.no_grad():
            torch.testing.assert_close(compiled(pack), plain(pack), rtol=1e-5, atol=1e-6)
        compiled.train()

    step(build_pack(documents(config.head_dim - 1)))  # as many bounds as a head has columns: not to be taken for it
    validate(build_pack(documents(5)))
    warm = counter.frame_count
    assert 0 < warm <= 4 * config.num_hidden_layers  # layers of a kind share what is compiled
    for count in rng.permutation([2, 4, 9, 30]):
        step(build_pack(documents(int(count))))
        validate(build_pack(documents(int(count) + 1)))
    assert counter.frame_count == warm


def test_who_compiles(monkeypatch, tmp_path):
    assert not resolve_compile("auto", CPU) and not resolve_compile("off", CPU) and not resolve_compile("off", GPU)
    monkeypatch.setattr("distill.training.compile.find_spec", lambda name: None)
    assert not resolve_compile("auto", GPU)
    with pytest.raises(InputError, match="triton, which is not installed"):
        resolve_compile("on", GPU)
    monkeypatch.setattr("distill.training.compile.find_spec", lambda name: object())
    assert resolve_compile("auto", GPU) and resolve_compile("on", GPU)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"C\+\+ compiler"):
        resolve_compile("on", CPU)


@pytest.mark.long
def test_a_compiled_training(traces, tmp_path):
    """The same training to rounding, under another name."""
    if not has_cpp_compiler():
        pytest.skip("no C++ compiler, which torch.compile needs on a CPU")
    settings = dict(student="tiny", arm="reasoning", row_tokens=256, batch=64, precision="fp32", validation=0.1, seed=3)
    made = [
        train(
            TrainSettings(**settings, compile=on),
            traces,
            RunOptions(out=tmp_path / on, threads=1, tensorboard=False),
        )
        for on in ("off", "on")
    ]
    assert made[0].key != made[1].key
    losses = [
        [json.loads(line)["loss"] for line in (artifact.path / "training_log.jsonl").read_text().splitlines()]
        for artifact in made
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
