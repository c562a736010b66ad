"""linear_topk_divergence against its eager reference in float64, and against divergences over the whole vocabulary."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from distill.kernels import linear_cross_entropy, linear_topk_divergence, reference

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")


def inputs(rows, width, vocabulary, k, dtype=torch.float64, std=1.0, ignored=0.3, missing=0.2):
    """A student, a teacher's top k as vLLM lists it (some rows shorter), and labels that are often among them."""
    hidden = torch.randn(rows, width, dtype=torch.float64) * std
    weight = torch.randn(vocabulary, width, dtype=torch.float64) / width**0.5
    teacher = (hidden @ weight.T + torch.randn(rows, vocabulary, dtype=torch.float64)).log_softmax(-1)
    logprobs, ids = teacher.topk(k, dim=1)
    absent = torch.rand(rows, k) < missing
    absent[:, 0] = False
    logprobs = logprobs.masked_fill(absent, float("-inf"))
    ids = ids.masked_fill(absent, int(torch.randint(vocabulary, ())))  # any id may stand where nothing is listed
    labels = torch.where(torch.rand(rows) < 0.5, ids[:, 0], torch.randint(vocabulary, (rows,)))
    labels[torch.rand(rows) < ignored] = -100
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), ids, logprobs, labels


def assert_all_close(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


OPTIONS = list(itertools.product((0.0, 0.4, 1.0), (1.0, 0.7), (None, 3.0), (False, True)))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("workspace_bytes", [None, 2000])
def test_matches_reference_over_all_options(divergence, reduction, workspace_bytes):
    for ce_weight, temperature, softcap, with_more in OPTIONS:
        rows, width, k = (int(torch.randint(1, high, ())) for high in (30, 20, 9))
        vocabulary = k + int(torch.randint(1, 60, ()))
        hidden, weight, ids, logprobs, labels = inputs(rows, width, vocabulary, k)
        bias = torch.randn(vocabulary, dtype=torch.float64, requires_grad=True) if with_more else None
        options = {
            "divergence": divergence,
            "beta": 0.2 + 0.6 * float(torch.rand(())),
            "temperature": temperature,
            "ce_weight": ce_weight,
            "labels": labels if ce_weight or with_more else None,
            "bias": bias,
            "softcap": softcap,
            "token_weights": torch.rand(rows, dtype=torch.float64) if with_more else None,
            "reduction": reduction,
        }
        loss = linear_topk_divergence(hidden, weight, ids, logprobs, **options, workspace_bytes=workspace_bytes)
        expected = reference.linear_topk_divergence(hidden, weight, ids, logprobs, **options)
        upstream = (
            torch.randn(2 * rows, dtype=torch.float64)[::2] if loss.ndim else torch.randn((), dtype=torch.float64)
        )
        wanted = [x for x in (hidden, weight, bias) if x is not None]
        torch.testing.assert_close(loss, expected)
        # The reference adds up the rest's probabilities one by one, ours takes them from 1: all in float64.
        tolerance = {"rtol": 1e-6, "atol": 1e-9}
        found = torch.autograd.grad(loss, wanted, upstream)
        assert_all_close(found, torch.autograd.grad(expected, wanted, upstream), **tolerance)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_all_of_the_vocabulary_listed_is_the_divergence_itself(divergence):
    hidden, weight, _, _, _ = inputs(12, 8, 15, 3)
    teacher = torch.randn(12, 15, dtype=torch.float64).log_softmax(-1)
    ids = torch.stack([torch.randperm(15) for _ in range(12)])
    loss = linear_topk_divergence(hidden, weight, ids, teacher.gather(1, ids), divergence=divergence, beta=0.3)
    student = (hidden @ weight.T).log_softmax(-1)
    middle = (0.3 * teacher.exp() + 0.7 * student.exp()).log()

    def kl(p, q):
        return F.kl_div(q, p, log_target=True, reduction="batchmean")

    expected = {
        "forward_kl": lambda: kl(teacher, student),
        "reverse_kl": lambda: kl(student, teacher),
        "jsd": lambda: 0.3 * kl(teacher, middle) + 0.7 * kl(student, middle),
    }[divergence]()
    # The rest, which is empty, stands at the floor of one rounding in both.
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    wanted = (hidden, weight)
    assert_all_close(torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, wanted), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("masked", [-1e9, float("-inf")])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_entries_that_are_masked_out_and_teachers_with_nothing_in_the_first_place(masked, reduction):
    hidden, weight, ids, logprobs, _ = inputs(20, 8, 40, 5, missing=0)
    ids = ids.masked_fill(ids == 0, -1)
    logprobs = logprobs.masked_fill(ids < 0, float("-inf"))
    ids[3], logprobs[3] = 0, float("-inf")
    bias = torch.zeros(40, dtype=hidden.dtype)
    bias[0] = masked
    loss, expected = (
        function(hidden, weight, ids, logprobs, bias=bias, reduction=reduction)
        for function in (linear_topk_divergence, reference.linear_topk_divergence)
    )
    torch.testing.assert_close(loss, expected)
    wanted = (hidden, weight)
    found = torch.autograd.grad(loss.sum(), wanted)
    assert_all_close(found, torch.autograd.grad(expected.sum(), wanted), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_float16_where_the_rest_has_no_gradient(divergence):
    """Forward KL's factor on softmax is 0 where both agree on the rest; dividing by its stand-in must not overflow."""
    hidden, weight, _, _, _ = inputs(2, 8, 10, 2, missing=0)
    hidden = torch.zeros_like(hidden, dtype=torch.float16).requires_grad_()
    weight = weight.detach().half().requires_grad_()
    ids = torch.tensor([[0, 1], [2, 3]])
    logprobs = torch.tensor([[0.15, 0.05], [0.199, 0.001]]).log()  # the student's are 0.1 each
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    loss = linear_topk_divergence(hidden, weight, ids, logprobs, divergence=divergence)
    expected = reference.linear_topk_divergence(*exact, ids, logprobs.double(), divergence=divergence)
    for found, wanted in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, exact), strict=True
    ):
        assert (found.double() - wanted).norm() <= 4e-3 * wanted.norm() + 1e-6


