"""linear_cross_entropy against its eager reference in float64, and against the plain path where precision is lost."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from distill.kernels import linear_cross_entropy, linear_loss, reference
from distill.kernels.row_losses import CrossEntropy


def inputs(rows, width, vocabulary, dtype=torch.float64, ignored=0.3, std=1.0):
    hidden = torch.randn(rows, width, dtype=torch.float64) * std
    weight = torch.randn(vocabulary, width, dtype=torch.float64) / width**0.5
    labels = torch.randint(vocabulary, (rows,))
    labels[torch.rand(rows) < ignored] = -100
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels


def assert_all_close(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


OPTIONS = list(itertools.product((0.0, 0.03), (0.0, 0.1), (None, 3.0), (False, True), (False, True)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("workspace_bytes", [None, 1, 3000])
def test_matches_reference_over_all_options(reduction, workspace_bytes):
    for z_loss, smoothing, softcap, with_bias, with_weights in OPTIONS:
        rows, width, vocabulary = (int(torch.randint(1, high, ())) for high in (40, 20, 70))
        hidden, weight, labels = inputs(rows, width, vocabulary, std=3.0)
        bias = torch.randn(vocabulary, dtype=torch.float64, requires_grad=True) if with_bias else None
        token_weights = torch.rand(rows, dtype=torch.float64) if with_weights else None
        options = {
            "bias": bias,
            "token_weights": token_weights,
            "reduction": reduction,
            "z_loss": z_loss,
            "label_smoothing": smoothing,
            "softcap": softcap,
        }
        loss, stats = linear_cross_entropy(
            hidden, weight, labels, **options, return_stats=True, workspace_bytes=workspace_bytes
        )
        expected, expected_stats = reference.linear_cross_entropy(hidden, weight, labels, **options)
        # Non-uniform and strided: every second value of a longer tensor.
        upstream = (
            torch.randn(2 * rows, dtype=torch.float64)[::2] if loss.ndim else torch.randn((), dtype=torch.float64)
        )
        wanted = [x for x in (hidden, weight, bias) if x is not None]
        torch.testing.assert_close(loss, expected)
        assert_all_close(stats, expected_stats)
        assert not any(value.requires_grad for value in stats)
        assert_all_close(torch.autograd.grad(loss, wanted, upstream), torch.autograd.grad(expected, wanted, upstream))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(reduction):
    hidden, weight, labels = inputs(7, 4, 9)
    bias = torch.randn(9, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(7, dtype=torch.float64)

    def function(h, w, b):
        return linear_cross_entropy(
            h, w, labels, bias=b, token_weights=weights, reduction=reduction, z_loss=0.1, label_smoothing=0.2,
            softcap=2.0, workspace_bytes=250,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, (hidden, weight, bias))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_rows_ignored(reduction):
    hidden, weight, labels = inputs(6, 4, 11, dtype=torch.float32)
    labels.fill_(-100)
    loss, stats = linear_cross_entropy(hidden, weight, labels, reduction=reduction, return_stats=True)
    assert torch.equal(loss, torch.zeros_like(loss))
    assert not any(value.any() for value in stats)
    d_hidden, d_weight = torch.autograd.grad(loss.sum(), (hidden, weight))
    assert torch.equal(d_hidden, torch.zeros_like(hidden))
    assert torch.equal(d_weight, torch.zeros_like(weight))


def test_a_run_of_ignored_rows_longer_than_a_chunk_and_another_ignore_index():
    hidden, weight, labels = inputs(50, 6, 13, ignored=0)
    labels[10:40] = 7
    loss = linear_cross_entropy(hidden, weight, labels, ignore_index=7, workspace_bytes=13 * 8 * 5)
    torch.testing.assert_close(loss, reference.linear_cross_entropy(hidden, weight, labels, ignore_index=7)[0])


def test_float32_does_not_depend_on_the_chunk():
    hidden, weight, labels = inputs(300, 32, 257, dtype=torch.float32)
    results = []
    for workspace_bytes in (None, 257 * 4, 257 * 4 * 7, 257 * 4 * 100):
        loss = linear_cross_entropy(hidden, weight, labels, workspace_bytes=workspace_bytes)
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    for other in results[1:]:
        assert_all_close(other, results[0], rtol=1e-5, atol=1e-7)


def relative_error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("mode", ["bfloat16", "autocast", "mixed"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("workspace_bytes", [None, 1001 * 2 * 64])
def test_error_is_at_most_twice_the_plain_path_in_bfloat16(mode, reduction, workspace_bytes):
    """autocast: float32 hidden and weight; mixed: bfloat16 hidden beside a float32 master weight."""
    hidden, weight, labels = inputs(400, 64, 1001, std=3.0)
    hidden16 = hidden.detach().to(torch.float32 if mode == "autocast" else torch.bfloat16).requires_grad_()
    weight16 = weight.detach().to(torch.bfloat16 if mode == "bfloat16" else torch.float32).requires_grad_()
    upstream = torch.rand(400) if reduction == "none" else torch.tensor(0.37)
    # What the matrix products see; the rounding of the inputs themselves is not the path's error.
    exact_inputs = [x.detach().bfloat16().double().requires_grad_() for x in (hidden16, weight16)]
    exact = reference.linear_cross_entropy(*exact_inputs, labels, reduction=reduction)[0]
    exact = [exact.detach(), *torch.autograd.grad(exact, exact_inputs, upstream.double())]

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        found = linear_cross_entropy(hidden16, weight16, labels, reduction=reduction, workspace_bytes=workspace_bytes)
        logits = F.linear(hidden16, weight16 if mode == "autocast" else weight16.bfloat16())
        plain = F.cross_entropy(logits.float(), labels, reduction=reduction)
    assert found.dtype == torch.float32
    found = [found.detach(), *torch.autograd.grad(found, (hidden16, weight16), upstream)]
    plain = [plain.detach(), *torch.autograd.grad(plain, (hidden16, weight16), upstream)]
    for a, b, c in zip(found, plain, exact, strict=True):
        assert a.dtype == b.dtype
        # One number's error can be small by luck.
        assert relative_error(a, c) <= 2 * relative_error(b, c) + (1e-3 if a.ndim == 0 else 1e-6)


def test_peaked_rows_have_no_log_probability_above_zero():
    hidden, weight, labels = inputs(64, 16, 1003, dtype=torch.float32, ignored=0, std=100.0)
    labels = (hidden @ weight.T).argmax(-1)
    loss, stats = linear_cross_entropy(hidden, weight, labels, return_stats=True)
    assert (stats.logprobs <= 0).all() and stats.correct.all() and loss >= 0


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_backward_twice_gives_the_same_gradients_and_second_order_is_refused(reduction):
    hidden, weight, labels = inputs(30, 8, 50, dtype=torch.float32)
    loss = linear_cross_entropy(hidden, weight, labels, reduction=reduction).sum() * 0.3
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    first_copy = [value.clone() for value in first]
    for value in first:
        value.mul_(5)  # a caller may do what it likes with its gradients
    assert all(map(torch.equal, torch.autograd.grad(loss, (hidden, weight)), first_copy))

    loss = linear_cross_entropy(hidden, weight, labels, reduction=reduction).sum()
    (d_hidden,) = torch.autograd.grad(loss * loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        d_hidden.sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_frozen_inputs_get_no_gradient_and_do_not_change_the_others(reduction):
    hidden, weight, labels = inputs(30, 8, 50)
    expected = torch.autograd.grad(
        reference.linear_cross_entropy(hidden, weight, labels, reduction=reduction)[0].sum(), (hidden, weight)
    )
    loss = linear_cross_entropy(hidden.detach(), weight, labels, reduction=reduction).sum()
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], expected[1])
    loss = linear_cross_entropy(hidden, weight.detach(), labels, reduction=reduction).sum()
    torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], expected[0])
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, labels, reduction=reduction).requires_grad


def test_tied_weight_collects_both_gradients():
    _, weight, labels = inputs(40, 8, 50)
    tokens = torch.randint(50, (40,))
    tied = linear_cross_entropy(F.embedding(tokens, weight).tanh(), weight, labels)
    plain = reference.linear_cross_entropy(F.embedding(tokens, weight).tanh(), weight, labels)[0]
    assert_all_close(torch.autograd.grad(tied, weight), torch.autograd.grad(plain, weight))


def test_strided_hidden():
    hidden, weight, labels = inputs(20, 16, 30)
    strided, narrow = hidden[:, ::2], weight[:, 8:]
    loss = linear_cross_entropy(strided, narrow, labels, reduction="sum")
    expected = reference.linear_cross_entropy(strided, narrow, labels, reduction="sum")[0]
    torch.testing.assert_close(loss, expected)
    assert_all_close(torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)))


def test_any_layout_of_any_tensor():
    """Columns that are rows elsewhere, gaps, one row in place of all: as contiguous copies, gradients in plain layout."""
    rows, width, vocabulary = 21, 16, 30
    labels = torch.randint(vocabulary, (2 * rows,), dtype=torch.int32)[::2]
    weights = torch.rand(3, rows).t()[:, 1]
    layouts = [
        (torch.randn(width, rows).t(), torch.randn(width, vocabulary).t(), torch.randn(2 * vocabulary)[::2]),
        (torch.randn(width).expand(rows, -1), torch.randn(vocabulary, 1).expand(-1, width), torch.randn(1).expand(vocabulary)),
        (torch.randn(rows, 3, width)[:, 1], torch.randn(vocabulary, 2 * width)[:, ::2], torch.randn(vocabulary)),
    ]  # fmt: skip
    for tensors, reduction in itertools.product(layouts, ("sum", "none")):
        tensors = [x.detach().requires_grad_() for x in tensors]
        plain = [x.detach().contiguous().requires_grad_() for x in tensors]
        options = {"reduction": reduction, "token_weights": weights, "workspace_bytes": vocabulary * 4 * 8}
        loss = linear_cross_entropy(tensors[0], tensors[1], labels, bias=tensors[2], **options)
        expected = linear_cross_entropy(plain[0], plain[1], labels.long().contiguous(), bias=plain[2], **options)
        torch.testing.assert_close(loss, expected)
        found = torch.autograd.grad(loss.sum(), tensors)
        assert all(x.is_contiguous() for x in found)
        assert_all_close(found, torch.autograd.grad(expected.sum(), plain))


@pytest.mark.parametrize("masked", [-1e9, -1e30, float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lse_of_a_row_whose_label_is_masked_out(masked, dtype):
    """The lse was once a difference of two numbers at the label."""
    hidden, weight, labels = inputs(12, 16, 30, dtype=dtype, ignored=0)
    bias = torch.zeros(30, dtype=dtype)
    bias[labels[0]] = masked
    loss, stats = linear_cross_entropy(hidden, weight, labels, bias=bias, reduction="none", return_stats=True)
    _, (lse, *_) = reference.linear_cross_entropy(hidden, weight, labels, bias=bias, reduction="none")
    torch.testing.assert_close(stats.lse, lse)
    assert (loss[labels == labels[0]] > 1e8).all() and loss[labels != labels[0]].isfinite().all()


def test_losses_without_gradients_agree_with_those_that_have_them():
    hidden, weight, labels = inputs(20, 16, 30)
    for reduction in ("mean", "none"):
        expected = linear_cross_entropy(hidden, weight, labels, reduction=reduction)
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                found = linear_cross_entropy(hidden, weight, labels, reduction=reduction)
            assert not found.requires_grad
            torch.testing.assert_close(found, expected.detach())
        for reentrant in (False, True):

            def loss(x, reduction=reduction):
                return linear_cross_entropy(x.tanh(), weight, labels, reduction=reduction).sum()

            gradients = []
            for function in (loss, lambda x, f=loss, r=reentrant: checkpoint(f, x, use_reentrant=r)):
                leaf = hidden.detach().requires_grad_()
                function(leaf).backward()
                gradients.append(leaf.grad)
            assert_all_close(*gradients)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor any operation has made; views of its inputs do not count."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {value.untyped_storage().data_ptr() for value in tree_leaves((args, kwargs)) if torch.is_tensor(value)}
        made = [value for value in tree_leaves(result) if torch.is_tensor(value)]
        sizes = [value.numel() for value in made if value.untyped_storage().data_ptr() not in given]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_never_holds_the_logits_of_all_rows_nor_a_copy_of_hidden(with_gradients, ignored):
    """Seen inside the operator, which a mode around it would not do."""
    rows, width, vocabulary, chunk = 512, 48, 64, 8
    hidden, weight, labels = (x.detach() for x in inputs(rows, width, vocabulary, dtype=torch.bfloat16))
    index = None if ignored == 0 else (torch.rand(rows) > ignored).nonzero().squeeze(1)
    source = linear_loss.Rows(hidden, index, torch.bfloat16)
    labels = labels.clamp_min(0)[: source.size]
    head, needs = linear_loss.Head(weight, None, None, 1.0), linear_loss.Needs(False, with_gradients, False)
    with LargestTensor() as largest:
        linear_loss.losses_and_gradients(
            source, head, labels[:, None], CrossEntropy(None, 0.0, 0.0, vocabulary), needs,
            workspace_bytes=vocabulary * 2 * chunk,
        )  # fmt: skip
    assert largest.elements <= (vocabulary * width if with_gradients else max(vocabulary * chunk, rows))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"hidden": torch.zeros(2, 3, 4)}, "hidden"),
        ({"hidden": torch.zeros(3, 4, dtype=torch.int64)}, "hidden"),
        ({"hidden": torch.zeros(3, 4).to(torch.float8_e4m3fn)}, "hidden"),
        ({"hidden": torch.zeros(3, 0), "weight": torch.zeros(9, 0)}, "hidden"),
        ({"weight": torch.zeros(9, 5)}, "weight"),
        ({"weight": torch.zeros(9, 4, dtype=torch.bfloat16)}, "weight"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, "labels"),
        ({"labels": torch.zeros(3)}, "labels"),
        ({"labels": torch.tensor([0, 9, 1])}, "labels: got 9, takes 0 to 8"),
        ({"labels": torch.tensor([0, -1, 1])}, "labels: got -1"),
        ({"bias": torch.zeros(8)}, "bias"),
        ({"token_weights": torch.zeros(9)}, "token_weights"),
        ({"token_weights": torch.zeros(3, requires_grad=True)}, "token_weights"),
        ({"reduction": "avg"}, "reduction"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"softcap": 0.0}, "softcap"),
        ({"softcap": float("inf")}, "softcap"),
        ({"workspace_bytes": 0}, "workspace_bytes"),
        ({"labels": torch.zeros(3, dtype=torch.int64, device="meta")}, "labels"),
    ],
)
def test_bad_arguments_are_named(change, names):
    arguments = {"hidden": torch.zeros(3, 4), "weight": torch.zeros(9, 4), "labels": torch.tensor([0, -100, 8])}
    with pytest.raises(ValueError, match=names):
        linear_cross_entropy(**(arguments | change))
