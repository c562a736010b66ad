"""Documents never see each other, and packed training is padded training: one loss, one gradient."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from distill.kernels import register_attention
from distill.packing.pack import build_pack
from distill.training.padded import build_padded
from distill.training.student import Student

SHAPE = dict(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.15,
    max_position_embeddings=128,
)
CONFIGS = {
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True),
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
}


@pytest.fixture(params=CONFIGS)
def model(request, rng):
    register_attention()
    torch.manual_seed(int(rng.integers(2**31)))
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[request.param]), attn_implementation="eager")


def student(model, attention, dtype=torch.float32):
    twin = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation=attention)
    twin.load_state_dict(model.state_dict())
    return Student(twin.to(dtype))


def gradients(student, loss):
    loss.backward()
    return {name: p.grad.clone() for name, p in student.named_parameters()}


def relative_error(found, expected):
    difference = sum(float((found[n].double() - expected[n].double()).square().sum()) for n in expected)
    return (difference / sum(float(g.double().square().sum()) for g in expected.values())) ** 0.5


def test_packed_equals_padded_to_rounding(model, documents):
    docs = documents(12)
    packed, padded = student(model, "distill"), student(model, "sdpa")
    packed_loss = packed(build_pack(docs[:7])) + packed(build_pack(docs[7:]))
    padded_loss = padded(build_padded(docs, pad_id=int(docs[0].tokens[0])))
    assert packed_loss.item() == pytest.approx(padded_loss.item(), rel=2e-6)
    expected, found = gradients(padded, padded_loss), gradients(packed, packed_loss)
    assert found.keys() == expected.keys()
    assert relative_error(found, expected) < 2e-5


def test_both_equal_transformers_one_document_at_a_time(model, documents):
    """In float64: eager attention, the whole logits, torch's own cross-entropy.

    transformers' norms and softmax stay in float32 whatever the weights are in: that is what the bounds allow for.
    """
    docs = documents(9)
    reference = model.double()
    expected = torch.zeros((), dtype=torch.float64)
    for d in docs:
        ids = torch.tensor(d.tokens.astype(np.int64))[None]
        logits = reference(input_ids=ids, use_cache=False).logits[0]
        at = slice(d.prompt_length - 1, -1)
        expected = expected + torch.nn.functional.cross_entropy(logits[at], ids[0, d.prompt_length :], reduction="sum")
    expected_gradients = gradients(reference, expected)
    for attention, batch in (("distill", build_pack(docs)), ("sdpa", build_padded(docs, pad_id=0))):
        exact, single = student(reference, attention, torch.float64), student(reference, attention)
        loss = exact(batch)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-7), attention
        found = {name.removeprefix("model."): g for name, g in gradients(exact, loss).items()}
        assert relative_error(found, expected_gradients) < 3e-6, attention
        assert single(batch).item() == pytest.approx(expected.item(), rel=1e-5), attention


def test_a_document_does_not_notice_its_neighbours(model, documents):
    packed = student(model, "distill")
    (mine,) = documents(1)
    alone = packed(build_pack([mine])).item()

    def loss_of_mine(before, after):
        pack = build_pack([*before, mine, *after])
        start, end = pack.cu_seqlens[len(before)], pack.cu_seqlens[len(before) + 1]
        rows = pack.loss_rows[(pack.loss_rows >= start) & (pack.loss_rows < end)]
        return packed(type(pack)(**{**vars(pack), "loss_rows": rows}))

    for before, after in ((documents(5), documents(3)), ([], documents(4)), (documents(1), [])):
        assert loss_of_mine(before, after).item() == pytest.approx(alone, rel=2e-6)


def test_no_gradient_reaches_a_neighbour(rng, documents):
    """The neighbours' tokens are of another part of the vocabulary: their embeddings stay untouched, exactly."""
    register_attention()
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["llama"]), attn_implementation="distill")
    mine, neighbours = documents(1, low=0, high=48), documents(6, low=48, high=96)
    pack = build_pack([*neighbours[:3], *mine, *neighbours[3:]])
    rows = pack.loss_rows[pack.labels[0, pack.loss_rows] < 48]
    Student(model)(type(pack)(**{**vars(pack), "loss_rows": rows})).backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient[:48].abs().max() > 0 and gradient[48:].abs().max() == 0


def test_only_supervised_tokens_count(model, documents):
    """A prompt's tokens change the loss only through what comes after them: no label is among them."""
    packed = student(model, "distill")
    docs = documents(4)
    pack = build_pack(docs)
    assert pack.supervised == sum(d.supervised for d in docs)
    others = torch.ones(pack.input_ids.numel(), dtype=torch.bool).index_fill_(0, pack.loss_rows, False)
    assert (pack.labels.flatten()[others] == -100).all()
    packed(pack)
    with pytest.raises(ValueError, match="labels: got -100"):  # the loss would not pass over a row that has no label
        packed(type(pack)(**{**vars(pack), "loss_rows": torch.arange(pack.input_ids.numel())}))