def test_a_student_that_equals_its_teacher_has_no_divergence_and_no_gradient():
    hidden, weight, ids, _, _ = inputs(20, 8, 40, 5, missing=0)
    teacher = (hidden.detach() @ weight.detach().T / 0.6).log_softmax(-1).gather(1, ids)
    for divergence in DIVERGENCES:
        loss = linear_topk_divergence(hidden, weight, ids, teacher, divergence=divergence, temperature=0.6)
        assert abs(loss.item()) < 1e-12
        for gradient in torch.autograd.grad(loss, (hidden, weight)):
            assert gradient.abs().max() < 1e-9


def test_ce_weight_1_is_cross_entropy():
    hidden, weight, ids, logprobs, labels = inputs(20, 8, 40, 5)
    loss = linear_topk_divergence(hidden, weight, ids, logprobs, labels=labels, ce_weight=1.0)
    expected = linear_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(loss, expected)
    assert_all_close(torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)))


def relative_error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_error_is_at_most_twice_the_plain_path_in_bfloat16(divergence, reduction):
    hidden, weight, ids, logprobs, labels = inputs(200, 64, 701, 8, std=2.0)
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    exact_inputs = [x.detach().double().requires_grad_() for x in low]
    upstream = torch.rand(200) if reduction == "none" else torch.tensor(0.37)
    options = {"divergence": divergence, "labels": labels, "ce_weight": 0.3, "reduction": reduction}

    def run(function, tensors, **more):
        loss = function(*tensors, ids, logprobs, **options, **more)
        return [loss.detach(), *torch.autograd.grad(loss, tensors, upstream.to(loss.dtype))]

    found = run(linear_topk_divergence, low, workspace_bytes=701 * 2 * 64)
    plain = run(reference.linear_topk_divergence, low)
    exact = run(reference.linear_topk_divergence, exact_inputs)
    for a, b, c in zip(found, plain, exact, strict=True):
        assert a.dtype == b.dtype
        assert relative_error(a, c) <= 2 * relative_error(b, c) + (1e-3 if a.ndim == 0 else 1e-6)


