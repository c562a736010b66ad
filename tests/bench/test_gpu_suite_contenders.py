"""What the GPU suite calls only on a GPU, as far as a CPU can tell, and that no contender is in another's way."""

import math
import secrets
import weakref
from dataclasses import replace
from inspect import signature
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch

from distill.bench import attention_peers, gpu_training, gpu_tuning, loss_peers, rounds
from distill.bench.documents import Documents
from distill.bench.gpu_pieces import Context, GpuSuiteSettings
from distill.bench.rounds import Clock
from distill.flops import ModelShape
from distill.packing.pack import Document, build_pack

SEED = secrets.randbits(31)
CPU = torch.device("cpu")


@pytest.fixture
def training():
    rng = np.random.default_rng(SEED)
    documents = [Document(rng.integers(0, 300, n, dtype=np.int32), 1 + n // 3) for n in (20, 5, 33)]
    shape = ModelShape(layers=2, hidden=32, heads=2, kv_heads=1, head_dim=16, intermediate=48, vocab=300)
    return gpu_training._Training(shape, build_pack(documents), CPU)


def test_the_step_is_that_of_distill_train(training):
    from distill.training.student import Student

    student = Student(training.model)
    results = []
    for losses in (lambda: training.losses(gpu_training._our_loss), lambda: student(training.pack)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = losses()
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in training.model.parameters())])
        training.model.zero_grad()
    assert all(map(torch.equal, *results)), f"seed {SEED}"
    with torch.autocast("cpu", torch.bfloat16):
        plain = training.losses(gpu_training._plain_loss)
    assert plain.item() == pytest.approx(results[0][0].item(), rel=1e-2)


def test_a_step_that_fails_leaves_no_gradients_to_the_next(training, monkeypatch):
    def out_of_memory():
        assert all(p.grad is not None for p in training.model.parameters())
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.optimizer, "step", out_of_memory)
    found = rounds.take_turns({"large": training.step("plain", "loop")}, Clock(CPU), rounds=(1, 1), seconds=0.0)
    assert found == {"large": {"error": "out of memory"}}
    assert all(p.grad is None for p in training.model.parameters())


def test_results_of_one_call_are_given_back_before_the_next():
    class Result:
        pass

    held = weakref.WeakSet()

    def call():
        assert not held, "the last call's results are still there"
        result = Result()
        held.add(result)
        return result

    found = rounds.take_turns({"one": call, "other": call}, Clock(CPU), rounds=(2, 2), seconds=0.0)
    assert all("seconds" in entry for entry in found.values()), found


def test_torch_compile_knows_width_and_vocabulary_whatever_came_before(monkeypatch):
    """By itself torch makes dynamic what differs from the first head, and the peer slower than it has to be."""
    shapes = []

    def backend(graph, inputs):
        nodes = [n.meta["example_value"] for n in graph.graph.nodes if n.op == "placeholder"]
        shapes.append({tuple(type(s) is int for s in x.shape) for x in nodes if getattr(x, "ndim", 0) == 2})
        return graph.forward

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled(f, backend=backend, **options))
    torch._dynamo.reset()
    for width, vocabulary in ((16, 60), (24, 60), (32, 64)):
        for rows in (8, 6, 12):
            loss = loss_peers.LOSSES["torch.compile"].load()
            x = torch.randn(rows, width, requires_grad=True)
            weight, labels = torch.randn(vocabulary, width), torch.randint(vocabulary, (rows,))
            labels[::3] = loss_peers.IGNORE
            assert loss(x, weight, labels).item() == pytest.approx(loss_peers.eager_loss(x, weight, labels).item())
    torch._dynamo.reset()
    assert shapes == [{(False, True), (True, True)}] * 3  # one compilation a head: only the rows are dynamic


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_and_padding_attend_as_a_loop_over_documents(monkeypatch):
    """FlexAttention without its compiler, which is the same function."""
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    generator = torch.Generator().manual_seed(SEED)
    lengths = [1, 40, 3, 129, 64]
    q, k, v = (torch.randn(sum(lengths), heads, 16, generator=generator) for heads in (4, 2, 2))
    documents = Documents.of(lengths, CPU)
    expected = attention_peers.document_loop()(documents)(q, k, v)
    for name in ("FlexAttention", "SDPA padded"):
        found = attention_peers.attentions()[name].load()(documents)(q, k, v)
        assert torch.allclose(found, expected, atol=1e-5), name


