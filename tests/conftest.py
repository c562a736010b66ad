"""What several rooms' tests share: a tiny student with random weights, and one vLLM server for the whole session."""

import importlib.util
import os
import secrets

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test downloads anything

SPECIAL_TOKENS = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def rng():
    """Fresh numbers in every run; the seed is in the output of a test that fails."""
    import numpy as np

    seed = secrets.randbits(32)
    print(f"np.random.default_rng({seed})")
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory):
    """A checkpoint folder: Qwen2, 2 layers, hidden 64, fp32, 256 positions, a byte-level tokenizer of 262 tokens.

    The ids of the special tokens are their places in SPECIAL_TOKENS; <|end|> (3) ends a turn. The weights are random
    and the same in every session.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "student"
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator([], trainers.BpeTrainer(special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.125,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_server(tiny_student, tmp_path_factory):
    """A running distill.serve.Server with tiny_student in fp32; its `endpoint` is where to send requests."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    from distill.serve import Server, ServerSettings

    settings = ServerSettings(dtype="float32", max_model_len=256, kv_cache_gib=1, threads=1)
    with Server(tiny_student, settings, tmp_path_factory.mktemp("vllm") / "server.log") as server:
        yield server


@pytest.fixture(scope="session")
def trained_student(tmp_path_factory):
    """A folder made by the real trainer: `tiny` on the reasoning of 3,500 questions of `max`, in a few seconds."""
    from distill.traces.generate import generate
    from distill.traces.settings import GenerateSettings
    from distill.training.settings import RunOptions, TrainSettings
    from distill.training.train import train

    folder = tmp_path_factory.mktemp("trained")
    generate(GenerateSettings(tasks={"max": 3500}), folder / "traces")
    settings = TrainSettings(
        student="tiny",
        arm="reasoning",
        row_tokens=1024,
        batch=24,
        epochs=2,
        learning_rate=4e-3,
        warmup_steps=20,
        final_learning_rate_ratio=0.0,
        precision="fp32",
    )
    train(settings, folder / "traces", RunOptions(out=folder / "student", threads=1, tensorboard=False))
    return folder / "student"


@pytest.fixture(scope="session")
def trained_server(trained_student, tmp_path_factory):
    """A running distill.serve.Server with trained_student in fp32."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    from distill.serve import Server, ServerSettings

    settings = ServerSettings(dtype="float32", max_model_len=256, kv_cache_gib=1, threads=1)
    with Server(trained_student, settings, tmp_path_factory.mktemp("trained-vllm") / "server.log") as server:
        yield server
