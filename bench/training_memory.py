"""`distill bench training --memory`: what a packed training step takes in memory as its row grows.

One row of documents of mixed lengths, forward and backward of a small Qwen2-layout student in float32, at several row
lengths and two vocabularies. Each size is measured in a process of its own, which has run a short row before and keeps
its gradients: the answer is the peak resident set during the step less what was resident before it. So weights, gradients
and libraries are not in it; activations are, and all that the head works in. The C library is told to give freed tensors
back at once, so that it is what the step holds, not what an allocator keeps.

The result:

    machine                  what it ran on
    settings                 TrainingMemorySettings as given
    sizes                    for every vocabulary and row, in this order:
      vocabulary, tokens, documents, supervised_tokens
      logits_bytes           of tokens x vocabulary in float32, once: what is never held
      estimated_bytes        of activations and head, as `distill train --dry-run` counts them
      measured               {"peak_bytes", "seconds" of the step}
    measured
      bytes_per_token        {vocabulary: growth of the peak from the shortest row to the longest, per token}
"""

import json
import sys
import time
from typing import Any

import numpy as np
from pydantic import Field

from distill import console
from distill.bench.memory_child import high_water, measure_in_child, reset_peak
from distill.settings import Settings

_WARM_TOKENS = 256
# glibc's own choice keeps freed tensors of up to 32 MiB in its heap, in pieces: three times what the step holds.
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
_PROMPT_SHARE = 0.2  # of a document; its tokens are not supervised


class TrainingMemorySettings(Settings):
    """Lengths are in tokens; documents are log-normal, cut at `longest`."""

    vocabularies: tuple[int, ...] = Field((32768, 131072), min_length=1)
    row_tokens: tuple[int, ...] = Field((4096, 16384, 65536), min_length=2)
    student: str = Field("tiny", description="a from-scratch size")
    median: int = Field(600, ge=8)
    longest: int = Field(4096, ge=8)
    threads: int = Field(2, ge=1)
    seed: int = 0


def bench_training_memory(settings: TrainingMemorySettings) -> dict[str, Any]:
    """Run the benchmark; the result is described at the top of this file. Raises InputError when a child fails."""
    from distill.bench.machine import machine

    about, sizes = machine(), []
    pairs = [(vocabulary, tokens) for vocabulary in settings.vocabularies for tokens in sorted(settings.row_tokens)]
    with console.progress("{task.fields[now]}") as bar:
        task = bar.add_task("memory", total=len(pairs), now="")
        for vocabulary, tokens in pairs:
            bar.update(task, now=f"{tokens:,} tokens, vocabulary {vocabulary:,}")
            sizes.append({"vocabulary": vocabulary, "tokens": tokens, **_in_child(settings, vocabulary, tokens)})
            bar.advance(task)
    growth = {}
    for vocabulary in settings.vocabularies:
        of = [size for size in sizes if size["vocabulary"] == vocabulary]
        more = of[-1]["measured"]["peak_bytes"] - of[0]["measured"]["peak_bytes"]
        growth[str(vocabulary)] = more / (of[-1]["tokens"] - of[0]["tokens"])
    return {
        "machine": about,
        "settings": settings.model_dump(mode="json"),
        "sizes": sizes,
        "measured": {"bytes_per_token": growth},
    }


def _in_child(settings: TrainingMemorySettings, vocabulary: int, tokens: int) -> dict[str, Any]:
    spec = {"settings": settings.model_dump(mode="json"), "vocabulary": vocabulary, "tokens": tokens}
    return measure_in_child(
        "distill.bench.training_memory", spec, f"{tokens} tokens", threads=settings.threads, environment=_GIVE_BACK
    )


def row_lengths(settings: TrainingMemorySettings, tokens: int) -> np.ndarray:
    """Lengths of documents that fill a row of `tokens`, the last one cut to fit."""
    rng, lengths = np.random.default_rng(settings.seed), []
    while (left := tokens - sum(lengths)) > 0:
        length = round(rng.lognormal(np.log(settings.median), 1.0))
        lengths.append(min(max(length, 2), settings.longest, left))
    return np.array(lengths)


def measure(settings: TrainingMemorySettings, vocabulary: int, tokens: int) -> dict[str, Any]:
    """One size, in this process."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from distill.flops import ModelShape
    from distill.kernels import register_attention
    from distill.packing.pack import Document, Pack, build_pack
    from distill.training.memory import estimate_bytes
    from distill.training.sizes import SIZES
    from distill.training.student import Student

    torch.set_num_threads(settings.threads)
    rng, lengths = np.random.default_rng(settings.seed), row_lengths(settings, tokens)

    def pack(of: np.ndarray) -> Pack:
        make = lambda n: rng.integers(0, vocabulary, n + 1).astype(np.int32)  # noqa: E731
        return build_pack([Document(make(n), max(1, int(n * _PROMPT_SHARE))) for n in of])

    shape = SIZES[settings.student]
    config = Qwen2Config(
        **shape,
        vocab_size=vocabulary,
        num_key_value_heads=shape["num_attention_heads"],
        max_position_embeddings=max(settings.longest, _WARM_TOKENS),
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM._from_config(config, attn_implementation=register_attention())
    student = Student(model).train()
    student(pack(np.array([_WARM_TOKENS]))).backward()
    row = pack(lengths)
    reset_peak()
    before, start = high_water(), time.perf_counter()
    student(row).backward()
    measured = {"seconds": time.perf_counter() - start, "peak_bytes": high_water() - before}
    estimate = estimate_bytes(
        ModelShape.from_config(config),
        sum(p.numel() for p in model.parameters()),
        rows=[lengths],
        supervised=row.supervised,
        bf16=False,
        device="cpu",
        checkpointing="off",
    )
    return {
        "documents": len(lengths),
        "supervised_tokens": row.supervised,
        "logits_bytes": 4 * tokens * vocabulary,
        "estimated_bytes": estimate["activations"] + estimate["head"],
        "measured": measured,
    }


def memory_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The result as a table: (columns, rows)."""
    columns = ["vocabulary", "tokens", "peak GiB", "KiB a token", "estimated GiB", "logits alone would take, GiB"]
    gib = 1 << 30
    return columns, [
        [
            f"{size['vocabulary']:,}",
            f"{size['tokens']:,}",
            f"{size['measured']['peak_bytes'] / gib:.2f}",
            f"{size['measured']['peak_bytes'] / size['tokens'] / 1024:.1f}",
            f"{size['estimated_bytes'] / gib:.2f}",
            f"{size['logits_bytes'] / gib:.2f}",
        ]
        for size in result["sizes"]
    ]


def growth_text(result: dict[str, Any]) -> str:
    """One sentence on how the peak grows."""
    growth = result["measured"]["bytes_per_token"]
    parts = [f"{value / 1024:.1f} KiB at a vocabulary of {int(name):,}" for name, value in growth.items()]
    return f"From the shortest row to the longest the peak grows, for each token, by {' and by '.join(parts)}."


def show_training_memory(result: dict[str, Any]) -> None:
    """The result as a table on standard output."""
    console.table("memory of a training step", *memory_rows(result))
    console.out.print(growth_text(result), markup=False, soft_wrap=True)


def main() -> None:
    spec = json.loads(sys.argv[1])
    print(json.dumps(measure(TrainingMemorySettings(**spec["settings"]), spec["vocabulary"], spec["tokens"])))


if __name__ == "__main__":
    main()
