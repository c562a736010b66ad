"""The linear losses as operators: what torch demands of one, torch.compile, and what is asked of a device."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

from distill.kernels import linear_cross_entropy, linear_loss, linear_loss_ops, linear_topk_divergence, reference
from distill.kernels.cross_entropy import linear_cross_entropy_sum
from distill.kernels.linear_loss_ops import linear_gradients, linear_statistics, scaled_gradient
from distill.kernels.topk_divergence import linear_topk_divergence_sum


def head(rows=9, width=6, vocabulary=13, dtype=torch.float32, requires_grad=(True, True, True)):
    hidden, weight = torch.randn(rows, width), torch.randn(vocabulary, width)
    tensors = (hidden, weight, torch.randn(vocabulary))
    return [x.to(dtype).requires_grad_(need) for x, need in zip(tensors, requires_grad, strict=True)]


def teacher(rows, vocabulary, k=4):
    logprobs, ids = torch.randn(rows, vocabulary).log_softmax(-1).topk(k)
    return ids, logprobs


FROZEN = [(True, True, True), (False, True, False), (True, False, True)]


@pytest.mark.parametrize("requires_grad", FROZEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_the_fused_losses(requires_grad, dtype):
    hidden, weight, bias = head(requires_grad=requires_grad, dtype=dtype)
    labels = torch.randint(13, (9,))
    kept = torch.rand(9) < 0.7
    weights = torch.rand(9)
    needs = list(requires_grad)
    for stats in (False, True):
        arguments = (hidden, weight, bias, labels, kept, weights, 0.1, 0.1, 2.0, dtype, needs, stats, 60)
        torch.library.opcheck(linear_cross_entropy_sum, arguments)
    ids, logprobs = teacher(9, 13)
    ids = torch.cat([ids, labels[:, None]], 1)
    arguments = (hidden, weight, bias, ids, logprobs, kept, None, "jsd", 0.3, 0.8, 0.5, None, dtype, needs, None)
    torch.library.opcheck(linear_topk_divergence_sum, arguments)


@pytest.mark.parametrize("requires_grad", FROZEN)
def test_opcheck_of_the_statistics(requires_grad):
    hidden, weight, bias = head(requires_grad=requires_grad)
    ids = torch.randint(-1, 13, (9, 3))
    kept = torch.rand(9) < 0.7
    for mean, argmax in ((False, False), (True, True)):
        arguments = (hidden, weight, bias, ids, kept, 2.0, 0.7, torch.float32, mean, argmax, None)
        torch.library.opcheck(linear_statistics, arguments)
    hidden, weight, bias = (x.detach() for x in (hidden, weight, bias))
    arguments = (
        hidden,
        weight,
        bias,
        ids,
        kept,
        torch.randn(9),
        torch.randn(9, 3),
        torch.randn(9),
        None,
        torch.randn(9),
    )
    torch.library.opcheck(linear_gradients, (*arguments, None, 1.0, torch.float32, list(requires_grad), 100))


def test_opcheck_of_hidden_in_columns():
    """The gradients are laid out as the compiler was told, whatever the layout of hidden and weight."""
    hidden, weight = (torch.randn(6, rows).t().requires_grad_() for rows in (9, 13))
    labels = torch.randint(13, (9,))
    arguments = (hidden, weight, None, labels, None, None, 0.0, 0.0, None, torch.float32, [True, True, False])
    torch.library.opcheck(linear_cross_entropy_sum, (*arguments, False, None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(0, 5), (700, 3), (900,)])
def test_scaled_gradients_are_rounded_once(dtype, shape, monkeypatch):
    monkeypatch.setattr(linear_loss_ops, "block_rows", lambda *_: 64)
    for saved in (torch.randn(shape), torch.randn(shape).bfloat16()):
        factor = torch.rand(())
        before = saved.clone()
        found = scaled_gradient(saved, factor, dtype)
        assert found.dtype == dtype and torch.equal(saved, before)
        exact = saved.double() * factor.double()
        assert ((found.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps * 0.51).all()


def test_compiled_once_for_any_number_of_rows():
    weight = torch.randn(13, 6, requires_grad=True)

    def function(hidden, labels):
        none = linear_cross_entropy(hidden, weight, labels, reduction="none", ignore_index=None)
        return linear_cross_entropy(hidden, weight, labels) + none.mean()

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for number, rows in enumerate((9, 5, 30, 17)):
        hidden, labels = torch.randn(rows, 6, requires_grad=True), torch.randint(13, (rows,))
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            loss = compiled(hidden, labels)
        expected = function(hidden, labels)
        torch.testing.assert_close(loss, expected)
        inputs = (hidden, weight)
        torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs))


def test_computes_on_the_device_of_the_tensors(monkeypatch):
    """Triton launches on the current device, which may be another GPU."""
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(entered.append(device)))
    with linear_loss.computing_on(torch.device("cuda", 1)), linear_loss.computing_on(torch.device("cpu")):
        pass
    assert entered == [torch.device("cuda", 1)]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_as_one_graph(reduction, autocast):
    hidden, weight, bias = head()
    labels = torch.randint(13, (9,))
    labels[2:4] = -100
    ids, logprobs = teacher(9, 13)

    def function(hidden, weight, bias):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            first, stats = linear_cross_entropy(
                hidden.tanh(), weight, labels, bias=bias, reduction=reduction, z_loss=0.1, return_stats=True
            )
            second = linear_topk_divergence(
                hidden.tanh(), weight, ids, logprobs, labels=labels, ce_weight=0.5, reduction=reduction
            )
        return (first + second).sum(), stats

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    (loss, stats), (expected, expected_stats) = compiled(hidden, weight, bias), function(hidden, weight, bias)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(stats, expected_stats, strict=True):
        torch.testing.assert_close(a, b)
    found = torch.autograd.grad(loss, (hidden, weight, bias))
    for a, b in zip(found, torch.autograd.grad(expected, (hidden, weight, bias)), strict=True):
        torch.testing.assert_close(a, b)


def test_no_index_says_that_every_row_counts():
    hidden, weight, _ = head()
    labels = torch.randint(13, (9,))
    for reduction in ("mean", "none"):
        loss = linear_cross_entropy(hidden, weight, labels, ignore_index=None, reduction=reduction)
        torch.testing.assert_close(loss, linear_cross_entropy(hidden, weight, labels, reduction=reduction))
    with pytest.raises(ValueError, match="labels: got -100, takes 0 to 12"):
        linear_cross_entropy(hidden, weight, torch.full((9,), -100), ignore_index=None)


def test_statistics_are_a_primitive_for_any_loss():
    """Entropy-regularised or focal losses, say: ordinary functions of lse and z, with duplicates among the ids."""
    hidden, weight, bias = head(dtype=torch.float64)
    ids = torch.randint(-1, 13, (9, 5))
    ids[:, 3] = ids[:, 0]
    lse, z, mean, argmax = linear_statistics(hidden, weight, bias, ids, None, 3.0, 0.7, torch.float64, True, True, 250)
    logits = 3.0 * torch.tanh(F.linear(hidden, weight, bias) / 3.0) / 0.7
    expected_z = torch.where(ids >= 0, logits.gather(1, ids.clamp_min(0)), 0.0)
    assert torch.equal(argmax, logits.argmax(1))

    def loss(lse, z, mean):
        return ((lse - z[:, 0]).square() + (z * torch.arange(5)).sin().sum(1) + mean * lse).sum()

    inputs = (hidden, weight, bias)
    found, expected = loss(lse, z, mean), loss(logits.logsumexp(1), expected_z, logits.mean(1))
    torch.testing.assert_close(found, expected)
    for a, b in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_a_row_whose_factor_is_nearly_nothing_keeps_its_label_gradient():
    """Forward KL's factor on softmax is 1 - q_t / p_t: 0 where teacher and student agree on the rest but not on the ids."""
    hidden, weight = torch.zeros(2, 4, dtype=torch.float64), torch.randn(10, 4, dtype=torch.float64)
    hidden.requires_grad_()
    ids = torch.tensor([[0, 1], [2, 3]])
    logprobs = torch.tensor([[0.15, 0.05], [0.199, 0.001]], dtype=torch.float64).log()  # the student's are 0.1 each
    loss = linear_topk_divergence(hidden, weight, ids, logprobs)
    expected = reference.linear_topk_divergence(hidden, weight, ids, logprobs)
    # What keeps the factor from 0 moves the gradient by a millionth of its largest entry.
    torch.testing.assert_close(
        torch.autograd.grad(loss, hidden), torch.autograd.grad(expected, hidden), rtol=1e-5, atol=1e-6
    )
