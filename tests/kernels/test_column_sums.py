"""Weighted sums over rows against float64."""

import pytest
import torch

from distill.kernels.column_sums import column_sums


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 1), (32, 256), (75, 300), (0, 5)])
def test_column_sums(dtype, rows, vocabulary):
    values = torch.randn(rows, vocabulary + 3).to(dtype)[:, 1 : 1 + vocabulary]
    factor = torch.randn(rows)
    exact = (values.double() * factor.double()[:, None]).sum(0)
    found = column_sums(values, factor)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
