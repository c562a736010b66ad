"""varlen_attention against per-document eager attention in float64."""

import itertools

import pytest
import torch

from distill.kernels import attention_plan, choose_attention, reference, varlen_attention
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


@pytest.mark.parametrize(
    ("device_type", "dtype", "head_dim", "softcap", "expected"),
    [
        ("cpu", torch.bfloat16, 64, None, {"sdpa"}),
        ("cuda", torch.float32, 64, None, {"sdpa"}),
        ("cuda", torch.bfloat16, 12, None, {"sdpa"}),
        ("cuda", torch.bfloat16, 128, None, {"flash-attn", "torch-varlen"}),
        ("cuda", torch.bfloat16, 128, 30.0, {"flash-attn", "sdpa"}),
    ],
)
def test_choice(device_type, dtype, head_dim, softcap, expected):
    assert choose_attention(device_type, dtype, head_dim, softcap=softcap) in expected


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
