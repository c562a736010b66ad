"""The last pieces of the GPU suite: candidates for the configurations that the kernels' tables choose from.

Where kernels are written without a GPU, a table's first entry is argued and not measured. Here every candidate does the
same work, so that the table can follow the measurement.
"""

from typing import Any

import torch

from distill.bench import cases
from distill.bench.attention_peers import Attention
from distill.bench.documents import causal_pairs, document_lengths
from distill.bench.gpu_pieces import LENGTHS_SEED, Context, GpuSuiteSettings, Piece

_CHUNK_ROWS = 4096  # of one product: what a workspace of about 1.2 GiB holds at 152k entries
# (queries, keys, warps, stages) of one kernel; the kernels' own choice is measured first.
_FORWARD = ((128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3), (128, 32, 4, 4))
_D_KEYS = ((64, 128, 8, 2), (32, 128, 8, 3), (64, 64, 4, 3), (64, 64, 8, 2), (32, 64, 4, 3))
_D_QUERIES = ((128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3), (64, 128, 8, 2), (128, 32, 8, 3))


def tuning_pieces(settings: GpuSuiteSettings) -> list[Piece]:
    pieces = [_product_piece(*head) for head in settings.heads]
    return pieces + [_attention_piece(settings, *heads) for heads in settings.attention_heads]


def _reason_not(context: Context) -> str | None:
    return None if context.device.type == "cuda" else f"runs on cuda, not on {context.device.type}"


def _product_piece(name: str, hidden: int, vocabulary: int) -> Piece:
    def run(context: Context) -> dict[str, Any]:
        if reason := _reason_not(context):
            return {"contenders": {}, "missing": reason}
        from distill.kernels.vocabulary_gemm import exp_logits
        from distill.kernels.vocabulary_tiles import CONFIGS

        case = cases.loss_case(
            _CHUNK_ROWS, hidden, vocabulary, 0.0, torch.bfloat16, context.device, context.settings.seed
        )
        x, weight = case.hidden.detach(), case.weight.detach()
        out = torch.empty(_CHUNK_ROWS, -(-vocabulary // 64) * 64, dtype=x.dtype, device=x.device)[:, :vocabulary]
        anchor = (x.float() * weight[case.labels].float()).sum(1)
        major, minor = torch.cuda.get_device_capability(context.device)
        configs = CONFIGS.get(f"sm_{major}{minor}", CONFIGS["other"])
        calls: dict[str, Any] = {"cuBLAS, logits only": lambda: torch.mm(x, weight.t(), out=out)}
        for config in configs:
            label = f"{config.rows}x{config.columns}x{config.depth}, {config.warps} warps, {config.stages} stages"
            calls[f"{label}, {config.programs} programs"] = lambda config=config: exp_logits(
                x, weight, None, anchor, out=out, config=config
            )
        return {"contenders": context.compare(_without(calls, context))}

    about = {
        "section": "tuning",
        "what": f"exponentials of {_CHUNK_ROWS} rows, head of {name}",
        "flops": 2.0 * _CHUNK_ROWS * hidden * vocabulary,
    }
    return Piece(f"tuning/exponentials/{name}", about, run)


def _attention_piece(settings: GpuSuiteSettings, head_dim: int, heads: int, kv_heads: int) -> Piece:
    generator = torch.Generator().manual_seed(LENGTHS_SEED)
    lengths = document_lengths(settings.attention_tokens, settings.log_normal_mean, 1.0, generator)

    def run(context: Context) -> dict[str, Any]:
        if reason := _reason_not(context):
            return {"contenders": {}, "missing": reason}
        from distill.kernels import attention_plan
        from distill.kernels.attention_configurations import Blocks, configuration
        from distill.kernels.triton_attention import triton_attention

        shape = (heads, kv_heads, head_dim)
        case = cases.attention_case(lengths, *shape, torch.bfloat16, context.device, context.settings.seed)
        documents = case.documents
        plan = attention_plan(documents.cu_seqlens, sum(documents.lengths), documents.longest)
        major, minor = torch.cuda.get_device_capability(context.device)
        chosen = configuration(10 * major + minor, head_dim, torch.bfloat16, False)

        def function(blocks: Any) -> Attention:
            return lambda q, k, v: triton_attention(q, k, v, plan, scale=head_dim**-0.5, blocks=blocks)

        calls: dict[str, Any] = {
            "forward, chosen": cases.attention_forward(function(chosen), case),
            "backward, chosen": cases.attention_backward(function(chosen), case),
        }
        for kernel, candidates in (("forward", _FORWARD), ("d_keys", _D_KEYS), ("d_queries", _D_QUERIES)):
            measure = cases.attention_forward if kernel == "forward" else cases.attention_backward
            for numbers in candidates:
                blocks = Blocks(*numbers)
                if blocks != getattr(chosen, kernel):
                    label = f"{kernel} {blocks.queries}x{blocks.keys}, {blocks.num_warps} warps, {blocks.num_stages}"
                    calls[f"{label} stages"] = measure(function(chosen._replace(**{kernel: blocks})), case)
        return {"contenders": context.compare(_without(calls, context))}

    about = {
        "section": "tuning",
        "what": f"own attention, log-normal documents, head size {head_dim}",
        "flops": 4.0 * heads * head_dim * causal_pairs(lengths),
    }
    return Piece(f"tuning/attention/head size {head_dim}", about, run)


def _without(calls: dict[str, Any], context: Context) -> dict[str, Any]:
    """The calls that did not take the process down before."""
    return {name: call for name, call in calls.items() if name not in context.crashed}
