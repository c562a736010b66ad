"""vLLM's own offline generation in a process of its own: what generation through our server is measured beside."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from distill.bench.child import Child
from distill.serve import ServerSettings
from distill.serve.server import server_environment, vllm_command

SHAPES = {  # random weights, Qwen2 layout; about 0.1M and 26M parameters
    "tiny": dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, intermediate_size=172),
    "large": dict(num_hidden_layers=8, hidden_size=512, num_attention_heads=8, intermediate_size=1376),
}
_VOCABULARY = 512


class Offline:
    """vLLM's `LLM` with the arguments of a server, under the keeper that leaves nothing of it behind. Use as a context
    manager: entering waits until the model, a folder or a Hub id, is there. Raises InputError when it ends before."""

    def __init__(self, model: str | Path, settings: ServerSettings, folder: Path):
        command = vllm_command(str(model), str(model), 0, settings)[3:]
        for name in ("--host", "--port", "--served-model-name"):
            at = command.index(name)
            del command[at : at + 2]
        command.remove("--disable-uvicorn-access-log")
        child = [sys.executable, "-m", "distill.bench.offline_child", *command]
        self._child = Child(
            "vLLM's offline generation",
            [sys.executable, "-m", "distill.serve.keeper", str(os.getpid()), *child],
            folder / "offline.log",
            server_environment(settings, "none", offline=Path(model).is_dir()),
            start_new_session=True,
        )

    def __enter__(self) -> "Offline":
        try:
            self._child.report()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._child.process.terminate()
        self._child.close()

    def turn(self, requests: list[dict[str, Any]]) -> tuple[float, int]:
        """(seconds, output tokens) of generating them all. A request is `prompt_token_ids`, or `messages` and
        `chat_template_kwargs`, and the fields of SamplingParams that are not at their defaults."""
        report = self._child.ask(json.dumps(requests))
        return report["seconds"], report["tokens"]


def random_student(size: str, folder: Path, *, positions: int, seed: int) -> tuple[Path, int]:
    """(folder, parameters) of a student of one of SHAPES with random weights in bf16."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from distill.packing.chat import COMPACT
    from distill.packing.tokenizer import train_tokenizer

    tokenizer = train_tokenizer((f"{i}: {i * i}" for i in range(1000)), _VOCABULARY)
    shape = SHAPES[size]
    config = Qwen2Config(
        **shape,
        num_key_value_heads=shape["num_attention_heads"],
        vocab_size=_VOCABULARY,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    student = folder / size
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    COMPACT.save(student)
    return student, sum(parameter.numel() for parameter in model.parameters())
