"""Products with the vocabulary that end in exponentials or gradients, against float64, for every option."""

import itertools

import pytest
import torch

from distill.kernels import vocabulary_gemm, vocabulary_gradient
from distill.kernels.targets import TARGETS
from distill.kernels.vocabulary_gemm import MAX_DISTANCE, exp_logits
from distill.kernels.vocabulary_gradient import dz_logits
from distill.kernels.vocabulary_tiles import CONFIGS, ODD_ROWS, Config

# Small tiles, so that there are many of them: loads by descriptors and by pointers, groups of row blocks that are not
# full, fewer programs than tiles, several flags in a tile's rows.
SMALL = {
    "tma": Config(16, 32, 16, 2, 4, 2, 3, True),
    "pointers": Config(16, 32, 16, 2, 4, 2, 3, False),
    "tall tma": Config(32, 32, 32, 4, 4, 2, 2, True),
}
OPTIONS = list(itertools.product((None, 2.5), (1.0, 0.7), (False, True)))
BFLOAT16_ROUNDOFF = 2.0**-8


@pytest.fixture(autouse=True)
def several_steps_of_the_reduction(monkeypatch):
    monkeypatch.setattr(vocabulary_gemm, "REDUCE_TILES", 2)


def head(rows, width, vocabulary, std=2.0, with_bias=False):
    """x, weight, bias with raw logits of about this standard deviation; rows begin at multiples of 16 bytes."""
    pitch = -(-width // 8) * 8
    x = (torch.randn(rows, pitch) * std).bfloat16()[:, :width]
    weight = (torch.randn(vocabulary, pitch) / width**0.5).bfloat16()[:, :width]
    return x, weight, torch.randn(vocabulary).bfloat16() if with_bias else None


def matrix(rows, vocabulary):
    """[rows, vocabulary] in longer rows; what is beyond must stay 7."""
    return torch.full((rows, -(-vocabulary // 64) * 64 + 64), 7.0, dtype=torch.bfloat16)[:, :vocabulary]


def assert_nothing_beyond_was_written(out):
    rows, vocabulary = out.shape
    whole = out.as_strided((rows, out.stride(0)), (out.stride(0), 1))
    assert (whole[:, vocabulary:] == 7).all()


def exact_z(x, weight, bias, softcap, temperature):
    """z and slope in float64."""
    raw = x.double() @ weight.double().T
    raw = raw if bias is None else raw + bias.double()
    slope = torch.ones_like(raw)
    if softcap is not None:
        tanh = torch.tanh(raw / softcap)
        raw, slope = softcap * tanh, 1 - tanh**2
    return raw / temperature, slope


def assert_rounded_once(found, exact, scale):
    """bfloat16 with no error but its own rounding; float32's where terms cancel, relative to `scale`."""
    error = (found.double() - exact).abs()
    assert (error <= 1.02 * BFLOAT16_ROUNDOFF * exact.abs() + 1e-4 * scale).all(), (error / scale).max()


def assert_is_argmax(found, z):
    """Up to float32 rounding, which may make equals of what is not."""
    torch.testing.assert_close(z.gather(1, found[:, None]).squeeze(1), z.max(1).values, rtol=0, atol=1e-5)


def size(high):
    return int(torch.randint(1, high + 1, ()))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize(("need_mean", "need_argmax"), [(False, False), (True, True), (False, True)])
def test_exponentials_and_statistics_match_float64(config, need_mean, need_argmax):
    for softcap, temperature, with_bias in OPTIONS:
        rows, width, vocabulary = size(50), size(40), size(100)
        x, weight, bias = head(rows, width, vocabulary, with_bias=with_bias)
        z, slope = exact_z(x, weight, bias, softcap, temperature)
        anchor = z.gather(1, torch.randint(vocabulary, (rows, 1))).squeeze(1).float()
        out = matrix(rows, vocabulary)
        options = {"softcap": softcap, "temperature": temperature, "config": SMALL[config]}
        wanted = {"need_mean": need_mean, "need_argmax": need_argmax}
        found = exp_logits(x, weight, bias, anchor, **options, out=out, **wanted)

        assert torch.equal(found.anchor, anchor)
        exact = (z - anchor.double()[:, None]).exp()
        torch.testing.assert_close(found.sums.double(), exact.sum(1), rtol=3e-5, atol=0)
        assert_rounded_once(out, exact * slope, exact)
        assert_nothing_beyond_was_written(out)
        assert (found.mean is not None, found.argmax is not None) == (need_mean, need_argmax)
        if need_mean:
            torch.testing.assert_close(found.mean.double(), z.mean(1), rtol=1e-5, atol=1e-5)
        if need_argmax:
            assert_is_argmax(found.argmax, z)

        only_statistics = exp_logits(x, weight, bias, anchor, **options, out=None, **wanted)
        for a, b in zip(only_statistics, found, strict=True):
            assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("config", SMALL)
def test_loss_and_gradient_lose_no_more_than_twice_the_plain_path(config):
    """Cross-entropy's loss, and dx and dW from bfloat16 E, against bfloat16 logits."""
    rows, width, vocabulary = 40, 32, 157
    x, weight, _ = head(rows, width, vocabulary, std=3.0)
    z, _ = exact_z(x, weight, None, None, 1.0)
    labels = torch.randint(vocabulary, (rows, 1))
    exact_loss = z.logsumexp(1) - z.gather(1, labels).squeeze(1)
    onehot = torch.zeros_like(z).scatter_(1, labels, 1.0)
    exact_dz = z.softmax(1) - onehot

    anchor = z.gather(1, labels).squeeze(1).float()
    out = matrix(rows, vocabulary)
    found = exp_logits(x, weight, None, anchor, out=out, config=SMALL[config])
    loss = found.anchor + found.sums.log() - anchor
    dz = out.double() / found.sums.double()[:, None] - onehot

    plain = x @ weight.T
    plain_loss = torch.nn.functional.cross_entropy(plain.float(), labels.squeeze(1), reduction="none")
    plain_dz = (plain.float().softmax(1) - onehot).bfloat16()
    for a, b, exact in (
        (loss, plain_loss, exact_loss),
        (dz @ weight.double(), plain_dz.double() @ weight.double(), exact_dz @ weight.double()),
        (dz.T @ x.double(), plain_dz.double().T @ x.double(), exact_dz.T @ x.double()),
    ):
        assert (a.double() - exact).norm() <= 2 * (b.double() - exact).norm()


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("config", SMALL)
def test_anchors_that_are_far_off_are_replaced(config):
    rows, vocabulary = 70, 90
    x, weight, bias = head(rows, 24, vocabulary, with_bias=True)
    z, _ = exact_z(x, weight, bias, None, 1.0)
    highest = z.amax(1).float()
    off = torch.zeros(rows)
    bad = torch.tensor([3, 17, 18, 33, 69])
    off[bad] = torch.tensor([100.0, -100.0, 61.0, -61.0, 1e4])
    off[0], off[40] = 59.0, -59.0
    out = matrix(rows, vocabulary)
    found = exp_logits(x, weight, bias, highest - off, out=out, need_mean=True, need_argmax=True, config=SMALL[config])

    far = off.abs() > MAX_DISTANCE
    assert torch.equal(found.anchor[~far], (highest - off)[~far])
    torch.testing.assert_close(found.anchor[far], highest[far], rtol=1e-5, atol=1e-5)
    exact = (z - found.anchor.double()[:, None]).exp()
    assert_rounded_once(out, exact, exact)
    torch.testing.assert_close(found.sums.double(), exact.sum(1), rtol=3e-5, atol=0)
    lse = found.anchor.double() + found.sums.double().log()
    torch.testing.assert_close(lse, z.logsumexp(1), rtol=0, atol=3e-5)
    torch.testing.assert_close(found.mean.double(), z.mean(1), rtol=1e-5, atol=1e-5)
    assert_is_argmax(found.argmax, z)
    assert_nothing_beyond_was_written(out)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("config", SMALL)
def test_one_anchor_anywhere_that_is_far_off(config):
    for row in torch.randint(100, (3,)).tolist():
        x, weight, _ = head(100, 8, 40)
        z, _ = exact_z(x, weight, None, None, 1.0)
        anchor = torch.zeros(100)
        anchor[row] = -150.0
        out = matrix(100, 40)
        found = exp_logits(x, weight, None, anchor, out=out, config=SMALL[config])
        lse = found.anchor.double() + found.sums.double().log()
        torch.testing.assert_close(lse, z.logsumexp(1), rtol=0, atol=3e-5)
        exact = (z - found.anchor.double()[:, None]).exp()
        assert_rounded_once(out, exact, exact)


@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("vocabulary", [33, 47, 49, 97])
def test_peaked_rows_beside_the_end_of_the_vocabulary(config, vocabulary):
    """Columns beyond V have raw logits of 0, far above those of these rows: none may be counted."""
    x, weight, _ = head(20, 16, vocabulary)
    bias = torch.full((vocabulary,), -90.0).bfloat16()
    bias[vocabulary - 1] = -50.0
    z, _ = exact_z(x, weight, bias, None, 1.0)
    label = torch.full((20, 1), vocabulary - 1)
    anchor = z.gather(1, label).squeeze(1).float()
    found = exp_logits(x, weight, bias, anchor, out=None, need_argmax=True, config=SMALL[config])
    torch.testing.assert_close(found.sums, torch.ones(20), rtol=2e-5, atol=0)
    assert (found.argmax == vocabulary - 1).all()


@pytest.mark.parametrize("config", SMALL)
def test_argmax_is_the_lowest_of_equals(config):
    """Small whole numbers: products are exact, and many are equal across halves, tiles and places in a tile."""
    x = torch.randint(-1, 2, (40, 8)).bfloat16()
    weight = torch.randint(-1, 2, (150, 8)).bfloat16()
    found = exp_logits(x, weight, None, torch.zeros(40), out=None, need_argmax=True, config=SMALL[config])
    raw = (x.double() @ weight.double().T).tolist()
    assert found.argmax.tolist() == [row.index(max(row)) for row in raw]


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow", "ignore:All-NaN")
@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_row_shows_and_stays_alone(config, bad):
    rows, vocabulary = 40, 70
    x, weight, _ = head(rows, 24, vocabulary)
    anchor = torch.zeros(rows)
    clean_out, out = matrix(rows, vocabulary), matrix(rows, vocabulary)
    clean = exp_logits(x, weight, None, anchor, out=clean_out, config=SMALL[config])
    x[20, 5] = bad
    found = exp_logits(x, weight, None, anchor, out=out, need_argmax=True, config=SMALL[config])
    assert not (found.anchor + found.sums.log())[20].isfinite()
    assert 0 <= found.argmax[20] < vocabulary
    others = torch.arange(rows) != 20
    assert torch.equal(found.sums[others], clean.sums[others]) and torch.equal(out[others], clean_out[others])


def test_minus_infinity_hides_part_of_the_vocabulary():
    x, weight, _ = head(20, 16, 100)
    bias = torch.zeros(100)
    bias[:70] = float("-inf")
    z, _ = exact_z(x, weight, bias, None, 1.0)
    found = exp_logits(x, weight, bias, torch.zeros(20), out=None, need_argmax=True, config=SMALL["tma"])
    torch.testing.assert_close(found.sums.log().double(), z.logsumexp(1), rtol=0, atol=1e-5)
    assert_is_argmax(found.argmax, z)


@pytest.mark.parametrize("config", SMALL)
def test_rows_at_any_stride(config):
    """Odd strides and offsets, which TMA does not take; and every second row, which it does."""
    x = torch.randn(30, 45).bfloat16()
    weight = (torch.randn(80, 31) / 5).bfloat16()
    wide = torch.full((17, 91), 7.0, dtype=torch.bfloat16)
    for x_part, weight_part, buffer in (
        (x[:17, 3:27], weight[:, 5:29], wide[:, :80]),
        (x[:, :40].contiguous()[::2, 8:32], weight[:, :24].contiguous()[:77], matrix(15, 77)),
    ):
        z, _ = exact_z(x_part, weight_part, None, None, 1.0)
        exp_logits(x_part, weight_part, None, torch.zeros(len(z)), out=buffer, config=SMALL[config])
        assert_rounded_once(buffer, z.exp(), z.exp())
        assert_nothing_beyond_was_written(buffer)


@pytest.mark.parametrize(("rows", "width", "vocabulary"), [(1, 1, 1), (1, 7, 130), (129, 64, 1), (0, 8, 9)])
def test_the_configurations_in_use_take_any_size(rows, width, vocabulary):
    for config in {ODD_ROWS, *(configs[0] for configs in CONFIGS.values())}:
        x, weight, _ = head(rows, width, vocabulary)
        z, _ = exact_z(x, weight, None, None, 1.0)
        out = matrix(rows, vocabulary)
        found = exp_logits(x, weight, None, torch.zeros(rows), out=out, need_mean=True, need_argmax=True, config=config)
        torch.testing.assert_close(found.sums.double(), z.exp().sum(1), rtol=3e-5, atol=0)
        assert_is_argmax(found.argmax, z)
        dz = matrix(rows, vocabulary)
        dz_logits(x, weight, None, torch.zeros(rows), torch.ones(rows), None, out=dz, config=config)
        assert torch.equal(dz, out)


def test_results_are_the_same_in_every_run():
    x, weight, bias = head(60, 24, 90, with_bias=True)
    runs = []
    for _ in range(2):
        out = matrix(60, 90)
        found = exp_logits(x, weight, bias, torch.zeros(60), out=out, need_mean=True, config=SMALL["tma"])
        runs.append((out, found.sums, found.mean))
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("config", SMALL)
@pytest.mark.parametrize("with_uniform", [False, True])
def test_gradient_is_exact_but_for_one_rounding(config, with_uniform):
    for softcap, temperature, with_bias in OPTIONS:
        rows, width, vocabulary = size(50), size(40), size(100)
        x, weight, bias = head(rows, width, vocabulary, with_bias=with_bias)
        z, slope = exact_z(x, weight, bias, softcap, temperature)
        lse = z.logsumexp(1).float()
        factor, uniform = torch.randn(rows), torch.randn(rows) if with_uniform else None
        softmax = factor.double()[:, None] * (z - lse.double()[:, None]).exp()
        sum_of_both = softmax if uniform is None else softmax + uniform.double()[:, None]
        scale = softmax.abs() if uniform is None else softmax.abs() + uniform.double().abs()[:, None]
        out = matrix(rows, vocabulary)
        options = {"softcap": softcap, "temperature": temperature, "config": SMALL[config]}
        dz_logits(x, weight, bias, lse, factor, uniform, **options, out=out)
        assert_rounded_once(out, sum_of_both * slope / temperature, scale / temperature)
        assert_nothing_beyond_was_written(out)


@pytest.mark.parametrize("target", TARGETS)
def test_every_configuration_in_use_has_cases_to_compile(target):
    names = [
        case.name for module in (vocabulary_gemm, vocabulary_gradient) for case in module.compile_cases(TARGETS[target])
    ]
    assert len(names) == len(set(names))
    for config in (ODD_ROWS, *CONFIGS.get(target, CONFIGS["other"])):
        tile = f"{config.rows}x{config.columns}x{config.depth}"
        assert sum(tile in name and "exp_logits" in name for name in names) >= 6
        assert sum(tile in name and "dz_logits" in name for name in names) >= 2


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"x": torch.zeros(3, 8)}, "x: got torch.float32"),
        ({"x": torch.zeros(8, 3).bfloat16().t()}, "x"),
        ({"x": torch.zeros(3, 0).bfloat16()}, "x"),
        ({"weight": torch.zeros(5, 9).bfloat16()}, "weight"),
        ({"weight": torch.zeros(5, 8)}, "weight"),
        ({"weight": torch.zeros(0, 8).bfloat16()}, "weight"),
        ({"bias": torch.zeros(6)}, "bias"),
        ({"anchor": torch.zeros(4)}, "anchor"),
        ({"anchor": torch.zeros(3, dtype=torch.float64)}, "anchor"),
        ({"out": torch.zeros(3, 6).bfloat16()}, "out"),
        ({"out": torch.zeros(3, 5)}, "out: got torch.float32"),
        ({"x": torch.zeros(3, 8).half()}, "x: got torch.float16"),
        ({"temperature": 0.0}, "temperature"),
        ({"softcap": 0.0}, "softcap"),
    ],
)
def test_bad_arguments_are_named(change, names):
    arguments = {
        "x": torch.zeros(3, 8).bfloat16(),
        "weight": torch.zeros(5, 8).bfloat16(),
        "bias": None,
        "anchor": torch.zeros(3),
        "out": None,
    }
    with pytest.raises(ValueError, match=names):
        exp_logits(**(arguments | change))
