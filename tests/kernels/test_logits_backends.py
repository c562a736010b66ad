"""The same losses through every backend: Triton's under the interpreter, on CPU tensors, against float64."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill.kernels import linear_cross_entropy, linear_loss, linear_topk_divergence, logits_backends, reference
from distill.kernels.logits_backends import BACKENDS, choose_backend, unsupported_backend
from distill.kernels.row_losses import CrossEntropy


@pytest.fixture(params=[name for name in BACKENDS if name != "torch"])
def backend(request, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(logits_backends, "choose_backend", lambda *_: request.param)
    return request.param


@pytest.fixture(params=[False, True], ids=["", "wide products"])
def wide_products(request, monkeypatch):
    """As on a GPU: products of bfloat16 that come out, and are accumulated, in float32."""
    if not request.param:
        return
    mm, addmm = torch.mm, torch.addmm

    def wide_mm(a, b, out_dtype=None, out=None):
        return mm(a, b, out=out) if out_dtype is None else mm(a.to(out_dtype), b.to(out_dtype), out=out)

    def wide_addmm(total, a, b, out_dtype=None, out=None):
        return addmm(total, *((a, b) if out_dtype is None else (a.to(out_dtype), b.to(out_dtype))), out=out)

    monkeypatch.setattr(torch, "mm", wide_mm)
    monkeypatch.setattr(torch, "addmm", wide_addmm)
    monkeypatch.setattr(linear_loss, "products_come_wide", lambda _, dtype: dtype == torch.bfloat16)


def relative_error(found, exact):
    return ((found.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def assert_not_worse_than_plain(ours, plain, tensors, **options):
    """Errors of loss and gradients against float64, relative to what plain arithmetic of the same dtype makes."""
    exact_tensors = [x.detach().double().requires_grad_() for x in tensors]
    rows = tensors[0].shape[0]
    upstream = torch.randn(2 * rows, dtype=torch.float64)[::2] if options["reduction"] == "none" else torch.tensor(0.7)

    def run(function, inputs):
        loss = function(*inputs)
        return [loss.detach(), *torch.autograd.grad(loss, inputs, upstream.to(loss.dtype))]

    for a, b, c in zip(run(ours, tensors), run(plain, tensors), run(plain, exact_tensors), strict=True):
        assert a.dtype == b.dtype and a.isfinite().all()
        # One number's error can be small by luck, and so can that of a loss that is a sum of a few.
        assert relative_error(a, c) <= 2 * relative_error(b, c) + (4e-3 if a.ndim < 2 else 1e-3)


OPTIONS = list(itertools.product(("mean", "none"), ((0.0, 0.0), (0.05, 0.1)), (None, 3.0), (False, True)))


@pytest.mark.parametrize(("reduction", "more", "softcap", "with_bias"), OPTIONS)
def test_cross_entropy(backend, wide_products, reduction, more, softcap, with_bias):
    rows, width, vocabulary = 19, 24, 141
    hidden = (torch.randn(rows, width) * 2).bfloat16().requires_grad_()
    weight = (torch.randn(vocabulary, width) / width**0.5).bfloat16().requires_grad_()
    bias = torch.randn(vocabulary).bfloat16().requires_grad_() if with_bias else None
    labels = torch.randint(vocabulary, (rows,))
    labels[torch.rand(rows) < 0.3] = -100
    labels[0] = 5  # at least one row counts
    z_loss, smoothing = more
    options = {
        "reduction": reduction, "z_loss": z_loss, "label_smoothing": smoothing, "softcap": softcap,
        "token_weights": torch.rand(rows) if with_bias else None,
    }  # fmt: skip

    def with_options(function, **extra):
        def call(hidden, weight, bias=None):
            found = function(hidden, weight, labels, bias=bias, **options, **extra)
            return found[0] if isinstance(found, tuple) else found

        return call

    tensors = [x for x in (hidden, weight, bias) if x is not None]
    ours = with_options(linear_cross_entropy, workspace_bytes=vocabulary * 2 * 8)
    assert_not_worse_than_plain(ours, with_options(reference.linear_cross_entropy), tensors, **options)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_topk_divergence(backend, wide_products, divergence, reduction):
    rows, width, vocabulary, k = 12, 16, 70, 5
    hidden = (torch.randn(rows, width) * 2).bfloat16().requires_grad_()
    weight = (torch.randn(vocabulary, width) / 4).bfloat16().requires_grad_()
    logprobs, ids = torch.randn(rows, vocabulary).mul(2).log_softmax(1).topk(k)
    logprobs[3, 2:] = float("-inf")
    labels = torch.where(torch.rand(rows) < 0.5, ids[:, 1], torch.randint(vocabulary, (rows,)))
    labels[7] = -100
    options = {
        "divergence": divergence, "reduction": reduction, "labels": labels, "ce_weight": 0.4, "temperature": 0.8, "softcap": 5.0
    }  # fmt: skip

    def ours(hidden, weight):
        return linear_topk_divergence(hidden, weight, ids, logprobs, **options, workspace_bytes=vocabulary * 2 * 5)

    def plain(hidden, weight):
        return reference.linear_topk_divergence(hidden, weight, ids, logprobs, **options)

    assert_not_worse_than_plain(ours, plain, [hidden, weight], **options)


def test_stats_and_peaked_rows(backend):
    hidden = (torch.randn(17, 16) * 60).bfloat16()
    weight = torch.randn(133, 16).bfloat16()
    weight[100] = weight[3]  # equal logits: the lower id is the argmax
    logits = hidden.double() @ weight.double().T
    labels = logits.argmax(1)
    labels[4:9] = logits.argmin(1)[4:9]  # anchors hundreds of nats too low
    labels[10] = -100
    loss, stats = linear_cross_entropy(hidden, weight, labels, reduction="none", return_stats=True)
    _, expected = reference.linear_cross_entropy(hidden.double(), weight.double(), labels, reduction="none")
    assert (stats.logprobs <= 0).all() and loss.isfinite().all()
    assert torch.equal(stats.correct, expected[2])
    # The rows backend sees logits rounded to bfloat16, relatively 2^-9, as a plain product gives them.
    tolerance = {"rtol": 2**-8 if backend == "rows" else 1e-5, "atol": float(logits.abs().max()) * 2**-8}
    torch.testing.assert_close(stats.lse.double(), expected[0], **tolerance)
    torch.testing.assert_close(stats.logprobs.double(), expected[1], **tolerance)


def test_any_layout_of_hidden_weight_and_bias(backend):
    rows, width, vocabulary = 20, 24, 70
    labels = torch.randint(vocabulary, (2 * rows,), dtype=torch.int32)[::2]

    def random(*shape):
        return torch.randn(shape).bfloat16()

    layouts = [
        (random(width, rows).t(), random(width, vocabulary).t(), random(2 * vocabulary)[::2]),
        (random(1, width).expand(rows, width), random(vocabulary, width), random(1).expand(vocabulary)),
        (random(rows, 31)[:, 3:27], random(vocabulary, 25)[:, 1:], random(vocabulary)),
    ]
    for tensors, reduction in itertools.product(layouts, ("sum", "none")):
        strided = [x.detach().requires_grad_() for x in tensors]
        plain = [x.detach().contiguous().requires_grad_() for x in tensors]
        results = []
        for hidden, weight, bias in (strided, plain):
            loss = linear_cross_entropy(hidden, weight, labels, bias=bias, reduction=reduction)
            results.append((loss, torch.autograd.grad(loss.sum(), (hidden, weight, bias))))
        torch.testing.assert_close(*results, rtol=2**-7, atol=2**-7)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("masked", [-1e9, float("-inf")])
def test_a_label_that_is_masked_out(backend, masked):
    hidden, weight = torch.randn(20, 24).bfloat16(), torch.randn(70, 24).bfloat16()
    labels = torch.randint(70, (20,))
    bias = torch.zeros(70).bfloat16()
    bias[labels[0]] = masked
    loss, stats = linear_cross_entropy(hidden, weight, labels, bias=bias, reduction="none", return_stats=True)
    _, (lse, *_) = reference.linear_cross_entropy(
        hidden.double(), weight.double(), labels, bias=bias.double(), reduction="none"
    )
    torch.testing.assert_close(stats.lse.double(), lse, rtol=2**-8, atol=2**-8)
    assert (loss[labels == labels[0]] > 1e8).all() and loss[labels != labels[0]].isfinite().all()


class Operations(TorchDispatchMode):
    """Names of what torch is asked to do."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_passes_never_wait_for_the_device(backend, softcap, monkeypatch):
    """Nothing whose result the host must see, in any chunk, with all options; and few launches for one chunk more."""
    from triton.runtime.interpreter import InterpretedFunction

    monkeypatch.setattr(InterpretedFunction, "run", lambda *args, **kwargs: None)  # it is the host's part that is seen
    rows, vocabulary = 24, 50
    hidden, weight = torch.randn(rows, 16).bfloat16(), torch.randn(vocabulary, 16).bfloat16()
    ids = torch.randint(vocabulary, (rows, 1))
    head = linear_loss.Head(weight, None, softcap, 1.0)
    counts = []
    for chunk_rows in (12, 8):
        loss = CrossEntropy(torch.rand(rows), 0.1, 0.1, vocabulary)
        with Operations() as operations:
            linear_loss.losses_and_gradients(
                linear_loss.Rows(hidden, None, hidden.dtype), head, ids, loss, linear_loss.Needs(True, True, False),
                need_argmax=True, workspace_bytes=vocabulary * 2 * chunk_rows,
            )  # fmt: skip
        waits = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal"}
        assert not waits.intersection(operations.names)
        counts.append(len(operations.names))
    assert counts[1] - counts[0] < 150


