"""Where a student comes from: a from-scratch size, a Hugging Face folder, or a Hub id."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from distill.artifact import file_sha256
from distill.errors import InputError
from distill.kernels import attention_plan, linear_cross_entropy, register_attention
from distill.packing.chat import COMPACT, ChatFormat, ThinkFormat
from distill.packing.pack import Pack
from distill.packing.tokenizer import train_tokenizer
from distill.training.padded import PaddedBatch
from distill.training.sizes import SIZES, check_student

SCRATCH_POSITIONS = 4096


@dataclass
class Origin:
    """A student before training."""

    model: Any  # a Hugging Face causal language model, fp32
    chat: ChatFormat
    save_dtype: torch.dtype


class Student(nn.Module):
    """A decoder and its head as one module: `forward(batch)` is the sum of token losses over supervised rows.

    The head runs on supervised rows only and never holds their logits. A `Pack` is attended per document; a
    `PaddedBatch` is an ordinary padded batch.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, batch: "Pack | PaddedBatch") -> torch.Tensor:
        if isinstance(batch, Pack):
            context = dict(
                position_ids=batch.position_ids,
                cu_seq_lens_q=batch.cu_seqlens,
                cu_seq_lens_k=batch.cu_seqlens,
                max_length_q=batch.max_seqlen,
                max_length_k=batch.max_seqlen,
                # How documents are laid out for the CPU's attention: made once here, not in every layer.
                plan=attention_plan(batch.cu_seqlens) if batch.cu_seqlens.device.type == "cpu" else None,
            )
        else:
            context = dict(attention_mask=batch.attention_mask)
        hidden = self.model.get_decoder()(input_ids=batch.input_ids, use_cache=False, **context).last_hidden_state
        rows = hidden.flatten(0, 1).index_select(0, batch.loss_rows)
        return linear_cross_entropy(
            rows,
            self.model.get_output_embeddings().weight,
            batch.labels.flatten().index_select(0, batch.loss_rows),
            reduction="sum",
            softcap=getattr(self.model.config, "final_logit_softcapping", None),
        )


def student_identity(student: str) -> dict[str, Any]:
    """What a student is, for content keys: its size by name, or the files of its folder, or its Hub id."""
    if student in SIZES:
        return {"size": student, "shape": SIZES[student]}
    folder = Path(student)
    if folder.is_dir():
        names = (
            "*.safetensors",
            "config.json",
            "tokenizer*",
            "chat_template*",
            "vocab*",
            "merges*",
            "distill_chat.json",
        )
        found = sorted({file for name in names for file in folder.glob(name)})
        return {"files": {file.name: file_sha256(file) for file in found}}
    return {"hub": student}


def load_origin(
    student: str,
    texts: Iterable[str],
    *,
    packed: bool,
    vocab_size: int,
    seed: int,
    think_tags: tuple[str, str] | None = None,
) -> Origin:
    """Build or load a student; `texts` train the tokenizer of one from scratch. Raises InputError for an unknown name, a folder without safetensors, or no think tags."""
    check_student(student)
    attention = "distill" if packed else "sdpa"
    if packed:
        register_attention()
    if student in SIZES:
        return _from_scratch(student, texts, vocab_size, seed, attention)
    return _from_pretrained(student, attention, think_tags)


def _from_scratch(size: str, texts: Iterable[str], vocab_size: int, seed: int, attention: str) -> Origin:
    tokenizer = train_tokenizer(texts, vocab_size)
    shape = SIZES[size]
    config = Qwen2Config(
        **shape,
        vocab_size=-(-len(tokenizer) // 8) * 8,
        num_key_value_heads=shape["num_attention_heads"],
        max_position_embeddings=SCRATCH_POSITIONS,
        tie_word_embeddings=True,
        # transformers' default of 0.02 is far too small at these widths: copying is then not learned
        initializer_range=shape["hidden_size"] ** -0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM._from_config(config, attn_implementation=attention)
    tokenizer.model_max_length = SCRATCH_POSITIONS
    return Origin(model, ChatFormat(tokenizer, COMPACT, source=f"student {size}"), torch.float32)


def _from_pretrained(student: str, attention: str, think_tags: tuple[str, str] | None) -> Origin:
    folder = Path(student)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder}: has no config.json; expected a Hugging Face model folder")
        if not list(folder.glob("*.safetensors")):
            raise InputError(f"{folder}: has no *.safetensors; other weight formats can run code and are not read")
    try:
        config = AutoConfig.from_pretrained(student, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(student, trust_remote_code=False)
        save_dtype = getattr(config, "dtype", None) or torch.float32
        model = AutoModelForCausalLM.from_pretrained(
            student,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"student {student}: cannot be loaded ({reason})") from None
    think = ThinkFormat.load(folder)
    if think_tags is not None:
        think = ThinkFormat(*think_tags)
    chat = ChatFormat(tokenizer, think, source=student)
    if think_tags is None and (chat.think_open_id is None or chat.think_close_id is None):
        raise InputError(
            f"student {student}: its tokenizer has no single token for {think.opening} and {think.closing}; say what marks "
            "reasoning with --think-tags '<think>,</think>' (nothing is added to an existing tokenizer)"
        )
    return Origin(model, chat, save_dtype)
