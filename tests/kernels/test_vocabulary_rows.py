"""Statistics and gradients of rows of logits against float64, for every option and dtype."""

import itertools
import subprocess
import sys

import pytest
import torch

from distill.kernels import vocabulary_rows
from distill.kernels.vocabulary_rows import row_gradient_, row_stats

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
OPTIONS = list(itertools.product((None, 2.5), (1.0, 0.6)))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks a row, the last of them not full."""
    monkeypatch.setattr(vocabulary_rows, "STATS_BLOCK", 32)
    monkeypatch.setattr(vocabulary_rows, "GRADIENT_BLOCK", 32)


def exact_z(logits, softcap, temperature):
    raw = logits.double()
    slope = torch.ones_like(raw)
    if softcap is not None:
        tanh = torch.tanh(raw / softcap)
        raw, slope = softcap * tanh, 1 - tanh**2
    return raw / temperature, slope / temperature


def strided_logits(rows, vocabulary, dtype, std=3.0):
    """Rows that begin at odd places of a longer row."""
    return (torch.randn(rows, vocabulary + 7) * std).to(dtype)[:, 5 : 5 + vocabulary]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [1, 31, 32, 97])
def test_statistics_match_float64(dtype, vocabulary):
    for softcap, temperature in OPTIONS:
        logits = strided_logits(3, vocabulary, dtype)
        z, _ = exact_z(logits, softcap, temperature)
        options = {"softcap": softcap, "temperature": temperature}
        found = row_stats(logits, **options, need_mean=True, need_argmax=True)
        torch.testing.assert_close(found.lse.double(), z.logsumexp(1), rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(found.mean.double(), z.mean(1), rtol=1e-6, atol=1e-5)
        # Equal in float32 is not always equal in float64.
        chosen = z.gather(1, found.argmax[:, None]).squeeze(1)
        torch.testing.assert_close(chosen, z.amax(1), rtol=0, atol=1e-5)
        assert row_stats(logits, **options)[1:] == (None, None)


def test_argmax_is_the_lowest_of_equals():
    logits = torch.randint(0, 3, (40, 100)).float()
    found = row_stats(logits, need_argmax=True).argmax
    lowest = [min(v for v in range(100) if row[v] == row.max()) for row in logits]
    assert found.tolist() == lowest


def test_peaked_rows_and_blocks_of_nothing_but_minus_infinity():
    logits = torch.randn(6, 100) * 200
    logits[0, :70] = float("-inf")
    logits[1, 30:] = float("-inf")
    found = row_stats(logits, need_argmax=True)
    torch.testing.assert_close(found.lse.double(), logits.double().logsumexp(1), rtol=1e-6, atol=1e-6)
    assert (found.lse >= logits.amax(1)).all()
    assert torch.equal(found.argmax, logits.argmax(1))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_shows_and_stays_alone(bad):
    logits = torch.randn(4, 50)
    before = row_stats(logits)
    logits[2, 40] = bad
    found = row_stats(logits, need_argmax=True)
    assert not found.lse[2].isfinite() and 0 <= found.argmax[2] < 50
    others = [0, 1, 3]
    assert torch.equal(found.lse[others], before.lse[others])
    row_gradient_(logits, found.lse, None, None)
    assert logits[2].isnan().any() and logits[others].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("with_factor", "with_uniform"), list(itertools.product((False, True), repeat=2)))
def test_gradient_is_exact_but_for_one_rounding(dtype, with_factor, with_uniform):
    for softcap, temperature in OPTIONS:
        rows, vocabulary = 3, int(torch.randint(1, 100, ()))
        logits = strided_logits(rows, vocabulary, dtype)
        before = logits.as_strided((rows, 5), logits.stride(), 0)
        before_then = before.clone()
        z, slope = exact_z(logits, softcap, temperature)
        lse = z.logsumexp(1) + torch.randn(rows, dtype=torch.float64)  # may be of more than these columns
        factor = torch.randn(rows) if with_factor else None
        uniform = torch.randn(rows) if with_uniform else None
        softmax = (z - lse.float().double()[:, None]).exp()
        exact = softmax if factor is None else factor.double()[:, None] * softmax
        exact = (exact if uniform is None else exact + uniform.double()[:, None]) * slope
        row_gradient_(logits, lse.float(), factor, uniform, softcap=softcap, temperature=temperature)
        # Its own rounding, and float32 rounding of terms that may cancel.
        torch.testing.assert_close(logits.double(), exact, rtol=1.05 * ROUNDOFF[dtype] + 1e-5, atol=2e-5)
        assert torch.equal(before, before_then)


def test_no_rows_and_one_row():
    assert row_stats(torch.empty(0, 5), need_argmax=True).argmax.shape == (0,)
    row_gradient_(torch.empty(0, 5), torch.empty(0), None, None)
    logits = torch.randn(1, 5)
    torch.testing.assert_close(row_stats(logits).lse, logits.logsumexp(1))


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: row_stats(torch.zeros(3)), "logits"),
        (lambda: row_stats(torch.zeros(3, 4).t()), "logits"),
        (lambda: row_stats(torch.zeros(3, 0)), "logits"),
        (lambda: row_stats(torch.zeros(3, 4, dtype=torch.float64)), "logits: got torch.float64"),
        (lambda: row_gradient_(torch.zeros(3, 4), torch.zeros(2), None, None), "lse"),
        (lambda: row_gradient_(torch.zeros(3, 4), torch.zeros(3), torch.zeros(3).bfloat16(), None), "softmax_factor"),
        (lambda: row_gradient_(torch.zeros(3, 4), torch.zeros(3), None, torch.zeros(6)[::2]), "uniform"),
    ],
)
def test_bad_arguments_are_named(call, names):
    with pytest.raises(ValueError, match=names):
        call()


OFFSETS = """
import re, sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from distill.kernels import column_sums, indexed_logits, vocabulary_gemm, vocabulary_gradient, vocabulary_rows
from distill.kernels.targets import TARGETS

target = TARGETS["sm_89"]
modules = (column_sums, indexed_logits, vocabulary_gemm, vocabulary_gradient, vocabulary_rows)
cases = [case for module in modules for case in module.compile_cases(target)]
last = {case.kernel.__name__: case for case in cases}
for name, case in last.items():
    source = ASTSource(fn=case.kernel, signature=case.signature, constexprs=case.constants)
    ttir = compile(source, target=GPUTarget("cuda", 89, 32), options={"num_warps": case.num_warps}).asm["ttir"]
    products = re.findall("arith.muli .*", ttir)
    # A product of a row with a stride or n, or of a vector of indices with anything, has 64 bits.
    narrow = [p for p in products if re.search("tensor<[^>]*xi32>|(stride|%n)\\\\b.*: i32", p)]
    wide = [p for p in products if re.search("i64", p)]
    print(name, len(wide), narrow)
    if narrow or not wide:
        sys.exit(1)
"""


def test_offsets_have_64_bits():
    """n * V and V * H pass 2**31: read from what every kernel that meets the vocabulary compiles to."""
    found = subprocess.run([sys.executable, "-c", OFFSETS], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    assert len(found.stdout.splitlines()) == 7
