"""FLOPs of published models, full and with LoRA, against torch's own counter with eager attention.

The models are shapes on the meta device, of their published width and a few layers deep, so that nothing is computed and
everything is counted. The counter sees what eager attention multiplies: all s x s pairs of a document, also those that a
causal mask or a window hides. Where documents are short beside the width of the model both counts are within 2 %; with
those pairs, and what the first layer's frozen projections leave out, added to ours, they are the same.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from distill.flops import ModelShape
from distill.study.plan.shapes import known_models
from distill.training.lora import adapter_weights, add_adapters
from distill.training.settings import Lora

LAYERS = 7
MODELS = {
    "qwen2": "Qwen/Qwen2.5-7B",
    "qwen3": "Qwen/Qwen3-4B",
    "llama": "meta-llama/Llama-3.2-1B",
    "gemma3": "google/gemma-3-1b-pt",
}


def config_of(name):
    values = dict(known_models()[name].config)
    return AutoConfig.for_model(values.pop("model_type"), **(values | {"num_hidden_layers": LAYERS}))


def counted(config, lora, n, rows):
    """FLOPs of a forward and backward over one document of `n` tokens with the head on `rows` of them, and the adapters'
    weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        if lora is not None:
            add_adapters(model, lora, seed=0, source="published")
        mask, ids, places = torch.zeros(1, 1, n, n), torch.zeros(1, n, dtype=torch.long), torch.arange(n)[None]
        if config.model_type != "llama":  # one for each kind of layer
            mask = {"full_attention": mask, "sliding_attention": mask}
        with FlopCounterMode(display=False) as counter:
            decoder, head = model.get_decoder(), model.get_output_embeddings()
            hidden = decoder(ids, attention_mask=mask, position_ids=places, use_cache=False).last_hidden_state
            (hidden[:, :rows] @ head.weight.T).float().square().mean().backward()
    return counter.get_total_flops(), adapter_weights(model)


@pytest.mark.parametrize("adapters", ["full", "lora"])
@pytest.mark.parametrize("layout", MODELS)
def test_training_flops_of_published_models(layout, adapters, rng):
    config = config_of(MODELS[layout])
    lora = Lora(int(rng.integers(1, 65)), 32.0, None, False) if adapters == "lora" else None
    n = int(rng.integers(40, 160))
    rows = int(rng.integers(1, n))
    torch_counts, weights = counted(config, lora, n, rows)
    shape = ModelShape.from_config(config, adapter_weights=weights)
    ours = shape.training_flops([n], rows)
    assert ours == pytest.approx(torch_counts, rel=0.02)
    pairs = (shape.training_flops([n], 0) - shape.training_flops([1], 0) * n) / (12 * shape.heads * shape.head_dim)
    pairs += LAYERS * n  # of a document of one token, in every layer
    difference = 12 * shape.heads * shape.head_dim * (LAYERS * n * n - pairs)
    if lora is not None:  # embeddings are frozen, so nobody asks for the gradients of what the first layer reads
        ends = shape.head_dim * (shape.heads + 2 * shape.kv_heads) + 3 * lora.rank
        difference -= 2 * n * shape.hidden * ends
    assert ours + difference == pytest.approx(torch_counts, rel=1e-3)


def test_a_long_document_is_half_of_what_eager_attention_multiplies(rng):
    """The same at a length where attention is most of it, beyond the window too."""
    config = config_of(MODELS["gemma3"])
    n = int(rng.integers(2000, 3000))
    torch_counts, _ = counted(config, None, n, 1)
    shape = ModelShape.from_config(config)
    windows = sum(kind == "sliding_attention" for kind in config.layer_types)
    full = LAYERS - windows
    pairs = full * n * (n + 1) // 2 + windows * sum(min(i + 1, config.sliding_window) for i in range(n))
    missing = 12 * shape.heads * shape.head_dim * (LAYERS * n * n - pairs)
    assert shape.training_flops([n], 1) + missing == pytest.approx(torch_counts, rel=1e-3)
    assert shape.training_flops([n], 1) < 0.9 * torch_counts


def test_the_shapes_of_known_models_have_their_published_parameters():
    shapes = {tuple(sorted(known.config.items())): known for known in known_models().values()}
    assert len(known_models()) > 40 and all(k.source.startswith("https://") for k in known_models().values())
    for known in shapes.values():
        values = dict(known.config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
        assert sum(p.numel() for p in model.parameters()) == known.parameters, known.source
