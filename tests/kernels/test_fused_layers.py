"""liger's layers lose at most twice what plain torch loses in the same dtype, against float64; and touch one model only."""

import contextlib
import copy
import importlib
import itertools
from types import MethodType

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from distill.kernels import attention, fused_layers, register_attention
from distill.kernels.attention_tiles import attention_tiles
from distill.kernels.fused_layers import FAMILIES, LAYERS, fuse_layers, unsupported_fusion

triton = pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
import triton.language as tl  # noqa: E402

SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "initializer_range": 0.15,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "llama": LlamaConfig(**SIZES, mlp_bias=True),
    "gemma": GemmaConfig(**SIZES, hidden_act="gelu_pytorch_tanh"),
    "gemma2": Gemma2Config(**SIZES, query_pre_attn_scalar=24),
    "gemma3_text": Gemma3TextConfig(**SIZES, query_pre_attn_scalar=24),
}
# Weights and activations; fp32 weights with bf16 activations are what autocast makes of the norms of queries and keys.
DTYPES = {
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp32": (torch.float32, torch.float32),
    "autocast": (torch.float32, torch.bfloat16),
}


@triton.jit
def rsqrt(x):
    return tl.rsqrt(x)


@triton.jit
def tanh(x):
    e = tl.exp(-2 * tl.abs(x))
    t = (1 - e) / (1 + e)
    return tl.where(x < 0, -t, t)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """liger on a CPU: its two functions of NVIDIA's library, which the interpreter has not, come from Triton's own."""
    monkeypatch.setattr(fused_layers, "DEVICE_TYPES", ("cuda", "cpu"))
    monkeypatch.setattr(importlib.import_module("liger_kernel.ops.rms_norm"), "rsqrt", rsqrt)
    monkeypatch.setattr(importlib.import_module("liger_kernel.ops.geglu"), "tanh", tanh)


def model_of(name, dtype=torch.float32):
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=register_attention(), dtype=dtype)
    with torch.no_grad():
        for module in model.modules():  # weights of norms are all alike at first
            if type(module).__name__.endswith("RMSNorm"):
                module.weight += 0.3 * torch.randn_like(module.weight)
    return model


def exact_copy(model):
    """The model in float64; transformers' own norms would go through fp32."""

    def norm(self, x):
        config, family = model.config, FAMILIES[model.config.model_type]
        return x * (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * (family.offset + self.weight)

    exact = copy.deepcopy(model).double()
    for module in modules_of(exact, "RMSNorm"):
        module.forward = MethodType(norm, module)
    return exact


def fused_copy(model, monkeypatch, layers=LAYERS):
    """The model with these layers fused and no others."""
    fused = copy.deepcopy(model)
    with monkeypatch.context() as context:
        context.setattr(fused_layers, "LAYERS", layers)
        assert len(fuse_layers(fused)) == len(layers)
    return fused


def modules_of(model, suffix):
    name = FAMILIES[model.config.model_type].prefix + suffix
    return [module for module in model.modules() if type(module).__name__ == name]


def error(found, exact):
    """Of several tensors as one vector."""
    difference = sum((a.double() - b).square().sum() for a, b in zip(found, exact, strict=True))
    return (difference / sum(b.square().sum() for b in exact)).sqrt().item()


def check(exact, plain, fused):
    """Each is {what: list of tensors}: liger's error is at most twice plain torch's, up to a few fp32 roundings."""
    for what in exact:
        lost, lost_plain = error(fused[what], exact[what]), error(plain[what], exact[what])
        assert lost <= 2 * lost_plain + 2e-7, f"{what}: {lost:.2e}, plain {lost_plain:.2e}"


def run(module, x, upstream, autocast):
    """Output and gradients in x's dtype."""
    x = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast and x.dtype != torch.float64):
        out = module(x)
    parameters = list(module.parameters())
    d_x, *d_parameters = torch.autograd.grad(out, [x, *parameters], upstream.to(out.dtype))
    results = {"out": [out.detach()], "d_x": [d_x]}
    return results | {f"d_parameter {i}": [d] for i, d in enumerate(d_parameters)}