def test_the_anchored_loss_is_as_exact_as_float32(monkeypatch):
    """What it is for: no rounding of logits. Plain bfloat16 logits of this size are off by hundredths."""
    pytest.importorskip("triton")
    monkeypatch.setattr(logits_backends, "choose_backend", lambda *_: "anchored")
    hidden = (torch.randn(30, 32) * 4).bfloat16()
    weight = torch.randn(257, 32).bfloat16()
    labels = torch.randint(257, (30,))
    found = linear_cross_entropy(hidden, weight, labels, reduction="none")
    exact, _ = reference.linear_cross_entropy(hidden.double(), weight.double(), labels, reduction="none")
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


def test_the_choice_and_its_reasons():
    assert choose_backend("cpu", torch.bfloat16, 64) == "torch"
    assert choose_backend("cuda", torch.float64, 64) == "torch"
    assert "cuda" in unsupported_backend("anchored", "cpu", torch.bfloat16, 64)
    if unsupported_backend("rows", "cuda", torch.float16, 64) is None:
        assert choose_backend("cuda", torch.bfloat16, 64) == "anchored"
        assert choose_backend("cuda", torch.bfloat16, 60) == "rows"
        assert choose_backend("cuda", torch.float16, 64) == "rows"
        assert "range" in unsupported_backend("anchored", "cuda", torch.float16, 64)
