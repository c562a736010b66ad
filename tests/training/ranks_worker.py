"""What torchrun would start in test_ranks.py: every case on this many ranks, compared with the same thing in one process.

    torchrun --nproc-per-node N ranks_worker.py SEED FOLDER FAMILY...

The first rank writes what it found to FOLDER/found.json.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
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
from distill.kernels import register_attention
from distill.packing.pack import Document, build_pack
from distill.training import checkpoint
from distill.training.activations import checkpoint_activations
from distill.training.lora import add_adapters
from distill.training.ranks import Stopped, start_ranks
from distill.training.settings import Lora
from distill.training.sharding import gather_weights, shard, take_apart, whole
from distill.training.student import Student

# Sizes that no number of ranks divides, and norms of two elements, of which some ranks have none.
SHAPE = dict(
    vocab_size=37,
    hidden_size=26,
    intermediate_size=46,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=2,
    max_position_embeddings=64,
    initializer_range=0.3,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
)
CASES = {
    "qwen2 tied": Qwen2Config(**(SHAPE | {"hidden_size": 28}), tie_word_embeddings=True),
    "qwen2 untied": Qwen2Config(**(SHAPE | {"hidden_size": 28}), tie_word_embeddings=False),
    "qwen3 tied": Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "llama untied, with recomputation": LlamaConfig(
        **SHAPE, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 777.0}
    ),
    "gemma tied": GemmaConfig(**SHAPE, tie_word_embeddings=True),
    "gemma2 tied": Gemma2Config(**SHAPE, tie_word_embeddings=True),
    "gemma3 untied": Gemma3TextConfig(**SHAPE, tie_word_embeddings=False),
    "lora on qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=True),
}


def make(name, seed, device):
    register_attention()
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(CASES[name], attn_implementation="distill", dtype=torch.float32)
    if device == "cpu":
        for parameter in model.parameters():  # norms and biases too, which start as ones and zeros
            nn.init.normal_(parameter, std=0.3)
    if name.startswith("lora"):
        add_adapters(model, Lora(3, 8.0, None, False), seed=seed, source=name)
        if device == "cpu":
            for parameter in model.parameters():
                if parameter.requires_grad:
                    nn.init.normal_(parameter, std=0.3)
    if "recomputation" in name:
        checkpoint_activations(model, "full")
    return Student(model).train()


def steps(student, rows, optimizer, collect):
    """Two optimizer steps over `rows` of documents; the losses, the norms, and the gradients of the first."""
    found = []
    for number in range(2):
        total = torch.zeros(())
        for row, weight in rows:
            loss = student(build_pack(row)) * weight
            (loss / 100).backward()
            total += loss.detach()
        norm = whole(nn.utils.clip_grad_norm_(student.parameters(), 0.5))
        if number == 0:
            gradients = {n: whole(p.grad).clone() for n, p in student.named_parameters() if p.requires_grad}
        optimizer.step()
        optimizer.zero_grad()
        found += [float(collect(total)), float(norm)]
    return found, gradients


def distance(ours, theirs):
    """Largest difference of two sets of tensors, as a share of the largest entry of its tensor."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).abs().max() / theirs[n].abs().max().clamp(min=1e-6)) for n in ours)


