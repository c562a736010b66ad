"""Running a layer, or what is cheap in it, again in the backward: the same bits for less memory."""

import copy

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from distill.errors import InputError
from distill.flops import ModelShape
from distill.kernels import register_attention
from distill.packing.pack import Document, build_pack
from distill.training.activations import checkpoint_activations
from distill.training.memory import estimate_bytes
from distill.training.padded import build_padded
from distill.training.settings import RunOptions, TrainSettings
from distill.training.student import Student
from distill.training.train import train


def config(kind, layers, rng):
    heads, head_dim = int(rng.choice([2, 4])), int(rng.choice([8, 16, 32]))
    hidden = heads * head_dim
    shape = dict(
        vocab_size=96,
        hidden_size=hidden,
        intermediate_size=int(rng.integers(10, 60)) * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=int(rng.choice([1, heads])),
        head_dim=head_dim,
    )
    return kind(**shape)


class Alive(TorchDispatchMode):
    """Bytes of what operators made that somebody still holds."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return made

    @property
    def bytes(self):
        return sum(size for reference, size in self.made.values() if not reference.expired())


def student(of, attention, checkpointing):
    register_attention()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(of), attn_implementation=attention).train()
    checkpoint_activations(model, checkpointing)
    return Student(model)


def run(of, batch, attention, *, checkpointing, bf16):
    """(loss, gradients, bytes that a forward leaves for the backward besides the weights)."""
    it, alive = student(of, attention, checkpointing), Alive()
    weights = {p.untyped_storage()._cdata for p in it.parameters()}
    with alive, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = it(batch)
    for weight in weights:  # views of a weight are made too
        alive.made.pop(weight, None)
    size = alive.bytes
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in it.named_parameters()}, size


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("kind", [Qwen2Config, Qwen3Config])
def test_the_same_bits_for_less_memory(documents, rng, kind, packed, bf16):
    of, docs = config(kind, 3, rng), documents(9)
    batch, attention = (build_pack(docs), "distill") if packed else (build_padded(docs, 0), "sdpa")
    loss, gradients, off = run(of, batch, attention, checkpointing="off", bf16=bf16)
    sizes = []
    for checkpointing in ("selective", "full"):
        again, same, size = run(of, batch, attention, checkpointing=checkpointing, bf16=bf16)
        assert torch.equal(loss, again)
        assert all(torch.equal(gradients[name], same[name]) for name in gradients) and len(same) == len(gradients)
        sizes.append(size)
    selective, full = sizes
    assert full < selective < off and full < off / 2


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", ["off", "selective", "full"])
def test_the_estimate_is_what_layers_keep(rng, bf16, checkpointing):
    """What two layers more keep, counted in the autograd graph. The casts of the weights, which the estimate counts
    apart, are taken off; with checkpointing they are inside of what is run again. Of documents as long as each other,
    so that attention on a CPU pads none; it keeps no log-sum-exp where it is made of plain products."""
    shallow = config(Qwen2Config, 1, rng)
    deep = copy.deepcopy(shallow)
    deep.num_hidden_layers, deep.layer_types = 3, shallow.layer_types * 3
    lengths = np.full(int(rng.integers(3, 7)), int(rng.integers(40, 90)))
    batch = build_pack([Document(rng.integers(0, 96, n + 1).astype("int32"), 1) for n in lengths])
    how = dict(checkpointing=checkpointing, bf16=bf16)
    kept = [run(of, batch, "distill", **how)[2] for of in (shallow, deep)]
    shapes = [ModelShape.from_config(of) for of in (shallow, deep)]
    estimates = [
        estimate_bytes(shape, 1, rows=[lengths], supervised=1, device="cpu", **how)["activations"] for shape in shapes
    ]
    casts = 2 * 2 * shapes[0].layer_weights if bf16 and checkpointing == "off" else 0
    exact = not bf16 and checkpointing != "selective"
    assert kept[1] - kept[0] - casts == pytest.approx(estimates[1] - estimates[0], rel=1e-9 if exact else 0.1)


def test_a_training_ends_in_the_same_bytes(traces, tmp_path):
    """So it is no part of what names a student, and may be switched on for the rest of a training."""
    settings = TrainSettings(student="tiny", arm="mixed:0.5", row_tokens=128, batch=64, precision="bf16", seed=1)
    keys = set()
    for checkpointing in ("off", "selective", "full"):
        options = dict(out=tmp_path / checkpointing, threads=1, tensorboard=False)
        keys.add(train(settings, traces, RunOptions(**options, activation_checkpointing=checkpointing)).key)
    assert len(keys) == 1
    for name in ("model.safetensors", "training_log.jsonl", "config.json"):
        off, *others = ((tmp_path / how / name).read_bytes() for how in ("off", "selective", "full"))
        assert all(other == off for other in others), name


def test_a_model_without_it_is_refused(rng):
    model = AutoModelForCausalLM.from_config(config(Qwen2Config, 1, rng))
    model.supports_gradient_checkpointing = False
    with pytest.raises(InputError, match="Qwen2ForCausalLM has no activation checkpointing"):
        checkpoint_activations(model, "full")