PARTS = {"norm": "input_layernorm", "norm of queries": "self_attn.q_norm", "gated MLP": "mlp"}


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(
    ("name", "part"),
    [*itertools.product(CONFIGS, ("norm", "gated MLP")), *((n, "norm of queries") for n in ("qwen3", "gemma3_text"))],
)
def test_norms_and_gated_mlps(name, part, dtypes, monkeypatch):
    weights, activations = DTYPES[dtypes]
    plain = model_of(name, weights)
    models = [exact_copy(plain), plain, fused_copy(plain, monkeypatch)]
    exact, plain, fused = (model.model.layers[0].get_submodule(PARTS[part]) for model in models)
    assert "forward" in vars(fused)
    shape = (1, 3, 9, 24) if part == "norm of queries" else (1, 25, 48)
    merged = [{}, {}, {}]
    for _ in range(1 if part == "gated MLP" else 6):  # a norm's weight has few elements to compare errors over
        x = (3 * torch.randn(shape)).to(activations)
        upstream = torch.randn(shape[-1], *shape[1:-1]).to(activations).movedim(0, -1)[None]  # strided
        for result, module, given in ((0, exact, x.double()), (1, plain, x), (2, fused, x)):
            for what, values in run(module, given, upstream, dtypes == "autocast").items():
                merged[result].setdefault(what, []).extend(values)
    check(*merged)


@pytest.mark.long
@pytest.mark.parametrize("name", ["qwen3", "gemma3_text"])
def test_the_norm_of_many_short_rows(name, monkeypatch):
    """liger has other kernels for 32,768 rows and more of up to 256 elements: queries of a long pack."""
    plain = model_of(name, torch.bfloat16)
    models = [exact_copy(plain), plain, fused_copy(plain, monkeypatch)]
    x, upstream = torch.randn(2, 1, 2, 16385, 24).bfloat16()
    given = [(models[0], x.double()), (models[1], x), (models[2], x)]
    norms = [(model.model.layers[0].self_attn.q_norm, x) for model, x in given]
    check(*(run(norm, x, upstream, False) for norm, x in norms))


