"""Where a student comes from: a from-scratch size, a Hugging Face folder, or a Hub id."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

from distill.artifact import folder_identity
from distill.errors import InputError
from distill.flops import ModelShape
from distill.hub import asking_the_hub
from distill.kernels import attention_plan, linear_cross_entropy, register_attention
from distill.packing.chat import COMPACT, ChatFormat, ThinkFormat
from distill.packing.pack import Document, Pack, build_pack
from distill.packing.tokenizer import train_tokenizer
from distill.training.distillation import Distillation
from distill.training.lora import adapter_weights, add_adapters, hold_base_in
from distill.training.padded import PaddedBatch, build_padded
from distill.training.settings import Lora
from distill.training.sizes import SIZES, check_student

SCRATCH_POSITIONS = 4096


@dataclass
class Origin:
    """A student before training."""

    model: Any  # a Hugging Face causal language model, fp32
    chat: ChatFormat
    save_dtype: torch.dtype
    source: str  # as it was given
    lora: Lora | None = None  # of the adapters in the model, with the targets they have

    @property
    def shape(self) -> ModelShape:
        return ModelShape.from_config(self.model.config, adapter_weights=adapter_weights(self.model))

    @property
    def trainable_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def hold_base(self, dtype: torch.dtype) -> int:
        """Keep frozen weights in the `dtype` of matrix products where no bit changes; returns how many are.

        That is in bf16 beside adapters, where the files have bf16 too: merging then adds to what they have.
        """
        if self.lora is None or dtype is not torch.bfloat16 or self.save_dtype is not torch.bfloat16:
            return 0
        return hold_base_in(self.model, dtype)


class Student(nn.Module):
    """A decoder and its head as one module: `forward(batch)` is the sum of token losses over supervised rows, each times
    its weight where the batch has weights.

    The head runs on supervised rows only and never holds their logits. A `Pack` is attended per document; a
    `PaddedBatch` is an ordinary padded batch. In training each token's loss has z_loss * lse^2 added. Rows of a batch that
    have a teacher's distributions have the loss that `distillation` says.
    """

    def __init__(self, model: Any, *, z_loss: float = 0.0, distillation: Distillation | None = None):
        super().__init__()
        self.model, self.z_loss, self.distillation = model, z_loss, distillation

    def context(self, batch: Pack | PaddedBatch) -> dict[str, Any]:
        """What the decoder must be told of a batch besides its tokens."""
        if isinstance(batch, PaddedBatch):
            return dict(attention_mask=batch.attention_mask)
        return dict(
            position_ids=batch.position_ids,
            cu_seq_lens_q=batch.cu_seqlens,
            cu_seq_lens_k=batch.cu_seqlens,
            max_length_q=batch.max_seqlen,
            max_length_k=batch.max_seqlen,
            # How attention works the documents off, and the check of their bounds: once here, not in every layer.
            plan=attention_plan(batch.cu_seqlens, batch.input_ids.shape[1], batch.max_seqlen),
        )

    def forward(self, batch: Pack | PaddedBatch) -> torch.Tensor:
        decoder, head = self.model.get_decoder(), self.model.get_output_embeddings()
        hidden = decoder(input_ids=batch.input_ids, use_cache=False, **self.context(batch)).last_hidden_state
        hidden = hidden.flatten(0, 1).index_select(0, batch.loss_rows)
        labels = batch.labels.flatten().index_select(0, batch.loss_rows)
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        if batch.teacher is not None:
            return self.distillation.sum_of_losses(
                hidden, labels, batch.loss_weights, batch.teacher, head=head, softcap=softcap
            )
        return linear_cross_entropy(
            hidden,
            head.weight,
            labels,
            bias=head.bias,
            token_weights=batch.loss_weights,
            reduction="sum",
            z_loss=self.z_loss if self.training else 0.0,  # a validation judges the answers, not the regulariser
            ignore_index=None,  # loss_rows are the supervised ones, so nobody has to ask a GPU which rows those are
            softcap=softcap,
        )


def student_identity(student: str, think_tags: tuple[str, str] | None) -> dict[str, Any]:
    """What a student is, for content keys: its shape or its files or its Hub revision, and how it renders a turn."""
    check_student(student)
    if student in SIZES:
        return {"size": student, "shape": SIZES[student], "hidden": SIZES[student]["hidden_size"]}
    config, chat = _read_pretrained(student, think_tags)
    folder = Path(student)
    where = {"files": folder_identity(folder)} if folder.is_dir() else {"hub": student, "revision": config._commit_hash}
    return {**where, "rendered": chat.rendered, "hidden": config.get_text_config().hidden_size}


def load_origin(
    student: str,
    texts: Iterable[str],
    *,
    packed: bool,
    vocab_size: int,
    seed: int,
    think_tags: tuple[str, str] | None = None,
    lora: Lora | None = None,
    weights: bool = True,
) -> Origin:
    """Build or load a student; `texts` train the tokenizer of one from scratch. With `lora` all but the adapters is
    frozen. Without `weights` its model is only shapes, on torch's meta device.

    Raises InputError for an unknown name, a folder without safetensors, no think tags, a model whose loss is not what
    our head computes, or adapters for layers that it has not.
    """
    check_student(student)
    transformers_logging.disable_progress_bar()  # its bars of half a second break ours
    attention = "distill" if packed else "sdpa"
    if packed:
        register_attention()
    if student in SIZES:
        return _from_scratch(student, texts, vocab_size, seed, attention, weights)
    origin = _from_pretrained(student, attention, think_tags, weights)
    if lora is not None:
        origin.lora = add_adapters(origin.model, lora, seed=seed, source=student)
    return origin


def _from_scratch(size: str, texts: Iterable[str], vocab_size: int, seed: int, attention: str, weights: bool) -> Origin:
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
    with torch.device("cpu" if weights else "meta"):
        model = Qwen2ForCausalLM._from_config(config, attn_implementation=attention)
    tokenizer.model_max_length = SCRATCH_POSITIONS
    return Origin(model, ChatFormat(tokenizer, COMPACT, source=f"student {size}"), torch.float32, size)


def _from_pretrained(student: str, attention: str, think_tags: tuple[str, str] | None, weights: bool) -> Origin:
    config, chat = _read_pretrained(student, think_tags)
    if attention == "sdpa" and getattr(config, "attn_logit_softcapping", None):
        attention = "eager"  # torch's own has no cap on scores, and transformers leaves it out without a word
    save_dtype = getattr(config, "dtype", None) or torch.float32
    for name in vars(config):
        if name.endswith(("dropout", "pdrop")):  # fine-tuning is without, and a resumed run has no random state to lose
            setattr(config, name, 0.0)
    if not weights:
        with torch.device("meta"):
            model = _library(
                student,
                lambda: AutoModelForCausalLM.from_config(
                    config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
                ),
            )
        return Origin(model, chat, save_dtype, student)
    model = _library(
        student,
        lambda: AutoModelForCausalLM.from_pretrained(
            student,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
        ),
    )
    _require_our_loss(model, student)
    return Origin(model, chat, save_dtype, student)


def _read_pretrained(student: str, think_tags: tuple[str, str] | None) -> tuple[Any, ChatFormat]:
    """Config and chat format, without the weights."""
    folder = Path(student)
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file():  # transformers would load another model, the adapters' base
            raise InputError(f"{folder}: holds LoRA adapters and no model of its own; train them with --merge")
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder}: has no config.json; expected a Hugging Face model folder")
        if not list(folder.glob("*.safetensors")):
            raise InputError(f"{folder}: has no *.safetensors; other weight formats can run code and are not read")
    config = _library(student, lambda: AutoConfig.from_pretrained(student, trust_remote_code=False))
    if config.get_text_config() is not config:
        raise InputError(f"student {student}: {config.model_type} reads more than text; expected a model of text alone")
    tokenizer = _library(student, lambda: AutoTokenizer.from_pretrained(student, trust_remote_code=False))
    think = ThinkFormat.load(folder)
    if think_tags is not None:
        think = ThinkFormat(opening=think_tags[0], closing=think_tags[1])
    chat = ChatFormat(tokenizer, think, source=student)
    if think_tags is None and (chat.think_open_id is None or chat.think_close_id is None):
        raise InputError(
            f"student {student}: its tokenizer has no single token for {think.opening} and {think.closing}; say what marks "
            "reasoning with --think-tags '<think>,</think>' (nothing is added to an existing tokenizer)"
        )
    return config, chat


def _library(student: str, load: Callable[[], Any]) -> Any:
    """What transformers loads, or its error in one line: a damaged folder makes it raise almost anything."""
    try:
        with asking_the_hub(student):
            return load()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"student {student}: cannot be loaded ({reason})") from None


def _require_our_loss(model: Any, student: str) -> None:
    """Compare the loss that is trained on with the model's own logits, on a few tokens.

    A head with a scale or an adapter, which a product with its weight and bias is not, must not be trained as if it were.
    """
    ids = torch.arange(min(24, model.config.get_text_config().vocab_size)).numpy()
    document = Document(ids, prompt_length=1)
    packed = model.config._attn_implementation == "distill"
    batch = build_pack([document]) if packed else build_padded([document], pad_id=0)
    wrapped = Student(model).eval()
    with torch.no_grad():
        ours = wrapped(batch)
        logits = model(input_ids=batch.input_ids, use_cache=False, **wrapped.context(batch)).logits
        theirs = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum")
    if not torch.isclose(ours, theirs, rtol=1e-4, atol=1e-4):
        raise InputError(
            f"student {student}: its own loss on {len(ids)} tokens is {float(theirs):.4f}, ours {float(ours):.4f}: its head does "
            "more than we know of, so this architecture cannot be trained here"
        )
