"""indexed_logits under the interpreter, against a product of the gathered rows in float64."""

import pytest
import torch

pytest.importorskip("triton")

from distill.kernels.indexed_logits import indexed_logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 3, 21])
@pytest.mark.parametrize("with_bias", [False, True])
def test_matches_a_product(dtype, k, with_bias):
    rows, width, vocabulary = (int(torch.randint(1, high, ())) for high in (7, 300, 50))
    wide = torch.randn(rows, 2 * width).to(dtype)
    x = wide[:, width:]  # a row stride of its own
    weight = torch.randn(vocabulary, width).to(dtype)
    bias = torch.randn(vocabulary).to(dtype) if with_bias else None
    ids = torch.randint(-1, vocabulary, (rows, k))
    found = indexed_logits(x, weight, bias, ids)
    expected = torch.einsum("nh,nkh->nk", x.double(), weight.double()[ids.clamp_min(0)])
    if with_bias:
        expected += bias.double()[ids.clamp_min(0)]
    expected = torch.where(ids >= 0, expected, 0.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_no_rows():
    assert indexed_logits(torch.ones(0, 4), torch.ones(3, 4), None, torch.ones(0, 2, dtype=torch.int64)).shape == (0, 2)
