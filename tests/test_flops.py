"""FLOPs against torch's own counter.

The counter sees eager attention, which multiplies all s x s pairs of a document and masks half of them away; ours counts
the s (s + 1) / 2 pairs that a causal kernel needs. So the two agree exactly on everything but attention, and there
they stand as (s + 1) to 2 s.
"""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen2Config, Qwen3Config

from distill.errors import InputError
from distill.flops import ModelShape, hardware, hardware_table

SHAPE = dict(
    vocab_size=200,
    hidden_size=64,
    intermediate_size=136,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
CONFIGS = {
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=32),
    "llama": LlamaConfig(**(SHAPE | {"num_key_value_heads": 4})),
    "gemma2": Gemma2Config(**SHAPE, head_dim=24, sliding_window=256),
}


def counted(model, lengths, backward):
    """FLOPs of documents run one by one, the whole head included."""
    with FlopCounterMode(display=False) as counter:
        for n in lengths:
            loss = model(input_ids=torch.randint(0, 200, (1, n)), use_cache=False).logits.float().square().mean()
            if backward:
                loss.backward()
    return counter.get_total_flops()


def full_attention(config, lengths):
    """Scores and their product with the values over all s x s pairs of a forward: two products of 2 s s D a head."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return sum(4 * config.num_hidden_layers * config.num_attention_heads * head_dim * n * n for n in lengths)


def causal_attention(config, lengths):
    return sum(full_attention(config, [n]) * (n + 1) / (2 * n) for n in lengths)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_is_what_torch_counts_with_half_of_the_attention(name, rng):
    config = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    lengths = rng.integers(2, 150, 6).tolist()
    shape = ModelShape.from_config(config)
    forward = counted(model, lengths, backward=False)
    both = counted(model, lengths, backward=True)
    # Rotary embedding makes its angles by a product over positions, a few thousandths here; we leave it out.
    assert shape.forward_flops(lengths, sum(lengths)) == pytest.approx(
        forward - full_attention(config, lengths) + causal_attention(config, lengths), rel=5e-3
    )
    assert shape.training_flops(lengths, sum(lengths)) == pytest.approx(
        both - 3 * full_attention(config, lengths) + 3 * causal_attention(config, lengths), rel=5e-3
    )


def test_documents_are_counted_one_by_one_and_the_head_by_its_rows():
    shape = ModelShape.from_config(CONFIGS["qwen2"])
    assert shape.training_flops([70, 30], 40) == pytest.approx(
        shape.training_flops([70], 40) + shape.training_flops([30], 0), rel=1e-12
    )
    assert shape.training_flops([100], 40) - shape.training_flops([70, 30], 40) == pytest.approx(
        3 * 4 * 3 * 64 * (100 * 101 - 70 * 71 - 30 * 31) / 2, rel=1e-12
    )
    assert shape.training_flops([100], 41) - shape.training_flops([100], 40) == pytest.approx(3 * 2 * 64 * 200)


def test_a_query_sees_no_more_keys_than_its_window(rng):
    """Where attention slides, in those layers only, pairs are counted one by one."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma2Config(**SHAPE, head_dim=24, sliding_window=11, layer_types=kinds)
    shape, whole = ModelShape.from_config(config), ModelShape.from_config(CONFIGS["gemma2"])
    lengths = np.concatenate([rng.integers(1, 100, 6), [1, 10, 11, 12]])
    not_seen = sum(max(0, t + 1 - 11) for n in lengths.tolist() for t in range(n))
    for count, passes in ((ModelShape.forward_flops, 1), (ModelShape.training_flops, 3)):
        assert count(whole, lengths, 5) - count(shape, lengths, 5) == pytest.approx(passes * 2 * 4 * 4 * 24 * not_seen)
    by_document = [shape.training_flops([n], 0) for n in lengths.tolist()]
    assert shape.training_flops_by_document(lengths) == pytest.approx(by_document, rel=1e-12)
    # The other families name a window and do not use it, unless they are told to
    assert ModelShape.from_config(Qwen2Config(**SHAPE, sliding_window=11)).windows == ()
    used = Qwen2Config(**SHAPE, sliding_window=11, use_sliding_window=True, max_window_layers=1)
    assert ModelShape.from_config(used).windows == (11, 11)


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_generation_with_a_cache_is_what_torch_counts(name, rng):
    """Prompt in one go, then a token at a time; a query multiplies only the keys that are there: causal already."""
    config = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    prompt, output = int(rng.integers(2, 60)), int(rng.integers(2, 30))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ids = torch.randint(0, 200, (1, prompt))
        result = model(input_ids=ids, logits_to_keep=1)
        for _ in range(output - 1):
            token = result.logits[:, -1:].argmax(-1)
            result = model(input_ids=token, past_key_values=result.past_key_values, logits_to_keep=1)
    attention_difference = full_attention(config, [prompt]) - causal_attention(config, [prompt])
    shape = ModelShape.from_config(config)
    assert shape.generation_flops(prompt, output) == pytest.approx(
        counter.get_total_flops() - attention_difference, rel=1e-2
    )
    assert shape.generation_flops(prompt, 0) == 0.0


def test_hardware_by_name():
    for name, row in hardware_table().items():
        assert hardware(name) == row and row.price_usd_per_hour > 0 and row.source and row.date
        assert row.usd(3600) == pytest.approx(row.price_usd_per_hour)
        for threads in (1, 2, 3, 64):
            share = 1 if row.cores is None else min(1, threads / row.cores)
            assert row.usd(3600, threads) == pytest.approx(row.price_usd_per_hour * share)
    assert hardware("cpu-2core").cores == 2 and hardware("h200-sxm").cores is None
    with pytest.raises(InputError, match=r"unknown hardware 'h200'.*h200-sxm"):
        hardware("h200")
