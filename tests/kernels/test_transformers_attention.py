"""Hugging Face decoders run packed give what they give one document at a time with their own eager attention."""

import itertools

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from distill.kernels import attention, attention_plan, linear_cross_entropy, register_attention
from distill.kernels.attention_tiles import attention_tiles
from distill.kernels.transformers_attention import packed_attention

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "max_position_embeddings": 64,
}
SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2 sliding": Qwen2Config(**SIZES, use_sliding_window=True, **SLIDING),
    "qwen3": Qwen3Config(**SIZES),
    "llama": LlamaConfig(**SIZES),
    # softcaps low enough to matter for scores of this size
    "gemma2": Gemma2Config(
        **SIZES, **SLIDING, query_pre_attn_scalar=8, attn_logit_softcapping=1.0, final_logit_softcapping=2.0
    ),
    "gemma3": Gemma3TextConfig(**SIZES, **SLIDING, query_pre_attn_scalar=8),
}


def packed_arguments(lengths, with_plan=True):
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return {
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "use_cache": False,
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    } | ({"plan": attention_plan(cu_seqlens)} if with_plan else {})


def model_of(config, implementation):
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation, dtype=torch.float32)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("checkpointing", [None, "reentrant", "not reentrant"])
def test_packed_equals_documents_alone(name, checkpointing):
    lengths = [1, 12, 30, 3, 12, 17]
    packed = model_of(CONFIGS[name], register_attention())
    alone = model_of(CONFIGS[name], "eager")
    alone.load_state_dict(packed.state_dict())
    if checkpointing:
        packed.train().gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        packed.enable_input_require_grads()
    tokens = torch.randint(61, (1, sum(lengths)))
    labels = torch.randint(61, (sum(lengths),))
    softcap = getattr(CONFIGS[name], "final_logit_softcapping", None)

    hidden = packed.model(input_ids=tokens, **packed_arguments(lengths, with_plan=not checkpointing)).last_hidden_state
    loss = linear_cross_entropy(hidden[0], packed.lm_head.weight, labels, reduction="sum", softcap=softcap)
    loss.backward()

    logits = torch.cat([alone(input_ids=part, use_cache=False).logits[0] for part in tokens.split(lengths, dim=1)])
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    expected.backward()

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for (parameter, a), b in zip(packed.named_parameters(), alone.parameters(), strict=True):
        largest = b.grad.abs().max().item()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5 * largest + 1e-7, msg=parameter)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of rows behind a document, which are dropped
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gpu_path_gives_the_same(monkeypatch, checkpointing):
    """The Triton kernels, interpreted, with the kind of plan a GPU gets; through checkpointing and sliding layers."""
    pytest.importorskip("triton")
    lengths = [3, 12]
    ours = model_of(CONFIGS["qwen2 sliding"], register_attention())
    if checkpointing:
        ours.train().gradient_checkpointing_enable()
    tokens = torch.randint(61, (1, 15))
    arguments = packed_arguments(lengths)
    upstream = torch.randn(1, 15, 32)

    def gradients(**changed):
        hidden = ours.model(input_ids=tokens, **(arguments | changed)).last_hidden_state
        return hidden.detach(), *torch.autograd.grad(hidden, ours.model.parameters(), upstream)

    expected = gradients()
    monkeypatch.setattr(attention, "choose_attention", lambda *_, **__: "triton")
    found = gradients(plan=attention_tiles(arguments["cu_seq_lens_q"], 15, 12))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item() + 1e-7)


def test_runs_under_autocast():
    lengths = [4, 20]
    model = model_of(CONFIGS["qwen2"], register_attention())
    tokens = torch.randint(61, (1, 24))
    exact = model.model(input_ids=tokens, **packed_arguments(lengths)).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=tokens, **packed_arguments(lengths)).last_hidden_state
        loss = linear_cross_entropy(hidden[0], model.lm_head.weight, tokens[0])
    loss.backward()
    assert (hidden - exact).norm() / exact.norm() < 0.05
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_never_mixes_documents_silently():
    model = model_of(CONFIGS["llama"], register_attention())
    tokens = torch.randint(61, (1, 10))
    arguments = packed_arguments([4, 6])
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        model(input_ids=tokens, use_cache=False)
    with pytest.raises(ValueError, match="cu_seq_lens_k"):
        model(input_ids=tokens, **(arguments | {"cu_seq_lens_k": torch.tensor([0, 5, 10])}))
    with pytest.raises(ValueError, match="max_length_q"):
        model(input_ids=tokens, **(arguments | {"max_length_q": None}))
    with pytest.raises(ValueError, match="query"):
        model(input_ids=tokens.repeat(2, 1), **(arguments | {"position_ids": None}))
    with pytest.raises(ValueError, match="cu_seqlens"):
        model(input_ids=tokens[:, :9], **(arguments | {"position_ids": None}))


def test_dropout_is_refused():
    config = LlamaConfig(**SIZES, attention_dropout=0.1)
    model = model_of(config, register_attention()).train()
    with pytest.raises(ValueError, match="dropout"):
        model(input_ids=torch.randint(61, (1, 10)), **packed_arguments([4, 6]))


def test_attention_that_ours_does_not_compute_is_refused():
    """A model whose attention is given sinks, a bias or chunks would run, and be wrong."""
    sinks = GptOssConfig(**SIZES, **SLIDING, num_local_experts=2, num_experts_per_tok=1)
    with pytest.raises(ValueError, match="s_aux"):
        model_of(sinks, register_attention())(input_ids=torch.randint(61, (1, 10)), **packed_arguments([4, 6]))

    arguments = packed_arguments([4, 6])
    q = torch.randn(1, 2, 10, 8)
    module = torch.nn.Module()
    packed_attention(module, q, q, q, None, **arguments)
    for change in ({"is_causal": False}, {"position_bias": q}, {"indices": q}):
        with pytest.raises(ValueError, match="causal" if "is_causal" in change else next(iter(change))):
            packed_attention(module, q, q, q, None, **arguments, **change)
    for module.layer_type in ("chunked_attention", "sliding_attention"):
        with pytest.raises(ValueError, match=f"layer of {module.layer_type}"):
            packed_attention(module, q, q, q, None, **arguments)
    packed_attention(module, q, q, q, None, sliding_window=3, **arguments)