@pytest.mark.parametrize("tokens", GpuSuiteSettings().tokens)
def test_ligers_large_chunks_are_as_large_as_they_are_called(tokens, monkeypatch):
    """By the rule of its documentation, for every head that is measured."""
    given = []
    monkeypatch.setattr(loss_peers, "_liger", lambda: lambda *inputs, **options: given.append(options))
    for _, hidden, vocabulary in GpuSuiteSettings().heads:
        inputs = (torch.empty(tokens, hidden, device="meta"), torch.empty(vocabulary, hidden, device="meta"))
        loss_peers._liger_large_chunks()(*inputs, torch.empty(tokens, device="meta"))
        chunks = math.ceil(vocabulary / (given[-1]["chunk_mem_const"] * hidden))
        assert 2 ** math.ceil(math.log2(math.ceil(tokens / chunks))) == 4096, (hidden, tokens)


def test_liger_takes_what_it_is_given():
    functional = pytest.importorskip("liger_kernel.transformers.functional")
    parameters = signature(functional.liger_fused_linear_cross_entropy).parameters
    assert list(parameters)[:3] == ["input", "weight", "target"] and {"chunk_mem_const", "accum_dtype"} < set(
        parameters
    )


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """A context on the CPU whose `compare` calls everybody once, as on a GPU of compute capability 9.0."""
    settings = GpuSuiteSettings(
        device="cpu",
        heads=(("tiny", 16, 80),),
        attention_tokens=64,
        attention_heads=((16, 4, 2),),
        log_normal_mean=20.0,
    )
    monkeypatch.setattr(gpu_tuning, "_reason_not", lambda context: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    context = Context(replace(settings, seed=SEED), Clock(CPU))
    monkeypatch.setattr(Context, "compare", lambda self, calls: {name: call() for name, call in calls.items()})
    return context


def test_candidates_are_called_as_the_kernels_are_defined(as_on_a_gpu, monkeypatch):
    from distill.kernels import attention_configurations, triton_attention, vocabulary_gemm, vocabulary_tiles

    monkeypatch.setattr(gpu_tuning, "_CHUNK_ROWS", 32)
    product = create_autospec(vocabulary_gemm.exp_logits)
    monkeypatch.setattr(vocabulary_gemm, "exp_logits", product)
    attention = create_autospec(
        triton_attention.triton_attention, side_effect=lambda q, k, v, tiles, **_: q + k.mean() + v.mean()
    )
    monkeypatch.setattr(triton_attention, "triton_attention", attention)
    first, second = gpu_tuning.tuning_pieces(as_on_a_gpu.settings)
    assert (
        len(first.run(as_on_a_gpu)["contenders"])
        == 1 + product.call_count
        == 1 + len(vocabulary_tiles.CONFIGS["sm_90"])
    )
    configs = [call.kwargs["config"] for call in product.call_args_list]
    assert configs == list(vocabulary_tiles.CONFIGS["sm_90"])
    found = second.run(as_on_a_gpu)["contenders"]
    blocks = {call.kwargs["blocks"] for call in attention.call_args_list}
    # The configuration that is chosen, and one kernel of it exchanged for each candidate.
    assert len(found) - 1 == len(blocks) > 10
    chosen = attention_configurations.configuration(90, 16, torch.bfloat16, False)
    for configuration in blocks:
        assert sum(one != other for one, other in zip(configuration, chosen, strict=True)) <= 1
