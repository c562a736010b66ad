"""varlen_attention against per-document eager attention in float64."""

import itertools
import sys
import types

import pytest
import torch

from distill.kernels import attention, attention_plan, choose_attention, doctor, reference, varlen_attention
from distill.kernels.attention_tiles import attention_tiles
from distill.kernels.padded_attention import MAX_PLAIN_LENGTH


def packed(lengths, heads, kv_heads, head_dim=8, dtype=torch.float64):
    total = sum(lengths)
    q = torch.randn(total, heads, head_dim, dtype=torch.float64).to(dtype).requires_grad_()
    k, v = (torch.randn(total, kv_heads, head_dim, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(2))
    return q, k, v, torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


LENGTHS = {
    "one token": [1],
    "one document": [37],
    "tokens alone": [1] * 300,
    "mixed": [5, 1, 40, 1, 9, 64, 2],
    "many": torch.randint(1, 60, (60,)).tolist(),
    "one long": [150, 3, 1, 8],
}


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_matches_reference(name, implementation):
    for (heads, kv_heads), window, softcap in itertools.product([(2, 2), (6, 2), (3, 1)], [None, 1, 7], [None, 2.0]):
        q, k, v, cu_seqlens = packed(LENGTHS[name], heads, kv_heads)
        longest = max(LENGTHS[name])
        scale = float(torch.rand(())) + 0.1
        options = {"scale": scale, "window": window, "softcap": softcap}
        found = varlen_attention(q, k, v, cu_seqlens, longest, implementation=implementation, **options)
        # The reference on one document at a time, so that it cannot mix them either.
        bounds = cu_seqlens.tolist()
        parts = [
            reference.varlen_attention(q[a:b], k[a:b], v[a:b], torch.tensor([0, b - a]), **options)
            for a, b in itertools.pairwise(bounds)
        ]
        expected = torch.cat(parts)
        torch.testing.assert_close(found, expected)
        upstream = torch.randn_like(expected).transpose(0, 1).contiguous().transpose(0, 1)  # strided
        gradients = torch.autograd.grad(found, (q, k, v), upstream)
        for a, b in zip(gradients, torch.autograd.grad(expected, (q, k, v), upstream), strict=True):
            torch.testing.assert_close(a, b)


def relative_error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("lengths", [[40, 3, 25, 33] * 5, [MAX_PLAIN_LENGTH + 1, 7]], ids=["short", "long"])
def test_error_is_at_most_twice_eager_in_the_same_dtype(dtype, softcap, window, lengths):
    q, k, v, cu_seqlens = packed(lengths, 4, 2, head_dim=32, dtype=dtype)
    upstream = torch.randn(sum(lengths), 4, 32).to(dtype)
    options = {"window": window, "softcap": softcap}

    def run(function, *tensors):
        out = function(*tensors)
        return [out.detach(), *torch.autograd.grad(out, tensors, upstream.to(out.dtype))]

    found = run(lambda *x: varlen_attention(*x, cu_seqlens, max(lengths), **options), q, k, v)
    plain = run(lambda *x: reference.varlen_attention(*x, cu_seqlens, **options), q, k, v)
    exact_inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = run(lambda *x: reference.varlen_attention(*x, cu_seqlens, **options), *exact_inputs)
    for a, b, c in zip(found, plain, exact, strict=True):
        assert a.dtype == dtype
        assert relative_error(a, c) <= 2 * relative_error(b, c) + 1e-7


def test_documents_do_not_see_each_other():
    lengths = [9, 30, 31, 4]
    q, k, v, cu_seqlens = packed(lengths, 2, 2, dtype=torch.float32)
    q, k, v = (x.detach() for x in (q, k, v))
    before = varlen_attention(q, k, v, cu_seqlens, 31)
    other = slice(9, 39)
    for x in (q, k, v):
        x[other] = torch.randn_like(x[other]) * 100
    k[other][3] = float("nan")
    after = varlen_attention(q, k, v, cu_seqlens, 31)
    for a, b in itertools.pairwise(cu_seqlens.tolist()):
        assert torch.equal(before[a:b], after[a:b]) == ((a, b) != (9, 39))


def test_a_query_sees_no_later_key_and_window_keys_in_all():
    q, k, v, cu_seqlens = packed([20], 1, 1)
    out = varlen_attention(q, k, v, cu_seqlens, 20, window=4)
    (d_v,) = torch.autograd.grad(out[12].sum(), v)
    assert d_v.abs().sum((1, 2)).nonzero().flatten().tolist() == [9, 10, 11, 12]


def test_a_plan_is_shared_and_gives_the_same_bits():
    lengths = LENGTHS["many"]
    q, k, v, cu_seqlens = packed(lengths, 2, 1, dtype=torch.bfloat16)
    plan = attention_plan(cu_seqlens)
    padded = sum(group.documents * group.length**2 for group in plan.groups)
    assert padded < 2 * sum(n * n for n in lengths) and len(plan.groups) < 8
    expected = varlen_attention(q, k, v, cu_seqlens, max(lengths))
    for _ in range(2):
        assert torch.equal(varlen_attention(q, k, v, cu_seqlens, max(lengths), plan=plan), expected)


@pytest.mark.parametrize("make", [attention_plan, lambda bounds: attention_tiles(bounds, 14, 9)])
def test_a_plan_of_other_documents_is_refused(make, monkeypatch):
    """As many documents, tokens and the longest alike, and yet other bounds: the documents would mix."""
    monkeypatch.setattr(attention, "unsupported_attention", lambda *_, **__: None)
    q, k, v, cu_seqlens = packed([5, 9], 2, 1)
    implementation = "sdpa" if make is attention_plan else "triton"
    for other in ([0, 9, 14], [0, 5, 6, 14], [0, 14]):
        with pytest.raises(ValueError, match="plan: got one of"):
            plan = make(torch.tensor(other))
            varlen_attention(q, k, v, cu_seqlens, 14, plan=plan, implementation=implementation)


def test_a_plan_serves_evaluation_and_training():
    q, k, v, cu_seqlens = packed([5, 20], 2, 2)
    plan = attention_plan(cu_seqlens)
    for options in ({"window": 3}, {"softcap": 2.0}):
        with torch.inference_mode():
            found = varlen_attention(q, k, v, cu_seqlens, 20, plan=plan, **options)
        out = varlen_attention(q, k, v, cu_seqlens.clone(), 20, plan=plan, **options)
        out.sum().backward()
        assert torch.equal(found, out)


def test_autocast_lowers_as_torch_does():
    q, k, v, cu_seqlens = packed([5, 20], 2, 2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = varlen_attention(q, k, v, cu_seqlens, 20)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, varlen_attention(*(x.bfloat16() for x in (q, k, v)), cu_seqlens, 20))
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_backward_twice():
    q, k, v, cu_seqlens = packed([5, 20, 3], 2, 2)
    out = varlen_attention(q, k, v, cu_seqlens, 20).square().sum()
    first = torch.autograd.grad(out, (q, k, v), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(out, (q, k, v))))


