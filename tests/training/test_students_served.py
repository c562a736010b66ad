"""Students of every family trained from a folder as the Hub has it, and LoRA students behind the real vLLM."""

import asyncio
import json
import secrets
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from distill.errors import InputError
from distill.evaluation.answer_file import read_answers
from distill.evaluation.evaluate import evaluate
from distill.evaluation.server import Serving
from distill.evaluation.settings import EvaluateSettings, Questions
from distill.evaluation.subject import load_subject
from distill.packing.tokenizer import train_tokenizer
from distill.serve import SamplingSettings, Server, ServerSettings, complete, read_adapter
from distill.training import train as train_module
from distill.training.save import save_student
from distill.training.settings import Lora, RunOptions, TrainSettings
from distill.training.student import load_origin
from distill.training.train import train

SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
FAMILIES = {
    "qwen2": (Qwen2Config, dict(tie_word_embeddings=True)),
    "qwen3": (Qwen3Config, dict(head_dim=16)),
    "llama": (LlamaConfig, {}),
    "gemma": (GemmaConfig, dict(head_dim=16)),
    "gemma2": (Gemma2Config, dict(head_dim=16, sliding_window=8)),
    "gemma3": (Gemma3TextConfig, dict(head_dim=16, sliding_window=8, sliding_window_pattern=2)),
}
RUN = dict(threads=1, tensorboard=False)


def hub_folder(folder, family, rng):
    """Weights in bf16 and several files, two ids that end a text."""
    kind, more = FAMILIES[family]
    tokenizer = train_tokenizer(["add 12 max A3 B9:the 7:7,5:12"] * 20, 320)
    ids = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    config = kind(**SHAPE, **more, **ids, vocab_size=320, max_position_embeddings=512)
    torch.manual_seed(int(rng.integers(2**31)))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = [17, tokenizer.eos_token_id]
    model.save_pretrained(folder, max_shard_size="20KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return str(folder)


@pytest.mark.parametrize("student", [*FAMILIES, "medium"])
def test_every_family_trains_packed_and_loads_in_transformers(traces, tmp_path, monkeypatch, rng, student):
    given = student if student == "medium" else hub_folder(tmp_path / "given", student, rng)
    tokens = 3000 if student == "medium" else 8000
    settings = TrainSettings(
        student=given, arm="mixed:0.5", row_tokens=256, batch=40, tokens=tokens, learning_rate=5e-3, vocab_size=300
    )
    kept = {}
    monkeypatch.setattr(train_module, "save_student", lambda o, w, f: (kept.update(w), save_student(o, w, f)))
    train(settings, traces, RunOptions(out=tmp_path / "out", **RUN))
    log = [json.loads(line) for line in (tmp_path / "out" / "training_log.jsonl").read_text().splitlines()]
    assert len(log) > 1 and log[-1]["loss"] < log[0]["loss"]
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = dict(model.named_parameters())
    assert found.keys() == kept.keys()
    assert all(torch.equal(p, kept[name].to(p.dtype)) for name, p in found.items())
    if student == "medium":
        assert model.dtype is torch.float32
        return
    assert model.dtype is torch.bfloat16
    before = AutoModelForCausalLM.from_pretrained(given)
    assert type(model) is type(before) and model.config.to_diff_dict() == before.config.to_diff_dict()
    assert set(before.generation_config.eos_token_id) == set(model.generation_config.eos_token_id)
    assert all(not torch.equal(p, found[name]) for name, p in before.named_parameters() if "proj" in name)


def test_a_model_that_reads_more_than_text_is_refused(tmp_path):
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16)
    config = Gemma3Config(
        text_config=SHAPE | {"vocab_size": 320, "head_dim": 8}, vision_config=vision | {"patch_size": 8}
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    train_tokenizer(["add 12"] * 20, 320).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="gemma3 reads more than text"):
        load_origin(str(tmp_path), [], packed=True, vocab_size=320, seed=0)


@pytest.fixture(scope="module")
def lora_student(tiny_student, traces, tmp_path_factory):
    """tiny_student with trained adapters: merged in the folder, alone in its subfolder adapter/."""
    folder = tmp_path_factory.mktemp("lora") / "student"
    settings = TrainSettings(
        student=str(tiny_student),
        row_tokens=256,
        batch=40,
        learning_rate=2e-2,
        lora_rank=12,
        merge=True,
        precision="fp32",
        seed=secrets.randbits(30),
    )
    train(settings, traces, RunOptions(out=folder, **RUN))
    return folder