def test_a_confident_pair_stays_finite():
    """Both put all their mass on one id, in float32: the rest is below the rounding of 1."""
    hidden, weight, ids, _, _ = inputs(6, 8, 30, 4, dtype=torch.float32, missing=0, std=200.0)
    ids[:, 0] = (hidden @ weight.T).argmax(1)
    ids[:, 1:] = (ids[:, :1] + torch.arange(1, 4)) % 30
    logprobs = torch.tensor([0.0, -90.0, -95.0, -99.0]).expand(6, 4)
    for divergence in DIVERGENCES:
        loss = linear_topk_divergence(hidden, weight, ids, logprobs, divergence=divergence)
        assert loss.isfinite() and loss >= -1e-5
        assert all(x.isfinite().all() for x in torch.autograd.grad(loss, (hidden, weight)))


def test_frozen_weight_and_rows_that_are_all_ignored():
    hidden, weight, ids, logprobs, labels = inputs(9, 6, 20, 4)
    loss = linear_topk_divergence(hidden, weight.detach(), ids, logprobs, labels=labels)
    expected = reference.linear_topk_divergence(hidden, weight, ids, logprobs, labels=labels)
    assert_all_close(torch.autograd.grad(loss, hidden), torch.autograd.grad(expected, hidden), rtol=1e-6, atol=1e-9)
    for reduction in ("mean", "sum", "none"):
        nothing = torch.full_like(labels, -100)
        loss = linear_topk_divergence(hidden, weight, ids, logprobs, labels=nothing, reduction=reduction)
        assert not loss.any()
        assert not any(x.any() for x in torch.autograd.grad(loss.sum(), (hidden, weight)))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"teacher_ids": torch.zeros(3, 2)}, "teacher_ids"),
        ({"teacher_ids": torch.zeros(2, 2, dtype=torch.int64)}, "teacher_ids"),
        ({"teacher_ids": torch.tensor([[0, 1], [0, 9], [1, 2]])}, "teacher_ids: got 9, takes 0 to 8"),
        ({"teacher_ids": torch.tensor([[0, 1], [3, 3], [1, 2]])}, "teacher_ids: got a row with the same id twice"),
        ({"teacher_logprobs": torch.zeros(3, 3)}, "teacher_logprobs"),
        ({"teacher_logprobs": torch.full((3, 2), 0.5)}, "teacher_logprobs: got a row whose probabilities add up to"),
        ({"teacher_logprobs": torch.full((3, 2), float("nan"))}, "teacher_logprobs"),
        ({"labels": torch.tensor([0, 9, 1])}, "labels: got 9"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, "labels"),
        ({"ce_weight": 0.5}, "labels: got None"),
        ({"ce_weight": 1.5, "labels": torch.zeros(3, dtype=torch.int64)}, "ce_weight"),
        ({"divergence": "kl"}, "divergence"),
        ({"divergence": "jsd", "beta": 1.0}, "beta"),
        ({"temperature": 0.0}, "temperature"),
        ({"reduction": "avg"}, "reduction"),
        ({"weight": torch.zeros(9, 5)}, "weight"),
    ],
)
def test_bad_arguments_are_named(change, names):
    arguments = {
        "hidden": torch.zeros(3, 4),
        "weight": torch.zeros(9, 4),
        "teacher_ids": torch.tensor([[0, 1], [3, 4], [8, 2]]),
        "teacher_logprobs": torch.full((3, 2), -1.5),
    }
    with pytest.raises(ValueError, match=names):
        linear_topk_divergence(**(arguments | change))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_row_is_ignored_when_none_is_to_be(reduction):
    """ignore_index=None asks nobody which rows count: the same loss and gradients, and -100 is no label then."""
    hidden, weight, ids, logprobs, labels = inputs(11, 8, 40, 5, ignored=0)
    results = []
    for ignore_index in (-100, None):
        loss = linear_topk_divergence(
            hidden, weight, ids, logprobs, labels=labels, ce_weight=0.3, reduction=reduction, ignore_index=ignore_index
        )
        results.append((loss, *torch.autograd.grad(loss.sum(), (hidden, weight))))
    assert_all_close(*results)
    labels[4] = -100
    with pytest.raises(ValueError, match="labels"):
        linear_topk_divergence(hidden, weight, ids, logprobs, labels=labels, ce_weight=0.3, ignore_index=None)