ALL = {"flash-attn-3", "flash-attn-4", "flash-attn", "triton"}
BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("case", "installed", "expected"),
    [
        (("cpu", BF16, 64, {}), ALL, "sdpa"),
        (("cpu", torch.float64, 64, {}), ALL, "sdpa"),
        (("cuda", BF16, 128, {}), ALL, "flash-attn-3"),
        (("cuda", BF16, 128, {"softcap": 30.0}), ALL, "flash-attn-3"),
        (("cuda", BF16, 128, {"capability": (10, 0)}), ALL, "flash-attn-4"),
        (("cuda", BF16, 128, {"capability": (10, 0), "softcap": 30.0}), ALL, "flash-attn"),
        (("cuda", BF16, 256, {"capability": (10, 0)}), ALL, "flash-attn"),
        (("cuda", BF16, 256, {"deterministic": True}), ALL, "flash-attn"),
        (("cuda", BF16, 128, {"capability": (8, 0)}), ALL, "flash-attn"),
        (("cuda", BF16, 128, {}), {"triton"}, "torch-varlen"),
        (("cuda", BF16, 128, {"softcap": 30.0}), {"triton"}, "triton"),
        (("cuda", BF16, 128, {"deterministic": True}), {"triton"}, "triton"),
        (("cuda", BF16, 12, {}), ALL, "triton"),
        (("cuda", FP32, 64, {}), ALL, "triton"),
        (("cuda", FP32, 64, {}), set(), "sdpa"),
        (("cuda", FP32, 64, {"deterministic": True}), set(), "eager"),
        (("cuda", FP32, 512, {}), ALL, "sdpa"),
        (("cuda", torch.float64, 64, {}), ALL, "sdpa"),
        (("cuda", BF16, 64, {"capability": (7, 5)}), ALL, "sdpa"),
    ],
)
def test_choice(monkeypatch, case, installed, expected):
    names = {
        ("flash_attn_interface", ""): "flash-attn-3",
        ("flash_attn", "cute/interface.py"): "flash-attn-4",
        ("flash_attn", "flash_attn_interface.py"): "flash-attn",
        ("triton", ""): "triton",
    }
    monkeypatch.setattr(attention, "_is_installed", lambda package, file="": names[package, file] in installed)
    monkeypatch.setattr(attention, "_torch_varlen_parameters", lambda: frozenset({"window_size"}))
    device_type, dtype, head_dim, options = case
    options = {"capability": (9, 0)} | options
    assert choose_attention(device_type, dtype, head_dim, **options) == expected
    for name in attention.IMPLEMENTATIONS[: attention.IMPLEMENTATIONS.index(expected)]:
        assert attention.unsupported_attention(name, device_type, dtype, head_dim, **options)


