"""Training pieces of the GPU suite: one optimizer step on one pack, with and without our kernels.

A Qwen2.5 layout with random weights in float32 under bf16 autocast, fused AdamW, clipping: `distill train`'s step on
long reasoning documents, a fifth of each the prompt. All contenders share one model and one optimizer and differ in
the loss and in the attention. FLOPs are of the real documents, attention counted in each of them.

The step is written out here, not imported from distill.training, which needs more packages than a GPU machine may have;
a test holds its loss against `distill train`'s.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.bench.attention_peers import attention_name, attentions
from distill.bench.documents import Documents, document_lengths
from distill.bench.gpu_pieces import LENGTHS_SEED, Context, GpuSuiteSettings, Piece
from distill.bench.rounds import attempt
from distill.flops import ModelShape
from distill.packing.pack import Document, Pack, build_pack

_PROMPT_SHARE = 0.2
# name: (loss, attention); "chosen" is what varlen_attention takes by itself
CONTENDERS = {
    "distill": ("ours", "chosen"),
    "distill, own attention": ("ours", "triton"),
    "plain loss": ("plain", "chosen"),
    "plain loss, torch varlen": ("plain", "torch-varlen"),
    "plain loss, SDPA per document": ("plain", "loop"),
}
FUSED = "distill, Liger layers"  # as `distill train` has them where Liger is installed


def training_pieces(settings: GpuSuiteSettings, tokens: int) -> list[Piece]:
    return [_training_piece(model, tokens, settings) for model in settings.models]


def _training_piece(model: tuple[str, int, int, int, int, int, int], tokens: int, settings: GpuSuiteSettings) -> Piece:
    name, hidden, layers, heads, kv_heads, intermediate, vocabulary = model
    generator = torch.Generator().manual_seed(LENGTHS_SEED)
    lengths = document_lengths(tokens, min(settings.log_normal_mean, tokens / 4), 1.0, generator)
    prompts = [max(1, int(n * _PROMPT_SHARE)) for n in lengths]
    supervised = sum(n + 1 - prompt for n, prompt in zip(lengths, prompts, strict=True))
    shape = ModelShape(layers, hidden, heads, kv_heads, hidden // heads, intermediate, vocabulary)

    def run(context: Context) -> dict[str, Any]:
        rng = np.random.default_rng(context.settings.seed)
        documents = [
            Document(rng.integers(0, vocabulary, n + 1, dtype=np.int32), prompt)
            for n, prompt in zip(lengths, prompts, strict=True)
        ]
        training, failed = attempt(context.clock, lambda: _Training(shape, build_pack(documents), context.device))
        if failed is not None:
            return {"contenders": {}, "error": failed}
        calls, others = {}, {}
        for contender, (loss, attention) in CONTENDERS.items():
            if contender in context.crashed:
                others[contender] = {"error": context.crashed[contender]}
            elif reason := training.missing(attention):
                others[contender] = {"missing": reason}
            else:
                calls[contender] = training.step(loss, attention)
        found = context.compare(calls) | others
        # Last, because a model cannot be given its own layers back: not interleaved with the others.
        if FUSED in context.crashed:
            found[FUSED] = {"error": context.crashed[FUSED]}
        elif fused := training.fuse_layers():
            entry = context.compare({FUSED: training.step("ours", "chosen")})[FUSED]
            found[FUSED] = entry | {"apart": True, "layers": fused}
        else:
            found[FUSED] = {"missing": "no layer is fused here (liger-kernel, on a GPU)"}
        return {"contenders": found, **training.about()}

    about = {
        "section": "training_step",
        "model": name,
        "tokens": sum(lengths),
        "supervised": supervised,
        "documents": len(lengths),
        "longest": max(lengths),
        "flops": shape.training_flops(lengths, supervised),
    }
    return Piece(f"training_step/{name}/{tokens} tokens", about, run)


class _Training:
    """One model, one optimizer, one pack."""

    def __init__(self, shape: ModelShape, pack: Pack, device: torch.device):
        from transformers import Qwen2Config, Qwen2ForCausalLM

        from distill.kernels import register_attention

        register_attention()
        config = Qwen2Config(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            intermediate_size=shape.intermediate,
            max_position_embeddings=int(pack.max_seqlen),
            tie_word_embeddings=True,
            dtype=torch.float32,
        )
        lengths = tuple(pack.cu_seqlens.diff().tolist())
        self.allocated_before = _allocated(device)
        with device:
            model = Qwen2ForCausalLM._from_config(config, attn_implementation="distill")
        self.device, self.config = device, model.config
        self.model = model.train()
        self.pack = pack.to(device)
        self.documents = Documents(self.pack.cu_seqlens, lengths)
        # A rate of 0: the update is done in full, and the weights stay those of the first step for everyone.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), fused=True)

    def missing(self, attention: str) -> str | None:
        if attention in ("chosen", "loop"):
            return None
        peer = attentions().get(attention_name(attention))
        return "there is no such implementation" if peer is None else peer.missing(self.device.type)

    def step(self, loss: str, attention: str) -> Callable[[], None]:
        name = "distill" if attention == "chosen" else _register(attention, self.documents)
        total = _our_loss if loss == "ours" else _plain_loss

        def call() -> None:
            self.config._attn_implementation = name
            try:
                with torch.autocast(self.device.type, torch.bfloat16):
                    losses = self.losses(total)
                (losses / self.pack.supervised).backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
            finally:  # a step that ran out of memory must not leave its gradients to the next contender
                self.optimizer.zero_grad(set_to_none=True)

        return call

    def losses(self, total: Callable[[Tensor, nn.Module, Tensor], Tensor]) -> Tensor:
        """Sum of the losses of the supervised rows, by `total(hidden, head, labels)`."""
        from distill.kernels import attention_plan

        pack, bounds, longest = self.pack, self.pack.cu_seqlens, self.pack.max_seqlen
        hidden = self.model.get_decoder()(
            input_ids=pack.input_ids,
            position_ids=pack.position_ids,
            use_cache=False,
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=longest,
            max_length_k=longest,
            plan=attention_plan(bounds, pack.input_ids.shape[1], longest),
        ).last_hidden_state
        rows = hidden.flatten(0, 1).index_select(0, pack.loss_rows)
        labels = pack.labels.flatten().index_select(0, pack.loss_rows)
        return total(rows, self.model.get_output_embeddings(), labels)

    def fuse_layers(self) -> list[str]:
        from distill.kernels import fuse_layers

        return fuse_layers(self.model)

    def about(self) -> dict[str, Any]:
        """What MFU is a share of, and what weights and optimizer take between two steps."""
        from distill.training.peak import peak_flops

        rate, source = peak_flops(self.device, torch.bfloat16)
        held = None if self.allocated_before is None else _allocated(self.device) - self.allocated_before
        return {"peak_flops": rate, "peak_source": source, "held_bytes": held}


def _our_loss(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    from distill.kernels import linear_cross_entropy

    return linear_cross_entropy(hidden, head.weight, labels, reduction="sum", ignore_index=None)


def _plain_loss(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    """All logits at once."""
    return F.cross_entropy(head(hidden).float(), labels, reduction="sum")


def _allocated(device: torch.device) -> int | None:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def _register(attention: str, documents: Documents) -> str:
    """An attention by which the model runs one implementation whatever would be chosen."""
    from transformers import AttentionInterface

    name = "SDPA per document" if attention == "loop" else attention_name(attention)
    attend = attentions()[name].load()(documents)

    def packed(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **_: Any
    ) -> tuple[Tensor, None]:
        dtype = value.dtype  # rotary embedding in float32 beside a projection in the autocast dtype
        out = attend(*(x.squeeze(0).transpose(0, 1).to(dtype) for x in (query, key, value)))
        return out.unsqueeze(0), None

    AttentionInterface.register(f"bench-{attention}", packed)
    return f"bench-{attention}"
