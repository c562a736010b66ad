"""TRL's SFTTrainer, set up to do the same work as ours, and a record of what it trained on.

Equal: initial weights, tokenizer, examples, optimizer (fused AdamW, its constants, constant rate, clipping), precision
(autocast from fp32 weights), tokens a step, loss over the completion only, no recomputation of activations. TRL's own:
chat rendering and masking from conversational prompt-completion examples, packing, collation, attention, loss.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from pydantic import Field
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from distill.flops import ModelShape
from distill.settings import Settings


class PeerSettings(Settings):
    """`batch`: rows of a step; packed, a row is `row_tokens` long and its own micro-batch; padded, one example."""

    student: str
    packed: bool
    row_tokens: int
    batch: int
    max_steps: int
    learning_rate: float
    adam_betas: tuple[float, float]
    gradient_clip: float
    precision: str
    gradient_checkpointing: bool = Field(False, description="TRL's default is True: less memory, more time")


class Peer:
    """`trainer` is ready to train. `about`: counts over its whole prepared data set, and what attends to what."""

    def __init__(self, settings: PeerSettings, examples: Path, out: Path):
        self.settings = settings
        tokenizer = AutoTokenizer.from_pretrained(settings.student)
        model = AutoModelForCausalLM.from_pretrained(settings.student, dtype=torch.float32)
        self.shape = ModelShape.from_config(model.config)
        self.micro_batches: list[dict[str, Any]] = []  # in the order of collation, which is the order of use
        self.losses: list[torch.Tensor] = []  # one a micro-batch, already divided by the step's supervised tokens
        self.per_step = settings.batch if settings.packed else 1
        data = load_dataset("json", data_files=str(examples), split="train", cache_dir=str(out / "cache"))
        self.trainer = _Recorded(
            model=model, args=_arguments(settings, out), train_dataset=data, processing_class=tokenizer
        )
        self.trainer.losses = self.losses
        self._collate = self.trainer.data_collator
        self.trainer.data_collator = self._collate_and_count
        labels = self.trainer.train_dataset["labels"]
        self.about = {
            "rows": len(labels),
            "supervised_tokens_total": sum(sum(label != -100 for label in row) for row in labels),
            "tokens_total": sum(len(row) for row in labels),
            "attention": model.config._attn_implementation,
        }

    def _collate_and_count(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collate(examples)
        if "attention_mask" in batch:
            lengths = batch["attention_mask"].sum(1)
        else:
            lengths = batch["cu_seq_lens_q"].diff()
        self.micro_batches.append(
            {
                "lengths": lengths.tolist(),
                "supervised": int((batch["labels"][:, 1:] != -100).sum()),
            }
        )
        return batch

    def counts(self, step: int) -> dict[str, Any]:
        """What step number `step` trained on, padding left out."""
        parts = self.micro_batches[step * self.per_step : (step + 1) * self.per_step]
        lengths = [n for part in parts for n in part["lengths"]]
        supervised = sum(part["supervised"] for part in parts)
        return {
            "examples": len(lengths),
            "tokens": sum(lengths),
            "supervised_tokens": supervised,
            "flops": self.shape.training_flops(lengths, supervised),
        }


class _Recorded(SFTTrainer):
    losses: list[torch.Tensor]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.detach())
        return loss


def _arguments(settings: PeerSettings, out: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(out / "trl"),
        max_steps=settings.max_steps,
        packing=settings.packed,  # strategy bfd, TRL's default
        max_length=settings.row_tokens,
        completion_only_loss=True,
        per_device_train_batch_size=1 if settings.packed else settings.batch,
        gradient_accumulation_steps=settings.batch if settings.packed else 1,
        # Padded, the examples come in the order in which our trainer sees them; packed, TRL's default.
        train_sampling_strategy="random" if settings.packed else "sequential",
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=settings.adam_betas[0],
        adam_beta2=settings.adam_betas[1],
        adam_epsilon=1e-8,
        weight_decay=0.0,
        max_grad_norm=settings.gradient_clip,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=settings.gradient_checkpointing,
        logging_steps=10,  # TRL's default, and ours
        logging_first_step=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