def test_a_package_is_told_from_a_part_of_it(tmp_path, monkeypatch):
    """FlashAttention 4 alone has a package flash_attn too, without FlashAttention 2 in it."""
    (tmp_path / "flash_attn_of_a_test" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn_of_a_test" / "cute" / "interface.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert attention._is_installed("flash_attn_of_a_test", "cute/interface.py")
    assert not attention._is_installed("flash_attn_of_a_test", "flash_attn_interface.py")
    assert not attention._is_installed("no_such_package_at_all")


@pytest.mark.parametrize(
    ("name", "module", "left", "returns_lse"),
    [
        ("flash-attn-3", "flash_attn_interface", {None: -1, 5: 4}, False),
        ("flash-attn-3", "flash_attn_interface", {None: -1, 5: 4}, True),  # as older versions do
        ("flash-attn-4", "flash_attn.cute", {None: None, 5: 4}, True),
        ("flash-attn", "flash_attn", {None: -1, 5: 4}, False),
    ],
)
def test_flash_attn_is_called_as_it_documents(monkeypatch, name, module, left, returns_lse):
    calls = []

    def flash_attn_varlen_func(q, k, v, **options):
        calls.append(options)
        return (q, None) if returns_lse else q

    for part in ("flash_attn", module):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    sys.modules[module].flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setattr(attention, "unsupported_attention", lambda *_, **__: None)
    q, k, v, cu_seqlens = packed([3, 2], 2, 1, dtype=torch.bfloat16)
    for window in (None, 5):
        found = varlen_attention(
            q,
            k,
            v,
            cu_seqlens.long(),
            3,
            window=window,
            scale=0.5,
            softcap=2.0,
            deterministic=True,
            implementation=name,
        )
        assert found is q
        options = calls.pop()
        for bounds in (options.pop("cu_seqlens_q"), options.pop("cu_seqlens_k")):
            assert bounds.dtype == torch.int32 and bounds.tolist() == [0, 3, 5]
        assert options == {
            "max_seqlen_q": 3,
            "max_seqlen_k": 3,
            "softmax_scale": 0.5,
            "causal": True,
            "window_size": (left[window], 0),
            "softcap": 2.0,
            "deterministic": True,
        }


@pytest.mark.parametrize(
    ("parameters", "hip", "asked"),
    [
        ({"window_size"}, None, {}),
        ({"window_size", "enable_gqa"}, None, {"enable_gqa": True}),
        ({"window_size", "enable_gqa", "num_splits"}, None, {"enable_gqa": True, "num_splits": 1}),
        ({"window_size", "enable_gqa", "num_splits"}, "6.4", {"enable_gqa": True}),  # AMD's refuses num_splits
    ],
)
def test_torch_varlen_is_called_as_its_version_documents(monkeypatch, parameters, hip, asked):
    calls = []

    def varlen_attn(q, k, v, *numbers, **options):
        assert all(x.stride(-1) == 1 for x in (q, k, v))  # what FlashAttention 2 takes
        assert k.shape[1] == 1  # it shares keys itself: a copy for each query head is memory for nothing
        calls.append((numbers, options))
        return q

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    monkeypatch.setattr("torch.version.hip", hip)
    monkeypatch.setattr(attention, "_torch_varlen_parameters", lambda: frozenset(parameters))
    monkeypatch.setattr(attention, "unsupported_attention", lambda *_, **__: None)
    q, k, v, cu_seqlens = packed([3, 2], 2, 1, dtype=torch.bfloat16)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    for window, left in ((None, -1), (1, 0), (5, 4)):
        varlen_attention(q, k, v, cu_seqlens.long(), 3, window=window, scale=0.5, implementation="torch-varlen")
        (bounds, bounds_of_keys, *lengths), options = calls.pop()
        assert (
            bounds.dtype == bounds_of_keys.dtype == torch.int32 and bounds.tolist() == [0, 3, 5] and lengths == [3, 3]
        )
        # The tuple (-1, 0), and no list, is what makes it causal.
        assert options == {"scale": 0.5, "window_size": (left, 0), **asked}


def test_doctor_says_why_not_a_better_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(attention, "_is_installed", lambda package, file="": package == "triton")
    found = doctor.describe()["varlen_attention"]
    assert found["cuda float32"].startswith(
        "triton (not flash-attn-3: it takes float16 and bfloat16, not torch.float32; not flash-attn-4"
    )
    assert found["cpu float32"] == "sdpa"


def test_a_plan_checks_what_it_is_told():
    cu_seqlens = torch.tensor([0, 3, 7])
    attention_plan(cu_seqlens, 7, 4)
    with pytest.raises(ValueError, match="cu_seqlens: got 7 last, takes T = 8"):
        attention_plan(cu_seqlens, 8, 4)
    with pytest.raises(ValueError, match="max_seqlen: got 3"):
        attention_plan(cu_seqlens, 7, 3)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"cu_seqlens": torch.tensor([0, 3, 2, 6])}, "cu_seqlens: got 2 after 3"),
        ({"cu_seqlens": torch.tensor([0, 3, 3, 6])}, "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([1, 3, 6])}, "cu_seqlens: got 1 first"),
        ({"cu_seqlens": torch.tensor([0, 3, 5])}, "cu_seqlens: got 5 last, takes T = 6"),
        ({"cu_seqlens": torch.tensor([0.0, 6.0])}, "cu_seqlens"),
        ({"cu_seqlens": torch.tensor([0])}, "cu_seqlens"),
        ({"max_seqlen": 2}, "max_seqlen: got 2"),
        ({"q": torch.zeros(6, 3, 8)}, "q: got 3 heads"),
        ({"q": torch.zeros(6, 32)}, "q"),
        ({"k": torch.zeros(5, 2, 8)}, "k"),
        ({"v": torch.zeros(6, 2, 8, dtype=torch.float64)}, "v"),
        ({"v": torch.zeros(6, 1, 8)}, "v"),
        ({"scale": -1.0}, "scale"),
        ({"window": 0}, "window"),
        ({"softcap": 0.0}, "softcap"),
        ({"implementation": "fast"}, "implementation"),
        ({"implementation": "flash-attn"}, "implementation.*cuda"),
        ({"implementation": "torch-varlen"}, "implementation.*cuda"),
        ({"implementation": "triton"}, "implementation.*cuda"),
        ({"cu_seqlens": torch.tensor([0, 3, 6], device="meta")}, "cu_seqlens: got a tensor on meta"),
        ({"implementation": "eager", "cu_seqlens": torch.tensor([0, 5])}, "cu_seqlens"),
        ({"plan": attention_plan(torch.tensor([0, 5]))}, "cu_seqlens"),
    ],
)
def test_bad_arguments_are_named(change, names):
    arguments = {
        "q": torch.zeros(6, 4, 8),
        "k": torch.zeros(6, 2, 8),
        "v": torch.zeros(6, 2, 8),
        "cu_seqlens": torch.tensor([0, 3, 6]),
        "max_seqlen": 3,
    }
    with pytest.raises(ValueError, match=names):
        varlen_attention(**(arguments | change))