def test_adapters_alone_are_a_subject_with_their_bases_shape(lora_student, tiny_student):
    alone, whole, base = (load_subject(f) for f in (lora_student / "adapter", lora_student, tiny_student))
    adapter = read_adapter(lora_student / "adapter")
    assert (adapter.base, adapter.rank) == (str(tiny_student), 12)
    assert adapter.weights == alone.shape.adapter_weights == 2 * 12 * (4 * (64 + 64) + 3 * (64 + 172))
    assert whole.shape == base.shape and alone.shape.layers == base.shape.layers
    assert alone.chat.rendered == whole.chat.rendered and alone.dtype == whole.dtype == "float32"
    assert read_adapter(lora_student) is None and read_adapter("an/id") is None
    assert len({json.dumps(s.identity) for s in (alone, whole, base)}) == 3


def test_both_served_by_vllm_give_the_greedy_answers_of_transformers(lora_student, tiny_student, tmp_path, rng):
    pytest.importorskip("vllm")
    adapter = lora_student / "adapter"
    prompts = [[1, *rng.integers(6, 260, int(n)).tolist(), 2] for n in rng.integers(3, 20, 12)]
    prompts = [[int(i) for i in prompt] for prompt in prompts]
    settings = ServerSettings(dtype="float32", max_model_len=256, kv_cache_gib=1, threads=1)
    asked = EvaluateSettings(questions=[Questions(task="add", count=5)], max_tokens=16)
    by_folder = {}
    for folder in (lora_student, adapter):
        with ExitStack() as stack:
            server = stack.enter_context(Server(folder, settings, tmp_path / "server.log"))
            results = asyncio.run(complete(server.endpoint, prompts, SamplingSettings(max_tokens=24)))
            by_folder[folder] = [result.token_ids for result in results]
            if folder is adapter:
                evaluate(asked, folder, tmp_path / "vllm", Serving(lambda: server.endpoint))  # noqa: B023
    base = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float32).eval()
    plain = [greedy(base, prompt) for prompt in prompts]
    model = PeftModel.from_pretrained(base, adapter).eval()
    expected = [greedy(model, prompt) for prompt in prompts]
    assert expected != plain
    for found in by_folder.values():
        for prompt, ids, theirs in zip(prompts, found, expected, strict=True):
            assert_same_but_for_ties(model, prompt, ids, theirs)

    evaluate(asked.model_copy(update={"engine": "transformers"}), adapter, tmp_path / "transformers")
    answers = [read_answers(tmp_path / name / "answers.parquet") for name in ("vllm", "transformers")]
    chat = load_subject(adapter).chat
    for served, theirs in zip(*answers, strict=True):
        (prompt,) = chat.prompt_ids([served.prompt])
        assert_same_but_for_ties(model, prompt, list(served.token_ids), list(theirs.token_ids))


def greedy(model, prompt):
    with torch.no_grad():
        ids = torch.tensor([prompt])
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=3
        )
    return found[0, len(prompt) :].tolist()


def assert_same_but_for_ties(model, prompt, ids, expected):
    """Another token is right only where the two best logits are as good as equal."""
    if ids == expected:
        return
    at = int(np.argmax([a != b for a, b in zip(ids, expected, strict=False)]))
    with torch.no_grad():
        first, second = model(torch.tensor([[*prompt, *expected[:at]]])).logits[0, -1].topk(2).values.tolist()
    assert first - second < 1e-3 and ids[:at] == expected[:at]


def test_adapters_that_cannot_be_served_are_refused_in_one_line(lora_student, tmp_path, rng):
    good = json.loads((lora_student / "adapter" / "adapter_config.json").read_text())
    weights = (lora_student / "adapter" / "adapter_model.safetensors").read_bytes()
    cases = {
        "damaged; expected r": {"r": "4"},
        "damaged; expected": {"base_model_name_or_path": None},
        "adapters for /gone": {"base_model_name_or_path": "/gone"},
        "rank 513, but vLLM serves at most 512": {"r": 513},
    }
    for said, change in cases.items():
        (tmp_path / "adapter_config.json").write_text(json.dumps(good | change))
        (tmp_path / "adapter_model.safetensors").write_bytes(weights)
        with pytest.raises(InputError, match=said) as refused:
            read_adapter(tmp_path)
        assert "\n" not in str(refused.value)
    (tmp_path / "adapter_config.json").write_text(json.dumps(good))
    (tmp_path / "adapter_model.safetensors").write_bytes(weights[: int(rng.integers(1, len(weights)))])
    with pytest.raises(InputError, match="cannot be read"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors; other formats can run code"):
        read_adapter(tmp_path)


def test_adapters_are_no_student_to_train(lora_student):
    for lora in (None, Lora(2, 32.0, None, False)):
        with pytest.raises(InputError, match="holds LoRA adapters and no model of its own"):
            load_origin(str(lora_student / "adapter"), [], packed=True, vocab_size=320, seed=0, lora=lora)
