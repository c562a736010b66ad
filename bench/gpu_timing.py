"""Timed pieces of the GPU suite: linear cross-entropy, divergence from a teacher's top k, and attention."""

from typing import Any

import torch

from distill.bench import cases
from distill.bench.attention_peers import attentions
from distill.bench.divergence_peers import DIVERGENCES
from distill.bench.documents import causal_pairs, document_lengths
from distill.bench.gpu_pieces import LENGTHS_SEED, Context, GpuSuiteSettings, Piece
from distill.bench.loss_peers import LOSSES
from distill.bench.names import PRODUCTS

_DTYPE = torch.bfloat16


def loss_pieces(settings: GpuSuiteSettings, tokens: int) -> list[Piece]:
    return [
        _loss_piece(name, hidden, vocabulary, tokens, ignored)
        for name, hidden, vocabulary in settings.heads
        for ignored in settings.ignored
    ]


def _loss_piece(name: str, hidden: int, vocabulary: int, tokens: int, ignored: float) -> Piece:
    def run(context: Context) -> dict[str, Any]:
        settings = context.settings
        case = cases.loss_case(tokens, hidden, vocabulary, ignored, _DTYPE, context.device, settings.seed)
        calls, others = context.load(LOSSES, lambda function: cases.loss_and_gradients(function, case))
        found = context.compare({PRODUCTS: cases.bare_products(case), **calls})
        return {"contenders": found | others}

    gradients = (tokens + vocabulary) * hidden * _DTYPE.itemsize
    about = {
        "section": "linear_cross_entropy",
        "head": name,
        "hidden": hidden,
        "vocabulary": vocabulary,
        "tokens": tokens,
        "ignored": ignored,
        "product_flops": 6.0 * (tokens - round(tokens * ignored)) * hidden * vocabulary,
        "gradient_bytes": gradients,
        "accumulator_bytes": vocabulary * hidden * 4,
    }
    return Piece(f"linear_cross_entropy/{name}/{tokens} tokens/{ignored:.0%} ignored", about, run)


def divergence_pieces(settings: GpuSuiteSettings, tokens: int) -> list[Piece]:
    return [_divergence_piece(*head, tokens, settings.teacher_entries) for head in settings.heads]


def _divergence_piece(name: str, hidden: int, vocabulary: int, tokens: int, entries: int) -> Piece:
    """Our own cross-entropy on the same rows is among the contenders: the target is a ratio to it."""

    def run(context: Context) -> dict[str, Any]:
        shape = (tokens, hidden, vocabulary)
        case = cases.teacher_case(*shape, entries, _DTYPE, context.device, context.settings.seed)
        calls, others = context.load(DIVERGENCES, lambda function: cases.loss_and_gradients(function, case))
        labelled = cases.LossCase(case.hidden, case.weight, case.ids[:, 0].contiguous())
        reference, missing = context.load(
            {"linear_cross_entropy": LOSSES["distill"]},
            lambda function: cases.loss_and_gradients(function, labelled),
        )
        return {"contenders": context.compare(reference | calls) | others | missing}

    about = {
        "section": "topk_divergence",
        "head": name,
        "hidden": hidden,
        "vocabulary": vocabulary,
        "tokens": tokens,
        "teacher_entries": entries,
        "product_flops": 6.0 * tokens * hidden * vocabulary,
    }
    return Piece(f"topk_divergence/{name}/{tokens} tokens", about, run)


def attention_pieces(settings: GpuSuiteSettings) -> list[Piece]:
    total = settings.attention_tokens
    generator = torch.Generator().manual_seed(LENGTHS_SEED)
    patterns = {"log-normal": document_lengths(total, settings.log_normal_mean, 1.0, generator)}
    for length in settings.uniform_lengths:
        patterns[f"{length} each"] = [length] * max(1, total // length)
    return [
        _attention_piece(pattern, lengths, heads)
        for pattern, lengths in patterns.items()
        for heads in settings.attention_heads
    ]


def _attention_piece(pattern: str, lengths: list[int], shape: tuple[int, int, int]) -> Piece:
    head_dim, heads, kv_heads = shape

    def run(context: Context) -> dict[str, Any]:
        settings = context.settings
        case = cases.attention_case(lengths, heads, kv_heads, head_dim, _DTYPE, context.device, settings.seed)
        functions, others = context.load(attentions(), lambda make: make(case.documents))
        forward = context.compare({n: cases.attention_forward(f, case) for n, f in functions.items()})
        backward = context.compare({n: cases.attention_backward(f, case) for n, f in functions.items()})
        return {"forward": forward | others, "backward": backward | others}

    forward_flops = 4.0 * heads * head_dim * causal_pairs(lengths)
    about = {
        "section": "varlen_attention",
        "lengths": pattern,
        "documents": len(lengths),
        "longest": max(lengths),
        "tokens": sum(lengths),
        "head_dim": head_dim,
        "heads": heads,
        "kv_heads": kv_heads,
        "forward_flops": forward_flops,
        "backward_flops": 2.5 * forward_flops,
    }
    return Piece(f"varlen_attention/{pattern}/head size {head_dim}", about, run)