def run_case(name, seed, folder, ranks):
    generator = np.random.default_rng(seed)
    documents = [generator.integers(0, 37, generator.integers(3, 20)) for _ in range(11)]
    documents = [Document(tokens.astype(np.int32), int(generator.integers(1, len(tokens)))) for tokens in documents]
    rows = [documents[0:3], documents[3:4], documents[4:7], documents[7:9], documents[9:11]]
    plain = make(name, seed, "cpu")
    reference = torch.optim.AdamW(plain.parameters(), lr=1e-3, eps=1e-3, fused=True)
    expected, expected_gradients = steps(plain, [(row, 1.0) for row in rows], reference, lambda total: total)

    def new(other_seed):
        student = make(name, other_seed, "cpu" if ranks.is_first else "meta")
        shard(student, ranks, bf16=False, cpu_offload=False)
        return student, torch.optim.AdamW(student.parameters(), lr=1e-3, eps=1e-3, fused=True)

    student, optimizer = new(seed)
    assert not any(t.is_meta for t in (*student.parameters(), *student.buffers()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(student.buffers(), plain.buffers(), strict=True))
    idle = [Document(np.zeros(2, dtype=np.int32), 1)]
    mine = [(row, 1.0) for row in rows[ranks.rank :: ranks.world]]
    mine += [(idle, 0.0)] * (-(-len(rows) // ranks.world) - len(mine))
    found, gradients = steps(student, mine, optimizer, ranks.sum)
    weights = {n: p.detach() for n, p in plain.named_parameters()}
    ours = gather_weights(student, ranks)
    assert bool(ours) == ranks.is_first
    held = sum(p.to_local().numel() for p in student.parameters())
    result = {
        "losses and norms": max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)),
        "gradients": distance(gradients, expected_gradients),
        "weights": distance(ours, weights) if ranks.is_first else None,
        "share": max(ranks.gather(held)) / sum(p.numel() for p in plain.parameters()),
    }
    with torch.no_grad():
        student.eval()(build_pack(documents[:1]))
    take_apart(student)
    # Saved by all of them; read by as many, and by one alone.
    progress = checkpoint.Progress(2, 1.5, [{"step": 1, "loss": 0.1}])
    checkpoint.save(folder, student, optimizer, progress, ranks)
    again, again_optimizer = new(seed + 1)
    assert checkpoint.restore(folder, again, again_optimizer, ranks) == progress
    trained = {n for n, p in student.named_parameters() if p.requires_grad}
    exact = [
        torch.equal(whole(p.detach()), whole(q.detach()))
        for (n, p), q in zip(again.named_parameters(), student.parameters(), strict=True)
        if n in trained
    ]
    exact += [
        torch.equal(whole(again_optimizer.state[p][key]), whole(optimizer.state[q][key]))
        for (n, p), q in zip(again.named_parameters(), student.parameters(), strict=True)
        if n in trained
        for key in ("step", "exp_avg", "exp_avg_sq")
    ]
    result["restored"] = all(exact) and len(exact) == 4 * len(trained)
    return result


def run_bf16(seed, ranks):
    """Weights are put together in bf16; gradients, and what a batch has besides tokens, stay float32."""
    student = make("qwen3 tied", seed, "cpu" if ranks.is_first else "meta")
    shard(student, ranks, bf16=True, cpu_offload=False)
    generator = np.random.default_rng(seed)
    pack = build_pack([Document(generator.integers(0, 37, n).astype(np.int32), 2) for n in (5, 9)], "example")
    seen, context = [], student.context
    student.context = lambda batch: (seen.append(batch.loss_weights), context(batch))[1]
    student(pack).backward()
    exact = all(torch.equal(weights, pack.loss_weights) for weights in seen)
    return exact and len(seen) == 1 and all(p.grad.dtype is torch.float32 for p in student.parameters())


def run_errors(ranks):
    """An error of any rank is everyone's, and the ranks are still in step after it."""

    def fail(rank, error):
        if ranks.rank == rank:
            raise error
        return ranks.rank

    found = []
    last = ranks.world - 1
    for who, error in ((last, InputError("the last")), (0, OSError(28, "full", "here")), (0, Stopped("asked", 15))):
        for ask in (ranks.together, ranks.only_first) if who == 0 else (ranks.together,):
            try:
                ask(partial(fail, who, error))
            except (InputError, OSError, Stopped) as raised:
                found.append([type(raised).__name__, str(raised), getattr(raised, "signal", None)])
    assert ranks.together(lambda: ranks.rank) == ranks.rank
    assert ranks.only_first(lambda: 5) == (5 if ranks.is_first else None)
    assert ranks.from_first(lambda: ranks.rank) == 0
    assert ranks.most(ranks.rank, -ranks.rank) == (last, 0)
    assert float(ranks.sum(torch.tensor(2.0))) == 2.0 * ranks.world
    return ranks.gather(found)


def main():
    seed, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    with start_ranks() as ranks:
        found = {name: run_case(name, seed, folder / name, ranks) for name in sys.argv[3:]}
        found["bf16"] = run_bf16(seed, ranks)
        found["errors"] = run_errors(ranks)
        if ranks.is_first:
            (folder / "found.json").write_text(json.dumps(found))
        ranks.gather(found)  # as at the end of a training: gloo's threads are not done with it when this process is


if __name__ == "__main__":
    main()