def packed_arguments(lengths):
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return {
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "use_cache": False,
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def run_packed(model, tokens, lengths, upstream, autocast=False, checkpointing=False, **more):
    """Hidden states and gradients of a pack; those of each kind of parameter together."""
    if checkpointing:
        model.train().gradient_checkpointing_enable()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model.model(input_ids=tokens, **packed_arguments(lengths), **more).last_hidden_state
    model.model.zero_grad()
    out.backward(upstream.to(out.dtype))
    results = {"out": [out.detach()]}
    for parameter, value in model.model.named_parameters():
        results.setdefault(parameter.split(".")[-2], []).append(value.grad)
    return results


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(("name", "layers"), [("qwen2", LAYERS[1:2]), *((name, LAYERS) for name in CONFIGS)])
def test_packed_models(name, layers, dtypes, monkeypatch):
    lengths = [1, 6, 14, 3]
    plain = model_of(name, DTYPES[dtypes][0])
    exact, fused = exact_copy(plain), fused_copy(plain, monkeypatch, layers)
    tokens, upstream = torch.randint(61, (1, 24)), torch.randn(1, 24, 48).to(DTYPES[dtypes][0])
    autocast = dtypes == "autocast"
    check(
        run_packed(exact, tokens, lengths, upstream.double()),
        run_packed(plain, tokens, lengths, upstream, autocast),
        run_packed(fused, tokens, lengths, upstream, autocast),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_equals_documents_alone_under_checkpointing(name, monkeypatch):
    lengths = [5, 1, 8]
    plain = model_of(name)
    fused = fused_copy(plain, monkeypatch)
    tokens, upstream = torch.randint(61, (1, 14)), torch.randn(1, 14, 48)
    packed = run_packed(fused, tokens, lengths, upstream, checkpointing=True)
    alone = [
        run_packed(plain, part, [part.shape[1]], d, False)
        for part, d in zip(tokens.split(lengths, dim=1), upstream.split(lengths, dim=1), strict=True)
    ]
    torch.testing.assert_close(
        packed["out"][0], torch.cat([each["out"][0] for each in alone], dim=1), rtol=0, atol=1e-4
    )
    for kind in alone[0].keys() - {"out"}:
        for i, found in enumerate(packed[kind]):
            expected = sum(each[kind][i] for each in alone)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_only_this_model_changes(monkeypatch):
    def settings(module):
        return {name: value for name, value in vars(module).items() if isinstance(value, type) or callable(value)}

    other = model_of("qwen3")
    modeling = importlib.import_module(type(other).__module__)
    before = settings(modeling)
    model = copy.deepcopy(other)
    names = list(model.state_dict())
    assert fuse_layers(model) == ["5 RMSNorm", "1 rotary embedding", "1 gated MLP"]
    assert settings(modeling) == before and settings(importlib.import_module(type(other).__module__)) == before
    assert all("forward" not in vars(module) for module in other.modules())
    assert list(model.state_dict()) == names
    assert fuse_layers(model) == []  # it is done already
    assert all("forward" not in vars(module) for module in model_of("qwen3").modules())


def test_what_runs_on_a_gpu_is_fused_though_its_weights_are_elsewhere(monkeypatch):
    monkeypatch.setattr(fused_layers, "DEVICE_TYPES", ("cuda",))
    assert fuse_layers(model_of("qwen3")) == []
    assert fuse_layers(model_of("qwen3"), torch.device("cuda", 0)) == ["5 RMSNorm", "1 rotary embedding", "1 gated MLP"]


def test_a_copy_is_fused_and_computes_with_its_own_weights(monkeypatch):
    model = model_of("llama")
    fuse_layers(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.5)
    tokens = torch.randint(61, (1, 6))
    plain = model_of("llama")
    plain.load_state_dict(copied.state_dict())
    found, expected = (m(tokens, **packed_arguments([2, 4])).logits for m in (copied, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# liger's three functions in plain torch, as torch.compile cannot trace interpreted kernels: what is around them is tested.


class PlainRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin):
        ctx.save_for_backward(cos, sin)
        return tuple(x * cos[:, None] + turned(x) * sin[:, None] for x in (q, k))

    @staticmethod
    def backward(ctx, *gradients):
        cos, sin = (x[:, None] for x in ctx.saved_tensors)
        return *(d * cos - turned(d * sin) for d in gradients), None, None


def turned(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class PlainNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps, offset, casting, in_place, row_mode):
        scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x * scale, scale, weight + offset)
        return x * scale * (weight + offset)

    @staticmethod
    def backward(ctx, gradient):
        normed, scale, weight = ctx.saved_tensors
        d = gradient * weight
        d_x = scale * (d - normed * (d * normed).mean(-1, keepdim=True))
        return d_x, (gradient * normed).flatten(0, -2).sum(0), *[None] * 5


class PlainGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx, gradient):
        gate, up = ctx.saved_tensors
        sigmoid = gate.sigmoid()
        return gradient * up * sigmoid * (1 + gate * (1 - sigmoid)), gradient * gate * sigmoid


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of rows behind a document, which are dropped
def test_layers_are_compiled_once_for_all_of_them_and_all_packs(monkeypatch):
    for file, name, plain in (
        ("rope", "LigerRopeFunction", PlainRope),
        ("rms_norm", "LigerRMSNormFunction", PlainNorm),
        ("swiglu", "LigerSiLUMulFunction", PlainGate),
    ):
        monkeypatch.setattr(importlib.import_module(f"liger_kernel.ops.{file}"), name, plain)
    monkeypatch.setattr(attention, "choose_attention", lambda *_, **__: "triton")  # what a GPU runs packs with
    config = Qwen3Config(**(SIZES | {"num_hidden_layers": 3}))
    plain = AutoModelForCausalLM.from_config(config, attn_implementation=register_attention(), dtype=torch.float32)
    compiled = copy.deepcopy(plain)
    assert fuse_layers(compiled) == ["13 RMSNorm", "3 rotary embedding", "3 gated MLP"]
    counter = CompileCounterWithBackend("aot_eager")
    for layer in compiled.model.layers:
        layer.compile(fullgraph=True, backend=counter)
    for lengths in ([100, 40], [5, 2, 140], [150]):
        tokens, upstream = torch.randint(61, (1, sum(lengths))), torch.randn(1, sum(lengths), 48)
        tiles = attention_tiles(packed_arguments(lengths)["cu_seq_lens_q"], sum(lengths), max(lengths))
        found, expected = (run_packed(model, tokens, lengths, upstream, plan=tiles) for model in (compiled, plain))
        for kind, values in expected.items():
            for a, b in zip(found[kind], values, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item() + 1e-7)
    assert counter.frame_count <= 2


def test_the_rotary_kernel_is_launched_on_the_gpu_of_its_tensors(monkeypatch):
    """liger launches it on the current one; tensors of another would be read through a stream that does not wait."""
    current = [torch.device("cuda:0")]

    @contextlib.contextmanager
    def device(other):
        current.append(other)
        yield
        current.pop()

    class Rope:
        @staticmethod
        def apply(*_):
            return current[-1]

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(importlib.import_module("liger_kernel.ops.rope"), "LigerRopeFunction", Rope)
    model = model_of("qwen2")
    fuse_layers(model)
    rotate = model.model.layers[0].self_attn.forward.__func__.__globals__[fused_layers.ROTARY]
    with FakeTensorMode():
        q = torch.empty(1, 2, 3, 4, device="cuda:1")
    assert rotate(q, q, q, q) == torch.device("cuda:1") and current == [torch.device("cuda:0")]


def test_upstream_gradients_are_not_written_to(monkeypatch):
    model = model_of("gemma2")
    fuse_layers(model)
    for module in (model.model.norm, model.model.layers[0].mlp):
        x, upstream = torch.randn(2, 1, 9, 48)
        given = upstream.clone()
        module(x.requires_grad_()).backward(upstream)
        assert torch.equal(upstream, given)


def test_a_second_backward_raises_rather_than_being_wrong():
    model = model_of("qwen2")
    fuse_layers(model)
    out = model.model.layers[0].mlp(torch.randn(1, 5, 48, requires_grad=True)).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward"):
        out.backward()


def test_reasons(monkeypatch):
    relu = LlamaConfig(**SIZES, hidden_act="relu")
    assert "relu" in unsupported_fusion("gated MLP", relu, "cuda")
    assert unsupported_fusion("RMSNorm", relu, "cuda") is None
    assert fuse_layers(AutoModelForCausalLM.from_config(relu)) == ["3 RMSNorm", "1 rotary embedding"]
    assert "not on mps" in unsupported_fusion("RMSNorm", relu, "mps")
    with pytest.raises(ValueError, match="layer: got 'norm'"):
        unsupported_fusion("norm", relu, "cuda")
    relu.model_type = "phi3"
    assert "phi3" in unsupported_fusion("RMSNorm", relu, "cuda")
    for found, reason in (("0.5.10", "0.5.10 is installed, 0.8 or newer"), (None, "not installed")):
        monkeypatch.setattr(fused_layers, "_liger_version", lambda found=found: found)
        assert reason in unsupported_fusion("RMSNorm", CONFIGS["qwen2"], "cuda")


def test_nothing_is_fused_on_a_cpu(monkeypatch):
    monkeypatch.setattr(fused_layers, "DEVICE_TYPES", ("cuda",))
    model = model_of("qwen2")
    assert fuse_layers(model) == []
    assert "not on cpu" in unsupported_fusion("RMSNorm", model.config, "cpu")
    assert all("forward" not in vars(module) for module in model.modules())


def test_an_attention_that_rotates_otherwise_is_left_alone():
    model = model_of("qwen2")

    class Qwen2Attention(type(model.model.layers[0].self_attn)):
        def forward(self, hidden_states, **kwargs):
            return hidden_states, None

    model.model.layers[0].self_attn.__class__ = Qwen2Attention
    assert fuse_layers(model) == ["3 RMSNorm", "1 gated MLP"]
